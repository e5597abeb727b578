"""Scans of one anchor's distances to every column, decided as canonical float64 distances decide (numba).

    value(a, j) = sq | sqrt(sq) | 1 - dot / (|x| |y|)        metric 0 | 1 | 2, summed as SPEC section 2 says
    lo[j] <= value(a, j) <= hi[j]                            from g = x.y of one product of matrices

x [N, D], y [M, D] float32 or float64; g [B, M] products of anchors first .. first + B in that type, off by at
most gamma |x| |y| + tiny; x_norm [N], y_norm [M] canonical float64 norms. The columns of class c are
members[class_starts[c] : class_starts[c + 1]], ascending; x_class [N] is each anchor's class. `options` is
(metric, gamma, tiny, own): column own + a is anchor a itself, and no pair of its own. What the interval of a
value leaves open is decided by the value itself, so answers depend neither on how a product was summed nor
on how the anchors are chunked. Ties: the lowest column wins.

Numba looks only at a kernel's own file to see whether its machine code is stale: all of them are here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minerlib.backends._numba_jit import kernel

SQUARED, EUCLIDEAN, COSINE = 0, 1, 2
NEITHER, POSITIVE, NEGATIVE = 0, 1, 2

_ULPS = 1e-15  # more than the rounding of a root
_BLOCK = 64  # columns that are passed over together where none is a candidate


@kernel
def _value(
    x: np.ndarray,  # [N, D]
    y: np.ndarray,  # [M, D]
    a: int,
    j: int,
    x_norm: np.ndarray,  # [N]
    y_norm: np.ndarray,  # [M]
    metric: int,
    lanes: np.ndarray,  # [8] scratch
) -> float:
    """The canonical distance of one pair."""
    lanes[:] = 0.0
    for k in range(x.shape[1]):
        if metric == COSINE:
            lanes[k & 7] += np.float64(x[a, k]) * np.float64(y[j, k])
        else:
            t = np.float64(x[a, k]) - np.float64(y[j, k])
            lanes[k & 7] += t * t
    total = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]))
    if metric == EUCLIDEAN:
        return np.sqrt(total)
    if metric == SQUARED:
        return total
    scale = x_norm[a] * y_norm[j]
    if scale == 0.0:
        return 1.0
    return 1.0 - total / scale


@kernel
def _bounds(
    g: np.ndarray,  # [M] the products of one anchor
    a: int,
    dimension: int,
    x_norm: np.ndarray,  # [N]
    y_norm: np.ndarray,  # [M]
    options: Any,
    lo: np.ndarray,  # [M] out
    hi: np.ndarray,  # [M] out
) -> None:
    """Intervals that hold the canonical distances; endless ones where a product overflowed."""
    metric, gamma, tiny, _ = options
    size = x_norm[a]
    rounding = (dimension + 16) * 2.3e-16  # of the norms and of the canonical sum itself
    if metric == COSINE:
        for j in range(g.size):
            # the scale of a zero vector counts as 1: its products are 0, its distance is 1
            scale = size * y_norm[j]
            divisor = scale if scale > 0.0 else 1.0
            middle = 1.0 - np.float64(g[j]) / divisor
            reach = gamma + tiny / divisor + 2.0 * rounding
            lo[j], hi[j] = middle - reach, middle + reach
    else:
        for j in range(g.size):
            squares = size * size + y_norm[j] * y_norm[j]
            middle = squares - 2.0 * np.float64(g[j])
            reach = 2.0 * (gamma * (size * y_norm[j]) + tiny) + rounding * squares
            lo[j] = middle - reach if middle > reach else 0.0
            hi[j] = middle + reach if middle > -reach else 0.0
        if metric == EUCLIDEAN:
            for j in range(g.size):
                lo[j] = np.sqrt(lo[j]) * (1.0 - _ULPS)
                hi[j] = np.sqrt(hi[j]) * (1.0 + _ULPS)
    broken = 0
    for j in range(g.size):
        broken += not np.isfinite(g[j])
    if broken:
        for j in range(g.size):
            if not np.isfinite(g[j]):
                lo[j], hi[j] = -np.inf, np.inf


@kernel
def _set_aside(
    members: np.ndarray,  # columns of the anchor's class
    a: int,
    own: int,
    lo: np.ndarray,  # [M] changed
    hi: np.ndarray,  # [M] changed
    by: float,
    positives: np.ndarray,  # out: the members but the anchor itself
    p_lo: np.ndarray,  # out: their intervals
    p_hi: np.ndarray,  # out
) -> int:
    """Take the anchor's class out of the intervals, which then are those of its negatives alone."""
    p = 0
    for j in members:
        if j != own + a:
            positives[p], p_lo[p], p_hi[p] = j, lo[j], hi[j]
            p += 1
        lo[j] = hi[j] = by
    return p


