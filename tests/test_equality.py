"""Every backend against the reference, by exact equality: the same triplets, neighbours and bits.

A case fixes the data and the options; what is expected comes from the functions of reference.py, called
directly on float64 rows and on class membership worked out here, once for all backends.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import minerlib
from minerlib import reference
from tests import datasets
from tests.conftest import BACKENDS, EMULATED, FAST_BACKENDS, Running
from tests.datasets import Case

EXACT = tuple(name for name in minerlib.strategies.STRATEGIES if name != "distance-weighted")
FAMILY = {
    **dict.fromkeys(("epen", "ephn", "hpen", "hphn", "batch-hard", "assorted", "easy-positive"), "extremes"),
    **dict.fromkeys(("hard", "semi-hard", "random-hard", "semi-hard-nearest"), "window"),
    "all": "every_triplet",
    "distance-weighted": "sample",
}
SEED = 0x9E3779B97F4A7C15

Columns = tuple[np.ndarray, np.ndarray, np.ndarray]

CASES = [*datasets.covering_cases(), *datasets.crossed_cases()]


@dataclass(frozen=True)
class Expected:
    """A case's data and what the reference makes of it."""

    x: np.ndarray  # [N, D] float64
    y: np.ndarray  # [M, D] float64
    x_labels: np.ndarray
    y_labels: np.ndarray
    same: np.ndarray  # [N, M] bool
    distances: np.ndarray  # [N, M]
    options: dict[str, Any]  # of `reference.mine`
    triplets: dict[str, Columns]  # strategy -> expected
    counts: tuple[int, int, int, int]
    neighbours: tuple[np.ndarray, np.ndarray]  # all M of them


@functools.lru_cache(maxsize=2)  # the backends of a case follow each other
def expected(case: Case) -> Expected:
    n, m = case.rows, case.columns or case.rows
    if case.columns:
        both = datasets.rows(case.data, n + m, case.dimensions, case.dtype)
        both_labels = datasets.labels(case.labels, n + m)
        x, y, x_labels, y_labels = both[:n], both[n:], both_labels[:n], both_labels[n:]
    else:
        x = y = datasets.rows(case.data, n, case.dimensions, case.dtype)
        x_labels = y_labels = datasets.labels(case.labels, n)
    same, own = datasets.same_class(x_labels, y_labels), not case.columns
    distances = reference.pairwise_distance(x, y, case.metric)
    options = {
        "margin": _margin(case.margin, distances, same, own), "metric": case.metric,
        "pairs": case.pairs, "fallback": case.fallback, "seed": SEED,
    }  # fmt: skip
    return Expected(
        x, y, x_labels, y_labels, same, distances, options,
        triplets={name: reference.mine(x, y, same, own, name, **options) for name in EXACT},
        counts=reference.count_triplets(
            x, y, same, own, margin=options["margin"], metric=case.metric, pairs=case.pairs
        ),
        neighbours=reference.nearest(x, y, m, case.metric),
    )  # fmt: skip


def _margin(kind: str, distances: np.ndarray, same: np.ndarray, own: bool) -> float:
    """Margins where rules change: none, the default, a middling one, one met exactly, one that takes all."""
    if kind == "zero":
        return 0.0
    if kind == "usual":
        return 0.2
    if kind == "median":
        return float(np.median(np.abs(distances - np.median(distances))))
    if kind == "wide":
        return 4.0 * float(distances.max())
    positive = same & ~np.eye(*same.shape, dtype=bool) if own else same
    for a in np.flatnonzero(positive.any(axis=1) & ~same.all(axis=1)):
        difference = np.median(distances[a][~same[a]]) - distances[a][positive[a]].min()
        if difference > 0:
            return float(difference)
    return float(distances.max())


def inputs_of(case: Case, e: Expected) -> dict[str, Any]:
    """The case as arguments that `mine` and `count_triplets` share."""
    arguments = {"embeddings": datasets.as_dtype(e.x, case.dtype), "labels": e.x_labels}
    if case.columns:
        arguments["reference"] = datasets.as_dtype(e.y, case.dtype)
        arguments["reference_labels"] = e.y_labels
    return arguments


