"""Mean average precision over codes: each rule for ties against its definition, written out."""

from __future__ import annotations

import itertools
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom
from sklearn.metrics import average_precision_score

from minerlib import hamming_distance, hamming_map, pack_bits
from minerlib.average_precision import TIES, expected_from_counts
from minerlib.benchmarks.codes import script_map

from .conftest import FAST_BACKENDS


def codes(rng: np.random.Generator, rows: int, bits: int) -> np.ndarray:
    return pack_bits(rng.random((rows, bits)) < 0.5)


def average_precision(hits: list[bool] | np.ndarray) -> Fraction:
    """Exactly, of a ranking that is already cut."""
    found, total = 0, Fraction(0)
    for rank, hit in enumerate(hits, start=1):
        if hit:
            found += 1
            total += Fraction(found, rank)
    return total / found if found else Fraction(0)


def relevant(query_label: np.ndarray, database_labels: np.ndarray) -> np.ndarray:
    same = np.asarray(query_label) == database_labels
    return same if database_labels.ndim == 1 else (query_label & database_labels).any(axis=1)


def by_index(queries, query_labels, database, database_labels, k):
    """Each query's average precision, rows ranked by (distance, index)."""
    out = []
    for query, label in zip(queries, query_labels, strict=True):
        distances = np.unpackbits(query ^ database, axis=1).sum(axis=1)
        order = sorted(range(len(database)), key=lambda j: (distances[j], j))
        hits = relevant(label, database_labels)[order]
        out.append(float(average_precision(hits[:k])))
    return out


@pytest.fixture(params=["single", "multi"])
def work(request: pytest.FixtureRequest):
    """Codes of few bits, so that most rows are tied; one query without any relevant row."""
    rng = np.random.default_rng(7)
    queries, database = codes(rng, 19, 11), codes(rng, 83, 11)
    if request.param == "multi":
        query_labels, database_labels = rng.random((19, 70)) < 0.03, rng.random((83, 70)) < 0.03
        query_labels[4] = False
    else:
        query_labels, database_labels = rng.integers(-3, 4, 19), rng.integers(-3, 4, 83)
        query_labels[4] = 1 << 40
    return queries, query_labels, database, database_labels


# ------------------------------------------------------------------ ties by index


@pytest.mark.parametrize("k", [None, 1, 2, 40, 82, 83])
def test_ties_by_index_follow_the_definition(work, k, backend) -> None:
    expected = np.mean(by_index(*work, k))
    assert hamming_map(*work, k=k, backend=backend.name) == pytest.approx(expected, abs=1e-14)


def test_a_case_by_hand() -> None:
    queries, database = np.array([[0]], np.uint8), np.array([[3], [1], [2], [0], [4]], np.uint8)
    labels = np.array([1, 1, 0, 0, 1])  # ranked 3 (0), then 1 2 4 (1 bit), then 0 (2 bits): 0 1 0 1 1
    arguments = (queries, np.array([1]), database, labels)
    at = {"backend": "reference"}
    assert hamming_map(*arguments, **at) == pytest.approx((1 / 2 + 2 / 4 + 3 / 5) / 3)
    assert hamming_map(*arguments, k=3, **at) == pytest.approx(1 / 2)
    assert hamming_map(*arguments, k=1, **at) == 0.0
    # the tied three hold 1 1 0 in any order: 1/2 + 2/3, 1/2 + 2/4 or 1/3 + 2/4
    tied = (1 / 2 + 2 / 3 + 1 / 2 + 2 / 4 + 1 / 3 + 2 / 4) / 3
    assert hamming_map(*arguments, ties="expected", **at) == pytest.approx((tied + 3 / 5) / 3)
    # the first two of them: 1 1, 1 0 or 0 1
    cut = ((1 / 2 + 2 / 3) / 2 + 1 / 2 + 1 / 3) / 3
    assert hamming_map(*arguments, k=3, ties="expected", **at) == pytest.approx(cut)


def test_where_nothing_is_tied_it_is_what_scikit_learn_computes(backend) -> None:
    rng = np.random.default_rng(0)
    queries, database = codes(rng, 400, 1024), codes(rng, 14, 1024)
    distances = hamming_distance(queries, database, backend="reference")
    distinct = [len(set(row)) == len(database) for row in distances.tolist()]
    queries, distances = queries[distinct], distances[distinct]
    assert len(queries) > 20
    labels, database_labels = rng.integers(0, 3, len(queries)), np.arange(14) % 3
    judged = [
        average_precision_score(database_labels == label, -row)
        for label, row in zip(labels, distances, strict=True)
    ]
    for ties in ("index", "expected", "script"):
        k = 14 if ties == "script" else None  # without a cut the script drops the last row
        found = hamming_map(queries, labels, database, database_labels, k=k, ties=ties, backend=backend.name)
        assert found == pytest.approx(np.mean(judged), abs=1e-12)


# ------------------------------------------------------------------ the expectation


