"""window: per anchor-positive pair one negative out of those whose distance lies in the pair's window.

anchors [N, D], columns [M, D], labels -> negatives [P] int64, -1 for none; how many negatives are eligible,
or all of them. With s = (d(a,p) - d(a,n)) + margin, in that order in float64:

    random-hard         s > 0: the r-th in index order, r from Philox (SPEC section 3)
    semi-hard           0 < s < margin, likewise
    semi-hard-nearest   d(a,n) > d(a,p): the nearest, ties by the lowest index
    hard                the nearest negative of all (`extremes`), if its s > 0

d(a,p) is canonical. A negative's approximate value (values.py) with its bound lies surely inside the
window, surely outside, or is asked: then float64 decides. Everything is asked where the bound is of no use.
Memory: the rows of values.py. Source: SPEC section 4, JTANet section 4.3, FaceNet, EXT eq. 1-2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tritonkernels.canonical import metric_norms, metric_values, pair_selections
from tritonkernels.extremes import Rows
from tritonkernels.labels import Labels, Pairs
from tritonkernels.launching import (
    CANONICAL,
    KINDS,
    Kernel,
    always,
    blocks,
    choices,
    float64_on,
    int64_on,
    on_device,
)
from tritonkernels.philox import choose
from tritonkernels.values import SLOP, Values, round_down, round_up, value_interval

#: What a program does with the negatives that are eligible: draw one, take the nearest, count or list them.
DRAW, NEAREST, COUNT, LIST = (tl.constexpr(mode) for mode in range(4))

INFINITY = tl.constexpr(float("inf"))


# ------------------------------------------------------------------ which negatives are eligible


@triton.jit
def _holds(dp, dn, margin, semi, MODE: tl.constexpr):
    """The rule itself, on canonical values."""
    if MODE == NEAREST:
        return dn > dp
    s = (dp - dn) + margin
    return tl.where(semi != 0, (s > 0) & (s < margin), s > 0)


@triton.jit
def _edges(
    dp,  # [P] float64
    margin,
    semi,
    half,
    error,
    parameters,
    euclidean,
    MODE: tl.constexpr,
    COSINE: tl.constexpr,
):
    """Between which values negatives are surely in, and beyond which surely out; [P, 1] float32 each."""
    slack = SLOP * (tl.abs(dp) + margin)
    far_in = tl.full([dp.shape[0]], INFINITY, tl.float32)
    far_out = far_in
    if MODE != NEAREST:
        low, high = value_interval(
            dp + margin - slack, dp + margin + slack, half, parameters, euclidean, COSINE
        )
        far_in, far_out = round_down(low - error), round_up(high + error)
        far_out = tl.where(far_out == far_out, far_out, INFINITY)
    low, high = value_interval(dp - slack, dp + slack, half, parameters, euclidean, COSINE)
    near_in, near_out = round_up(high + error), round_down(low - error)
    near_out = tl.where(near_out == near_out, near_out, -INFINITY)
    if MODE != NEAREST:  # random-hard takes the nearest ones too
        near_in, near_out = tl.where(semi != 0, near_in, -INFINITY), tl.where(semi != 0, near_out, -INFINITY)
    return near_out[:, None], near_in[:, None], far_in[:, None], far_out[:, None]


@triton.jit
def _classify(
    row,  # the anchor's values
    errors,  # [Mp] float32
    j,  # [1, C], or [P, C] where each pair has columns of its own
    columns,
    near_out,  # [P, 1]
    near_in,
    far_in,
    far_out,
):
    """(surely inside, to be asked) of each pair, [P, C] bool; (lower, upper bound) as j."""
    value = tl.load(row + j, mask=j < columns, other=float("nan"))
    error = tl.load(errors + j, mask=j < columns, other=0.0)
    low, high = value - error, value + error  # NaN where there is no negative: every comparison is false
    inside = (high < far_in) & (low > near_in)
    possible = (low <= far_out) & (high >= near_out)
    return inside, possible & ~inside, low, high


@triton.jit
def _any(flags):  # [P, C] bool -> bool
    return tl.max(tl.max(flags.to(tl.int32), axis=0), axis=0) > 0


@triton.jit
def _decided(x, y, x_norms, y_norms, i, j, asked, dims, dp, margin, semi, euclidean,
             MODE: tl.constexpr, COSINE: tl.constexpr):  # fmt: skip
    """Which of the asked columns j [C], the same for all pairs, are eligible, [P, C] bool; selections [C]."""
    wanted = tl.max(asked.to(tl.int32), axis=0) > 0
    selection = pair_selections(x, y, x_norms, y_norms, i + j * 0, j, wanted, dims, COSINE)
    dn = metric_values(selection, euclidean)
    return asked & _holds(dp[:, None], dn[None, :], margin, semi, MODE), selection


# ------------------------------------------------------------------ an anchor's pairs


@triton.jit
def _pair(x, y, x_largest, y_largest, x_norms, y_norms, positives, i, slot, stop, dims, euclidean,
          COSINE: tl.constexpr):  # fmt: skip
    """(positive, takes part, canonical distance) of some slots of an anchor, [P] each."""
    live = slot < stop
    p = tl.load(positives + slot, mask=live, other=0)
    live = live & (tl.load(x_largest + i + p * 0, mask=live, other=-1.0) >= 0)
    live = live & (tl.load(y_largest + p, mask=live, other=-1.0) >= 0)
    selection = pair_selections(x, y, x_norms, y_norms, i + p * 0, p, live, dims, COSINE)
    return p, live, metric_values(selection, euclidean)


@triton.jit
def _pick(chosen, seen, inside, j, wanted):
    """A block more: the column before which as many eligible ones came as wanted, and how many came."""
    one = inside.to(tl.int32)
    before = seen[:, None] + tl.cumsum(one, axis=1) - one
    hit = inside & (before == wanted[:, None])
    return tl.maximum(chosen, tl.max(tl.where(hit, j, -1), axis=1)), seen + tl.sum(one, axis=1)


@triton.jit
def _list(out, anchors, positives, at, inside, i, p, j):
    """Writes a block's triplets; where the next go."""
    one = inside.to(tl.int64)
    place = at[:, None] + tl.cumsum(one, axis=1) - one
    tl.store(out + place, j + place * 0, mask=inside)
    tl.store(anchors + place, i + place * 0, mask=inside)
    tl.store(positives + place, p[:, None] + place * 0, mask=inside)
    return at + tl.sum(one, axis=1)


