"""The running extremes of a chunk of rows, and their update by a pair of chunks.

A record holds, for one row, the nearest and farthest positive and the nearest and farthest negative found so
far: canonical selection values and global row numbers, -1 for none. Ties go to the lowest number, so updates
commute and repeating one changes nothing: any order of chunk pairs, also with repetitions, ends in the same
records.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from minerlib.arrays import Origin
from minerlib.inputs import Problem

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


def no_records(rows: int) -> np.ndarray:  # [n] RECORD
    records = np.zeros(rows, dtype=RECORD)
    records["id"] = -1
    return records


def update(backend: ModuleType, x: Chunk, y: Chunk, metric: str) -> None:
    """Offer each chunk's rows to the other's records; x may be y."""
    space = "cosine" if metric == "cosine" else "sqeuclidean"
    step = max(1, _TILE // max(1, len(y.rows)))
    for low in range(0, len(x.rows), step):
        some = slice(low, low + step)
        distances = backend.pairwise(Problem(x.rows[some], y.rows, None, False, space, Origin("numpy")))
        same = _same(x.labels[some], y.labels)
        others = np.ones_like(same)
        if x is y:
            others[np.arange(len(same)), np.arange(low, low + len(same))] = False
        _offer(distances, same, others, x, low, y.first)
        if x is not y:
            _offer(distances.T, same.T, others.T, y, 0, x.first + low)


def _same(x: np.ndarray, y: np.ndarray) -> np.ndarray:  # [n, m] bool
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
) -> None:
    some = slice(low, low + len(distances))
    if chunk.limits is not None:
        others = others & (distances <= chunk.limits[some, None])
    records = chunk.records[some]
    for e in range(4):
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
