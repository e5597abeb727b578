"""losses_hinges: every triplet's hinge, an anchor at a time, from its distances to all columns.

    sum over positives p and negatives n of max((d(a,p) - d(a,n)) + margin, 0), and its derivatives by d

values [R, M] float64, distances in and derivatives out. The positives' distances are sorted (bitonic, in
memory, any number of them); a binary search puts each negative between two of them, counts of who lies
where give, summed up, how many negatives every positive is active with: O(M log M), no list of triplets.
Sum of hinges = sum of active (d(a,p) + margin) - active d(a,n). Sums are float64 and of one order; what is
counted atomically are integers. Equal distances share what they count, so there is no tie rule.
Limits: M < 2^31, fewer than 2^31 positives an anchor. Source: Ding et al. 2015, EXT eq. 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tritonkernels.launching import ALL_REGISTERS, Kernel, always, choices
from tritonkernels.losses_rows import INFINITY, LABEL_TYPES, PART_TYPES, WEIGH, sides, slope_of


@triton.jit
def _sort(own, size, COLUMNS: tl.constexpr):
    """Ascending order of `size` float64 in memory, a power of two: bitonic, a barrier a stage."""
    lane = tl.arange(0, COLUMNS)
    run = 1  # runs of twice this length are made into ordered ones
    while run < size:
        step = run
        while step > 0:
            for first in range(0, size // 2, COLUMNS):
                pair = first + lane
                live = pair < size // 2
                low = 2 * pair - (pair & (step - 1))  # the bit of `step` is put in as zero
                a = tl.load(own + low, mask=live, other=0.0)
                b = tl.load(own + low + step, mask=live, other=0.0)
                swap = live & ((a > b) == ((low & (2 * run)) == 0))
                tl.store(own + low, b, mask=swap)
                tl.store(own + low + step, a, mask=swap)
            tl.debug_barrier()
            step = step // 2
        run = run * 2


@triton.jit
def batch_all_kernel(
    values,  # [R, M] float64: distances in, their weights in the gradient out
    ordered,  # [R, L] float64: the positives' distances, L a power of two from M on
    active,  # [R, L] int32: how many negatives the positives are active with
    anchor_class,  # [N] int32
    column_class,  # [M] int32
    anchor_bits,  # [N, W] int64
    column_bits,  # [M, W] int64
    margin_at,  # [1] float64
    sums,  # [N] float64
    terms,  # [N] int64
    above,  # [N] int64
    first_anchor,
    columns,
    length,
    words,
    own,  # 1: the anchors are the columns
    metric,  # of METRICS
    MULTI: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    inner = tl.program_id(0).to(tl.int64)
    i = first_anchor + inner
    row, near_at, reached = values + inner * columns, ordered + inner * length, active + inner * length
    lane = tl.arange(0, COLUMNS)
    margin = tl.load(margin_at)
    count, others = 0, 0
    for first in range(0, columns, COLUMNS):
        j = (first + lane).to(tl.int64)
        positive, negative = sides(
            anchor_class, column_class, anchor_bits, column_bits, i, j, j < columns, words, own, MULTI
        )
        one = positive.to(tl.int32)
        tl.store(
            near_at + count + tl.cumsum(one, axis=0) - one,
            tl.load(row + j, mask=positive, other=0.0),
            mask=positive,
        )
        count += tl.sum(one, axis=0)
        others += tl.sum(negative.to(tl.int32), axis=0)
    size = 1
    while size < count:
        size = size * 2
    for first in range(0, size, COLUMNS):
        tl.store(near_at + first + lane, INFINITY, mask=(first + lane >= count) & (first + lane < size))
        tl.store(reached + first + lane, 0, mask=first + lane < size)
    tl.debug_barrier()
    _sort(near_at, size, COLUMNS)
    # A negative is active with the positives from some place on: those are not nearer by the margin.
    hinges = tl.full([COLUMNS], 0.0, tl.float64)
    hits = tl.full([COLUMNS], 0, tl.int64)
    for first in range(0, columns, COLUMNS):
        j = (first + lane).to(tl.int64)
        positive, negative = sides(
            anchor_class, column_class, anchor_bits, column_bits, i, j, j < columns, words, own, MULTI
        )
        d = tl.load(row + j, mask=negative, other=0.0)
        place = tl.full([COLUMNS], 0, tl.int32)
        step = size
        while step > 0:
            inside = negative & (place + step <= count)
            near = tl.load(near_at + place + step - 1, mask=inside, other=0.0)
            place = tl.where(inside & ~((near - d) + margin > 0), place + step, place)
            step = step // 2
        number = tl.where(negative, count - place, 0)
        tl.atomic_add(reached + place, tl.full([COLUMNS], 1, tl.int32), mask=number > 0, sem="relaxed")
        hits += number
        hinges -= tl.where(number > 0, number.to(tl.float64) * d, 0.0)
        tl.store(row + j, -number.to(tl.float64) * slope_of(d, metric), mask=(j < columns) & ~positive)
    tl.debug_barrier()
    before = 0
    for first in range(0, count, COLUMNS):
        live = first + lane < count
        number = tl.load(reached + first + lane, mask=live, other=0)
        tl.store(reached + first + lane, before + tl.cumsum(number, axis=0), mask=live)
        before += tl.sum(number, axis=0)
    tl.debug_barrier()
    for first in range(0, columns, COLUMNS):
        j = (first + lane).to(tl.int64)
        positive, _ = sides(
            anchor_class, column_class, anchor_bits, column_bits, i, j, j < columns, words, own, MULTI
        )
        d = tl.load(row + j, mask=positive, other=0.0)
        place = tl.full([COLUMNS], 0, tl.int32)  # of the first that is no nearer: equal ones share all
        step = size
        while step > 0:
            inside = positive & (place + step <= count)
            near = tl.load(near_at + place + step - 1, mask=inside, other=INFINITY)
            place = tl.where(inside & (near < d), place + step, place)
            step = step // 2
        number = tl.load(reached + place, mask=positive & (place < count), other=0).to(tl.float64)
        hinges += tl.where(number > 0, number * (d + margin), 0.0)
        tl.store(row + j, number * slope_of(d, metric), mask=positive)
    tl.store(sums + i, tl.sum(hinges, axis=0))
    tl.store(terms + i, count.to(tl.int64) * others)
    tl.store(above + i, tl.sum(hits, axis=0))


BATCH_ALL = Kernel(
    batch_all_kernel,
    {**LABEL_TYPES, **PART_TYPES, **dict.fromkeys(("values", "ordered", "margin_at"), "*fp64"),
     "active": "*i32"},
    choices(MULTI=(False, True)), always(num_warps=WEIGH.num_warps, **ALL_REGISTERS),
    always(COLUMNS=WEIGH.columns),
)  # fmt: skip
