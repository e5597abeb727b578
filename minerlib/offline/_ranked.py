"""Each row's K nearest negatives over chunks, by (distance, row number): the rows of `RANKED`."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from minerlib import inputs
from minerlib.arrays import Origin
from minerlib.inputs import MultiLabels, Problem
from minerlib.offline._bests import RANKED, Chunk, same_class

_TILE = 1 << 20  # distances held at a time where there is no native kernel


def offer(
    backend: ModuleType,
    x: Chunk,
    y: Chunk,
    metric: str,
    ranked: np.ndarray,  # [n, K] RANKED of the rows of x, changed
) -> None:
    """Rank the negatives among the rows of y with those ranked before; x may be y."""
    k = min(ranked.shape[1], len(y.rows))
    if not (k and len(x.rows)):
        return
    space = "cosine" if metric == "cosine" else "sqeuclidean"
    if hasattr(backend, "chunk_extremes"):  # the native topk, which ranks negatives where there are labels
        labels = (
            inputs.group(x.labels, None if x is y else y.labels)
            if x.labels.ndim == 1
            else MultiLabels(x.labels, y.labels)
        )
        problem = Problem(x.rows, y.rows, labels, x is y, space, Origin("numpy"))
        values, columns = backend.topk(problem, k, True)
        merge(ranked, values, columns, y.first)
        return
    step = max(1, _TILE // len(y.rows))
    for low in range(0, len(x.rows), step):
        some = slice(low, low + step)
        problem = Problem(x.rows[some], y.rows, None, False, space, Origin("numpy"))
        distances = np.where(same_class(x.labels[some], y.labels), np.inf, backend.pairwise(problem))
        if x is y:
            distances[np.arange(len(distances)), np.arange(low, low + len(distances))] = np.inf
        order = np.argsort(distances, axis=1, kind="stable")[:, :k]
        nearest = np.take_along_axis(distances, order, axis=1)
        merge(ranked[some], nearest, np.where(np.isinf(nearest), -1, order), y.first)


def merge(
    ranked: np.ndarray,  # [n, K] RANKED, changed
    values: np.ndarray,  # [n, k]
    columns: np.ndarray,  # [n, k], -1 for none
    first: int,  # what column 0 is called
) -> None:
    found = np.empty(values.shape, RANKED)
    found["value"] = values
    found["id"] = np.where(columns < 0, -1, columns + first)
    both = np.concatenate([ranked, found], axis=1)
    order = np.lexsort((both["id"], both["value"]), axis=1)[:, : ranked.shape[1]]  # none: infinitely far
    ranked[:] = np.take_along_axis(both, order, axis=1)
