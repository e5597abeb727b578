"""Hamming search of csrc/cuda on torch tensors: what is allocated, how work is cut up, which kernels run.

Codes are uint8 [rows, bytes]; answers are those of the definition, ties by the lowest index. Kernels go to
the tensors' device, on the stream that is current there. Peak memory beside the result: a copy of the codes,
and 1 GB of candidates, unless a single query needs more.

search:  1. a histogram of the first rows: their k-th distance bounds the k-th of all
         2. `collect`: each query's rows within that bound, by split and in index order. Rows come in stages,
            each a few times all those before it; what a stage finds lowers the bound for the next
         3. `nearest`: the first k of them by (distance, index), ranked by counting those before each,
            or, for k above RANKED_K and for many ties, `select`: any number of them, sorted by counting
   The host waits once, at the end, to learn whether all found room. Where not, `collect` again within the
   last bound, with segments as long as is needed, and `select`; so for k above LARGE_K, without stages.
range:   `collect` and `select` with the radius for a bound.

Segments of candidates are made for the number that is expected; counting goes on where one is full, so a
second `collect` knows all sizes. A query set whose candidates outgrow the memory is halved.
"""

from __future__ import annotations

import ctypes
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch

from minerlib.backends._cuda_codes import BLOCKS, Codes, as_words, chunks, launch
from minerlib.backends._cuda_ranking import Parts, count_distances, parts_for

SAMPLE = 2048  # one of so many rows is counted for the first bound of many queries,
SAMPLE_FEW = 128  # of few,
SAMPLE_LARGE = 16  # and for a large k
LEAST_SAMPLE = 4096
STAGE, STAGE_FEW = 3, 8  # how many times the rows before it a stage ends at,
STAGE_SMALL = 8  # and where there is so little to do that launches count:
SMALL, SMALL_FEW = 1 << 31, 1 << 25  # pairs, and rows for few queries (then there is one stage)
TIES = 3  # as many rows may lie within a bound as there are nearest ones, by ties
RANKED_K = 512  # above it candidates are sorted by `select`,
LARGE_K = 2048  # and above that there are so many that their number is asked for first
MOST_CANDIDATES = 1 << 27  # of 8 bytes, held at a time
ALL = 1 << 62

FEW, MANY, PRODUCTS = 0, 1, 2  # ways of `collect` to meet queries, see csrc/cuda/hamming_collect.h
BLOCKS_FEW = 2048  # where their segments are read by one block
BLOCKS_PRODUCTS = 2  # of a multiprocessor: what it holds, all of the same length
MANY_FROM = 8  # queries for which a block takes QUERIES of them
#: Queries: on an H200 and 10M codes of 64 bits, 64 were faster by counting bits, 128 by products.
PRODUCTS_FROM = 128
QUERIES = (4, 32)  # of a block of `collect`, FEW or MANY
PRODUCTS_WARPS = 8  # of a block; a warp takes 64 queries of up to 8 words, 32 of 16
PRODUCTS_WIDTH = 16  # words
PRODUCTS_ROWS = 32  # of a warp at a time


# ------------------------------------------------------------------ how work is cut up


def way_for(queries: int, width: int, device: torch.device, products: bool | None) -> int:
    """products: None: where they are faster and the device has them."""
    if products is None:
        able = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (8, 9)
        products = able and queries >= PRODUCTS_FROM
    if products and width <= PRODUCTS_WIDTH:
        return PRODUCTS
    return MANY if queries >= MANY_FROM else FEW


def tile_rows(width: int, way: int) -> int:
    """Rows that a block of `collect` takes at a time, see csrc/cuda/hamming_collect.h."""
    if way == PRODUCTS:
        return PRODUCTS_ROWS
    return 256 * (4 if width <= 8 else 2) * (8 if way == FEW else 1)