def orders(every: list[int], hits: list[int]):
    """Every way in which the relevant rows of each group can lie, all equally likely."""
    groups = [
        [[place in chosen for place in range(n)] for chosen in itertools.combinations(range(n), r)]
        for n, r in zip(every, hits, strict=True)
    ]
    for choice in itertools.product(*groups):
        yield [hit for group in choice for hit in group]


def test_the_expectation_is_the_mean_over_all_orders_at_every_cut() -> None:
    rng = np.random.default_rng(1)
    cases = [([n], [r]) for n in range(1, 7) for r in range(n + 1)]
    for _ in range(150):
        every = rng.integers(0, 5, rng.integers(2, 4))
        cases.append((every.tolist(), [int(rng.integers(0, n + 1)) for n in every]))
    compared = 0
    for every, hits in cases:
        listed = list(orders(every, hits))
        for k in (*range(1, sum(every) + 1), None):
            exact = sum((average_precision(order[:k]) for order in listed), Fraction(0)) / len(listed)
            found = expected_from_counts(np.array([every]), np.array([hits]), k)
            assert found == pytest.approx([float(exact)], abs=1e-14), (every, hits, k)
            compared += 1
    assert compared > 900


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("kept", [1, 3, 2000, 39_999])
def test_a_cut_through_a_large_group_sums_the_hypergeometric_distribution(share: float, kept: int) -> None:
    n, before, hits_before = 40_000, 5000, 400
    r = round(share * n)
    c = np.arange(0, min(r, kept) + 1)
    weights = hypergeom(n, r, kept).pmf(c)
    ranks = before + np.arange(1, kept + 1)
    # given c: the place i of the kept ones is relevant with c/m, after (i-1)(c-1)/(m-1) others
    inverse, ordinal = np.sum(1 / ranks), np.sum(np.arange(kept) / ranks)
    sums = c / kept * ((hits_before + 1) * inverse + (c - 1) / max(kept - 1, 1) * ordinal)
    first = hits_before / before * ((hits_before - 1) / (before - 1) * before)
    first += (
        hits_before / before * (1 - (hits_before - 1) / (before - 1)) * np.sum(1 / np.arange(1, before + 1))
    )
    exact = np.sum(weights * (first + sums) / (hits_before + c))
    found = expected_from_counts(np.array([[before, n, 7]]), np.array([[hits_before, r, 7]]), before + kept)
    assert found == pytest.approx([exact], rel=1e-9)


def test_cuts_of_many_queries_at_once_equal_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    every = rng.integers(0, 200, (300, 9))
    hits = rng.integers(0, every + 1)
    together = expected_from_counts(every, hits, 500)
    alone = [expected_from_counts(every[[i]], hits[[i]], 500)[0] for i in range(300)]
    np.testing.assert_allclose(together, alone, rtol=1e-13)
    monkeypatch.setattr("minerlib.average_precision._WEIGHTS", 1000)
    np.testing.assert_array_equal(expected_from_counts(every, hits, 500), together)


@pytest.mark.parametrize("k", [None, 1, 30, 82])
def test_the_expectation_from_codes(work, k, backend) -> None:
    queries, query_labels, database, database_labels = work
    distances = hamming_distance(queries, database, backend="reference")
    found = hamming_map(*work, k=k, ties="expected", backend=backend.name)
    every, hits = np.zeros((2, len(queries), 17), np.int64)
    for query, label in enumerate(query_labels):
        every[query] = np.bincount(distances[query], minlength=17)
        hits[query] = np.bincount(distances[query, relevant(label, database_labels)], minlength=17)
    assert found == expected_from_counts(every, hits, k).mean()
    order = np.random.default_rng(5).permutation(len(database))
    shuffled = (queries, query_labels, database[order], database_labels[order])
    assert hamming_map(*shuffled, k=k, ties="expected", backend=backend.name) == found
    # many orders by chance come close
    tried = []
    for seed in range(100):
        order = np.random.default_rng(seed).permutation(len(database))
        tried.append(np.mean(by_index(queries, query_labels, database[order], database_labels[order], k)))
    assert abs(np.mean(tried) - found) < 5 * np.std(tried) / np.sqrt(len(tried))


# ------------------------------------------------------------------ the script


@pytest.mark.parametrize("bits", [12, 48, 65])
@pytest.mark.parametrize("k", [None, 1, 100, 699, 700])
def test_the_script_is_reproduced_to_the_bit(bits: int, k: int | None, backend) -> None:
    rng = np.random.default_rng(bits)
    query_signs = np.sign(rng.normal(size=(25, bits))).astype(np.float32)
    database_signs = np.sign(rng.normal(size=(700, bits))).astype(np.float32)
    topk = -1 if k is None else k
    classes, database_classes = rng.integers(0, 5, 25), rng.integers(0, 4, 700)  # one that the database lacks
    targets = np.eye(5, dtype=np.float32)
    judged = script_map(query_signs, targets[classes], database_signs, targets[database_classes], topk)
    packed = pack_bits(query_signs), pack_bits(database_signs)
    options = {"k": k, "ties": "script", "backend": backend.name}
    assert hamming_map(packed[0], classes, packed[1], database_classes, **options) == judged
    tags, database_tags = rng.random((25, 30)) < 0.05, rng.random((700, 30)) < 0.05
    judged = script_map(
        query_signs, tags.astype(np.float32), database_signs, database_tags.astype(np.float32), topk
    )
    assert hamming_map(packed[0], tags, packed[1], database_tags, **options) == judged


