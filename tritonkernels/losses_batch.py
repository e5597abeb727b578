"""losses_batch: losses over all rows of a batch, and their gradients, a tile of anchors at a time.

x [N, D] anchors, y [M, D] columns (or own rows), float32 or float64, labels; d canonical, in float64:

    batch_all   sum over positives p and negatives n of max((d(a,p) - d(a,n)) + margin, 0)
    nca         sum over positives p of d(a,p) + ln sum_n exp(-d(a,n))
    easiest     ln(1 + sum_n exp(d(a,e) - d(a,n))), e the nearest positive, the lowest index among equals
    proxies     nca with every row at its proxy: columns are proxies, and count once for each row that they
                stand for

1. `pairwise.selections` writes the distances of a tile of anchors to all columns, [R, M] float64.
2. One program an anchor turns them into the terms' sum and the derivatives by d, in place. `batch_all`: the
   positives' distances are sorted (bitonic, in memory, any number of them); a binary search puts each
   negative between two of them, counts of who lies where give, summed up, how many negatives every positive
   is active with: O(M log M), no list of triplets. Sum of hinges = sum of active (d(a,p) + margin) -
   active d(a,n).
3. `losses_rows.collect` multiplies the derivatives with the rows, for both sides.

Sums are float64 and of one order (what is counted atomically are integers), so the same call gives the same
bits. Nothing is read back, but for `proxies` whether every class has one. Limits: N, M < 2^31, fewer than
2^31 positives an anchor. Memory: TILE_BYTES, 8 bytes a value of the rows and 40 a row.
Source: Ding et al. 2015, EXT eq. 1, 4-7. As csrc/cpu/losses_batch_all_impl.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tritonkernels import losses_rows
from tritonkernels.canonical import metric_norms
from tritonkernels.labels import Labels
from tritonkernels.launching import ALL_REGISTERS, Compilation, float64_on, on_device, power_of_two
from tritonkernels.losses_rows import Collected, Sums
from tritonkernels.losses_triplet import Parts
from tritonkernels.pairwise import selections, to_metric

#: What the distances of a tile may take, with what sorting them needs, unless one anchor takes more.
TILE_BYTES = 32 << 20

SQEUCLIDEAN, EUCLIDEAN, COSINE = (tl.constexpr(place) for place in range(3))
METRICS = ("sqeuclidean", "euclidean", "cosine")
NCA, EASIEST, PROXIES = (tl.constexpr(place) for place in range(3))
RULES = {"nca": NCA, "easiest": EASIEST, "proxies": PROXIES}
INFINITY = tl.constexpr(float("inf"))


@dataclass(frozen=True)
class WeighConfig:
    """Columns a step of a program, which has an anchor."""

    columns: int = 256
    num_warps: int = 4


WEIGH = WeighConfig()


@triton.jit
def _sides(
    anchor_class, column_class, anchor_bits, column_bits, i, j, live, words,
    MULTI: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """(positive, negative) of an anchor's columns, [C] bool each."""
    if MULTI:
        common = tl.full([j.shape[0]], 0, tl.int64)
        for word in range(words):
            bits = tl.load(column_bits + j * words + word, mask=live, other=0)
            common |= bits & tl.load(anchor_bits + i * words + word)
        same = common != 0
    else:
        same = tl.load(column_class + j, mask=live, other=-2) == tl.load(anchor_class + i)
    if OWN:
        live = live & (j != i)
    return live & same, live & ~same


@triton.jit
def _slope(d, METRIC: tl.constexpr):
    """What derivatives by d are multiplied by: dd/dx = slope (x - y), of unit rows -y."""
    if METRIC == EUCLIDEAN:
        return tl.where(d > 0, 1.0 / tl.where(d > 0, d, 1.0), 0.0)
    if METRIC == SQEUCLIDEAN:
        return tl.full([d.shape[0]], 2.0, tl.float64)
    return tl.full([d.shape[0]], 1.0, tl.float64)


