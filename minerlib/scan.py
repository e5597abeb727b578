"""Scans of all distances of a batch, a chunk of anchors at a time, in memory that does not grow with N x M.

Products come from NumPy, whose precision no setting of torch changes; `_scan_kernels` decides by them where
they leave no doubt, and by canonical float64 distances where they do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from minerlib.backends._numba_chunks import norms, over_chunks

_ELEMENTS = 1 << 20  # of one chunk's products: 4 MiB of float32
_LISTED = 1 << 22  # the same where lists of each chunk are joined: up to 2048 rows need no second chunk
_WEIGHT = 16  # a scan of one distance costs about as much as this many multiplications
_UNIT_ROUNDOFF = {4: 2.0**-24, 8: 2.0**-53}
_SMALLEST = {4: 1.2e-38, 8: 2.3e-308}
_MOST_DIMENSIONS = 1 << 18  # beyond, the bound on a float32 product is no longer small

_NOWHERE = -(1 << 62)

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Scan:
    """Anchors x [N, D] against columns y [M, D] with dense classes."""

    def __init__(
        self,
        x: np.ndarray,  # [N, D] float32 or float64, C-contiguous
        y: np.ndarray,  # [M, D] of the same type
        x_class: np.ndarray,  # [N] int64
        y_class: np.ndarray,  # [M] int64
        own: int | None,  # the column that is the first anchor itself, the next one the second; None: no such
        metric: int,
        exactly: bool = False,  # products in float64, where their middles are used and not only decided by
    ) -> None:
        if exactly or x.shape[1] > _MOST_DIMENSIONS:
            y_is_x = y is x
            x = x.astype(np.float64, copy=False)
            y = x if y_is_x else y.astype(np.float64, copy=False)
        self.x, self.y = x, y
        classes = 1 + max(int(x_class.max(initial=-1)), int(y_class.max(initial=-1)))
        self.x_class = x_class
        self.members = np.argsort(y_class, kind="stable").astype(np.int64, copy=False)
        self.class_starts = np.searchsorted(y_class[self.members], np.arange(classes + 1)).astype(np.int64)
        self.y_norm = norms(y)
        self.x_norm = self.y_norm if y is x else norms(x)
        self.own, self.metric = _NOWHERE if own is None else own, metric

    def _chunks(self, elements: int = _ELEMENTS) -> Iterator[tuple[int, int, np.ndarray]]:
        """(first, last, products [last - first, M]) of consecutive anchors; the products are overwritten."""
        x = self.x
        rows = min(max(1, elements // max(1, len(self.y))), max(1, len(x)))
        buffer = np.empty((rows, len(self.y)), dtype=self.x.dtype)
        transposed = self.y.T
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # what overflows is decided by the values themselves
            for first in range(0, len(x), rows):
                last = min(first + rows, len(x))
                np.matmul(x[first:last], transposed, out=buffer[: last - first])
                yield first, last, buffer[: last - first]

    def _over(self, rows: int, work: Callable[[int, int], None]) -> None:
        over_chunks(rows, len(self.y), _WEIGHT, work)

    @property
    def _options(self) -> tuple[int, float, float, int]:
        dimension, size = self.x.shape[1], self.x.itemsize
        roundings = (dimension + 4) * _UNIT_ROUNDOFF[size]
        return self.metric, roundings / (1 - roundings), 2 * dimension * _SMALLEST[size], self.own

    @property
    def _sides(self) -> tuple[np.ndarray, ...]:
        return self.x, self.y, self.x_norm, self.y_norm, self.x_class, self.class_starts, self.members

    def choose(
        self,
        farthest: tuple[bool, bool],
        ranges: tuple[float, float, float, float],
        semihard: int,
    ) -> tuple[np.ndarray, np.ndarray]:  # columns [N, 2] int64, -1 for none; distances [N, 2]
        """One positive and one negative for each anchor, by the rules of `_scan_kernels.choose`."""
        from minerlib import _scan_kernels as _kernels

        index = np.full((len(self.x), 2), -1, dtype=np.int64)
        value = np.zeros((len(self.x), 2))
        for first, last, g in self._chunks():

            def work(low: int, high: int, first: int = first, g: np.ndarray = g) -> None:
                _kernels.choose(
                    g[low:high], first + low, *self._sides, self._options, farthest, ranges,
                    semihard, index, value,
                )  # fmt: skip

            self._over(last - first, work)
        return index, value

    def pairs(self, epsilon: float, edges: tuple[float, float] | None) -> Pairs:
        """Positives with d + epsilon > edge and negatives with d - epsilon < edge: (a1, p, a2, n).

        Without edges they are each anchor's nearest negative and farthest positive.
        """
        from minerlib import _scan_kernels as _kernels

        anchors = np.arange(len(self.x))
        parts: list[list[np.ndarray]] = [[], [], [], []]
        limits = (epsilon, *(edges or (0.0, 0.0)))
        for first, last, g in self._chunks(_LISTED):
            rows = anchors[first:last]
            marks = np.empty(g.shape, dtype=np.uint8)
            counts = np.empty((last - first, 2), dtype=np.int64)

            def mark(
                low: int,
                high: int,
                g: np.ndarray = g,
                rows: np.ndarray = rows,
                marks: np.ndarray = marks,
                counts: np.ndarray = counts,
            ) -> None:
                _kernels.mark_pairs(
                    g[low:high], rows[low:high], *self._sides, self._options, limits, edges is None,
                    marks[low:high], counts[low:high],
                )  # fmt: skip

            self._over(last - first, mark)
            starts = np.zeros((2, last - first + 1), dtype=np.int64)
            np.cumsum(counts.T, axis=1, out=starts[:, 1:])
            for side in (0, 1):
                of, columns = self._marked(marks, rows, side == 0, starts[side])
                parts[2 * side].append(of)
                parts[2 * side + 1].append(columns)
        a1, p, a2, n = (_joined(part) for part in parts)
        return a1, p, a2, n

    def _marked(
        self, marks: np.ndarray, rows: np.ndarray, positives: bool, starts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        from minerlib import _scan_lists

        anchors, columns = np.empty(starts[-1], np.int64), np.empty(starts[-1], np.int64)

        def work(low: int, high: int) -> None:
            part, of, place = marks[low:high], rows[low:high], starts[low : high + 1]
            if positives:
                classes = self.x_class, self.class_starts, self.members
                _scan_lists.list_positives(part, of, *classes, place, anchors, columns)
            else:
                _scan_lists.list_negatives(part, of, place, anchors, columns)

        if len(anchors):
            over_chunks(len(marks), len(self.y), 1, work)
        return anchors, columns

    def values(
        self,
        anchors: np.ndarray,  # [P] int64
        columns: np.ndarray,  # [P] int64, -1 for none
    ) -> np.ndarray:  # [P] float64, inf for none
        """Canonical distances of the given pairs."""
        from minerlib import _scan_kernels as _kernels

        out = np.empty(len(anchors))

        def work(low: int, high: int) -> None:
            _kernels.values(
                self.x, self.y, self.x_norm, self.y_norm, self.metric, anchors[low:high], columns[low:high],
                out[low:high],
            )  # fmt: skip

        over_chunks(len(anchors), 1, self.x.shape[1], work)
        return out

    def triplets(self, above: float, up_to: float) -> np.ndarray:  # [3, T] int64
        """Every triplet with above < d(a, n) - d(a, p) <= up_to, by anchor, positive, negative."""
        from minerlib import _scan_kernels as _kernels

        parts = []
        for first, last, g in self._chunks(_LISTED):
            nowhere = np.empty((3, 0), dtype=np.int64)
            starts = np.zeros(last - first + 1, dtype=np.int64)

            def work(
                low: int,
                high: int,
                out: np.ndarray,
                counts: np.ndarray,
                first: int = first,
                g: np.ndarray = g,
                starts: np.ndarray = starts,
            ) -> None:
                _kernels.triplets(
                    g[low:high], first + low, *self._sides, self._options, (above, up_to),
                    starts[low:high], counts[low:high], out,
                )  # fmt: skip

            counts = np.empty(last - first, dtype=np.int64)
            self._over(last - first, lambda low, high: work(low, high, nowhere, counts))  # noqa: B023
            np.cumsum(counts, out=starts[1:])
            out = np.empty((3, starts[-1]), dtype=np.int64)
            if starts[-1]:
                self._over(last - first, lambda low, high: work(low, high, out, counts))  # noqa: B023
            parts.append(out)
        return np.concatenate(parts, axis=1) if len(parts) != 1 else parts[0]

    def side_sums(self) -> np.ndarray:  # [N, 4]
        """For each anchor: positives, the sum of their distances, negatives, the sum of theirs."""
        from minerlib import _scan_kernels as _kernels

        sums = np.empty((len(self.x), 4))
        for first, last, g in self._chunks():

            def work(low: int, high: int, first: int = first, g: np.ndarray = g) -> None:
                _kernels.side_sums(
                    g[low:high], first + low, *self._sides, self._options,
                    sums[first + low : first + high],
                )  # fmt: skip

            self._over(last - first, work)
        return sums

    def draw_weighted(
        self,
        cutoffs: tuple[float, float],
        starts: np.ndarray,  # [N + 1] each anchor's draws
        uniform: np.ndarray,  # [draws] in [0, 1)
    ) -> np.ndarray:  # [draws] int64, -1 for none
        """Negatives by the inverse density of their distance, drawn with the given random numbers."""
        from minerlib import _scan_lists

        drawn = np.empty(len(uniform), dtype=np.int64)
        for first, last, g in self._chunks():

            def work(low: int, high: int, first: int = first, g: np.ndarray = g) -> None:
                _scan_lists.draw_weighted(
                    g[low:high], first + low, *self._sides, self._options, cutoffs,
                    starts[first + low : first + high + 1], uniform, drawn,
                )  # fmt: skip

            self._over(last - first, work)
        return drawn


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    if not parts:
        return np.empty(0, dtype=np.int64)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
