"""The bodies of the CUDA kernels, run on the host: the reference's answers exactly, in any thread order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from minerlib import _cuda_library, reference
from minerlib.backends import _cuda_codes, _cuda_ranking
from minerlib.backends import _cuda_hamming as kernels
from tests.cuda_mirror import ROOT, mirror, threads_in_order
from tests.hamming_cases import (
    KINDS,
    assert_equal,
    check_pairs,
    check_ranges_of_nothing_and_of_everything,
    check_rankings,
    check_rankings_of_both_kinds,
    check_rankings_of_nothing,
    check_rows_apart_and_codes_that_start_anywhere,
    codes,
    relevances,
    tensor,
)

#: Queries, rows and bytes: one of each, both sides of a warp, a tile, a block's queries and every width.
SIZES = (
    *((1, 1, 1), (3, 17, 3), (7, 31, 4), (8, 33, 5), (16, 129, 8), (31, 65, 9), (33, 127, 16), (2, 1023, 17)),
    *((8, 1025, 32), (1, 513, 33), (9, 63, 64), (2, 16, 65), (34, 1100, 2), (1, 8193, 8), (5, 15, 129)),
)
GUARD = 64  # bytes behind every tensor that a launcher allocates


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Launches go to the mirror and are noted. What is left to kernels to write is full of 0x5A, and so is
    what lies behind it, to the end."""
    library, names, guards = mirror(), [], []
    kernels.plan_for.cache_clear()  # of what another test asked for with other constants

    class Noted:
        def launch(self, name: str, *arguments: Any) -> None:
            names.append(name)
            library.launch(name, *arguments)

    def guarded(content: int) -> Callable[..., torch.Tensor]:
        def allocate(shape: Any, *, dtype: torch.dtype, device: Any = None) -> torch.Tensor:
            shape = (shape,) if isinstance(shape, int) else tuple(shape)
            size = math.prod(shape) * dtype.itemsize
            memory = torch.full((size + GUARD,), content, dtype=torch.uint8)
            guards.append(memory[size:].fill_(0x5A))
            return memory[:size].view(dtype).view(shape)

        return allocate

    zeros = guarded(0)
    monkeypatch.setattr(_cuda_library, "library", Noted)
    monkeypatch.setattr(torch, "empty", guarded(0x5A))
    monkeypatch.setattr(torch, "zeros", zeros)
    monkeypatch.setattr(torch, "zeros_like", lambda like: zeros(like.shape, dtype=like.dtype))
    yield names
    assert all((guard == 0x5A).all() for guard in guards)


def search_and_ranges(a: np.ndarray, b: np.ndarray, ks: set[int]) -> None:
    check_pairs(kernels, a, b, ks)
    for k in sorted(ks):
        found = kernels.search(tensor(a), tensor(b), k, products=True)
        assert_equal(found, reference.hamming_search(a, b, k))


