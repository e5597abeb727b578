"""Scans of one anchor's distances to every column, decided as canonical float64 distances decide (numba).

    value(a, j) = sq | sqrt(sq) | 1 - dot / (|x| |y|)        metric 0 | 1 | 2, summed as SPEC section 2 says
    lo[j] <= value(a, j) <= hi[j]                            from g = x.y of one product of matrices; or
    |key[j] - value(a, j)| <= reach                          of the squared or the cosine distance

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
NEITHER, POSITIVE, NEGATIVE = 0, 1, 2  # as in _scan_lists.py

_ULPS = 4e-15  # more than the roundings of a root, a sum and a square together
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
def _scales(
    y_norm: np.ndarray,  # [M]
    metric: int,
    scale: np.ndarray,  # [M] out: the norms' squares, or their inverses (0 for a zero vector)
) -> float:
    """What keys are made of, and its maximum."""
    most = 0.0
    for j in range(y_norm.size):
        if metric == COSINE:
            scale[j] = 1.0 / y_norm[j] if y_norm[j] > 0.0 else 0.0
        else:
            scale[j] = y_norm[j] * y_norm[j]
        most = max(most, scale[j])
    return most


@kernel
def _keys(
    g: np.ndarray,  # [M] the products of one anchor
    x: np.ndarray,
    y: np.ndarray,
    a: int,
    x_norm: np.ndarray,
    y_norm: np.ndarray,
    scale: np.ndarray,  # [M]
    most: float,
    options: Any,
    keys: np.ndarray,  # [M] out
    lanes: np.ndarray,
) -> float:
    """Squared or cosine distances of one anchor; how far at most they are from the canonical ones."""
    metric, gamma, tiny, _ = options
    size, dimension = x_norm[a], x.shape[1]
    rounding = (dimension + 16) * 2.3e-16  # of the norms and of the canonical sum itself
    if metric == COSINE:
        inverse = 1.0 / size if size > 0.0 else 0.0
        reach = gamma + 2.0 * rounding + tiny * inverse * most
        for j in range(g.size):
            keys[j] = 1.0 - np.float64(g[j]) * inverse * scale[j]
    else:
        reach = 2.0 * (gamma * size * np.sqrt(most) + tiny) + rounding * (size * size + most)
        for j in range(g.size):
            keys[j] = (size * size + scale[j]) - 2.0 * np.float64(g[j])
    broken = not np.isfinite(reach)
    for j in range(g.size):
        broken |= not np.isfinite(keys[j])
    if broken:  # a product overflowed
        reach = rounding
        for j in range(g.size):
            keys[j] = _value(x, y, a, j, x_norm, y_norm, COSINE if metric == COSINE else SQUARED, lanes)
            reach = max(reach, rounding * keys[j])
    return reach


@kernel
def _edges(
    value: float,
    slack: float,  # of the value itself
    metric: int,
    reach: float,
) -> tuple[float, float]:
    """Keys up to the first certainly belong to smaller distances, from the second on to larger ones."""
    if np.isinf(value):
        return value, value
    low, high = value - slack, value + slack
    if metric == EUCLIDEAN:
        low = low * low if low > 0.0 else -np.inf
        high = high * high if high >= 0.0 else -np.inf
        if np.isinf(
            high
        ):  # every distance is larger than a negative value, and none as large as such a square
            return (-np.inf, -np.inf) if high < 0.0 else (np.inf, np.inf)
        if np.isinf(low):
            return low, high + high * _ULPS + reach
    return low - abs(low) * _ULPS - reach, high + abs(high) * _ULPS + reach


@kernel
def _extreme(
    columns: np.ndarray,  # [C] ascending
    keys: np.ndarray,  # [C], not a number: no candidate
    reach: float,
    farthest: bool,
    window: tuple[float, float, float, float],  # r0 <= value <= r1 and t0 < value < t1
    x: np.ndarray,
    y: np.ndarray,
    a: int,
    x_norm: np.ndarray,
    y_norm: np.ndarray,
    metric: int,
    lanes: np.ndarray,
) -> tuple[int, float]:
    """The nearest or farthest column inside the window and its distance; (-1, 0.0) for none."""
    r0, r1, t0, t1 = window
    low_out, low_in = _edges(max(r0, t0), 0.0, metric, reach)
    high_in, high_out = _edges(min(r1, t1), 0.0, metric, reach)
    edge = -np.inf if farthest else np.inf
    if farthest:
        for key in keys:
            edge = key if (key > edge) & (key >= low_in) & (key <= high_in) else edge
        low_out = max(low_out, edge - 2.0 * reach - abs(edge) * _ULPS) if edge > -np.inf else low_out
    else:
        e0 = e1 = e2 = e3 = edge  # in four streams; the last few columns may stay outside, it is a bound only
        for i in range(0, keys.size - 3, 4):
            e0 = keys[i] if (keys[i] < e0) & (keys[i] >= low_in) & (keys[i] <= high_in) else e0
            e1 = (
                keys[i + 1] if (keys[i + 1] < e1) & (keys[i + 1] >= low_in) & (keys[i + 1] <= high_in) else e1
            )
            e2 = (
                keys[i + 2] if (keys[i + 2] < e2) & (keys[i + 2] >= low_in) & (keys[i + 2] <= high_in) else e2
            )
            e3 = (
                keys[i + 3] if (keys[i + 3] < e3) & (keys[i + 3] >= low_in) & (keys[i + 3] <= high_in) else e3
            )
        edge = min(min(e0, e1), min(e2, e3))
        high_out = min(high_out, edge + 2.0 * reach + abs(edge) * _ULPS)
    kind = SQUARED if metric == EUCLIDEAN else metric  # nearest is decided before the root is taken
    best, best_kind, best_value = -1, 0.0, 0.0
    for begin in range(0, columns.size, _BLOCK):
        end = min(begin + _BLOCK, columns.size)
        candidates = 0
        for i in range(begin, end):
            candidates += (keys[i] >= low_out) & (keys[i] <= high_out)
        if candidates == 0:
            continue
        for i in range(begin, end):
            if not (keys[i] >= low_out and keys[i] <= high_out):
                continue
            found = _value(x, y, a, columns[i], x_norm, y_norm, kind, lanes)
            value = np.sqrt(found) if metric == EUCLIDEAN else found
            if not (r0 <= value <= r1 and t0 < value < t1):
                continue
            if best < 0 or (found > best_kind if farthest else found < best_kind):
                best, best_kind, best_value = columns[i], found, value
    return best, best_value


@kernel
def _apart(
    members: np.ndarray,  # columns of the anchor's class
    a: int,
    own: int,
    keys: np.ndarray,  # [M], not a number for the members from here on
    positives: np.ndarray,  # out: the members but the anchor itself
    p_keys: np.ndarray,  # out
) -> int:
    """Take the anchor's class out of the keys, which then are those of its negatives alone."""
    p = 0
    for j in members:
        if j != own + a:
            positives[p], p_keys[p] = j, keys[j]
            p += 1
        keys[j] = np.nan
    return p


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
    metric, own = options[0], options[3]
    columns = y.shape[0]
    keys, scale, lanes, every = np.empty(columns), np.empty(columns), np.empty(8), np.arange(columns)
    positives, p_keys = np.empty(columns, np.int64), np.empty(columns)
    most = _scales(y_norm, metric, scale)
    for row in range(g.shape[0]):
        a = first + row
        reach = _keys(g[row], x, y, a, x_norm, y_norm, scale, most, options, keys, lanes)
        mine = members[class_starts[x_class[a]] : class_starts[x_class[a] + 1]]
        p = _apart(mine, a, own, keys, positives, p_keys)
        closest, furthest = -np.inf, np.inf
        for turn in range(2):
            if (turn == 0) == (semihard == POSITIVE):  # the negatives come first where the positives follow
                index[a, 1], value[a, 1] = _extreme(
                    every, keys, reach, farthest[1], (ranges[2], ranges[3], closest, np.inf),
                    x, y, a, x_norm, y_norm, metric, lanes,
                )  # fmt: skip
                if semihard == POSITIVE:
                    furthest = value[a, 1] if index[a, 1] >= 0 else -np.inf
            else:
                index[a, 0], value[a, 0] = _extreme(
                    positives[:p], p_keys[:p], reach, farthest[0], (ranges[0], ranges[1], -np.inf, furthest),
                    x, y, a, x_norm, y_norm, metric, lanes,
                )  # fmt: skip
                if semihard == NEGATIVE:
                    closest = value[a, 0] if index[a, 0] >= 0 else np.inf


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
    """Positives with value + epsilon > edge, negatives with value - epsilon < edge."""
    metric, own = options[0], options[3]
    columns = y.shape[0]
    epsilon = limits[0]
    keys, scale, lanes, every = np.empty(columns), np.empty(columns), np.empty(8), np.arange(columns)
    positives, p_keys = np.empty(columns, np.int64), np.empty(columns)
    everywhere = (-np.inf, np.inf, -np.inf, np.inf)
    most = _scales(y_norm, metric, scale)
    for row in range(g.shape[0]):
        a = anchors[row]
        reach = _keys(g[row], x, y, a, x_norm, y_norm, scale, most, options, keys, lanes)
        mine = members[class_starts[x_class[a]] : class_starts[x_class[a] + 1]]
        p = _apart(mine, a, own, keys, positives, p_keys)
        near, far = limits[1], limits[2]
        if extremes:
            found, near = _extreme(
                every, keys, reach, False, everywhere, x, y, a, x_norm, y_norm, metric, lanes
            )
            near = near if found >= 0 else np.inf
            found, far = _extreme(
                positives[:p], p_keys[:p], reach, True, everywhere, x, y, a, x_norm, y_norm, metric, lanes
            )
            far = far if found >= 0 else -np.inf
        inside, outside = _edges(far + epsilon, (abs(far) + abs(epsilon)) * _ULPS, metric, reach)
        certain = possible = 0
        for j in range(columns):
            certain += keys[j] <= inside
            possible += keys[j] <= outside
            marks[row, j] = NEGATIVE if keys[j] <= inside else NEITHER
        if possible > certain:
            for j in range(columns):
                if (keys[j] > inside and keys[j] <= outside) and (
                    _value(x, y, a, j, x_norm, y_norm, metric, lanes) - epsilon < far
                ):
                    marks[row, j] = NEGATIVE
                    certain += 1
        counts[row, 1] = certain
        outside, inside = _edges(near - epsilon, (abs(near) + abs(epsilon)) * _ULPS, metric, reach)
        certain = 0
        for i in range(p):
            j = positives[i]
            if p_keys[i] >= inside or (
                p_keys[i] >= outside and _value(x, y, a, j, x_norm, y_norm, metric, lanes) + epsilon > near
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
