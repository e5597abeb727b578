"""Queries ranked against a database, or against each other: what the retrieval measures share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from minerlib import inputs
from minerlib.arrays import to_numpy
from minerlib.hamming import hamming_search
from minerlib.inputs import Relevance
from minerlib.neighbors import nearest

HAMMING = "hamming"
METRICS = (*inputs.METRICS, HAMMING)

_CHUNK_ELEMENTS = 1 << 22


@dataclass(frozen=True, eq=False)
class Rankings:
    """Validated queries and database, ranked a chunk of queries at a time."""

    queries: Any  # [Q, D], or [Q, bytes] uint8 for codes
    query_labels: np.ndarray  # [Q] or [Q, C] bool
    database: Any  # [M, D] or [M, bytes], the queries themselves in leave-one-out
    database_labels: np.ndarray  # [M] or [M, C] bool
    own: bool
    metric: str
    exact: bool
    backend: str

    @property
    def count(self) -> int:
        return len(self.query_labels)

    @cached_property
    def relevance(self) -> Relevance:
        """Which rows are relevant to which queries, for the kernels that count them."""
        labels = None if self.own else self.database_labels
        return inputs.relevance(self.query_labels, labels, len(self.queries), len(self.database))

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
            ranking = self._nearest(self.queries[rows], k + self.own)
            yield rows, _without_self(ranking, start) if self.own else ranking

    def _nearest(self, queries: Any, k: int) -> np.ndarray:  # [q, k]
        if self.metric == HAMMING:
            found = hamming_search(queries, self.database, k, backend=self.backend)
        else:
            found = nearest(
                queries, self.database, k, metric=self.metric, exact=self.exact, backend=self.backend
            )
        return to_numpy("indices", found.indices)[0]

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


def rank(
    queries: Any,
    query_labels: Any,
    database: Any,
    database_labels: Any,
    metric: str,
    exact: bool,
    backend: str,
) -> Rankings:
    """Check the arguments that all measures share."""
    inputs.one_of("metric", metric, METRICS)
    if (database is None) != (database_labels is None):
        missing = "database_labels" if database_labels is None else "database"
        raise ValueError(f"{missing}: database and database_labels go together, got only one of them")
    own = database is None
    if own:
        database, database_labels = queries, query_labels
    if metric == HAMMING:
        inputs.boolean("exact", exact)  # codes have no other answer
        queries, database, _ = inputs.code_pair("queries", queries, "database", database)
        rows, columns = len(queries), len(database)
    else:
        problem = inputs.search_problem(queries, database, metric)  # before anything is searched
        rows, columns = len(problem.anchors), len(problem.columns)
    wanted = _labels("query_labels", query_labels, "queries", rows)
    found = wanted if own else _labels("database_labels", database_labels, "database", columns)
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
    return Rankings(queries, wanted, database, found, own, metric, exact, backend)


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