@pytest.mark.parametrize(
    ("kind", "queries", "rows", "width"),
    [(KINDS[(place + turn) % len(KINDS)], *size) for place, size in enumerate(SIZES) for turn in (0, 1)],
)
def test_distances_searches_and_ranges(kind: str, queries: int, rows: int, width: int) -> None:
    search_and_ranges(*codes(kind, queries, rows, width), {1, min(rows, 7), rows})


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("queries", "rows", "width"), [(33, 1030, 8), (2, 8200, 4), (9, 600, 40)])
def test_no_answer_depends_on_which_thread_is_first(order: int, queries: int, rows: int, width: int) -> None:
    a, b = codes("few distinct", queries, rows, width)
    with threads_in_order(order):
        search_and_ranges(a, b, {5, rows // 2})
        for r in relevances(queries, rows, False):
            check_rankings(_cuda_ranking, a, b, r, {rows // 2, rows})


@pytest.mark.parametrize("width", [1, 4, 5, 8, 13, 16, 24, 32, 33, 64, 72])
def test_each_bit_counts_once(width: int) -> None:
    """One bit set in turn, and all but one: adders that carry everything."""
    single = np.packbits(np.eye(8 * width, dtype=bool), axis=1, bitorder="little")
    ends = np.repeat(np.array([[0], [255]], dtype=np.uint8), width, axis=1)
    found = kernels.distance(tensor(ends), tensor(np.concatenate([single, ~single])))
    ones, others = [1] * 8 * width, [8 * width - 1] * 8 * width
    assert found.tolist() == [ones + others, others + ones]


def test_ranges_of_nothing_and_of_everything() -> None:
    check_ranges_of_nothing_and_of_everything(kernels)


def test_rows_apart_and_codes_that_start_anywhere() -> None:
    check_rows_apart_and_codes_that_start_anywhere(kernels)


# ------------------------------------------------------------------ bounds, segments and memory


@pytest.mark.parametrize("queries", [3, 20])
def test_a_bound_from_the_first_rows(
    queries: int, monkeypatch: pytest.MonkeyPatch, launched: list[str]
) -> None:
    """First rows that hold none of the nearest: segments overflow and are made again to measure."""
    monkeypatch.setattr(kernels, "LEAST_SAMPLE", 64)
    a, b = codes("descending", queries, 9000, 4)
    assert_equal(kernels.search(tensor(a), tensor(b), 7), reference.hamming_search(a, b, 7))
    assert launched == ["hamming_search", "hamming_collect", "hamming_select"]
    launched.clear()
    a, b = codes("random", queries, 9000, 4)
    assert_equal(kernels.search(tensor(a), tensor(b), 7), reference.hamming_search(a, b, 7))
    assert launched == ["hamming_search"]


def test_few_queries_in_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "LEAST_SAMPLE", 64)
    monkeypatch.setattr(kernels, "SMALL_FEW", 1000)
    a, b = codes("random", 2, 30_000, 8)
    assert_equal(kernels.search(tensor(a), tensor(b), 5), reference.hamming_search(a, b, 5))
    assert len(kernels.plan_for(2, 30_000, 2, 65, 5, None, torch.device("cpu")).stages) == 3 * 5


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize(("width", "kind"), [(8, "random"), (32, "few distinct"), (64, "random")])
def test_rows_in_stages(
    width: int, kind: str, products: bool, monkeypatch: pytest.MonkeyPatch, launched: list[str]
) -> None:
    """Each stage's hits lower the limits of the next."""
    monkeypatch.setattr(kernels, "LEAST_SAMPLE", 32)
    monkeypatch.setattr(kernels, "STAGE_SMALL", 3)
    a, b = codes(kind, 70, 3000, width)
    assert_equal(kernels.search(tensor(a), tensor(b), 5, products), reference.hamming_search(a, b, 5))
    plan = kernels.plan_for(70, 3000, width // 4, 8 * width + 1, 5, products, torch.device("cpu"))
    assert [list(plan.stages[:2]), list(plan.stages[-5:-3])] == [[0, 111], [1000, 3000]]
    assert len(plan.stages) == 4 * 5
    if kind == "random":
        assert launched == ["hamming_search"]
    monkeypatch.setattr(kernels, "RANKED_K", 4)
    kernels.plan_for.cache_clear()
    launched.clear()
    assert_equal(kernels.search(tensor(a), tensor(b), 5, products), reference.hamming_search(a, b, 5))
    if kind == "random":
        assert launched == ["hamming_search", "hamming_select"]


def test_more_ties_than_a_block_ranks(launched: list[str]) -> None:
    """What was found is sorted, and not looked for again."""
    a, b = codes("duplicates", 9, 40_000, 4)
    a[:] = b[0]
    for products in (False, True):
        launched.clear()
        wanted = np.broadcast_to(np.arange(50), (9, 50))
        assert np.array_equal(
            kernels.search(tensor(a), tensor(b[:1].repeat(40_000, 0)), 50, products)[1], wanted
        )
        assert launched[-1] == "hamming_select"


def test_limits_of_more_distances_than_a_window_holds() -> None:
    totals = torch.zeros((3, 2000), dtype=torch.int64)
    totals[0, [0, 511, 512, 1999]] = 1
    totals[1, 1400:] = 1
    for k, wanted in (
        (1, [0, 1400, 700]),
        (2, [511, 1401, 700]),
        (3, [512, 1402, 700]),
        (4, [1999, 1403, 700]),
    ):
        limits = torch.tensor([1999, 1999, 700], dtype=torch.int32)
        kernels._limit(totals, k, limits)
        assert limits.tolist() == wanted


@pytest.mark.parametrize("queries", [2, 12])
def test_queries_in_chunks_and_halves(
    queries: int, monkeypatch: pytest.MonkeyPatch, launched: list[str]
) -> None:
    monkeypatch.setattr(_cuda_codes, "MOST_QUERIES", 9)
    monkeypatch.setattr(_cuda_codes, "MOST", 2000)
    monkeypatch.setattr(kernels, "MOST_CANDIDATES", 4000)
    monkeypatch.setattr(kernels, "LEAST_SAMPLE", 64)
    a, b = codes("descending", queries, 1500, 4)
    assert_equal(kernels.search(tensor(a), tensor(b), 9), reference.hamming_search(a, b, 9))
    assert_equal(kernels.range_search(tensor(a), tensor(b), 32), reference.hamming_range(a, b, 32))
    assert launched.count("hamming_collect") > queries // 2  # one query with its 1500 hits is never halved


def test_rows_tied_at_the_bound_are_not_kept_beyond_k(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but duplicates: a split keeps what it has when it reaches k, to the end of that tile."""
    monkeypatch.setattr(kernels, "BLOCKS_FEW", 2)
    a, b = codes("duplicates", 2, 50_000, 8)
    a[:] = b[:2]
    x, y = _cuda_codes.as_words(tensor(a), False), _cuda_codes.as_words(tensor(b), True)
    hits = kernels._collect(x, y, torch.zeros(2, dtype=torch.int32), 5, 5)
    assert hits is not None
    assert hits.ends.tolist() == [[8192, 16384]] * 2
    hits = kernels._collect(x, y, torch.zeros(2, dtype=torch.int32), 5, 5, products=True)
    assert hits is not None
    splits = -(-50_000 // 256)
    assert hits.ends.tolist() == [[8 * (split + 1) for split in range(splits)]] * 2  # a fragment's rows
    assert_equal(kernels.search(tensor(a), tensor(b), 5), reference.hamming_search(a, b, 5))


def test_the_last_of_k_may_lie_in_a_later_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BLOCKS", 1)
    monkeypatch.setattr(kernels, "LEAST_SAMPLE", 20_000)  # the bound is the k-th distance itself
    b = np.full((16_500, 8), 255, dtype=np.uint8)
    b[[3, 5, 9000, 16_400]] = 0
    a = np.zeros((2, 8), dtype=np.uint8)
    for k in (1, 2, 3, 4):
        assert_equal(kernels.search(tensor(a), tensor(b), k), reference.hamming_search(a, b, k))


def test_codes_too_long_are_refused() -> None:
    long = torch.zeros((1, _cuda_codes.MOST_BITS // 8 + 1), dtype=torch.uint8)
    with pytest.raises(ValueError, match="codes: expected at most 2147483647 rows of 8388600 bits, got 1 of"):
        kernels.search(long, long, 1)


# ------------------------------------------------------------------ relevance


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("kind", "queries", "rows", "width"), [
    ("few distinct", 3, 130, 3), ("random", 2, 1400, 16), ("duplicates", 2, 60, 1), ("random", 1, 9, 33),
    ("few distinct", 65, 70, 8), ("random", 5, 300, 129),
])  # fmt: skip
def test_counts_and_average_precision(kind: str, queries: int, rows: int, width: int, own: bool) -> None:
    check_rankings_of_both_kinds(_cuda_ranking, kind, queries, rows, width, own)


def test_queries_ranked_in_chunks_know_their_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda_codes, "MOST_QUERIES", 5)
    _, b = codes("few distinct", 1, 12, 2)
    for r in relevances(12, 12, True):
        check_rankings(_cuda_ranking, b, b, r, {12})


def test_a_thread_counts_more_rows_than_half_a_word_holds() -> None:
    """70,000 duplicates of one query: a thread's share stays below 2^16 of them."""
    a, b = codes("duplicates", 1, 70_000, 1)
    a[:] = b[:1]
    x, y = _cuda_codes.as_words(tensor(a), False), _cuda_codes.as_words(tensor(b), True)
    every = torch.zeros((1, 9), dtype=torch.int64)
    _cuda_ranking.count_distances(x, y, 70_000, every)
    assert every.tolist() == [[70_000] + [0] * 8]


def test_rankings_of_nothing() -> None:
    check_rankings_of_nothing(_cuda_ranking)


# ------------------------------------------------------------------ launch arithmetic

MANY_SIZES = (1, 2, 3, 31, 32, 33, 63, 64, 65, 1000, 10_000)
MANY_ROWS = (1, 255, 256, 257, 8191, 8193, 65_535, 65_536, 1_000_000, 10_000_000, _cuda_codes.MOST_ROWS)


def test_splits_hold_every_row_once() -> None:
    for blocks, rows, step in itertools.product(MANY_SIZES, MANY_ROWS, (256, 512, 1024, 4096, 8192)):
        splits, split_rows = kernels.splits_for(blocks, rows, step, kernels.BLOCKS)
        assert splits * split_rows >= rows > (splits - 1) * split_rows
        assert split_rows % step == 0
        assert min(rows, split_rows) < 1 << 31
        assert blocks * splits <= kernels.BLOCKS + blocks


def test_parts_hold_every_row_once_and_fit_their_counters() -> None:
    values = (9, 65, 129, 192, 193, 257, 385, 2041, 20_001, _cuda_codes.MOST_BITS + 1)
    for queries, rows, many, summed in itertools.product(MANY_SIZES, MANY_ROWS, values, (False, True)):
        parts = _cuda_ranking.parts_for(queries, rows, many, summed)
        assert parts.threads % 32 == 0
        assert parts.threads % parts.block == 0
        assert (4 if summed else 8) * parts.threads * parts.window <= _cuda_ranking.SHARED
        assert 1 <= parts.window <= many
        assert 1 <= parts.thread_rows <= _cuda_ranking.MOST_THREAD_ROWS
        assert parts.each_query * parts.thread_rows >= rows
        assert (parts.splits - 1) * (parts.threads // parts.block) * parts.thread_rows < rows
        assert -(-many // parts.window) <= 0xFFFF  # layers of a grid
        assert -(-queries // parts.block) * parts.splits < 1 << 31


@pytest.mark.parametrize(("bytes_", "words"), [
    (1, 1), (4, 1), (5, 2), (8, 2), (9, 4), (12, 4), (16, 4), (17, 8), (32, 8), (33, 16), (64, 16), (65, 24),
])  # fmt: skip
def test_widths(bytes_: int, words: int) -> None:
    assert _cuda_codes.width_for(bytes_) == words


def test_planes_hold_the_vectors_of_neighbours_side_by_side() -> None:
    rows = torch.arange(3 * 64, dtype=torch.uint8).view(3, 64)
    words = _cuda_codes.as_words(rows, True).words
    for vector, row in itertools.product(range(4), range(3)):
        assert torch.equal(
            words.view(12, 4)[vector * 3 + row], rows[row].view(torch.int32)[4 * vector : 4 * vector + 4]
        )


def test_the_launchers_know_the_kernels_tiles() -> None:
    header = (ROOT / "csrc/cuda/hamming_collect.h").read_text(encoding="utf-8")
    for line in (
        f"FEW = {kernels.FEW}, MANY = {kernels.MANY};", "ROWS = WORDS == LONG ? 2 : 4;", "THREADS = 256;",
        f"QUERIES = WAY == FEW ? {kernels.QUERIES[0]} : {kernels.QUERIES[1]};", "TURNS = WAY == FEW ? 8 : 1;",
    ):  # fmt: skip
        assert line in header
    products = (ROOT / "csrc/cuda/hamming_products.h").read_text(encoding="utf-8")
    for line in (
        f"THREADS = {32 * kernels.PRODUCTS_WARPS}, RESIDENT = {kernels.BLOCKS_PRODUCTS};",
        "FRAGMENTS = WORDS <= 8 ? 4 : 2; ", "QUERIES = 16 * FRAGMENTS; ",
    ):  # fmt: skip
        assert line in products
    nearest = (ROOT / "csrc/cuda/hamming_nearest.h").read_text(encoding="utf-8")
    assert "THREADS = 1024, RESIDENT = 1, MOST = 1024;" in nearest
    histogram = (ROOT / "csrc/cuda/hamming_histogram.h").read_text(encoding="utf-8")
    assert f"THREADS = {_cuda_ranking.COUNT_THREADS}, RESIDENT = 12, MOST_ROWS = 0xFFFF;" in histogram
    tiles = [[kernels.tile_rows(width, way) for way in range(2)] for width in (8, 16)]
    assert tiles == [[8192, 1024], [4096, 512]]


def test_a_refused_launch_names_its_kernel() -> None:
    library = mirror()
    codes = torch.zeros(64, dtype=torch.int32)
    place = codes.data_ptr()

    def histogram(width: int, threads: int, window: int, thread_rows: int) -> None:
        library.launch(
            "hamming_histogram", place, 1, 0, place, 1, 1, width, 0, 0, 0, 0, 0, 0, 1, 1, thread_rows, 9,
            threads, window, place, 0, 0, 0, 0, 0,
        )  # fmt: skip

    for arguments, reason in (
        ((3, 32, 9, 1), r"hamming_histogram\[words=3\]: a code has 1, 2, 4 or a multiple of 8 words"),
        ((12, 32, 9, 1), r"hamming_histogram\[words=12\]: a code has"),
        ((2, 2048, 9, 1), r"hamming_histogram\[words=2\]: invalid configuration argument"),
        ((2, 32, 9999, 1), r"hamming_histogram\[words=2\]: invalid configuration argument"),
        ((2, 32, 9, 1 << 16), "hamming_histogram: a thread counts at most 65535 rows"),
    ):
        with pytest.raises(_cuda_library.CudaError, match=f"^CUDA kernel {reason}"):
            histogram(*arguments)
