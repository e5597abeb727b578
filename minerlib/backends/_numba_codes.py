"""The Hamming families of the numba backend: queries in blocks, the database in parts, parts in slabs.

A slab is a range of rows as 64-bit words, filled up with zero bits where that is needed, in a copy; the codes
are never copied whole. Few queries are spread over parts of the database, so that one query too uses all
threads. Importing this does not import numba.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np

from minerlib import threads
from minerlib.backends._numba_chunks import deal
from minerlib.inputs import MultiLabels, Relevance

SLAB_BYTES = 1 << 20
LEAST_SLAB = 256  # rows, however long
MOST_QUERIES = 32  # a slab is read and turned into tiles once for so many
LEAST_PART = 1 << 15  # rows
LEAST_WORK = 1 << 20  # words compared, about a millisecond: what makes one more thread worth starting
HELD = 1 << 20  # candidates or ranks that one thread holds for its queries
MARKED_ROWS = 1 << 14  # of a slab whose rows are marked as relevant for each query
SPARE = 256  # places for losers among the candidates, however small k is


def hamming_distance(
    a: np.ndarray,  # [N, bytes] uint8
    b: np.ndarray,  # [M, bytes] uint8
) -> np.ndarray:  # [N, M] int32
    from minerlib.backends import _numba_hamming as families

    words = _words(a)
    out = np.empty((len(a), len(b)), dtype=np.int32)

    def work(first: int, last: int, start: int, stop: int) -> None:
        for at, slab in _slabs(b, start, stop):
            families.list_distances(words[first:last], slab, at, out[first:last])

    _Grid(words, len(b)).run(work)
    return out


def hamming_search(
    queries: np.ndarray,  # [Q, bytes] uint8
    database: np.ndarray,  # [M, bytes] uint8
    k: int,
) -> tuple[np.ndarray, np.ndarray]:  # [Q, k] int32 distances, [Q, k] int64 indices
    from minerlib.backends import _numba_hamming as families

    words = _words(queries)
    values = _values(words)
    out = np.empty((len(words), k), dtype=np.int32), np.empty((len(words), k), dtype=np.int64)
    parts: dict[tuple[int, int], list[tuple[int, np.ndarray, np.ndarray]]] = {}

    def work(first: int, last: int, start: int, stop: int) -> None:
        block, rows = last - first, stop - start
        kept, capacity = min(k, rows), min(2 * k + SPARE, rows)
        state = np.tile(np.array([0, values, 0]), (block, 1))
        histogram = np.zeros((block, values + 1), dtype=np.int64)
        candidates = np.empty((block, capacity), np.int32), np.empty((block, capacity), np.int64)
        for at, slab in _slabs(database, start, stop):
            families.keep_nearest(words[first:last], slab, at, kept, state, histogram, *candidates)
        if rows == len(database):
            part = out[0][first:last], out[1][first:last]
        else:
            part = np.empty((block, kept), np.int32), np.empty((block, kept), np.int64)
            parts.setdefault((first, last), []).append((start, *part))
        families.sort_kept(kept, state, histogram, *candidates, *part)

    _Grid(words, len(database), HELD // k, max(LEAST_PART, 4 * k)).run(work)
    for (first, last), found in parts.items():
        found.sort(key=lambda part: part[0])
        distances, indices = (np.concatenate([part[i] for part in found], axis=1) for i in (1, 2))
        order = np.argsort(distances, axis=1, kind="stable")[:, :k]  # the parts are in index order
        out[0][first:last] = np.take_along_axis(distances, order, axis=1)
        out[1][first:last] = np.take_along_axis(indices, order, axis=1)
    return out


def hamming_range(
    queries: np.ndarray,  # [Q, bytes] uint8
    database: np.ndarray,  # [M, bytes] uint8
    radius: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # [Q + 1] int64, [T] int64, [T] int32
    """Hits are counted first, so that the result is allocated once and every part knows its places in it."""
    from minerlib.backends import _numba_hamming as families

    words = _words(queries)
    grid = _Grid(words, len(database))
    counts = np.zeros((len(words), grid.parts), dtype=np.int64)

    def count(first: int, last: int, start: int, stop: int) -> None:
        inside = np.zeros(last - first, dtype=np.int64)
        for _, slab in _slabs(database, start, stop):
            families.count_within(words[first:last], slab, radius, inside)
        counts[first:last, start // grid.part] = inside

    grid.run(count)
    ends = np.cumsum(counts).reshape(counts.shape)
    offsets = np.concatenate([[0], ends[:, -1]])
    distances = np.empty(offsets[-1], dtype=np.int32)
    indices = np.empty(offsets[-1], dtype=np.int64)

    def write(first: int, last: int, start: int, stop: int) -> None:
        part = start // grid.part
        places = ends[first:last, part] - counts[first:last, part]
        for at, slab in _slabs(database, start, stop):
            families.list_within(words[first:last], slab, at, radius, places, distances, indices)

    def sort(first: int, last: int) -> None:
        families.sort_within(offsets[first : last + 1], radius, distances, indices)

    grid.run(write)
    deal(grid.blocks(), grid.workers, sort)
    return offsets, indices, distances


def hamming_counts(
    queries: np.ndarray,  # [Q, bytes] uint8
    database: np.ndarray,  # [M, bytes] uint8
    relevance: Relevance,
) -> tuple[np.ndarray, np.ndarray]:  # [Q, 8 * bytes + 1] int64 each
    words = _words(queries)
    counts = np.zeros((len(words), _values(words), 2), dtype=np.int64)
    adding = threading.Lock()

    def work(first: int, last: int, start: int, stop: int) -> None:
        part = _counted(words, database, relevance, first, last, start, stop)
        with adding:
            counts[first:last] += part

    _Grid(words, len(database)).run(work)
    counts = counts[:, : 8 * queries.shape[1] + 1]
    return counts.sum(axis=2), counts[:, :, 1].copy()


def hamming_average_precision(
    queries: np.ndarray,  # [Q, bytes] uint8
    database: np.ndarray,  # [M, bytes] uint8
    relevance: Relevance,
    k: int,
) -> np.ndarray:  # [Q]
    """Counts first: they give every row its rank, and relevant rows their place among the relevant."""
    from minerlib.backends import _numba_hamming as families

    words = _words(queries)
    out = np.zeros(len(words))

    def work(first: int, last: int, start: int, stop: int) -> None:
        counts = _counted(words, database, relevance, first, last, start, stop)
        counts[:, :, 0] += counts[:, :, 1]
        places = np.cumsum(counts, axis=1) - counts
        most_hits = min(k, int(counts[:, :, 1].sum(axis=1).max()))
        ranks = np.empty((last - first, most_hits), dtype=np.int64)
        hits = np.zeros(last - first, dtype=np.int64)
        for at, slab in _slabs(database, start, stop, MARKED_ROWS):
            marks = _marks(relevance, first, last, at, len(slab))
            families.rank_relevant(words[first:last], slab, *marks, k, places, hits, ranks)
        families.average_precisions(hits, ranks, out[first:last])

    _Grid(words, len(database), HELD // max(1, min(k, len(database))), len(database)).run(work)
    return out


# ------------------------------------------------------------------ blocks, parts, slabs


class _Grid:
    """Blocks of queries times parts of the database: tasks that threads take one after the other."""

    def __init__(
        self,
        words: np.ndarray,  # [Q, W]
        rows: int,
        most_queries: int = MOST_QUERIES,
        least_part: int | None = None,
    ) -> None:
        self.queries, self.rows = len(words), rows
        self.workers = min(threads.get_num_threads(), 1 + words.size * rows // LEAST_WORK)
        tasks = 4 * self.workers if self.workers > 1 else 1  # a few for each thread even out their speeds
        most_parts = rows // (LEAST_PART if least_part is None else least_part) if rows else 1
        self.block = max(1, min(MOST_QUERIES, most_queries))
        if most_parts <= 1:
            self.block = max(1, min(self.block, -(-self.queries // tasks)))
        parts = -(-tasks // max(1, -(-self.queries // self.block)))
        self.part = max(1, -(-rows // max(1, min(parts, most_parts))))
        self.parts = max(1, -(-rows // self.part))

    def blocks(self) -> Iterator[tuple[int, int]]:
        for first in range(0, self.queries, self.block):
            yield first, min(first + self.block, self.queries)

    def run(self, work: Callable[[int, int, int, int], None]) -> None:
        """`work(first, last, start, stop)` for queries first..last and database rows start..stop."""
        tasks = (
            (first, last, start, min(start + self.part, self.rows))
            for first, last in self.blocks()
            for start in range(0, self.rows, self.part)
        )
        deal(tasks, min(self.workers, self.parts * -(-self.queries // self.block)), work)


def _words(
    codes: np.ndarray,  # [R, bytes] uint8
) -> np.ndarray:  # [R, W] uint64
    out = np.zeros((len(codes), -(-codes.shape[1] // 8)), dtype=np.uint64)
    out.view(np.uint8)[:, : codes.shape[1]] = codes
    return out


def _values(words: np.ndarray) -> int:
    """How many different distances there may be."""
    return 64 * words.shape[1] + 1


def _slabs(
    codes: np.ndarray,  # [M, bytes] uint8
    start: int,
    stop: int,
    most_rows: int = SLAB_BYTES,
) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, slab [R, W] uint64) of all rows start..stop; a slab lives until the next is asked for."""
    words = -(-codes.shape[1] // 8)
    step = min(most_rows, stop - start, max(LEAST_SLAB, SLAB_BYTES // (8 * words)))
    whole_words = codes.view(np.uint64) if codes.shape[1] == 8 * words else None
    # numba would compile its kernels again for arrays that are read-only or not aligned
    if whole_words is not None and whole_words.flags.aligned and whole_words.flags.writeable:
        for at in range(start, stop, step):
            yield at, whole_words[at : min(at + step, stop)]
        return
    buffer = np.zeros((step, words), dtype=np.uint64)
    as_bytes = buffer.view(np.uint8)[:, : codes.shape[1]]
    for at in range(start, stop, step):
        rows = min(step, stop - at)
        as_bytes[:rows] = codes[at : at + rows]
        yield at, buffer[:rows]


def _counted(
    words: np.ndarray,  # [Q, W] uint64
    database: np.ndarray,  # [M, bytes] uint8
    relevance: Relevance,
    first: int,
    last: int,
    start: int,
    stop: int,
) -> np.ndarray:  # [B, values, 2] int64
    """How many of the rows start..stop, not relevant ones and relevant ones, lie at each distance."""
    from minerlib.backends import _numba_hamming as families

    counts = np.zeros((last - first, _values(words), 2), dtype=np.int64)
    for at, slab in _slabs(database, start, stop, MARKED_ROWS):
        marks = _marks(relevance, first, last, at, len(slab))
        families.count_distances(words[first:last], slab, *marks, counts)
    return counts


def _marks(
    relevance: Relevance, first: int, last: int, at: int, rows: int
) -> tuple[np.ndarray, np.ndarray]:  # [B, R] uint8, [B] int64
    """Which of the rows from `at` on are relevant, and the place among them of the one to be left out."""
    if relevance.query_classes is not None:
        assert relevance.database_classes is not None
        classes = relevance.database_classes[None, at : at + rows]
        relevant = relevance.query_classes[first:last, None] == classes
    else:
        assert relevance.query_bits is not None
        assert relevance.database_bits is not None
        bits = relevance.database_bits[at : at + rows]
        relevant = MultiLabels(relevance.query_bits[first:last], bits).same_class()
    left_out = np.arange(first, last) - at if relevance.own else np.full(last - first, -1)
    return relevant.view(np.uint8), left_out
