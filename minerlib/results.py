"""What the public functions return: named tuples of arrays of the caller's own kind."""

from __future__ import annotations

from typing import Any, NamedTuple


class Triplets(NamedTuple):
    """Mined triplets, one per position; `int64 [T]` each, indices into the rows given."""

    anchors: Any  # [T]
    positives: Any  # [T]
    negatives: Any  # [T]


class PaddedTriplets(NamedTuple):
    """Triplets in slots whose number is known before mining: `[N]` per anchor, one per pair, or as asked for.

    Where `valid` is False nothing was mined, and the slot's other indices repeat its anchor, so that
    gathering with them is safe.
    """

    anchors: Any  # [S]
    positives: Any  # [S]
    negatives: Any  # [S]
    valid: Any  # [S] bool


class TripletCounts(NamedTuple):
    """How many triplets there are of each kind; `total = hard + semi_hard + easy`."""

    total: int
    hard: int
    semi_hard: int
    easy: int


class Neighbors(NamedTuple):
    """The k nearest rows of a database for each query, nearest first, ties by the lowest index."""

    distances: Any  # [Q, k] float64, in the metric's unit; int32 bits between codes
    indices: Any  # [Q, k] int64


class RangeNeighbors(NamedTuple):
    """All rows of a database within a radius of each query, nearest first, ties by the lowest index.

    Query q's hits are `indices[offsets[q] : offsets[q + 1]]`, and so are their distances.
    """

    offsets: Any  # [Q + 1] int64
    indices: Any  # [T] int64
    distances: Any  # [T] int32
