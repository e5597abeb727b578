"""A miner for training loops that can have the naive miner look over its shoulder on every step."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import minerlib
from minerlib import random, reference
from minerlib.against import mine_rows
from minerlib.benchmarks import per_pair_loop
from minerlib.results import Triplets

NAIVE = "reference"
SELECTOR_STEPS = 1  # of a run is mined by the usual Python loop too, to be timed


@dataclass
class MiningRecord:
    """What was mined and compared so far. Seconds of both miners count validated steps only."""

    steps: int = 0
    triplets: int = 0
    seconds: float = 0.0  # of the miner that chose, over all steps
    step_seconds: float = 0.0  # of whole training steps, without what only validation and comparison take
    validated_steps: int = 0
    validated_triplets: int = 0
    mismatches: int = 0
    border_draws: int = 0  # of distance-weighted sampling, where rounding alone decided between two rows
    fast_seconds: float = 0.0
    naive_seconds: float = 0.0
    selector_steps: int = 0
    selector_seconds: float = 0.0  # of the per-pair Python selectors, in those steps
    aside_seconds: float = 0.0  # of all that no step needs: the second miner, the selectors

    @property
    def share(self) -> float | None:
        """Of a training step, the part that mining took; none before a step was timed."""
        return self.seconds / self.step_seconds if self.step_seconds and self.steps else None

    @property
    def selector_share(self) -> float | None:
        """The part that mining would take with the per-pair Python selectors, where they were timed."""
        if not self.selector_steps or not self.step_seconds:
            return None
        mining = self.selector_seconds / self.selector_steps
        return mining / (mining + (self.step_seconds - self.seconds) / self.steps)


class MinerMismatch(RuntimeError):
    """Two backends chose different triplets; `record` counts what was compared until then."""

    def __init__(self, message: str, record: MiningRecord) -> None:
        super().__init__(message)
        self.record = record


class StepMiner:
    """Mines one training step after another; the same step of the same seed gives the same triplets.

    `backend` chooses the triplets. With `validate` a second miner mines the same rows: the naive one, or
    the fast one where the naive one chooses. On the first step the Python loop that is usual for the
    strategy mines the rows as well, if there is one, to be timed. `options` go to `minerlib.mine` as they
    are.
    """

    def __init__(
        self,
        strategy: str,
        *,
        seed: int,
        backend: str,
        validate: bool,
        record: MiningRecord,
        **options: Any,
    ) -> None:
        self.strategy = strategy
        self.seed = seed
        self.backend = backend
        self.other = ("auto" if backend == NAIVE else NAIVE) if validate else None
        self.record = record
        self.options = options
        self.selectors = per_pair_loop.usual(strategy)
        self._warm_up()

    def __call__(
        self,
        embeddings: Tensor,  # [B, D]
        labels: Tensor,  # [B]
        step: int,
        anchors: range | None = None,
    ) -> Triplets:
        """The triplets of these rows, or those whose anchors lie in a range of them: this rank's own."""
        rows = embeddings.detach()
        chosen, seconds = self._mine(rows, labels, step, self.backend, anchors)
        start = time.perf_counter()
        self.record.steps += 1
        self.record.triplets += len(chosen.anchors)
        self.record.seconds += seconds
        if self.other is not None:
            expected, other_seconds = self._mine(rows, labels, step, self.other, anchors)
            naive_chose = self.backend == NAIVE
            self.record.fast_seconds += other_seconds if naive_chose else seconds
            self.record.naive_seconds += seconds if naive_chose else other_seconds
            self._compare(chosen, expected, step, rows, labels)
        self._time_selectors(rows, labels)
        self.record.aside_seconds += time.perf_counter() - start
        return chosen

    def _mine(
        self, rows: Tensor, labels: Tensor, step: int, backend: str, anchors: range | None
    ) -> tuple[Triplets, float]:
        start = _now(rows)
        options = {"seed": step_seed(self.seed, step), "backend": backend, **self.options}
        if anchors is None or len(anchors) == len(rows):
            triplets = minerlib.mine(rows, labels, self.strategy, **options)
        else:
            triplets = mine_rows(rows, labels, self.strategy, anchors.start, anchors.stop, **options)
        assert isinstance(triplets, Triplets)
        return triplets, _now(rows) - start

    def _time_selectors(self, rows: Tensor, labels: Tensor) -> None:
        if self.selectors is None or self.record.selector_steps >= SELECTOR_STEPS:
            return
        start = time.perf_counter()
        self.selectors(rows.float(), labels, self.options.get("margin", 0.2))
        self.record.selector_seconds += time.perf_counter() - start
        self.record.selector_steps += 1

    def _compare(self, chosen: Triplets, expected: Triplets, step: int, rows: Tensor, labels: Tensor) -> None:
        self.record.validated_steps += 1
        self.record.validated_triplets += len(chosen.anchors)
        ours, theirs = (torch.stack(tuple(triplets), dim=1).cpu() for triplets in (chosen, expected))
        if torch.equal(ours, theirs):
            return
        shared = min(len(ours), len(theirs))
        differs = (ours[:shared] != theirs[:shared]).any(dim=1).nonzero()[:, 0]
        if self.strategy == "distance-weighted" and len(ours) == len(theirs):
            pairs = zip(ours[differs].tolist(), theirs[differs].tolist(), strict=True)
            seed = step_seed(self.seed, step)
            at_border = [_at_border(rows, labels, seed, one, other) for one, other in pairs]
            if all(at_border):
                self.record.border_draws += len(at_border)
                return
        self.record.mismatches += 1
        first = int(differs[0]) if len(differs) else shared
        raise MinerMismatch(
            f"step {step}: triplet {first} is {_shown(ours, first)} by {self.backend} and "
            f"{_shown(theirs, first)} by {self.other} ({len(ours)} and {len(theirs)} triplets)",
            self.record,
        )

    def _warm_up(self) -> None:
        """Load or compile what the backends need, so that no step pays for it."""
        rows, labels = torch.arange(8.0)[:, None], torch.arange(8) % 2
        for backend in (self.backend, self.other):
            if backend is not None:
                minerlib.mine(rows, labels, self.strategy, backend=backend, **self.options)


