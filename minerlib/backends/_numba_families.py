"""The kernel families over rows of canonical distances that are already there, compiled by numba.

For B anchors from index `first` on, `rows [B, M]` holds what nearest and farthest are decided on, and
`sides [B, M]` what each column is to the anchor. With `root` the metric's value is the square root of it
(euclidean). Score of a triplet: s = (d(a, p) - d(a, n)) + margin, in that order. Ties: the lowest index.
The slots of anchor a's pairs are offsets[a] .. offsets[a + 1], by ascending positive.
"""

from __future__ import annotations

import math

import numpy as np

from minerlib.backends._numba_chunks import NEGATIVE, POSITIVE
from minerlib.backends._numba_jit import kernel
from minerlib.strategies import FARTHEST_NEGATIVE, FARTHEST_POSITIVE, NEAREST_NEGATIVE, NEAREST_POSITIVE

BLOCK = 64  # negatives counted at a time before one of them is chosen


# ------------------------------------------------------------------ random choice (SPEC section 3)

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = np.uint64(0x9E3779B9)
_WEYL_1 = np.uint64(0xBB67AE85)


@kernel
def random_bits(seed: np.uint64, anchor: np.uint64, positive: np.uint64) -> np.uint64:
    """u = w0 + 2^32 w1 of Philox4x32-10 at (anchor, positive)."""
    k0, k1 = seed & _LOW, seed >> _HALF
    c0, c1, c2, c3 = anchor & _LOW, anchor >> _HALF, positive & _LOW, positive >> _HALF
    for _ in range(10):
        product_0 = _MULTIPLIER_0 * c0
        product_1 = _MULTIPLIER_1 * c2
        c0, c1 = (product_1 >> _HALF) ^ c1 ^ k0, product_1 & _LOW
        c2, c3 = (product_0 >> _HALF) ^ c3 ^ k1, product_0 & _LOW
        k0 = (k0 + _WEYL_0) & _LOW
        k1 = (k1 + _WEYL_1) & _LOW
    return c0 | (c1 << _HALF)


@kernel
def scaled(u: np.uint64, count: np.uint64) -> np.uint64:
    """floor(u * count / 2^64), the product taken in halves of 32 bits."""
    u0, u1 = u & _LOW, u >> _HALF
    c0, c1 = count & _LOW, count >> _HALF
    middle_0 = u1 * c0 + ((u0 * c0) >> _HALF)
    middle_1 = u0 * c1 + (middle_0 & _LOW)
    return u1 * c1 + (middle_0 >> _HALF) + (middle_1 >> _HALF)


# ------------------------------------------------------------------ extremes


@kernel
def extremes(
    rows: np.ndarray,  # [B, M]
    sides: np.ndarray,  # [B, M] uint8
    first: int,
    found: np.ndarray,  # [4, N] int64, written from column `first` on
) -> None:
    for i in range(rows.shape[0]):
        near_p = far_p = near_n = far_n = -1
        near_p_value = near_n_value = math.inf
        far_p_value = far_n_value = -math.inf
        for j in range(rows.shape[1]):
            value = rows[i, j]
            if sides[i, j] == NEGATIVE:
                if value < near_n_value:
                    near_n, near_n_value = j, value
                if value > far_n_value:
                    far_n, far_n_value = j, value
            elif sides[i, j] == POSITIVE:
                if value < near_p_value:
                    near_p, near_p_value = j, value
                if value > far_p_value:
                    far_p, far_p_value = j, value
        found[NEAREST_POSITIVE, first + i] = near_p
        found[FARTHEST_POSITIVE, first + i] = far_p
        found[NEAREST_NEGATIVE, first + i] = near_n
        found[FARTHEST_NEGATIVE, first + i] = far_n


# ------------------------------------------------------------------ window


@kernel
def _gather(
    row: np.ndarray,  # [M]
    side: np.ndarray,  # [M] uint8
    root: bool,
    index: np.ndarray,  # [M] int64, written: the negatives, ascending
    value: np.ndarray,  # [M] written: their distances in the metric's unit
) -> int:
    """How many negatives there are."""
    count = 0
    for j in range(row.size):
        index[count] = j
        value[count] = math.sqrt(row[j]) if root else row[j]
        count += side[j] == NEGATIVE
    return count


