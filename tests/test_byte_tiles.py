"""Rows rounded to bytes tell which values native kernels compute (csrc/cpu/byte_panels.h); no answer changes.

Sizes are the least at which bytes are used; the judges are kernels without them, and the reference.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import minerlib
from minerlib import inputs
from minerlib.backends import native
from minerlib.inputs import MultiLabels, Origin, Problem

if "avx2" not in native.instruction_sets():
    pytest.skip("bytes are used with AVX2 alone", allow_module_level=True)

Rows = tuple[np.ndarray, np.ndarray]
QUERIES, DATABASE, ROWS = 101, 4119, 2051  # whole tiles of none


@pytest.fixture(autouse=True)
def avx2():
    with native.use_instruction_set("avx2"):
        yield


def gaussian(rng: np.random.Generator) -> Rows:
    return rng.standard_normal((QUERIES, 40)), rng.standard_normal((DATABASE, 40))


def byte_ties(rng: np.random.Generator) -> Rows:
    """Every row is near to every other in bytes, and the order is in what those lose."""
    centre = rng.standard_normal(48)
    x = centre + 0.01 * rng.standard_normal((QUERIES + DATABASE, 48))
    x[0] = -3 * centre  # sets the step
    return x[1 : QUERIES + 1], np.concatenate([x[QUERIES + 1 :], x[:1]])


def duplicates(rng: np.random.Generator) -> Rows:
    x = rng.standard_normal((60, 33))
    return x[rng.integers(60, size=QUERIES)], x[rng.integers(60, size=DATABASE)]


def sorted_clusters(rng: np.random.Generator) -> Rows:
    """The first columns tell nothing of most queries: bytes leave much, and panels take over for a while."""
    labels = np.sort(rng.integers(20, size=DATABASE))
    centres = rng.standard_normal((20, 64))
    queries = centres[rng.integers(20, size=QUERIES)] + 0.1 * rng.standard_normal((QUERIES, 64))
    return queries, centres[labels] + 0.1 * rng.standard_normal((DATABASE, 64))


def heavy_norms(rng: np.random.Generator) -> Rows:
    x = rng.standard_normal((QUERIES + DATABASE, 31)) * np.exp(
        3 * rng.standard_normal((QUERIES + DATABASE, 1))
    )
    return x[:QUERIES], x[QUERIES:]


def huge(rng: np.random.Generator) -> Rows:
    queries, database = gaussian(rng)
    return 1e18 * queries, 1e18 * database


def opposite(rng: np.random.Generator) -> Rows:
    """As far apart as rows of their lengths can be, where sums of 16 bits end."""
    x = rng.choice([-1.0, 1.0], (QUERIES, 128))
    database = np.concatenate([-x, x])[rng.integers(2 * QUERIES, size=DATABASE)]
    database[::3, ::17] *= -1
    return x, database


def one_hot(rng: np.random.Generator) -> Rows:
    """Values too large for a byte at the common step."""
    x = np.zeros((QUERIES + DATABASE, 100))
    x[np.arange(len(x)), rng.integers(100, size=len(x))] = 1
    return x[:QUERIES], x[QUERIES:] + 0.001 * rng.standard_normal((DATABASE, 100))


def zeros(rng: np.random.Generator) -> Rows:
    queries, database = gaussian(rng)
    queries[::7] = 0
    database[::5] = 0
    return queries, database


KINDS = (gaussian, byte_ties, duplicates, sorted_clusters, heavy_norms, huge, opposite, one_hot, zeros)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("kind", KINDS)
def test_nearest(kind: Callable[[np.random.Generator], Rows], metric: str) -> None:
    queries, database = (each.astype(np.float32) for each in kind(np.random.default_rng(0)))
    for k in (1, 7, 40):
        found = minerlib.nearest(queries, database, k, metric=metric, backend="native")
        with native.use_instruction_set("generic"):
            expected = minerlib.nearest(queries, database, k, metric=metric, backend="native")
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_array_equal(found.distances, expected.distances)
        some = slice(None, None, 25)
        judged = minerlib.nearest(queries[some], database, k, metric=metric, backend="reference")
        np.testing.assert_array_equal(found.indices[some], judged.indices)


def test_nearest_of_wide_rows_and_many_dimensions() -> None:
    rng = np.random.default_rng(1)
    for dims, dtype in ((3, np.float64), (300, np.float32)):
        queries, database = (rng.standard_normal((n, dims)).astype(dtype) for n in (QUERIES, DATABASE))
        found = minerlib.nearest(queries, database, 5, backend="native")
        with native.use_instruction_set("generic"):
            expected = minerlib.nearest(queries, database, 5, backend="native")
        np.testing.assert_array_equal(found.indices, expected.indices)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("multi", [False, True])
def test_ranked_negatives(own: bool, multi: bool) -> None:
    """With labels, only negatives are ranked; class 0 holds most columns, so that some anchors have few."""
    rng = np.random.default_rng(2)
    database = rng.standard_normal((DATABASE, 24)).astype(np.float32)
    labels = np.maximum(rng.integers(-20, 4, DATABASE), 0)
    anchors = database if own else database[:QUERIES] + 0.1
    classes = labels if own else labels[:QUERIES]
    bits = [np.left_shift(1, each)[:, None].astype(np.uint64) for each in (classes, labels)]
    grouped = MultiLabels(*bits) if multi else inputs.group(classes, None if own else labels)
    problem = Problem(anchors, anchors if own else database, grouped, own, "sqeuclidean", Origin("numpy"))
    values, columns = native.topk(problem, 6, True)
    with native.use_instruction_set("generic"):
        expected_values, expected_columns = native.topk(problem, 6, True)
    np.testing.assert_array_equal(columns, expected_columns)
    np.testing.assert_array_equal(values, expected_values)
    assert (labels[columns] != classes[:, None]).all()


@pytest.mark.parametrize("classes", [3, 60, 257])
@pytest.mark.parametrize("kind", KINDS)
def test_extremes(kind: Callable[[np.random.Generator], Rows], classes: int) -> None:
    """Classes that fill tiles, that fill some, and that are weighed pair by pair."""
    rng = np.random.default_rng(3)
    x = np.concatenate(kind(rng))[-ROWS:].astype(np.float32)
    labels = rng.integers(classes, size=ROWS)
    labels[:2] = classes, classes + 1  # no positives
    metric = "cosine" if classes == 60 else "sqeuclidean"
    for strategy in ("batch-hard", "epen", "easy-positive"):
        found = minerlib.mine(x, labels, strategy, metric=metric, backend="native")
        with native.use_instruction_set("generic"):
            expected = minerlib.mine(x, labels, strategy, metric=metric, backend="native")
        for got, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean", "cosine"])
def test_windows_of_batches_too_large_for_a_square(metric: str) -> None:
    """Distances of positives recur as distances of negatives, at the very edges of windows."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((1100, 37)).astype(np.float32)
    x[550:] = x[:550]
    x[::9, :30] *= 0.01
    x[5::50] = 0
    labels = rng.integers(400, size=len(x))
    for strategy in ("semi-hard", "random-hard", "semi-hard-nearest", "hard"):
        with native.use_instruction_set("generic"):
            expected = minerlib.mine(x, labels, strategy, margin=0.3, metric=metric, backend="native")
        for name in (*native.instruction_sets(), *native.emulated_instruction_sets()):
            with native.use_instruction_set(name):
                found = minerlib.mine(x, labels, strategy, margin=0.3, metric=metric, backend="native")
            for got, wanted in zip(found, expected, strict=True):
                np.testing.assert_array_equal(got, wanted, err_msg=f"{name}, {strategy}")


@pytest.mark.parametrize("kind", KINDS)
def test_extremes_with_every_instruction_set(kind: Callable[[np.random.Generator], Rows]) -> None:
    """Rows enough for first bounds from a sample."""
    x = np.concatenate(kind(np.random.default_rng(6)))[-2100:].astype(np.float32)
    labels = np.random.default_rng(7).integers(300, size=len(x))
    with native.use_instruction_set("generic"):
        expected = minerlib.mine(x, labels, "assorted", backend="native")
    for name in (*native.instruction_sets()[1:], *native.emulated_instruction_sets()):
        with native.use_instruction_set(name):
            found = minerlib.mine(x, labels, "assorted", backend="native")
        for got, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(got, wanted, err_msg=name)
