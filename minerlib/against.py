"""Some rows of a set mined against the whole set, with the answers that mining the whole set gives them.

What a memory of past batches and several ranks have in common: the anchors are rows `first` to `last` of a
larger set, a row is never its own positive, and random choices belong to positions in that set.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minerlib import inputs, mining, random, strategies
from minerlib.arrays import to_numpy
from minerlib.inputs import Problem, SingleLabels
from minerlib.results import Triplets
from minerlib.scan import Scan

#: Of the positive and of the negative of each choice per anchor: is it the farthest one?
_FARTHEST = {
    "epen": (False, True),
    "ephn": (False, False),
    "hpen": (True, True),
    "hphn": (True, False),
    "batch-hard": (True, False),
    "easy-positive": (False, False),
}
_CASES = ("epen", "ephn", "hpen", "hphn")  # of `assorted`, as its random numbers count them
_RANDOM_PAIRS = (
    "semi-hard",
    "random-hard",
    "distance-weighted",
)  # draw by the positions of anchor and positive


def mine_rows(
    rows: Any,  # [N, D]
    labels: Any,  # [N] or [N, C] bool
    strategy: str,
    first: int,
    last: int,
    *,
    pairs: str = "ordered",
    backend: str = "auto",
    **options: Any,
) -> Triplets:
    """The triplets of `minerlib.mine(rows, labels, strategy, ...)` whose anchor lies in first .. last - 1.

    Only those anchors are compared with the N rows, except where choices per anchor are made with label
    sets, on a device or by a backend that is named: there the whole set is mined. `options` are the
    remaining keywords of `mine` but `reference`, `reference_labels` and `compact`.

    Raises `TypeError` or `ValueError` as `mine` does. Peak memory: that of `mine`, and a copy of the labels.

    >>> import numpy as np
    >>> x = np.array([[0.0], [1.0], [3.0], [9.0]], dtype=np.float32)
    >>> mine_rows(x, np.array([0, 0, 1, 1]), "batch-hard", 2, 4).negatives.tolist()
    [1, 1]
    """
    inputs.one_of("strategy", strategy, tuple(strategies.STRATEGIES))
    inputs.one_of("pairs", pairs, inputs.PAIRS)
    count = len(rows)
    first = inputs.integer("first", first, 0, count)
    last = inputs.integer("last", last, first, count)
    per_anchor = strategy in _FARTHEST or strategy == "assorted"
    if (first, last) == (0, count) or (per_anchor and not _on_host(rows, labels, backend)):
        found = mining.mine(rows, labels, strategy, pairs=pairs, backend=backend, **options)
        return _kept(found, (found[0] >= first) & (found[0] < last))
    if per_anchor:
        problem, request = mining.check_mine(rows, labels, strategy, **options)
        return _choose(problem, strategy, request.seed, first, last)
    if strategy in _RANDOM_PAIRS:  # anchors keep their positions; those of no class have no positive
        anchor_labels, row_labels = _only(labels, first, last)
        found = mining.mine(
            rows, anchor_labels, strategy, reference=rows, reference_labels=row_labels, backend=backend,
            **options,
        )  # fmt: skip
    else:
        found = mining.mine(
            rows[first:last], labels[first:last], strategy, reference=rows, reference_labels=labels,
            backend=backend, **options,
        )  # fmt: skip
        found = Triplets(found[0] + first, *found[1:3])
    # Against a reference a row counts as its own positive.
    return _kept(found, found[0] < found[1] if pairs == "combinations" else found[0] != found[1])


def _kept(found: Any, keep: Any) -> Triplets:
    return Triplets(*(index[keep] for index in found[:3]))


def _on_host(rows: Any, labels: Any, backend: str) -> bool:
    """Whether a scan may choose: host arrays of one label a row, and no backend asked for."""
    device = getattr(rows, "device", None)
    return backend == "auto" and getattr(device, "type", "cpu") == "cpu" and labels.ndim == 1


def _only(labels: Any, first: int, last: int) -> tuple[Any, Any]:
    """Labels of anchors, where rows outside first .. last - 1 have none, and labels of the reference."""
    array, origin = to_numpy("labels", labels)
    if array.ndim == 2:
        anchors = np.zeros_like(array)
        anchors[first:last] = array[first:last]
        return origin.wrap(anchors), labels
    # dense numbers, as the labels' own type may have none to spare
    dense = np.unique(array, return_inverse=True)[1].astype(np.int64)
    anchors = np.full(len(array), -1)
    anchors[first:last] = dense[first:last]
    return origin.wrap(anchors), origin.wrap(dense)


def _choose(problem: Problem, strategy: str, seed: int, first: int, last: int) -> Triplets:
    """One triplet for each of the anchors, by one scan, or by four for `assorted`."""
    assert isinstance(problem.labels, SingleLabels)
    column_class = problem.labels.anchor_class
    scan = Scan(
        problem.columns[first:last], problem.columns, column_class[first:last], column_class, first,
        inputs.METRICS.index(problem.metric),
    )  # fmt: skip
    anchors = np.arange(first, last)
    if strategy == "assorted":
        case = random.cases(seed, anchors)
        found = [_columns(scan, name) for name in _CASES]
        index = np.stack(found)[case, np.arange(len(case))]
    else:
        index = _columns(scan, strategy)
    keep = (index >= 0).all(axis=1)
    return Triplets(
        *(problem.origin.wrap(column) for column in (anchors[keep], index[keep, 0], index[keep, 1]))
    )


def _columns(scan: Scan, strategy: str) -> np.ndarray:  # [anchors, 2], -1 for none
    from minerlib._scan_kernels import NEITHER

    unbounded = (-np.inf, np.inf, -np.inf, np.inf)
    return scan.choose(_FARTHEST[strategy], unbounded, NEITHER)[0]
