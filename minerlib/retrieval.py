"""How well a ranking by distance finds rows of the same class: precision, recall, mAP and k-NN accuracy.

Every measure takes queries with their labels and either a database with its labels or none, which means
leave-one-out: each query is ranked against all the other queries (left out by index, so duplicates stay).
Rankings come from `minerlib.nearest`: canonical float64 distances, ties by the lowest index, the same on
every backend. Single labels are `[N]` integers or bool; multi-labels are `[N, C]` bool, and two rows are of
one class when they share a label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from minerlib import inputs
from minerlib.arrays import to_numpy
from minerlib.neighbors import nearest

_CHUNK_ELEMENTS = 1 << 22


@overload
def precision_at(
    queries: Any, query_labels: Any, k: int, *, database: Any = ..., database_labels: Any = ...,
    metric: str = ..., exact: bool = ..., backend: str = ...,
) -> float: ...  # fmt: skip
@overload
def precision_at(
    queries: Any, query_labels: Any, k: Sequence[int], *, database: Any = ..., database_labels: Any = ...,
    metric: str = ..., exact: bool = ..., backend: str = ...,
) -> list[float]: ...  # fmt: skip
def precision_at(
    queries: Any,  # [Q, D]
    query_labels: Any,  # [Q] or [Q, C] bool
    k: int | Sequence[int],
    *,
    database: Any = None,  # [M, D]
    database_labels: Any = None,  # [M] or [M, C] bool
    metric: str = "sqeuclidean",
    exact: bool = True,
    backend: str = "auto",
) -> float | list[float]:
    """Mean over the queries of the share of their k nearest rows that are of their class, from 0 to 1.

    `k` is 1 to M (to Q - 1 without a database), or several such cut-offs, which cost one search and give a
    list. Raises `TypeError` or `ValueError` that names the argument. Peak memory beyond the inputs: about
    100 MB of rankings at a time. Source: JTANet, equations 13 and 14 (there in per cent).

    >>> import numpy as np
    >>> precision_at(np.array([[0.0], [1.0], [9.0]]), np.array([0, 0, 1]), k=1)
    0.6666666666666666
    """
    search = _search(queries, query_labels, database, database_labels, metric, exact, backend)
    cutoffs = search.cutoffs(k)
    hits = np.zeros(len(cutoffs), dtype=np.int64)
    for rows, ranking in search.rankings(max(cutoffs)):
        found = search.relevant(rows, ranking).cumsum(axis=1)
        hits += found[:, np.array(cutoffs) - 1].sum(axis=0)
    values = [float(count / (search.count * cutoff)) for count, cutoff in zip(hits, cutoffs, strict=True)]
    return values if isinstance(k, Sequence) else values[0]


@overload
def recall_at(
    queries: Any, query_labels: Any, k: int, *, database: Any = ..., database_labels: Any = ...,
    metric: str = ..., exact: bool = ..., backend: str = ...,
) -> float: ...  # fmt: skip
@overload
def recall_at(
    queries: Any, query_labels: Any, k: Sequence[int], *, database: Any = ..., database_labels: Any = ...,
    metric: str = ..., exact: bool = ..., backend: str = ...,
) -> list[float]: ...  # fmt: skip
def recall_at(
    queries: Any,  # [Q, D]
    query_labels: Any,  # [Q] or [Q, C] bool
    k: int | Sequence[int],
    *,
    database: Any = None,  # [M, D]
    database_labels: Any = None,  # [M] or [M, C] bool
    metric: str = "sqeuclidean",
    exact: bool = True,
    backend: str = "auto",
) -> float | list[float]:
    """Recall@k: the share of the queries that have a row of their class among their k nearest, from 0 to 1.

    Arguments, errors and memory are those of `precision_at`. Source: R@k of the extreme-distance study.

    >>> import numpy as np
    >>> recall_at(np.array([[0.0], [1.0], [9.0]]), np.array([0, 1, 0]), k=[1, 2])
    [0.0, 0.6666666666666666]
    """
    search = _search(queries, query_labels, database, database_labels, metric, exact, backend)
    cutoffs = search.cutoffs(k)
    hits = np.zeros(len(cutoffs), dtype=np.int64)
    for rows, ranking in search.rankings(max(cutoffs)):
        found = np.logical_or.accumulate(search.relevant(rows, ranking), axis=1)
        hits += found[:, np.array(cutoffs) - 1].sum(axis=0)
    values = [float(count / search.count) for count in hits]
    return values if isinstance(k, Sequence) else values[0]


def mean_average_precision(
    queries: Any,  # [Q, D]
    query_labels: Any,  # [Q] or [Q, C] bool
    k: int | None = None,
    *,
    database: Any = None,  # [M, D]
    database_labels: Any = None,  # [M] or [M, C] bool
    metric: str = "sqeuclidean",
    exact: bool = True,
    backend: str = "auto",
) -> float:
    """Mean over the queries of their average precision in the ranking cut at k (the whole ranking without k).

    The average precision of a query is the mean, over the rows of its class inside the cut, of the
    precision at that row's rank; a query with none inside the cut scores 0. It is the definition of
    `hamming_map`. Arguments, errors and memory are those of `precision_at`.

    >>> import numpy as np
    >>> mean_average_precision(np.array([[0.0], [1.0], [9.0]]), np.array([0, 1, 0]))
    0.3333333333333333
    """
    search = _search(queries, query_labels, database, database_labels, metric, exact, backend)
    cutoff = search.limit if k is None else search.cutoff(k)
    ranks = np.arange(1, cutoff + 1)
    total = 0.0
    for rows, ranking in search.rankings(cutoff):
        relevant = search.relevant(rows, ranking)
        precision = np.where(relevant, relevant.cumsum(axis=1) / ranks, 0)
        total += float((precision.sum(axis=1) / np.maximum(relevant.sum(axis=1), 1)).sum())
    return total / search.count


def knn_accuracy(
    queries: Any,  # [Q, D]
    query_labels: Any,  # [Q]
    k: int = 1,
    *,
    database: Any = None,  # [M, D]
    database_labels: Any = None,  # [M]
    metric: str = "sqeuclidean",
    exact: bool = True,
    backend: str = "auto",
) -> float:
    """The share of the queries whose class is the most frequent one among their k nearest rows, from 0 to 1.

    Of classes that are equally frequent, the one whose first row ranks nearest is taken. Single labels only.
    Arguments, errors and memory are otherwise those of `precision_at`.

    >>> import numpy as np
    >>> knn_accuracy(np.array([[0.0], [1.0], [2.0], [9.0]]), np.array([0, 0, 0, 1]), k=3)
    0.75
    """
    search = _search(queries, query_labels, database, database_labels, metric, exact, backend)
    if search.query_labels.ndim != 1:
        raise ValueError(f"query_labels: expected shape [rows], got {list(search.query_labels.shape)}")
    cutoff = search.cutoff(k)
    correct = 0
    for rows, ranking in search.rankings(cutoff, values_per_rank=cutoff):
        found = search.database_labels[ranking]
        votes = (found[:, :, None] == found[:, None, :]).sum(axis=2)
        # argmax takes the first of equal counts, which is the nearest
        winner = np.take_along_axis(found, votes.argmax(axis=1)[:, None], axis=1)[:, 0]
        correct += int((winner == search.query_labels[rows]).sum())
    return correct / search.count


@dataclass(frozen=True, eq=False)
class _Search:
    """Validated queries and database, ranked a chunk of queries at a time."""

    queries: Any  # [Q, D]
    query_labels: np.ndarray  # [Q] or [Q, C] bool
    database: Any  # [M, D], the queries themselves in leave-one-out
    database_labels: np.ndarray  # [M] or [M, C] bool
    own: bool
    options: dict[str, Any]

    @property
    def count(self) -> int:
        return len(self.query_labels)

    @property
    def limit(self) -> int:
        """How many rows a query can be ranked against."""
        return len(self.database_labels) - self.own

    def cutoff(self, k: Any) -> int:
        return inputs.integer("k", k, 1, self.limit)

    def cutoffs(self, k: Any) -> list[int]:
        if not isinstance(k, Sequence):
            return [self.cutoff(k)]
        if isinstance(k, str) or not k:
            raise TypeError(f"k: expected an integer or several, got {k!r}")
        return [self.cutoff(value) for value in k]

    def rankings(self, k: int, values_per_rank: int = 1) -> Iterator[tuple[slice, np.ndarray]]:
        """(queries, their k nearest database rows [q, k]), nearest first, chunk by chunk.

        `values_per_rank` says how many values the caller will form for each rank, which keeps a chunk's
        memory flat.
        """
        width = values_per_rank if self.query_labels.ndim == 1 else self.query_labels.shape[1]
        step = max(1, _CHUNK_ELEMENTS // (k * max(1, width)))
        for start in range(0, self.count, step):
            rows = slice(start, min(start + step, self.count))
            found = nearest(self.queries[rows], self.database, k + self.own, **self.options).indices
            ranking, _ = to_numpy("indices", found)
            yield rows, _without_self(ranking, start) if self.own else ranking

    def relevant(
        self,
        rows: slice,
        ranking: np.ndarray,  # [q, k]
    ) -> np.ndarray:  # [q, k] bool
        wanted, found = self.query_labels[rows], self.database_labels[ranking]
        if wanted.ndim == 1:
            return wanted[:, None] == found
        return (wanted[:, None, :] & found).any(axis=2)


def _without_self(
    ranking: np.ndarray,  # [q, k + 1]
    start: int,
) -> np.ndarray:  # [q, k]
    """Drop each query's own row; where more than k duplicates rank before it, drop the last row."""
    own = ranking == np.arange(start, start + len(ranking))[:, None]
    own[:, -1] |= ~own.any(axis=1)
    return ranking[~own].reshape(len(ranking), -1)


