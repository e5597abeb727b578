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

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from tritonkernels.canonical import metric_norms, metric_values, pair_selections
from tritonkernels.extremes import Rows
from tritonkernels.labels import Labels, Pairs
from tritonkernels.launching import (
    ALL_REGISTERS,
    CANONICAL,
    KINDS,
    Compilation,
    blocks,
    float64_on,
    int64_on,
    on_device,
)
from tritonkernels.philox import choose
from tritonkernels.values import SLOP, Values, round_down, round_up, value_interval

RANDOM_HARD, SEMI_HARD, FARTHER = (tl.constexpr(rule) for rule in range(3))
RULES = {"random-hard": RANDOM_HARD, "semi-hard": SEMI_HARD, "semi-hard-nearest": FARTHER}

INFINITY = tl.constexpr(float("inf"))


@triton.jit
def _holds(dp, dn, margin, RULE: tl.constexpr):
    """The rule itself, on canonical values."""
    if RULE == FARTHER:
        return dn > dp
    s = (dp - dn) + margin
    if RULE == SEMI_HARD:
        return (s > 0) & (s < margin)
    return s > 0


@triton.jit
def _edges(
    dp,  # [P] float64
    margin,
    half,
    error,
    parameters,
    RULE: tl.constexpr,
    EUCLIDEAN: tl.constexpr,
    COSINE: tl.constexpr,
):
    """Between which values negatives are surely in, and beyond which surely out; [P] float32 each."""
    slack = SLOP * (tl.abs(dp) + margin)
    far_in = tl.full([dp.shape[0]], INFINITY, tl.float32)
    near_in, far_out, near_out = -far_in, far_in, -far_in
    if RULE != FARTHER:
        low, high = value_interval(
            dp + margin - slack, dp + margin + slack, half, parameters, EUCLIDEAN, COSINE
        )
        far_in, far_out = round_down(low - error), round_up(high + error)
        far_out = tl.where(far_out == far_out, far_out, INFINITY)
    if RULE != RANDOM_HARD:
        low, high = value_interval(dp - slack, dp + slack, half, parameters, EUCLIDEAN, COSINE)
        near_in, near_out = round_up(high + error), round_down(low - error)
        near_out = tl.where(near_out == near_out, near_out, -INFINITY)
    return near_out, near_in, far_in, far_out


@triton.jit
def _classify(
    row,  # the anchor's values
    errors,  # [Mp] float32
    first,
    columns,
    near_out,
    near_in,
    far_in,
    far_out,
    COLUMNS: tl.constexpr,
):
    """(surely inside, to be asked, lower bound, upper bound) of a block: [P, C], [P, C], [C], [C]."""
    j = first + tl.arange(0, COLUMNS)
    value = tl.load(row + j, mask=j < columns, other=float("nan"))
    error = tl.load(errors + j, mask=j < columns, other=0.0)
    low, high = value - error, value + error
    number = (value == value)[None, :]
    inside = number & (high[None, :] < far_in[:, None]) & (low[None, :] > near_in[:, None])
    possible = number & (low[None, :] <= far_out[:, None]) & (high[None, :] >= near_out[:, None])
    return inside, possible & ~inside, low, high