def assert_same_triplets(found: Any, wanted: Columns, what: str) -> None:
    columns = [np.asarray(column) for column in found[:3]]
    for column in columns:
        assert column.dtype == np.int64, what
        assert column.ndim == 1, what
    rows, wanted_rows = np.stack(columns, axis=1), np.stack(wanted, axis=1)
    if rows.shape == wanted_rows.shape and (rows == wanted_rows).all():
        return
    shared = min(len(rows), len(wanted_rows))
    differs = np.flatnonzero((rows[:shared] != wanted_rows[:shared]).any(axis=1))
    first = int(differs[0]) if len(differs) else shared
    got, want = (part[first : first + 3].tolist() for part in (rows, wanted_rows))
    pytest.fail(
        f"{what}: {len(rows)} triplets, expected {len(wanted_rows)}; "
        f"{len(differs)} of the first {shared} differ, the first at {first}: {got} != {want}"
    )


def assert_same_bits(found: Any, wanted: np.ndarray, what: str) -> None:
    found = np.asarray(found)
    assert found.dtype == np.float64, what
    assert found.shape == wanted.shape, what
    differs = np.argwhere(found.view(np.uint64) != wanted.view(np.uint64))
    if len(differs):
        at = tuple(differs[0])
        pytest.fail(
            f"{what}: {len(differs)} of {wanted.size} differ, first at {at}: {found[at]!r} != {wanted[at]!r}"
        )


# ------------------------------------------------------------------ the covering cases


def _few_for_the_judge(cases: list[Case]) -> list[tuple[Case, str]]:
    """All for the fast backends; an eighth for the reference, where only what lies around it can go wrong."""
    return [
        (case, name)
        for number, case in enumerate(cases)
        for name in (*EMULATED, *BACKENDS)
        if name != "reference" or number % 8 == 0
    ]


@pytest.mark.parametrize(
    ("case", "backend"),
    _few_for_the_judge(CASES),
    indirect=["backend"],
    ids=lambda value: str(value).replace("native:", ""),
)
def test_case(case: Case, backend: Running) -> None:
    e = expected(case)
    minerlib.set_num_threads(case.threads)
    arguments = inputs_of(case, e)
    emulated = f"native:{backend.instruction_set}" in EMULATED
    for strategy in EXACT:
        if emulated and FAMILY[strategy] not in {"extremes", "window"}:
            continue
        found = minerlib.mine(**arguments, strategy=strategy, backend=backend.name, **e.options)
        assert backend.families() == [FAMILY[strategy]]
        assert_same_triplets(found, e.triplets[strategy], strategy)
    _check_distances(case, e, backend)
    if not emulated:
        _check_counts(case, e, arguments, backend)
        _check_distance_weighted(case, e, arguments, backend)


def _check_counts(case: Case, e: Expected, arguments: dict[str, Any], backend: Running) -> None:
    options = {name: e.options[name] for name in ("margin", "metric", "pairs")}
    found = minerlib.count_triplets(**arguments, **options, backend=backend.name)
    assert backend.families() == ["counts"]
    assert tuple(found) == e.counts
    assert all(type(count) is int for count in found)


def _check_distances(case: Case, e: Expected, backend: Running) -> None:
    queries, database = datasets.as_dtype(e.x, case.dtype), datasets.as_dtype(e.y, case.dtype)
    found = minerlib.pairwise_distance(queries, database, metric=case.metric, backend=backend.name)
    assert backend.families() == ["pairwise"]
    assert_same_bits(found, e.distances, "pairwise_distance")
    distances, indices = e.neighbours
    for k in sorted({1, 2, 10, len(e.y) - 1, len(e.y)} & set(range(1, len(e.y) + 1))):
        found = minerlib.nearest(queries, database, k, metric=case.metric, backend=backend.name)
        assert backend.families() == ["topk"]
        assert np.asarray(found.indices).dtype == np.int64
        assert np.array_equal(np.asarray(found.indices), indices[:, :k]), f"nearest {k}"
        assert_same_bits(found.distances, np.ascontiguousarray(distances[:, :k]), f"nearest {k}")


