"""Hamming kernels under Triton's interpreter: the reference's answers, by exact equality."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from minerlib import inputs, reference
from minerlib.backends import reference as judge
from minerlib.inputs import Relevance
from tests.triton_interpreter import INTERPRETED, NOT_INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason=NOT_INTERPRETED)

if INTERPRETED:
    from tritonkernels import hamming, hamming_ranking, hamming_search

#: Queries, database rows and bytes: one of each, both sides of a tile, of a word, of the words a step.
SIZES = ((1, 1, 1), (3, 17, 3), (16, 129, 4), (17, 65, 8), (2, 513, 9), (1, 1025, 16), (2, 31, 129))
KINDS = ("random", "few distinct", "duplicates", "descending")


def codes(kind: str, queries: int, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([KINDS.index(kind), queries, rows, width])
    distinct = {"duplicates": 1, "few distinct": 4}.get(kind, rows)
    database = rng.integers(0, 256, (distinct, width), dtype=np.uint8)[rng.integers(distinct, size=rows)]
    x = database[rng.integers(rows, size=queries)].copy()
    x[1::2] ^= rng.integers(0, 4, x[1::2].shape, dtype=np.uint8)
    if kind == "descending":  # every row is nearer to the first query than all before it
        order = np.argsort(-reference.hamming_distance(x[:1], database)[0], kind="stable")
        database = np.ascontiguousarray(database[order])
    return x, database


def tensor(array: np.ndarray | None) -> Any:
    return None if array is None else torch.from_numpy(array)


def assert_equal(found: tuple[torch.Tensor, ...], wanted: tuple[np.ndarray, ...]) -> None:
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.numpy().dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert np.array_equal(ours.numpy(), theirs)


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
    a, b = codes(kind, queries, rows, width)
    x, y = tensor(a), tensor(b)
    distances = reference.hamming_distance(a, b)
    assert_equal((hamming.distance(x, y),), (distances,))
    for k in sorted({1, max(1, rows - 1)}):
        assert_equal(hamming_search.search(x, y, k), reference.hamming_search(a, b, k))
    radius = int(np.median(distances))
    assert_equal(hamming_search.range_search(x, y, radius), reference.hamming_range(a, b, radius))


def test_ranges_of_nothing_and_of_everything() -> None:
    a, b = codes("random", 3, 40, 5)
    for radius in (0, 40):
        wanted = reference.hamming_range(a, b, radius)
        assert_equal(hamming_search.range_search(tensor(a), tensor(b), radius), wanted)
    for few in (a, a[:0]):
        wanted = reference.hamming_range(few, b[:0], 3)
        assert_equal(hamming_search.range_search(tensor(few), tensor(b[:0]), 3), wanted)


def test_a_bound_from_the_first_rows_and_queries_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two splits, a second chunk of few queries, and first rows that hold none of the nearest."""
    monkeypatch.setattr(hamming, "QUERIES_AT_A_TIME", 17)
    a, b = codes("descending", 20, 1100, 4)
    assert_equal(hamming_search.search(tensor(a), tensor(b), 7), reference.hamming_search(a, b, 7))
    wanted = reference.hamming_range(a, b, 9)
    assert_equal(hamming_search.range_search(tensor(a), tensor(b), 9), wanted)


def test_rows_apart_and_codes_that_start_anywhere() -> None:
    a, b = codes("random", 5, 60, 8)
    wide = torch.zeros((60, 17), dtype=torch.uint8)
    wide[:, 3:11] = tensor(b)
    shifted = torch.cat((torch.zeros(3, dtype=torch.uint8), tensor(a).reshape(-1)))[3:].view(5, 8)
    assert shifted.storage_offset() % 4
    wanted = reference.hamming_search(a, b, 9)
    assert_equal(hamming_search.search(shifted, wide[:, 3:11], 9), wanted)


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


def relevances(queries: int, rows: int, own: bool) -> list[Relevance]:
    rng = np.random.default_rng([queries, rows, own])
    classes = rng.integers(0, 4, queries), rng.integers(0, 3, rows)
    labels = rng.random((queries, 70)) < 0.03, rng.random((rows, 70)) < 0.03
    return [inputs.relevance(x, None if own else y, queries, rows) for x, y in (classes, labels)]


def on_tensors(r: Relevance) -> Relevance:
    fields = (r.query_classes, r.database_classes, r.query_bits, r.database_bits)
    return Relevance(*(tensor(field) for field in fields), r.own)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("kind", "queries", "rows", "width"), [
    ("few distinct", 3, 130, 3), ("random", 2, 140, 16), ("duplicates", 2, 60, 1), ("random", 1, 9, 33),
])  # fmt: skip
def test_counts_and_average_precision(kind: str, queries: int, rows: int, width: int, own: bool) -> None:
    a, b = codes(kind, queries, rows, width)
    if own:
        a = b = b[: queries + 1]
    for r in relevances(len(a), len(b), own):
        found = hamming.counts(tensor(a), tensor(b), on_tensors(r))
        assert_equal(found, judge.hamming_counts(a, b, r))
        for k in sorted({len(b) // 3 + 1, len(b)}):
            wanted = judge.hamming_average_precision(a, b, r, k)
            ours = hamming_ranking.average_precision(tensor(a), tensor(b), on_tensors(r), k)
            assert_equal((ours,), (wanted,))


def test_queries_ranked_in_chunks_know_their_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hamming_ranking, "SCRATCH", 24)  # two queries of twelve ranks at a time
    monkeypatch.setattr(hamming, "QUERIES_AT_A_TIME", 3)
    _, b = codes("few distinct", 1, 12, 2)
    r = relevances(12, 12, True)[0]
    wanted = judge.hamming_average_precision(b, b, r, 12)
    ours = hamming_ranking.average_precision(tensor(b), tensor(b), on_tensors(r), 12)
    assert_equal((ours,), (wanted,))
    assert_equal(hamming.counts(tensor(b), tensor(b), on_tensors(r)), judge.hamming_counts(b, b, r))


def test_rankings_of_nothing() -> None:
    a, b = codes("random", 2, 3, 2)
    nothing = on_tensors(inputs.relevance(np.zeros(2, int), np.zeros(0, int), 2, 0))
    assert hamming_ranking.average_precision(tensor(a), tensor(b[:0]), nothing, 5).tolist() == [0.0, 0.0]
    every, relevant = hamming.counts(tensor(a), tensor(b[:0]), nothing)
    assert every.shape == relevant.shape == (2, 17)
    assert not every.any()
    assert not relevant.any()


def test_no_thread_holds_a_copy_of_what_is_counted() -> None:
    for hip, threads in ((False, 32), (True, 64)):
        assert hamming_ranking.RANK.rows == hamming_ranking.RANK.warps(hip) * threads
        assert hamming.COUNT.rows % (hamming.COUNT.num_warps * threads) == 0


def test_codes_too_long_to_count_are_refused() -> None:
    long = torch.zeros((1, hamming.MOST_BITS // 8 + 1), dtype=torch.uint8)
    with pytest.raises(ValueError, match="queries: expected codes of at most 2040 bits, got 2048"):
        hamming_search.search(long, long, 1)
    assert hamming.distance(long, ~long).tolist() == [[2048]]
