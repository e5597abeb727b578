"""The specification as a backend: the families answered by reference.py."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from minerlib import reference
from minerlib.inputs import MultiLabels, Problem, Relevance
from minerlib.strategies import Request

_Columns = tuple[np.ndarray, np.ndarray, np.ndarray]


def reasons_unusable() -> tuple[str, ...]:
    return ()


def extremes(problem: Problem, wanted: Iterable[int], exact: bool) -> np.ndarray:
    return reference.extremes(
        problem.anchors, problem.columns, problem.same_class, problem.own, problem.metric
    )


def window(problem: Problem, rule: str, request: Request) -> _Columns:
    """A slot per pair: the reference lists what was mined, so the rest of the pairs is filled in."""
    anchors, positives = _pairs(problem, request.pairs)
    negatives = np.full(len(anchors), -1, dtype=np.int64)
    a, p, n = _mine(problem, rule, request)
    columns = max(1, len(problem.columns))
    negatives[np.searchsorted(anchors * columns + positives, a * columns + p)] = n
    return anchors, positives, negatives


def sample(problem: Problem, request: Request) -> _Columns:
    return window(problem, "distance-weighted", request)


def every_triplet(problem: Problem, request: Request) -> _Columns:
    return _mine(problem, "all", request)


def counts(problem: Problem, request: Request) -> tuple[int, int, int]:
    return reference.count_triplets(
        problem.anchors, problem.columns, problem.same_class, problem.own,
        margin=request.margin, metric=problem.metric, pairs=request.pairs,
    )[:3]  # fmt: skip


def topk(problem: Problem, k: int, exact: bool) -> tuple[np.ndarray, np.ndarray]:
    return reference.nearest(problem.anchors, problem.columns, k, problem.metric)


def pairwise(problem: Problem) -> np.ndarray:
    return reference.pairwise_distance(problem.anchors, problem.columns, problem.metric)


def hamming_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return reference.hamming_distance(a, b)


def hamming_search(queries: np.ndarray, database: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    return reference.hamming_search(queries, database, k)


def hamming_range(queries: np.ndarray, database: np.ndarray, radius: int) -> _Columns:
    return reference.hamming_range(queries, database, radius)


def hamming_counts(
    queries: np.ndarray, database: np.ndarray, relevance: Relevance
) -> tuple[np.ndarray, np.ndarray]:
    return reference.hamming_counts(queries, database, _relevant(relevance), relevance.own)


def hamming_average_precision(
    queries: np.ndarray, database: np.ndarray, relevance: Relevance, k: int
) -> np.ndarray:
    return reference.hamming_average_precision(queries, database, _relevant(relevance), relevance.own, k)


def _relevant(relevance: Relevance) -> np.ndarray:  # [Q, M] bool
    if relevance.query_classes is not None and relevance.database_classes is not None:
        same: np.ndarray = relevance.query_classes[:, None] == relevance.database_classes[None, :]
        return same
    assert relevance.query_bits is not None
    assert relevance.database_bits is not None
    return MultiLabels(relevance.query_bits, relevance.database_bits).same_class()


def _mine(problem: Problem, strategy: str, request: Request) -> _Columns:
    return reference.mine(
        problem.anchors, problem.columns, problem.same_class, problem.own, strategy, margin=request.margin,
        metric=problem.metric, pairs=request.pairs, fallback=request.fallback, seed=request.seed,
    )  # fmt: skip


def _pairs(problem: Problem, pairs: str) -> tuple[np.ndarray, np.ndarray]:
    """All anchor-positive pairs by (a, p)."""
    same = problem.same_class.copy()
    if problem.own:
        np.fill_diagonal(same, False)
    anchors, positives = np.nonzero(same)
    if pairs == "combinations":
        keep = anchors < positives
        return anchors[keep], positives[keep]
    return anchors, positives
