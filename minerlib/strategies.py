"""Every strategy as a plan over the kernel families, so that a new one is a few lines (SPEC section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from minerlib.inputs import Problem

#: Rows of what the `extremes` family answers.
NEAREST_POSITIVE, FARTHEST_POSITIVE, NEAREST_NEGATIVE, FARTHEST_NEGATIVE = range(4)


@dataclass(frozen=True)
class Request:
    """The options of one call, validated."""

    margin: float
    pairs: str
    fallback: str
    seed: int
    exact: bool


@dataclass(frozen=True)
class Slots:
    """Answers in slots: `negatives` is -1 where nothing was mined."""

    anchors: Any  # [S] int64, of the backend's kind of array
    positives: Any  # [S] int64
    negatives: Any  # [S] int64


@dataclass(frozen=True)
class PerAnchor:
    """One positive and one negative for each anchor, both extremes."""

    positive: int
    negative: int

    def run(self, backend: ModuleType, problem: Problem, request: Request) -> Slots:
        found = backend.extremes(problem, (self.positive, self.negative), request.exact)
        return _anchor_slots(problem, found[self.positive], found[self.negative])


@dataclass(frozen=True)
class Assorted:
    """One of EPEN, EPHN, HPEN and HPHN at random for each anchor."""

    def run(self, backend: ModuleType, problem: Problem, request: Request) -> Slots:
        found = backend.extremes(problem, range(4), request.exact)
        case, where = problem.cases(request.seed), problem.where
        positives = where(case < 2, found[NEAREST_POSITIVE], found[FARTHEST_POSITIVE])
        negatives = where(case % 2 == 0, found[FARTHEST_NEGATIVE], found[NEAREST_NEGATIVE])
        return _anchor_slots(problem, positives, negatives)


@dataclass(frozen=True)
class PerPair:
    """One negative for each anchor-positive pair, by a rule that the `window` family knows."""

    rule: str

    def run(self, backend: ModuleType, problem: Problem, request: Request) -> Slots:
        return Slots(*backend.window(problem, self.rule, request))


@dataclass(frozen=True)
class Weighted:
    """One negative for each anchor-positive pair, drawn by distance."""

    def run(self, backend: ModuleType, problem: Problem, request: Request) -> Slots:
        return Slots(*backend.sample(problem, request))


@dataclass(frozen=True)
class Every:
    """All triplets of positive score."""

    def run(self, backend: ModuleType, problem: Problem, request: Request) -> Slots:
        return Slots(*backend.every_triplet(problem, request))


Plan = PerAnchor | Assorted | PerPair | Weighted | Every

STRATEGIES: dict[str, Plan] = {
    "hard": PerPair("hard"),
    "semi-hard": PerPair("semi-hard"),
    "random-hard": PerPair("random-hard"),
    "semi-hard-nearest": PerPair("semi-hard-nearest"),
    "distance-weighted": Weighted(),
    "epen": PerAnchor(NEAREST_POSITIVE, FARTHEST_NEGATIVE),
    "ephn": PerAnchor(NEAREST_POSITIVE, NEAREST_NEGATIVE),
    "hpen": PerAnchor(FARTHEST_POSITIVE, FARTHEST_NEGATIVE),
    "hphn": PerAnchor(FARTHEST_POSITIVE, NEAREST_NEGATIVE),
    "batch-hard": PerAnchor(FARTHEST_POSITIVE, NEAREST_NEGATIVE),
    "assorted": Assorted(),
    "easy-positive": PerAnchor(NEAREST_POSITIVE, NEAREST_NEGATIVE),
    "all": Every(),
}


def _anchor_slots(problem: Problem, positives: Any, negatives: Any) -> Slots:
    """An anchor without a positive or without a negative yields nothing."""
    return Slots(problem.indices(), positives, problem.where(positives < 0, -1, negatives))