@kernel
def _extreme(
    columns: np.ndarray,  # [C] ascending
    farthest: bool,
    window: tuple[float, float, float, float],  # r0 <= value <= r1 and t0 < value < t1
    x: np.ndarray,
    y: np.ndarray,
    a: int,
    x_norm: np.ndarray,
    y_norm: np.ndarray,
    metric: int,
    lo: np.ndarray,  # [C]
    hi: np.ndarray,  # [C]
    lanes: np.ndarray,
) -> tuple[int, float]:
    """The nearest or farthest column inside the window and its distance; (-1, 0.0) for none.

    Intervals of (inf, inf) when the nearest is sought, of (-inf, -inf) when the farthest, are no candidates.
    """
    r0, r1, t0, t1 = window
    edge = -np.inf if farthest else np.inf
    if not farthest and r0 == -np.inf and r1 == np.inf and t1 == np.inf:  # the usual case, in four streams
        e0 = e1 = e2 = e3 = edge
        for i in range(0, columns.size - 3, 4):
            e0 = hi[i] if (hi[i] < e0) & (lo[i] > t0) else e0
            e1 = hi[i + 1] if (hi[i + 1] < e1) & (lo[i + 1] > t0) else e1
            e2 = hi[i + 2] if (hi[i + 2] < e2) & (lo[i + 2] > t0) else e2
            e3 = hi[i + 3] if (hi[i + 3] < e3) & (lo[i + 3] > t0) else e3
        edge = min(min(e0, e1), min(e2, e3))  # the last few columns may stay outside: it is a bound only
    else:
        for i in range(columns.size):
            if lo[i] >= r0 and hi[i] <= r1 and lo[i] > t0 and hi[i] < t1:
                edge = max(edge, lo[i]) if farthest else min(edge, hi[i])
    best, best_value = -1, 0.0
    for begin in range(0, columns.size, _BLOCK):
        end = min(begin + _BLOCK, columns.size)
        candidates = 0
        if farthest:
            for i in range(begin, end):
                candidates += (hi[i] >= edge) & (hi[i] > t0)
        else:
            for i in range(begin, end):
                candidates += (lo[i] <= edge) & (hi[i] > t0)
        if candidates == 0:
            continue
        for i in range(begin, end):
            if (hi[i] < edge or hi[i] == -np.inf) if farthest else (lo[i] > edge or lo[i] == np.inf):
                continue
            if hi[i] < r0 or lo[i] > r1 or hi[i] <= t0 or lo[i] >= t1:
                continue
            value = _value(x, y, a, columns[i], x_norm, y_norm, metric, lanes)
            if not (r0 <= value <= r1 and t0 < value < t1):
                continue
            if best < 0 or (value > best_value if farthest else value < best_value):
                best, best_value = columns[i], value
    return best, best_value


