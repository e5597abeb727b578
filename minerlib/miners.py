"""Mining as objects, for those who configure once and call often: one class for each strategy.

    miner = minerlib.miners.SemiHard(margin=0.2)
    anchors, positives, negatives = miner(embeddings, labels)

A miner is a small mutable record: `miner.margin = 0.5` between epochs is fine. Those that draw at random use
another seed for every call, made from `seed` and the number of calls so far (`calls`), so that a run repeats
when its miner starts afresh, and goes on as it would have when `calls` is restored. Miners pickle, copy and
compare by their settings, and need no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from minerlib import dispatch, inputs
from minerlib.mining import mine
from minerlib.results import PaddedTriplets, Triplets

_MASK = 2**64 - 1


@dataclass(kw_only=True)
class Miner:
    """What every miner shares; use one of its subclasses.

    Args, as `minerlib.mine` has them: `metric`, `exact`, `backend`, and where a strategy knows them `margin`,
    `seed`, `pairs`, `fallback` and `compact`. Wrong ones raise the `TypeError` or `ValueError` of `mine` at
    once. Memory: that of `mine`. Source: SPEC section 4.
    """

    strategy: ClassVar[str] = ""

    metric: str = "sqeuclidean"
    exact: bool = True
    backend: str = "auto"
    #: Calls so far, which random strategies make their next seed from.
    calls: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.strategy:
            raise TypeError("Miner: expected one of its subclasses, which name a strategy")
        inputs.one_of("metric", self.metric, inputs.METRICS)
        inputs.boolean("exact", self.exact)
        inputs.one_of("backend", self.backend, dispatch.NAMES)
        if hasattr(self, "margin"):
            inputs.finite_non_negative("margin", self.margin)
        if hasattr(self, "pairs"):
            inputs.one_of("pairs", self.pairs, inputs.PAIRS)
        if hasattr(self, "fallback"):
            inputs.one_of("fallback", self.fallback, inputs.FALLBACKS)
        if hasattr(self, "seed"):
            inputs.seed_value(self.seed)
        if hasattr(self, "compact"):
            inputs.boolean("compact", self.compact)

    def __call__(
        self,
        embeddings: Any,  # [N, D]
        labels: Any,  # [N] or [N, C] bool
        reference: Any = None,  # [M, D]
        reference_labels: Any = None,  # [M] or [M, C] bool
    ) -> Triplets | PaddedTriplets:
        """The triplets of `minerlib.mine` with this miner's settings."""
        found = mine(
            embeddings, labels, self.strategy, reference=reference, reference_labels=reference_labels,
            **self.options(),
        )  # fmt: skip
        self.calls += 1
        return found

    def options(self) -> dict[str, Any]:
        """The keywords of `minerlib.mine` for the next call."""
        settings = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "calls"}
        if "seed" in settings:
            settings["seed"] = call_seed(settings["seed"], self.calls)
        return settings


def call_seed(seed: int, call: int) -> int:
    """The seed of a miner's call: its own for the first, then well mixed ones (the finaliser of SplitMix64).

    >>> call_seed(5, 0), call_seed(5, 1) == call_seed(5, 2)
    (5, False)
    """
    if call == 0:
        return seed
    z = (seed + call * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


@dataclass(kw_only=True)
class _Padding(Miner):
    compact: bool = True


@dataclass(kw_only=True)
class _PerPair(_Padding):
    pairs: str = "ordered"
    fallback: str = "drop"


@dataclass
class Hard(_PerPair):
    """For each pair the nearest negative, if its hinge loss is positive (JTANet).

    >>> import numpy as np
    >>> Hard(margin=5.0)(np.array([[0.0], [1.0], [3.0]]), np.array([0, 0, 1])).negatives.tolist()
    [2]
    """

    strategy: ClassVar[str] = "hard"

    margin: float = 0.2


@dataclass
class SemiHard(_PerPair):
    """For each pair a negative at random among those that are farther, by less than the margin (JTANet).

    >>> SemiHard(margin=0.5, metric="cosine")
    SemiHard(metric='cosine', exact=True, backend='auto', compact=True, pairs='ordered', fallback='drop',
    margin=0.5, seed=0)
    """

    strategy: ClassVar[str] = "semi-hard"

    margin: float = 0.2
    seed: int = 0


@dataclass
class RandomHard(_PerPair):
    """For each pair a negative at random among those of positive hinge loss (JTANet)."""

    strategy: ClassVar[str] = "random-hard"

    margin: float = 0.2
    seed: int = 0


@dataclass
class SemiHardNearest(_PerPair):
    """For each pair the nearest negative that is farther than the positive (FaceNet)."""

    strategy: ClassVar[str] = "semi-hard-nearest"


@dataclass
class DistanceWeighted(_PerPair):
    """For each pair a negative drawn by the inverse density of its distance (Wu et al. 2017)."""

    strategy: ClassVar[str] = "distance-weighted"

    seed: int = 0


@dataclass
class BatchHard(_Padding):
    """For each anchor the farthest positive and the nearest negative (Hermans et al. 2017)."""

    strategy: ClassVar[str] = "batch-hard"


@dataclass
class HPHN(_Padding):
    """Hardest positive, hardest negative: `BatchHard` by its name in Sikaroudi et al. 2020."""

    strategy: ClassVar[str] = "hphn"


@dataclass
class HPEN(_Padding):
    """Hardest positive, easiest negative (Sikaroudi et al. 2020)."""

    strategy: ClassVar[str] = "hpen"


@dataclass
class EPHN(_Padding):
    """Easiest positive, hardest negative (Sikaroudi et al. 2020)."""

    strategy: ClassVar[str] = "ephn"


@dataclass
class EPEN(_Padding):
    """Easiest positive, easiest negative (Sikaroudi et al. 2020)."""

    strategy: ClassVar[str] = "epen"


@dataclass
class Assorted(_Padding):
    """For each anchor one of EPEN, EPHN, HPEN and HPHN at random (Sikaroudi et al. 2020)."""

    strategy: ClassVar[str] = "assorted"

    seed: int = 0


@dataclass
class EasyPositive(_Padding):
    """For each anchor the nearest positive and the nearest negative (Xuan et al. 2020)."""

    strategy: ClassVar[str] = "easy-positive"


@dataclass
class BatchAll(Miner):
    """Every triplet of positive hinge loss (Ding et al. 2015)."""

    strategy: ClassVar[str] = "all"

    margin: float = 0.2
    pairs: str = field(default="ordered", kw_only=True)


#: The class of each strategy.
MINERS: dict[str, type[Miner]] = {
    kind.strategy: kind
    for kind in (
        Hard, SemiHard, RandomHard, SemiHardNearest, DistanceWeighted, EPEN, EPHN, HPEN, HPHN, BatchHard,
        Assorted, EasyPositive, BatchAll,
    )
}  # fmt: skip
