"""Hamming kernels of csrc/cuda on torch tensors: what is allocated, how work is cut up, which kernels run.

Codes are uint8 [rows, bytes]; answers are those of the definition, ties by the lowest index. Kernels go to
the tensors' device, on the stream that is current there. Peak memory beside the result: a copy of the codes,
and 1 GB of candidates, counts or ranks, unless a single query needs more.

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

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from minerlib import _cuda_library

SAMPLE = 1024  # one of so many rows is counted for the first bound of many queries,
SAMPLE_FEW = 64  # of few, whose rows are not met in stages,
SAMPLE_LARGE = 16  # and for a large k
LEAST_SAMPLE = 4096
STAGE = 4  # how many times the rows before it a stage ends at,
STAGE_SMALL = 32  # and where there is so little to do that launches count
SMALL = 1 << 34  # pairs
TIES = 3  # as many rows may lie within a bound as there are nearest ones, by ties
RANKED_K = 512  # above it candidates are sorted by `select`,
LARGE_K = 2048  # and above that there are so many that their number is asked for first
MOST = 1 << 25  # candidates, counts or ranks of 8 bytes that are held at a time
MOST_QUERIES = 8192
MOST_ROWS = (1 << 31) - 1
MOST_BITS = (1 << 23) - 8  # of a code
ALL = 1 << 62

FEW, MANY, PRODUCTS = 0, 1, 2  # ways of `collect` to meet queries, see csrc/cuda/hamming_collect.h
BLOCKS = 4096  # wanted on the device: several rounds even of the largest, so that the last one is short
BLOCKS_FEW = 1024  # where their segments are read by one block
BLOCKS_PRODUCTS = 2  # of a multiprocessor: what it holds, all of the same length
MANY_FROM = 8  # queries for which a block takes QUERIES of them
QUERIES = (4, 32)  # of a block of `collect`, FEW or MANY
PRODUCTS_WARPS = 8  # of a block; a warp takes 64 queries of up to 8 words, 32 of 16
PRODUCTS_WIDTH = 16  # words
PRODUCTS_ROWS = 32  # of a warp at a time
SHARED = 48 << 10  # bytes of shared memory that every architecture gives a block
COUNT_THREADS = 64
MOST_THREAD_ROWS = 0xFFFF


# ------------------------------------------------------------------ codes as the kernels take them


@dataclass(frozen=True, eq=False)
class Codes:
    """Codes as words, row by row, or in planes of up to four words (csrc/cuda/codes.h)."""

    words: torch.Tensor  # int32
    count: int
    width: int  # words of a row
    bits: int  # 8 * bytes

    @property
    def values(self) -> int:
        """How many distances there can be."""
        return self.bits + 1

    def rows(self, first: int, last: int) -> Codes:
        """Some of the rows, as a view; not of planes."""
        return Codes(self.words[first:last], last - first, self.width, self.bits)


def width_for(length: int) -> int:
    """Words that the kernels take for codes of so many bytes."""
    words = -(-length // 4)
    return next((width for width in (1, 2, 4, 8) if words <= width), -(-words // 8) * 8)


def as_words(
    codes: torch.Tensor,  # [rows, bytes] uint8
    planes: bool,
) -> Codes:
    """Codes as words: the tensor itself where it can be read so, else a copy."""
    count, length = codes.shape
    if count > MOST_ROWS or 8 * length > MOST_BITS:
        raise ValueError(
            f"codes: expected at most {MOST_ROWS} rows of {MOST_BITS} bits, got {count} of {8 * length}"
        )
    width = width_for(length)
    if length != 4 * width or count == 0:  # NumPy's empty arrays may come without strides
        padded = codes.new_zeros((count, 4 * width))
        padded[:, :length] = codes
        codes = padded
    elif not codes.is_contiguous() or codes.data_ptr() % 16:
        codes = codes.clone(memory_format=torch.contiguous_format)
    words = codes.view(torch.int32)
    if planes and width > 4:
        words = words.view(count, width // 4, 4).transpose(0, 1).contiguous()
    return Codes(words, count, width, 8 * length)


@dataclass(frozen=True)
class Labels:
    """Relevance as the kernels take it: classes of both sides, or bits of both."""

    query_classes: torch.Tensor | None  # [Q] int32
    row_classes: torch.Tensor | None  # [M] int32
    query_bits: torch.Tensor | None  # [Q, W] uint64
    row_bits: torch.Tensor | None  # [M, W] uint64
    own: bool

    @staticmethod
    def of(relevance: Any) -> Labels:
        """Of a `minerlib.inputs.Relevance` that holds tensors on the codes' device."""
        if relevance.query_classes is not None:  # dense, so below the number of rows
            queries, rows = relevance.query_classes.int(), relevance.database_classes.int()
            return Labels(queries.contiguous(), rows.contiguous(), None, None, relevance.own)
        queries, rows = relevance.query_bits.contiguous(), relevance.database_bits.contiguous()
        return Labels(None, None, queries, rows, relevance.own)

    def arguments(self, first: int) -> tuple[Any, ...]:
        """For queries from `first` on."""
        words = 0 if self.query_bits is None else self.query_bits.shape[1]
        queries = [side if side is None else side[first:] for side in (self.query_classes, self.query_bits)]
        return queries[0], self.row_classes, queries[1], self.row_bits, words, int(self.own)


