"""losses_ratios: logarithms of ratios, an anchor at a time, from its distances to all columns; proxies.

    nca         sum over positives p of d(a,p) + ln sum_n exp(-d(a,n))
    easiest     ln(1 + sum_n exp(d(a,e) - d(a,n))), e the nearest positive, the lowest index among equals
    proxies     nca with every row at its proxy: columns are proxies, and count once for each row that they
                stand for

values [R, M] float64, distances in and their derivatives out. Sums are float64 and of one order; what is
counted atomically are integers. Limits: M < 2^31. Source: EXT eq. 4-7.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tritonkernels.labels import Labels
from tritonkernels.launching import ALL_REGISTERS, Kernel, always, choices, on_device
from tritonkernels.losses_rows import (
    INFINITY,
    LABEL_TYPES,
    PART_TYPES,
    TILE_BYTES,
    WEIGH,
    sides,
    slope_of,
)
from tritonkernels.pairwise import selections

NCA, EASIEST, PROXIES = (tl.constexpr(place) for place in range(3))
RULES = {"nca": NCA, "easiest": EASIEST, "proxies": PROXIES}


@triton.jit
def _shares(
    near_counts, far_counts, anchor_class, column_class, anchor_bits, column_bits, i, inner, columns, j,
    words, own, RULE: tl.constexpr, MULTI: tl.constexpr,
):  # fmt: skip
    """How many positives and how many negatives stand at each column, [C] float64 each."""
    if RULE == PROXIES:
        at = inner * columns + j
        near = tl.load(near_counts + at, mask=j < columns, other=0)
        far = tl.load(far_counts + at, mask=j < columns, other=0)
    else:
        near, far = sides(
            anchor_class, column_class, anchor_bits, column_bits, i, j, j < columns, words, own, MULTI
        )
    return near.to(tl.float64), far.to(tl.float64)


@triton.jit
def ratio_kernel(
    values,  # [R, M] float64: distances in, their weights in the gradient out
    near_counts,  # [R, M] int32: positives at each proxy, read by PROXIES alone
    far_counts,  # [R, M] int32
    anchor_class,  # [N] int32
    column_class,  # [M] int32
    anchor_bits,  # [N, W] int64
    column_bits,  # [M, W] int64
    sums,  # [N] float64
    terms,  # [N] int64
    above,  # [N] int64
    first_anchor,
    columns,
    words,
    own,  # 1: the anchors are the columns
    metric,  # of METRICS
    RULE: tl.constexpr,
    MULTI: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    inner = tl.program_id(0).to(tl.int64)
    i = first_anchor + inner
    row = values + inner * columns
    lane = tl.arange(0, COLUMNS)
    nearest = tl.full([COLUMNS], INFINITY, tl.float64)  # positive
    where = tl.full([COLUMNS], 0, tl.int64) + columns
    least = tl.full([COLUMNS], INFINITY, tl.float64)  # negative
    positives = tl.full([COLUMNS], 0.0, tl.float64)
    distances = tl.full([COLUMNS], 0.0, tl.float64)
    for first in range(0, columns, COLUMNS):
        j = (first + lane).to(tl.int64)
        near, far = _shares(near_counts, far_counts, anchor_class, column_class, anchor_bits, column_bits, i,
                            inner, columns, j, words, own, RULE, MULTI)  # fmt: skip
        d = tl.load(row + j, mask=j < columns, other=0.0)
        better = (near > 0) & (d < nearest)
        nearest, where = tl.where(better, d, nearest), tl.where(better, j, where)
        least = tl.where((far > 0) & (d < least), d, least)
        positives += near
        distances += tl.where(near > 0, near * d, 0.0)
    shift = tl.min(least, axis=0)
    number = tl.sum(positives, axis=0)
    usable = (number > 0) & (shift < INFINITY)
    shift = tl.where(usable, shift, 0.0)
    total = tl.full([COLUMNS], 0.0, tl.float64)
    for first in range(0, columns, COLUMNS):
        j = (first + lane).to(tl.int64)
        near, far = _shares(near_counts, far_counts, anchor_class, column_class, anchor_bits, column_bits, i,
                            inner, columns, j, words, own, RULE, MULTI)  # fmt: skip
        d = tl.load(row + j, mask=j < columns, other=0.0)
        total += tl.where(far > 0, far * tl.exp(shift - d), 0.0)
    weight = tl.sum(total, axis=0)
    weight = tl.where(usable, weight, 1.0)
    rest = tl.log(weight) - shift  # ln sum over negatives of exp(-d)
    easiest = tl.min(nearest, axis=0)
    chosen = tl.min(tl.where(nearest == easiest, where, columns), axis=0)
    score = tl.where(usable, easiest, 0.0) + rest
    e = tl.exp(-tl.abs(score))
    one = 1.0 + e
    log = tl.where(one == 1.0, e, tl.log(one) * (e / tl.where(one == 1.0, 1.0, one - 1.0)))
    term = tl.maximum(score, 0.0) + log
    slope = tl.where(score > 0, 1.0, e) / one
    if RULE != EASIEST:
        slope = number
        term = tl.sum(distances, axis=0) + number * rest
    slope, term = tl.where(usable, slope, 0.0), tl.where(usable, term, 0.0)
    counted = tl.full([COLUMNS], 0.0, tl.float64)
    for first in range(0, columns, COLUMNS):
        j = (first + lane).to(tl.int64)
        near, far = _shares(near_counts, far_counts, anchor_class, column_class, anchor_bits, column_bits, i,
                            inner, columns, j, words, own, RULE, MULTI)  # fmt: skip
        d = tl.load(row + j, mask=j < columns, other=0.0)
        share = tl.where(far > 0, far * tl.exp(shift - d), 0.0) / weight
        if RULE == EASIEST:
            near = tl.where(j == chosen, slope, 0.0)
        else:
            counted += tl.where(d + rest != 0.0, near, 0.0)
        found = tl.where(usable, near - slope * share, 0.0)
        tl.store(row + j, found * slope_of(d, metric), mask=j < columns)
    tl.store(sums + i, term)
    if RULE == EASIEST:
        tl.store(terms + i, usable.to(tl.int64))
        tl.store(above + i, (usable & (term != 0.0)).to(tl.int64))
    else:
        tl.store(terms + i, tl.where(usable, number, 0.0).to(tl.int64))
        tl.store(above + i, tl.where(usable, tl.sum(counted, axis=0), 0.0).to(tl.int64))


# ------------------------------------------------------------------ proxies


@triton.jit
def assign_kernel(
    values,  # [R, C] float64: distances of rows to proxies
    row_class,  # [N] int32
    proxy_class,  # [C] int32
    row_bits,  # [N, W] int64
    proxy_bits,  # [C, W] int64
    assigned,  # [N] int64: the nearest proxy, -1 for none
    first_row,
    columns,
    words,
    known,  # 1: only a proxy of the row's own class will do
    MULTI: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    inner = tl.program_id(0).to(tl.int64)
    i = first_row + inner
    lane = tl.arange(0, COLUMNS)
    nearest = tl.full([COLUMNS], INFINITY, tl.float64)
    where = tl.full([COLUMNS], 0, tl.int64) + columns
    for first in range(0, columns, COLUMNS):
        j = (first + lane).to(tl.int64)
        live = j < columns
        if known != 0:
            live, _ = sides(row_class, proxy_class, row_bits, proxy_bits, i, j, live, words, 0, MULTI)
        d = tl.load(values + inner * columns + j, mask=live, other=INFINITY)
        better = live & ((d < nearest) | (where == columns))
        nearest, where = tl.where(better, d, nearest), tl.where(better, j, where)
    least = tl.min(nearest, axis=0)
    found = tl.min(tl.where(nearest == least, where, columns), axis=0)
    tl.store(assigned + i, tl.where(found < columns, found, -1))


@triton.jit
def stand_kernel(
    assigned,  # [N] int64
    row_class,  # [N] int32
    row_bits,  # [N, W] int64
    near_counts,  # [R, C] int32, zeros: rows of the anchor's class at each proxy
    far_counts,  # [R, C] int32, zeros: rows of other classes
    first_anchor,
    rows,
    columns,
    words,
    MULTI: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    inner = tl.program_id(0).to(tl.int64)
    i = first_anchor + inner
    lane = tl.arange(0, COLUMNS)
    one = tl.full([COLUMNS], 1, tl.int32)
    for first in range(0, rows, COLUMNS):
        j = (first + lane).to(tl.int64)
        near, far = sides(row_class, row_class, row_bits, row_bits, i, j, j < rows, words, 1, MULTI)
        at = inner * columns + tl.maximum(tl.load(assigned + j, mask=j < rows, other=0), 0)
        tl.atomic_add(near_counts + at, one, mask=near, sem="relaxed")
        tl.atomic_add(far_counts + at, one, mask=far, sem="relaxed")


_OPTIONS, _CONSTANTS = always(num_warps=WEIGH.num_warps), always(COLUMNS=WEIGH.columns)
_COUNTS = {"near_counts": "*i32", "far_counts": "*i32"}
RATIO = Kernel(
    ratio_kernel, {"values": "*fp64", **_COUNTS, **LABEL_TYPES, **PART_TYPES},
    choices(RULE=[rule.value for rule in RULES.values()], MULTI=(False, True)),
    always(num_warps=WEIGH.num_warps, **ALL_REGISTERS), _CONSTANTS,
)  # fmt: skip
ASSIGN = Kernel(
    assign_kernel,
    {"values": "*fp64", "row_class": "*i32", "proxy_class": "*i32", "row_bits": "*i64", "proxy_bits": "*i64",
     "assigned": "*i64"},
    choices(MULTI=(False, True)), _OPTIONS, _CONSTANTS,
)  # fmt: skip
STAND = Kernel(
    stand_kernel, {"assigned": "*i64", "row_class": "*i32", "row_bits": "*i64", **_COUNTS},
    choices(MULTI=(False, True)), _OPTIONS, _CONSTANTS,
)  # fmt: skip


def assign(
    x: torch.Tensor,  # [N, D]
    proxies: torch.Tensor,  # [C, D] of the same type
    labels: Labels | None,  # of x against the proxies, where their classes are known
    metric: str,
) -> torch.Tensor:  # [N] int64
    """The nearest proxy of each row, of its own class where classes are known; -1 where there is none."""
    x, proxies = x.contiguous(), proxies.contiguous()
    assigned = torch.empty(len(x), dtype=torch.int64, device=x.device)
    step = max(1, TILE_BYTES // (8 * len(proxies)))
    values = torch.empty(min(step, len(x)), len(proxies), dtype=torch.float64, device=x.device)
    unread = assigned.view(torch.int32)
    classes = (unread, unread, assigned, assigned)
    if labels is not None:
        classes = (labels.anchor_class, labels.column_class, labels.anchor_bits, labels.column_bits)
    for first in range(0, len(x), step):
        tile = values[: len(x) - first]
        with on_device(x):
            selections(x[first : first + len(tile)], proxies, metric, tile)
            ASSIGN(
                (len(tile),), tile, *classes, assigned, first, len(proxies),
                0 if labels is None else labels.words, int(labels is not None),
                MULTI=labels is not None and labels.multi,
            )  # fmt: skip
    return assigned
