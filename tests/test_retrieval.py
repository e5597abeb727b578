"""Retrieval measures against their definitions, written out query by query."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import minerlib
from minerlib import rankings
from minerlib.retrieval import (
    hamming_precision_recall,
    knn_accuracy,
    mean_average_precision,
    plot_precision_recall,
    precision_at,
    precision_within_radius,
    recall_at,
)

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
    if metric == "hamming":
        return bin(int.from_bytes(x.tobytes(), "big") ^ int.from_bytes(y.tobytes(), "big")).count("1")
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
    monkeypatch.setattr(rankings, "_CHUNK_ELEMENTS", 100)
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


# ------------------------------------------------------------------ codes


def codes(rng, count, bits=9):
    """Few bits, so that most rows of a ranking are tied."""
    return minerlib.pack_bits(rng.random((count, bits)) < 0.5)


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("multi", [False, True])
def test_measures_over_codes_follow_their_definitions(leave_one_out, multi, backend):
    rng = np.random.default_rng(8)

    def labels_of(count):
        return rng.random((count, 5)) < 0.3 if multi else rng.integers(-2, 2, count)

    queries, labels = codes(rng, 23), labels_of(23)
    database, database_labels = (None, None) if leave_one_out else (codes(rng, 31), labels_of(31))
    sides = {"database": database, "database_labels": database_labels, "metric": "hamming"}
    sides["backend"] = backend.name
    for k in (1, 2, 7, 22):
        precision, recall, average, voted = brute(queries, labels, database, database_labels, "hamming", k)
        assert precision_at(queries, labels, k, **sides) == pytest.approx(precision, abs=1e-12)
        assert recall_at(queries, labels, [k], **sides) == pytest.approx([recall], abs=1e-12)
        assert mean_average_precision(queries, labels, k, **sides) == pytest.approx(average, abs=1e-12)
        if not multi:
            assert knn_accuracy(queries, labels, k, **sides) == pytest.approx(voted, abs=1e-12)
    if not leave_one_out:
        whole = minerlib.hamming_map(queries, labels, database, database_labels, backend=backend.name)
        assert mean_average_precision(queries, labels, **sides) == whole


def test_leave_one_out_among_equal_codes_leaves_out_the_query_alone():
    x, labels = np.zeros((6, 3), dtype=np.uint8), np.array([0, 1, 1, 1, 1, 1])
    assert precision_at(x, labels, 2, metric="hamming") == pytest.approx((0 + 1 + 4 * 1) / 12)
    assert recall_at(x, labels, 1, metric="hamming") == 0.0
    assert precision_within_radius(x, labels, 0) == pytest.approx((0 + 5 * 4 / 5) / 6)


def brute_within(queries, labels, database, database_labels, radius):
    """(precision, recall) of every query; None for the precision of nothing."""
    own = database is None
    rows, row_labels = (queries, labels) if own else (database, database_labels)
    for number, (query, label) in enumerate(zip(queries, labels, strict=True)):
        others = [j for j in range(len(rows)) if not (own and j == number)]
        near = [j for j in others if canonical(query, rows[j], "hamming") <= radius]
        good = sum(share(label, row_labels[j]) for j in near)
        total = sum(share(label, row_labels[j]) for j in others)
        yield good / len(near) if near else None, good / total if total else 0.0


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("multi", [False, True])
def test_radius_and_curve_follow_their_definitions(leave_one_out, multi, backend):
    rng = np.random.default_rng(9)

    def labels_of(count):
        return rng.random((count, 5)) < 0.3 if multi else rng.integers(0, 3, count)

    queries, labels = codes(rng, 21, 14), labels_of(21)
    database, database_labels = (None, None) if leave_one_out else (codes(rng, 33, 14), labels_of(33))
    sides = {"database": database, "database_labels": database_labels, "backend": backend.name}
    curve = hamming_precision_recall(queries, labels, **sides)
    skipping = hamming_precision_recall(queries, labels, **sides, empty="skip")
    assert curve.recall.shape == curve.precision.shape == (17,)
    for radius in range(17):
        found = list(brute_within(queries, labels, database, database_labels, radius))
        precision = [p or 0.0 for p, _ in found]
        judged = [p for p, _ in found if p is not None]
        assert curve.precision[radius] == pytest.approx(np.mean(precision), abs=1e-12)
        assert curve.recall[radius] == pytest.approx(np.mean([r for _, r in found]), abs=1e-12)
        assert skipping.precision[radius] == pytest.approx(np.mean(judged) if judged else 0.0, abs=1e-12)
        assert precision_within_radius(queries, labels, radius, **sides) == pytest.approx(
            curve.precision[radius], abs=1e-12
        )
    assert precision_within_radius(queries, labels, **sides) == pytest.approx(curve.precision[2], abs=1e-12)
    assert precision_within_radius(queries, labels, 10**9, **sides) == pytest.approx(curve.precision[-1])
    assert list(skipping.recall) == list(curve.recall)


def test_the_curve_is_the_same_in_chunks(monkeypatch):
    rng = np.random.default_rng(1)
    x, labels = codes(rng, 60, 24), rng.integers(0, 4, 60)
    whole = hamming_precision_recall(x, labels)
    monkeypatch.setattr("minerlib.average_precision._COUNTS", 200)
    np.testing.assert_allclose(hamming_precision_recall(x, labels), whole, rtol=1e-13)


def test_the_curve_can_be_drawn(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    x, labels = codes(rng, 60, 24), rng.integers(0, 4, 60)
    curves = {"24 bits": hamming_precision_recall(x, labels)}
    plot_precision_recall(tmp_path / "curve.png", curves, "random codes")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="curves:"):
        plot_precision_recall(tmp_path / "none.png", {})
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="needs matplotlib"):
        plot_precision_recall(tmp_path / "none.png", curves)
    assert not (tmp_path / "none.png").exists()


CODES = np.arange(4, dtype=np.uint8)[:, None]


@pytest.mark.parametrize(
    ("measure", "arguments", "options", "error", "named"),
    [
        (precision_at, (X, LABELS, 1), {"metric": "hamming"}, TypeError, "queries: expected packed codes"),
        (precision_at, (CODES, LABELS, 1), {}, TypeError, "queries:"),
        (precision_at, (CODES, LABELS, 4), {"metric": "hamming"}, ValueError, "k:"),
        (precision_at, (CODES, LABELS, 1), {"metric": "hamming", "exact": 1}, TypeError, "exact:"),
        (mean_average_precision, (CODES, LABELS[:3]), {"metric": "hamming"}, ValueError, "query_labels:"),
        (knn_accuracy, (CODES, X > 0), {"metric": "hamming"}, ValueError, "query_labels:"),
        (precision_within_radius, (CODES, LABELS, -1), {}, ValueError, "radius:"),
        (precision_within_radius, (CODES, LABELS, 1.0), {}, TypeError, "radius:"),
        (precision_within_radius, (X, LABELS), {}, TypeError, "queries:"),
        (precision_within_radius, (CODES[:1], LABELS[:1]), {}, ValueError, "queries: expected at least two"),
        (precision_within_radius, (CODES, LABELS), {"database": CODES}, ValueError, "database_labels:"),
        (precision_within_radius, (CODES, LABELS), {"backend": "abacus"}, ValueError, "backend:"),
        (hamming_precision_recall, (CODES, LABELS.astype(float)), {}, TypeError, "query_labels:"),
        (hamming_precision_recall, (CODES, LABELS), {"empty": "drop"}, ValueError, "empty:"),
    ],
)
def test_errors_over_codes_name_the_argument(measure, arguments, options, error, named):
    with pytest.raises(error, match=named):
        measure(*arguments, **options)
