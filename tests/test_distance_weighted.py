"""`distance-weighted` draws: the promised distribution, by chi-square against the reference's weights.

Seeds are fixed, so a test that passes once passes always; the limits would fail a right sampler once in a
thousand choices of seeds.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy import stats

import minerlib
from minerlib import reference
from tests import datasets
from tests.conftest import BACKENDS, Running

ROWS = 40


@functools.lru_cache(maxsize=1)
def batch(data: str, dimensions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, labels of two classes, and P(negative | anchor) [N, N] by the definition."""
    x = datasets.rows(data, ROWS, dimensions, "float32")
    labels = np.arange(ROWS) % 2
    weights = reference.DistanceWeights(x, x)
    probabilities = np.zeros((ROWS, ROWS))
    for a in range(ROWS):
        negatives = np.flatnonzero(labels != labels[a])
        log_weights = weights.log_weights(a, negatives)
        if np.isfinite(log_weights).any():
            scaled = np.exp(log_weights - log_weights.max())
            probabilities[a, negatives] = scaled / scaled.sum()
    return x, labels, probabilities


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> tuple[float, int]:
    """The statistic and its degrees of freedom, rare outcomes counted together."""
    wanted = probabilities * counts.sum()
    common = wanted >= 5
    observed, expected = counts[common], wanted[common]
    if wanted[~common].sum() > 0:
        observed = np.append(observed, counts[~common].sum())
        expected = np.append(expected, wanted[~common].sum())
    return float(((observed - expected) ** 2 / expected).sum()), len(observed) - 1


@pytest.mark.parametrize(
    ("data", "dimensions", "backend"),
    [
        (*data, name)
        for data in [("gaussian", 2), ("gaussian", 3), ("gaussian", 16), ("zeros", 8), ("clusters", 64)]
        for name in BACKENDS
    ],
    indirect=["backend"],
)
def test_draws_follow_the_weights(data: str, dimensions: int, backend: Running) -> None:
    x, labels, probabilities = batch(data, dimensions)
    counts = np.zeros((ROWS, ROWS))
    for seed in range(10 if backend.name == "reference" else 100):
        drawn = minerlib.mine(
            x.astype(np.float32), labels, "distance-weighted", seed=seed << 31, backend=backend.name
        )
        np.add.at(counts, (drawn.anchors, drawn.negatives), 1)
    assert set(backend.families()) == {"sample"}
    assert (counts[probabilities == 0] == 0).all()
    tests = [chi_square(counts[a], probabilities[a]) for a in range(ROWS) if counts[a].any()]
    statistics, freedom = np.array(tests).T
    assert freedom.sum() >= 20
    assert stats.chi2.sf(statistics.sum(), freedom.sum()) > 1e-3
    tested = freedom > 0
    assert stats.chi2.sf(statistics[tested], freedom[tested]).min() > 1e-3 / ROWS


def test_seeds_and_pairs_draw_on_their_own(backend: Running) -> None:
    """Two pairs of an anchor, or one pair under two seeds, agree as often as chance has it."""
    x, labels, probabilities = batch("gaussian", 3)

    def draw(seed: int) -> np.ndarray:  # [N, N] negative of (a, p)
        negatives = np.full((ROWS, ROWS), -1)
        mined = minerlib.mine(
            x.astype(np.float32), labels, "distance-weighted", seed=seed, backend=backend.name
        )
        negatives[mined.anchors, mined.positives] = mined.negatives
        return negatives

    first, again, other_low, other_high = draw(7), draw(7), draw(8), draw(7 + (1 << 32))
    assert np.array_equal(first, again)
    chance = float((probabilities**2).sum(axis=1).mean())
    drawn = first >= 0
    assert drawn.sum() > 500
    rows = [row[row >= 0] for row in first]
    among_pairs = np.concatenate([row[1:] == row[:-1] for row in rows])
    for agree in (first[drawn] == other_low[drawn], first[drawn] == other_high[drawn], among_pairs):
        assert stats.binomtest(int(agree.sum()), len(agree), chance).pvalue > 1e-4


@pytest.mark.parametrize("fallback", datasets.FALLBACKS)
def test_nothing_within_the_cut_off(fallback: str, backend: Running) -> None:
    """Opposite directions are at distance 2 on the sphere, beyond 1.4: every pair falls back."""
    x = np.array([[2.0, 0.0], [5.0, 0.1], [-1.0, 0.0], [-3.0, 0.1], [-7.0, 0.0]], dtype=np.float32)
    labels = np.array([0, 0, 1, 1, 1])
    mined = minerlib.mine(x, labels, "distance-weighted", fallback=fallback, backend=backend.name)
    pairs = [(0, 1), (1, 0), (2, 3), (2, 4), (3, 2), (3, 4), (4, 2), (4, 3)]
    if fallback == "drop":
        assert len(mined.anchors) == 0
        return
    nearest, farthest = {0: 2, 1: 2, 2: 0, 3: 0, 4: 0}, {0: 4, 1: 4, 2: 1, 3: 1, 4: 1}
    chosen = nearest if fallback == "hardest" else farthest
    assert list(zip(*(column.tolist() for column in mined), strict=True)) == [
        (a, p, chosen[a]) for a, p in pairs
    ]


def test_weights_that_underflow_still_choose(backend: Running) -> None:
    """At D = 1031 weights span hundreds of orders of magnitude: each anchor is scaled by its own largest."""
    x = datasets.rows("clusters", 33, 1031, "float32")
    labels = np.arange(33) % 2
    probabilities = np.zeros((33, 33))
    weights = reference.DistanceWeights(x, x)
    for a in range(33):
        negatives = np.flatnonzero(labels != labels[a])
        log_weights = weights.log_weights(a, negatives)
        if np.isfinite(log_weights).any():
            probabilities[a, negatives] = np.exp(log_weights - log_weights.max())
    mined = minerlib.mine(x.astype(np.float32), labels, "distance-weighted", backend=backend.name)
    assert set(mined.anchors.tolist()) == set(np.flatnonzero(probabilities.any(axis=1)).tolist())
    assert (probabilities[mined.anchors, mined.negatives] > 1e-9).all()
