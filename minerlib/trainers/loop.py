"""The training loop of all trainers: epochs of steps, with all that surrounds a step.

A trainer says what a step computes; the loop feeds it batches, steps the optimizer, keeps the time and the
numbers, writes a checkpoint after every epoch, goes on from one, trains in bfloat16 where asked to, and
shares batches among the ranks that torchrun started.

On a CPU a run is the same to the last bit every time, resumed or not, for one number of torch threads and of
ranks: all chance in an epoch is drawn from the seed and the epoch's number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from minerlib import distributed
from minerlib.samplers import MPerClass
from minerlib.trainers import common, ranks
from minerlib.trainers.images import ImageSet
from minerlib.trainers.settings import Settings, decisive
from minerlib.trainers.validation import MiningRecord

History = dict[str, list[Any]]  # lists of equal length: epoch, step, the step's terms, triplets, times
Batches = Callable[
    [int], Sequence[Tensor]
]  # the batches of an epoch, counted from 1: rows of the set, [B] each


@dataclass(frozen=True, eq=False)
class Batch:
    """This rank's part of a step's images."""

    images: Tensor  # [b, 3, H, W] float32 in [-1, 1], on the run's device
    labels: Tensor  # [b] int64
    rows: Tensor  # [b] int64, of the training set
    step: int  # of the run, from 1
    epoch: int  # from 1


class Loop:
    """Trains `network` on `images`, a step at a time.

    Args:
        kind: names the trainer in its checkpoints.
        config: the run's settings; a checkpoint is continued only under the same `decisive` ones.
        network: everything that is trained, proxies included. It is moved to the device and wrapped for ranks
            where there are any; `forward` calls it.
        images: the training set.
        batches: the batches of an epoch over all ranks, see `shuffled` and `balanced`.
        step: computes a batch's losses, `total` among them, which is minimised. With several ranks each
            returns its part, and the parts add up.
        record: what the step's miner counts in.
        optimizer: by default Adam over the network at the learning rate.
        together: rows of a batch that must stay on one rank, 3 for lists of triplets.
        after_epoch: called before an epoch's checkpoint is written; what it puts into `kept` is kept there.
    """

    def __init__(
        self,
        kind: str,
        config: Settings,
        network: nn.Module,
        images: ImageSet,
        batches: Batches,
        step: Callable[[Loop, Batch], dict[str, Tensor]],
        *,
        record: MiningRecord | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        together: int = 1,
        after_epoch: Callable[[Loop], None] | None = None,
    ) -> None:
        self.kind, self.config, self.images = kind, config, images
        self.batches, self.step, self.together = batches, step, together
        self.after_epoch = after_epoch
        self.ranks = ranks.current()
        self.device = common.usable_device(config.device)
        self.network: nn.Module = network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward: nn.Module = self.network
        if self.ranks.world > 1:
            on_gpu = [self.device.index] if self.device.type == "cuda" else None
            self.forward = DistributedDataParallel(self.network, device_ids=on_gpu)
        self.optimizer = optimizer or torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)
        self.record = record or MiningRecord()
        self.epoch = 0  # trained so far
        self.seconds = 0.0
        self.history: History = {}
        self.kept: dict[str, Any] = {}  # what else a trainer wants to find again after a resumption
        self.files = {"checkpoint": config.output / "checkpoint.pt", "metrics": config.output / "metrics.csv"}

    @property
    def steps(self) -> int:
        """Trained so far."""
        return len(self.history.get("step", ()))

    def run(self) -> None:
        """Train until `config.epochs` are done, from the start or from the checkpoint under `config.resume`.

        Writes `checkpoint.pt` and `metrics.csv` into `config.output` after every epoch. Raises `ValueError`
        and `OSError` for settings that cannot be met.
        """
        config = self.config
        if config.resume:
            self._load(common.load_checkpoint(self.files["checkpoint"], self.kind, self._decisive()))
        if self.ranks.main:
            common.prepare_output(config.output)
        in_epoch = len(self.batches(self.epoch + 1))
        if not in_epoch:
            raise ValueError(
                f"data: expected images for one step at least, got {len(self.images)} to train on"
            )
        left = in_epoch * (config.epochs - self.epoch)
        quiet = not (config.progress and self.ranks.main)
        with tqdm(total=self.steps + left, initial=self.steps, unit="step", disable=quiet) as bar:
            while self.epoch < config.epochs:
                self._train_epoch(bar)
                if self.ranks.main:
                    common.save_checkpoint(self.files["checkpoint"], self._state())
                    common.write_csv(self.files["metrics"], self.history)

    def gather(
        self,
        embeddings: Tensor,  # [b, D]
        labels: Tensor,  # [b]
    ) -> tuple[Tensor, Tensor, range]:  # [B, D], [B], this rank's rows
        """The embeddings of the whole batch, in float32, with gradients; this rank's rows are the anchors.

        Raises `ValueError` that blames the learning rate where embeddings are no longer finite.
        """
        if not torch.isfinite(embeddings).all():
            raise ValueError(
                f"learning_rate: expected one small enough to train with, got {self.config.learning_rate}; "
                f"the features are no longer finite at step {self.steps + 1}"
            )
        rows, all_labels, first = distributed.gather(embeddings.float(), labels)
        return rows, all_labels, range(first, first + len(embeddings))

    def _train_epoch(self, bar: tqdm[Any]) -> None:
        start = time.perf_counter()
        self.forward.train()
        epoch = self.epoch + 1
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the caller's own random numbers go on undisturbed
            torch.manual_seed(_epoch_seed(self.config.seed, epoch, self.ranks.rank))
            for rows in self.batches(epoch):
                values = self._train_step(rows, epoch)
                for name, value in values.items():
                    self.history.setdefault(name, []).append(value)
                shown = {"loss": f"{values['total']:.4g}", "triplets": values["triplets"]}
                bar.set_postfix(epoch=epoch, **shown)
                bar.update()
        self.ranks.take_over(self.network.buffers())  # BatchNorm's, which every rank counts for itself
        self.epoch = epoch
        if self.after_epoch is not None:
            self.after_epoch(self)
        self.seconds += time.perf_counter() - start

    def _train_step(self, rows: Tensor, epoch: int) -> dict[str, Any]:
        start = time.perf_counter()
        record, before = self.record, asdict(self.record)
        count = len(rows)
        rows = self.ranks.share(rows, self.together)
        part = self.images.rows(rows)
        batch = Batch(
            images=common.network_input(part.images, self.device),
            labels=part.labels.to(self.device),
            rows=rows,
            step=self.steps + 1,
            epoch=epoch,
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp):
            terms = self.step(self, batch)
        self.optimizer.zero_grad()
        (terms["total"] * self.ranks.world).backward()  # DistributedDataParallel averages over the ranks
        self.optimizer.step()
        numbers = {name: term.item() for name, term in terms.items()}
        numbers["triplets"] = record.triplets - before["triplets"]
        numbers = self.ranks.add_up(numbers)
        numbers["triplets"] = round(numbers["triplets"])
        seconds = time.perf_counter() - start - (record.aside_seconds - before["aside_seconds"])
        record.step_seconds += seconds
        mining_ms = 1e3 * (record.seconds - before["seconds"])
        return {
            "epoch": epoch,
            "step": batch.step,
            "images": count,
            **numbers,
            "mining_ms": mining_ms,
            "step_ms": 1e3 * seconds,
        }

    def _decisive(self) -> dict[str, Any]:
        return {**decisive(self.config), "ranks": self.ranks.world}

    def _state(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "config": self._decisive(),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epochs": self.epoch,
            "seconds": self.seconds,
            "history": self.history,
            "kept": self.kept,
            "mining": asdict(self.record),
        }

    def _load(self, state: dict[str, Any]) -> None:
        if state["epochs"] > self.config.epochs:
            raise ValueError(
                f"epochs: expected at least the {state['epochs']} already trained, got {self.config.epochs}"
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.seconds, self.history = state["epochs"], state["seconds"], state["history"]
        self.kept = state["kept"]
        for name, value in state["mining"].items():
            setattr(self.record, name, value)


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network whose first weights come from the seed, whatever random numbers the caller draws.

    >>> first, again = (seeded(lambda: nn.Linear(2, 2), 3).weight for _ in range(2))
    >>> torch.equal(first, again)
    True
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def shuffled(count: int, batch_size: int, seed: int) -> Batches:
    """All rows in random order, a batch at a time.

    A last batch that would leave a rank with a single image is left out: no BatchNorm could normalise it.

    >>> [len(rows) for rows in shuffled(10, 4, seed=0)(1)]
    [4, 4, 2]
    """

    def batches(epoch: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(_epoch_seed(seed, epoch))
        order = torch.randperm(count, generator=generator)
        least = 2 * ranks.current().world
        return [rows for rows in order.split(batch_size) if len(rows) >= least]

    return batches


def balanced(
    labels: Tensor,  # [N]
    per_class: int,
    batch_size: int,
    seed: int,
) -> Batches:
    """Batches with `per_class` rows of each of `batch_size / per_class` classes (`samplers.MPerClass`).

    >>> batches = balanced(torch.arange(40) % 4, per_class=2, batch_size=8, seed=0)(1)
    >>> len(batches), (batches[0] % 4).sort().values.tolist()
    (5, [0, 0, 1, 1, 2, 2, 3, 3])
    """
    sampler = MPerClass(labels, per_class, batch_size, seed=seed, rank=0, world_size=1)

    def batches(epoch: int) -> list[Tensor]:
        sampler.set_epoch(epoch)
        return [torch.tensor(rows) for rows in sampler]

    return batches


def _epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    return int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))
