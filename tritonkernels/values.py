"""Rows of approximate values against all columns, a few anchors at a time, with the bounds of an edge.

    v(i, j) = h_j - a_i . b_j [R, Mp] float32 for anchors first .. first + R - 1, columns in their own order,
    NaN where j is no negative of i

The rows stay in the second-level cache of a large GPU: at most ROW_BYTES of them exist at a time.
`window.py` and `sample.py` read them. float32 operands; on large problems of NVIDIA GPUs in three TF32
products.
Memory: ROW_BYTES and the operands. Limits: M < 2^31.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from tritonkernels import filter as filters
from tritonkernels.canonical import metric_norms
from tritonkernels.extremes import Rows
from tritonkernels.filter import PRECISIONS, TO_SELECTION, Filter, tile_dots
from tritonkernels.labels import Labels, shared
from tritonkernels.launching import BACKENDS, Kernel, always, blocks, choices, on_device

#: What the rows of one chunk may take, unless a single block of them takes more.
ROW_BYTES = 32 << 20
#: Columns from which three TF32 products cost less than float32, wider bounds included: docs/performance.md.
MANY_COLUMNS = 512

#: Covers the rounding of the few float64 operations on an edge.
SLOP = tl.constexpr(2.0**-49)


@triton.jit
def values_kernel(
    a,  # [Np, Dp] float32
    b,  # [Mp, Dp] float32
    half_norms,  # [Mp] float64, NaN for columns that take no part
    anchor_class,  # [Np] int32
    column_class,  # [Mp] int32
    anchor_bits,  # [Np, W] int64
    column_bits,  # [Mp, W] int64
    values,  # [R, Mp] float32
    first,
    padded_columns,
    dims,
    words,
    own,  # 1 in self-mining
    MULTI: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    inner = tl.program_id(1).to(tl.int64) * ROWS
    row, column = first + inner, tl.program_id(0).to(tl.int64) * COLUMNS
    i, j = row + tl.arange(0, ROWS), column + tl.arange(0, COLUMNS)
    dots = tile_dots(a, b, row, column, dims, ROWS, COLUMNS, DEPTH, INPUT_PRECISION)
    value = tl.load(half_norms + j).to(tl.float32)[None, :] - dots
    if MULTI:
        same = shared(anchor_bits, column_bits, i, j, i >= 0, j >= 0, words)
    else:
        same = tl.load(anchor_class + i)[:, None] == tl.load(column_class + j)[None, :]
    same = same | (tl.where(own != 0, i, -1)[:, None] == j[None, :])
    out = values + (inner + tl.arange(0, ROWS))[:, None] * padded_columns + j[None, :]
    tl.store(out, tl.where(same, float("nan"), value))


# ------------------------------------------------------------------ bounds


@triton.jit
def round_up(x):
    """A float32 that is not below a float64."""
    y = x.to(tl.float32)
    return y + tl.abs(y) * 2.4e-7 + 1e-37


@triton.jit
def round_down(x):
    """A float32 that is not above a float64."""
    y = x.to(tl.float32)
    return y - tl.abs(y) * 2.4e-7 - 1e-37


@triton.jit
def value_interval(low, high, half, parameters, euclidean, COSINE: tl.constexpr):
    """The values v that distances low .. high of the metric correspond to, a little wider."""
    if not COSINE:
        low = tl.maximum(low, 0.0)
    if euclidean != 0:
        low, high = low * low, high * high
    inverse = 1.0 / tl.load(parameters + TO_SELECTION)  # exact: a power of two
    low, high = low * inverse, high * inverse
    low = low - half - SLOP * (tl.abs(low) + half)
    return low, high - half + SLOP * (tl.abs(high) + half)


# ------------------------------------------------------------------ launcher


@dataclass(frozen=True)
class ValuesConfig:
    """Tile of the values."""

    rows: int = 64
    columns: int = 64
    num_warps: int = 4
    num_stages: int = 3


VALUES = ValuesConfig()
#: Label sets need registers of their own.
VALUES_MULTI = ValuesConfig(num_warps=8)


def _options(hip: bool, MULTI: bool, **_: Any) -> dict[str, int]:
    config = VALUES_MULTI if MULTI else VALUES
    return {"num_warps": config.num_warps, "num_stages": config.num_stages}


VALUES_KERNEL = Kernel(
    values_kernel,
    {**dict.fromkeys(("a", "b", "values"), "*fp32"), "half_norms": "*fp64",
     **dict.fromkeys(("anchor_class", "column_class"), "*i32"),
     **dict.fromkeys(("anchor_bits", "column_bits"), "*i64")},
    choices(MULTI=(False, True), DEPTH=(16, 32), INPUT_PRECISION=("ieee", "tf32x3")), _options,
    always(ROWS=VALUES.rows, COLUMNS=VALUES.columns),
    ("a", "b", "half_norms", "values", "first", "padded_columns", "dims"),
    lambda INPUT_PRECISION, **_: ("cuda",) if INPUT_PRECISION == "tf32x3" else BACKENDS,
)  # fmt: skip


@dataclass(frozen=True)
class Values:
    """Operands in their own order, and the buffer of the rows in flight."""

    operands: Filter
    x_norms: torch.Tensor  # [N] float64, for cosine and unit spaces
    y_norms: torch.Tensor  # [M] float64
    anchor_class: torch.Tensor  # [Np] int32
    column_class: torch.Tensor  # [Mp] int32
    anchor_bits: torch.Tensor  # [Np, W] int64
    column_bits: torch.Tensor  # [Mp, W] int64
    rows: torch.Tensor  # [R, Mp] float32
    anchors: int

    @classmethod
    def of(cls, rows: Rows, labels: Labels, unit: bool = False) -> Values:
        """unit: values of the squared distance of normalised rows, whatever the metric."""
        metric = "cosine" if unit else rows.metric
        norms = metric_norms(rows.x, rows.y, metric)
        space = "unit" if unit else "cosine" if metric == "cosine" else "squared"
        nvidia = rows.x.device.type == "cuda" and torch.version.hip is None
        precision = "tf32x3" if nvidia and len(rows.y) >= MANY_COLUMNS else "float32"
        operands = filters.prepare(
            rows.x, rows.y, rows.x_largest, rows.y_largest, space, precision,
            x_norms=norms[0] if metric == "cosine" else None,
            y_norms=norms[1] if metric == "cosine" else None,
        )  # fmt: skip
        n, m = len(operands.anchors.rows), len(operands.columns.rows)
        chunk = max(1, min(blocks(len(rows.x), VALUES.rows), ROW_BYTES // (4 * m * VALUES.rows)))
        buffer = torch.empty(chunk * VALUES.rows, m, dtype=torch.float32, device=rows.x.device)
        if labels.multi:
            classes = (labels.anchor_class, labels.column_class)
            bits = (extend(labels.anchor_bits, n), extend(labels.column_bits, m))
        else:
            anchors = labels.padded_class if labels.own else extend(labels.anchor_class, n, -2)
            classes = (anchors, labels.padded_class)
            bits = (labels.anchor_bits, labels.column_bits)
        return cls(operands, *norms, *classes, *bits, buffer, len(rows.x))

    def chunks(self, labels: Labels) -> Iterator[tuple[int, int]]:
        """(first, count) of the anchors whose rows lie in the buffer, until the next one is asked for."""
        a, b = self.operands.anchors, self.operands.columns
        wide = self.rows.shape[1]
        for first in range(0, self.anchors, len(self.rows)):
            count = min(len(self.rows), self.anchors - first)
            with on_device(self.rows):
                VALUES_KERNEL(
                    (wide // VALUES.columns, blocks(count, VALUES.rows)), a.rows, b.rows, b.half_norms,
                    self.anchor_class, self.column_class, self.anchor_bits, self.column_bits, self.rows,
                    first, wide, self.operands.dims, labels.words, int(labels.own), MULTI=labels.multi,
                    DEPTH=self.operands.depth, INPUT_PRECISION=PRECISIONS[self.operands.precision][1],
                )  # fmt: skip
            yield first, count


def extend(values: torch.Tensor, length: int, filler: int = 0) -> torch.Tensor:
    """`values` with more rows of `filler`."""
    out = values.new_full((length, *values.shape[1:]), filler)
    out[: len(values)] = values
    return out
