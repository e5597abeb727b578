"""The ranks of a run: what each of them owns, and how rows and findings travel between them.

Rows travel as bytes over gloo, also where the default group is NCCL: they are read from files into the
memory of the host. A rank that dies breaks its neighbours' connections; every exchange turns that into
`RankLost`.
"""

from __future__ import annotations

import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_PIECE = 1 << 28  # bytes of one message


class RankLost(RuntimeError):
    """Another rank has ended or is out of reach."""


class Ring:
    """Rank `rank` of `size`; one rank alone needs no torch."""

    def __init__(self, alone: bool = False) -> None:
        self.rank, self.size = 0, 1
        self._group: Any = None
        torch = sys.modules.get("torch")
        if alone or torch is None or not torch.distributed.is_available():
            return
        if not torch.distributed.is_initialized():
            return
        self._torch, self._dist = torch, torch.distributed
        self.rank, self.size = self._dist.get_rank(), self._dist.get_world_size()
        if self.size > 1 and self._dist.get_backend() != "gloo":
            self._group = self._dist.new_group(backend="gloo")

    def share(self, units: int, rank: int) -> tuple[int, int]:
        """Which of `units` consecutive units belong to a rank: first and last + 1."""
        return units * rank // self.size, units * (rank + 1) // self.size

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            first = str(error).partition("\n")[0]
            raise RankLost(
                f"rank {self.rank} of {self.size} lost touch with another rank ({first})"
            ) from error

    def shift(self, outgoing: np.ndarray, to: int, incoming: np.ndarray, source: int) -> None:
        """Send one array to a rank and fill another from a rank; all ranks do so together."""
        if self.size == 1:
            return
        with self._reaching():
            sent, got = _bytes(outgoing), _bytes(incoming)
            for place in range(0, max(len(sent), len(got)), _PIECE):
                work = []
                if place < len(got):
                    part = self._torch.from_numpy(got[place : place + _PIECE])
                    work.append(self._dist.irecv(part, source, group=self._group))
                if place < len(sent):
                    part = self._tensor(sent[place : place + _PIECE])
                    work.append(self._dist.isend(part, to, group=self._group))
                for each in work:
                    each.wait()

    def send(self, values: np.ndarray, to: int) -> None:
        with self._reaching():
            sent = _bytes(values)
            for place in range(0, len(sent), _PIECE):
                self._dist.send(self._tensor(sent[place : place + _PIECE]), to, group=self._group)

    def receive(self, values: np.ndarray, source: int) -> None:
        with self._reaching():
            got = _bytes(values)
            for place in range(0, len(got), _PIECE):
                self._dist.recv(
                    self._torch.from_numpy(got[place : place + _PIECE]), source, group=self._group
                )

    def _tensor(self, values: np.ndarray) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a memory-mapped array, which torch could not write to
            return self._torch.from_numpy(values)

    def all(self, number: int) -> list[int]:
        """A number of every rank."""
        if self.size == 1:
            return [number]
        with self._reaching():
            own = self._torch.tensor([number])
            out = [self._torch.empty_like(own) for _ in range(self.size)]
            self._dist.all_gather(out, own, group=self._group)
        return [int(each) for each in out]

    def barrier(self) -> None:
        self.all(0)

    def agree(self, facts: dict[str, Any]) -> None:
        """Every rank was asked for the same."""
        sums = self.all(zlib.crc32(repr(facts).encode()))
        others = [rank for rank, each in enumerate(sums) if each != sums[0]]
        if others:
            raise ValueError(f"expected the same arguments on all ranks, got others on rank {others[0]}")

    @contextmanager
    def together(self) -> Iterator[None]:
        """What one rank finds wrong in the block ends it on all of them."""
        error: Exception | None = None
        try:
            yield
        except RankLost:
            raise
        except Exception as wrong:
            error = wrong
        broken = [rank for rank, state in enumerate(self.all(error is not None)) if state]
        if error is not None:
            raise error
        if broken:
            raise RankLost(f"rank {broken[0]} could not take part; see its own error")

    def add_up(self, segments: int, compute: Callable[[int], np.ndarray]) -> np.ndarray:
        """Sums of segments computed by all ranks and added in order (`_moments.AddUp`)."""
        total: np.ndarray | None = None
        for first in range(0, segments, self.size):
            own = compute(first + self.rank) if first + self.rank < segments else None
            for segment in range(first, min(first + self.size, segments)):
                part = own
                with self._reaching():
                    if segment != first + self.rank:
                        like = own if own is not None else total
                        part = np.empty_like(self._shape(like, compute))
                    assert part is not None
                    self._dist.broadcast(self._torch.from_numpy(part), segment - first, group=self._group)
                total = part.copy() if total is None else total + part
        assert total is not None, "a data set without rows has no moments"
        return total

    def _shape(self, like: np.ndarray | None, compute: Callable[[int], np.ndarray]) -> np.ndarray:
        return (
            compute(0) if like is None else like
        )  # a rank without a segment in the first round: rare, small


def _bytes(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1).view(np.uint8)
