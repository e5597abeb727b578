"""What the families of the numba backend share: rows of distances, sides of columns, threads over anchors.

Importing this does not import numba.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from minerlib import reference, threads
from minerlib.inputs import Labels, Problem, SingleLabels

#: What a column is to an anchor.
NEGATIVE, POSITIVE, ITSELF = 0, 1, 2

PANEL = 128  # columns: the running sums of two anchors are then half of a first-level cache
ELEMENTS = 1 << 16  # of a thread's rows: half a megabyte, which a second-level cache holds
LEAST_ROWS = 8  # however long they are, so that a panel is read from memory for eight anchors at once
LEAST_WORK = 1 << 23  # multiplications, about a millisecond: what makes one more thread worth starting


def over_chunks(
    anchors: int,
    columns: int,
    dimension: int,
    work: Callable[[int, int], None],
) -> None:
    """`work(first, last)` over all anchors, on up to `threads.get_num_threads()` threads."""
    if anchors == 0 or columns == 0:
        return
    most = min(threads.get_num_threads(), 1 + anchors * columns * dimension // LEAST_WORK)
    fit = max(LEAST_ROWS, ELEMENTS // columns)
    share = -(-anchors // (4 * most))  # a few chunks for each thread even out their speeds
    size = max(2, min(fit, share + share % 2))  # two anchors go through `fill_rows` together
    ranges = ((first, min(first + size, anchors)) for first in range(0, anchors, size))
    deal(ranges, min(most, -(-anchors // size)), work)


def deal(tasks: Iterator[tuple[int, ...]], workers: int, work: Callable[..., None]) -> None:
    """`work(*task)` for every task, on the calling thread and `workers` - 1 others.

    The threads live no longer than the call, so nothing is left behind that a fork could break.
    """
    lock = threading.Lock()

    def take_tasks() -> None:
        while True:
            with lock:
                task = next(tasks, None)
            if task is None:
                return
            work(*task)

    if workers <= 1:
        take_tasks()
        return
    with ThreadPoolExecutor(workers - 1) as pool:
        running = [pool.submit(take_tasks) for _ in range(workers - 1)]
        try:
            take_tasks()
        finally:  # after an error or Ctrl-C the helpers finish the task in hand and no more
            with lock:
                tasks = iter(())
        for helper in running:
            helper.result()


class Rows:
    """Canonical distances from a range of anchors to every column. Holds a packed copy of the columns."""

    def __init__(
        self,
        anchors: np.ndarray,  # [N, D]
        columns: np.ndarray,  # [M, D]
        cosine: bool,
    ) -> None:
        from minerlib.backends._numba_rows import fill_rows

        self.anchors = anchors
        self.columns = len(columns)
        self.fill = fill_rows
        self.panels = packed(columns)
        self.norms: tuple[np.ndarray, np.ndarray] | None = None
        if cosine:
            column_norms = norms(columns)
            self.norms = (column_norms if anchors is columns else norms(anchors), column_norms)

    @classmethod
    def of(cls, problem: Problem) -> Rows:
        return cls(problem.anchors, problem.columns, problem.metric == "cosine")

    def compute(self, first: int, last: int, out: np.ndarray | None = None) -> np.ndarray:  # [B, M]
        """Squared or cosine distances of anchors first..last."""
        rows = np.empty((last - first, self.columns)) if out is None else out
        norms = None if self.norms is None else (self.norms[0][first:last], self.norms[1])
        # as float64 copies, all kinds of anchors (read-only and unaligned ones too) need one compilation
        self.fill(self.anchors[first:last].astype(np.float64), self.panels, norms, rows)
        return rows


def packed(
    columns: np.ndarray,  # [M, D]
) -> np.ndarray:  # [P, D, W]
    """The columns in panels of one width, the last one filled up with zeros."""
    count, dimension = columns.shape
    panels = -(-count // PANEL)
    width = -(-count // (8 * max(1, panels))) * 8  # at most PANEL, and little to fill up
    out = np.zeros((panels, dimension, width), dtype=columns.dtype)
    for panel in range(panels):
        block = columns[panel * width : (panel + 1) * width]
        out[panel, :, : len(block)] = block.T
    return out


def norms(
    rows: np.ndarray,  # [N, D]
) -> np.ndarray:  # [N]
    """Canonical Euclidean norms."""
    out = np.empty(len(rows))
    step = max(1, (1 << 20) // rows.shape[1])  # bounds the float64 copies
    for first in range(0, len(rows), step):
        out[first : first + step] = np.sqrt(reference.squared_norms(rows[first : first + step]))
    return out


class Sides:
    """What every column is to an anchor: a negative, a positive or the anchor itself."""

    def __init__(self, problem: Problem) -> None:
        assert problem.labels is not None
        self.labels: Labels = problem.labels
        self.own = problem.own
        self.anchors, self.columns = len(problem.anchors), len(problem.columns)
        if isinstance(self.labels, SingleLabels):
            self.column_class = self.labels.column_class()

    def mark(self, first: int, last: int) -> np.ndarray:  # [B, M] uint8
        same = np.empty((last - first, self.columns), dtype=bool)
        if isinstance(self.labels, SingleLabels):
            np.equal(self.labels.anchor_class[first:last, None], self.column_class, out=same)
        else:
            anchor_bits, column_bits = self.labels.anchor_bits[first:last], self.labels.column_bits
            np.not_equal(anchor_bits[:, None, 0] & column_bits[None, :, 0], 0, out=same)
            for word in range(1, anchor_bits.shape[1]):
                same |= (anchor_bits[:, None, word] & column_bits[None, :, word]) != 0
        sides = same.view(np.uint8)  # True is POSITIVE, False is NEGATIVE
        if self.own:
            sides[np.arange(last - first), np.arange(first, last)] = ITSELF
        return sides

    def offsets(self, combinations: bool) -> np.ndarray:  # [N + 1] int64
        """Where each anchor's pairs start among all pairs, which are sorted by (anchor, positive)."""
        counts = self._pairs_of_classes if isinstance(self.labels, SingleLabels) else self._pairs_counted
        return np.concatenate([[0], np.cumsum(counts(combinations))]).astype(np.int64)

    def _pairs_of_classes(self, combinations: bool) -> np.ndarray:  # [N] int64
        assert isinstance(self.labels, SingleLabels)
        anchor_class, starts, members = self.labels.anchor_class, self.labels.starts, self.labels.members
        if combinations:  # the members of its class that come after the anchor
            counts = np.empty(self.anchors, dtype=np.int64)
            counts[members] = starts[1:][self.column_class[members]] - 1 - np.arange(len(members))
            return counts
        sizes = np.append(np.diff(starts), 0)  # the 0 is for class -1, of which there is no column
        return sizes[anchor_class] - int(self.own)

    def _pairs_counted(self, combinations: bool) -> np.ndarray:  # [N] int64
        counts = np.zeros(self.anchors, dtype=np.int64)

        def count(first: int, last: int) -> None:
            positive = self.mark(first, last) == POSITIVE
            if combinations:
                positive &= np.arange(self.columns) > np.arange(first, last)[:, None]
            counts[first:last] = positive.sum(axis=1)

        over_chunks(self.anchors, self.columns, 1, count)
        return counts