# ------------------------------------------------------------------ batch all


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
    METRIC: tl.constexpr,
    MULTI: tl.constexpr,
    OWN: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    inner = tl.program_id(0).to(tl.int64)
    i = first_anchor + inner
    row, own, reached = values + inner * columns, ordered + inner * length, active + inner * length
    lane = tl.arange(0, COLUMNS)
    margin = tl.load(margin_at)
    count, others = 0, 0
    for first in range(0, columns, COLUMNS):
        j = (first + lane).to(tl.int64)
        positive, negative = _sides(
            anchor_class, column_class, anchor_bits, column_bits, i, j, j < columns, words, MULTI, OWN
        )
        one = positive.to(tl.int32)
        tl.store(
            own + count + tl.cumsum(one, axis=0) - one,
            tl.load(row + j, mask=positive, other=0.0),
            mask=positive,
        )
        count += tl.sum(one, axis=0)
        others += tl.sum(negative.to(tl.int32), axis=0)
    size = 1
    while size < count:
        size = size * 2
    for first in range(0, size, COLUMNS):
        tl.store(own + first + lane, INFINITY, mask=(first + lane >= count) & (first + lane < size))
        tl.store(reached + first + lane, 0, mask=first + lane < size)
    tl.debug_barrier()
    _sort(own, size, COLUMNS)
    # A negative is active with the positives from some place on: those are not nearer by the margin.
    hinges = tl.full([COLUMNS], 0.0, tl.float64)
    hits = tl.full([COLUMNS], 0, tl.int64)
    for first in range(0, columns, COLUMNS):
        j = (first + lane).to(tl.int64)
        positive, negative = _sides(
            anchor_class, column_class, anchor_bits, column_bits, i, j, j < columns, words, MULTI, OWN
        )
        d = tl.load(row + j, mask=negative, other=0.0)
        place = tl.full([COLUMNS], 0, tl.int32)
        step = size
        while step > 0:
            inside = negative & (place + step <= count)
            near = tl.load(own + place + step - 1, mask=inside, other=0.0)
            place = tl.where(inside & ~((near - d) + margin > 0), place + step, place)
            step = step // 2
        number = tl.where(negative, count - place, 0)
        tl.atomic_add(reached + place, tl.full([COLUMNS], 1, tl.int32), mask=number > 0, sem="relaxed")
        hits += number
        hinges -= tl.where(number > 0, number.to(tl.float64) * d, 0.0)
        tl.store(row + j, -number.to(tl.float64) * _slope(d, METRIC), mask=(j < columns) & ~positive)
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
        positive, _ = _sides(
            anchor_class, column_class, anchor_bits, column_bits, i, j, j < columns, words, MULTI, OWN
        )
        d = tl.load(row + j, mask=positive, other=0.0)
        place = tl.full([COLUMNS], 0, tl.int32)  # of the first that is no nearer: equal ones share all
        step = size
        while step > 0:
            inside = positive & (place + step <= count)
            near = tl.load(own + place + step - 1, mask=inside, other=INFINITY)
            place = tl.where(inside & (near < d), place + step, place)
            step = step // 2
        number = tl.load(reached + place, mask=positive & (place < count), other=0).to(tl.float64)
        hinges += tl.where(number > 0, number * (d + margin), 0.0)
        tl.store(row + j, number * _slope(d, METRIC), mask=positive)
    tl.store(sums + i, tl.sum(hinges, axis=0))
    tl.store(terms + i, count.to(tl.int64) * others)
    tl.store(above + i, tl.sum(hits, axis=0))


# ------------------------------------------------------------------ logarithms of ratios


@triton.jit
def _shares(
    near_counts, far_counts, anchor_class, column_class, anchor_bits, column_bits, i, inner, columns, j,
    words, RULE: tl.constexpr, MULTI: tl.constexpr, OWN: tl.constexpr,
):  # fmt: skip
    """How many positives and how many negatives stand at each column, [C] float64 each."""
    if RULE == PROXIES:
        at = inner * columns + j
        near = tl.load(near_counts + at, mask=j < columns, other=0)
        far = tl.load(far_counts + at, mask=j < columns, other=0)
    else:
        near, far = _sides(
            anchor_class, column_class, anchor_bits, column_bits, i, j, j < columns, words, MULTI, OWN
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
    RULE: tl.constexpr,
    METRIC: tl.constexpr,
    MULTI: tl.constexpr,
    OWN: tl.constexpr,
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
                            inner, columns, j, words, RULE, MULTI, OWN)  # fmt: skip
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
                            inner, columns, j, words, RULE, MULTI, OWN)  # fmt: skip
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
                            inner, columns, j, words, RULE, MULTI, OWN)  # fmt: skip
        d = tl.load(row + j, mask=j < columns, other=0.0)
        share = tl.where(far > 0, far * tl.exp(shift - d), 0.0) / weight
        if RULE == EASIEST:
            near = tl.where(j == chosen, slope, 0.0)
        else:
            counted += tl.where(d + rest != 0.0, near, 0.0)
        found = tl.where(usable, near - slope * share, 0.0)
        tl.store(row + j, found * _slope(d, METRIC), mask=j < columns)
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
    MULTI: tl.constexpr,
    KNOWN: tl.constexpr,  # only a proxy of the row's own class will do
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
        if KNOWN:
            live, _ = _sides(row_class, proxy_class, row_bits, proxy_bits, i, j, live, words, MULTI, False)
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
        near, far = _sides(row_class, row_class, row_bits, row_bits, i, j, j < rows, words, MULTI, True)
        at = inner * columns + tl.maximum(tl.load(assigned + j, mask=j < rows, other=0), 0)
        tl.atomic_add(near_counts + at, one, mask=near, sem="relaxed")
        tl.atomic_add(far_counts + at, one, mask=far, sem="relaxed")


