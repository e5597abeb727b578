"""A contest: one piece of work, our way and others' ways to do it, checked first and then timed in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from minerlib.benchmarks import machine
from minerlib.benchmarks.results import OURS, Outcome, Timing

_TURN_SECONDS = 0.02  # a turn of fast calls lasts about this long
_GLANCE_SECONDS = 0.005  # between turns, over and over until threads that wait awake have gone to sleep
_ASLEEP = 0.1  # the share of a glance for which any of our threads may have run
_MOST_GLANCES = 100


@dataclass(frozen=True)
class Contender:
    """Another way to do the work, or a part of it.

    `check(ours, theirs)` raises `Disagreement`. A `peer` does the whole work; a `part` only a step of it,
    such as the matrix product, and is a mark to beat, not a rival; `own` is minerlib itself at other work.
    The needs are rough and only decide whether to try.
    """

    name: str
    run: Callable[[], Any]
    check: Callable[[Any, Any], None]
    role: str = "peer"
    bytes_needed: float = 0
    seconds_needed: float = 0
    unavailable: str = ""
    share: float = 1.0  # of the work that it does, one too slow for all of it; its times are scaled up


@dataclass(frozen=True)
class Contest:
    """The work itself: `pairs` rows are compared, at 2 * dims operations each."""

    pairs: int
    dims: int  # 0 for codes, which are not multiplied
    ours: Callable[[], Any]
    judge: Callable[[Any], None]  # our result against the definition; raises Disagreement
    others: tuple[Contender, ...] = ()


@dataclass(frozen=True)
class Spec:
    """What identifies a contest: a kind of `works.KINDS` and its options, plain enough for JSON."""

    title: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """How long to measure."""

    seconds: float = 2.0  # a contender's timed calls, where that leaves `least_rounds`
    rounds: int = 15
    least_rounds: int = 3
    call_seconds: float = 8.0  # a contender that would take longer for one call is left out
    wall_seconds: float = 40.0  # no further round begins after that: a busy machine, whose figures say little
    gemm_size: int = 2048


#: Name, role, what to call, about how many seconds a call takes, and which share of the work it does.
_Estimate = tuple[str, str, Callable[[], Any], float, float]


class _Turns:
    """The timed calls of one contender."""

    def __init__(
        self, call: Callable[[], Any], estimate: float, limits: Limits, most: int, share: float = 1.0
    ) -> None:
        self.call, self.estimate, self.share = call, max(estimate, 1e-7), share
        self.calls_a_turn = min(50, max(1, round(_TURN_SECONDS / self.estimate)))
        wanted = int(limits.seconds / (self.calls_a_turn * self.estimate))
        self.turns = min(most, max(limits.least_rounds, wanted))
        self.medians: list[float] = []
        self.fastest = float("inf")

    def take(self) -> None:
        settle()
        if self.estimate < 0.05:
            self.call()
        taken = [seconds(self.call) for _ in range(self.calls_a_turn)]
        self.medians.append(statistics.median(taken))
        self.fastest = min(self.fastest, *taken)

    def timing(self, name: str, role: str) -> Timing:
        calls = self.calls_a_turn * len(self.medians)
        median = statistics.median(self.medians)
        return Timing(name, role, median / self.share, self.fastest / self.share, calls)


def settle() -> None:
    """Sleep until this process uses no more processor time.

    Threads of torch, OpenBLAS and faiss wait awake for their next work, up to some 20 ms where a processor's
    pauses are long, and would meanwhile keep the cores from the threads of whoever is next.
    """
    for _ in range(_MOST_GLANCES):
        start, worked = time.perf_counter(), time.process_time()
        time.sleep(_GLANCE_SECONDS)
        if time.process_time() - worked < _ASLEEP * (time.perf_counter() - start):
            return


def seconds(call: Callable[[], Any]) -> float:
    """The time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def reason_to_skip(contender: Contender, limits: Limits) -> str:
    """Why a contender is left out, or an empty string."""
    if contender.unavailable:
        return contender.unavailable
    available = machine.available_memory()
    if contender.bytes_needed > 0.7 * available:
        return f"needs about {contender.bytes_needed / 1e9:.1f} GB, {available / 1e9:.1f} GB are free"
    if contender.seconds_needed > limits.call_seconds:
        return f"takes about {contender.seconds_needed:.0f} s a call, the limit is {limits.call_seconds:g} s"
    return ""


def hold(
    spec: Spec,
    contest: Contest,
    limits: Limits | None = None,
    *,
    instruction_set: str | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Check every result, then time all contenders in turn. Raises `Disagreement` where a check fails."""
    limits = limits or Limits()
    with pinned(instruction_set):
        skipped: dict[str, str] = {}
        estimates: list[_Estimate] = []
        start = time.perf_counter()
        ours = contest.ours()
        estimates.append((OURS, OURS, contest.ours, time.perf_counter() - start, 1.0))
        contest.judge(ours)
        for contender in contest.others:
            reason = reason_to_skip(contender, limits)
            if reason:
                skipped[contender.name] = reason
                say(f"  {contender.name} left out: {reason}")
                continue
            start = time.perf_counter()
            theirs = contender.run()
            estimate = time.perf_counter() - start
            contender.check(ours, theirs)
            del theirs
            estimates.append((contender.name, contender.role, contender.run, estimate, contender.share))
        del ours
        product = machine.square_product(limits.gemm_size)
        product()
        timings, gemm_seconds = _alternate(estimates, product, limits)
    return Outcome(
        title=spec.title,
        kind=spec.kind,
        options=dict(spec.options),
        instruction_set=instruction_set or machine.instruction_set(),
        pairs=contest.pairs,
        dims=contest.dims,
        timings=timings,
        skipped=skipped,
        gemm_rate=2 * limits.gemm_size**3 / gemm_seconds,
    )


def _alternate(
    estimates: Sequence[_Estimate],
    product: Callable[[], Any],
    limits: Limits,
) -> tuple[list[Timing], float]:
    """Everyone in turn, so that all meet the same state of the machine; those with few turns spread out."""
    players = [
        _Turns(call, estimate, limits, limits.rounds, share) for _, _, call, estimate, share in estimates
    ]
    gemm = _Turns(product, seconds(product), limits, min(5, limits.rounds))
    rounds = max(player.turns for player in players)
    start = time.perf_counter()
    for turn in range(rounds):
        if turn > 0 and time.perf_counter() - start > limits.wall_seconds:
            break
        for player in (*players, gemm):
            if turn * player.turns % rounds < player.turns:
                player.take()
    timings = [player.timing(name, role) for player, (name, role, *_) in zip(players, estimates, strict=True)]
    return timings, statistics.median(gemm.medians)


def pinned(instruction_set: str | None) -> AbstractContextManager[None]:
    """Our kernels on one instruction set, or on the best where it is None."""
    if instruction_set is None:
        return nullcontext()
    from minerlib.backends import native

    return native.use_instruction_set(instruction_set)
