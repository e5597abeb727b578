"""Packed codes for the tests of kernels on a GPU's tensors, and what every such set of kernels must answer.

The kernels of one backend are passed as an object with `distance`, `search`, `range_search`, `counts` and
`average_precision`, which take tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from minerlib import inputs, reference
from minerlib.backends import reference as judge
from minerlib.inputs import Relevance

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


def relevances(queries: int, rows: int, own: bool) -> list[Relevance]:
    rng = np.random.default_rng([queries, rows, own])
    classes = rng.integers(0, 4, queries), rng.integers(0, 3, rows)
    labels = rng.random((queries, 70)) < 0.03, rng.random((rows, 70)) < 0.03
    return [inputs.relevance(x, None if own else y, queries, rows) for x, y in (classes, labels)]


def on_tensors(r: Relevance) -> Relevance:
    fields = (r.query_classes, r.database_classes, r.query_bits, r.database_bits)
    return Relevance(*(tensor(field) for field in fields), r.own)


def check_pairs(kernels: Any, a: np.ndarray, b: np.ndarray, ks: set[int]) -> None:
    """All distances, the nearest for every k, and all within the median distance."""
    x, y = tensor(a), tensor(b)
    distances = reference.hamming_distance(a, b)
    assert_equal((kernels.distance(x, y),), (distances,))
    for k in sorted(ks):
        assert_equal(kernels.search(x, y, k), reference.hamming_search(a, b, k))
    radius = int(np.median(distances))
    assert_equal(kernels.range_search(x, y, radius), reference.hamming_range(a, b, radius))


def check_ranges_of_nothing_and_of_everything(kernels: Any) -> None:
    a, b = codes("random", 3, 40, 5)
    for radius in (0, 40):
        wanted = reference.hamming_range(a, b, radius)
        assert_equal(kernels.range_search(tensor(a), tensor(b), radius), wanted)
    for few in (a, a[:0]):
        wanted = reference.hamming_range(few, b[:0], 3)
        assert_equal(kernels.range_search(tensor(few), tensor(b[:0]), 3), wanted)
    b = codes("random", 1, 40, 16)[1]
    without_strides = torch.zeros(1, dtype=torch.uint8).as_strided((0, 16), (0, 0))  # as NumPy has them
    for none in (tensor(b[:0]), without_strides):
        assert_equal(kernels.search(none, tensor(b), 2), reference.hamming_search(b[:0], b, 2))
        assert_equal(kernels.range_search(none, tensor(b), 2), reference.hamming_range(b[:0], b, 2))
        assert_equal(kernels.range_search(tensor(b), none, 2), reference.hamming_range(b, b[:0], 2))
    assert kernels.distance(tensor(a), tensor(a[:0])).shape == (3, 0)


def check_rows_apart_and_codes_that_start_anywhere(kernels: Any) -> None:
    a, b = codes("random", 5, 60, 8)
    wide = torch.zeros((60, 17), dtype=torch.uint8)
    wide[:, 3:11] = tensor(b)
    shifted = torch.cat((torch.zeros(3, dtype=torch.uint8), tensor(a).reshape(-1)))[3:].view(5, 8)
    assert shifted.data_ptr() % 4
    assert_equal(kernels.search(shifted, wide[:, 3:11], 9), reference.hamming_search(a, b, 9))


def check_rankings(kernels: Any, a: np.ndarray, b: np.ndarray, r: Relevance, ks: set[int]) -> None:
    """Counts at every distance, and average precision of rankings cut at each k."""
    assert_equal(kernels.counts(tensor(a), tensor(b), on_tensors(r)), judge.hamming_counts(a, b, r))
    for k in sorted(ks):
        wanted = judge.hamming_average_precision(a, b, r, k)
        assert_equal((kernels.average_precision(tensor(a), tensor(b), on_tensors(r), k),), (wanted,))


def check_rankings_of_both_kinds(
    kernels: Any, kind: str, queries: int, rows: int, width: int, own: bool
) -> None:
    """By classes and by sets of labels; own: the queries are the rows."""
    a, b = codes(kind, queries, rows, width)
    if own:
        a = b = b[: queries + 1]
    for r in relevances(len(a), len(b), own):
        check_rankings(kernels, a, b, r, {len(b) // 3 + 1, len(b)})


def check_rankings_of_nothing(kernels: Any) -> None:
    a, b = codes("random", 2, 3, 2)
    nothing = on_tensors(inputs.relevance(np.zeros(2, int), np.zeros(0, int), 2, 0))
    assert kernels.average_precision(tensor(a), tensor(b[:0]), nothing, 5).tolist() == [0.0, 0.0]
    every, relevant = kernels.counts(tensor(a), tensor(b[:0]), nothing)
    assert every.shape == relevant.shape == (2, 17)
    assert not every.any()
    assert not relevant.any()