def _check_distance_weighted(case: Case, e: Expected, arguments: dict[str, Any], backend: Running) -> None:
    """Which pairs draw, and from which rows, is exact; which row each one draws is the backend's own."""
    found = minerlib.mine(**arguments, strategy="distance-weighted", backend=backend.name, **e.options)
    assert backend.families() == ["sample"]
    eligible = _weighted_outcomes(case, e)
    rows = list(zip(*(np.asarray(column).tolist() for column in found), strict=True))
    assert [(a, p) for a, p, _ in rows] == list(eligible)
    for a, p, n in rows:
        assert n in eligible[a, p], f"anchor {a}, positive {p} drew {n}"
    again = minerlib.mine(**arguments, strategy="distance-weighted", backend=backend.name, **e.options)
    backend.families()
    assert_same_triplets(again, tuple(np.asarray(column) for column in found), "drawn again")


def _weighted_outcomes(case: Case, e: Expected) -> dict[tuple[int, int], set[int]]:
    """For every pair that yields a triplet, the rows it may hold."""
    weights = reference.DistanceWeights(e.x, e.y)
    outcomes = {}
    for a in range(len(e.x)):
        positives, negatives = reference._candidates(e.same[a], a, not case.columns)
        if len(negatives) == 0:
            continue
        rows = set(negatives[np.isfinite(weights.log_weights(a, negatives))].tolist())
        if not rows and case.fallback != "drop":
            selection = reference.selection_values(e.x[a : a + 1], e.y, case.metric)[0]
            rows = {reference._fall_back(case.fallback, selection, negatives)}
        for p in positives.tolist():
            if rows and (case.pairs == "ordered" or a < p):
                outcomes[a, p] = rows
    return outcomes


# ------------------------------------------------------------------ several tiles


LARGE = [
    Case("clusters", "eights", "float32", "sqeuclidean", 700, 64, 0, "ordered", "drop", "usual", 2),
    Case("off-centre", "eights", "float32", "euclidean", 700, 64, 0, "combinations", "hardest", "median", 5),
    Case("grid", "eights", "float16", "sqeuclidean", 600, 5, 0, "ordered", "farthest", "tie", 2),
    Case("gaussian", "multi-many", "float32", "cosine", 500, 33, 700, "ordered", "hardest", "median", 3),
    Case(
        "gaussian", "few", "float32", "sqeuclidean", 256, 512, 0, "combinations", "drop", "usual", 2
    ),  # JTANet
]


#: The reference has no tiles, and would take minutes.
on_fast_backends = pytest.mark.parametrize("backend", [*EMULATED, *FAST_BACKENDS], indirect=True)


@on_fast_backends
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_several_tiles(case: Case, backend: Running) -> None:
    test_case(case, backend)


#: name -> kind of data, rows, dimensions: many columns of tiles, and many dimensions to a row of them.
WIDE = {"3000 rows": ("clusters", 3000, 64), "1031 dimensions": ("last-bit", 400, 1031)}


