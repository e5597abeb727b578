"""Kernels compiled by numba on first use, for machines without a C++ compiler.

They compute canonical float64 distances directly, a few anchors at a time, so every answer is exact and
`exact=False` changes nothing. Peak memory: a packed copy of the columns, and 64 to 200 bytes a column (or
about a megabyte, if that is more) a thread. Codes are read a slab at a time and never copied whole.
Importing this module imports neither numba nor a kernel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import numpy as np

from minerlib.backends._numba_chunks import NEGATIVE, Rows, Sides, norms, over_chunks
from minerlib.backends._numba_codes import (
    hamming_average_precision,
    hamming_counts,
    hamming_distance,
    hamming_range,
    hamming_search,
)
from minerlib.inputs import Problem
from minerlib.reference import DistanceWeights
from minerlib.strategies import FARTHEST_NEGATIVE, NEAREST_NEGATIVE, Request

__all__ = [
    "counts",
    "every_triplet",
    "extremes",
    "hamming_average_precision",
    "hamming_counts",
    "hamming_distance",
    "hamming_range",
    "hamming_search",
    "pairwise",
    "reasons_unusable",
    "sample",
    "topk",
    "window",
]

_Columns = tuple[np.ndarray, np.ndarray, np.ndarray]


@functools.cache
def reasons_unusable() -> tuple[str, ...]:
    try:
        import numba  # noqa: F401
    except Exception as error:  # llvmlite and NumPy of a wrong version raise more than ImportError
        return (f"numba cannot be imported: {error or type(error).__name__}",)
    return ()


def extremes(problem: Problem, wanted: Iterable[int], exact: bool) -> np.ndarray:
    from minerlib.backends import _numba_families as families

    rows, sides = Rows.of(problem), Sides(problem)
    found = np.full((4, len(problem.anchors)), -1, dtype=np.int64)

    def work(first: int, last: int) -> None:
        families.extremes(rows.compute(first, last), sides.mark(first, last), first, found)

    over_chunks(*_size(problem), work)
    return found


def window(problem: Problem, rule: str, request: Request) -> _Columns:
    from minerlib.backends import _numba_families as families

    rows, sides = Rows.of(problem), Sides(problem)
    root, combinations = problem.metric == "euclidean", request.pairs == "combinations"
    margin, seed = request.margin, np.uint64(request.seed)
    # s < margin and s <= (the float before margin) are the same; random-hard has no upper limit
    limit = math.nextafter(margin, -math.inf) if rule == "semi-hard" else math.inf
    offsets, slots = _slots(sides, combinations)
    pairs = offsets, *slots[1:]
    found = np.full((4, len(problem.anchors)), -1, dtype=np.int64)
    fallback = _fallback(found, request)

    def work(first: int, last: int) -> None:
        distances, marks = rows.compute(first, last), sides.mark(first, last)
        if request.fallback != "drop":
            families.extremes(distances, marks, first, found)
        if rule == "hard":
            families.nearest_if_hard(distances, marks, first, root, combinations, margin, fallback, *pairs)
        elif rule == "semi-hard-nearest":
            families.nearest_farther(distances, marks, first, root, combinations, fallback, *pairs)
        else:
            families.choose_in_window(
                distances, marks, first, root, combinations, margin, limit, seed, fallback, *pairs
            )

    over_chunks(*_size(problem), work)
    return slots


def sample(problem: Problem, request: Request) -> _Columns:
    """The logarithms and exponentials are NumPy's, as in the reference, and so the draws are the same."""
    from minerlib.backends import _numba_families as families

    anchors = _unit_rows(problem.anchors)
    columns = anchors if problem.own else _unit_rows(problem.columns)
    unit, sides = Rows(anchors, columns, cosine=False), Sides(problem)
    rows = None if request.fallback == "drop" else Rows.of(problem)
    combinations, seed = request.pairs == "combinations", np.uint64(request.seed)
    offsets, slots = _slots(sides, combinations)
    pairs = offsets, *slots[1:]
    found = np.full((4, len(anchors)), -1, dtype=np.int64)
    fallback = _fallback(found, request)

    def work(first: int, last: int) -> None:
        distances, marks = np.sqrt(unit.compute(first, last)), sides.mark(first, last)
        distances[marks != NEGATIVE] = np.inf  # weighs nothing
        cumulative = _cumulative_weights(distances, anchors.shape[1])
        if rows is not None and (cumulative[:, -1] == 0).any():
            families.extremes(rows.compute(first, last), marks, first, found)
        families.draw(cumulative, marks, first, combinations, seed, fallback, *pairs)

    over_chunks(*_size(problem), work)
    return slots