@kernel
def choose(
    g: np.ndarray,  # [B, M]
    first: int,
    x: np.ndarray,
    y: np.ndarray,
    x_norm: np.ndarray,
    y_norm: np.ndarray,
    x_class: np.ndarray,
    class_starts: np.ndarray,
    members: np.ndarray,
    options: Any,
    farthest: tuple[bool, bool],  # of the positives, of the negatives
    ranges: tuple[float, float, float, float],  # r0, r1 of the positives, r0, r1 of the negatives
    semihard: int,  # which side comes second and stays beyond the first: POSITIVE, NEGATIVE or NEITHER
    index: np.ndarray,  # [N, 2] out, -1 for none
    value: np.ndarray,  # [N, 2] out
) -> None:
    """One positive and one negative for each anchor."""
    metric, _, _, own = options
    columns = y.shape[0]
    lo, hi, lanes, every = np.empty(columns), np.empty(columns), np.empty(8), np.arange(columns)
    positives, p_lo, p_hi = np.empty(columns, np.int64), np.empty(columns), np.empty(columns)
    for row in range(g.shape[0]):
        a = first + row
        _bounds(g[row], a, x.shape[1], x_norm, y_norm, options, lo, hi)
        mine = members[class_starts[x_class[a]] : class_starts[x_class[a] + 1]]
        p = _set_aside(mine, a, own, lo, hi, -np.inf if farthest[1] else np.inf, positives, p_lo, p_hi)
        closest, furthest = -np.inf, np.inf
        if semihard == POSITIVE:
            index[a, 1], value[a, 1] = _extreme(
                every, farthest[1], (ranges[2], ranges[3], -np.inf, np.inf),
                x, y, a, x_norm, y_norm, metric, lo, hi, lanes,
            )  # fmt: skip
            furthest = value[a, 1] if index[a, 1] >= 0 else -np.inf
        index[a, 0], value[a, 0] = _extreme(
            positives[:p], farthest[0], (ranges[0], ranges[1], -np.inf, furthest),
            x, y, a, x_norm, y_norm, metric, p_lo[:p], p_hi[:p], lanes,
        )  # fmt: skip
        if semihard == POSITIVE:
            continue
        if semihard == NEGATIVE:
            closest = value[a, 0] if index[a, 0] >= 0 else np.inf
        index[a, 1], value[a, 1] = _extreme(
            every, farthest[1], (ranges[2], ranges[3], closest, np.inf),
            x, y, a, x_norm, y_norm, metric, lo, hi, lanes,
        )  # fmt: skip


@kernel
def mark_pairs(
    g: np.ndarray,  # [B, M]
    anchors: np.ndarray,  # [B]
    x: np.ndarray,
    y: np.ndarray,
    x_norm: np.ndarray,
    y_norm: np.ndarray,
    x_class: np.ndarray,
    class_starts: np.ndarray,
    members: np.ndarray,
    options: Any,
    limits: tuple[float, float, float],  # epsilon, and the edges of positives and negatives
    extremes: bool,  # the edges are the anchor's nearest negative and farthest positive instead
    marks: np.ndarray,  # [B, M] uint8 out: NEITHER, POSITIVE or NEGATIVE
    counts: np.ndarray,  # [B, 2] out
) -> None:
    """Positives with value + epsilon > edge, negatives with value - epsilon < edge.

    Rounding keeps the order of numbers, so the ends of an interval may be compared in place of the value.
    """
    metric, _, _, own = options
    columns = y.shape[0]
    epsilon = limits[0]
    lo, hi, lanes, every = np.empty(columns), np.empty(columns), np.empty(8), np.arange(columns)
    positives, p_lo, p_hi = np.empty(columns, np.int64), np.empty(columns), np.empty(columns)
    everywhere = (-np.inf, np.inf, -np.inf, np.inf)
    for row in range(g.shape[0]):
        a = anchors[row]
        _bounds(g[row], a, x.shape[1], x_norm, y_norm, options, lo, hi)
        mine = members[class_starts[x_class[a]] : class_starts[x_class[a] + 1]]
        p = _set_aside(mine, a, own, lo, hi, np.inf, positives, p_lo, p_hi)
        near, far = limits[1], limits[2]
        if extremes:
            found, near = _extreme(every, False, everywhere, x, y, a, x_norm, y_norm, metric, lo, hi, lanes)
            near = near if found >= 0 else np.inf
            found, far = _extreme(
                positives[:p], True, everywhere, x, y, a, x_norm, y_norm, metric, p_lo[:p], p_hi[:p], lanes
            )
            far = far if found >= 0 else -np.inf
        certain = possible = 0
        for j in range(columns):
            sure = hi[j] - epsilon < far
            certain += sure
            possible += lo[j] - epsilon < far
            marks[row, j] = NEGATIVE if sure else NEITHER
        if possible > certain:
            for j in range(columns):
                if (lo[j] - epsilon < far and not hi[j] - epsilon < far) and (
                    _value(x, y, a, j, x_norm, y_norm, metric, lanes) - epsilon < far
                ):
                    marks[row, j] = NEGATIVE
                    certain += 1
        counts[row, 1] = certain
        certain = 0
        for i in range(p):
            j = positives[i]
            if p_lo[i] + epsilon > near or (
                p_hi[i] + epsilon > near
                and _value(x, y, a, j, x_norm, y_norm, metric, lanes) + epsilon > near
            ):
                marks[row, j] = POSITIVE
                certain += 1
        counts[row, 0] = certain


