"""What is known of a chunk of rows, its running extremes, and their update by a pair of chunks.

A record holds, for one row, the nearest and farthest positive and the nearest and farthest negative found so
far: canonical selection values and global row numbers, -1 for none. Ties go to the lowest number, so updates
commute and repeating one changes nothing: any order of chunk pairs, also with repetitions, ends in the same
records.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

import numpy as np

from minerlib.arrays import Origin
from minerlib.inputs import Problem

RANKED = np.dtype([("value", np.float64), ("id", np.int64)])  # of a row's nearest negatives
RECORD = np.dtype([("value", np.float64, 4), ("id", np.int64, 4)])  # 64 bytes, one cache line

_TILE = 1 << 20  # distances held at a time where there is no native kernel


@dataclass(eq=False)
class Chunk:
    """Rows first .. first + n - 1 of the data set, and what is known of them."""

    first: int
    rows: np.ndarray  # [n, D] float32 or float64, C-contiguous
    labels: np.ndarray  # [n] integers, or [n, W] uint64 bits of label sets
    limits: np.ndarray | None  # [n] float64: rows beyond are outliers; None: no rule
    records: np.ndarray  # [n] RECORD

    @cached_property
    def classes(self) -> np.ndarray:  # [n] int64, equal where the labels are
        return self.labels.astype(np.int64)

    @cached_property
    def order(self) -> np.ndarray:  # [n] int64, the rows by class
        return np.argsort(self.classes, kind="stable").astype(np.int64, copy=False)


def no_records(rows: int) -> np.ndarray:  # [n] RECORD
    records = np.zeros(rows, dtype=RECORD)
    records["id"] = -1
    return records


class Updater:
    """Offers rows of two chunks of a data set to each other's records. Memory: a copy of both, or a tile."""

    def __init__(self, backend: ModuleType, metric: str, wanted: tuple[int, ...]) -> None:
        self._backend, self._metric, self._wanted = backend, metric, wanted
        self._space = "cosine" if metric == "cosine" else "sqeuclidean"
        self._buffer = np.empty(0)
        self._held = (0, 0)  # first row and number of the rows that begin the buffer
        if self._is_native:
            self._kept = backend.keep_buffers()

    @property
    def _is_native(self) -> bool:
        return hasattr(self._backend, "chunk_extremes")

    def update(self, x: Chunk, y: Chunk) -> None:
        """Improve the records of both; x may be y."""
        if not (len(x.rows) and len(y.rows)):
            return
        if self._is_native:
            self._update_native(x, y)
        else:
            self._update_by_tiles(x, y)

    def _update_native(self, x: Chunk, y: Chunk) -> None:
        alone = x is y
        parts = (x,) if alone else (x, y)
        split = 0 if alone else len(x.rows)
        rows = self._joined(parts)
        labels: tuple[np.ndarray, ...]
        if x.labels.ndim == 1:
            orders = [x.order] if alone else [x.order, y.order + split]
            labels = np.concatenate([each.classes for each in parts]), np.concatenate(orders)
        else:
            labels = (np.concatenate([each.labels for each in parts]),)
        limits = None
        if x.limits is not None and y.limits is not None:
            limits = np.concatenate([x.limits] if alone else [x.limits, y.limits])
        records = np.concatenate([each.records for each in parts])
        self._backend.chunk_extremes(
            rows, split, (x.first, y.first), labels, limits, self._space, self._wanted,
            records.view(np.float64).reshape(-1, 8),
        )  # fmt: skip
        x.records[:] = records[: len(x.rows)]
        if not alone:
            y.records[:] = records[split:]

    def _joined(self, parts: tuple[Chunk, ...]) -> np.ndarray:
        """The rows of the chunks, one behind the other, in a buffer that is used again.

        The first chunk of one call is mostly that of the call before: its rows are still there.
        """
        count, (_, dims) = sum(len(each.rows) for each in parts), parts[0].rows.shape
        if self._buffer.size < count * dims or self._buffer.dtype != parts[0].rows.dtype:
            self._buffer, self._held = np.empty(count * dims, parts[0].rows.dtype), (0, 0)
        out = self._buffer[: count * dims].reshape(count, dims)
        first = len(parts[0].rows)
        if self._held != (parts[0].first, first):
            out[:first], self._held = parts[0].rows, (parts[0].first, first)
        if len(parts) > 1:
            out[first:] = parts[1].rows
        return out

    def _update_by_tiles(self, x: Chunk, y: Chunk) -> None:
        step = max(1, _TILE // len(y.rows))
        for low in range(0, len(x.rows), step):
            some = slice(low, low + step)
            problem = Problem(x.rows[some], y.rows, None, False, self._space, Origin("numpy"))
            distances = self._backend.pairwise(problem)
            same = same_class(x.labels[some], y.labels)
            others = np.ones_like(same)
            if x is y:
                others[np.arange(len(same)), np.arange(low, low + len(same))] = False
            _offer(distances, same, others, x, low, y.first, self._wanted)
            if x is not y:
                _offer(distances.T, same.T, others.T, y, 0, x.first + low, self._wanted)


def same_class(x: np.ndarray, y: np.ndarray) -> np.ndarray:  # [n, m] bool
    if x.ndim == 1:
        return x[:, None] == y[None, :]
    same = np.zeros((len(x), len(y)), dtype=bool)
    for word in range(x.shape[1]):
        same |= (x[:, None, word] & y[None, :, word]) != 0
    return same


def _offer(
    distances: np.ndarray,  # [b, m]
    same: np.ndarray,  # [b, m]
    others: np.ndarray,  # [b, m]: false where a row would meet itself
    chunk: Chunk,
    low: int,  # the chunk's row of the first distance
    first: int,  # what the first column is called
    wanted: tuple[int, ...],
) -> None:
    some = slice(low, low + len(distances))
    if chunk.limits is not None:
        others = others & (distances <= chunk.limits[some, None])
    records = chunk.records[some]
    for e in wanted:
        offered = others & (same if e < 2 else ~same)
        worst = np.inf if e % 2 == 0 else -np.inf
        masked = np.where(offered, distances, worst)
        column = masked.argmin(axis=1) if e % 2 == 0 else masked.argmax(axis=1)  # the first: ties
        found = offered[np.arange(len(column)), column]
        value = masked[np.arange(len(column)), column]
        keep_better(records, e, value, np.where(found, first + column, -1))


def keep_better(
    records: np.ndarray,  # [n] RECORD, changed
    e: int,
    value: np.ndarray,  # [n]
    ids: np.ndarray,  # [n], -1: nothing is offered
) -> None:
    """Offer one candidate for extremum e to each record."""
    old_value, old_id = records["value"][:, e], records["id"][:, e]
    nearer = value < old_value if e % 2 == 0 else value > old_value
    better = (ids >= 0) & ((old_id < 0) | nearer | ((value == old_value) & (ids < old_id)))
    old_value[better], old_id[better] = value[better], ids[better]


def merge(records: np.ndarray, others: np.ndarray) -> None:  # [n] RECORD each, the first changed
    """Offer what another process has found for the same rows."""
    for e in range(4):
        keep_better(records, e, others["value"][:, e], others["id"][:, e])