@kernel
def _eligible(values: np.ndarray, to_positive: float, margin: float, limit: float) -> int:
    count = 0
    for c in range(values.size):
        s = (to_positive - values[c]) + margin
        count += (s > 0.0) & (s <= limit)
    return count


@kernel
def _eligible_at(values: np.ndarray, to_positive: float, margin: float, limit: float, r: int) -> int:
    """Where the r-th eligible one is: behind all places up to which there are at most r, without a branch."""
    seen = at = 0
    for c in range(values.size):
        s = (to_positive - values[c]) + margin
        seen += (s > 0.0) & (s <= limit)
        at += seen <= r
    return at


@kernel
def choose_in_window(
    rows: np.ndarray,  # [B, M]
    sides: np.ndarray,  # [B, M] uint8
    first: int,
    root: bool,
    combinations: bool,
    margin: float,
    limit: float,
    seed: np.uint64,
    fallback: np.ndarray,  # [N] int64: for a pair without an eligible negative, -1 for none
    offsets: np.ndarray,  # [N + 1] int64
    positives: np.ndarray,  # [S] int64, written
    negatives: np.ndarray,  # [S] int64, written
) -> None:
    """One of the negatives with 0 < s <= limit, all equally likely.

    Counts them block by block, so that only the block that holds the chosen one is looked at again.
    """
    columns = rows.shape[1]
    index, value = np.empty(columns, np.int64), np.empty(columns)
    counts = np.empty(columns // BLOCK + 1, np.int64)
    for i in range(rows.shape[0]):
        anchor = first + i
        count = _gather(rows[i], sides[i], root, index, value)
        slot = offsets[anchor]
        for p in range(anchor + 1 if combinations else 0, columns):
            if sides[i, p] != POSITIVE:
                continue
            to_positive = math.sqrt(rows[i, p]) if root else rows[i, p]
            total = 0
            for block in range(0, count, BLOCK):
                inside = _eligible(value[block : min(block + BLOCK, count)], to_positive, margin, limit)
                counts[block // BLOCK] = inside
                total += inside
            chosen = fallback[anchor]
            if total > 0:
                u = random_bits(seed, np.uint64(anchor), np.uint64(p))
                r = np.int64(scaled(u, np.uint64(total)))
                block = 0
                while r >= counts[block]:
                    r -= counts[block]
                    block += 1
                start = block * BLOCK
                stop = min(start + BLOCK, count)
                chosen = index[start + _eligible_at(value[start:stop], to_positive, margin, limit, r)]
            positives[slot] = p
            negatives[slot] = chosen
            slot += 1


@kernel
def nearest_if_hard(
    rows: np.ndarray,  # [B, M]
    sides: np.ndarray,  # [B, M] uint8
    first: int,
    root: bool,
    combinations: bool,
    margin: float,
    fallback: np.ndarray,  # [N] int64: for a pair without an eligible negative, -1 for none
    offsets: np.ndarray,  # [N + 1] int64
    positives: np.ndarray,  # [S] int64, written
    negatives: np.ndarray,  # [S] int64, written
) -> None:
    """The nearest negative where s > 0."""
    for i in range(rows.shape[0]):
        anchor = first + i
        nearest, least = -1, math.inf
        for j in range(rows.shape[1]):
            if sides[i, j] == NEGATIVE and rows[i, j] < least:
                nearest, least = j, rows[i, j]
        to_negative = math.sqrt(least) if root else least
        slot = offsets[anchor]
        for p in range(anchor + 1 if combinations else 0, rows.shape[1]):
            if sides[i, p] != POSITIVE:
                continue
            to_positive = math.sqrt(rows[i, p]) if root else rows[i, p]
            eligible = nearest >= 0 and (to_positive - to_negative) + margin > 0.0
            positives[slot] = p
            negatives[slot] = nearest if eligible else fallback[anchor]
            slot += 1


@kernel
def nearest_farther(
    rows: np.ndarray,  # [B, M]
    sides: np.ndarray,  # [B, M] uint8
    first: int,
    root: bool,
    combinations: bool,
    fallback: np.ndarray,  # [N] int64: for a pair without an eligible negative, -1 for none
    offsets: np.ndarray,  # [N + 1] int64
    positives: np.ndarray,  # [S] int64, written
    negatives: np.ndarray,  # [S] int64, written
) -> None:
    """The nearest of the negatives with d(a, n) > d(a, p).

    The anchor's thresholds d(a, p) are sorted once. Each negative falls between two of them and is kept if it
    is the nearest there; what a pair wants is the first negative kept above its threshold.
    """
    columns = rows.shape[1]
    threshold, order = np.empty(columns), np.empty(columns, np.int64)
    kept = np.empty(columns + 1, np.int64)
    for i in range(rows.shape[0]):
        anchor = first + i
        row = rows[i]
        slot = offsets[anchor]
        count = 0
        for p in range(anchor + 1 if combinations else 0, columns):
            if sides[i, p] == POSITIVE:
                threshold[count] = math.sqrt(row[p]) if root else row[p]
                order[count] = count
                positives[slot + count] = p
                count += 1
        _sort(threshold[:count], order[:count])
        kept[: count + 1] = -1
        for j in range(columns):
            if sides[i, j] == NEGATIVE:
                above = _number_below(threshold[:count], math.sqrt(row[j]) if root else row[j])
                if kept[above] < 0 or row[j] < row[kept[above]]:
                    kept[above] = j
        chosen = fallback[anchor]
        for c in range(count - 1, -1, -1):
            if kept[c + 1] >= 0:
                chosen = kept[c + 1]
            negatives[slot + order[c]] = chosen


@kernel
def _number_below(
    ascending: np.ndarray,  # [m]
    value: float,
) -> int:
    """How many are less than `value`."""
    low, high = 0, ascending.size
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


# ------------------------------------------------------------------ sample


@kernel
def draw(
    cumulative: np.ndarray,  # [B, M] running sums of the weights, which are 0 for all but negatives
    sides: np.ndarray,  # [B, M] uint8
    first: int,
    combinations: bool,
    seed: np.uint64,
    fallback: np.ndarray,  # [N] int64: for a pair whose weights are all nothing, -1 for none
    offsets: np.ndarray,  # [N + 1] int64
    positives: np.ndarray,  # [S] int64, written
    negatives: np.ndarray,  # [S] int64, written
) -> None:
    """The first column whose running sum exceeds a uniform part of the whole."""
    columns = cumulative.shape[1]
    for i in range(cumulative.shape[0]):
        anchor = first + i
        slot = offsets[anchor]
        whole = cumulative[i, columns - 1]
        for p in range(anchor + 1 if combinations else 0, columns):
            if sides[i, p] != POSITIVE:
                continue
            chosen = fallback[anchor]
            if whole > 0.0:
                u = random_bits(seed, np.uint64(anchor), np.uint64(p))
                target = np.float64(u) / 2.0**64 * whole
                low, high = 0, columns - 1
                while low < high:
                    middle = (low + high) // 2
                    # A target that rounding lifted to the whole still means the last column of any weight.
                    if cumulative[i, middle] > target or cumulative[i, middle] == whole:
                        high = middle
                    else:
                        low = middle + 1
                chosen = low
            positives[slot] = p
            negatives[slot] = chosen
            slot += 1


# ------------------------------------------------------------------ every triplet, and counts


@kernel
def count_scores(
    rows: np.ndarray,  # [B, M]
    sides: np.ndarray,  # [B, M] uint8
    first: int,
    root: bool,
    combinations: bool,
    margin: float,
    totals: np.ndarray,  # [3] int64, added to
) -> None:
    """Numbers of triplets: all, those with s > 0, and those with 0 < s < margin."""
    columns = rows.shape[1]
    index, value = np.empty(columns, np.int64), np.empty(columns)
    for i in range(rows.shape[0]):
        anchor = first + i
        count = _gather(rows[i], sides[i], root, index, value)
        for p in range(anchor + 1 if combinations else 0, columns):
            if sides[i, p] == POSITIVE:
                to_positive = math.sqrt(rows[i, p]) if root else rows[i, p]
                above, inside = _above_and_inside(value[:count], to_positive, margin)
                totals[0] += count
                totals[1] += above
                totals[2] += inside


@kernel
def _above_and_inside(values: np.ndarray, to_positive: float, margin: float) -> tuple[int, int]:
    above = inside = 0
    for c in range(values.size):
        s = (to_positive - values[c]) + margin
        above += s > 0.0
        inside += (s > 0.0) & (s < margin)
    return above, inside


@kernel
def list_triplets(
    rows: np.ndarray,  # [B, M]
    sides: np.ndarray,  # [B, M] uint8
    first: int,
    root: bool,
    combinations: bool,
    margin: float,
    triplets: np.ndarray,  # [3, T] int64, written: anchors, positives, negatives with s > 0, sorted
) -> None:
    columns = rows.shape[1]
    index, value = np.empty(columns, np.int64), np.empty(columns)
    t = 0
    for i in range(rows.shape[0]):
        anchor = first + i
        count = _gather(rows[i], sides[i], root, index, value)
        for p in range(anchor + 1 if combinations else 0, columns):
            if sides[i, p] == POSITIVE:
                to_positive = math.sqrt(rows[i, p]) if root else rows[i, p]
                for c in range(count):
                    if (to_positive - value[c]) + margin > 0.0:
                        triplets[0, t] = anchor
                        triplets[1, t] = p
                        triplets[2, t] = index[c]
                        t += 1


# ------------------------------------------------------------------ topk


@kernel
def nearest_k(
    rows: np.ndarray,  # [B, M]
    values: np.ndarray,  # [B, k] written
    indices: np.ndarray,  # [B, k] int64, written
) -> None:
    """The k nearest columns by (value, index), kept in a heap while the row is read once."""
    k = values.shape[1]
    for i in range(rows.shape[0]):
        value, index = values[i], indices[i]
        for j in range(k):
            value[j], index[j] = rows[i, j], j
        _make_heap(value, index)
        for j in range(k, rows.shape[1]):
            if rows[i, j] < value[0]:  # of equal values the lower index is there already
                value[0], index[0] = rows[i, j], j
                _sift_down(value, index, 0, k)
        _sort_heap(value, index)


# ------------------------------------------------------------------ heaps, the last by (value, index) on top


@kernel
def _sort(values: np.ndarray, indices: np.ndarray) -> None:
    """Both by ascending (value, index), in place."""
    _make_heap(values, indices)
    _sort_heap(values, indices)


@kernel
def _make_heap(values: np.ndarray, indices: np.ndarray) -> None:
    for root in range(values.size // 2 - 1, -1, -1):
        _sift_down(values, indices, root, values.size)


@kernel
def _sort_heap(values: np.ndarray, indices: np.ndarray) -> None:
    for size in range(values.size - 1, 0, -1):  # the top goes behind the rest of the heap
        values[0], values[size] = values[size], values[0]
        indices[0], indices[size] = indices[size], indices[0]
        _sift_down(values, indices, 0, size)


@kernel
def _sift_down(values: np.ndarray, indices: np.ndarray, root: int, size: int) -> None:
    """Make a heap of what lies below `root`, where only the root may be out of place."""
    value, index = values[root], indices[root]
    hole, child = root, 2 * root + 1
    while child < size:
        right = child + 1
        if right < size and (
            values[right] > values[child]
            or (values[right] == values[child] and indices[right] > indices[child])
        ):
            child = right
        if values[child] < value or (values[child] == value and indices[child] < index):
            break
        values[hole], indices[hole] = values[child], indices[child]
        hole, child = child, 2 * child + 1
    values[hole], indices[hole] = value, index