def _search(
    queries: Any,
    query_labels: Any,
    database: Any,
    database_labels: Any,
    metric: str,
    exact: bool,
    backend: str,
) -> _Search:
    if (database is None) != (database_labels is None):
        missing = "database_labels" if database_labels is None else "database"
        raise ValueError(f"{missing}: database and database_labels go together, got only one of them")
    own = database is None
    if own:
        database, database_labels = queries, query_labels
    problem = inputs.search_problem(queries, database, metric)  # raises for rows before anything is searched
    wanted = _labels("query_labels", query_labels, "queries", len(problem.anchors))
    found = wanted if own else _labels("database_labels", database_labels, "database", len(problem.columns))
    if wanted.ndim != found.ndim or wanted.shape[1:] != found.shape[1:]:
        raise ValueError(
            f"database_labels: expected the form of query_labels {list(wanted.shape)}, "
            f"got {list(found.shape)}"
        )
    if not len(wanted):
        raise ValueError("queries: expected at least one row, got none")
    if len(found) <= own:
        where = "queries: expected at least two rows without a database" if own else "database: expected rows"
        raise ValueError(f"{where}, got {len(found)}")
    return _Search(
        queries, wanted, database, found, own, {"metric": metric, "exact": exact, "backend": backend}
    )


def _labels(name: str, value: Any, rows_name: str, rows: int) -> np.ndarray:
    labels, _ = to_numpy(name, value)
    if labels.dtype.kind not in "biu":
        raise TypeError(f"{name}: expected integers or bool, got {labels.dtype}")
    if labels.ndim not in (1, 2):
        raise ValueError(f"{name}: expected shape [rows] or [rows, labels], got {list(labels.shape)}")
    if labels.ndim == 2 and labels.dtype.kind != "b":
        raise TypeError(
            f"{name}: expected bool for multi-label rows {list(labels.shape)}, got {labels.dtype}"
        )
    if len(labels) != rows:
        raise ValueError(f"{name}: expected {rows} rows like {rows_name}, got {len(labels)}")
    return labels
