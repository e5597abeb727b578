"""The C++ kernels of csrc/cpu as a backend."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from minerlib import inputs, strategies
from minerlib.inputs import Problem, Relevance, SingleLabels
from minerlib.strategies import Request
from minerlib.threads import get_num_threads

_native: ModuleType | None
try:
    from minerlib import _native  # type: ignore[no-redef]

    _missing = ""
except ImportError as error:
    _native = None
    _missing = f"the native extension is not built or does not load ({error})"

PAIRS_RANKED = 1 << 31  # in one call of `hamming_average_precision`: about a second, and none of them is held

_RULES = ("hard", "semi-hard", "random-hard", "semi-hard-nearest")
_pinned: str | None = None

_Columns = tuple[np.ndarray, np.ndarray, np.ndarray]


def reasons_unusable() -> tuple[str, ...]:
    return (_missing,) if _missing else ()


@functools.cache
def instruction_sets() -> tuple[str, ...]:
    """Those this processor has, best last; empty without the extension."""
    if _native is None:
        return ()
    if _native.without_amx() == _native.self_check_failed:
        warnings.warn(
            "minerlib: this processor's AMX did not pass the self-check of the kernels that use it; "
            f"{_native.instruction_sets()[-1]} is used instead. Please report this processor.",
            RuntimeWarning,
            stacklevel=2,
        )
    return tuple(_native.instruction_sets())


def emulated_instruction_sets() -> tuple[str, ...]:
    """Those that tests may name where the processor lacks the real ones."""
    return tuple(_native.emulated_instruction_sets()) if _native is not None else ()


def instruction_set() -> str:
    """The one the kernels use: the best, unless another is pinned."""
    return _pinned or instruction_sets()[-1]


@contextlib.contextmanager
def use_instruction_set(name: str) -> Iterator[None]:
    """Pin an instruction set, for tests and measurements; answers do not depend on it."""
    global _pinned
    inputs.one_of("name", name, (*instruction_sets(), *emulated_instruction_sets()))
    before, _pinned = _pinned, name
    try:
        yield
    finally:
        _pinned = before


def info() -> dict[str, Any]:
    """What was built and what is used, for `minerlib info`."""
    if _native is None:
        return {"built": False, "reason": _missing}
    return {
        "built": True,
        "compiler": _native.compiler,
        "instruction_sets": instruction_sets(),
        "instruction_set": instruction_set(),
        "without_amx": _native.without_amx(),
    }


def extremes(problem: Problem, wanted: Iterable[int], exact: bool) -> np.ndarray:
    if _empty(problem):
        return np.full((4, len(problem.anchors)), -1, dtype=np.int64)
    mask = sum(1 << which for which in set(wanted))
    out: np.ndarray = _kernels().extremes(instruction_set(), _call(problem, exact), mask)
    return out


def keep_buffers() -> Any:
    """While what this returns lives, large work memory of one call stays for the next (csrc/cpu/memory.h)."""
    return _kernels().KeepBuffers()


def chunk_extremes(
    rows: np.ndarray,  # [n, D]: those of one chunk, then those of another
    split: int,  # how many are of the first; 0: one chunk alone
    firsts: tuple[int, int],  # what the first row of each is called
    labels: tuple[np.ndarray, ...],  # classes and order [n] int64, or bits [n, W] uint64
    limits: np.ndarray | None,  # [n] float64
    metric: str,
    wanted: Iterable[int],
    records: np.ndarray,  # [n, 8] float64, changed: four values and the bits of four row numbers
) -> None:
    """Improve the extremes of each chunk's rows by the other's rows (csrc/cpu/chunk_extremes_impl.h)."""
    mask = sum(1 << which for which in set(wanted))
    _kernels().chunk_extremes(
        instruction_set(), rows, split, *firsts, labels, limits, inputs.METRICS.index(metric), mask,
        get_num_threads(), records,
    )  # fmt: skip


def window(problem: Problem, rule: str, request: Request) -> _Columns:
    if _empty(problem):
        return _no_slots()
    call, options = _call(problem, request.exact), _options(request)
    slots: _Columns = _kernels().window(instruction_set(), call, _RULES.index(rule), options)
    return slots


def sample(problem: Problem, request: Request) -> _Columns:
    if _empty(problem):
        return _no_slots()
    slots: _Columns = _kernels().sample(instruction_set(), _call(problem, request.exact), _options(request))
    if request.fallback != "drop":
        _fall_back(problem, request, *slots)
    return slots


def every_triplet(problem: Problem, request: Request) -> _Columns:
    if _empty(problem):
        return _no_slots()
    call = _call(problem, request.exact)
    triplets: _Columns = _kernels().every_triplet(instruction_set(), call, _options(request))
    return triplets


def counts(problem: Problem, request: Request) -> tuple[int, int, int]:
    if _empty(problem):
        return 0, 0, 0
    call, options = _call(problem, request.exact), _options(request)
    total, scored, semi_hard = _kernels().count_window(instruction_set(), call, options)
    return int(total.sum()), int(scored.sum() - semi_hard.sum()), int(semi_hard.sum())


def topk(problem: Problem, k: int, exact: bool) -> tuple[np.ndarray, np.ndarray]:
    found: tuple[np.ndarray, np.ndarray] = _kernels().topk(instruction_set(), _call(problem, exact), k)
    return found


def pairwise(problem: Problem) -> np.ndarray:
    if _empty(problem):
        return np.empty((len(problem.anchors), len(problem.columns)))
    out: np.ndarray = _kernels().pairwise(instruction_set(), _call(problem, True))
    return out


def hamming_distance(
    a: np.ndarray,  # [N, bytes] uint8
    b: np.ndarray,  # [M, bytes] uint8
) -> np.ndarray:  # [N, M] int32
    out: np.ndarray = _kernels().hamming_distance(instruction_set(), a, b, get_num_threads())
    return out


def hamming_search(
    queries: np.ndarray,  # [Q, bytes] uint8
    database: np.ndarray,  # [M, bytes] uint8
    k: int,
) -> tuple[np.ndarray, np.ndarray]:  # [Q, k] int32, [Q, k] int64
    found: tuple[np.ndarray, np.ndarray] = _kernels().hamming_search(
        instruction_set(), queries, database, k, get_num_threads()
    )
    return found


def hamming_range(
    queries: np.ndarray,  # [Q, bytes] uint8
    database: np.ndarray,  # [M, bytes] uint8
    radius: int,
) -> _Columns:  # offsets [Q + 1] int64, indices [T] int64, distances [T] int32
    radius = min(radius, 8 * queries.shape[1])
    hits: _Columns = _kernels().hamming_range(instruction_set(), queries, database, radius, get_num_threads())
    return hits


def hamming_counts(
    queries: np.ndarray,  # [Q, bytes] uint8
    database: np.ndarray,  # [M, bytes] uint8
    relevance: Relevance,
) -> tuple[np.ndarray, np.ndarray]:  # [Q, 8 * bytes + 1] int64, all codes and relevant ones
    counts: tuple[np.ndarray, np.ndarray] = _kernels().hamming_counts(
        instruction_set(), queries, database, _sides(relevance), relevance.own, get_num_threads()
    )
    return counts


def hamming_average_precision(
    queries: np.ndarray,  # [Q, bytes] uint8
    database: np.ndarray,  # [M, bytes] uint8
    relevance: Relevance,
    k: int,
) -> np.ndarray:  # [Q] float64
    out: np.ndarray = _kernels().hamming_average_precision(
        instruction_set(), queries, database, _sides(relevance), relevance.own, k, get_num_threads()
    )
    return out


def losses_triplet(
    x: np.ndarray,  # [N, D]
    y: np.ndarray | None,  # [M, D], None: x
    triplets: tuple[np.ndarray, ...],  # anchors, positives, negatives [T] int64
    margin: float,
    comparison: int,
    reduction: int,
    soft: bool,
    differentiate: bool,
) -> tuple[float, np.ndarray | None, np.ndarray | None]:  # loss, gradients of x and y
    found: tuple[float, np.ndarray | None, np.ndarray | None] = _kernels().losses_triplet(
        instruction_set(), x, y, *triplets, margin, comparison, reduction, soft,
        differentiate, get_num_threads(),
    )  # fmt: skip
    return found


def losses_batch_all(
    problem: Problem,
    margin: float,
    reduction: int,
    differentiate: bool,
) -> tuple[
    float, np.ndarray | None, np.ndarray | None
]:  # loss, gradients of anchors and of another reference
    found: tuple[float, np.ndarray | None, np.ndarray | None] = _kernels().losses_batch_all(
        instruction_set(), _call(problem, True), margin, reduction, differentiate
    )
    return found


def scan_choose(
    problem: Problem,
    wanted: tuple[bool, bool],  # positives, negatives
    farthest: tuple[bool, bool],
    ranges: tuple[float, float, float, float],  # what positives' and negatives' distances may be
    second: int,  # the side that stays strictly beyond the other's choice (1: negatives), -1: neither
) -> tuple[np.ndarray, np.ndarray]:  # columns [N, 2] int64, -1 for none; distances [N, 2]
    """One positive and one negative for each anchor; csrc/cpu/scan_impl.h."""
    nearest = (not farthest[0], not farthest[1])
    low, high = (ranges[0], ranges[2]), (ranges[1], ranges[3])
    chosen: tuple[np.ndarray, np.ndarray] = _kernels().scan_choose(
        instruction_set(), _call(problem, True), wanted, nearest, low, high, second
    )
    return chosen


def scan_pairs(
    problem: Problem, epsilon: float, edges: tuple[float, float] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Positives with d + epsilon > edge and negatives with d - epsilon < edge: (a1, p, a2, n)."""
    positives, negatives = _kernels().scan_pairs(instruction_set(), _call(problem, True), epsilon, edges)
    return *positives, *negatives


