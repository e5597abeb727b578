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
from tests.conftest import BACKENDS, Running
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
        for name in BACKENDS
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
    for strategy in EXACT:
        found = minerlib.mine(**arguments, strategy=strategy, backend=backend.name, **e.options)
        assert backend.families() == [FAMILY[strategy]]
        assert_same_triplets(found, e.triplets[strategy], strategy)
    _check_counts(case, e, arguments, backend)
    _check_distances(case, e, backend)
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
