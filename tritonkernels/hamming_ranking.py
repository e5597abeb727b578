"""Average precision of Hamming rankings by (distance, index), cut at k.

    AP(q) = (1 / H) sum over relevant rows in the cut, in rank order, of float64(hits so far) / float64(rank)

with H relevant rows inside the cut; 0 where H is 0. No ranking is formed: a row's rank is the number of
nearer rows (from `hamming.histograms`), plus the rows at its distance in earlier steps (a counter for each
distance, in registers), plus those before it in its own step. `rank_kernel` writes the ranks of the
relevant rows by hit number, and `precision_kernel` adds the precisions one after another, so the sum has
the bits of the definition.

Codes uint8 [rows, bytes], labels as in hamming.py; accumulation float64, ties by the lowest index. Limits:
MOST_BITS bits, less than 2^31 database rows. Peak memory: SCRATCH ranks, or k of them if that is more, and
a copy of the codes. Source: SPEC section 5, hamming_map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from tritonkernels import hamming
from tritonkernels.hamming import Codes, Labels, as_words, relevant_rows, row_distances
from tritonkernels.launching import Kernel, always, blocks, on_device

SCRATCH = 1 << 26  # ranks of 4 bytes that are kept at a time


@dataclass(frozen=True)
class RankConfig:
    """Database rows a step: each is compared with all of the same step."""

    rows: int = 128
    num_warps: int = 4

    def warps(self, hip: bool) -> int:
        """A row for each thread, and no more threads than rows: those that hold copies would be counted by
        Triton's histogram too. AMD's warps hold twice as many threads."""
        return self.num_warps // 2 if hip else self.num_warps


@dataclass(frozen=True)
class PrecisionConfig:
    """Queries a program: a lane sums one query's precisions in order."""

    queries: int = 32
    num_warps: int = 1


RANK, PRECISION = RankConfig(), PrecisionConfig()


@triton.jit
def rank_kernel(
    q_ptr,
    q_row: tl.int64,
    q_word: tl.int64,
    d_ptr,
    d_row: tl.int64,
    d_word: tl.int64,
    q_labels_ptr,
    d_labels_ptr,
    starts_ptr,  # [Q, values] int32: rows nearer than each distance
    relevant_starts_ptr,  # the same of relevant rows
    ranks_ptr,  # [Q, k] int32: the rank of each hit, from 1
    hits_ptr,  # [Q] int32: relevant rows inside the cut
    first_query: tl.int64,
    d_count: tl.int64,
    k,
    words,
    values,  # 8 * bytes + 1
    label_words,
    by_class,
    own,  # 1: row i is query i and is not ranked
    BINS: tl.constexpr,
    BM: tl.constexpr,
    UNROLL: tl.constexpr,
):
    query = tl.program_id(0).to(tl.int64)
    own_row = tl.where(own != 0, query + first_query, -1)
    bins = tl.arange(0, BINS)
    at = query * values + bins
    next_rank = tl.load(starts_ptr + at, mask=bins < values, other=0)
    next_hit = tl.load(relevant_starts_ptr + at, mask=bins < values, other=0)
    lane = tl.arange(0, BM)
    before = lane[None, :] < lane[:, None]
    inside = tl.zeros((BM,), dtype=tl.int32)
    for first in range(0, d_count, BM):
        rows = first + lane.to(tl.int64)
        live = (rows < d_count) & (rows != own_row)
        d = row_distances(
            q_ptr + query * q_row, q_word, d_ptr, rows, live, d_row, d_word, words, BM, UNROLL
        )  # fmt: skip
        d = tl.where(live, d, BINS - 1)
        hit = relevant_rows(query, q_labels_ptr, d_labels_ptr, rows, live, label_words, by_class, BM)
        weight = 1 + (hit.to(tl.int32) << 16)  # two counts below BM in one sum
        earlier = tl.sum(tl.where(before & (d[:, None] == d[None, :]), weight[None, :], 0), 1)
        rank = tl.gather(next_rank, d, 0) + (earlier & 0xFFFF)
        number = tl.gather(next_hit, d, 0) + (earlier >> 16)
        hit = hit & (rank < k)
        tl.store(ranks_ptr + query * k + number, rank + 1, mask=hit)
        inside += hit.to(tl.int32)
        next_rank += tl.histogram(d, BINS)
        next_hit += tl.histogram(tl.where(weight > 1, d, BINS - 1), BINS)
    tl.store(hits_ptr + query, tl.sum(inside, 0))


