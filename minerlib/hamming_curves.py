"""What the hashing literature measures beside mAP, from how many rows lie at each Hamming distance.

Precision within a radius, and curves of precision against recall with one point for each radius. No ranking
is formed, so ties play no part.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from minerlib import average_precision, dispatch, inputs
from minerlib.rankings import HAMMING, rank

EMPTY = ("zero", "skip")


class PrecisionRecall(NamedTuple):
    """A curve with one point for each radius from 0 to all bits; means over the queries, from 0 to 1."""

    recall: np.ndarray  # [8 * bytes + 1] float64, never falling
    precision: np.ndarray  # [8 * bytes + 1] float64


def precision_within_radius(
    queries: Any,  # [Q, bytes] uint8
    query_labels: Any,  # [Q] or [Q, C] bool
    radius: int = 2,
    *,
    database: Any = None,  # [M, bytes] uint8
    database_labels: Any = None,  # [M] or [M, C] bool
    backend: str = "auto",
) -> float:
    """Mean over the queries of the share of the rows within a Hamming radius that are of their class.

    A query with no row within the radius scores 0, as is the custom: a code that finds nothing has failed.
    Without a database each query is held against all the other queries.

    Args:
        queries, database: packed codes, see `pack_bits`.
        query_labels, database_labels: integers or bool `[rows]`, or multi-labels, bool `[rows, labels]`.
        radius: in bits, at least 0; the literature's is 2.
        backend: `auto`, or a name of `explain("hamming_search")`.

    Raises:
        TypeError, ValueError, BackendUnavailable: as `hamming_map`.

    Memory: a few megabytes, as `hamming_map` with `ties="expected"`.

    Source: "precision within Hamming radius 2" of the hashing literature.

    >>> import numpy as np
    >>> codes = np.array([[0], [1], [3], [255]], dtype=np.uint8)
    >>> precision_within_radius(codes, np.array([0, 0, 1, 1]), radius=1)
    0.375
    """
    radius = inputs.integer("radius", radius, 0, sys.maxsize)
    total, count = 0.0, 0
    for every, relevant in _within(queries, query_labels, database, database_labels, backend):
        place = min(radius, every.shape[1] - 1)
        total += float((relevant[:, place] / np.maximum(every[:, place], 1)).sum())
        count += len(every)
    return total / count


def hamming_precision_recall(
    queries: Any,  # [Q, bytes] uint8
    query_labels: Any,  # [Q] or [Q, C] bool
    *,
    database: Any = None,  # [M, bytes] uint8
    database_labels: Any = None,  # [M] or [M, C] bool
    empty: str = "zero",
    backend: str = "auto",
) -> PrecisionRecall:
    """Recall and precision of all rows within each Hamming radius, each a mean over the queries.

    At radius d a query's precision is the share of its class among the rows within d, its recall the share
    of the relevant rows that lie within d (0 where there are none); position d of the arrays is their mean.

    Args:
        empty: what a query that has no row within d does to the precision at d. `zero`: it scores 0, as in
            `precision_within_radius`; `skip`: it is left out, as many papers draw their curves, which lifts
            the left end (0 at a radius where no query has any).

    The other arguments, errors and memory are those of `precision_within_radius`.

    >>> import numpy as np
    >>> codes = np.array([[0], [1], [3], [255]], dtype=np.uint8)
    >>> recall, precision = hamming_precision_recall(codes, np.array([0, 0, 1, 1]))
    >>> recall[:3].tolist(), precision[:3].tolist()
    ([0.0, 0.5, 0.5], [0.0, 0.375, 0.25])
    """
    inputs.one_of("empty", empty, EMPTY)
    count = 0
    for every, relevant in _within(queries, query_labels, database, database_labels, backend):
        if count == 0:
            recall, precision, scoring = np.zeros((3, every.shape[1]))
        recall += (relevant / np.maximum(relevant[:, -1:], 1)).sum(axis=0)
        precision += (relevant / np.maximum(every, 1)).sum(axis=0)
        scoring += (every > 0).sum(axis=0)
        count += len(every)
    judged = np.maximum(scoring, 1) if empty == "skip" else count
    return PrecisionRecall(recall / count, precision / judged)


def _within(
    queries: Any, query_labels: Any, database: Any, database_labels: Any, backend: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """How many rows and how many relevant ones lie within each radius, [q, 8 * bytes + 1] each, in chunks."""
    ranked = rank(queries, query_labels, database, database_labels, HAMMING, True, backend)
    adapter = dispatch.choose(backend)
    tables = average_precision.counts(adapter, ranked.queries, ranked.database, ranked.relevance)
    for _, every, relevant in tables:
        yield np.cumsum(every, axis=1), np.cumsum(relevant, axis=1)


def plot_precision_recall(
    path: str | os.PathLike[str],
    curves: Mapping[str, PrecisionRecall],
    title: str = "",
) -> None:
    """Draw curves of `hamming_precision_recall` by name, one point a radius, into a picture file.

    Needs matplotlib (`pip install 'minerlib[trainers]'`); the ending of `path` chooses the format.

    Raises:
        ImportError: matplotlib does not import.
        ValueError: curves: none were given.
    """
    if not curves:
        raise ValueError("curves: expected at least one, got none")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"plot_precision_recall needs matplotlib (pip install 'minerlib[trainers]'): {error}"
        ) from error
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, (recall, precision) in curves.items():
        axes.plot(recall, precision, marker="o", markersize=3, label=name)
    axes.set(title=title, xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=150)
