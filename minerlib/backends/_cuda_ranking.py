"""Kernels of csrc/cuda that count rows by distance and relevance, on torch tensors; average precision.

Codes are uint8 [rows, bytes], answers those of the definition, ties by the lowest index. Peak memory beside
the result: a copy of the codes, and 512 MB of counts or ranks, unless a single query needs more.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from minerlib.backends._cuda_codes import BLOCKS, MOST, Codes, as_words, chunks, launch

SHARED = 48 << 10  # bytes of shared memory that every architecture gives a block
COUNT_THREADS = 64
MOST_THREAD_ROWS = 0xFFFF
FULL = 1024  # blocks


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


@functools.lru_cache
def parts_for(queries: int, rows: int, values: int, summed: bool, blocks: int = BLOCKS) -> Parts:
    """summed: the counts of a query's parts are added up, else each part keeps its own."""
    counter = 4 if summed else 8  # bytes of a thread for each distance: counts, or next ranks and hits
    threads = COUNT_THREADS if counter * COUNT_THREADS * values <= SHARED else COUNT_THREADS // 2
    window = min(values, SHARED // (counter * threads))
    block = min(threads, 1 << max(0, queries - 1).bit_length())
    parts = threads // block
    query_blocks = -(-queries // block)
    # A part has rows enough to be worth clearing and adding up its counters; few queries fill the device.
    splits = rows // (parts * max(256, 4 * values))
    if summed:
        splits = rows // (parts * max(16, 4 * values // parts))
        splits = max(splits, min(FULL // query_blocks, rows // (parts * 32)))
    splits = max(1, min(splits, -(-blocks // query_blocks)), -(-rows // (parts * MOST_THREAD_ROWS)))
    thread_rows = max(1, -(-rows // (splits * parts)))
    return Parts(max(1, -(-rows // (parts * thread_rows))), block, thread_rows, threads, window)


def count_distances(
    queries: Codes,
    database: Codes,
    rows: int,  # the first ones
    every: torch.Tensor,  # [Q, values] int64, added to
    relevant: torch.Tensor | None = None,  # [Q, values] int64, added to
    labels: Labels | None = None,
    first: int = 0,  # the queries' place in the whole set
) -> None:
    parts = parts_for(queries.count, rows, queries.values, True)
    launch(
        "hamming_histogram", every, queries.words, queries.count, first, database.words, database.count, rows,
        queries.width, *(labels.arguments(first) if labels else NO_LABELS), parts.splits, parts.block,
        parts.thread_rows, queries.values, parts.threads, parts.window, every, relevant, None, None,
    )  # fmt: skip


def counts(
    queries: torch.Tensor,  # [Q, bytes] uint8
    database: torch.Tensor,  # [M, bytes] uint8
    relevance: Any,  # a minerlib.inputs.Relevance of tensors
) -> tuple[torch.Tensor, torch.Tensor]:  # [Q, bits + 1] int64: all, and relevant ones
    """How many rows, and how many relevant ones, lie at each distance."""
    x, y, labels = as_words(queries, False), as_words(database, True), Labels.of(relevance)
    every = torch.zeros((x.count, x.values), dtype=torch.int64, device=queries.device)
    relevant = torch.zeros_like(every)
    for first, last in chunks(x.count, x.values):
        part = every[first:last], relevant[first:last]
        count_distances(x.rows(first, last), y, y.count, *part, labels, first)
    return every, relevant


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
        for first, last in chunks(x.count, max(k, x.values)):
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
    parts = parts_for(queries.count, database.count, queries.values, False, blocks)
    shape = (queries.count, parts.each_query, queries.values)
    every, relevant = (torch.empty(shape, dtype=torch.int32, device=out.device) for _ in range(2))
    dealt = (parts.splits, parts.block, parts.thread_rows, queries.values, parts.threads, parts.window)
    codes = (queries.words, queries.count, first, database.words)
    launch(
        "hamming_histogram", out, *codes, database.count, database.count, queries.width,
        *labels.arguments(first), *dealt, None, None, every, relevant,
    )  # fmt: skip
    ranks = torch.empty((queries.count, k), dtype=torch.int32, device=out.device)
    hits = torch.zeros(queries.count, dtype=torch.int32, device=out.device)
    launch(
        "hamming_rank", out, *codes, database.count, queries.width, *labels.arguments(first), *dealt,
        _starts(every), _starts(relevant), k, ranks, hits,
    )  # fmt: skip
    launch("hamming_precision", out, ranks, hits, queries.count, k, out)


def _starts(
    counts: torch.Tensor,  # [Q, parts, values] int32
) -> torch.Tensor:  # [Q, parts, values] int32: rows that come before the part's first at this distance
    totals = counts.sum(1, dtype=torch.int32)
    nearer = totals.cumsum(1, dtype=torch.int32) - totals
    earlier = counts.cumsum(1, dtype=torch.int32) - counts
    return earlier + nearer[:, None, :]
