"""Mined triplets as a data set for `torch.utils.data.DataLoader`, and a sampler of epochs and ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from minerlib import inputs
from minerlib.offline import _results
from minerlib.offline._cases import CaseTriplets
from minerlib.samplers import current_ranks, given_ranks


class OfflineTriplets(Dataset[tuple[Any, Any, Any]]):
    """The triplets of one or more cases: item t is (anchor, positive, negative) of triplet t.

    Args:
        result: what `offline.mine` returned, or the name of a file that it wrote.
        rows: what the triplets are made of: anything with `rows[i]`, such as a data set of images, an array
            or a memory-mapped one; the items are then (rows[a], rows[p], rows[n]). Without it they are row
            numbers.
        cases: which of the result's cases, one behind the other; all of them by default.

    Raises `TypeError`, `ValueError` or `FileError` that names the argument or the file. Memory: 24 bytes a
    triplet.

    >>> from minerlib import offline
    >>> x = np.array([[0.0], [1.0], [3.0], [9.0]], dtype=np.float32)
    >>> found = offline.mine(x, np.array([0, 0, 1, 1]), "hphn", outlier_percentile=None, progress=False)
    >>> len(OfflineTriplets(found)), OfflineTriplets(found)[3]
    (4, (3, 2, 1))
    """

    def __init__(
        self,
        result: Mapping[str, CaseTriplets] | str | os.PathLike[str],
        rows: Any = None,
        cases: Sequence[str] | str | None = None,
    ) -> None:
        if isinstance(result, (str, os.PathLike)):
            path = Path(result)
            found, read = _results.cases_of(path), lambda case: _results.read(path, case)
        elif isinstance(result, Mapping):
            found, read = tuple(result), result.__getitem__
        else:
            raise TypeError(
                f"result: expected what offline.mine returned or a file's name, got {type(result).__name__}"
            )
        names = found if cases is None else (cases,) if isinstance(cases, str) else tuple(cases)
        for name in names:
            inputs.one_of("cases", name, found)
        self.rows, self.cases = rows, names
        parts = [[_numpy(column) for column in read(name)[:3]] for name in names]
        self.counts = tuple(len(part[0]) for part in parts)
        columns = [np.concatenate(part) for part in zip(*parts, strict=True)] or [np.empty(0, np.int64)] * 3
        self.anchors, self.positives, self.negatives = columns  # int64 [T]
        if rows is not None and len(self) and max(int(column.max()) for column in columns) >= len(rows):
            raise ValueError(
                f"rows: expected all rows that the triplets name, up to {max(c.max() for c in columns)}, "
                f"got {len(rows)}"
            )

    def __len__(self) -> int:
        return len(self.anchors)

    def __getitem__(self, triplet: int) -> tuple[Any, Any, Any]:
        indices = tuple(int(column[triplet]) for column in (self.anchors, self.positives, self.negatives))
        a, p, n = indices
        return (a, p, n) if self.rows is None else (self.rows[a], self.rows[p], self.rows[n])


class OfflineSampler(Sampler[int]):
    """The triplets of a data set in random order, each once an epoch; of a rank every world_size-th of them.

    The order depends on `seed` and the epoch alone. Every iteration is one epoch; `set_epoch` chooses which
    comes next. Each rank draws equally many: up to world_size - 1 triplets of the order's end are left out.
    Rank and number of ranks are those of torch.distributed, if it runs when an iteration starts, unless
    given.

    Args:
        triplets: the data set, for its length.
        seed: 0 <= seed < 2^64.
        rank, world_size: both or neither.

    Raises `TypeError` or `ValueError` that names the argument. Memory: 8 bytes a triplet during an iteration.

    >>> list(OfflineSampler(range(5), seed=1, rank=0, world_size=2)).__len__()
    2
    """

    def __init__(
        self, triplets: Any, *, seed: int = 0, rank: int | None = None, world_size: int | None = None
    ) -> None:
        self._count = len(triplets)
        self.seed, self.epoch = inputs.seed_value(seed), 0
        self._ranks = given_ranks(rank, world_size)

    def ranks(self) -> tuple[int, int]:
        """This process's rank and the number of ranks."""
        return self._ranks or current_ranks()

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is; without it, the one after the last."""
        self.epoch = inputs.integer("epoch", epoch, 0, 2**62)

    def __len__(self) -> int:
        """Triplets of this rank in an epoch."""
        return self._count // self.ranks()[1]

    def __iter__(self) -> Iterator[int]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        rank, size = self.ranks()
        draw = np.random.Generator(np.random.PCG64([self.seed & 0xFFFFFFFF, self.seed >> 32, epoch]))
        order = draw.permutation(self._count)
        yield from (int(each) for each in order[rank : self._count // size * size : size])


def _numpy(column: Any) -> np.ndarray:
    return column.cpu().numpy() if isinstance(column, torch.Tensor) else np.asarray(column)