def scan_triplets(problem: Problem, above: float, up_to: float) -> _Columns:
    """Every triplet with above < d(a, n) - d(a, p) <= up_to, by anchor, positive, negative."""
    found: _Columns = _kernels().scan_triplets(instruction_set(), _call(problem, True), above, up_to)
    return found


def every_pair(problem: Problem, same: bool) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of one class, or of two, by anchor, then column."""
    pairs: tuple[np.ndarray, np.ndarray] = _kernels().every_pair(_call(problem, True), same)
    return pairs


def _sides(relevance: Relevance) -> tuple[np.ndarray | None, np.ndarray | None]:
    if relevance.query_bits is not None:
        return relevance.query_bits, relevance.database_bits
    return relevance.query_classes, relevance.database_classes


def _kernels() -> ModuleType:
    assert _native is not None, "dispatch chooses this backend only where it is usable"
    return _native


def _empty(problem: Problem) -> bool:
    return len(problem.anchors) == 0 or len(problem.columns) == 0


def _no_slots() -> _Columns:
    return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64)


def _call(problem: Problem, exact: bool) -> Any:
    labels: tuple[np.ndarray, ...] | None = None
    if isinstance(problem.labels, SingleLabels):
        labels = (problem.labels.anchor_class, problem.labels.starts, problem.labels.members)
    elif problem.labels is not None:
        labels = (problem.labels.anchor_bits, problem.labels.column_bits)
    metric = inputs.METRICS.index(problem.metric)
    return _kernels().Call(
        problem.anchors, problem.columns, labels, problem.own, metric, exact, get_num_threads()
    )  # fmt: skip


def _options(request: Request) -> Any:
    combinations, fallback = request.pairs == "combinations", inputs.FALLBACKS.index(request.fallback)
    return _kernels().PairOptions(request.margin, request.seed, combinations, fallback)


def _fall_back(
    problem: Problem,
    request: Request,
    anchors: np.ndarray,  # [P]
    positives: np.ndarray,  # [P]
    negatives: np.ndarray,  # [P], filled in where it is -1
) -> None:
    """Pairs whose negatives all weigh nothing take an extreme one, by the metric."""
    open_slots = np.flatnonzero(negatives < 0)
    if len(open_slots):
        hardest = request.fallback == "hardest"
        which = strategies.NEAREST_NEGATIVE if hardest else strategies.FARTHEST_NEGATIVE
        negatives[open_slots] = extremes(problem, (which,), request.exact)[which][anchors[open_slots]]
