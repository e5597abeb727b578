"""EXT's outlier rule: for every anchor the distance beyond which other rows are left out (SPEC section 9).

    limit(a) = mean(a) + z * deviation(a)       of the selection values of a and all other rows

Mean and deviation come from moments of the rows, so that no distance is computed for them. Sums run over
rows in index order within fixed segments and over segments in order, without fused multiply-adds: the limits
have the same bits for every chunking, number of threads and number of ranks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from statistics import NormalDist

import numpy as np

from minerlib.backends._numba_chunks import deal
from minerlib.backends._numba_jit import kernel
from minerlib.threads import get_num_threads

_SEGMENTS = 64  # at most, so that ranks exchange few sums
_LEAST_ROWS = 4096  # of a segment
_EQUAL = 2.0**-44  # a variance below this share of the squared mean is rounding: all distances are equal

#: Reads rows first .. last - 1 of the data set.
Read = Callable[[int, int], np.ndarray]
#: Adds up the sums of all segments: called with the number of segments and with what computes one of them.
AddUp = Callable[[int, Callable[[int], np.ndarray]], np.ndarray]


@kernel
def _normalise(rows: np.ndarray) -> None:  # [n, D] changed
    """Rows of unit length; norms are summed in eight lanes, and a zero row stays one."""
    lanes = np.empty(8)
    for i in range(rows.shape[0]):
        lanes[:] = 0.0
        for k in range(rows.shape[1]):
            lanes[k & 7] += rows[i, k] * rows[i, k]
        total = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + (
            (lanes[4] + lanes[5]) + (lanes[6] + lanes[7])
        )
        if total > 0.0:
            length = np.sqrt(total)
            for k in range(rows.shape[1]):
                rows[i, k] /= length


@kernel
def _add_rows(rows: np.ndarray, total: np.ndarray) -> None:  # [n, D], [D] added to
    for i in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            total[k] += rows[i, k]


@kernel
def _add_moments(
    rows: np.ndarray,  # [n, D] centred
    first: np.ndarray,  # [D] added to: sum y
    squares: np.ndarray,  # [2] added to: sum q and q^2, q = |y|^2 summed in index order
    weighted: np.ndarray,  # [D] added to: sum q y
    second: np.ndarray,  # [D, D] added to where k <= l: sum y_k y_l
) -> None:
    n, dims = rows.shape
    for i in range(n):
        q = 0.0
        for k in range(dims):
            q += rows[i, k] * rows[i, k]
        squares[0] += q
        squares[1] += q * q
        for k in range(dims):
            first[k] += rows[i, k]
            weighted[k] += q * rows[i, k]
    i = 0
    while i < n:  # up to four rows at a time, added one after the other: the order is that of single rows
        if i + 4 <= n:
            for k in range(dims):
                a, b, c, d = rows[i, k], rows[i + 1, k], rows[i + 2, k], rows[i + 3, k]
                for m in range(k, dims):
                    total = second[k, m] + a * rows[i, m]
                    total += b * rows[i + 1, m]
                    total += c * rows[i + 2, m]
                    second[k, m] = total + d * rows[i + 3, m]
            i += 4
        else:
            for k in range(dims):
                for m in range(k, dims):
                    second[k, m] += rows[i, k] * rows[i, m]
            i += 1


@kernel
def _mean_and_variance(
    rows: np.ndarray,  # [n, D] of anchors, centred
    count: float,
    first: np.ndarray,  # [D]
    squares: np.ndarray,  # [2]
    weighted: np.ndarray,  # [D]
    second: np.ndarray,  # [D, D], both halves
    sign: float,  # 1: of q - 2 a . y over all rows y; 0: of -a . y
    out: np.ndarray,  # [n, 2] out
) -> None:
    dims = rows.shape[1]
    product = np.empty(dims)
    for i in range(rows.shape[0]):
        product[:] = 0.0
        m = 0
        while m + 4 <= dims:  # four at a time, added one after the other: the order is that of single ones
            a, b, c, d = rows[i, m], rows[i, m + 1], rows[i, m + 2], rows[i, m + 3]
            for k in range(dims):
                total = product[k] + second[m, k] * a
                total += second[m + 1, k] * b
                total += second[m + 2, k] * c
                product[k] = total + second[m + 3, k] * d
            m += 4
        for rest in range(m, dims):
            value = rows[i, rest]
            for k in range(dims):
                product[k] += second[rest, k] * value
        linear, crossed, quadratic = 0.0, 0.0, 0.0
        for k in range(dims):
            linear += rows[i, k] * first[k]
            crossed += rows[i, k] * weighted[k]
            quadratic += rows[i, k] * product[k]
        if sign > 0.0:
            mean = (squares[0] - 2.0 * linear) / count
            square = ((squares[1] - 4.0 * crossed) + 4.0 * quadratic) / count
        else:
            mean = -linear / count
            square = quadratic / count
        out[i, 0] = mean
        out[i, 1] = max(square - mean * mean, 0.0)


class Limits:
    """The outlier limits of any rows of a data set of `count` rows read by `read`."""

    def __init__(
        self,
        read: Read,  # [n, D]
        count: int,
        dims: int,
        metric: str,
        percentile: float,
        add_up: AddUp,
    ) -> None:
        self.count, self.cosine = count, metric == "cosine"
        self.z = NormalDist().inv_cdf(percentile / 100)
        self._read, self._dims = read, dims
        rows = max(_LEAST_ROWS, -(-count // _SEGMENTS))
        self._segments = [(first, min(first + rows, count)) for first in range(0, count, rows)]
        self.center = np.zeros(dims)
        total = add_up(len(self._segments), self._sum)
        self.center = total / max(count, 1)
        moments = add_up(len(self._segments), self._moments)
        self.first, self.squares, self.weighted, second = self._parts(moments)
        self.second = np.triu(second) + np.triu(second, 1).T

    def of(self, rows: np.ndarray) -> np.ndarray:  # [n, D] -> [n]
        """The limits of anchors."""
        if self.count < 2:
            return np.full(len(rows), np.inf)
        found = np.empty((len(rows), 2))
        moments = self.first, self.squares, self.weighted, self.second
        itself = np.zeros(len(rows))  # the selection value of a row and itself, which does not count

        def work(first: int, last: int) -> None:
            some, out = slice(first, last), found[first:last]
            y = rows[some].astype(np.float64)
            if self.cosine:  # 1 - u . u_j = (1 - u . center) - u . y_j
                _normalise(y)
                _mean_and_variance(y, float(self.count), *moments, 0.0, out)
                out[:, 0] = (1.0 - _in_order(y * self.center)) + out[:, 0]
                itself[some] = np.where(np.abs(y).max(axis=1) == 0.0, 1.0, 0.0)
            else:  # |y - y_j|^2 = |y|^2 + (q_j - 2 y . y_j)
                y -= self.center
                _mean_and_variance(y, float(self.count), *moments, 1.0, out)
                out[:, 0] = _in_order(y * y) + out[:, 0]

        step = 512
        deal(
            ((first, min(first + step, len(rows))) for first in range(0, len(rows), step)),
            min(get_num_threads(), -(-len(rows) // step)),
            work,
        )
        mean, variance, n = found[:, 0], found[:, 1], float(self.count)
        apart = mean - itself
        others = (n * mean - itself) / (n - 1.0)
        variance = np.maximum(n / (n - 1.0) * (variance - apart * apart / (n - 1.0)), 0.0)
        limits = others + self.z * np.sqrt(variance)
        return np.where(variance <= _EQUAL * others * others, np.inf, limits)

    def _centred(self, rows: np.ndarray) -> np.ndarray:
        y = rows.astype(np.float64)
        if self.cosine:
            _normalise(y)
        y -= self.center
        return y

    def _blocks(self, segment: int) -> Iterator[np.ndarray]:
        first, last = self._segments[segment]
        step = max(64, (1 << 19) // self._dims)
        for low in range(first, last, step):
            yield self._centred(self._read(low, min(low + step, last)))

    def _sum(self, segment: int) -> np.ndarray:  # [D]
        total = np.zeros(self._dims)
        for block in self._blocks(segment):
            _add_rows(block, total)
        return total

    def _moments(self, segment: int) -> np.ndarray:  # [2 D + 2 + D * D]
        total = np.zeros(2 * self._dims + 2 + self._dims * self._dims)
        for block in self._blocks(segment):
            _add_moments(block, *self._parts(total))
        return total

    def _parts(self, total: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        d = self._dims
        return total[:d], total[d : d + 2], total[d + 2 : 2 * d + 2], total[2 * d + 2 :].reshape(d, d)


def _in_order(terms: np.ndarray) -> np.ndarray:  # [n, D] -> [n]
    """Sums of rows in index order; NumPy's own depend on how it vectorises."""
    total = np.zeros(len(terms))
    for k in range(terms.shape[1]):
        total += terms[:, k]
    return total


def add_up_here(segments: int, compute: Callable[[int], np.ndarray]) -> np.ndarray:
    """`AddUp` of one process: a few segments at a time on threads, added in order."""
    total: np.ndarray | None = None
    workers = min(get_num_threads(), max(segments, 1))
    for first in range(0, segments, workers):
        some = range(first, min(first + workers, segments))
        parts: dict[int, np.ndarray] = {}
        lock = threading.Lock()

        def work(segment: int, parts: dict[int, np.ndarray] = parts, lock: threading.Lock = lock) -> None:
            part = compute(segment)
            with lock:
                parts[segment] = part

        deal(((segment,) for segment in some), len(some), work)
        for segment in some:
            total = parts[segment] if total is None else total + parts[segment]
    assert total is not None, "a data set without rows has no moments"
    return total