@triton.jit
def _eligible(
    x, y, x_norms, y_norms, row, errors, i, first, columns, dims, live, dp, margin,
    near_out, near_in, far_in, far_out,
    RULE: tl.constexpr, EUCLIDEAN: tl.constexpr, COSINE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """[P, C] bool: which columns of a block each pair may choose, decided."""
    inside, asked, _, _ = _classify(row, errors, first, columns, near_out, near_in, far_in, far_out, COLUMNS)
    asked = asked & live[:, None]
    wanted = tl.max(tl.where(asked, 1, 0), axis=0)
    if tl.max(wanted, axis=0) > 0:
        j = (first + tl.arange(0, COLUMNS)).to(tl.int64)
        dn = metric_values(
            pair_selections(x, y, x_norms, y_norms, i + j * 0, j, wanted > 0, dims, COSINE), EUCLIDEAN
        )
        inside = inside | (asked & _holds(dp[:, None], dn[None, :], margin, RULE))
    return inside & live[:, None]


@triton.jit
def _pair(x, y, x_largest, y_largest, x_norms, y_norms, positives, i, slot, stop, dims,
          EUCLIDEAN: tl.constexpr, COSINE: tl.constexpr):  # fmt: skip
    """(positive, takes part, canonical distance) of some slots of an anchor, [P] each."""
    live = slot < stop
    p = tl.load(positives + slot, mask=live, other=0)
    live = live & (tl.load(x_largest + i + p * 0, mask=live, other=-1.0) >= 0)
    live = live & (tl.load(y_largest + p, mask=live, other=-1.0) >= 0)
    selection = pair_selections(x, y, x_norms, y_norms, i + p * 0, p, live, dims, COSINE)
    return p, live, metric_values(selection, EUCLIDEAN)


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
    starts,  # [slots] int64: where each pair's triplets go, read where LIST
    out,  # [slots] int64: the negative or the number of eligible ones; [T] negatives where LIST
    listed_anchors,  # [T] int64, written where LIST
    listed_positives,  # [T] int64, written where LIST
    negatives,  # [slots] int64: how many negatives there are, written where COUNT
    first_anchor,
    columns,
    padded_columns,
    dims,
    slots,
    RULE: tl.constexpr,
    COUNT: tl.constexpr,
    LIST: tl.constexpr,
    EUCLIDEAN: tl.constexpr,
    COSINE: tl.constexpr,
    PAIRS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    inner = tl.program_id(0).to(tl.int64)
    i = first_anchor + inner
    row = values + inner * padded_columns
    half, error = tl.load(half_norms + i), tl.load(x_errors + i).to(tl.float64)
    margin, seed = tl.load(margin_at), tl.load(seed_at)
    start = tl.load(offsets + i)
    stop = tl.minimum(tl.load(offsets + i + 1), slots)
    step = tl.num_programs(1) * PAIRS
    for begin in range(start + tl.program_id(1) * PAIRS, stop, step):
        slot = (begin + tl.arange(0, PAIRS)).to(tl.int64)
        p, live, dp = _pair(x, y, x_largest, y_largest, x_norms, y_norms, positives, i, slot, stop, dims,
                            EUCLIDEAN, COSINE)  # fmt: skip
        near_out, near_in, far_in, far_out = _edges(
            dp, margin, half, error, parameters, RULE, EUCLIDEAN, COSINE
        )
        chosen = tl.full([PAIRS], -1, tl.int64)
        if RULE == FARTHER:
            bound = tl.full([PAIRS], INFINITY, tl.float32)
            for first in range(0, columns, COLUMNS):
                inside, _, _, high = _classify(
                    row, y_errors, first, columns, near_out, near_in, far_in, far_out, COLUMNS
                )
                bound = tl.minimum(bound, tl.min(tl.where(inside, high[None, :], INFINITY), axis=1))
            bound = round_up(bound.to(tl.float64) + 2.0 * error)
            bound = tl.where(bound == bound, bound, INFINITY)
            best = tl.full([PAIRS], INFINITY, tl.float64)
            for first in range(0, columns, COLUMNS):
                inside, asked, low, _ = _classify(
                    row, y_errors, first, columns, near_out, near_in, far_in, far_out, COLUMNS
                )
                asked = (inside | asked) & live[:, None] & (low[None, :] <= bound[:, None])
                wanted = tl.max(tl.where(asked, 1, 0), axis=0)
                if tl.max(wanted, axis=0) > 0:
                    j = (first + tl.arange(0, COLUMNS)).to(tl.int64)
                    selection = pair_selections(
                        x, y, x_norms, y_norms, i + j * 0, j, wanted > 0, dims, COSINE
                    )
                    dn = metric_values(selection, EUCLIDEAN)
                    asked = asked & _holds(dp[:, None], dn[None, :], margin, RULE)
                    candidate = tl.where(asked, selection[None, :], INFINITY)
                    least = tl.min(candidate, axis=1)
                    column = tl.min(
                        tl.where(asked & (candidate == least[:, None]), j[None, :], columns), axis=1
                    )
                    better = (least < best) & (column < columns)
                    best, chosen = tl.where(better, least, best), tl.where(better, column, chosen)
        else:
            found = tl.full([PAIRS], 0, tl.int64)
            others = tl.full([PAIRS], 0, tl.int64)
            if not LIST:
                for first in range(0, columns, COLUMNS):
                    inside = _eligible(
                        x, y, x_norms, y_norms, row, y_errors, i, first, columns, dims, live, dp, margin,
                        near_out, near_in, far_in, far_out, RULE, EUCLIDEAN, COSINE, COLUMNS,
                    )  # fmt: skip
                    found += tl.sum(tl.where(inside, 1, 0), axis=1)
                    if COUNT:
                        j = first + tl.arange(0, COLUMNS)
                        value = tl.load(row + j, mask=j < columns, other=float("nan"))
                        others += tl.sum(tl.where(value == value, 1, 0), axis=0)
            if COUNT:
                chosen = found
                tl.store(negatives + slot, tl.where(live, others, 0), mask=slot < stop)
            else:
                wanted = tl.full([PAIRS], 0, tl.int64)
                if LIST:
                    wanted += tl.load(starts + slot, mask=live, other=0)
                else:
                    wanted += choose(seed, i + p * 0, p, found)
                seen = tl.full([PAIRS], 0, tl.int64)
                for first in range(0, columns, COLUMNS):
                    inside = _eligible(
                        x, y, x_norms, y_norms, row, y_errors, i, first, columns, dims, live, dp, margin,
                        near_out, near_in, far_in, far_out, RULE, EUCLIDEAN, COSINE, COLUMNS,
                    )  # fmt: skip
                    j = (first + tl.arange(0, COLUMNS)).to(tl.int64)
                    one = tl.where(inside, 1, 0).to(tl.int64)
                    rank = seen[:, None] + tl.cumsum(one, axis=1) - 1
                    if LIST:
                        at = wanted[:, None] + rank
                        tl.store(out + at, j[None, :] + at * 0, mask=inside)
                        tl.store(listed_anchors + at, i + at * 0, mask=inside)
                        tl.store(listed_positives + at, p[:, None] + at * 0, mask=inside)
                    else:
                        hit = inside & (rank == wanted[:, None])
                        chosen = tl.maximum(chosen, tl.max(tl.where(hit, j[None, :], -1), axis=1))
                    seen += tl.sum(one, axis=1)
        if not LIST:
            tl.store(out + slot, chosen, mask=slot < stop)


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
    slots,
    EUCLIDEAN: tl.constexpr,
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
    dp = metric_values(pair_selections(x, y, x_norms, y_norms, i, p, live, dims, COSINE), EUCLIDEAN)
    dn = metric_values(pair_selections(x, y, x_norms, y_norms, i, n, live, dims, COSINE), EUCLIDEAN)
    kept = live & ((dp - dn) + tl.load(margin_at) > 0)
    tl.store(out + slot, tl.where(kept, n, -1), mask=slot < slots)


# ------------------------------------------------------------------ launchers


@dataclass(frozen=True)
class WindowConfig:
    """Pairs of an anchor a step, columns a step, programs that share an anchor's pairs."""

    pairs: int = 8
    columns: int = 128
    shares: int = 4
    num_warps: int = 4


WINDOW = WindowConfig()
SCORE_PAIRS = 64


def window(
    rows: Rows, labels: Labels, pairs: Pairs, rule: str, margin: float, seed: int
) -> torch.Tensor:  # [slots] int64
    """The negative of every pair under a rule of RULES, -1 for none."""
    out = torch.full_like(pairs.positives, -1)
    if pairs.slots == 0:
        return out
    values = Values.of(rows, labels)
    _launch(rows, labels, pairs, values, RULES[rule].value, margin, seed, out)
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
        score_kernel[(blocks(pairs.slots, SCORE_PAIRS),)](
            x, y, rows.x_largest, rows.y_largest, *metric_norms(x, y, rows.metric),
            float64_on(x.device, margin), pairs.offsets[-1:], pairs.anchors, pairs.positives, nearest, out,
            x.shape[1], pairs.slots, EUCLIDEAN=rows.metric == "euclidean", COSINE=rows.metric == "cosine",
            PAIRS=SCORE_PAIRS, num_warps=WINDOW.num_warps, **ALL_REGISTERS, **CANONICAL,
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
    options = {"COUNT": True, "negatives": total}
    _launch(rows, labels, pairs, values, RANDOM_HARD.value, margin, 0, scored, **options)
    _launch(rows, labels, pairs, values, SEMI_HARD.value, margin, 0, semi_hard, **options)
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
    _launch(rows, labels, pairs, values, RANDOM_HARD.value, margin, 0, scored, COUNT=True, negatives=unread)
    ends = scored.cumsum(0)
    (size,) = read(ends[-1])
    found = torch.empty(3, size, dtype=torch.int64, device=scored.device)
    if size:
        _launch(
            rows, labels, pairs, values, RANDOM_HARD.value, margin, 0, found[2], LIST=True,
            starts=ends - scored, listed_anchors=found[0], listed_positives=found[1],
        )  # fmt: skip
    return found[0], found[1], found[2]


def _launch(
    rows: Rows,
    labels: Labels,
    pairs: Pairs,
    values: Values,
    rule: int,
    margin: float,
    seed: int,
    out: torch.Tensor,
    **options: Any,
) -> None:
    unread = pairs.positives
    pointers = dict.fromkeys(("starts", "listed_anchors", "listed_positives", "negatives"), unread)
    flags = {"COUNT": False, "LIST": False}
    for name, value in options.items():
        (flags if name in flags else pointers)[name] = value
    device = rows.x.device
    margin_at, seed_at = float64_on(device, margin), int64_on(device, seed)
    a, b = values.operands.anchors, values.operands.columns
    for first, anchors in values.chunks(labels):
        with on_device(rows.x):
            window_kernel[(anchors, WINDOW.shares)](
                rows.x, rows.y, rows.x_largest, rows.y_largest, values.x_norms, values.y_norms, values.rows,
                a.half_norms, a.errors, b.errors, values.operands.parameters, margin_at, seed_at,
                pairs.offsets, pairs.positives, pointers["starts"], out, pointers["listed_anchors"],
                pointers["listed_positives"], pointers["negatives"], first, len(rows.y),
                values.rows.shape[1], rows.x.shape[1], pairs.slots, RULE=rule,
                EUCLIDEAN=rows.metric == "euclidean", COSINE=rows.metric == "cosine",
                PAIRS=WINDOW.pairs, COLUMNS=WINDOW.columns, num_warps=WINDOW.num_warps,
                **ALL_REGISTERS, **flags, **CANONICAL,
            )  # fmt: skip


def compilations() -> Iterator[Compilation]:
    doubles = ("x_largest", "y_largest", "x_norms", "y_norms", "half_norms", "parameters", "margin_at")
    longs = ("seed_at", "offsets", "positives", "starts", "out", "listed_anchors", "listed_positives",
             "negatives", "total", "anchors", "nearest")  # fmt: skip
    pointers = {**dict.fromkeys(doubles, "*fp64"), **dict.fromkeys(longs, "*i64")}
    pointers |= dict.fromkeys(("values", "x_errors", "y_errors"), "*fp32")
    numbers = dict.fromkeys(("first_anchor", "columns", "padded_columns", "dims", "slots"), "i32")
    options = {"num_warps": WINDOW.num_warps, **ALL_REGISTERS, **CANONICAL}
    for kind in KINDS:
        rows = {"x": f"*{kind}", "y": f"*{kind}"}
        for metric in ("sqeuclidean", "euclidean", "cosine"):
            metrics = {"EUCLIDEAN": metric == "euclidean", "COSINE": metric == "cosine"}
            if kind != "fp32" and metric == "euclidean":
                continue  # the square root of the same kernel
            yield Compilation(
                f"window.score[{kind},{metric}]", score_kernel, {**rows, **pointers, **numbers},
                {**metrics, "PAIRS": SCORE_PAIRS}, options,
            )  # fmt: skip
            for rule, listing, counting in (
                ("random-hard", False, False), ("random-hard", False, True), ("random-hard", True, False),
                ("semi-hard", False, False), ("semi-hard", False, True), ("semi-hard-nearest", False, False),
            ):  # fmt: skip
                if listing or counting:
                    if kind != "fp32" or metric == "cosine":
                        continue
                elif kind != "fp32" and (metric == "cosine" or rule == "random-hard"):
                    continue
                yield Compilation(
                    f"window.window[{kind},{metric},{rule},count={counting},list={listing}]",
                    window_kernel, {**rows, **pointers, **numbers},
                    {"RULE": RULES[rule].value, "COUNT": counting, "LIST": listing, **metrics,
                     "PAIRS": WINDOW.pairs, "COLUMNS": WINDOW.columns},
                    options, ("padded_columns",),
                )  # fmt: skip
