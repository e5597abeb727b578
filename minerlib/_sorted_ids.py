"""Ids of codes: int64 arrays, and a set of them that grows by batches."""

from __future__ import annotations

from typing import Any

import numpy as np

from minerlib.arrays import to_numpy


class SortedIds:
    """Sorted runs, each more than twice as long as the next: n ids added in batches cost O(n log n) in all.

    Eight bytes an id, where a Python set takes about ninety.

    >>> known = SortedIds()
    >>> known.add(np.array([5, 9]))
    >>> known.contains(np.array([4, 5]))
    array([False,  True])
    """

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def add(
        self,
        ids: np.ndarray,  # [n] int64, sorted
    ) -> None:
        """Take new ids in."""
        runs = self._runs.copy()
        run = ids
        while runs and len(runs[-1]) <= 2 * len(run):
            run = np.concatenate([runs.pop(), run])
            run.sort(kind="stable")  # two sorted runs: merged in linear time
        self._runs = [*runs, run]

    def contains(
        self,
        ids: np.ndarray,  # [n] int64
    ) -> np.ndarray:  # [n] bool
        """Which of the ids are in the set."""
        found = np.zeros(len(ids), dtype=bool)
        for run in self._runs:
            found |= is_in(ids, run)
        return found


def is_in(
    values: np.ndarray,  # [n] int64
    ordered: np.ndarray,  # [m] int64, sorted
) -> np.ndarray:  # [n] bool
    """Which of the values are among the sorted ones."""
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    places = np.searchsorted(ordered, values)
    return np.asarray(ordered[np.minimum(places, len(ordered) - 1)] == values)


def repeated(
    ordered: np.ndarray,  # [n] int64, sorted
) -> np.ndarray:
    """Those that occur more than once, each time but the first."""
    return ordered[1:][ordered[1:] == ordered[:-1]]


def id_array(ids: Any) -> np.ndarray:  # [n] int64
    """The argument `ids`, validated: an array of any kind or a list."""
    if isinstance(ids, (list, tuple, range)):
        try:
            ids = np.array(ids, dtype=None if len(ids) else np.int64)
        except ValueError as error:
            raise ValueError(f"ids: expected shape [rows], got a list that NumPy refuses ({error})") from None
    array, _ = to_numpy("ids", ids)
    if array.ndim != 1:
        raise ValueError(f"ids: expected shape [rows], got {list(array.shape)}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"ids: expected integers, got {array.dtype}")
    if array.dtype == np.uint64 and len(array) and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"ids: expected integers within int64, got {array.max()}")
    return array.astype(np.int64)
