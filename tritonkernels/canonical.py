"""Canonical float64 distances (SPEC section 2): eight running sums in index order, no fused multiply-add.

    acc[k % 8] += t * t,  t = float64(x[k]) - float64(y[k]);   sq = ((acc0+acc1)+(acc2+acc3)) + ((acc4+..)+..)

x [N, D], y [M, D] of bfloat16, float32 or float64 (float16 arrives as float32), rows contiguous. The
selection value is sq, or the cosine distance 1 - dot / (|x| |y|), 1 where either row is zero; the metric's
value is its square root for `euclidean`, else the selection value itself.

Every kernel that calls these functions is launched with `launching.CANONICAL`, which switches fusion off:
then the sums have the bits of minerlib/reference.py on every target. The eight lanes lie along the last axis
of a block and are combined by splitting it, because the order of `tl.sum` is unspecified.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tritonkernels.launching import CANONICAL, KINDS, Kernel, always, blocks, choices, on_device

LANES = tl.constexpr(8)


@triton.jit
def lane_sum(lanes):  # [P, 8] -> [P]
    """((0+1)+(2+3)) + ((4+5)+(6+7)) along the last axis."""
    count: tl.constexpr = lanes.shape[0]
    even, odd = tl.split(tl.reshape(lanes, [count, 4, 2]))
    even, odd = tl.split(tl.reshape(even + odd, [count, 2, 2]))
    low, high = tl.split(even + odd)
    return low + high


@triton.jit
def to_float64(values):
    """Exact for every type, subnormal numbers included: bfloat16 is the upper half of a float32."""
    if values.dtype == tl.bfloat16:
        values = (values.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return values.to(tl.float64)


@triton.jit
def pair_sums(
    x,  # [N, D]
    y,  # [M, D]
    i,  # [P] int64
    j,  # [P] int64
    live,  # [P] bool: pairs to compute; the others give 0
    dims,
    PRODUCT: tl.constexpr,  # dot products instead of squared differences
):  # [P] float64
    """Eight-lane sums of P pairs of rows, chosen by index."""
    count: tl.constexpr = i.shape[0]
    lane = tl.arange(0, LANES)
    lanes = tl.full([count, LANES], 0.0, tl.float64)
    for first in range(0, dims, LANES):
        k = first + lane
        mask = live[:, None] & (k < dims)[None, :]
        xk = to_float64(tl.load(x + i[:, None] * dims + k[None, :], mask=mask, other=0.0))
        yk = to_float64(tl.load(y + j[:, None] * dims + k[None, :], mask=mask, other=0.0))
        if PRODUCT:
            lanes += xk * yk
        else:
            difference = xk - yk
            lanes += difference * difference
    return lane_sum(lanes)


@triton.jit
def pair_selections(
    x,  # [N, D]
    y,  # [M, D]
    x_norms,  # [N] float64, read for the cosine alone
    y_norms,  # [M] float64
    i,  # [P] int64
    j,  # [P] int64
    live,  # [P] bool
    dims,
    COSINE: tl.constexpr,
):  # [P] float64
    """Selection values of P pairs of rows; pairs that are not live give something finite."""
    sums = pair_sums(x, y, i, j, live, dims, COSINE)
    if COSINE:
        scale = tl.load(x_norms + i, mask=live, other=1.0) * tl.load(y_norms + j, mask=live, other=1.0)
        zero = scale == 0.0
        sums = 1.0 - tl.where(zero, 0.0, sums / tl.where(zero, 1.0, scale))
    return sums


@triton.jit
def metric_values(selections, euclidean):
    """What margins and windows are decided on."""
    if euclidean != 0:
        selections = tl.sqrt(selections)
    return selections


@triton.jit
def _column(at, live, k, dims):
    """float64 value k of each row, 0 beyond the last dimension; at: where it stands."""
    return to_float64(tl.load(at, mask=tl.where(live, k, dims) < dims, other=0.0))


@triton.jit
def _term(acc, x, y, live_i, live_j, k, dims, PRODUCT: tl.constexpr):
    xk, yk = _column(x, live_i, k, dims), _column(y, live_j, k, dims)
    if PRODUCT:
        acc += xk[:, None] * yk[None, :]
    else:
        difference = xk[:, None] - yk[None, :]
        acc += difference * difference
    return acc


@triton.jit
def tile_sums(
    x,  # [D, N]
    y,  # [D, M]
    i,  # [R] int64
    j,  # [C] int64
    live_i,  # [R] bool
    live_j,  # [C] bool
    rows,  # N
    columns,  # M
    dims,
    PRODUCT: tl.constexpr,
):  # [R, C] float64
    """Eight-lane sums of R rows against C rows: eight running blocks.

    The rows are columns of x and y, so that what neighbouring threads load lies side by side.
    """
    zero = tl.full([i.shape[0], j.shape[0]], 0.0, tl.float64)
    a0, a1, a2, a3, a4, a5, a6, a7 = zero, zero, zero, zero, zero, zero, zero, zero
    x, y = x + i, y + j
    rows, columns = rows.to(tl.int64), columns.to(tl.int64)
    for k in range(0, dims, LANES):
        a0 = _term(a0, x, y, live_i, live_j, k, dims, PRODUCT)
        a1 = _term(a1, x + rows, y + columns, live_i, live_j, k + 1, dims, PRODUCT)
        a2 = _term(a2, x + 2 * rows, y + 2 * columns, live_i, live_j, k + 2, dims, PRODUCT)
        a3 = _term(a3, x + 3 * rows, y + 3 * columns, live_i, live_j, k + 3, dims, PRODUCT)
        x, y = x + 4 * rows, y + 4 * columns
        a4 = _term(a4, x, y, live_i, live_j, k + 4, dims, PRODUCT)
        a5 = _term(a5, x + rows, y + columns, live_i, live_j, k + 5, dims, PRODUCT)
        a6 = _term(a6, x + 2 * rows, y + 2 * columns, live_i, live_j, k + 6, dims, PRODUCT)
        a7 = _term(a7, x + 3 * rows, y + 3 * columns, live_i, live_j, k + 7, dims, PRODUCT)
        x, y = x + 4 * rows, y + 4 * columns
    return ((a0 + a1) + (a2 + a3)) + ((a4 + a5) + (a6 + a7))


@triton.jit
def norms_kernel(
    x,  # [N, D]
    out,  # [N] float64
    rows,
    dims,
    ROWS: tl.constexpr,
):
    """out = sqrt of the eight-lane sum of squares of each row."""
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = i < rows
    tl.store(out + i, tl.sqrt(pair_sums(x, x, i, i, live, dims, True)), mask=live)


@dataclass(frozen=True)
class NormsConfig:
    """Rows a program, and its warps."""

    rows: int = 64
    num_warps: int = 4


NORMS = NormsConfig()
NORMS_KERNEL = Kernel(
    norms_kernel, {"x": "*kind", "out": "*fp64"}, choices(kind=KINDS),
    always(num_warps=NORMS.num_warps, **CANONICAL), always(ROWS=NORMS.rows),
)  # fmt: skip


def norms(
    x: torch.Tensor,  # [N, D], contiguous
) -> torch.Tensor:  # [N] float64
    """Canonical lengths of the rows."""
    out = torch.empty(len(x), dtype=torch.float64, device=x.device)
    if len(x):
        with on_device(x):
            NORMS_KERNEL((blocks(len(x), NORMS.rows),), x, out, len(x), x.shape[1])
    return out


def metric_norms(
    x: torch.Tensor,  # [N, D]
    y: torch.Tensor,  # [M, D]; may be x itself
    metric: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The lengths that `pair_selections` reads: those of the rows for the cosine, else one unread value."""
    if metric != "cosine":
        unread = torch.zeros(1, dtype=torch.float64, device=x.device)
        return unread, unread
    x_norms = norms(x)
    return x_norms, x_norms if y is x else norms(y)
