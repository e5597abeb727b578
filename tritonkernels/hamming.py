"""Hamming distances between packed codes: all of them, or how many rows lie at each distance.

    d(q, m) = sum over words w of popcount(queries[q, w] xor database[m, w])

Codes are uint8 [rows, bytes], read as int32 words [rows, W]: rows are padded with zero bytes, which add
nothing to a distance. Accumulation: int32. Nothing here chooses among rows, so there is no tie rule;
`hamming_search.py` and `hamming_ranking.py` build on these kernels. Limits: MOST_BITS bits a code for what
keeps a bin for each distance in registers (`histograms`), none for `distance`; addresses are int64, a split
of the database holds less than 2^31 rows. Source: counting select, which needs no sort because distances
are small integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from tritonkernels.launching import ALL_REGISTERS, Kernel, always, blocks, choices, on_device

MOST_BITS = 2040  # 255 bytes: a bin a distance, and a last one for rows that do not count, make 2048

#: Programs wanted on the device: several for each multiprocessor of the largest, so that tails are short.
PROGRAMS = 1024
QUERIES_AT_A_TIME = 8192


@dataclass(frozen=True)
class Tile:
    """A launch configuration: queries by database rows a program holds at a time."""

    queries: int
    rows: int
    num_warps: int = 4


MANY = Tile(queries=16, rows=128, num_warps=8)
FEW = Tile(queries=1, rows=1024)  # of one query nothing is shared, memory is the limit
COUNT = Tile(queries=1, rows=512)  # the histogram kernel
UNROLLS = (2, 4)  # words a step; the second from 3 words on
BINS = {2: (128,), 4: (128, 256, 1024, 2048)}  # by words a step


# ------------------------------------------------------------------ what the kernels share


@triton.jit
def popcount(x):  # uint32 -> int32
    """LLVM knows this sum and emits one instruction for it: popc on NVIDIA, v_bcnt on AMD."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def tile_distances(
    q_ptr,  # int32 words; word w of row i at i * q_row + w * q_word
    q_rows,  # [BQ] int64
    q_live,  # [BQ] bool
    q_row,
    q_word,
    d_ptr,
    d_rows,  # [BM] int64
    d_live,  # [BM] bool
    d_row,
    d_word,
    words,  # a multiple of UNROLL
    BQ: tl.constexpr,
    BM: tl.constexpr,
    UNROLL: tl.constexpr,
):  # [BQ, BM] int32
    q_at = q_ptr + q_rows * q_row
    d_at = d_ptr + d_rows * d_row
    total = tl.zeros((BQ, BM), dtype=tl.int32)
    for _ in range(0, words, UNROLL):
        for _ in tl.static_range(UNROLL):
            q = tl.load(q_at, mask=q_live, other=0).to(tl.uint32, bitcast=True)
            d = tl.load(d_at, mask=d_live, other=0).to(tl.uint32, bitcast=True)
            total += popcount(q[:, None] ^ d[None, :])
            q_at += q_word
            d_at += d_word
    return total


@triton.jit
def row_distances(
    q_at,  # scalar pointer to the query's first word
    q_word,
    d_ptr,
    d_rows,  # [BM] int64
    d_live,  # [BM] bool
    d_row,
    d_word,
    words,
    BM: tl.constexpr,
    UNROLL: tl.constexpr,
):  # [BM] int32: one query's distances
    d_at = d_ptr + d_rows * d_row
    total = tl.zeros((BM,), dtype=tl.int32)
    for _ in range(0, words, UNROLL):
        for _ in tl.static_range(UNROLL):
            q = tl.load(q_at).to(tl.uint32, bitcast=True)
            d = tl.load(d_at, mask=d_live, other=0).to(tl.uint32, bitcast=True)
            total += popcount(q ^ d)
            q_at += q_word
            d_at += d_word
    return total


@triton.jit
def relevant_rows(
    query,  # scalar int64
    q_labels_ptr,  # [Q, label_words] int64: bits, or a class
    d_labels_ptr,  # [M, label_words] int64
    d_rows,  # [BM] int64
    d_live,  # [BM] bool
    label_words,
    by_class,  # 1: labels are classes
    BM: tl.constexpr,
):  # [BM] bool: live, and of the query's class or sharing one of its labels
    relevant = d_live & (d_rows < 0)
    for word in range(label_words):
        q = tl.load(q_labels_ptr + query * label_words + word)
        d = tl.load(d_labels_ptr + d_rows * label_words + word, mask=d_live, other=0)
        relevant = relevant | (d_live & tl.where(by_class != 0, d == q, (d & q) != 0))
    return relevant