NO_LABELS = (None, None, None, None, 0, 0)


def _launch(kernel: str, near: torch.Tensor, *arguments: Any) -> None:
    """near: a tensor on the device; its current stream is used."""
    values = [
        value.data_ptr() if isinstance(value, torch.Tensor) else 0 if value is None else value
        for value in arguments
    ]
    library = _cuda_library.library()
    if near.device.type != "cuda":  # the tests' mirror
        library.launch(kernel, *values, 0, 0)
        return
    with torch.cuda.device(near.device):  # the library's CUDA runtime and torch's agree about the device
        stream = torch.cuda.current_stream().cuda_stream
        library.launch(kernel, *values, near.device.index, stream)


# ------------------------------------------------------------------ how work is cut up


def way_for(queries: int, width: int, device: torch.device, products: bool | None) -> int:
    """products: None: where the device has 1-bit matrix products of its own."""
    if queries < MANY_FROM and not products:
        return FEW
    if products is None:
        products = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (8, 9)
    return PRODUCTS if products and width <= PRODUCTS_WIDTH else MANY if queries >= MANY_FROM else FEW


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
class Parts:
    """How the counting kernels deal out rows: see Parts in csrc/cuda/hamming_histogram.h."""

    splits: int
    block: int  # queries of a block
    thread_rows: int
    threads: int
    window: int  # distances counted at a time

    @property
    def each_query(self) -> int:
        """Parts that a query's rows are in."""
        return self.splits * (self.threads // self.block)


def parts_for(queries: int, rows: int, values: int, counter: int, blocks: int = BLOCKS) -> Parts:
    """counter: bytes that a thread keeps for each distance."""
    threads = COUNT_THREADS if counter * COUNT_THREADS * values <= SHARED else COUNT_THREADS // 2
    window = min(values, SHARED // (counter * threads))
    block = min(threads, 1 << max(0, queries - 1).bit_length())
    parts = threads // block
    wanted = -(-blocks // -(-queries // block))
    least_rows = 4 * values // parts  # as clearing and adding up its counters costs
    splits = max(
        1, min(wanted, rows // (parts * max(16, least_rows))), -(-rows // (parts * MOST_THREAD_ROWS))
    )
    thread_rows = max(1, -(-rows // (splits * parts)))
    return Parts(max(1, -(-rows // (parts * thread_rows))), block, thread_rows, threads, window)


def _chunks(count: int, each: int) -> Iterator[tuple[int, int]]:
    """So many queries at a time that `each` values of all of them fit, about as many each time."""
    most = max(1, min(MOST_QUERIES, MOST // max(1, each)))
    step = max(1, -(-count // max(1, -(-count // most))))
    for first in range(0, count, step):
        yield first, min(count, first + step)


# ------------------------------------------------------------------ distances and counts


def distance(
    a: torch.Tensor,  # [N, bytes] uint8
    b: torch.Tensor,  # [M, bytes] uint8
) -> torch.Tensor:  # [N, M] int32
    out = torch.empty((len(a), len(b)), dtype=torch.int32, device=a.device)
    if out.numel():
        x, y = as_words(a, False), as_words(b, True)
        _launch("hamming_distance", out, x.words, x.count, y.words, y.count, x.width, out)
    return out


def _totals(
    queries: Codes,
    database: Codes,
    rows: int,  # the first ones
    labels: Labels | None = None,
    first: int = 0,  # the queries' place in the whole set
) -> tuple[torch.Tensor, torch.Tensor]:  # [Q, values] int64 each: all rows, and relevant ones
    every = torch.zeros((queries.count, queries.values), dtype=torch.int64, device=queries.words.device)
    relevant = torch.zeros_like(every) if labels else None
    parts = parts_for(queries.count, rows, queries.values, 4)
    _launch(
        "hamming_histogram", every, queries.words, queries.count, first, database.words, database.count, rows,
        queries.width, *(labels.arguments(first) if labels else NO_LABELS), parts.splits, parts.block,
        parts.thread_rows, queries.values, parts.threads, parts.window, every, relevant, None, None,
    )  # fmt: skip
    return every, every if relevant is None else relevant


def counts(
    queries: torch.Tensor,  # [Q, bytes] uint8
    database: torch.Tensor,  # [M, bytes] uint8
    relevance: Any,  # a minerlib.inputs.Relevance of tensors
) -> tuple[torch.Tensor, torch.Tensor]:  # [Q, bits + 1] int64: all, and relevant ones
    """How many rows, and how many relevant ones, lie at each distance."""
    x, y, labels = as_words(queries, False), as_words(database, True), Labels.of(relevance)
    found = [
        _totals(x.rows(first, last), y, y.count, labels, first) for first, last in _chunks(x.count, x.values)
    ]
    if not found:
        nothing = torch.zeros((0, x.values), dtype=torch.int64, device=queries.device)
        return nothing, nothing
    every, relevant = (torch.cat(side) for side in zip(*found, strict=True))
    return every, relevant


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
    totals: torch.Tensor | None,  # [Q, values] int64, added to
) -> None:
    _launch(
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
    if queries.count > 1 and queries.count * splits * capacity > 2 * MOST:
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
    if total > MOST and queries.count > 1:
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
    _launch(
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

    products: compare by 1-bit matrix products: None: where the device has them, by MANY_FROM queries or more.
    """
    distances = torch.empty((len(queries), k), dtype=torch.int32, device=queries.device)
    indices = torch.empty((len(queries), k), dtype=torch.int64, device=queries.device)
    x, y = as_words(queries, False), as_words(database, True)
    for first, last in _chunks(x.count, max(2 * k * SAMPLE_LARGE if k > LARGE_K else 1, x.values)):
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
        within = _totals(queries, database, sample)[0]
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
    _launch("hamming_limits", totals, totals, *totals.shape, k, int(first), limits)


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
    device, rows = queries.words.device, database.count
    way = way_for(queries.count, queries.width, device, products)
    sample = min(rows, max(rows // (SAMPLE_FEW if way == FEW else SAMPLE), LEAST_SAMPLE, 4 * k))
    factor = STAGE if queries.count * rows >= SMALL else STAGE_SMALL
    ends = [rows] if way == FEW else stage_ends(rows, sample, factor)
    stages, splits = stages_for(ends, queries.count, queries.width, way, device)
    # The k-th distance of the rows before a stage is that of one more or less by chance.
    bound = TIES * (k + 4 * math.sqrt(k) + 12)
    capacity = max(
        segment_rows(
            bound * (stage.last - stage.first) / max(stage.first, sample), stage.splits, stage.split_rows
        )
        for stage in stages
    )
    if queries.count > 1 and queries.count * splits * capacity > 4 * MOST:
        half = queries.count // 2
        for part in (slice(0, half), slice(half, queries.count)):
            _search(
                queries.rows(part.start, part.stop), database, k, products, distances[part], indices[part]
            )
        return None

    _limit(_totals(queries, database, sample)[0], k, limits, True)
    zeros = torch.zeros(queries.count * queries.values + 1, dtype=torch.int64, device=device)
    totals, failed = zeros[1:].view(queries.count, queries.values), zeros[:1]
    counts = torch.empty((queries.count, splits), dtype=torch.int32, device=device)
    candidates = torch.empty(queries.count * splits * capacity, dtype=torch.int64, device=device)
    hits = Hits(candidates, None, capacity, counts)
    for stage in stages:
        _collect_stage(queries, database, stage, way, limits, k, hits, counts, totals)
        _limit(totals, k, limits)
    if k <= RANKED_K:
        threads, lanes = (1024, 1) if splits >= 256 else (256, 8)
        _launch(
            "hamming_nearest", counts, candidates, capacity, splits, counts, limits, queries.count, k,
            threads, lanes, indices, distances, failed,
        )  # fmt: skip
        if not int(failed):
            return None
    if int(counts.max()) > capacity:
        return totals
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
        for first, last in _chunks(x.count, 1):
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


# ------------------------------------------------------------------ average precision


def average_precision(
    queries: torch.Tensor,  # [Q, bytes] uint8
    database: torch.Tensor,  # [M, bytes] uint8
    relevance: Any,  # a minerlib.inputs.Relevance of tensors
    k: int,
) -> torch.Tensor:  # [Q] float64
    """The mean precision at the relevant rows among each query's first k; no host synchronisation."""
    out = torch.zeros(len(queries), dtype=torch.float64, device=queries.device)
    k = min(k, len(database))
    if k:
        x, y, labels = as_words(queries, False), as_words(database, True), Labels.of(relevance)
        for first, last in _chunks(x.count, max(k, x.values)):
            _precisions(x.rows(first, last), y, labels, first, k, out[first:last])
    return out


def _precisions(
    queries: Codes,
    database: Codes,
    labels: Labels,
    first: int,  # the queries' place in the whole set
    k: int,
    out: torch.Tensor,  # [Q] float64, written
) -> None:
    blocks = max(1, min(BLOCKS // 4, MOST // (2 * COUNT_THREADS * queries.values)))
    parts = parts_for(queries.count, database.count, queries.values, 8, blocks)
    shape = (queries.count, parts.each_query, queries.values)
    every, relevant = (torch.empty(shape, dtype=torch.int32, device=out.device) for _ in range(2))
    dealt = (parts.splits, parts.block, parts.thread_rows, queries.values, parts.threads, parts.window)
    codes = (queries.words, queries.count, first, database.words)
    _launch(
        "hamming_histogram", out, *codes, database.count, database.count, queries.width,
        *labels.arguments(first), *dealt, None, None, every, relevant,
    )  # fmt: skip
    ranks = torch.empty((queries.count, k), dtype=torch.int32, device=out.device)
    hits = torch.zeros(queries.count, dtype=torch.int32, device=out.device)
    _launch(
        "hamming_rank", out, *codes, database.count, queries.width, *labels.arguments(first), *dealt,
        _starts(every), _starts(relevant), k, ranks, hits,
    )  # fmt: skip
    _launch("hamming_precision", out, ranks, hits, queries.count, k, out)


def _starts(
    counts: torch.Tensor,  # [Q, parts, values] int32
) -> torch.Tensor:  # [Q, parts, values] int32: rows that come before the part's first at this distance
    totals = counts.sum(1, dtype=torch.int32)
    nearer = totals.cumsum(1, dtype=torch.int32) - totals
    earlier = counts.cumsum(1, dtype=torch.int32) - counts
    return earlier + nearer[:, None, :]