def splits_for(query_blocks: int, rows: int, step: int, blocks: int) -> tuple[int, int]:
    """Into how many parts of how many rows they are cut, so that few queries fill the device too."""
    splits = max(1, min(blocks // max(1, query_blocks), -(-rows // step)))
    split_rows = -(-max(1, -(-rows // splits)) // step) * step
    return max(1, -(-rows // split_rows)), split_rows


def collect_splits(queries: int, rows: int, width: int, way: int, device: torch.device) -> tuple[int, int]:
    """As `splits_for`, of a launch of `collect`."""
    if way == PRODUCTS:
        warps = -(-queries // (64 if width <= 8 else 32))
        processors = 132  # the tests' mirror has none
        if device.type == "cuda":
            processors = torch.cuda.get_device_properties(device).multi_processor_count
        # Fewer warps make smaller blocks, of which a multiprocessor holds more.
        blocks = BLOCKS_PRODUCTS * processors * max(1, PRODUCTS_WARPS // warps)
        return splits_for(-(-warps // PRODUCTS_WARPS), rows, 8 * PRODUCTS_ROWS, blocks)
    blocks = BLOCKS_FEW if way == FEW else BLOCKS
    return splits_for(-(-queries // QUERIES[way]), rows, tile_rows(width, way), blocks)


@dataclass(frozen=True)
class Stage:
    """Rows that are met by one launch of `collect`."""

    first: int
    last: int
    splits: int
    split_rows: int
    first_split: int


def stages_for(
    ends: list[int], queries: int, width: int, way: int, device: torch.device
) -> tuple[list[Stage], int]:  # and all splits
    stages, first, splits = [], 0, 0
    for last in ends:
        count, split_rows = collect_splits(queries, last - first, width, way, device)
        stages.append(Stage(first, last, count, split_rows, splits))
        first, splits = last, splits + count
    return stages, splits


def stage_ends(rows: int, sample: int, factor: int) -> list[int]:
    """Where stages end, each `factor` times as far as the one before; the first, at most twice as many times
    as the sample."""
    ends = [rows]
    while ends[0] > 2 * factor * sample:
        ends.insert(0, ends[0] // factor)
    return ends


def segment_rows(expected: float, splits: int, split_rows: int) -> int:
    """Room for what a split may find where so many hits are expected in all of them."""
    mean = expected / splits
    return min(split_rows, int(mean + 6 * math.sqrt(mean)) + 16)


@dataclass(frozen=True)
class Plan:
    """How a search goes about it where k is not large."""

    way: int
    sample: int  # rows that are counted for the first limit
    parts: Parts  # of them
    stages: Any  # int64 [stages, 5] of ctypes, of the host
    splits: int  # of all stages
    capacity: int  # of a segment
    threads: int  # of a block of `nearest`,
    lanes: int  # and those that read a segment side by side


@functools.lru_cache
def plan_for(
    queries: int, rows: int, width: int, values: int, k: int, products: bool | None, device: torch.device
) -> Plan:
    way = way_for(queries, width, device, products)
    sample = min(rows, max(rows // (SAMPLE_FEW if way == FEW else SAMPLE), LEAST_SAMPLE, 4 * k))
    if way == FEW:
        ends = stage_ends(rows, sample, STAGE_FEW) if rows >= SMALL_FEW else [rows]
    else:
        ends = stage_ends(rows, sample, STAGE if queries * rows >= SMALL else STAGE_SMALL)
    stages, splits = stages_for(ends, queries, width, way, device)
    # The k-th distance of the rows before a stage is that of one more or less by chance.
    bound = TIES * (k + 4 * math.sqrt(k) + 12)
    capacity = max(
        segment_rows(
            bound * (stage.last - stage.first) / max(stage.first, sample), stage.splits, stage.split_rows
        )
        for stage in stages
    )
    fields = [
        field
        for stage in stages
        for field in (stage.first, stage.last, stage.splits, stage.split_rows, stage.first_split)
    ]
    threads, lanes = (1024, 1) if splits >= 256 else (256, 8)
    return Plan(
        way, sample, parts_for(queries, sample, values, True), (ctypes.c_int64 * len(fields))(*fields),
        splits, capacity, threads if k <= RANKED_K else 0, lanes,
    )  # fmt: skip


# ------------------------------------------------------------------ distances


def distance(
    a: torch.Tensor,  # [N, bytes] uint8
    b: torch.Tensor,  # [M, bytes] uint8
) -> torch.Tensor:  # [N, M] int32
    out = torch.empty((len(a), len(b)), dtype=torch.int32, device=a.device)
    if out.numel():
        x, y = as_words(a, False), as_words(b, True)
        launch("hamming_distance", out, x.words, x.count, y.words, y.count, x.width, out)
    return out


# ------------------------------------------------------------------ search and ranges


@dataclass(frozen=True)
class Hits:
    """Candidates of each query in index order, segment by segment."""

    candidates: torch.Tensor  # int64
    starts: torch.Tensor | None  # [Q, splits] int64; None: each segment is `capacity` long
    capacity: int
    ends: torch.Tensor  # [Q, splits] int64: candidates of a query up to the end of each segment


def _collect_stage(
    queries: Codes,
    database: Codes,
    stage: Stage,
    way: int,
    limits: torch.Tensor,  # [Q] int32
    enough: int,
    hits: Hits,
    counts: torch.Tensor,  # [Q, splits] int32, written
    totals: torch.Tensor | None = None,  # [Q, values] int64, added to
) -> None:
    launch(
        "hamming_collect", counts, queries.words, queries.count, database.words, database.count, stage.first,
        stage.last, queries.width, limits, enough, stage.splits, stage.split_rows, stage.first_split,
        counts.shape[1], hits.candidates, hits.starts, hits.capacity, counts, totals, queries.values, way,
    )  # fmt: skip


def _collect(
    queries: Codes,
    database: Codes,
    limits: torch.Tensor,  # [Q] int32
    enough: int,  # rows by (distance, index) that are wanted of each query
    expected: int,  # candidates of a query
    products: bool | None = None,
) -> Hits | None:
    """The rows within each query's limit; None where they need too much memory at once."""
    device = queries.words.device
    way = way_for(queries.count, queries.width, device, products)
    stages, splits = stages_for([database.count], queries.count, queries.width, way, device)
    capacity = segment_rows(expected, splits, stages[0].split_rows)
    if queries.count > 1 and queries.count * splits * capacity > MOST_CANDIDATES:
        return None
    found = torch.empty((queries.count, splits), dtype=torch.int32, device=device)

    def run(size: int, starts: torch.Tensor | None) -> torch.Tensor:
        candidates = torch.empty(size, dtype=torch.int64, device=device)
        hits = Hits(candidates, starts, capacity, found)
        _collect_stage(queries, database, stages[0], way, limits, enough, hits, found, None)
        return candidates

    candidates = run(queries.count * splits * capacity, None)
    ends = found.cumsum(1, dtype=torch.int64)
    if int(found.max()) <= capacity:
        return Hits(candidates, None, capacity, ends)
    del candidates
    flat = found.view(-1).cumsum(0, dtype=torch.int64)
    total = int(flat[-1])
    if total > MOST_CANDIDATES and queries.count > 1:
        return None
    starts = flat.view(found.shape) - found
    return Hits(run(total, starts), starts, 0, ends)


def _select(
    hits: Hits,
    offsets: torch.Tensor,  # [Q + 1] int64
    values: int,
    indices: torch.Tensor,  # int64, written
    distances: torch.Tensor,  # int32, written
) -> None:
    launch(
        "hamming_select", offsets, hits.candidates, hits.starts, hits.capacity, hits.ends.shape[1], hits.ends,
        offsets, len(hits.ends), values, indices, distances,
    )  # fmt: skip


def search(
    queries: torch.Tensor,  # [Q, bytes] uint8
    database: torch.Tensor,  # [M, bytes] uint8
    k: int,
    products: bool | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # int32 [Q, k] distances, int64 [Q, k] indices
    """The k nearest rows of each query by (distance, index); the host waits once for each set of queries.

    products: compare by 1-bit matrix products; None: where there are, from PRODUCTS_FROM queries on.
    """
    distances = torch.empty((len(queries), k), dtype=torch.int32, device=queries.device)
    indices = torch.empty((len(queries), k), dtype=torch.int64, device=queries.device)
    x, y = as_words(queries, False), as_words(database, True)
    for first, last in chunks(x.count, max(2 * k * SAMPLE_LARGE if k > LARGE_K else 1, x.values)):
        _search(x.rows(first, last), y, k, products, distances[first:last], indices[first:last])
    return distances, indices


def _search(
    queries: Codes,
    database: Codes,
    k: int,
    products: bool | None,
    distances: torch.Tensor,  # [Q, k] int32, written
    indices: torch.Tensor,  # [Q, k] int64, written
) -> None:
    limits = torch.empty(queries.count, dtype=torch.int32, device=queries.words.device)
    if k <= LARGE_K:
        within = _search_small(queries, database, k, limits, products, distances, indices)
        if within is None:
            return
        expected = _most(within, limits)
    else:
        sample = max(database.count // SAMPLE_LARGE, min(database.count, LEAST_SAMPLE))
        if k > sample // 2:
            sample = database.count
        within = torch.zeros((queries.count, queries.values), dtype=torch.int64, device=limits.device)
        count_distances(queries, database, sample, within)
        _limit(within, k, limits, True)
        most = _most(within, limits)
        expected = (most + 4 * math.isqrt(most) + 4) * database.count // sample
    _search_large(queries, database, k, limits, expected, products, distances, indices)


def _limit(
    totals: torch.Tensor,  # [Q, values] int64
    k: int,
    limits: torch.Tensor,  # [Q] int32, lowered to the least distance up to which k rows lie
    first: bool = False,  # there is no limit yet
) -> None:
    launch("hamming_limits", totals, totals, *totals.shape, k, int(first), limits)


def _most(
    totals: torch.Tensor,  # [Q, values] int64
    limits: torch.Tensor,  # [Q] int32
) -> int:
    """The most rows that any query has within its limit."""
    return int(totals.cumsum(1).gather(1, limits[:, None].long()).max())


def _search_small(
    queries: Codes,
    database: Codes,
    k: int,
    limits: torch.Tensor,  # [Q] int32, written: what k rows lie within
    products: bool | None,
    distances: torch.Tensor,  # [Q, k] int32, written
    indices: torch.Tensor,  # [Q, k] int64, written
) -> torch.Tensor | None:  # [Q, values] int64
    """Writes the answer; or tells how many rows lie at each distance, within the limits at least, where
    candidates did not fit in where they were expected."""
    device = queries.words.device
    plan = plan_for(queries.count, database.count, queries.width, queries.values, k, products, device)
    splits, capacity, parts = plan.splits, plan.capacity, plan.parts
    if queries.count > 1 and queries.count * splits * capacity > MOST_CANDIDATES:
        half = queries.count // 2
        for part in (slice(0, half), slice(half, queries.count)):
            some = queries.rows(part.start, part.stop)
            _search(some, database, k, products, distances[part], indices[part])
        return None

    size = queries.count * queries.values
    zeros = torch.zeros(2 * size + 1, dtype=torch.int64, device=device)
    counts = torch.empty((queries.count, splits), dtype=torch.int32, device=device)
    candidates = torch.empty(queries.count * splits * capacity, dtype=torch.int64, device=device)
    launch(
        "hamming_search", limits, queries.words, queries.count, database.words, database.count, queries.width,
        queries.values, k, plan.way, plan.sample, parts.splits, parts.block, parts.thread_rows, parts.threads,
        parts.window, ctypes.addressof(plan.stages), len(plan.stages) // 5, splits, capacity, zeros, limits,
        counts, candidates, plan.threads, plan.lanes, indices, distances,
    )  # fmt: skip
    if plan.threads and not int(zeros[-1]):
        return None
    if int(counts.max()) > capacity:
        return zeros[size:-1].view(queries.count, queries.values)
    found = Hits(candidates, None, capacity, counts.cumsum(1, dtype=torch.int64))
    _select_all(found, k, queries.values, indices, distances)
    return None


def _search_large(
    queries: Codes,
    database: Codes,
    k: int,
    limits: torch.Tensor,  # [Q] int32: up to it each query has k rows
    expected: int,  # rows up to it, of a query
    products: bool | None,
    distances: torch.Tensor,  # [Q, k] int32, written
    indices: torch.Tensor,  # [Q, k] int64, written
) -> None:
    hits = _collect(queries, database, limits, k, expected, products)
    if hits is None:
        half = queries.count // 2
        for part in (slice(0, half), slice(half, queries.count)):
            some = queries.rows(part.start, part.stop)
            _search_large(some, database, k, limits[part], expected, products, distances[part], indices[part])
        return
    _select_all(hits, k, queries.values, indices, distances)


def _select_all(
    hits: Hits,
    k: int,
    values: int,
    indices: torch.Tensor,  # [Q, k] int64, written
    distances: torch.Tensor,  # [Q, k] int32, written
) -> None:
    offsets = torch.arange(len(hits.ends) + 1, device=indices.device) * k
    _select(hits, offsets, values, indices, distances)


def range_search(
    queries: torch.Tensor,  # [Q, bytes] uint8
    database: torch.Tensor,  # [M, bytes] uint8
    radius: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # int64 [Q + 1], int64 [T], int32 [T]
    """Offsets, indices and distances of the rows within the radius."""
    x, y = as_words(queries, False), as_words(database, True)
    device = queries.device
    found = []
    if y.count:
        for first, last in chunks(x.count, 1):
            found += _ranges(x.rows(first, last), y, radius)
    each, indices, distances = (
        torch.cat([torch.empty(0, dtype=kind, device=device), *(part[place] for part in found)])
        for place, kind in enumerate((torch.int64, torch.int64, torch.int32))
    )
    offsets = torch.zeros(len(queries) + 1, dtype=torch.int64, device=device)
    offsets[1 : len(each) + 1] = each.cumsum(0)
    return offsets, indices, distances


def _ranges(
    queries: Codes, database: Codes, radius: int
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """How many hits each query has [Q], their indices and distances; in the order of the queries."""
    limits = torch.full((queries.count,), radius, dtype=torch.int32, device=queries.words.device)
    hits = _collect(queries, database, limits, ALL, 0)
    if hits is None:
        half = queries.count // 2
        parts = queries.rows(0, half), queries.rows(half, queries.count)
        return [found for part in parts for found in _ranges(part, database, radius)]
    each = hits.ends[:, -1]
    offsets = torch.zeros(queries.count + 1, dtype=torch.int64, device=each.device)
    torch.cumsum(each, 0, out=offsets[1:])
    total = int(offsets[-1])
    indices = torch.empty(total, dtype=torch.int64, device=each.device)
    distances = torch.empty(total, dtype=torch.int32, device=each.device)
    _select(hits, offsets, queries.values, indices, distances)
    return [(each, indices, distances)]