@kernel
def values(
    x: np.ndarray,
    y: np.ndarray,
    x_norm: np.ndarray,
    y_norm: np.ndarray,
    metric: int,
    anchors: np.ndarray,  # [P]
    columns: np.ndarray,  # [P], or -1 for none
    out: np.ndarray,  # [P] out; inf for none
) -> None:
    """The canonical distances of pairs."""
    lanes = np.empty(8)
    for i in range(out.size):
        out[i] = np.inf
        if columns[i] >= 0:
            out[i] = _value(x, y, anchors[i], columns[i], x_norm, y_norm, metric, lanes)


@kernel
def list_negatives(
    marks: np.ndarray,  # [B, M] uint8
    rows: np.ndarray,  # [B] the anchors
    starts: np.ndarray,  # [B + 1] where each row's columns go
    anchors: np.ndarray,  # out
    columns: np.ndarray,  # out
) -> None:
    """The (anchor, column) pairs marked as negative, by anchor, then column."""
    for row in range(marks.shape[0]):
        place, end = starts[row], starts[row + 1]
        anchors[place:end] = rows[row]
        j = 0
        while place < end:
            if marks[row, j] == NEGATIVE:
                columns[place] = j
                place += 1
            j += 1


@kernel
def list_positives(
    marks: np.ndarray,  # [B, M] uint8
    rows: np.ndarray,  # [B] the anchors
    x_class: np.ndarray,
    class_starts: np.ndarray,
    members: np.ndarray,
    starts: np.ndarray,  # [B + 1] where each row's columns go
    anchors: np.ndarray,  # out
    columns: np.ndarray,  # out
) -> None:
    """The (anchor, column) pairs marked as positive, by anchor, then column."""
    for row in range(marks.shape[0]):
        place, a = starts[row], rows[row]
        anchors[place : starts[row + 1]] = a
        for j in members[class_starts[x_class[a]] : class_starts[x_class[a] + 1]]:
            if marks[row, j] == POSITIVE:
                columns[place] = j
                place += 1


@kernel
def triplets(
    g: np.ndarray,  # [B, M]
    first: int,
    x: np.ndarray,
    y: np.ndarray,
    x_norm: np.ndarray,
    y_norm: np.ndarray,
    x_class: np.ndarray,
    class_starts: np.ndarray,
    members: np.ndarray,
    options: Any,
    window: tuple[float, float],  # w0 < d(a, n) - d(a, p) <= w1
    starts: np.ndarray,  # [B] where each anchor's triplets go
    counts: np.ndarray,  # [B] out when there is nowhere to write to
    out: np.ndarray,  # [3, T] out, or [3, 0] to count only
) -> None:
    """Every triplet whose difference of distances lies in the window, by anchor, positive, negative."""
    metric, _, _, own = options
    w0, w1 = window
    columns = y.shape[0]
    lo, hi, lanes, known = np.empty(columns), np.empty(columns), np.empty(8), np.empty(columns)
    positives, p_lo, p_hi = np.empty(columns, np.int64), np.empty(columns), np.empty(columns)
    picked = np.empty(columns + 1, np.int64)
    counting = out.shape[1] == 0
    for row in range(g.shape[0]):
        a = first + row
        place = starts[row]
        _bounds(g[row], a, x.shape[1], x_norm, y_norm, options, lo, hi)
        mine = members[class_starts[x_class[a]] : class_starts[x_class[a] + 1]]
        p = _set_aside(mine, a, own, lo, hi, np.nan, positives, p_lo, p_hi)  # never inside a window
        known[:] = np.nan
        for i in range(p):
            q, nearest, farthest = positives[i], p_lo[i], p_hi[i]
            begin = place
            certain = possible = 0
            for j in range(columns):
                above, below = hi[j] - nearest, lo[j] - farthest
                certain += (below > w0) & (above <= w1)
                possible += (above > w0) & (below <= w1)
            if possible == certain:
                if counting:
                    place += certain
                    continue
                found = 0
                for j in range(columns):  # without a branch, as about every second one may be chosen
                    picked[found] = j
                    found += (lo[j] - farthest > w0) & (hi[j] - nearest <= w1)
                out[2, place : place + found] = picked[:found]
                place += found
            else:
                to_q = _value(x, y, a, q, x_norm, y_norm, metric, lanes)
                for j in range(columns):
                    above, below = hi[j] - nearest, lo[j] - farthest
                    if not (above > w0 and below <= w1):
                        continue
                    if not (below > w0 and above <= w1):
                        if np.isnan(known[j]):
                            known[j] = _value(x, y, a, j, x_norm, y_norm, metric, lanes)
                        if not (known[j] - to_q > w0 and known[j] - to_q <= w1):
                            continue
                    if not counting:
                        out[2, place] = j
                    place += 1
            if not counting:
                out[0, begin:place] = a
                out[1, begin:place] = q
        if counting:
            counts[row] = place - starts[row]