def test_the_script_drops_the_last_row_without_a_cut() -> None:
    queries, database = np.array([[0]], np.uint8), np.array([[0], [1]], np.uint8)
    arguments = (queries, np.array([1]), database, np.array([0, 1]))
    at = {"ties": "script", "backend": "reference"}
    assert (hamming_map(*arguments, **at), hamming_map(*arguments, k=2, **at)) == (0.0, 0.5)


# ------------------------------------------------------------------ chunks, memory, kinds of arrays


@pytest.mark.parametrize("ties", TIES)
def test_chunks_change_nothing(work, ties: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, query_labels, database, database_labels = work
    many = (np.tile(queries, (30, 1)), np.concatenate([query_labels] * 30), database, database_labels)
    whole = hamming_map(*many, k=33, ties=ties)
    for name in ("_COUNTS", "_PAIRS", "_DISTANCES"):
        monkeypatch.setattr(f"minerlib.average_precision.{name}", 300)
    monkeypatch.setattr("minerlib.backends.native.PAIRS_RANKED", 300)
    assert hamming_map(*many, k=33, ties=ties) == whole


@pytest.mark.parametrize("backend", FAST_BACKENDS[-1:], indirect=True)
@pytest.mark.parametrize(("ties", "queries"), [("index", 4000), ("expected", 4000), ("script", 200)])
def test_memory_stays_flat(backend, ties: str, queries: int) -> None:
    """What NumPy holds; `make bench` measures all memory."""
    rng = np.random.default_rng(0)
    few = codes(rng, queries, 48), rng.integers(0, 10, queries)
    many = codes(rng, 50_000, 48), rng.integers(0, 10, 50_000)
    hamming_map(few[0][:8], few[1][:8], *many, ties=ties, backend=backend.name)  # whatever is made once
    tracemalloc.start()
    try:
        hamming_map(*few, *many, ties=ties, k=20_000, backend=backend.name)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50e6


def test_tensors_and_labels_of_other_types_give_the_same_numbers() -> None:
    rng = np.random.default_rng(2)
    arrays = (codes(rng, 9, 16), rng.integers(0, 3, 9), codes(rng, 30, 16), rng.integers(0, 3, 30))
    for ties in TIES:
        found = hamming_map(*arrays, ties=ties, backend="reference")
        assert isinstance(found, float)
        tensors = [torch.from_numpy(array) for array in arrays]
        assert hamming_map(*tensors, ties=ties, backend="reference") == found
        other = (arrays[0], arrays[1].astype(np.uint8), arrays[2], arrays[3].astype(np.uint64))
        assert hamming_map(*other, ties=ties, backend="reference") == found


# ------------------------------------------------------------------ mistakes

Q, QL, D, DL = np.zeros((3, 2), np.uint8), np.arange(3), np.zeros((5, 2), np.uint8), np.arange(5)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "named"),
    [
        ((Q, QL, D, DL), {"ties": "random"}, ValueError, "ties: expected one of index, expected, script"),
        ((Q, QL, D, DL), {"ties": None}, TypeError, "ties:"),
        ((Q, QL, D, DL), {"k": 0}, ValueError, "k: expected an integer from 1 to 5"),
        ((Q, QL, D, DL), {"k": 6}, ValueError, "k:"),
        ((Q, QL, D, DL), {"k": -1, "ties": "script"}, ValueError, "k:"),
        ((Q, QL, D, DL), {"k": 2.0}, TypeError, "k:"),
        ((Q, QL, D, DL), {"backend": "abacus"}, ValueError, "backend:"),
        ((Q[0], QL, D, DL), {}, ValueError, "query_codes:"),
        ((Q.astype(np.int64), QL, D, DL), {}, TypeError, "query_codes:"),
        ((Q[:0], QL[:0], D, DL), {}, ValueError, "query_codes: expected at least one row"),
        ((Q, QL, D[:0], DL[:0]), {}, ValueError, "database_codes: expected at least one row"),
        ((Q, QL, D[:, :1], DL), {}, ValueError, "database_codes: expected 2 bytes"),
        ((Q, QL[:2], D, DL), {}, ValueError, "query_labels:"),
        ((Q, QL, D, DL[:4]), {}, ValueError, "database_labels:"),
        ((Q, QL, D, DL.astype(float)), {}, TypeError, "database_labels:"),
        ((Q, QL, D, np.ones((5, 2), bool)), {}, ValueError, "database_labels:"),
        ((Q, QL, D, None), {}, TypeError, "database_labels:"),
    ],
)
def test_errors_name_the_argument(arguments, options, error, named) -> None:
    with pytest.raises(error, match=named):
        hamming_map(*arguments, **options)