# ------------------------------------------------------------------ launchers


def batch_loss(
    x: torch.Tensor,  # [N, D] float32 or float64
    y: torch.Tensor | None,  # [M, D] of the same type
    labels: Labels,  # of x against y; of x against itself for proxies
    kind: str,  # batch_all, nca, easiest or proxies
    margin: float,
    metric: str,
    reduction: str,
    *,
    differentiate: bool,
    assigned: torch.Tensor | None = None,  # [N] int64 of `assign`, for proxies
) -> Parts:
    """The loss and, where asked for, its gradients. Nothing is read back."""
    own, x = y is None, x.contiguous()
    y = x if y is None else y.contiguous()
    n, m, device = len(x), len(y), x.device
    nothing = x.new_empty(0)
    if n == 0 or m == 0 or x.shape[1] == 0:
        zeros = torch.zeros_like(x) if differentiate else nothing
        return x.new_zeros(()), zeros, torch.zeros_like(y) if differentiate and not own else nothing.clone()
    norms, center = metric_norms(x, y, metric), y[0]
    columns = Collected.of(y, norms[1], center, metric)
    anchors = columns if own else Collected.of(x, norms[0], center, metric)
    parts = Sums.empty(n, device)
    weigh = _Weigh(labels, parts, kind, margin, METRICS.index(metric), x, m, assigned)
    for first in range(0, n, weigh.step):
        tile = weigh.values[: min(weigh.step, n - first)]
        with on_device(x):
            selections(x[first : first + len(tile)], y, metric, tile)
            to_metric(tile, metric)
            weigh.run(tile, first)
        if differentiate:
            losses_rows.collect(tile, first, anchors, columns)
    usable = losses_rows.finite(x, None if own else y)
    loss, scale = losses_rows.total(parts, usable, 0.0, reduction, x.dtype)
    if not differentiate:
        return loss, nothing, nothing.clone()
    return loss, anchors.gradient(scale), nothing if own else columns.gradient(scale)


