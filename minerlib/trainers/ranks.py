"""The processes that torchrun starts: who this one is, what is its share, and what all agree on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes the files and speaks to the user."""
        return self.rank == 0

    @property
    def whose(self) -> str:
        """Whose counts these are, where there is more than one rank: for reports."""
        return f"counted by the first of {self.world} ranks" if self.world > 1 else ""

    def share(
        self,
        rows: Tensor,  # [B] of the whole batch
        together: int = 1,
    ) -> Tensor:  # [b]
        """This rank's part of a batch; `together` rows are never parted. All parts in order are the batch."""
        return rows.view(-1, together).tensor_split(self.world)[self.rank].reshape(-1)

    def add_up(self, values: Mapping[str, float]) -> dict[str, float]:
        """Each value summed over the ranks."""
        if self.world == 1:
            return dict(values)
        device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return dict(zip(values, total.tolist(), strict=True))

    def take_over(self, tensors: Iterable[Tensor]) -> None:
        """The first rank's values, in place, on every rank."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def agree(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


def current() -> Ranks:
    """This process's place, where a process group runs; otherwise it is alone."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the processes that torchrun started, if it did: by gloo on a CPU, by NCCL on GPUs, one each."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_available() or dist.is_initialized():
        yield
        return
    on_gpu = device.partition(":")[0] == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def first_alone() -> Iterator[None]:
    """The first rank runs the block before the others do: it leaves files that they then find."""
    ranks = current()
    if not ranks.main:
        ranks.agree(None)
    try:
        yield
    finally:
        if ranks.main:
            ranks.agree(None)