@triton.jit
def precision_kernel(
    ranks_ptr,  # [Q, k] int32
    hits_ptr,  # [Q] int32
    out_ptr,  # [Q] float64
    q_count,
    k,
    BQ: tl.constexpr,
):
    queries = tl.program_id(0).to(tl.int64) * BQ + tl.arange(0, BQ)
    live = queries < q_count
    hits = tl.load(hits_ptr + queries, mask=live, other=0)
    total = tl.zeros((BQ,), dtype=tl.float64)
    so_far = tl.zeros((BQ,), dtype=tl.float64)
    for number in range(tl.max(hits, 0)):
        rank = tl.load(ranks_ptr + queries * k + number, mask=number < hits, other=1)
        so_far += 1.0
        total += tl.where(number < hits, so_far / rank.to(tl.float64), 0.0)
    tl.store(out_ptr + queries, total / tl.maximum(hits, 1).to(tl.float64), mask=live)


_RANKED = dict.fromkeys(("starts_ptr", "relevant_starts_ptr", "ranks_ptr", "hits_ptr"), "*i32")
RANK_KERNEL = Kernel(
    rank_kernel,
    {**{name: kind for name, kind in hamming.CODE_TYPES.items() if name != "q_count"}, **hamming.LABEL_TYPES,
     **_RANKED},
    hamming.LENGTHS, lambda hip, **_: {"num_warps": RANK.warps(hip)}, always(BM=RANK.rows),
)  # fmt: skip
PRECISION_KERNEL = Kernel(
    precision_kernel, {"ranks_ptr": "*i32", "hits_ptr": "*i32", "out_ptr": "*fp64"}, [{}],
    always(num_warps=PRECISION.num_warps), always(BQ=PRECISION.queries),
)  # fmt: skip


def average_precision(
    queries: torch.Tensor,  # [Q, bytes] uint8
    database: torch.Tensor,  # [M, bytes] uint8
    relevance: Any,  # a minerlib.inputs.Relevance of tensors
    k: int,
) -> torch.Tensor:  # [Q] float64
    """The mean precision at the relevant rows among each query's first k; no host synchronisation."""
    hamming.check_bits(queries)
    out = torch.zeros(len(queries), dtype=torch.float64, device=queries.device)
    k = min(k, len(database))
    if k == 0:
        return out
    with on_device(queries):
        x, y, labels = as_words(queries, False), as_words(database, False), Labels.of(relevance)
        step = min(hamming.QUERIES_AT_A_TIME, max(1, SCRATCH // k))
        for first in range(0, x.count, step):
            last = min(x.count, first + step)
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
    every, relevant = hamming.histograms(queries, database, labels, first)
    assert relevant is not None
    starts, relevant_starts = _starts(every), _starts(relevant)
    ranks = torch.empty((queries.count, k), dtype=torch.int32, device=out.device)
    hits = torch.empty(queries.count, dtype=torch.int32, device=out.device)
    RANK_KERNEL(
        (queries.count,), queries.words, queries.row, queries.word, database.words, database.row,
        database.word, labels.queries[first:], labels.database, starts, relevant_starts, ranks, hits, first,
        database.count, k, queries.width, queries.bits + 1, labels.words, int(labels.by_class),
        int(labels.own), BINS=hamming.bins_for(queries.bits), UNROLL=queries.unroll,
    )  # fmt: skip
    PRECISION_KERNEL((blocks(queries.count, PRECISION.queries),), ranks, hits, out, queries.count, k)


def _starts(
    counts: torch.Tensor,  # [Q, splits, values] int32
) -> torch.Tensor:  # [Q, values] int32: rows at smaller distances
    totals = counts.sum(1, dtype=torch.int32)
    return totals.cumsum(1, dtype=torch.int32) - totals