@functools.lru_cache(maxsize=1)
def _wide(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    data, rows, dimensions = WIDE[name]
    x = datasets.rows(data, rows, dimensions, "float32")
    return x, datasets.labels("eights", rows), reference.pairwise_distance(x, x, "sqeuclidean")


@functools.lru_cache(maxsize=4)
def _mined_by_rows(name: str, strategy: str) -> tuple[float, Columns]:
    """The definitions with whole rows at a time, where the per-pair reference would take minutes."""
    _, labels, d = _wide(name)
    different = labels[:, None] != labels[None, :]
    same = ~different & ~np.eye(len(d), dtype=bool)
    margin = 0.2 if name == "3000 rows" else float(np.median(np.abs(d - np.median(d))))
    if strategy == "batch-hard":
        kept = np.flatnonzero(same.any(axis=1))
        farthest = np.argmax(np.where(same, d, -np.inf), axis=1)
        nearest = np.argmin(np.where(different, d, np.inf), axis=1)
        return margin, (kept, farthest[kept], nearest[kept])
    anchors, positives = np.nonzero(same)
    negatives = np.full(len(anchors), -1)
    for pair, (a, p) in enumerate(zip(anchors, positives, strict=True)):
        s = (d[a, p] - d[a]) + margin
        eligible = np.flatnonzero(different[a] & (s > 0) & ((s < margin) | (strategy == "random-hard")))
        if len(eligible):
            negatives[pair] = eligible[minerlib.random.choose(SEED, int(a), int(p), len(eligible))]
    kept = negatives >= 0
    return margin, (anchors[kept], positives[kept], negatives[kept])


@on_fast_backends
@pytest.mark.parametrize("strategy", ["batch-hard", "semi-hard", "random-hard"])
@pytest.mark.parametrize("name", WIDE)
def test_many_rows_and_many_dimensions(name: str, strategy: str, backend: Running) -> None:
    x, labels, _ = _wide(name)
    margin, wanted = _mined_by_rows(name, strategy)
    assert len(wanted[0]) >= 390
    found = minerlib.mine(
        x.astype(np.float32), labels, strategy, margin=margin, seed=SEED, backend=backend.name
    )
    assert backend.families() == [FAMILY[strategy]]
    assert_same_triplets(found, wanted, strategy)


@on_fast_backends
@pytest.mark.parametrize("k", [1, 10, 100, 1500])
def test_search_over_several_tiles(k: int, backend: Running) -> None:
    x, _, d = _wide("3000 rows")
    queries, database = slice(0, 2000), slice(900, 2900)
    found = minerlib.nearest(
        x[queries].astype(np.float32), x[database].astype(np.float32), k, backend=backend.name
    )
    order = np.argsort(d[queries, database], axis=1, kind="stable")[:, :k]
    assert np.array_equal(found.indices, order)
    assert_same_bits(found.distances, np.take_along_axis(d[queries, database], order, axis=1), f"nearest {k}")


def test_number_of_threads_changes_nothing(backend: Running) -> None:
    rows = 60 if backend.name == "reference" else 900
    x = datasets.rows("off-centre", rows, 33, "float32").astype(np.float32)
    labels = datasets.labels("eights", rows)
    answers = []
    for threads in (1, 2, 3, 5, 16):
        minerlib.set_num_threads(threads)
        mined = [
            np.stack(minerlib.mine(x, labels, strategy, margin=3.0, backend=backend.name))
            for strategy in (*EXACT, "distance-weighted")
        ]
        counts = np.array(minerlib.count_triplets(x, labels, margin=3.0, backend=backend.name))
        neighbours = minerlib.nearest(x, x, 7, backend=backend.name)
        answers.append([*mined, counts, neighbours.indices, neighbours.distances])
    for other in answers[1:]:
        for first, again in zip(answers[0], other, strict=True):
            assert np.array_equal(first, again)


# ------------------------------------------------------------------ options


@pytest.mark.parametrize("dtype", datasets.DTYPES)
@pytest.mark.parametrize("metric", datasets.METRICS)
def test_batches_of_distances(metric: str, dtype: str, backend: Running) -> None:
    x = datasets.rows("zeros", 3 * 17, 33, dtype).reshape(3, 17, 33)
    y = datasets.rows("zeros", 3 * 9, 33, dtype, seed=1).reshape(3, 9, 33)
    found = minerlib.pairwise_distance(
        datasets.as_dtype(x, dtype), datasets.as_dtype(y, dtype), metric=metric, backend=backend.name
    )
    wanted = np.stack([reference.pairwise_distance(a, b, metric) for a, b in zip(x, y, strict=True)])
    assert_same_bits(found, wanted, "x and y")
    found = minerlib.pairwise_distance(datasets.as_dtype(x, dtype), metric=metric, backend=backend.name)
    assert_same_bits(found, np.stack([reference.pairwise_distance(a, a, metric) for a in x]), "x alone")


@pytest.mark.parametrize("pairs", ["ordered", "combinations"])
@pytest.mark.parametrize("fallback", datasets.FALLBACKS)
def test_padded_triplets_hold_the_compact_ones(fallback: str, pairs: str, backend: Running) -> None:
    x = datasets.rows("gaussian", 33, 5, "float32").astype(np.float32)
    labels = datasets.labels("skewed", 33)
    same = datasets.same_class(labels, labels) & ~np.eye(33, dtype=bool)
    anchors, positives = np.nonzero(np.triu(same) if pairs == "combinations" else same)
    for strategy in (*EXACT, "distance-weighted"):
        if strategy == "all":
            continue
        options = {"margin": 1.0, "fallback": fallback, "pairs": pairs, "backend": backend.name}
        compact = minerlib.mine(x, labels, strategy, **options)
        padded = minerlib.mine(x, labels, strategy, compact=False, **options)
        valid = padded.valid
        assert valid.dtype == bool
        assert_same_triplets([column[valid] for column in padded[:3]], compact, strategy)
        if FAMILY[strategy] == "extremes":
            assert np.array_equal(padded.anchors, np.arange(33))
        else:
            assert np.array_equal(padded.anchors, anchors)
            assert np.array_equal(padded.positives[valid], positives[valid])
        for column in (padded.positives, padded.negatives):  # safe to gather with
            assert column.dtype == np.int64
            assert np.array_equal(column[~valid], padded.anchors[~valid])


@pytest.mark.parametrize("dtype", datasets.DTYPES)
@pytest.mark.parametrize("metric", datasets.METRICS)
def test_inexact_answers_are_legal(metric: str, dtype: str, backend: Running) -> None:
    values = datasets.rows("clusters", 65, 17, dtype)
    x, labels = datasets.as_dtype(values, dtype), datasets.labels("eights", 65)
    same = datasets.same_class(labels, labels)
    options = {"margin": 0.5, "metric": metric, "backend": backend.name}
    for strategy in minerlib.strategies.STRATEGIES:
        exact = minerlib.mine(x, labels, strategy, **options)
        a, p, n = (np.asarray(part) for part in minerlib.mine(x, labels, strategy, exact=False, **options))
        assert same[a, p].all(), strategy
        assert (a != p).all(), strategy
        assert not same[a, n].any(), strategy
        order = np.lexsort((n, p, a))
        assert np.array_equal(order, np.arange(len(a))), strategy
        if FAMILY[strategy] == "extremes":  # which anchors yield one does not depend on distances
            assert np.array_equal(a, np.asarray(exact.anchors)), strategy
    counts = minerlib.count_triplets(x, labels, exact=False, **options)
    assert counts.total == minerlib.count_triplets(x, labels, **options).total
    assert counts.total == counts.hard + counts.semi_hard + counts.easy
    found = minerlib.nearest(x, x, 5, metric=metric, exact=False, backend=backend.name)
    indices, distances = np.asarray(found.indices), np.asarray(found.distances)
    assert all(len(set(row)) == 5 and min(row) >= 0 and max(row) < 65 for row in indices.tolist())
    assert (np.diff(distances, axis=1) >= 0).all()


def test_inexact_answers_are_exact_on_small_integers(backend: Running) -> None:
    """Every product and sum is exact in any of the formats a fast path may use, and no two distances tie."""
    x = np.array([0, 1, 3, 7, 15, 31, 63, 127, 129, 200], dtype=np.float32)[:, None]
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1, 0, 1])
    for strategy in EXACT:
        exact, fast = (
            minerlib.mine(x, labels, strategy, margin=100.0, exact=value, backend=backend.name)
            for value in (True, False)
        )
        assert_same_triplets(fast, exact, strategy)
    counts = [
        minerlib.count_triplets(x, labels, margin=100.0, exact=value, backend=backend.name)
        for value in (True, False)
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("metric", datasets.METRICS)
def test_uninitialised_memory_never_shows(metric: str, backend: Running, poison: Any) -> None:
    x = datasets.rows("zeros", 33, 9, "float32").astype(np.float32)
    labels = datasets.labels("skewed", 33)

    def everything() -> list[np.ndarray]:
        mined = [
            np.stack(minerlib.mine(x, labels, strategy, metric=metric, compact=compact, backend=backend.name))
            for strategy in (*EXACT, "distance-weighted")
            for compact in ((True,) if strategy == "all" else (True, False))
        ]
        counts = minerlib.count_triplets(x, labels, metric=metric, backend=backend.name)
        neighbours = minerlib.nearest(x, x, 7, metric=metric, backend=backend.name)
        distances = minerlib.pairwise_distance(x, metric=metric, backend=backend.name)
        return [*mined, np.array(counts), *neighbours, distances]

    clean = everything()
    poison()
    for first, again in zip(clean, everything(), strict=True):
        assert np.array_equal(first, again)
