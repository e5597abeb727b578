"""How well a ranking by distance finds rows of the same class: precision, recall, mAP and k-NN accuracy.

Every measure takes queries with their labels and either a database with its labels or none, which means
leave-one-out: each query is ranked against all the other queries (left out by index, so duplicates stay).
Rankings come from `minerlib.nearest`: canonical float64 distances, ties by the lowest index, the same on
every backend. With `metric="hamming"` the rows are packed codes, uint8 `[rows, bytes]` (see
`minerlib.pack_bits`), ranked by `minerlib.hamming_search`; `exact` then makes no difference. What is measured
over codes alone is in `minerlib.hamming_curves`, and here too. Single labels are `[N]` integers or bool;
multi-labels are `[N, C]` bool, and two rows are of one class when they share a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from minerlib import dispatch
from minerlib.average_precision import average_precision
from minerlib.hamming_curves import (
    hamming_precision_recall,
    plot_precision_recall,
    precision_within_radius,
)
from minerlib.rankings import HAMMING, rank

__all__ = [
    "hamming_precision_recall",
    "knn_accuracy",
    "mean_average_precision",
    "plot_precision_recall",
    "precision_at",
    "precision_within_radius",
    "recall_at",
]


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
    queries: Any,  # [Q, D], or codes
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
    list. `metric` is `sqeuclidean`, `euclidean`, `cosine`, or `hamming` for packed codes. Raises `TypeError`
    or `ValueError` that names the argument. Peak memory beyond the inputs: about
    100 MB of rankings at a time. Source: JTANet, equations 13 and 14 (there in per cent).

    >>> import numpy as np
    >>> precision_at(np.array([[0.0], [1.0], [9.0]]), np.array([0, 0, 1]), k=1)
    0.6666666666666666
    """
    ranked = rank(queries, query_labels, database, database_labels, metric, exact, backend)
    cutoffs = ranked.cutoffs(k)
    hits = np.zeros(len(cutoffs), dtype=np.int64)
    for rows, ranking in ranked.rankings(max(cutoffs)):
        found = ranked.relevant(rows, ranking).cumsum(axis=1)
        hits += found[:, np.array(cutoffs) - 1].sum(axis=0)
    values = [float(count / (ranked.count * cutoff)) for count, cutoff in zip(hits, cutoffs, strict=True)]
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
    queries: Any,  # [Q, D], or codes
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
    ranked = rank(queries, query_labels, database, database_labels, metric, exact, backend)
    cutoffs = ranked.cutoffs(k)
    hits = np.zeros(len(cutoffs), dtype=np.int64)
    for rows, ranking in ranked.rankings(max(cutoffs)):
        found = np.logical_or.accumulate(ranked.relevant(rows, ranking), axis=1)
        hits += found[:, np.array(cutoffs) - 1].sum(axis=0)
    values = [float(count / ranked.count) for count in hits]
    return values if isinstance(k, Sequence) else values[0]


def mean_average_precision(
    queries: Any,  # [Q, D], or codes
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
    precision at that row's rank; a query with none inside the cut scores 0. Over codes it is `hamming_map`,
    which knows other rules for ties as well. Arguments, errors and memory are those of `precision_at`.

    >>> import numpy as np
    >>> mean_average_precision(np.array([[0.0], [1.0], [9.0]]), np.array([0, 1, 0]))
    0.3333333333333333
    """
    ranked = rank(queries, query_labels, database, database_labels, metric, exact, backend)
    cutoff = ranked.limit if k is None else ranked.cutoff(k)
    if metric == HAMMING:
        adapter = dispatch.choose(backend)
        scores = average_precision(adapter, ranked.queries, ranked.database, ranked.relevance, cutoff)
        return float(scores.mean())
    ranks = np.arange(1, cutoff + 1)
    total = 0.0
    for rows, ranking in ranked.rankings(cutoff):
        relevant = ranked.relevant(rows, ranking)
        precision = np.where(relevant, relevant.cumsum(axis=1) / ranks, 0)
        total += float((precision.sum(axis=1) / np.maximum(relevant.sum(axis=1), 1)).sum())
    return total / ranked.count


def knn_accuracy(
    queries: Any,  # [Q, D], or codes
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
    ranked = rank(queries, query_labels, database, database_labels, metric, exact, backend)
    if ranked.query_labels.ndim != 1:
        raise ValueError(f"query_labels: expected shape [rows], got {list(ranked.query_labels.shape)}")
    cutoff = ranked.cutoff(k)
    correct = 0
    for rows, ranking in ranked.rankings(cutoff, values_per_rank=cutoff):
        found = ranked.database_labels[ranking]
        votes = (found[:, :, None] == found[:, None, :]).sum(axis=2)
        # argmax takes the first of equal counts, which is the nearest
        winner = np.take_along_axis(found, votes.argmax(axis=1)[:, None], axis=1)[:, 0]
        correct += int((winner == ranked.query_labels[rows]).sum())
    return correct / ranked.count
