"""`nearest` and `pairwise_distance`: exact neighbours and distances."""

from __future__ import annotations

from typing import Any

import numpy as np

from minerlib import dispatch, inputs
from minerlib.arrays import Origin
from minerlib.inputs import Problem
from minerlib.results import Neighbors


def nearest(
    queries: Any,  # [Q, D]
    database: Any,  # [M, D]
    k: int,
    *,
    metric: str = "sqeuclidean",
    exact: bool = True,
    backend: str = "auto",
) -> Neighbors:
    """The k nearest database rows of every query, nearest first, ties by the lowest index.

    Args:
        queries, database: `[Q, D]` and `[M, D]` floats of any kind that `mine` takes.
        k: 1 to M.
        metric: `sqeuclidean`, `euclidean` or `cosine`.
        exact: order by canonical float64 distances; False orders by the fast path's own float32 values.
        backend: `auto`, or a name of `explain("nearest")`.

    Returns:
        `Neighbors(distances, indices)`: float64 `[Q, k]` in the metric's unit, int64 `[Q, k]`.

    Raises:
        TypeError, ValueError, BackendUnavailable: as `mine`.

    Memory: about M * D * 4 bytes beside inputs and result, and O(k) a query in flight.

    Source: SPEC sections 2 and 5.

    >>> import minerlib, numpy as np
    >>> database = np.array([[3.0, 4.0], [1.0, 0.0]])
    >>> minerlib.nearest(np.zeros((1, 2)), database, 2, metric="euclidean").distances.tolist()
    [[1.0, 5.0]]
    """
    if dispatch.traced(backend, queries):  # first, as torch cannot trace much of the rest
        from minerlib import ops

        return Neighbors(*ops.nearest_rows(queries.detach(), database.detach(), k, metric, exact))
    backend = dispatch.resolve(backend, queries, rows=True)
    if dispatch.on_device(backend):
        from minerlib import device_inputs, device_mining

        exact = inputs.boolean("exact", exact)
        found = device_inputs.search_problem(queries, database, metric)
        k = _checked_k(k, len(found.columns))
        answer = device_mining.adapter(found).topk(found, k, exact)
        found.read()
        return Neighbors(*(device_inputs.back(found.origin, column) for column in answer))
    problem, k, exact = check_nearest(queries, database, k, metric=metric, exact=exact)
    distances, indices = dispatch.choose(backend, rows=True).topk(problem, k, exact)
    return Neighbors(problem.origin.wrap(distances), problem.origin.wrap(indices))


def check_nearest(
    queries: Any, database: Any, k: int = 1, *, metric: str = "sqeuclidean", exact: bool = True
) -> tuple[Problem, int, bool]:
    """The arguments of `nearest`, validated."""
    exact = inputs.boolean("exact", exact)
    problem = inputs.search_problem(queries, database, metric)
    return problem, _checked_k(k, len(problem.columns)), exact


def _checked_k(k: int, rows: int) -> int:
    if rows == 0:
        raise ValueError("database: expected at least one row, got none")
    return inputs.integer("k", k, 1, rows)


def pairwise_distance(
    x: Any,  # [N, D] or [B, N, D]
    y: Any = None,  # [M, D] or [B, M, D]
    *,
    metric: str = "sqeuclidean",
    backend: str = "auto",
) -> Any:  # [N, M] or [B, N, M]
    """Canonical float64 distances between all rows of x and all rows of y (of x itself without y).

    Args:
        x, y: `[N, D]` and `[M, D]`, or batches `[B, N, D]` and `[B, M, D]` of independent problems.
        metric: `sqeuclidean`, `euclidean` or `cosine`.
        backend: `auto`, or a name of `explain("pairwise_distance")`.

    Returns:
        float64 `[N, M]` or `[B, N, M]`, the same bits on every backend. Close and off-centre points keep
        their distance: nothing is expanded to |x|² + |y|² - 2 x·y.

    Raises:
        TypeError, ValueError, BackendUnavailable: as `mine`.

    Memory: the result, 8 * N * M bytes a batch; where choosing is the aim, `mine` and `nearest` need none.

    Source: SPEC section 2.

    >>> import minerlib, numpy as np
    >>> minerlib.pairwise_distance(np.array([[0.0, 0.0], [3.0, 4.0]]), metric="euclidean").tolist()
    [[0.0, 5.0], [5.0, 0.0]]
    """
    if dispatch.traced(backend, x):
        from minerlib import ops

        return ops.all_distances(x.detach(), None if y is None else y.detach(), metric)
    backend = dispatch.resolve(backend, x, rows=True)
    if dispatch.on_device(backend):
        from minerlib import device_mining

        return device_mining.pairwise_distance(x, y, metric)
    x_rows, y_rows, origin = check_pairwise_distance(x, y, metric=metric)
    kernel = dispatch.choose(backend, rows=True).pairwise
    if x_rows.ndim == 2:
        return origin.wrap(kernel(_problem(x_rows, y_rows, metric, origin)))
    out = np.empty((x_rows.shape[0], x_rows.shape[1], y_rows.shape[1]))
    for batch in range(len(out)):
        out[batch] = kernel(_problem(x_rows[batch], y_rows[batch], metric, origin))
    return origin.wrap(out)


def check_pairwise_distance(
    x: Any, y: Any = None, *, metric: str = "sqeuclidean"
) -> tuple[np.ndarray, np.ndarray, Origin]:
    """The arguments of `pairwise_distance`, validated."""
    inputs.one_of("metric", metric, inputs.METRICS)
    inputs.same_device(x=x, y=y)
    x_rows, origin = inputs.batched_rows("x", x)
    y_rows = x_rows if y is None else inputs.batched_rows("y", y)[0]
    if x_rows.shape[:-2] != y_rows.shape[:-2]:
        raise ValueError(
            f"y: expected the batch of x {list(x_rows.shape[:-2])}, got {list(y_rows.shape[:-2])}"
        )
    inputs.same_width("x", x_rows, "y", y_rows)
    x_rows, y_rows = inputs.common_type(x_rows, y_rows)
    return x_rows, y_rows, origin


def _problem(x: np.ndarray, y: np.ndarray, metric: str, origin: Origin) -> Problem:
    return Problem(x, y, None, False, metric, origin)
