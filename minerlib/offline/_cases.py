"""The cases of offline mining, and the triplets of rows whose extremes are known."""

from __future__ import annotations

from collections.abc import Sequence
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

CASES = tuple(name for name, plan in STRATEGIES.items() if isinstance(plan, (PerAnchor, Assorted)))
EXTREME_CASES = ("epen", "ephn", "hpen", "hphn", "assorted")  # the five of EXT's Table I


class CaseTriplets(NamedTuple):
    """Triplets of one case, sorted by anchor, with the distances of both their sides in the metric's unit."""

    anchors: Any  # [T] int64
    positives: Any  # [T] int64
    negatives: Any  # [T] int64
    positive_distances: Any  # [T] float64
    negative_distances: Any  # [T] float64


def check_cases(cases: Any) -> tuple[str, ...]:
    """The names of cases, in the order given."""
    if isinstance(cases, str):
        cases = (cases,)
    if not isinstance(cases, Sequence):
        raise TypeError(f"cases: expected names among {', '.join(CASES)}, got {type(cases).__name__}")
    names = tuple(inputs.one_of("cases", case, CASES) for case in cases)
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
    distances = [np.sqrt(value) if metric == "euclidean" else value for value in values]
    return CaseTriplets(
        anchors[found], records["id"][row, positive], records["id"][row, negative], *distances
    )