@triton.jit
def window_kernel(
    x,  # [N, D]
    y,  # [M, D]
    x_largest,  # [N] float64
    y_largest,  # [M] float64
    x_norms,  # [N] float64, for the cosine
    y_norms,  # [M] float64
    values,  # [R, Mp] float32, rows of the anchors from `first_anchor` on
    half_norms,  # [Np] float64
    x_errors,  # [Np] float32
    y_errors,  # [Mp] float32
    parameters,  # [4] float64
    margin_at,  # [1] float64
    seed_at,  # [1] int64
    offsets,  # [N + 1] int64
    positives,  # [slots] int64
    starts,  # [slots] int64: where each pair's triplets go, for LIST
    out,  # [slots] int64: the negative, or of COUNT the number of eligible ones; [T] negatives of LIST
    listed_anchors,  # [T] int64, written by LIST
    listed_positives,  # [T] int64, written by LIST
    negatives,  # [slots] int64: how many negatives there are, written by COUNT
    first_anchor,
    columns,
    padded_columns,
    dims,
    slots: tl.int64,
    semi,  # 1: semi-hard, 0: every negative of positive score
    euclidean,
    MODE: tl.constexpr,
    COSINE: tl.constexpr,
    PAIRS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ASKED: tl.constexpr,  # columns decided at a time
    PARTS: tl.constexpr,  # of a row, whose counts are kept
):
    """A block of an anchor's pairs after the other.

    DRAW counts the eligible columns of each part of the row, then looks for the r-th in the part that has it.
    """
    inner = tl.program_id(0).to(tl.int64)
    i = first_anchor + inner
    row = values + inner * padded_columns
    half, error = tl.load(half_norms + i), tl.load(x_errors + i).to(tl.float64)
    margin, seed = tl.load(margin_at), tl.load(seed_at)
    start = tl.load(offsets + i)
    stop = tl.minimum(tl.load(offsets + i + 1), slots)
    step = tl.num_programs(1) * PAIRS
    lane, few = tl.arange(0, COLUMNS), tl.arange(0, ASKED)
    part_columns = tl.maximum(tl.cdiv(tl.cdiv(columns, COLUMNS), PARTS), 2) * COLUMNS
    for begin in range(start + tl.program_id(1) * PAIRS, stop, step):
        slot = (begin + tl.arange(0, PAIRS)).to(tl.int64)
        p, live, dp = _pair(x, y, x_largest, y_largest, x_norms, y_norms, positives, i, slot, stop, dims,
                            euclidean, COSINE)  # fmt: skip
        near_out, near_in, far_in, far_out = _edges(
            dp, margin, semi, half, error, parameters, euclidean, MODE, COSINE
        )
        alive = live[:, None]
        if MODE == LIST:
            at = tl.load(starts + slot, mask=live, other=0)
            for first in range(0, columns, COLUMNS):
                j = (first + lane)[None, :]
                inside, asked, low, high = _classify(
                    row, y_errors, j, columns, near_out, near_in, far_in, far_out
                )
                if _any(asked & alive):
                    for k_first in range(first, first + COLUMNS, ASKED):
                        k = (k_first + few).to(tl.int64)
                        sure, unsure, k_low, _k_high = _classify(
                            row, y_errors, k[None, :], columns, near_out, near_in, far_in, far_out
                        )
                        held, selection = _decided(x, y, x_norms, y_norms, i, k, unsure & alive, dims, dp,
                                                   margin, semi, euclidean, MODE, COSINE)  # fmt: skip
                        at = _list(out, listed_anchors, listed_positives, at, (sure & alive) | held, i, p,
                                   k[None, :])  # fmt: skip
                else:
                    at = _list(out, listed_anchors, listed_positives, at, inside & alive, i, p, j)
        elif MODE == NEAREST:
            bounds = tl.full([PAIRS, COLUMNS], INFINITY, tl.float32)
            for first in range(0, columns, COLUMNS):
                j = (first + lane)[None, :]
                inside, asked, low, high = _classify(
                    row, y_errors, j, columns, near_out, near_in, far_in, far_out
                )
                bounds = tl.where(inside, tl.minimum(bounds, high), bounds)
            bound = round_up(tl.min(bounds, axis=1).to(tl.float64) + 2.0 * error)
            bound = tl.where(bound == bound, bound, INFINITY)[:, None]
            best, chosen = tl.full([PAIRS], INFINITY, tl.float64), tl.full([PAIRS], -1, tl.int64)
            for first in range(0, columns, COLUMNS):
                j = (first + lane)[None, :]
                inside, asked, low, high = _classify(
                    row, y_errors, j, columns, near_out, near_in, far_in, far_out
                )
                if _any((inside | asked) & alive & (low <= bound)):
                    for k_first in range(first, first + COLUMNS, ASKED):
                        k = (k_first + few).to(tl.int64)
                        sure, unsure, k_low, _k_high = _classify(
                            row, y_errors, k[None, :], columns, near_out, near_in, far_in, far_out
                        )
                        unsure = (sure | unsure) & alive & (k_low <= bound)
                        if _any(unsure):
                            held, selection = _decided(x, y, x_norms, y_norms, i, k, unsure, dims, dp, margin,
                                                       semi, euclidean, MODE, COSINE)  # fmt: skip
                            candidate = tl.where(held, selection[None, :], INFINITY)
                            least = tl.min(candidate, axis=1)
                            tied = held & (candidate == least[:, None])
                            column = tl.min(tl.where(tied, k[None, :], columns), axis=1)
                            better = (least < best) & (column < columns)
                            best, chosen = tl.where(better, least, best), tl.where(better, column, chosen)
            tl.store(out + slot, chosen, mask=slot < stop)
        else:
            counts = tl.full([PAIRS, PARTS], 0, tl.int32)
            others = tl.full([1, COLUMNS], 0, tl.int32)
            for part in range(tl.cdiv(columns, part_columns)):
                part_first = part * part_columns
                surely = tl.full([PAIRS, COLUMNS], 0, tl.int32)
                more = tl.full([PAIRS], 0, tl.int32)
                for first in range(part_first, tl.minimum(part_first + part_columns, columns), COLUMNS):
                    j = (first + lane)[None, :]
                    inside, asked, low, high = _classify(
                        row, y_errors, j, columns, near_out, near_in, far_in, far_out
                    )
                    surely += inside.to(tl.int32)
                    if MODE == COUNT:
                        others += (low == low).to(tl.int32)
                    if _any(asked & alive):
                        for k_first in range(first, first + COLUMNS, ASKED):
                            k = (k_first + few).to(tl.int64)
                            sure, unsure, _k_low, _k_high = _classify(
                                row, y_errors, k[None, :], columns, near_out, near_in, far_in, far_out
                            )
                            unsure = unsure & alive
                            if _any(unsure):
                                held, selection = _decided(x, y, x_norms, y_norms, i, k, unsure, dims, dp,
                                                           margin, semi, euclidean, MODE, COSINE)  # fmt: skip
                                more += tl.sum(held.to(tl.int32), axis=1)
                number = tl.where(live, tl.sum(surely, axis=1) + more, 0)
                counts = tl.where(tl.arange(0, PARTS)[None, :] == part, number[:, None], counts)
            found = tl.sum(counts, axis=1)
            if MODE == COUNT:
                every = tl.sum(others, axis=1) + tl.full([PAIRS], 0, tl.int32)
                tl.store(out + slot, found.to(tl.int64), mask=slot < stop)
                tl.store(negatives + slot, tl.where(live, every, 0).to(tl.int64), mask=slot < stop)
            else:
                wanted = choose(seed, i + p * 0, p, found.to(tl.int64)).to(tl.int32)
                before = tl.cumsum(counts, axis=1) <= wanted[:, None]
                seen = tl.sum(tl.where(before, counts, 0), axis=1)
                place = tl.sum(before.to(tl.int32), axis=1) * part_columns  # past the row where none is found
                chosen = tl.full([PAIRS], -1, tl.int32)
                for first in range(0, part_columns, COLUMNS):
                    j = (place + first)[:, None] + lane[None, :]
                    inside, asked, low, high = _classify(
                        row, y_errors, j, columns, near_out, near_in, far_in, far_out
                    )
                    asked = asked & alive
                    chosen_before, seen_before = chosen, seen
                    chosen, seen = _pick(chosen, seen, inside & alive, j, wanted)
                    if _any(asked):  # for such pairs anew, a few columns at a time
                        again = tl.max(asked.to(tl.int32), axis=1) > 0
                        for turn in range(PAIRS):
                            own = (tl.arange(0, PAIRS) == turn) & again
                            own_first = tl.sum(tl.where(own, place + first, 0), axis=0)
                            own_last = own_first + tl.max(own.to(tl.int32), axis=0) * COLUMNS
                            picked, passed = chosen_before, seen_before
                            for k_first in range(own_first, own_last, ASKED):
                                k = (k_first + few).to(tl.int64)
                                sure, unsure, _k_low, _k_high = _classify(
                                    row, y_errors, k[None, :], columns, near_out, near_in, far_in, far_out
                                )
                                unsure = unsure & own[:, None]
                                held, selection = _decided(x, y, x_norms, y_norms, i, k, unsure, dims, dp,
                                                           margin, semi, euclidean, MODE, COSINE)  # fmt: skip
                                eligible, k_places = (sure & own[:, None]) | held, k[None, :].to(tl.int32)
                                picked, passed = _pick(picked, passed, eligible, k_places, wanted)
                            chosen, seen = tl.where(own, picked, chosen), tl.where(own, passed, seen)
                tl.store(out + slot, chosen.to(tl.int64), mask=slot < stop)