def every_triplet(problem: Problem, request: Request) -> _Columns:
    from minerlib.backends import _numba_families as families

    rows, sides = Rows.of(problem), Sides(problem)
    options = problem.metric == "euclidean", request.pairs == "combinations", request.margin
    parts: dict[int, np.ndarray] = {}

    def work(first: int, last: int) -> None:
        distances, marks = rows.compute(first, last), sides.mark(first, last)
        totals = np.zeros(3, dtype=np.int64)
        families.count_scores(distances, marks, first, *options, totals)
        triplets = np.empty((3, totals[1]), dtype=np.int64)
        families.list_triplets(distances, marks, first, *options, triplets)
        parts[first] = triplets

    over_chunks(*_size(problem), work)
    return _joined(parts)


def counts(problem: Problem, request: Request) -> tuple[int, int, int]:
    from minerlib.backends import _numba_families as families

    rows, sides = Rows.of(problem), Sides(problem)
    options = problem.metric == "euclidean", request.pairs == "combinations", request.margin
    parts: list[np.ndarray] = []

    def work(first: int, last: int) -> None:
        totals = np.zeros(3, dtype=np.int64)
        families.count_scores(rows.compute(first, last), sides.mark(first, last), first, *options, totals)
        parts.append(totals)

    over_chunks(*_size(problem), work)
    total, above, semi_hard = (int(number) for number in sum(parts, np.zeros(3, dtype=np.int64)))
    return total, above - semi_hard, semi_hard


def topk(problem: Problem, k: int, exact: bool) -> tuple[np.ndarray, np.ndarray]:
    from minerlib.backends import _numba_families as families

    rows = Rows.of(problem)
    distances = np.empty((len(problem.anchors), k))
    indices = np.empty((len(problem.anchors), k), dtype=np.int64)

    def work(first: int, last: int) -> None:
        families.nearest_k(rows.compute(first, last), distances[first:last], indices[first:last])

    over_chunks(*_size(problem), work)
    return np.sqrt(distances) if problem.metric == "euclidean" else distances, indices


def pairwise(problem: Problem) -> np.ndarray:

    rows = Rows.of(problem)
    distances = np.empty((len(problem.anchors), len(problem.columns)))

    def work(first: int, last: int) -> None:
        rows.compute(first, last, out=distances[first:last])

    over_chunks(*_size(problem), work)
    return np.sqrt(distances, out=distances) if problem.metric == "euclidean" else distances


def _size(problem: Problem) -> tuple[int, int, int]:
    return len(problem.anchors), len(problem.columns), problem.anchors.shape[1]


def _slots(sides: Sides, combinations: bool) -> tuple[np.ndarray, _Columns]:
    """Where each anchor's pairs start, and a slot per pair: its anchor, and -1 until they are mined."""
    offsets = sides.offsets(combinations)
    anchors = np.repeat(np.arange(sides.anchors), np.diff(offsets))
    return offsets, (anchors, np.full(len(anchors), -1), np.full(len(anchors), -1))


def _fallback(
    found: np.ndarray,  # [4, N] int64
    request: Request,
) -> np.ndarray:  # [N] int64, a view
    """Each anchor's answer for a pair without an eligible negative, once `found` holds the extremes."""
    return found[FARTHEST_NEGATIVE if request.fallback == "farthest" else NEAREST_NEGATIVE]


def _joined(
    parts: dict[int, np.ndarray],  # [3, T of the part] int64 by first anchor; emptied
) -> _Columns:
    """All parts in order. Each is freed once it is copied, so that no two copies of the whole exist."""
    out = np.empty((3, sum(part.shape[1] for part in parts.values())), dtype=np.int64)
    stop = 0
    for first in sorted(parts):
        part = parts.pop(first)
        start, stop = stop, stop + part.shape[1]
        out[:, start:stop] = part
    anchors, positives, negatives = out
    return anchors, positives, negatives


def _unit_rows(
    rows: np.ndarray,  # [N, D]
) -> np.ndarray:  # [N, D] float64

    norm = norms(rows)[:, None]
    return np.divide(rows, norm, out=np.zeros(rows.shape), where=norm != 0, dtype=np.float64)


def _cumulative_weights(
    distances: np.ndarray,  # [B, M]
    dimension: int,
) -> np.ndarray:  # [B, M]
    """Running sums of 1 / q(d) over the largest one of the row; zeros where nothing weighs anything."""
    clamped = np.clip(distances, DistanceWeights.NEAREST, DistanceWeights.CUTOFF)
    log_q = (dimension - 2) * np.log(clamped) + (dimension - 3) / 2 * np.log(1 - clamped * clamped / 4)
    log_w = np.where(distances > DistanceWeights.CUTOFF, -np.inf, -log_q)
    largest = log_w.max(axis=1, keepdims=True)
    return np.cumsum(np.exp(log_w - np.where(np.isfinite(largest), largest, 0)), axis=1)