def _at_border(
    rows: Tensor,  # [B, D]
    labels: Tensor,  # [B]
    seed: int,
    one: list[int],
    other: list[int],
) -> bool:
    """Whether a distance-weighted draw fell on the border between two rows, as near as float32 weights tell.

    Backends promise the same draw for the same weights only to the rounding of their weights, which near a
    border between running sums decides for one row or the next.
    """
    anchor, positive = one[:2]
    if other[:2] != [anchor, positive]:
        return False
    x, classes = rows.cpu().double().numpy(), labels.cpu().numpy()
    negatives = np.flatnonzero(classes != classes[anchor])
    weights = reference.DistanceWeights(x, x).log_weights(anchor, negatives)
    sums = np.exp(weights - weights.max()).cumsum()
    first, last = np.searchsorted(negatives, sorted((one[2], other[2])))
    target = random.uniform_bits(seed, anchor, positive) / 2.0**64 * sums[-1]
    borders = sums[first:last]  # between the two rows; rows that weigh nothing have the same
    return bool((np.abs(borders - target) <= 1e-6 * x.shape[1] * sums[-1]).all())


def _now(rows: Tensor) -> float:
    """The time, when all work given to the rows' device is done."""
    if rows.is_cuda:
        torch.cuda.synchronize(rows.device)
    return time.perf_counter()


def step_seed(seed: int, step: int) -> int:
    """A mining seed of 64 bits for each step of a run, whoever mines.

    >>> step_seed(0, 1) == step_seed(0, 1) != step_seed(0, 2)
    True
    """
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])


def _shown(
    triplets: Tensor,  # [T, 3]
    number: int,
) -> str:
    return str(tuple(triplets[number].tolist())) if number < len(triplets) else "missing"