@triton.jit
def score_kernel(
    x,  # [N, D]
    y,  # [M, D]
    x_largest,  # [N] float64
    y_largest,  # [M] float64
    x_norms,
    y_norms,
    margin_at,  # [1] float64
    total,  # [1] int64: how many pairs there are
    anchors,  # [slots] int64
    positives,  # [slots] int64
    nearest,  # [N] int64: each anchor's nearest negative, -1 for none
    out,  # [slots] int64
    dims,
    slots: tl.int64,
    euclidean,
    COSINE: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """`hard`: the nearest negative where its score is positive, else -1."""
    slot = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    live = (slot < slots) & (slot < tl.load(total))
    i, p = tl.load(anchors + slot, mask=live, other=0), tl.load(positives + slot, mask=live, other=0)
    n = tl.load(nearest + i, mask=live, other=-1)
    live = live & (n >= 0) & (tl.load(x_largest + i, mask=live, other=-1.0) >= 0)
    live = live & (tl.load(y_largest + p, mask=live, other=-1.0) >= 0)
    dp = metric_values(pair_selections(x, y, x_norms, y_norms, i, p, live, dims, COSINE), euclidean)
    dn = metric_values(pair_selections(x, y, x_norms, y_norms, i, n, live, dims, COSINE), euclidean)
    kept = live & ((dp - dn) + tl.load(margin_at) > 0)
    tl.store(out + slot, tl.where(kept, n, -1), mask=slot < slots)


# ------------------------------------------------------------------ launchers


@dataclass(frozen=True)
class WindowConfig:
    """Pairs of an anchor a step, columns a step, columns decided at a time, parts of a row whose eligible
    columns are counted, programs that share an anchor's pairs."""

    pairs: int = 4
    columns: int = 64
    asked: int = 8
    parts: int = 32
    shares: int = 4
    num_warps: int = 1  # which waits for no other, and does what is done once a pair once


WINDOW = WindowConfig()
SCORE_PAIRS = 64
_ROWS = {"x": "*kind", "y": "*kind", "slots": "i64",
         **dict.fromkeys(("x_largest", "y_largest", "x_norms", "y_norms", "margin_at"), "*fp64")}  # fmt: skip
_LONGS = ("seed_at", "offsets", "positives", "starts", "out", "listed_anchors", "listed_positives",
          "negatives")  # fmt: skip
WINDOW_KERNEL = Kernel(
    window_kernel,
    {**_ROWS, **dict.fromkeys(("half_norms", "parameters"), "*fp64"), **dict.fromkeys(_LONGS, "*i64"),
     **dict.fromkeys(("values", "x_errors", "y_errors"), "*fp32")},
    choices(kind=KINDS, MODE=range(4), COSINE=(False, True)),
    # As few registers as leave nothing to spill: twelve programs on a multiprocessor of NVIDIA's.
    always(num_warps=WINDOW.num_warps, maxnreg=168, **CANONICAL),
    always(PAIRS=WINDOW.pairs, COLUMNS=WINDOW.columns, ASKED=WINDOW.asked, PARTS=WINDOW.parts),
    ("values", "y_errors", "padded_columns"),
)  # fmt: skip
SCORE_KERNEL = Kernel(
    score_kernel,
    {**_ROWS, **dict.fromkeys(("total", "anchors", "positives", "nearest", "out"), "*i64")},
    choices(kind=KINDS, COSINE=(False, True)), always(num_warps=4, **CANONICAL), always(PAIRS=SCORE_PAIRS),
)  # fmt: skip


def window(
    rows: Rows, labels: Labels, pairs: Pairs, rule: str, margin: float, seed: int
) -> torch.Tensor:  # [slots] int64
    """The negative of every pair under a rule, -1 for none."""
    out = torch.full_like(pairs.positives, -1)
    if pairs.slots == 0:
        return out
    values = Values.of(rows, labels)
    mode = NEAREST if rule == "semi-hard-nearest" else DRAW
    _launch(rows, labels, pairs, values, mode, margin, out, semi=rule == "semi-hard", seed=seed)
    return out


def hard(
    rows: Rows, pairs: Pairs, nearest: torch.Tensor, margin: float
) -> torch.Tensor:  # nearest [N] int64 -> [slots] int64
    """Each anchor's nearest negative where the pair's score with it is positive."""
    out = torch.full_like(pairs.positives, -1)
    x, y = rows.x, rows.y
    if pairs.slots == 0:
        return out
    with on_device(x):
        SCORE_KERNEL(
            (blocks(pairs.slots, SCORE_PAIRS),), x, y, rows.x_largest, rows.y_largest,
            *metric_norms(x, y, rows.metric), float64_on(x.device, margin), pairs.offsets[-1:], pairs.anchors,
            pairs.positives, nearest, out, x.shape[1], pairs.slots, int(rows.metric == "euclidean"),
            COSINE=rows.metric == "cosine",
        )  # fmt: skip
    return out


def count(
    rows: Rows, labels: Labels, pairs: Pairs, margin: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # [slots] int64 each
    """Of every pair: how many negatives there are, have a positive score, and are semi-hard."""
    total, scored, semi_hard = (torch.zeros_like(pairs.positives) for _ in range(3))
    if pairs.slots == 0:
        return total, scored, semi_hard
    values = Values.of(rows, labels)
    for out, semi in ((scored, False), (semi_hard, True)):
        _launch(rows, labels, pairs, values, COUNT, margin, out, semi=semi, negatives=total)
    return total, scored, semi_hard


def every_triplet(
    rows: Rows, labels: Labels, pairs: Pairs, margin: float, read: Callable[[torch.Tensor], list[int]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # [T] int64 each
    """All triplets of positive score. Reads back how many there are, by `read`."""
    scored = torch.zeros_like(pairs.positives)
    if pairs.slots == 0:
        return scored, scored, scored
    values = Values.of(rows, labels)
    unread = torch.zeros_like(pairs.positives)
    _launch(rows, labels, pairs, values, COUNT, margin, scored, negatives=unread)
    ends = scored.cumsum(0)
    (size,) = read(ends[-1])
    found = torch.empty(3, size, dtype=torch.int64, device=scored.device)
    if size:
        _launch(
            rows, labels, pairs, values, LIST, margin, found[2],
            starts=ends - scored, listed_anchors=found[0], listed_positives=found[1],
        )  # fmt: skip
    return found[0], found[1], found[2]


def _launch(
    rows: Rows,
    labels: Labels,
    pairs: Pairs,
    values: Values,
    mode: tl.constexpr,
    margin: float,
    out: torch.Tensor,
    semi: bool = False,
    seed: int = 0,
    **pointers: torch.Tensor,
) -> None:
    def pointer(name: str) -> torch.Tensor:
        return pointers.get(name, pairs.positives)  # which the kernel does not read as such

    device = rows.x.device
    margin_at, seed_at = float64_on(device, margin), int64_on(device, seed)
    a, b = values.operands.anchors, values.operands.columns
    for first, anchors in values.chunks(labels):
        with on_device(rows.x):
            WINDOW_KERNEL(
                (anchors, WINDOW.shares), rows.x, rows.y, rows.x_largest, rows.y_largest, values.x_norms,
                values.y_norms, values.rows, a.half_norms, a.errors, b.errors, values.operands.parameters,
                margin_at, seed_at, pairs.offsets, pairs.positives, pointer("starts"), out,
                pointer("listed_anchors"), pointer("listed_positives"), pointer("negatives"), first,
                len(rows.y), values.rows.shape[1], rows.x.shape[1], pairs.slots, int(semi),
                int(rows.metric == "euclidean"), MODE=mode.value, COSINE=rows.metric == "cosine",
            )  # fmt: skip