@kernel
def side_sums(
    g: np.ndarray,  # [B, M]
    first: int,
    x: np.ndarray,
    y: np.ndarray,
    x_norm: np.ndarray,
    y_norm: np.ndarray,
    x_class: np.ndarray,
    class_starts: np.ndarray,
    members: np.ndarray,
    options: Any,
    sums: np.ndarray,  # [B, 4] out: positives, sum of their distances, negatives, sum of theirs
) -> None:
    """What the averages of distances are made of; from the middles of the intervals."""
    columns = y.shape[0]
    lo, hi = np.empty(columns), np.empty(columns)
    positives, p_lo, p_hi = np.empty(columns, np.int64), np.empty(columns), np.empty(columns)
    for row in range(g.shape[0]):
        a = first + row
        _bounds(g[row], a, x.shape[1], x_norm, y_norm, options, lo, hi)
        mine = members[class_starts[x_class[a]] : class_starts[x_class[a] + 1]]
        p = _set_aside(mine, a, options[3], lo, hi, 0.0, positives, p_lo, p_hi)
        sums[row, 0], sums[row, 1] = p, 0.5 * (p_lo[:p].sum() + p_hi[:p].sum())
        sums[row, 2], sums[row, 3] = columns - mine.size, 0.5 * (lo.sum() + hi.sum())


@kernel
def draw_weighted(
    g: np.ndarray,  # [B, M]
    first: int,
    x: np.ndarray,
    y: np.ndarray,
    x_norm: np.ndarray,
    y_norm: np.ndarray,
    x_class: np.ndarray,
    class_starts: np.ndarray,
    members: np.ndarray,
    options: Any,
    cutoffs: tuple[
        float, float
    ],  # distances are clamped below at the first, weigh nothing from the second on
    starts: np.ndarray,  # [B + 1] each anchor's draws
    uniform: np.ndarray,  # [draws] in [0, 1)
    drawn: np.ndarray,  # [draws] out: a negative, or -1 where all of them weigh nothing
) -> None:
    """Negatives drawn with weight d^(2-D) (1 - d^2/4)^((3-D)/2), in log space, scaled per anchor."""
    columns, dimension = y.shape
    weight, cumulative = np.empty(columns), np.empty(columns)
    least = cutoffs[0] * cutoffs[0]
    for row in range(g.shape[0]):
        a = first + row
        for j in range(columns):
            square = x_norm[a] * x_norm[a] + y_norm[j] * y_norm[j] - 2.0 * np.float64(g[row, j])
            cumulative[j] = max(square, least)
        for j in members[class_starts[x_class[a]] : class_starts[x_class[a] + 1]]:
            cumulative[j] = 4.0  # weighs nothing
        heaviest = -np.inf
        for j in range(columns):
            square = cumulative[j]
            weight[j] = -np.inf
            if 0.0 < square < 4.0 and np.sqrt(square) < cutoffs[1]:
                weight[j] = 0.5 * (2.0 - dimension) * np.log(square)
                weight[j] -= 0.5 * (dimension - 3.0) * np.log(1.0 - 0.25 * square)
                heaviest = max(heaviest, weight[j])
        total = 0.0
        for j in range(columns):
            if weight[j] > -np.inf:
                total += np.exp(weight[j] - heaviest)
            cumulative[j] = total
        for place in range(starts[row], starts[row + 1]):
            drawn[place] = -1
            if total > 0.0:
                target = min(uniform[place] * total, np.nextafter(total, 0.0))
                drawn[place] = np.searchsorted(cumulative, target, side="right")
