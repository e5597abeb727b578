"""`mine` and `count_triplets`: triplets from a batch of embeddings and its labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from minerlib import dispatch, inputs
from minerlib.arrays import Origin
from minerlib.inputs import Problem
from minerlib.results import PaddedTriplets, TripletCounts, Triplets
from minerlib.strategies import STRATEGIES, PerPair, Request, Slots, Weighted


def mine(
    embeddings: Any,  # [N, D]
    labels: Any,  # [N] or [N, C] bool
    strategy: str,
    *,
    margin: float = 0.2,
    metric: str = "sqeuclidean",
    reference: Any = None,  # [M, D]
    reference_labels: Any = None,  # [M] or [M, C] bool
    pairs: str = "ordered",
    fallback: str = "drop",
    seed: int = 0,
    exact: bool = True,
    compact: bool = True,
    slots: int | None = None,
    backend: str = "auto",
) -> Triplets | PaddedTriplets:
    """Choose triplets (anchor, positive, negative); the same ones, bit for bit, on every backend.

    Args:
        embeddings: `[N, D]` float16, bfloat16, float32 or float64; a torch tensor on any device, a NumPy
            array (memory-mapped too) or anything that speaks DLPack. Gradients are ignored.
        labels: `[N]` integers or bool, or `[N, C]` bool: rows that share a label are of one class.
        strategy: per anchor-positive pair `hard`, `semi-hard`, `random-hard` (JTANet), `semi-hard-nearest`
            (FaceNet), `distance-weighted` (Wu et al.); per anchor `epen`, `ephn`, `hpen`, `hphn` =
            `batch-hard`, `assorted`, `easy-positive` (extreme distances); or `all` (batch all).
        margin: in the metric's unit, finite and at least 0.
        metric: `sqeuclidean`, `euclidean` or `cosine` (1 - cosine similarity).
        reference, reference_labels: `[M, D]` and `[M]`: where positives and negatives come from instead
            of the embeddings themselves.
        pairs: `ordered` takes (a, p) and (p, a), `combinations` takes a < p only.
        fallback: what a pair without an eligible negative does: `drop`, `hardest` or `farthest`.
        seed: 0 <= seed < 2^64, for the random strategies.
        exact: decide on canonical float64 distances; False takes the fast path's own float32 answer.
        compact: False gives one slot for each anchor or pair and a mask instead of only what was mined.
        slots: with `compact=False` and a strategy per pair, how many slots there are, whatever the number of
            pairs: further ones are invalid, pairs beyond them are left out. On a GPU nothing then waits for
            the device; without it the host reads how many pairs there are.
        backend: `auto`, or a name of `explain("mine")`.

    Returns:
        `Triplets` of int64 `[T]` arrays of the caller's kind on the caller's device, sorted by anchor, then
        positive, then negative; or `PaddedTriplets` with `compact=False`.

    Raises:
        TypeError, ValueError: bad input; the message names the argument, what was expected and what came.
        BackendUnavailable: the backend was named and cannot be used; the message lists the reasons.

    Memory: about N * D * 4 bytes beside the inputs, and O(N) a thread; no N x N array beyond 4 MB.

    Source: SPEC sections 2-4 and the papers named there.

    >>> import minerlib, numpy as np
    >>> x = np.array([[0.0], [1.0], [3.0], [9.0]], dtype=np.float32)
    >>> minerlib.mine(x, np.array([0, 0, 1, 1]), "batch-hard").negatives.tolist()
    [2, 2, 1, 1]
    """
    arguments = (embeddings, labels, reference, reference_labels, metric)
    slots = _slots(slots, compact, strategy)
    if not compact and dispatch.traced(backend, embeddings):  # first, as torch cannot trace much of the rest
        from minerlib import ops

        request = _request(strategy, margin, reference, pairs, fallback, seed, exact, compact)
        return PaddedTriplets(*ops.padded(*arguments[:4], strategy, metric, request, slots))
    backend = dispatch.resolve(backend, embeddings, rows=True)
    if dispatch.on_device(backend):
        from minerlib import device_inputs, device_mining

        request = _request(strategy, margin, reference, pairs, fallback, seed, exact, compact)
        found = device_inputs.mining_problem(*arguments, strict=bool(compact))
        found = replace(found, slots=slots)
        return device_mining.run(STRATEGIES[strategy], found, request, compact)
    request = _request(strategy, margin, reference, pairs, fallback, seed, exact, compact)
    problem = inputs.mining_problem(*arguments)
    mined = STRATEGIES[strategy].run(dispatch.choose(backend, rows=True), problem, request)
    return _compact(mined, problem.origin) if compact else _padded(mined, problem, slots)


def check_mine(
    embeddings: Any,
    labels: Any,
    strategy: str,
    *,
    margin: float = 0.2,
    metric: str = "sqeuclidean",
    reference: Any = None,
    reference_labels: Any = None,
    pairs: str = "ordered",
    fallback: str = "drop",
    seed: int = 0,
    exact: bool = True,
    compact: bool = True,
    slots: int | None = None,
) -> tuple[Problem, Request]:
    """The arguments of `mine`, validated."""
    _slots(slots, compact, strategy)
    request = _request(strategy, margin, reference, pairs, fallback, seed, exact, compact)
    return inputs.mining_problem(embeddings, labels, reference, reference_labels, metric), request


def _request(
    strategy: str,
    margin: float,
    reference: Any,
    pairs: str,
    fallback: str,
    seed: int,
    exact: bool,
    compact: bool,
) -> Request:
    """What does not concern rows, validated."""
    inputs.one_of("strategy", strategy, tuple(STRATEGIES))
    inputs.one_of("fallback", fallback, inputs.FALLBACKS)
    if not inputs.boolean("compact", compact) and strategy == "all":
        raise ValueError(
            "compact: expected True with strategy 'all', whose number of triplets is not known beforehand; "
            "got False"
        )
    return Request(
        margin=inputs.finite_non_negative("margin", margin),
        pairs=_pairs(pairs, reference),
        fallback=fallback,
        seed=inputs.seed_value(seed),
        exact=inputs.boolean("exact", exact),
    )


def count_triplets(
    embeddings: Any,  # [N, D]
    labels: Any,  # [N] or [N, C] bool
    *,
    margin: float = 0.2,
    metric: str = "sqeuclidean",
    reference: Any = None,  # [M, D]
    reference_labels: Any = None,  # [M] or [M, C] bool
    pairs: str = "ordered",
    exact: bool = True,
    backend: str = "auto",
) -> TripletCounts:
    """Count the triplets of each kind without listing them.

    With score s = (d(a,p) - d(a,n)) + margin: `hard` have s >= margin (the negative is no farther than the
    positive), `semi_hard` 0 < s < margin, `easy` s <= 0. With margin 0, s = 0 counts as easy.

    Arguments, errors and memory are those of `mine`.

    >>> import minerlib, numpy as np
    >>> x = np.array([[0.0], [1.0], [1.5], [9.0]], dtype=np.float32)
    >>> minerlib.count_triplets(x, np.array([0, 0, 1, 1]), margin=2.0)
    TripletCounts(total=8, hard=3, semi_hard=1, easy=4)
    """
    arguments = (embeddings, labels, reference, reference_labels, metric)
    request = _counting(margin, reference, pairs, exact)
    backend = dispatch.resolve(backend, embeddings, rows=True)
    if dispatch.on_device(backend):
        from minerlib import device_inputs, device_mining

        found = device_inputs.mining_problem(*arguments)
        total, hard, semi_hard = device_mining.adapter(found).counts(found, request)
    else:
        problem = inputs.mining_problem(*arguments)
        total, hard, semi_hard = dispatch.choose(backend, rows=True).counts(problem, request)
    return TripletCounts(total, hard, semi_hard, total - hard - semi_hard)


def check_count_triplets(
    embeddings: Any,
    labels: Any,
    *,
    margin: float = 0.2,
    metric: str = "sqeuclidean",
    reference: Any = None,
    reference_labels: Any = None,
    pairs: str = "ordered",
    exact: bool = True,
) -> tuple[Problem, Request]:
    """The arguments of `count_triplets`, validated."""
    request = _counting(margin, reference, pairs, exact)
    return inputs.mining_problem(embeddings, labels, reference, reference_labels, metric), request


def _counting(margin: float, reference: Any, pairs: str, exact: bool) -> Request:
    return Request(
        margin=inputs.finite_non_negative("margin", margin),
        pairs=_pairs(pairs, reference),
        fallback="drop",
        seed=0,
        exact=inputs.boolean("exact", exact),
    )


def _pairs(pairs: str, reference: Any) -> str:
    inputs.one_of("pairs", pairs, inputs.PAIRS)
    if pairs == "combinations" and reference is not None:
        raise ValueError(
            "pairs: expected 'ordered' with a reference, where (a, p) has no mirror image (p, a); "
            "got 'combinations'"
        )
    return pairs


def _compact(slots: Slots, origin: Origin) -> Triplets:
    anchors, positives, negatives = slots.anchors, slots.positives, slots.negatives
    valid = negatives >= 0
    if not valid.all():
        anchors, positives, negatives = anchors[valid], positives[valid], negatives[valid]
    return Triplets(origin.wrap(anchors), origin.wrap(positives), origin.wrap(negatives))


def _slots(slots: Any, compact: bool, strategy: str) -> int | None:
    if slots is None:
        return None
    inputs.one_of("strategy", strategy, tuple(STRATEGIES))
    if compact or not isinstance(STRATEGIES[strategy], (PerPair, Weighted)):
        raise ValueError(
            "slots: expected None unless compact is False and the strategy is one per pair, "
            f"got {slots!r} with {strategy!r}"
        )
    return inputs.integer("slots", slots, 0, 2**31 - 1)


def _padded(mined: Slots, problem: Problem, slots: int | None) -> PaddedTriplets:
    anchors, positives, negatives = mined.anchors, mined.positives, mined.negatives
    if slots is not None:
        pairs = len(anchors)
        if pairs == 0:  # no pair to repeat
            anchors = positives = np.array([max(0, len(problem.anchors) - 1)])
            negatives = np.array([-1])
        place = np.minimum(np.arange(slots), max(0, pairs - 1))
        anchors, positives = anchors[place], positives[place]
        negatives = np.where(np.arange(slots) < pairs, negatives[place], -1)
    valid = negatives >= 0
    positives = np.where(valid, positives, anchors)
    negatives = np.where(valid, negatives, anchors)
    return PaddedTriplets(*(problem.origin.wrap(array) for array in (anchors, positives, negatives, valid)))
