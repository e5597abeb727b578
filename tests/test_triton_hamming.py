"""Hamming kernels under Triton's interpreter: the reference's answers, by exact equality."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from minerlib import reference
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
from tests.triton_interpreter import INTERPRETED, NOT_INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason=NOT_INTERPRETED)

if INTERPRETED:
    from tritonkernels import hamming, hamming_ranking, hamming_search

#: Queries, database rows and bytes: one of each, both sides of a tile, of a word, of the words a step.
SIZES = ((1, 1, 1), (3, 17, 3), (16, 129, 4), (17, 65, 8), (2, 513, 9), (1, 1025, 16), (2, 31, 129))

if INTERPRETED:
    #: The launchers together, as the shared cases want them.
    KERNELS = SimpleNamespace(
        distance=hamming.distance, search=hamming_search.search, range_search=hamming_search.range_search,
        counts=hamming.counts, average_precision=hamming_ranking.average_precision,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launcher leaves to its kernels is full of 0x5A."""

    def poisoned(allocate: Any) -> Any:
        def allocated(*arguments: Any, **options: Any) -> torch.Tensor:
            found: torch.Tensor = allocate(*arguments, **options)
            found.view(torch.uint8).fill_(0x5A)
            return found

        return allocated

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))


@pytest.mark.parametrize(
    ("kind", "queries", "rows", "width"),
    [
        (KINDS[(place + turn) % len(KINDS)], *size)
        for place, size in enumerate(SIZES)
        for turn in (0, 1)[: 1 if size[2] > 100 else 2]
    ],
)
def test_distances_searches_and_ranges(kind: str, queries: int, rows: int, width: int) -> None:
    check_pairs(KERNELS, *codes(kind, queries, rows, width), {1, max(1, rows - 1)})


def test_ranges_of_nothing_and_of_everything() -> None:
    check_ranges_of_nothing_and_of_everything(KERNELS)


def test_a_bound_from_the_first_rows_and_queries_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two splits, a second chunk of few queries, and first rows that hold none of the nearest."""
    monkeypatch.setattr(hamming, "QUERIES_AT_A_TIME", 17)
    a, b = codes("descending", 20, 1100, 4)
    assert_equal(hamming_search.search(tensor(a), tensor(b), 7), reference.hamming_search(a, b, 7))
    wanted = reference.hamming_range(a, b, 9)
    assert_equal(hamming_search.range_search(tensor(a), tensor(b), 9), wanted)


def test_rows_apart_and_codes_that_start_anywhere() -> None:
    check_rows_apart_and_codes_that_start_anywhere(KERNELS)


def test_rows_beyond_two_to_the_31_words() -> None:
    """Three rows 2^30 words apart: 32-bit places would wrap. Untouched pages of the 8 GB are never used."""
    a, b = codes("random", 1, 3, 8)
    far = torch.zeros(1, dtype=torch.int32).new_empty((1 << 31) + 2)
    for row in range(3):
        far[row << 30 : (row << 30) + 2] = tensor(b[row]).view(torch.int32)
    x = hamming.as_words(tensor(a), False)
    y = hamming.Codes(far, 1 << 30, 1, 3, 2, 2, 64)
    every, _ = hamming.histograms(x, y)
    assert every.sum(1).tolist() == [np.bincount(reference.hamming_distance(a, b)[0], minlength=65).tolist()]


# ------------------------------------------------------------------ relevance


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("kind", "queries", "rows", "width"), [
    ("few distinct", 3, 130, 3), ("random", 2, 140, 16), ("duplicates", 2, 60, 1), ("random", 1, 9, 33),
])  # fmt: skip
def test_counts_and_average_precision(kind: str, queries: int, rows: int, width: int, own: bool) -> None:
    check_rankings_of_both_kinds(KERNELS, kind, queries, rows, width, own)


def test_queries_ranked_in_chunks_know_their_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming_ranking, "SCRATCH", 24)  # two queries of twelve ranks at a time
    monkeypatch.setattr(hamming, "QUERIES_AT_A_TIME", 3)
    _, b = codes("few distinct", 1, 12, 2)
    check_rankings(KERNELS, b, b, relevances(12, 12, True)[0], {12})


def test_rankings_of_nothing() -> None:
    check_rankings_of_nothing(KERNELS)


def test_no_thread_holds_a_copy_of_what_is_counted() -> None:
    for hip, threads in ((False, 32), (True, 64)):
        assert hamming_ranking.RANK.rows == hamming_ranking.RANK.warps(hip) * threads
        assert hamming.COUNT.rows % (hamming.COUNT.num_warps * threads) == 0


def test_codes_too_long_to_count_are_refused() -> None:
    long = torch.zeros((1, hamming.MOST_BITS // 8 + 1), dtype=torch.uint8)
    with pytest.raises(ValueError, match="queries: expected codes of at most 2040 bits, got 2048"):
        hamming_search.search(long, long, 1)
    assert hamming.distance(long, ~long).tolist() == [[2048]]
