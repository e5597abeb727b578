"""Retrieval measures against their definitions, written out query by query."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minerlib import retrieval
from minerlib.retrieval import knn_accuracy, mean_average_precision, precision_at, recall_at

METRICS = ("sqeuclidean", "euclidean", "cosine")


def canonical(x, y, metric):
    """SPEC section 2, one pair at a time."""

    def lanes(products):
        acc = [0.0] * 8
        for position, product in enumerate(products):
            acc[position % 8] += product
        return ((acc[0] + acc[1]) + (acc[2] + acc[3])) + ((acc[4] + acc[5]) + (acc[6] + acc[7]))

    if metric == "cosine":
        dot, nx, ny = lanes(x * y), lanes(x * x), lanes(y * y)
        return 1.0 - dot / (np.sqrt(nx) * np.sqrt(ny)) if nx and ny else 1.0
    square = lanes((x - y) ** 2)
    return np.sqrt(square) if metric == "euclidean" else square


def brute_rankings(queries, database, metric):
    own = database is None
    rows = queries if own else database
    for number, query in enumerate(queries):
        order = sorted(range(len(rows)), key=lambda j: (canonical(query, rows[j], metric), j))
        yield [j for j in order if not (own and j == number)]


def share(a, b):
    return bool(np.any(a & b)) if np.ndim(a) else a == b


def brute(queries, labels, database, database_labels, metric, k):
    """(precision, recall, average precision, k-NN accuracy), each a mean over the queries."""
    found_labels = labels if database is None else database_labels
    scores = []
    for label, ranking in zip(labels, brute_rankings(queries, database, metric), strict=True):
        hits = [share(label, found_labels[j]) for j in ranking[:k]]
        at_hits = [sum(hits[: r + 1]) / (r + 1) for r in range(k) if hits[r]]
        voted = None
        if not np.ndim(label):
            near = [found_labels[j] for j in ranking[:k]]
            voted = max(near, key=lambda name: (near.count(name), -near.index(name))) == label
        scores.append((sum(hits) / k, any(hits), np.mean(at_hits) if at_hits else 0.0, voted))
    return [np.mean([row[i] for row in scores]) if scores[0][i] is not None else None for i in range(4)]


def rows_with_ties(rng, count):
    """Few distinct points, so that rankings are decided by the tie rule."""
    return rng.integers(0, 3, (count, 2)).astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_measures_follow_their_definitions(metric, leave_one_out, ties):
    rng = np.random.default_rng(3)
    make = rows_with_ties if ties else lambda rng, count: rng.normal(size=(count, 5)).astype(np.float32)
    queries, labels = make(rng, 23), rng.integers(-2, 2, 23)
    database, database_labels = (None, None) if leave_one_out else (make(rng, 31), rng.integers(-2, 2, 31))
    sides = {"database": database, "database_labels": database_labels, "metric": metric}
    for k in (1, 2, 7, 22):
        precision, recall, average, voted = brute(queries, labels, database, database_labels, metric, k)
        assert precision_at(queries, labels, k, **sides) == pytest.approx(precision, abs=1e-12)
        assert recall_at(queries, labels, k, **sides) == pytest.approx(recall, abs=1e-12)
        assert mean_average_precision(queries, labels, k, **sides) == pytest.approx(average, abs=1e-12)
        assert knn_accuracy(queries, labels, k, **sides) == pytest.approx(voted, abs=1e-12)


def test_several_cutoffs_equal_single_ones():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(40, 3)), rng.integers(0, 4, 40)
    assert precision_at(x, labels, [5, 1, 39]) == [precision_at(x, labels, k) for k in (5, 1, 39)]
    assert recall_at(x, labels, (5, 1, 39)) == [recall_at(x, labels, k) for k in (5, 1, 39)]


def test_multi_label_rows_are_relevant_when_they_share_a_label():
    rng = np.random.default_rng(5)
    queries, database = rng.normal(size=(17, 4)), rng.normal(size=(29, 4))
    labels, database_labels = rng.random((17, 3)) < 0.4, rng.random((29, 3)) < 0.4
    sides = {"database": database, "database_labels": database_labels}
    for k in (1, 6, 29):
        precision, recall, average, _ = brute(queries, labels, database, database_labels, "sqeuclidean", k)
        assert precision_at(queries, labels, k, **sides) == pytest.approx(precision, abs=1e-12)
        assert recall_at(queries, labels, k, **sides) == pytest.approx(recall, abs=1e-12)
        assert mean_average_precision(queries, labels, k, **sides) == pytest.approx(average, abs=1e-12)


def test_the_whole_ranking_is_the_default_of_the_mean_average_precision():
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(15, 2)), rng.integers(0, 3, 15)
    assert mean_average_precision(x, labels) == mean_average_precision(x, labels, 14)


def test_leave_one_out_among_duplicates_leaves_out_the_query_alone():
    x = np.zeros((6, 3), dtype=np.float32)
    labels = np.array([0, 1, 1, 1, 1, 1])
    # by index: row 0 sees rows 1 and 2; row 1 sees 0 and 2; the others see 0 and 1
    assert precision_at(x, labels, 2) == pytest.approx((0 + 1 + 4 * 1) / 12)
    assert recall_at(x, labels, 1) == 0.0


def test_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(2)
    x, labels = rows_with_ties(rng, 60), rng.integers(0, 5, 60)
    measures = (precision_at, recall_at, mean_average_precision, knn_accuracy)
    whole = [measure(x, labels, 9) for measure in measures]
    monkeypatch.setattr(retrieval, "_CHUNK_ELEMENTS", 100)
    assert [measure(x, labels, 9) for measure in measures] == pytest.approx(whole, abs=1e-12)


def test_torch_tensors_give_the_same_numbers():
    rng = np.random.default_rng(4)
    x, labels = rng.normal(size=(30, 6)).astype(np.float32), rng.integers(0, 3, 30)
    tensor = torch.from_numpy(x).requires_grad_()
    assert precision_at(tensor, torch.from_numpy(labels), 4) == precision_at(x, labels, 4)
    assert knn_accuracy(tensor, torch.from_numpy(labels), 4) == knn_accuracy(x, labels, 4)


X, LABELS = np.eye(4), np.array([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "named"),
    [
        ((X, LABELS, 0), {}, ValueError, "k:"),
        ((X, LABELS, 4), {}, ValueError, "k:"),
        ((X, LABELS, 2.0), {}, TypeError, "k:"),
        ((X, LABELS, []), {}, TypeError, "k:"),
        ((X, LABELS[:3], 1), {}, ValueError, "query_labels:"),
        ((X, LABELS.astype(float), 1), {}, TypeError, "query_labels:"),
        ((X, LABELS[:, None], 1), {}, TypeError, "query_labels:"),
        ((X[0], LABELS, 1), {}, ValueError, "queries:"),
        ((X.astype(int), LABELS, 1), {}, TypeError, "queries:"),
        ((X * np.nan, LABELS, 1), {}, ValueError, "queries:"),
        ((X[:1], LABELS[:1], 1), {}, ValueError, "queries:"),
        ((X, LABELS, 1), {"database": X}, ValueError, "database_labels:"),
        ((X, LABELS, 1), {"database_labels": LABELS}, ValueError, "database:"),
        ((X, LABELS, 1), {"database": X[:, :2], "database_labels": LABELS}, ValueError, "database:"),
        ((X, LABELS, 1), {"database": X, "database_labels": LABELS[:2]}, ValueError, "database_labels:"),
        ((X, LABELS, 1), {"database": X, "database_labels": X > 0}, ValueError, "database_labels:"),
        ((X, LABELS, 1), {"database": X[:0], "database_labels": LABELS[:0]}, ValueError, "database:"),
        ((X[:0], LABELS[:0], 1), {"database": X, "database_labels": LABELS}, ValueError, "queries:"),
        ((X, LABELS, 1), {"metric": "manhattan"}, ValueError, "metric:"),
        ((X, LABELS, 1), {"backend": "abacus"}, ValueError, "backend:"),
    ],
)
@pytest.mark.parametrize("measure", [precision_at, recall_at, mean_average_precision, knn_accuracy])
def test_errors_name_the_argument(measure, arguments, options, error, named):
    with pytest.raises(error, match=named):
        measure(*arguments, **options)


def test_voting_refuses_multi_labels():
    with pytest.raises(ValueError, match="query_labels:"):
        knn_accuracy(X, X > 0, 1)
