"""pairwise: all canonical float64 distances (SPEC section 2).

    out[b, i, j] = the metric's value of x[b, i] and y[b, j]

x [B, N, D] and y [B, M, D] of float16, bfloat16, float32 or float64 -> float64 [B, N, M]. The answer itself
is asked for, so nothing is filtered: eight running float64 sums a pair, without fused multiply-adds
(canonical.py). Nothing is chosen, so there is no tie rule. float16 and bfloat16 are widened to float32
first, which is exact and saves two variants of every kernel. Limits: int64 addresses; the number of tiles
is below 2^31. Peak memory: the result, a copy of the rows by dimension, and a widened one of half types.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tritonkernels.canonical import norms, tile_sums
from tritonkernels.launching import CANONICAL, Kernel, always, blocks, choices, on_device


@dataclass(frozen=True)
class PairwiseConfig:
    """A program's tile of the result."""

    rows: int = 32
    columns: int = 16
    num_warps: int = 4


@dataclass(frozen=True)
class RootConfig:
    """Values a program."""

    block: int = 1024
    num_warps: int = 4


PAIRWISE, ROOT = PairwiseConfig(), RootConfig()

#: The types that rows are widened to.
WIDE_KINDS = ("fp32", "fp64")


@triton.jit
def pairwise_kernel(
    x,  # [B, D, N]
    y,  # [B, D, M]
    x_norms,  # [B, N] float64, read for the cosine alone
    y_norms,  # [B, M] float64
    out,  # [B, N, M] float64
    rows,
    columns,
    dims,
    row_blocks,
    column_blocks,
    COSINE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    tile = tl.program_id(0).to(tl.int64)
    batch = tile // (row_blocks * column_blocks)
    i = tile // column_blocks % row_blocks * ROWS + tl.arange(0, ROWS)
    j = tile % column_blocks * COLUMNS + tl.arange(0, COLUMNS)
    live_i, live_j = i < rows, j < columns
    x, y = x + batch * rows * dims, y + batch * columns * dims
    sums = tile_sums(x, y, i, j, live_i, live_j, rows, columns, dims, COSINE)
    if COSINE:
        x_length = tl.load(x_norms + batch * rows + i, mask=live_i, other=1.0)
        y_length = tl.load(y_norms + batch * columns + j, mask=live_j, other=1.0)
        scale = x_length[:, None] * y_length[None, :]
        zero = scale == 0.0
        sums = 1.0 - tl.where(zero, 0.0, sums / tl.where(zero, 1.0, scale))
    at = (batch * rows + i)[:, None] * columns + j[None, :]
    tl.store(out + at, sums, mask=live_i[:, None] & live_j[None, :])


@triton.jit
def root_kernel(
    values,  # [count] float64, replaced by their square roots
    count: tl.int64,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < count
    tl.store(values + at, tl.sqrt(tl.load(values + at, mask=live, other=0.0)), mask=live)


ROOT_KERNEL = Kernel(
    root_kernel, {"values": "*fp64", "count": "i64"}, [{}], always(num_warps=ROOT.num_warps, **CANONICAL),
    always(BLOCK=ROOT.block),
)  # fmt: skip
PAIRWISE_KERNEL = Kernel(
    pairwise_kernel, {"x": "*kind", "y": "*kind", **dict.fromkeys(("x_norms", "y_norms", "out"), "*fp64")},
    choices(kind=WIDE_KINDS, COSINE=(False, True)), always(num_warps=PAIRWISE.num_warps, **CANONICAL),
    always(ROWS=PAIRWISE.rows, COLUMNS=PAIRWISE.columns),
)  # fmt: skip


def to_metric(
    selections: torch.Tensor,  # [...] float64, contiguous, replaced by the metric's values
    metric: str,
) -> None:
    """torch.sqrt rounds float64 correctly on some devices and vector libraries only."""
    if metric == "euclidean" and selections.numel():
        with on_device(selections):
            ROOT_KERNEL((blocks(selections.numel(), ROOT.block),), selections, selections.numel())


def widened(
    x: torch.Tensor,  # [..., D]
) -> torch.Tensor:
    """Contiguous rows of float32 or float64 with the same values."""
    return (x if x.dtype == torch.float64 else x.float()).contiguous()


def pairwise(
    x: torch.Tensor,  # [N, D] or [B, N, D]
    y: torch.Tensor,  # [M, D] or [B, M, D], of the same type; may be x itself
    metric: str,
) -> torch.Tensor:  # [N, M] or [B, N, M] float64
    """All distances in the metric's unit; no host synchronisation."""
    out = torch.empty((*x.shape[:-1], y.shape[-2]), dtype=torch.float64, device=x.device)
    if out.numel() == 0:
        return out
    with on_device(x):
        a = widened(x)
        selections(a, a if y is x else widened(y), metric, out)
        to_metric(out, metric)
    return out


def selections(
    x: torch.Tensor,  # [N, D] or [B, N, D] float32 or float64, contiguous
    y: torch.Tensor,  # [M, D] or [B, M, D]
    metric: str,
    out: torch.Tensor,  # [N, M] or [B, N, M] float64, contiguous, written
) -> None:
    """What nearest and farthest are decided on: the squared or the cosine distance. No side is empty."""
    rows, columns, dims = x.shape[-2], y.shape[-2], x.shape[-1]
    x_norms = y_norms = out  # not read
    if metric == "cosine":
        x_norms = norms(x.view(-1, dims))
        y_norms = x_norms if y is x else norms(y.view(-1, dims))
    row_blocks, column_blocks = blocks(rows, PAIRWISE.rows), blocks(columns, PAIRWISE.columns)
    batches = x.numel() // (rows * dims)
    by_dimension = x.transpose(-1, -2).contiguous()
    columns_by_dimension = by_dimension if y is x else y.transpose(-1, -2).contiguous()
    PAIRWISE_KERNEL(
        (batches * row_blocks * column_blocks,), by_dimension, columns_by_dimension, x_norms, y_norms, out,
        rows, columns, dims, row_blocks, column_blocks, COSINE=metric == "cosine",
    )  # fmt: skip
