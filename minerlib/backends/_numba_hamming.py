"""Hamming distances between codes of 64-bit words and what is made of them, compiled by numba.

    d(q, y) = sum over w of popcount(q[w] ^ y[w])

queries [B, W] and rows [R, W] uint64; padding bits are equal on both sides. Distances are counted a tile of
rows at a time, for all queries of the batch; the words of a tile are laid side by side, so that a vector
register holds one word of several rows. Rows come in ascending index order, so ties go to the lowest index;
bits = 64 W bounds the distances.

Source: counting selection, SPEC section 5. Distances are small integers, so a histogram of what is kept gives
the exact k-th distance for any k.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from minerlib.backends._numba_jit import kernel

TILE_WORDS = 2048  # 16 KB: half of a first-level cache
LEAST_TILE = 128  # rows, however long
STRIDE = 64  # rows whose smallest distance is asked for before each of them is looked at


def _count_ones(typing_context: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(word), generate


#: How many bits of a word are set: one instruction, or what the processor has in its place.
_ones: Any = intrinsic(_count_ones)


@kernel
def _fill(
    query: np.ndarray,  # [W] uint64
    tile: np.ndarray,  # [W, T] uint64
    out: np.ndarray,  # [T] int32, written
) -> None:
    words = query.size
    if words % 2 == 1:
        q0, y0 = query[0], tile[0]
        for j in range(out.size):
            out[j] = _ones(q0 ^ y0[j])
    else:
        out[:] = 0
    for w in range(words % 2, words, 2):
        q0, q1, y0, y1 = query[w], query[w + 1], tile[w], tile[w + 1]
        for j in range(out.size):
            out[j] += _ones(q0 ^ y0[j]) + _ones(q1 ^ y1[j])


@kernel
def _distances(
    queries: np.ndarray,  # [B, W] uint64
    tile: np.ndarray,  # [T, W] uint64
) -> np.ndarray:  # [B, T] int32
    out = np.empty((queries.shape[0], tile.shape[0]), np.int32)
    turned = np.empty((tile.shape[1], tile.shape[0]), np.uint64)
    for w in range(tile.shape[1]):
        for j in range(tile.shape[0]):
            turned[w, j] = tile[j, w]
    for i in range(queries.shape[0]):
        _fill(queries[i], turned, out[i])
    return out


@kernel
def _tile_size(words: int) -> int:
    return max(LEAST_TILE, TILE_WORDS // words)


@kernel
def _smallest(distances: np.ndarray) -> int:
    smallest = distances[0]
    for j in range(distances.size):
        smallest = min(smallest, distances[j])
    return smallest


@kernel
def list_distances(
    queries: np.ndarray,  # [B, W] uint64
    rows: np.ndarray,  # [R, W] uint64
    first: int,
    out: np.ndarray,  # [B, M] int32, written from column `first` on
) -> None:
    size = _tile_size(queries.shape[1])
    for start in range(0, rows.shape[0], size):
        found = _distances(queries, rows[start : start + size])
        out[:, first + start : first + start + found.shape[1]] = found


# ------------------------------------------------------------------ search


@kernel
def _drop_losers(
    k: int,
    bound: int,
    within: int,
    histogram: np.ndarray,  # [bits + 2] int64 of the distances kept
    distances: np.ndarray,  # [capacity] int32
    indices: np.ndarray,  # [capacity] int64
    size: int,
) -> int:
    """Keep the k rows that come first by (distance, index), in index order; how many there are."""
    left = k - (within - histogram[bound])  # places for rows at the bound itself
    kept = 0
    for c in range(size):
        distance = distances[c]
        if distance < bound or (distance == bound and left > 0):
            left -= distance == bound
            distances[kept] = distance
            indices[kept] = indices[c]
            kept += 1
    histogram[bound] = min(histogram[bound], k - (within - histogram[bound]))
    return kept


@kernel
def keep_nearest(
    queries: np.ndarray,  # [B, W] uint64
    rows: np.ndarray,  # [R, W] uint64
    first: int,
    k: int,
    state: np.ndarray,  # [B, 3] int64: kept, bound, how many kept are at distances up to the bound
    histogram: np.ndarray,  # [B, bits + 2] int64
    distances: np.ndarray,  # [B, capacity] int32
    indices: np.ndarray,  # [B, capacity] int64
) -> None:
    """Add rows `first`, `first` + 1, ... to the candidates for the k nearest of each query.

    Once k rows are kept, the bound is the k-th distance: a later row has to be nearer than that. Losers stay
    until the buffer is full.
    """
    size = _tile_size(queries.shape[1])
    for start in range(0, rows.shape[0], size):
        found = _distances(queries, rows[start : start + size])
        for i in range(queries.shape[0]):
            row = found[i]
            kept, bound, within = state[i]
            for block in range(0, row.size, STRIDE):
                block_stop = min(block + STRIDE, row.size)
                if _smallest(row[block:block_stop]) >= bound:
                    continue
                for j in range(block, block_stop):
                    distance = row[j]
                    if distance >= bound:
                        continue
                    if kept == distances.shape[1]:
                        kept = _drop_losers(k, bound, within, histogram[i], distances[i], indices[i], kept)
                        within = kept
                    distances[i, kept] = distance
                    indices[i, kept] = first + start + j
                    kept += 1
                    histogram[i, distance] += 1
                    within += 1
                    while within - histogram[i, bound] >= k:
                        within -= histogram[i, bound]
                        bound -= 1
            state[i, 0], state[i, 1], state[i, 2] = kept, bound, within


@kernel
def sort_kept(
    k: int,
    state: np.ndarray,  # [B, 3] int64
    histogram: np.ndarray,  # [B, bits + 2] int64
    distances: np.ndarray,  # [B, capacity] int32
    indices: np.ndarray,  # [B, capacity] int64
    out_distances: np.ndarray,  # [B, k] int32, written
    out_indices: np.ndarray,  # [B, k] int64, written
) -> None:
    """What `keep_nearest` kept of at least k rows, by (distance, index)."""
    for i in range(state.shape[0]):
        kept, bound, within = state[i]
        kept = _drop_losers(k, bound, within, histogram[i], distances[i], indices[i], kept)
        _sort_hits(distances[i, :kept], indices[i, :kept], bound + 1, out_distances[i], out_indices[i])


@kernel
def _sort_hits(
    distances: np.ndarray,  # [T] int32, in index order
    indices: np.ndarray,  # [T] int64
    values: int,  # all distances are below this
    out_distances: np.ndarray,  # [T] int32, written
    out_indices: np.ndarray,  # [T] int64, written
) -> None:
    """Counting sort; stable, so rows at one distance stay in index order."""
    places = np.zeros(values + 1, np.int64)
    for c in range(distances.size):
        places[distances[c] + 1] += 1
    for value in range(values):
        places[value + 1] += places[value]
    for c in range(distances.size):
        place = places[distances[c]]
        places[distances[c]] = place + 1
        out_distances[place] = distances[c]
        out_indices[place] = indices[c]


# ------------------------------------------------------------------ range search


@kernel
def count_within(
    queries: np.ndarray,  # [B, W] uint64
    rows: np.ndarray,  # [R, W] uint64
    radius: int,
    counts: np.ndarray,  # [B] int64, added to
) -> None:
    size = _tile_size(queries.shape[1])
    for start in range(0, rows.shape[0], size):
        found = _distances(queries, rows[start : start + size])
        for i in range(queries.shape[0]):
            row = found[i]
            inside = 0
            for j in range(row.size):
                inside += row[j] <= radius
            counts[i] += inside


@kernel
def list_within(
    queries: np.ndarray,  # [B, W] uint64
    rows: np.ndarray,  # [R, W] uint64
    first: int,
    radius: int,
    places: np.ndarray,  # [B] int64: where each query's next hit goes; moved on
    distances: np.ndarray,  # [T] int32, written
    indices: np.ndarray,  # [T] int64, written
) -> None:
    """The hits of each query in index order."""
    size = _tile_size(queries.shape[1])
    for start in range(0, rows.shape[0], size):
        found = _distances(queries, rows[start : start + size])
        for i in range(queries.shape[0]):
            row = found[i]
            place = places[i]
            for block in range(0, row.size, STRIDE):
                block_stop = min(block + STRIDE, row.size)
                if _smallest(row[block:block_stop]) > radius:
                    continue
                for j in range(block, block_stop):
                    if row[j] <= radius:
                        distances[place] = row[j]
                        indices[place] = first + start + j
                        place += 1
            places[i] = place


@kernel
def sort_within(
    offsets: np.ndarray,  # [B + 1] int64
    radius: int,
    distances: np.ndarray,  # [T] int32, from index order to (distance, index) order within each query
    indices: np.ndarray,  # [T] int64
) -> None:
    for i in range(offsets.size - 1):
        hits = slice(offsets[i], offsets[i + 1])
        _sort_hits(distances[hits].copy(), indices[hits].copy(), radius + 1, distances[hits], indices[hits])


# ------------------------------------------------------------------ counts and average precision


@kernel
def count_distances(
    queries: np.ndarray,  # [B, W] uint64
    rows: np.ndarray,  # [R, W] uint64
    relevant: np.ndarray,  # [B, R] uint8
    skipped: np.ndarray,  # [B] int64: the row left out for each query, as a place among these rows
    counts: np.ndarray,  # [B, values, 2] int64, added to: rows at each distance, irrelevant and relevant
) -> None:
    size = _tile_size(queries.shape[1])
    for start in range(0, rows.shape[0], size):
        found = _distances(queries, rows[start : start + size])
        for i in range(queries.shape[0]):
            row = found[i]
            for j in range(row.size):
                counts[i, row[j], relevant[i, start + j]] += 1
            own = skipped[i] - start
            if 0 <= own < row.size:
                counts[i, row[own], relevant[i, skipped[i]]] -= 1


@kernel
def rank_relevant(
    queries: np.ndarray,  # [B, W] uint64
    rows: np.ndarray,  # [R, W] uint64
    relevant: np.ndarray,  # [B, R] uint8
    skipped: np.ndarray,  # [B] int64
    k: int,
    places: np.ndarray,  # [B, values, 2] int64: rank, and place in `ranks`, of the next row; moved on
    hits: np.ndarray,  # [B] int64, added to: relevant rows among the first k
    ranks: np.ndarray,  # [B, H] int64, written: ascending ranks from 0 of those hits
) -> None:
    """`places` starts as the running sums of all and of relevant rows over the distances."""
    size = _tile_size(queries.shape[1])
    for start in range(0, rows.shape[0], size):
        found = _distances(queries, rows[start : start + size])
        for i in range(queries.shape[0]):
            row = found[i]
            for j in range(row.size):
                if start + j == skipped[i]:
                    continue
                rank = places[i, row[j], 0]
                places[i, row[j], 0] = rank + 1
                if relevant[i, start + j]:
                    hit = places[i, row[j], 1]
                    places[i, row[j], 1] = hit + 1
                    if rank < k:
                        ranks[i, hit] = rank
                        hits[i] += 1


@kernel
def average_precisions(
    hits: np.ndarray,  # [B] int64: relevant rows among the first k
    ranks: np.ndarray,  # [B, H] int64 from 0, ascending
    out: np.ndarray,  # [B] written
) -> None:
    """Summed in rank order; 0 without a hit."""
    for i in range(hits.size):
        total = 0.0
        for hit in range(hits[i]):
            total += (hit + 1) / (ranks[i, hit] + 1)
        out[i] = total / hits[i] if hits[i] > 0 else 0.0
