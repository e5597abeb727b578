"""sample: per anchor-positive pair one negative drawn by distance (distance-weighted sampling).

anchors [N, D], columns [M, D], labels -> negatives [P] int64, -1 where every negative weighs nothing. On
L2-normalised rows, with q = d^2 clamped to 0.25 .. 1.96:

    log2 w(n) = -(D-2)/2 log2 q - (D-3)/2 log2(1 - q/4),      w = 0 beyond d = 1.4

Who weighs nothing is decided on canonical float64 distances of the normalised rows, where the approximate
value (values.py) lies within its bound of the edge. The weights are float32, normalised by the anchor's
largest; the pair (a, p) takes the column in which the running sum of weights passes u / 2^64 of their
total, u from Philox. The sums run in blocks of fixed size, so the draw does not depend on the launch.
Memory: the rows of values.py and 8 bytes a block of them. Limits: M < 2^31.
Source: Wu et al., "Sampling matters in deep embedding learning", ICCV 2017; EXT eq. 8; SPEC section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tritonkernels.canonical import lane_sum, to_float64
from tritonkernels.extremes import Rows
from tritonkernels.filter import TO_SELECTION
from tritonkernels.labels import Labels, Pairs
from tritonkernels.launching import CANONICAL, KINDS, Kernel, always, blocks, choices, int64_on, on_device
from tritonkernels.philox import uniform
from tritonkernels.values import Values, round_down, round_up

CUTOFF = tl.constexpr(1.4)
LEAST_SQUARE, MOST_SQUARE = tl.constexpr(0.25), tl.constexpr(1.96)
NOTHING = tl.constexpr(float("-inf"))


@triton.jit
def _unit_distances(x, y, x_norms, y_norms, i, j, live, dims):
    """Canonical distances of normalised rows, [P]; a zero row stays zero."""
    count: tl.constexpr = i.shape[0]
    x_length = tl.load(x_norms + i, mask=live, other=1.0)
    y_length = tl.load(y_norms + j, mask=live, other=1.0)
    x_zero, y_zero = x_length == 0.0, y_length == 0.0
    x_length, y_length = tl.where(x_zero, 1.0, x_length), tl.where(y_zero, 1.0, y_length)
    lanes = tl.full([count, 8], 0.0, tl.float64)
    for first in range(0, dims, 8):
        k = first + tl.arange(0, 8)
        mask = live[:, None] & (k < dims)[None, :]
        xk = to_float64(tl.load(x + i[:, None] * dims + k[None, :], mask=mask, other=0.0))
        yk = to_float64(tl.load(y + j[:, None] * dims + k[None, :], mask=mask, other=0.0))
        difference = xk / x_length[:, None] - yk / y_length[:, None]
        lanes += difference * difference
    return tl.sqrt(lane_sum(lanes))


@triton.jit
def weigh_kernel(
    x,  # [N, D]
    y,  # [M, D]
    x_norms,  # [N] float64
    y_norms,  # [M] float64
    values,  # [R, Mp] float32: values of the squared distance in, weights out
    half_norms,  # [Np] float64
    x_errors,  # [Np] float32
    y_errors,  # [Mp] float32
    parameters,  # [4] float64
    sums,  # [R, blocks] float64: running sums at the end of each block
    last,  # [R] int64: the last column that weighs anything, -1 for none
    first_anchor,
    columns,
    padded_columns,
    dims,
    count,  # blocks
    COLUMNS: tl.constexpr,
):
    """Weights of an anchor's negatives: logarithms and the largest first, then exponentials and sums."""
    inner = tl.program_id(0).to(tl.int64)
    i = first_anchor + inner
    row = values + inner * padded_columns
    half, error = tl.load(half_norms + i), tl.load(x_errors + i).to(tl.float64)
    to_selection = tl.load(parameters + TO_SELECTION)
    inverse = 1.0 / to_selection
    edge, slack = inverse * (CUTOFF * CUTOFF), inverse * 1e-12
    far_in, far_out = round_down(edge - half - error - slack), round_up(edge - half + error + slack)
    a, b = 0.5 * (dims - 2), 0.5 * (dims - 3)
    most = tl.full([COLUMNS], NOTHING, tl.float32)
    for first in range(0, columns, COLUMNS):
        j = (first + tl.arange(0, COLUMNS)).to(tl.int64)
        value = tl.load(row + j, mask=j < columns, other=float("nan"))
        margin = tl.load(y_errors + j, mask=j < columns, other=0.0)
        number = value == value
        inside = number & (value + margin < far_in)
        asked = number & ~inside & (value - margin <= far_out)
        q = (to_selection * (value.to(tl.float64) + half)).to(tl.float32)
        if tl.max(tl.where(asked, 1, 0), axis=0) > 0:
            d = _unit_distances(x, y, x_norms, y_norms, i + j * 0, j, asked, dims)
            inside = inside | (asked & (d <= CUTOFF))
            q = tl.where(asked, (d * d).to(tl.float32), q)
        q = tl.where(inside, tl.minimum(tl.maximum(q, LEAST_SQUARE), MOST_SQUARE), 1.0)
        weight = -(a * tl.log2(q) + b * tl.log2(1.0 - 0.25 * q)).to(tl.float32)
        weight = tl.where(inside, weight, NOTHING)
        tl.store(row + j, weight, mask=j < columns)
        most = tl.maximum(most, weight)
    largest = tl.max(most, axis=0)
    tl.debug_barrier()
    total = tl.full([1], 0.0, tl.float64)
    last_column = tl.full([1], -1, tl.int64)
    block = tl.arange(0, 1)
    for first in range(0, columns, COLUMNS):
        j = (first + tl.arange(0, COLUMNS)).to(tl.int64)
        weight = tl.load(row + j, mask=j < columns, other=NOTHING)
        weight = tl.where(weight > NOTHING, tl.exp2(weight - largest), 0.0)
        tl.store(row + j, weight, mask=j < columns)
        total += tl.sum(weight.to(tl.float64), axis=0)
        last_column = tl.maximum(last_column, tl.max(tl.where(weight > 0.0, j, -1), axis=0))
        tl.store(sums + inner * count + first // COLUMNS + block, total)
    tl.store(last + inner + block, last_column)


@triton.jit
def draw_kernel(
    x_largest,  # [N] float64
    y_largest,  # [M] float64
    values,  # [R, Mp] float32 weights
    sums,  # [R, blocks] float64
    last,  # [R] int64
    seed_at,  # [1] int64
    offsets,  # [N + 1] int64
    positives,  # [slots] int64
    out,  # [slots] int64
    first_anchor,
    padded_columns,
    count,  # blocks
    slots: tl.int64,
    PAIRS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The column in which the running sum passes the pair's share of the total."""
    inner = tl.program_id(0).to(tl.int64)
    i = first_anchor + inner
    row = values + inner * padded_columns
    start = tl.load(offsets + i)
    stop = tl.minimum(tl.load(offsets + i + 1), slots)
    seed, last_column = tl.load(seed_at), tl.load(last + inner)
    lane = tl.arange(0, COLUMNS)
    step = tl.num_programs(1) * PAIRS
    for begin in range(start + tl.program_id(1) * PAIRS, stop, step):
        slot = (begin + tl.arange(0, PAIRS)).to(tl.int64)
        live = slot < stop
        p = tl.load(positives + slot, mask=live, other=0)
        live = live & (tl.load(x_largest + i + p * 0, mask=live, other=-1.0) >= 0)
        live = live & (tl.load(y_largest + p, mask=live, other=-1.0) >= 0)
        target = uniform(seed, i + p * 0, p) * tl.load(sums + inner * count + count - 1 + p * 0)
        passed = tl.full([PAIRS], 0, tl.int64)
        before = tl.full([PAIRS], 0.0, tl.float64)
        for block in range(count):
            total = tl.load(sums + inner * count + block + p * 0)
            passed += tl.where(total <= target, 1, 0)
            before = tl.where(total <= target, total, before)
        passed = tl.minimum(passed, count - 1)
        j = passed[:, None] * COLUMNS + lane[None, :]
        weight = tl.load(row + j, mask=live[:, None] & (j < padded_columns), other=0.0)
        weight = tl.where(weight > 0.0, weight, 0.0)  # beyond the last column lies NaN
        running = before[:, None] + tl.cumsum(weight.to(tl.float64), axis=1)
        hit = (running > target[:, None]) & (weight > 0.0)
        column = tl.min(tl.where(hit, j, last_column), axis=1)  # rounding may leave the very end unpassed
        tl.store(out + slot, tl.where(live, column, -1), mask=slot < stop)


@dataclass(frozen=True)
class SampleConfig:
    """Columns of a block, pairs a step, programs that share an anchor's pairs."""

    columns: int = 128
    pairs: int = 8
    shares: int = 4
    num_warps: int = 4


SAMPLE = SampleConfig()
_DOUBLES = ("x_norms", "y_norms", "half_norms", "parameters", "sums")
WEIGH = Kernel(
    weigh_kernel,
    {"x": "*kind", "y": "*kind", **dict.fromkeys(_DOUBLES, "*fp64"), "last": "*i64",
     **dict.fromkeys(("values", "x_errors", "y_errors"), "*fp32")},
    choices(kind=KINDS), always(num_warps=SAMPLE.num_warps, **CANONICAL), always(COLUMNS=SAMPLE.columns),
    ("values", "y_errors", "padded_columns"),
)  # fmt: skip
DRAW = Kernel(
    draw_kernel,
    {**dict.fromkeys(("x_largest", "y_largest", "sums"), "*fp64"), "values": "*fp32", "slots": "i64",
     **dict.fromkeys(("last", "seed_at", "offsets", "positives", "out"), "*i64")},
    [{}], always(num_warps=SAMPLE.num_warps), always(PAIRS=SAMPLE.pairs, COLUMNS=SAMPLE.columns),
    ("values", "padded_columns"),
)  # fmt: skip


def sample(rows: Rows, labels: Labels, pairs: Pairs, seed: int) -> torch.Tensor:  # [slots] int64
    """The negative that every pair draws, -1 where none weighs anything."""
    out = torch.full_like(pairs.positives, -1)
    if pairs.slots == 0:
        return out
    values = Values.of(rows, labels, unit=True)
    device, m = rows.x.device, len(rows.y)
    a, b, count = values.operands.anchors, values.operands.columns, blocks(m, SAMPLE.columns)
    sums = torch.empty(len(values.rows), count, dtype=torch.float64, device=device)
    last = torch.empty(len(values.rows), dtype=torch.int64, device=device)
    seed_at = int64_on(device, seed)
    wide = values.rows.shape[1]
    for first, anchors in values.chunks(labels):
        with on_device(rows.x):
            WEIGH(
                (anchors,), rows.x, rows.y, values.x_norms, values.y_norms, values.rows, a.half_norms,
                a.errors, b.errors, values.operands.parameters, sums, last, first, m, wide, rows.x.shape[1],
                count,
            )  # fmt: skip
            DRAW(
                (anchors, SAMPLE.shares), rows.x_largest, rows.y_largest, values.rows, sums, last, seed_at,
                pairs.offsets, pairs.positives, out, first, wide, count, pairs.slots,
            )  # fmt: skip
    return out