# ------------------------------------------------------------------ kernels


@triton.jit
def distance_kernel(
    a_ptr,
    a_row: tl.int64,
    a_word: tl.int64,
    b_ptr,
    b_row: tl.int64,
    b_word: tl.int64,
    out_ptr,  # [N, M] int32
    a_count: tl.int64,
    b_count: tl.int64,
    column_blocks,
    words,
    BQ: tl.constexpr,
    BM: tl.constexpr,
    UNROLL: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    rows = (block // column_blocks) * BQ + tl.arange(0, BQ)
    columns = (block % column_blocks) * BM + tl.arange(0, BM)
    row_live, column_live = rows < a_count, columns < b_count
    d = tile_distances(
        a_ptr, rows, row_live, a_row, a_word, b_ptr, columns, column_live, b_row, b_word, words, BQ, BM,
        UNROLL,
    )  # fmt: skip
    at = rows[:, None] * b_count + columns[None, :]
    tl.store(out_ptr + at, d, mask=row_live[:, None] & column_live[None, :])


@triton.jit
def histogram_kernel(
    q_ptr,
    q_row: tl.int64,
    q_word: tl.int64,
    d_ptr,
    d_row: tl.int64,
    d_word: tl.int64,
    q_labels_ptr,
    d_labels_ptr,
    all_ptr,  # [Q, splits, values] int32: rows of the split at each distance
    relevant_ptr,  # the same of relevant rows; not written without labels
    first_query: tl.int64,  # the queries' place in the whole set
    d_count: tl.int64,
    split_rows: tl.int64,
    words,
    values,  # 8 * bytes + 1
    label_words,
    by_class,
    own,  # 1: row i is query i and does not count
    LABELS: tl.constexpr,  # whether relevant rows are counted
    BINS: tl.constexpr,  # a power of two above `values`: the last bin takes what does not count
    BM: tl.constexpr,
    UNROLL: tl.constexpr,
):
    query = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    stop = tl.minimum((split + 1) * split_rows, d_count)
    own_row = tl.where(own != 0, query + first_query, -1)
    counted = tl.zeros((BINS,), dtype=tl.int32)
    counted_relevant = tl.zeros((BINS,), dtype=tl.int32)
    for first in range(split * split_rows, stop, BM):
        rows = first + tl.arange(0, BM).to(tl.int64)
        live = (rows < stop) & (rows != own_row)
        d = row_distances(
            q_ptr + query * q_row, q_word, d_ptr, rows, live, d_row, d_word, words, BM, UNROLL
        )  # fmt: skip
        counted += tl.histogram(tl.where(live, d, BINS - 1), BINS)
        if LABELS:
            hit = relevant_rows(query, q_labels_ptr, d_labels_ptr, rows, live, label_words, by_class, BM)
            counted_relevant += tl.histogram(tl.where(hit, d, BINS - 1), BINS)
    bins = tl.arange(0, BINS)
    at = (query * tl.num_programs(1) + split) * values + bins
    tl.store(all_ptr + at, counted, mask=bins < values)
    if LABELS:
        tl.store(relevant_ptr + at, counted_relevant, mask=bins < values)


# ------------------------------------------------------------------ codes and labels as the kernels take them


@dataclass(frozen=True)
class Codes:
    """Codes as int32 words: word w of row i lies at i * row + w * word."""

    words: torch.Tensor  # int32
    row: int
    word: int
    count: int  # rows
    width: int  # words of a row, a multiple of `unroll`
    unroll: int
    bits: int  # 8 * bytes

    def rows(self, first: int, last: int) -> Codes:
        """Some of the rows, as a view."""
        words = self.words[first:last] if self.word == 1 else self.words[:, first:last]
        return Codes(words, self.row, self.word, last - first, self.width, self.unroll, self.bits)


def as_words(
    codes: torch.Tensor,  # [rows, bytes] uint8
    transposed: bool,  # neighbouring rows side by side, for tiles of many queries
) -> Codes:
    """Codes as words: the tensor itself where it can be read so, else a copy."""
    count, length = codes.shape
    width = blocks(length, 4)
    unroll = UNROLLS[width > 2]
    width = blocks(width, unroll) * unroll
    if length != 4 * width or count == 0:  # NumPy's empty arrays may come without strides
        padded = codes.new_zeros((count, 4 * width))
        padded[:, :length] = codes
        codes = padded
    elif not codes.is_contiguous() or codes.storage_offset() % 4:
        codes = codes.clone(memory_format=torch.contiguous_format)
    words = codes.view(torch.int32)
    if transposed:
        words = words.t().contiguous()
        return Codes(words, 1, count, count, width, unroll, 8 * length)
    return Codes(words, width, 1, count, width, unroll, 8 * length)


@dataclass(frozen=True)
class Labels:
    """Relevance as the kernels take it."""

    queries: torch.Tensor  # [Q, words] int64: bits, or a class
    database: torch.Tensor  # [M, words] int64
    by_class: bool
    own: bool

    @staticmethod
    def of(relevance: Any) -> Labels:
        """Of a `minerlib.inputs.Relevance` that holds tensors on the codes' device."""
        if relevance.query_classes is not None:
            queries, database = relevance.query_classes[:, None], relevance.database_classes[:, None]
            return Labels(queries.contiguous(), database.contiguous(), True, relevance.own)
        queries, database = (
            bits.contiguous().view(torch.int64) for bits in (relevance.query_bits, relevance.database_bits)
        )
        return Labels(queries, database, False, relevance.own)

    @property
    def words(self) -> int:
        return self.queries.shape[1]


def bins_for(bits: int) -> int:
    """Bins that the kernels keep for distances 0 to bits and for rows that do not count."""
    return next(bins for bins in BINS[4] if bits + 2 <= bins)


def splits_for(query_blocks: int, rows: int, step: int) -> tuple[int, int]:
    """Into how many parts of how many rows the database is cut, so that few queries fill the device too."""
    splits = max(1, min(blocks(PROGRAMS, max(1, query_blocks)), blocks(rows, 4 * step)))
    split_rows = blocks(blocks(rows, splits), step) * step
    return max(1, blocks(rows, split_rows)), split_rows


# ------------------------------------------------------------------ launchers

#: Types of the arguments that the Hamming kernels share; numbers of rows and places of words have 64 bits.
CODE_TYPES = {
    **dict.fromkeys(("q_ptr", "d_ptr"), "*i32"),
    **dict.fromkeys(("q_row", "q_word", "d_row", "d_word", "q_count", "d_count"), "i64"),
}
LABEL_TYPES = {"q_labels_ptr": "*i64", "d_labels_ptr": "*i64", "first_query": "i64"}
#: Every length of code: bins, and words a step.
LENGTHS = [{"BINS": bins, "UNROLL": unroll} for unroll, sizes in BINS.items() for bins in sizes]
#: Every tile of queries by rows.
TILES = choices(BQ=(MANY.queries, FEW.queries), UNROLL=UNROLLS)


def tile_options(hip: bool, BQ: int, **_: Any) -> dict[str, int]:
    return {"num_warps": _tile(BQ).num_warps}


def tile_constants(BQ: int, **_: Any) -> dict[str, int]:
    return {"BM": _tile(BQ).rows}


def _tile(queries: int) -> Tile:
    return MANY if queries == MANY.queries else FEW


DISTANCE = Kernel(
    distance_kernel,
    {**dict.fromkeys(("a_ptr", "b_ptr", "out_ptr"), "*i32"),
     **dict.fromkeys(("a_row", "a_word", "b_row", "b_word", "a_count", "b_count"), "i64")},
    TILES, tile_options, tile_constants,
)  # fmt: skip
HISTOGRAM = Kernel(
    histogram_kernel,
    {**{name: kind for name, kind in CODE_TYPES.items() if name != "q_count"}, **LABEL_TYPES,
     "all_ptr": "*i32", "relevant_ptr": "*i32", "split_rows": "i64"},
    [{**length, "LABELS": labels} for length in LENGTHS for labels in (False, True)],
    lambda hip, BINS, **_: {"num_warps": COUNT.num_warps, **(ALL_REGISTERS if BINS > 256 else {})},
    always(BM=COUNT.rows),
)  # fmt: skip


def distance(
    a: torch.Tensor,  # [N, bytes] uint8
    b: torch.Tensor,  # [M, bytes] uint8
) -> torch.Tensor:  # [N, M] int32
    """All distances. Peak memory: the result, and a copy of the codes."""
    out = torch.empty((len(a), len(b)), dtype=torch.int32, device=a.device)
    if out.numel() == 0:
        return out
    tile = MANY if len(a) >= MANY.queries else FEW
    with on_device(a):
        x, y = as_words(a, False), as_words(b, tile is MANY)
        column_blocks = blocks(y.count, tile.rows)
        DISTANCE(
            (blocks(x.count, tile.queries) * column_blocks,), x.words, x.row, x.word, y.words, y.row, y.word,
            out, x.count, y.count, column_blocks, x.width, BQ=tile.queries, UNROLL=x.unroll,
        )  # fmt: skip
    return out


def histograms(
    queries: Codes,
    database: Codes,
    labels: Labels | None = None,
    first_query: int = 0,  # the queries' place in the whole set
    parts: tuple[int, int] | None = None,  # (splits, rows of a split)
) -> tuple[torch.Tensor, torch.Tensor | None]:  # [Q, splits, bits + 1] int32: all, and relevant ones
    """How many rows of each split of the database lie at each distance."""
    splits, split_rows = parts or splits_for(queries.count, database.count, COUNT.rows)
    values = queries.bits + 1
    every = torch.empty((queries.count, splits, values), dtype=torch.int32, device=queries.words.device)
    relevant = torch.empty_like(every) if labels else None
    none = every.new_empty(1, dtype=torch.int64)  # not read
    HISTOGRAM(
        (queries.count, splits), queries.words, queries.row, queries.word, database.words, database.row,
        database.word, labels.queries[first_query:] if labels else none, labels.database if labels else none,
        every, every if relevant is None else relevant, first_query, database.count, split_rows,
        queries.width, values, labels.words if labels else 0, int(labels is not None and labels.by_class),
        int(labels is not None and labels.own), LABELS=labels is not None, BINS=bins_for(queries.bits),
        UNROLL=queries.unroll,
    )  # fmt: skip
    return every, relevant


def counts(
    queries: torch.Tensor,  # [Q, bytes] uint8
    database: torch.Tensor,  # [M, bytes] uint8
    relevance: Any,  # a minerlib.inputs.Relevance of tensors
) -> tuple[torch.Tensor, torch.Tensor]:  # [Q, bits + 1] int64: all, and relevant ones
    """How many rows, and how many relevant ones, lie at each distance. Peak memory: the result, a copy of the
    codes, and 4 MB * (bits + 1) / 128 for the parts of the database."""
    check_bits(queries)
    shape = (len(queries), 8 * queries.shape[1] + 1)
    every = torch.zeros(shape, dtype=torch.int64, device=queries.device)
    relevant = torch.zeros_like(every)
    if len(database) == 0:
        return every, relevant
    with on_device(queries):
        x, y, labels = as_words(queries, False), as_words(database, False), Labels.of(relevance)
        for first, last in query_chunks(x.count):
            parts, relevant_parts = histograms(x.rows(first, last), y, labels, first)
            assert relevant_parts is not None
            torch.sum(parts, 1, dtype=torch.int64, out=every[first:last])
            torch.sum(relevant_parts, 1, dtype=torch.int64, out=relevant[first:last])
    return every, relevant


def query_chunks(count: int) -> Iterator[tuple[int, int]]:
    """Queries that are searched at a time: enough to fill any device, and what they need stays small."""
    for first in range(0, count, QUERIES_AT_A_TIME):
        yield first, min(count, first + QUERIES_AT_A_TIME)


def check_bits(codes: torch.Tensor) -> None:
    """The longest codes that these kernels count."""
    if 8 * codes.shape[1] > MOST_BITS:
        raise ValueError(f"queries: expected codes of at most {MOST_BITS} bits, got {8 * codes.shape[1]}")
