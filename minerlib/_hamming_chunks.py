"""Hamming search of a database that comes in chunks of rows: the answers are those of the whole.

A chunk's hits are merged behind those of the chunks before it by a stable sort on the distance, so ties go to
the earlier row, whatever its label and however the rows are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

#: Codes uint8 [n, bytes] and what their rows are called, int64 [n]: ids, or the number of the first row.
Chunk = tuple[np.ndarray, np.ndarray | int]

_MERGED = 1 << 18  # hits merged at a time


def search(
    kernel: Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]],
    queries: np.ndarray,  # [Q, bytes] uint8
    chunks: Iterable[Chunk],
    k: int,  # at most the rows of all chunks
) -> tuple[np.ndarray, np.ndarray]:  # int32 [Q, k], int64 [Q, k]
    """A backend's `hamming_search` over all chunks. Memory: twice the result, if it takes several."""
    best: tuple[np.ndarray, np.ndarray] | None = None
    filled = 0
    for codes, names in chunks:
        distances, rows = kernel(queries, codes, min(k, len(codes)))
        rows = _named(rows, names)
        if best is None:
            if distances.shape[1] == k:  # often the only chunk
                best, filled = (distances, rows), k
                continue
            best = np.empty((len(queries), k), dtype=np.int32), np.empty((len(queries), k), dtype=np.int64)
        filled = _merge(*best, filled, distances, rows)
    assert best is not None
    assert filled == k
    return best


def _named(rows: np.ndarray, names: np.ndarray | int) -> np.ndarray:
    if isinstance(names, np.ndarray):
        return names[rows]
    return rows + names if names else rows


def _merge(
    best_distances: np.ndarray,  # [Q, k], of which the first `filled` columns are there
    best_rows: np.ndarray,  # [Q, k]
    filled: int,
    distances: np.ndarray,  # [Q, m] of later rows
    rows: np.ndarray,  # [Q, m]
) -> int:
    """Merge into the best k in place; how many columns are there now."""
    queries, k = best_distances.shape
    width = min(k, filled + distances.shape[1])
    step = max(1, _MERGED // (filled + distances.shape[1]))
    for first in range(0, queries, step):
        some = slice(first, first + step)
        both_distances = np.concatenate([best_distances[some, :filled], distances[some]], axis=1)
        both_rows = np.concatenate([best_rows[some, :filled], rows[some]], axis=1)
        order = np.argsort(both_distances, axis=1, kind="stable")[:, :width]
        best_distances[some, :width] = np.take_along_axis(both_distances, order, axis=1)
        best_rows[some, :width] = np.take_along_axis(both_rows, order, axis=1)
    return width


def range_search(
    kernel: Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray, np.ndarray]],
    queries: np.ndarray,  # [Q, bytes] uint8
    chunks: Iterable[Chunk],
    radius: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # int64 [Q + 1], int64 [T], int32 [T]
    """A backend's `hamming_range` over all chunks. Memory: twice the result, if it takes several."""
    parts = []
    for codes, names in chunks:
        offsets, rows, distances = kernel(queries, codes, radius)
        parts.append((offsets, _named(rows, names), distances))
    if len(parts) == 1:
        return parts[0]
    counts = sum((np.diff(offsets) for offsets, _, _ in parts), np.zeros(len(queries), dtype=np.int64))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    all_rows = np.empty(offsets[-1], dtype=np.int64)
    all_distances = np.empty(offsets[-1], dtype=np.int32)
    for query, (first, last) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        if first == last:
            continue
        hits = [(part, slice(part[0][query], part[0][query + 1])) for part in parts]
        found = np.concatenate([part[2][hit] for part, hit in hits])
        order = np.argsort(found, kind="stable")
        all_distances[first:last] = found[order]
        all_rows[first:last] = np.concatenate([part[1][hit] for part, hit in hits])[order]
    return offsets, all_rows, all_distances