class _Weigh:
    """The second step, with the buffers of a tile."""

    def __init__(
        self,
        labels: Labels,
        parts: Sums,
        kind: str,
        margin: float,
        metric: int,
        x: torch.Tensor,
        columns: int,
        assigned: torch.Tensor | None,
    ) -> None:
        self.labels, self.parts, self.kind, self.metric, self.assigned = labels, parts, kind, metric, assigned
        self.rows, self.columns, self.length = len(x), columns, power_of_two(columns)
        taken = 8 * columns + {"batch_all": 12 * self.length, "proxies": 8 * columns}.get(kind, 0)
        self.step = max(1, min(len(x), TILE_BYTES // taken))
        self.values = torch.empty(self.step, columns, dtype=torch.float64, device=x.device)
        self.counts = torch.empty(2, self.step, columns if kind == "proxies" else 0, dtype=torch.int32,
                                  device=x.device)  # fmt: skip
        if kind == "batch_all":
            self.ordered = torch.empty(self.step, self.length, dtype=torch.float64, device=x.device)
            self.active = torch.empty(self.step, self.length, dtype=torch.int32, device=x.device)
            self.margin = float64_on(x.device, margin)

    def run(self, tile: torch.Tensor, first: int) -> None:
        labels, parts = self.labels, self.parts
        classes = (labels.anchor_class, labels.column_class, labels.anchor_bits, labels.column_bits)
        options = {"MULTI": labels.multi, "COLUMNS": WEIGH.columns, "num_warps": WEIGH.num_warps}
        if self.kind == "batch_all":
            batch_all_kernel[(len(tile),)](
                tile, self.ordered, self.active, *classes, self.margin, parts.sums, parts.terms,
                parts.above, first, self.columns, self.length, labels.words, METRIC=self.metric,
                OWN=labels.own, **options,
            )  # fmt: skip
            return
        near, far = self.counts
        if self.kind == "proxies":
            self.counts.zero_()
            stand_kernel[(len(tile),)](
                self.assigned, labels.anchor_class, labels.anchor_bits, near, far, first, self.rows,
                self.columns, labels.words, **options,
            )  # fmt: skip
        ratio_kernel[(len(tile),)](
            tile, near, far, *classes, parts.sums, parts.terms, parts.above, first, self.columns,
            labels.words, RULE=RULES[self.kind].value, METRIC=self.metric, OWN=labels.own, **options,
            **ALL_REGISTERS,
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
    classes = (assigned,) * 4  # not read
    if labels is not None:
        classes = (labels.anchor_class, labels.column_class, labels.anchor_bits, labels.column_bits)
    for first in range(0, len(x), step):
        tile = values[: len(x) - first]
        with on_device(x):
            selections(x[first : first + len(tile)], proxies, metric, tile)
            assign_kernel[(len(tile),)](
                tile, *classes, assigned, first, len(proxies), 0 if labels is None else labels.words,
                MULTI=labels is not None and labels.multi, KNOWN=labels is not None,
                COLUMNS=WEIGH.columns, num_warps=WEIGH.num_warps,
            )  # fmt: skip
    return assigned


def compilations() -> Iterator[Compilation]:
    doubles = dict.fromkeys(("values", "ordered", "margin_at", "sums"), "*fp64")
    longs = ("anchor_bits", "column_bits", "row_bits", "proxy_bits", "terms", "above", "assigned")
    whole = dict.fromkeys(
        ("anchor_class", "column_class", "row_class", "proxy_class", "active", "near_counts", "far_counts"),
        "*i32",
    )
    numbers = dict.fromkeys(("first_anchor", "first_row", "columns", "length", "words", "rows"), "i32")
    types = {**doubles, **dict.fromkeys(longs, "*i64"), **whole, **numbers}
    options = {"num_warps": WEIGH.num_warps}
    # Every pair of choices occurs together.
    forms = ((0, False, True), (0, True, False), (1, False, False), (1, True, True), (2, False, True),
             (2, True, False))  # fmt: skip
    for metric, multi, own in forms:
        constants = {"METRIC": metric, "MULTI": multi, "OWN": own, "COLUMNS": WEIGH.columns}
        chosen = f"{METRICS[metric]},multi={multi},own={own}"
        yield Compilation(f"losses_batch.batch_all[{chosen}]", batch_all_kernel, types, constants, options)
    for kind, metric, multi, own in (
        ("nca", 0, False, True), ("nca", 1, True, False), ("nca", 2, False, False),
        ("easiest", 0, True, False), ("easiest", 1, False, True), ("easiest", 2, True, True),
        ("proxies", 0, False, True), ("proxies", 1, True, True), ("proxies", 2, False, True),
    ):  # fmt: skip
        chosen = f"{kind},{METRICS[metric]},multi={multi},own={own}"
        yield Compilation(
            f"losses_batch.ratio[{chosen}]", ratio_kernel, types,
            {"RULE": RULES[kind].value, "METRIC": metric, "MULTI": multi, "OWN": own,
             "COLUMNS": WEIGH.columns},
            {**options, **ALL_REGISTERS},
        )  # fmt: skip
    for multi in (False, True):
        yield Compilation(
            f"losses_batch.stand[multi={multi}]", stand_kernel, types,
            {"MULTI": multi, "COLUMNS": WEIGH.columns}, options,
        )  # fmt: skip
    for multi, known in ((False, False), (False, True), (True, True)):
        yield Compilation(
            f"losses_batch.assign[multi={multi},known={known}]", assign_kernel, types,
            {"MULTI": multi, "KNOWN": known, "COLUMNS": WEIGH.columns}, options,
        )  # fmt: skip
