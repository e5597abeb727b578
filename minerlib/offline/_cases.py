"""The cases of offline mining, and the triplets of rows whose extremes are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minerlib import inputs, random
from minerlib.strategies import (
    FARTHEST_NEGATIVE,
    FARTHEST_POSITIVE,
    NEAREST_NEGATIVE,
    NEAREST_POSITIVE,
    STRATEGIES,
    Assorted,
    PerAnchor,
)

CASES = (
    *(name for name, plan in STRATEGIES.items() if isinstance(plan, (PerAnchor, Assorted))),
    "hard-negatives",
)
EXTREME_CASES = ("epen", "ephn", "hpen", "hphn", "assorted")  # the five of EXT's Table I


class CaseTriplets(NamedTuple):
    """Triplets of one case, sorted by anchor (and rank), with both distances in the metric's unit."""

    anchors: Any  # [T] int64
    positives: Any  # [T] int64
    negatives: Any  # [T] int64
    positive_distances: Any  # [T] float64
    negative_distances: Any  # [T] float64
    ranks: Any  # [T] int32, of hard negatives among all negatives of the anchor, 0 the nearest; else -1


@dataclass(frozen=True)
class HardNegatives:
    """Which of an anchor's nearest negatives the case `hard-negatives` takes, as retrieval mines them.

    Of the negatives ranked by distance those of ranks skip .. window - 1 come into question: the very nearest
    are often unlabelled positives. With a margin, so do only those with d(a, n) >= d(a, p) + margin, in the
    metric's unit. The `count` nearest of what is left are taken, each with the anchor's nearest (or farthest)
    positive. The window is skip + count, or skip + 100 with a margin, unless it is given.
    """

    count: int = 3
    skip: int = 0
    window: int | None = None
    margin: float | None = None
    positive: str = "nearest"

    def __post_init__(self) -> None:
        inputs.integer("count", self.count, 1, 1 << 20)
        inputs.integer("skip", self.skip, 0, 1 << 20)
        inputs.one_of("positive", self.positive, ("nearest", "farthest"))
        if self.margin is not None:
            object.__setattr__(self, "margin", inputs.finite_non_negative("margin", self.margin))
        if self.window is not None:
            inputs.integer("window", self.window, self.skip + 1, 1 << 21)

    @property
    def ranked(self) -> int:
        """How many of the nearest negatives come into question, those that are skipped included."""
        if self.window is not None:
            return self.window
        return self.skip + (self.count if self.margin is None else max(self.count, 100))


HARD = "hard-negatives"


def check_cases(cases: Any) -> tuple[str, ...]:
    """The names of cases, in the order given."""
    if isinstance(cases, str):
        cases = (cases,)
    if not isinstance(cases, Sequence):
        raise TypeError(f"cases: expected names among {', '.join(CASES)}, got {type(cases).__name__}")
    names = tuple(inputs.one_of("cases", case, CASES) for case in cases)
    if not names:
        raise ValueError(f"cases: expected at least one of {', '.join(CASES)}, got none")
    if len(set(names)) < len(names):
        raise ValueError(f"cases: expected each name once, got {', '.join(names)}")
    return names


def triplets_of(
    case: str,
    first: int,  # what the first row is called
    records: np.ndarray,  # [n] RECORD
    seed: int,
    metric: str,
) -> CaseTriplets:
    """The triplets of consecutive anchors; one without a positive or without a negative yields nothing."""
    anchors = np.arange(first, first + len(records))
    plan = STRATEGIES[case]
    if isinstance(plan, PerAnchor):
        positive, negative = np.full(len(records), plan.positive), np.full(len(records), plan.negative)
    else:
        drawn = random.cases(seed, anchors)
        positive = np.where(drawn < 2, NEAREST_POSITIVE, FARTHEST_POSITIVE)
        negative = np.where(drawn % 2 == 0, FARTHEST_NEGATIVE, NEAREST_NEGATIVE)
    row = np.arange(len(records))
    found = (records["id"][row, positive] >= 0) & (records["id"][row, negative] >= 0)
    row, positive, negative = row[found], positive[found], negative[found]
    values = records["value"][row, positive], records["value"][row, negative]
    ranks = np.full(len(row), -1, np.int32)
    ids = records["id"][row, positive], records["id"][row, negative]
    distances = _in_unit(values[0], metric), _in_unit(values[1], metric)
    return CaseTriplets(anchors[found], *ids, *distances, ranks)


def hard_negatives_of(
    rules: HardNegatives,
    first: int,  # what the first row is called
    records: np.ndarray,  # [n] RECORD
    ranked: np.ndarray,  # [n, K] RANKED: each row's nearest negatives, id -1 behind the last
    limits: np.ndarray,  # [n]
    metric: str,
) -> CaseTriplets:
    """The triplets of consecutive anchors by the rules."""
    which = NEAREST_POSITIVE if rules.positive == "nearest" else FARTHEST_POSITIVE
    positive, negatives = records["id"][:, which], ranked["id"]
    d_p = _in_unit(records["value"][:, which], metric)
    d_n = _in_unit(np.where(negatives < 0, 0.0, ranked["value"]), metric)
    rank = np.arange(ranked.shape[1])
    kept = (negatives >= 0) & (ranked["value"] <= limits[:, None]) & (positive >= 0)[:, None]
    kept &= (rank >= rules.skip) & (rank < rules.ranked)
    if rules.margin is not None:
        kept &= d_n >= (d_p + rules.margin)[:, None]
    kept &= np.cumsum(kept, axis=1) <= rules.count
    row, column = np.nonzero(kept)
    ids = first + row, positive[row], negatives[row, column]
    return CaseTriplets(*ids, d_p[row], d_n[row, column], column.astype(np.int32))


def _in_unit(selection: np.ndarray, metric: str) -> np.ndarray:
    return np.sqrt(selection) if metric == "euclidean" else selection


def wanted_extremes(cases: tuple[str, ...], rules: HardNegatives) -> tuple[int, ...]:
    """The extremes that the cases are made of."""
    wanted: set[int] = set()
    for case in cases:
        if case == HARD:
            wanted.add(NEAREST_POSITIVE if rules.positive == "nearest" else FARTHEST_POSITIVE)
            continue
        plan = STRATEGIES[case]
        wanted |= {plan.positive, plan.negative} if isinstance(plan, PerAnchor) else set(range(4))
    return tuple(sorted(wanted))
