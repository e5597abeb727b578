"""Exact Hamming search for any k, and range search: a counting select, then the hits in index order.

    search(q):  the first k rows by (distance, index)
    range(q):   all rows with d(q, m) <= radius, by (distance, index)

Codes are uint8 [rows, bytes] (see hamming.py). Three sweeps over the codes:

1. `hamming.histograms` over the first rows of the database: the k-th distance among some of the rows is no
   less than the k-th among all, so it bounds which hits matter. A large k takes the histogram of all rows
   at once.
2. `count_hits_kernel`: how many rows of each split lie at each distance up to the bound; now the k-th
   distance t is exact. Programs own their counters: no two programs meet in an atomic.
3. `emit_kernel`: every split writes its hits to places known beforehand, in index order: rows nearer than
   t, and the first of those at t, which is the tie rule (the lowest index wins).

What was written lies in index order, so one stable sort by distance finishes. Nothing is read back by the
host but the number of hits of a range, which sizes its result. Limits: MOST_BITS for `search`; int64
addresses and places; a split holds less than 2^31 rows. Peak memory: the result, twice that while it is
sorted, and a copy of the codes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tritonkernels import hamming
from tritonkernels.hamming import FEW, MANY, Codes, as_words, splits_for, tile_distances
from tritonkernels.launching import Kernel, blocks, on_device

SAMPLE = 16  # one of so many rows is counted for the first bound

# ------------------------------------------------------------------ kernels


@triton.jit
def count_hits_kernel(
    q_ptr,
    q_row: tl.int64,
    q_word: tl.int64,
    d_ptr,
    d_row: tl.int64,
    d_word: tl.int64,
    limit_ptr,  # [Q] int32
    counts_ptr,  # [Q, splits, values] int32, zeros
    q_count: tl.int64,
    d_count: tl.int64,
    split_rows: tl.int64,
    words,
    values,  # 8 * bytes + 1
    BQ: tl.constexpr,
    BM: tl.constexpr,
    UNROLL: tl.constexpr,
):
    queries = tl.program_id(0).to(tl.int64) * BQ + tl.arange(0, BQ)
    query_live = queries < q_count
    split = tl.program_id(1).to(tl.int64)
    stop = tl.minimum((split + 1) * split_rows, d_count)
    limit = tl.load(limit_ptr + queries, mask=query_live, other=-1)
    counters = counts_ptr + (queries * tl.num_programs(1) + split) * values
    for first in range(split * split_rows, stop, BM):
        rows = first + tl.arange(0, BM).to(tl.int64)
        live = rows < stop
        d = tile_distances(
            q_ptr, queries, query_live, q_row, q_word, d_ptr, rows, live, d_row, d_word, words, BQ, BM, UNROLL
        )  # fmt: skip
        hit = (d <= limit[:, None]) & live[None, :]
        if tl.max(tl.max(hit.to(tl.int32), 1), 0) > 0:  # rare: most tiles hold nothing near
            tl.atomic_add(counters[:, None] + d, 1, mask=hit, sem="relaxed")


@triton.jit
def emit_kernel(
    q_ptr,
    q_row: tl.int64,
    q_word: tl.int64,
    d_ptr,
    d_row: tl.int64,
    d_word: tl.int64,
    near_ptr,  # [Q] int32: rows nearer than this are hits
    near_place_ptr,  # [Q, splits] int64: where each split's near hits go
    tie_place_ptr,  # [Q, splits] int64: where its rows at exactly this distance go
    tie_stop_ptr,  # [Q] int64: places from here on are not written
    indices_ptr,  # int64
    distances_ptr,  # int32
    q_count: tl.int64,
    d_count: tl.int64,
    split_rows: tl.int64,
    words,
    BQ: tl.constexpr,
    BM: tl.constexpr,
    UNROLL: tl.constexpr,
):
    queries = tl.program_id(0).to(tl.int64) * BQ + tl.arange(0, BQ)
    query_live = queries < q_count
    split = tl.program_id(1).to(tl.int64)
    stop = tl.minimum((split + 1) * split_rows, d_count)
    near = tl.load(near_ptr + queries, mask=query_live, other=-1)
    at = queries * tl.num_programs(1) + split
    near_place = tl.load(near_place_ptr + at, mask=query_live, other=0)
    tie_place = tl.load(tie_place_ptr + at, mask=query_live, other=0)
    tie_stop = tl.load(tie_stop_ptr + queries, mask=query_live, other=0)
    for first in range(split * split_rows, stop, BM):
        rows = first + tl.arange(0, BM).to(tl.int64)
        live = rows < stop
        d = tile_distances(
            q_ptr, queries, query_live, q_row, q_word, d_ptr, rows, live, d_row, d_word, words, BQ, BM, UNROLL
        )  # fmt: skip
        nearer = (d < near[:, None]) & live[None, :]
        tied = (d == near[:, None]) & live[None, :] & (tie_place < tie_stop)[:, None]
        both = nearer.to(tl.int32) + (tied.to(tl.int32) << 16)  # two counts of at most BM in one sum
        found = tl.sum(both, 1)
        if tl.max(found, 0) > 0:
            before = tl.cumsum(both, 1) - both
            place = tl.where(
                nearer, near_place[:, None] + (before & 0xFFFF), tie_place[:, None] + (before >> 16)
            )
            write = nearer | (tied & (place < tie_stop[:, None]))
            tl.store(indices_ptr + place, tl.broadcast_to(rows[None, :], (BQ, BM)), mask=write)
            tl.store(distances_ptr + place, d, mask=write)
            near_place += found & 0xFFFF
            tie_place += found >> 16


# ------------------------------------------------------------------ launchers

_TYPES = {**hamming.CODE_TYPES, "split_rows": "i64"}
COUNT_HITS = Kernel(
    count_hits_kernel, {**_TYPES, "limit_ptr": "*i32", "counts_ptr": "*i32"}, hamming.TILES,
    hamming.tile_options, hamming.tile_constants,
)  # fmt: skip
EMIT = Kernel(
    emit_kernel,
    {**_TYPES, "near_ptr": "*i32", "distances_ptr": "*i32",
     **dict.fromkeys(("near_place_ptr", "tie_place_ptr", "tie_stop_ptr", "indices_ptr"), "*i64")},
    hamming.TILES, hamming.tile_options, hamming.tile_constants,
)  # fmt: skip


def search(
    queries: torch.Tensor,  # [Q, bytes] uint8
    database: torch.Tensor,  # [M, bytes] uint8
    k: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # int32 [Q, k] distances, int64 [Q, k] indices
    """The k nearest rows of each query by (distance, index); no host synchronisation."""
    hamming.check_bits(queries)
    device = queries.device
    distances = torch.empty((len(queries), k), dtype=torch.int32, device=device)
    indices = torch.empty((len(queries), k), dtype=torch.int64, device=device)
    with on_device(queries):
        x, rows = as_words(queries, False), as_words(database, False)
        y = as_words(database, True) if len(queries) >= MANY.queries else rows
        for first, last in hamming.query_chunks(x.count):
            _search(x.rows(first, last), rows, y, k, distances[first:last], indices[first:last])
    return distances, indices


def _search(
    queries: Codes,
    rows: Codes,  # the database
    database: Codes,  # the same, as tiles want it
    k: int,
    distances: torch.Tensor,  # [Q, k] int32, written
    indices: torch.Tensor,  # [Q, k] int64, written
) -> None:
    tile, parts = _tiles(queries, database)
    sample = max(database.count // SAMPLE, min(database.count, hamming.COUNT.rows))
    if k > sample // 2:
        counts, _ = hamming.histograms(queries, rows, parts=parts)
    else:
        sampled, _ = hamming.histograms(queries, rows.rows(0, sample))
        limit = _kth_distance(sampled.sum(1, dtype=torch.int64), k)
        counts = count_hits(queries, database, limit, tile, parts)
    totals = counts.sum(1, dtype=torch.int64)  # [Q, values]
    kth = _kth_distance(totals, k)  # [Q]
    at_kth = kth[:, None].long()
    values = torch.arange(totals.shape[1], device=kth.device)
    nearer = (counts * (values < at_kth)[:, None, :]).sum(2, dtype=torch.int64)  # [Q, splits]
    tied = counts.gather(2, at_kth[:, None, :].expand(-1, parts[0], 1)).squeeze(2).long()
    starts = torch.arange(queries.count, device=kth.device) * k
    near_place = starts[:, None] + nearer.cumsum(1) - nearer
    tie_place = (starts + nearer.sum(1))[:, None] + tied.cumsum(1) - tied
    found = torch.empty_like(indices), torch.empty_like(distances)
    emit(queries, database, (kth, near_place, tie_place, starts + k), found, tile, parts)
    order = _by_distance(found[1], distances)
    torch.gather(found[0], 1, order, out=indices)


def _by_distance(
    found: torch.Tensor,  # [Q, k] int32
    ordered: torch.Tensor,  # [Q, k] int32, written
) -> torch.Tensor:  # [Q, k] int64
    order = torch.empty(found.shape, dtype=torch.int64, device=found.device)
    torch.sort(found, dim=1, stable=True, out=(ordered, order))
    return order


def range_search(
    queries: torch.Tensor,  # [Q, bytes] uint8
    database: torch.Tensor,  # [M, bytes] uint8
    radius: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # int64 [Q + 1], int64 [T], int32 [T]
    """Offsets, indices and distances of the rows within the radius; the host waits once, for the number T."""
    with on_device(queries):
        return _range_search(queries, database, radius)


def _range_search(
    queries: torch.Tensor, database: torch.Tensor, radius: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    device = queries.device
    x = as_words(queries, False)
    y = as_words(database, len(queries) >= MANY.queries)
    per_query = torch.zeros(len(queries), dtype=torch.int64, device=device)
    chunks = []
    for first, last in hamming.query_chunks(x.count if y.count else 0):
        part = x.rows(first, last)
        tile, parts = _tiles(part, y)
        limit = torch.full((part.count,), radius, dtype=torch.int32, device=device)
        hits = count_hits(part, y, limit, tile, parts).sum(2, dtype=torch.int64)  # [Q, splits]
        torch.sum(hits, 1, out=per_query[first:last])
        chunks.append((part, first, hits, limit, tile, parts))
    offsets = torch.zeros(len(queries) + 1, dtype=torch.int64, device=device)
    torch.cumsum(per_query, 0, out=offsets[1:])
    total = int(offsets[-1])  # the one synchronisation: the result's size
    indices = torch.empty(total, dtype=torch.int64, device=device)
    distances = torch.empty(total, dtype=torch.int32, device=device)
    for part, first, hits, limit, tile, parts in chunks:
        places = offsets[first : first + part.count, None] + hits.cumsum(1) - hits
        never = torch.zeros_like(offsets[: part.count])  # everything is nearer than radius + 1
        emit(part, y, (limit + 1, places, places, never), (indices, distances), tile, parts)
    owner = torch.repeat_interleave(per_query, output_size=total)  # the query of each hit
    order = torch.argsort(owner * (x.bits + 1) + distances, stable=True)
    return offsets, indices[order], distances[order]


def _tiles(queries: Codes, database: Codes) -> tuple[hamming.Tile, tuple[int, int]]:
    tile = MANY if database.row == 1 else FEW
    return tile, splits_for(blocks(queries.count, tile.queries), database.count, tile.rows)


def count_hits(
    queries: Codes,
    database: Codes,
    limit: torch.Tensor,  # [Q] int32
    tile: hamming.Tile,
    parts: tuple[int, int],  # (splits, rows of a split)
) -> torch.Tensor:  # [Q, splits, bits + 1] int32
    """How many rows of each split lie at each distance up to each query's limit; zeros beyond it."""
    shape = (queries.count, parts[0], queries.bits + 1)
    counts = torch.zeros(shape, dtype=torch.int32, device=limit.device)
    COUNT_HITS(
        (blocks(queries.count, tile.queries), parts[0]), queries.words, queries.row, queries.word,
        database.words, database.row, database.word, limit, counts, queries.count, database.count, parts[1],
        queries.width, queries.bits + 1, BQ=tile.queries, UNROLL=queries.unroll,
    )  # fmt: skip
    return counts


def emit(
    queries: Codes,
    database: Codes,
    places: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],  # near, near's, ties', their end
    found: tuple[torch.Tensor, torch.Tensor],  # int64 indices and int32 distances, written
    tile: hamming.Tile,
    parts: tuple[int, int],
) -> None:
    """Write hits to their places, those of a query and split in index order."""
    EMIT(
        (blocks(queries.count, tile.queries), parts[0]), queries.words, queries.row, queries.word,
        database.words, database.row, database.word, *places, *found, queries.count, database.count, parts[1],
        queries.width, BQ=tile.queries, UNROLL=queries.unroll,
    )  # fmt: skip


def _kth_distance(
    totals: torch.Tensor,  # [Q, values] int64
    k: int,
) -> torch.Tensor:  # [Q] int32
    """The least distance up to which at least k rows lie."""
    reached = totals.cumsum(1) < k
    return reached.sum(1, dtype=torch.int32)
