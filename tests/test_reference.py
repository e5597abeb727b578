"""The judge judged: reference.py against examples worked by hand and against loops over Python floats."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from minerlib import random, reference
from tests import datasets

# Five points on a line. Distances from each:
#   0 (A): 0    1    1.5  3    4
#   1 (A): 1    0    0.5  2    3
#   2 (B): 1.5  0.5  0    1.5  2.5
#   3 (B): 3    2    1.5  0    1
#   4 (A): 4    3    2.5  1    0
LINE = np.array([[0.0], [1.0], [1.5], [3.0], [4.0]])
CLASSES = np.array([0, 0, 1, 1, 0])

Triplet = tuple[int, int, int]


def mined(x: np.ndarray, labels: np.ndarray, strategy: str, **options: object) -> list[Triplet]:
    same = datasets.same_class(labels, labels)
    columns = reference.mine(x, x, same, True, strategy, **{"metric": "euclidean"} | options)
    return list(zip(*(column.tolist() for column in columns), strict=True))


# ------------------------------------------------------------------ worked by hand


@pytest.mark.parametrize(
    ("strategy", "chosen"),
    [
        ("hphn", [(0, 4, 2), (1, 4, 2), (2, 3, 1), (3, 2, 4), (4, 0, 3)]),
        ("batch-hard", [(0, 4, 2), (1, 4, 2), (2, 3, 1), (3, 2, 4), (4, 0, 3)]),
        ("epen", [(0, 1, 3), (1, 0, 3), (2, 3, 4), (3, 2, 0), (4, 1, 2)]),
        ("ephn", [(0, 1, 2), (1, 0, 2), (2, 3, 1), (3, 2, 4), (4, 1, 3)]),
        ("easy-positive", [(0, 1, 2), (1, 0, 2), (2, 3, 1), (3, 2, 4), (4, 1, 3)]),
        ("hpen", [(0, 4, 3), (1, 4, 3), (2, 3, 4), (3, 2, 0), (4, 0, 2)]),
    ],
)
def test_extremes_by_hand(strategy: str, chosen: list[Triplet]) -> None:
    assert mined(LINE, CLASSES, strategy) == chosen
    # The extremes are the same on squared distances.
    assert mined(LINE, CLASSES, strategy, metric="sqeuclidean") == chosen


def test_hard_by_hand() -> None:
    """(0, 1) drops out: s = (1 - 1.5) + 0.5 = 0 is not above 0."""
    kept = [(0, 4, 2), (1, 0, 2), (1, 4, 2), (2, 3, 1), (3, 2, 4), (4, 0, 3), (4, 1, 3)]
    assert mined(LINE, CLASSES, "hard", margin=0.5) == kept
    assert mined(LINE, CLASSES, "hard", margin=0.5, fallback="hardest") == [(0, 1, 2), *kept]
    assert mined(LINE, CLASSES, "hard", margin=0.5, fallback="farthest") == [(0, 1, 3), *kept]
    assert mined(LINE, CLASSES, "hard", margin=0.5, pairs="combinations") == [(0, 4, 2), (1, 4, 2), (2, 3, 1)]


def test_semi_hard_by_hand() -> None:
    """Both ends are open: (0, 1, 3) has s = 0, (2, 3, 0) has s = margin, and neither is semi-hard."""
    drawn = (0, 1)[random.choose(11, 3, 2, 2)]  # the one pair with two to choose from
    kept = [(0, 1, 2), (1, 0, 3), (2, 3, 4), (3, 2, drawn)]
    assert mined(LINE, CLASSES, "semi-hard", margin=2.0, seed=11) == kept
    easiest = [(0, 4, 3), (1, 4, 3), (4, 0, 2), (4, 1, 2)]
    filled = mined(LINE, CLASSES, "semi-hard", margin=2.0, seed=11, fallback="farthest")
    assert filled == sorted(kept + easiest)


def test_semi_hard_nearest_by_hand() -> None:
    """Negative 0 is exactly as far from 2 as its positive 3 is, and so not farther."""
    kept = [(0, 1, 2), (1, 0, 3), (2, 3, 4), (3, 2, 1)]
    assert mined(LINE, CLASSES, "semi-hard-nearest") == kept
    hardest = [(0, 4, 2), (1, 4, 2), (4, 0, 3), (4, 1, 3)]
    assert mined(LINE, CLASSES, "semi-hard-nearest", fallback="hardest") == sorted(kept + hardest)


def test_random_hard_by_hand() -> None:
    eligible = {
        (0, 1): [2], (0, 4): [2, 3], (1, 0): [2, 3], (1, 4): [2, 3], (2, 3): [0, 1, 4],
        (3, 2): [0, 1, 4], (4, 0): [2, 3], (4, 1): [2, 3],
    }  # fmt: skip
    for seed in range(5):
        chosen = [(a, p, rows[random.choose(seed, a, p, len(rows))]) for (a, p), rows in eligible.items()]
        assert mined(LINE, CLASSES, "random-hard", margin=2.0, seed=seed) == chosen


def test_every_triplet_and_counts_by_hand() -> None:
    """Of 18 triplets, (0, 1, 3) alone is easy (s = 0), five are semi-hard and twelve hard at margin 2."""
    negatives = {0: [2, 3], 1: [2, 3], 4: [2, 3], 2: [0, 1, 4], 3: [0, 1, 4]}
    pairs = [(0, 1), (0, 4), (1, 0), (1, 4), (2, 3), (3, 2), (4, 0), (4, 1)]
    every = [(a, p, n) for a, p in pairs for n in negatives[a]]
    assert mined(LINE, CLASSES, "all", margin=2.0) == [triplet for triplet in every if triplet != (0, 1, 3)]
    same = datasets.same_class(CLASSES, CLASSES)
    counts = reference.count_triplets(LINE, LINE, same, True, margin=2.0, metric="euclidean")
    assert counts == (18, 12, 5, 1)
    halved = reference.count_triplets(
        LINE, LINE, same, True, margin=2.0, metric="euclidean", pairs="combinations"
    )
    assert halved == (9, 6, 2, 1)  # pairs (0, 1), (0, 4), (1, 4), (2, 3)


def test_assorted_by_hand() -> None:
    tables = [
        {triplet[0]: triplet for triplet in mined(LINE, CLASSES, strategy)}
        for strategy in ("epen", "ephn", "hpen", "hphn")
    ]
    for seed in range(20):
        cases = random.cases(seed, np.arange(5)).tolist()
        assert mined(LINE, CLASSES, "assorted", seed=seed) == [
            tables[case][a] for a, case in enumerate(cases)
        ]


def test_ties_take_the_lowest_index() -> None:
    x = np.array([[0.0], [1.0], [-1.0], [2.0], [-2.0], [2.0], [1.0]])
    labels = np.array([0, 0, 0, 1, 1, 1, 0])
    for strategy in ("epen", "ephn", "hpen", "hphn"):
        assert mined(x, labels, strategy)[0] == (0, 1, 3)  # among 1, 2, 6 and among 3, 4, 5
    distances, indices = reference.nearest(x[:1], x, 7, "euclidean")
    assert indices.tolist() == [[0, 1, 2, 6, 3, 4, 5]]
    assert distances.tolist() == [[0, 1, 1, 1, 2, 2, 2]]


def test_duplicates_are_legal_positives_and_self_is_not() -> None:
    x = np.zeros((4, 2))
    labels = np.array([0, 0, 1, 1])
    assert mined(x, labels, "ephn") == [(0, 1, 2), (1, 0, 2), (2, 3, 0), (3, 2, 0)]


def test_a_reference_may_hold_the_anchor_itself() -> None:
    x, y = LINE[:2], LINE
    same = datasets.same_class(CLASSES[:2], CLASSES)
    columns = reference.mine(x, y, same, False, "ephn", metric="euclidean")
    assert [column.tolist() for column in columns] == [[0, 1], [0, 1], [2, 2]]


# ------------------------------------------------------------------ loops over Python floats


def lane_sum(terms: list[float]) -> float:
    acc = [0.0] * 8
    for k, term in enumerate(terms):
        acc[k % 8] = acc[k % 8] + term
    return ((acc[0] + acc[1]) + (acc[2] + acc[3])) + ((acc[4] + acc[5]) + (acc[6] + acc[7]))


def distance(x: list[float], y: list[float], metric: str) -> float:
    if metric == "cosine":
        dot = lane_sum([a * b for a, b in zip(x, y, strict=True)])
        scale = math.sqrt(lane_sum([a * a for a in x])) * math.sqrt(lane_sum([b * b for b in y]))
        return 1.0 - dot / scale if scale else 1.0
    sq = lane_sum([(a - b) * (a - b) for a, b in zip(x, y, strict=True)])
    return math.sqrt(sq) if metric == "euclidean" else sq


@pytest.mark.parametrize("metric", datasets.METRICS)
@pytest.mark.parametrize("dimensions", [1, 3, 7, 8, 9, 16, 31, 129])
@pytest.mark.parametrize("data", ["gaussian", "off-centre", "zeros", "huge", "subnormal", "last-bit"])
def test_distances_to_the_last_bit(data: str, dimensions: int, metric: str) -> None:
    x = datasets.rows(data, 9, dimensions)
    found = reference.pairwise_distance(x, x, metric)
    assert found.tolist() == [[distance(a, b, metric) for b in x.tolist()] for a in x.tolist()]


def test_single_precision_rows_are_widened_first() -> None:
    x = datasets.rows("gaussian", 9, 33, "float32")
    narrow, wide = (reference.pairwise_distance(rows, rows, "cosine") for rows in (x.astype(np.float32), x))
    assert np.array_equal(narrow, wide)


def test_many_rows_are_taken_in_chunks() -> None:
    """A chunk holds 2^20 pairs; the rows of a second one must not differ."""
    x, y = datasets.rows("gaussian", 1200, 3), datasets.rows("gaussian", 1000, 3, seed=1)
    distances = reference.pairwise_distance(x, y, "euclidean")
    picked = [0, 1047, 1048, 1049, 1199]
    assert np.array_equal(distances[picked], reference.pairwise_distance(x[picked], y, "euclidean"))
    best, indices = reference.nearest(x, y, 3, "euclidean")
    assert np.array_equal(indices, np.argsort(distances, axis=1, kind="stable")[:, :3])
    assert np.array_equal(best, np.sort(distances, axis=1)[:, :3])


def mine_by_loops(x: list[list[float]], labels: list[int], strategy: str, **options: object) -> list[Triplet]:
    """SPEC section 4 once more, for self-mining, in lists and sorted keys instead of arrays."""
    metric, margin, seed = options["metric"], options["margin"], options["seed"]
    everyone = range(len(x))
    out: list[Triplet] = []
    for a in everyone:
        d = [distance(x[a], x[j], metric) for j in everyone]
        by = [distance(x[a], x[j], "cosine" if metric == "cosine" else "sqeuclidean") for j in everyone]
        positives = [j for j in everyone if j != a and labels[j] == labels[a]]
        negatives = [j for j in everyone if labels[j] != labels[a]]
        if not positives or not negatives:
            continue
        nearest = min(negatives, key=lambda j: (by[j], j))
        farthest = min(negatives, key=lambda j: (-by[j], j))
        easiest = min(positives, key=lambda j: (by[j], j))
        hardest = min(positives, key=lambda j: (-by[j], j))
        extremes = [(easiest, farthest), (easiest, nearest), (hardest, farthest), (hardest, nearest)]
        names = {"epen": 0, "ephn": 1, "easy-positive": 1, "hpen": 2, "hphn": 3, "batch-hard": 3}
        names["assorted"] = int(random.cases(seed, np.array([a]))[0])
        if strategy in names:
            out.append((a, *extremes[names[strategy]]))
            continue
        for p in positives:
            if options["pairs"] == "combinations" and p < a:
                continue
            s = {n: (d[p] - d[n]) + margin for n in negatives}
            eligible = {
                "hard": [n for n in (nearest,) if s[n] > 0],
                "semi-hard": [n for n in negatives if 0 < s[n] < margin],
                "random-hard": [n for n in negatives if s[n] > 0],
                "all": [n for n in negatives if s[n] > 0],
                "semi-hard-nearest": sorted(
                    (n for n in negatives if d[n] > d[p]), key=lambda n: (by[n], n)
                )[:1],
            }[strategy]  # fmt: skip
            if strategy == "all":
                out.extend((a, p, n) for n in eligible)
            elif eligible:
                out.append((a, p, eligible[random.choose(seed, a, p, len(eligible))]))
            elif options["fallback"] != "drop":
                out.append((a, p, nearest if options["fallback"] == "hardest" else farthest))
    return out


@pytest.mark.parametrize("metric", datasets.METRICS)
@pytest.mark.parametrize("data", ["gaussian", "grid", "duplicates", "zeros"])
@pytest.mark.parametrize("fallback", datasets.FALLBACKS)
@pytest.mark.parametrize("pairs", ["ordered", "combinations"])
def test_mining_by_loops(pairs: str, fallback: str, data: str, metric: str) -> None:
    x, labels = datasets.rows(data, 14, 3), datasets.labels("few", 14)
    strategies = [*reference.PER_ANCHOR, *reference.PER_PAIR, "assorted", "all"]
    strategies.remove("distance-weighted")
    for strategy, margin in itertools.product(strategies, (0.0, 1.0)):
        options = {
            "metric": metric,
            "margin": margin,
            "pairs": pairs,
            "fallback": fallback,
            "seed": 2**63 + 5,
        }
        assert mined(x, labels, strategy, **options) == mine_by_loops(
            x.tolist(), labels.tolist(), strategy, **options
        ), (strategy, margin)


# ------------------------------------------------------------------ distance-weighted


def unit_circle(*angles: float) -> np.ndarray:
    return np.array([[math.cos(angle), math.sin(angle), 0.0] for angle in angles])


@pytest.mark.parametrize("dimensions", [2, 3, 4, 64])
def test_weights_by_the_formula(dimensions: int) -> None:
    """1/q(d), q(d) = d^(D-2) (1 - d^2/4)^((D-3)/2), d clamped below at 0.5, nothing beyond 1.4."""
    angles = [0.0, 0.1, 0.6, 1.0, 1.5, 3.0]
    x = np.zeros((6, dimensions))
    x[:, 0], x[:, 1] = np.cos(angles), np.sin(angles)
    x *= np.arange(1, 7)[:, None]  # lengths do not matter
    weights = np.exp(reference.DistanceWeights(x, x).log_weights(0, np.arange(6)))
    for angle, weight in zip(angles, weights, strict=True):
        d = max(0.5, 2 * math.sin(angle / 2))
        q = d ** (dimensions - 2) * (1 - d * d / 4) ** ((dimensions - 3) / 2) if d <= 1.4 else math.inf
        assert weight == pytest.approx(1 / q, rel=1e-12)
    assert weights[0] == weights[1]  # both clamped
    assert weights[5] == 0


def test_the_cut_off_itself_counts() -> None:
    """At exactly 1.4 a row still weighs something; the next float64 above weighs nothing."""
    weights = reference.DistanceWeights(unit_circle(0.0), unit_circle(0.0))
    weights.x = np.zeros((1, 3))
    weights.y = np.array([[1.4, 0, 0], [np.nextafter(1.4, 2), 0, 0]])
    assert np.isfinite(weights.log_weights(0, np.array([0, 1]))).tolist() == [True, False]


def test_a_draw_is_by_cumulated_weight() -> None:
    x = unit_circle(0.0, 0.01, 0.6, 1.0, 1.3, 3.0)
    labels = np.array([0, 0, 1, 1, 1, 1])
    weights = reference.DistanceWeights(x, x)
    negatives = np.array([2, 3, 4, 5])
    w = np.exp(weights.log_weights(0, negatives))
    edges = np.cumsum(w) / w.sum()
    drawn = []
    for seed in range(50):
        u = random.uniform_bits(seed, 0, 1) / 2**64
        wanted = int(negatives[int((edges <= u).sum())])
        found = mined(x, labels, "distance-weighted", seed=seed)
        assert (0, 1, wanted) in found
        drawn.append(wanted)
    assert set(drawn) == {2, 3, 4}
