"""The approximate half of certified selection: operands for the tensor cores with a bound on their error.

Rows are shifted and scaled to a_i and b_j in float64 and packed in float16 or float32. With h = |row|^2 /
2,

    v(i, j) = h_j - a_i . b_j,      selection value = to_selection * (v + h_i +- (e_i + e_j))

where each row carries its own e = relative * h + spread * sqrt(2 h) + absolute. Derivation, u = 2^-24, by
|a||b| <= h_i + h_j:
  rounding to float16 (float32) moves a value by 2^-11 (2^-24) of it, or by 2^-25 where float16 is subnormal:
      |a'b' - ab| <= 2^-10 |a||b| + 2^-25 sqrt(D) (|a| + |b|) + D 2^-50;
  a chain of n multiply-adds in float32 errs by n u |a||b|; tensor cores align the products of one instruction
      and cut them off, at worst a unit of the last place of the largest for each, taken here as 4 u each;
  tf32x3 drops the product of the two lower halves: 2^-19 |a||b|;
  rounding h_j, the subtraction and what the kernels add to compare: 16 u (h_i + h_j);
  the canonical sum itself errs by (D/8 + 6) 2^-53 of a value of at most 2 (h_i + h_j), normalising a row by
      (D + 64) 2^-53 of its length.
The shift (the mean of up to 256 rows) keeps h small where distances are small against the distance from the
origin. The scale is a power of two that brings the largest value to 2^10..2^11, so a float16 row keeps its
precision down to 2^-24 of the largest row. Where values are so small that float64 itself underflows, e is
so large that every answer is left open, and canonical rows decide.

Columns that must not be chosen (padding, rows that are not finite) hold near = +inf, far = -inf, h = NaN.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tritonkernels.canonical import norms, to_float64
from tritonkernels.launching import (
    ALL_REGISTERS,
    KINDS,
    Kernel,
    always,
    blocks,
    choices,
    on_device,
    padded,
)

#: Rows hold values up to here, so that float64 holds their squares (docs/specification.md, section 1).
LARGEST_VALUE = tl.constexpr(1e150)

#: An error that leaves every answer open, and is finite so that no difference of it is NaN.
OPEN = tl.constexpr(1e30)

#: What a tile can be multiplied in: the packed type and Triton's `input_precision`.
PRECISIONS = {"float16": (torch.float16, "ieee"), "float32": (torch.float32, "ieee"),
              "tf32x3": (torch.float32, "tf32x3")}  # fmt: skip

#: Of the parameters, float64 [4].
SCALE, CENTERED, USABLE, TO_SELECTION = (tl.constexpr(place) for place in range(4))

SQUARED, DIRECTIONS, UNIT = (tl.constexpr(place) for place in range(3))
SPACES = {"squared": SQUARED, "cosine": DIRECTIONS, "unit": UNIT}


# ------------------------------------------------------------------ which rows are finite


@triton.jit
def inspect_kernel(
    x,  # [N, D]
    largest,  # [N] float64
    rows,
    dims,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """The largest magnitude of each row; -1 where one is NaN, infinite or beyond LARGEST_VALUE."""
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = i < rows
    most = tl.full([ROWS, DEPTH], 0.0, tl.float64)
    bad = tl.full([ROWS, DEPTH], 0, tl.int32)
    for first in range(0, dims, DEPTH):
        k = first + tl.arange(0, DEPTH)
        mask = live[:, None] & (k < dims)[None, :]
        value = tl.abs(to_float64(tl.load(x + i[:, None] * dims + k[None, :], mask=mask, other=0.0)))
        fine = value <= LARGEST_VALUE  # false for NaN
        bad += tl.where(fine, 0, 1)
        most = tl.where(fine & (value > most), value, most)
    found = tl.where(tl.sum(bad, axis=1) > 0, -1.0, tl.max(most, axis=1))
    tl.store(largest + i, found, mask=live)


@dataclass(frozen=True)
class RowsConfig:
    """Rows and values a step of the kernels that read every row once."""

    rows: int = 16
    depth: int = 64
    num_warps: int = 4


ROWS_CONFIG = RowsConfig()
_ROWS_OPTIONS = always(num_warps=ROWS_CONFIG.num_warps, **ALL_REGISTERS)
_ROWS_CONSTANTS = always(ROWS=ROWS_CONFIG.rows, DEPTH=ROWS_CONFIG.depth)
INSPECT = Kernel(
    inspect_kernel, {"x": "*kind", "largest": "*fp64"}, choices(kind=KINDS), _ROWS_OPTIONS, _ROWS_CONSTANTS
)


def inspect(
    x: torch.Tensor,  # [N, D], contiguous
) -> torch.Tensor:  # [N] float64
    """The largest magnitude of each row; -1 for one that takes no part: NaN, or too large to square."""
    largest = torch.empty(len(x), dtype=torch.float64, device=x.device)
    if len(x):
        with on_device(x):
            INSPECT((blocks(len(x), ROWS_CONFIG.rows),), x, largest, len(x), x.shape[1])
    return largest


# ------------------------------------------------------------------ shift and scale


@triton.jit
def center_kernel(
    y,  # [M, D]
    y_largest,  # [M] float64
    y_norms,  # [M] float64, read where `normalise`
    parameters,  # [4] float64
    center,  # [D] float64
    rows,
    dims,
    sample,
    normalise,  # 1 in a space of directions
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """The mean of `sample` transformed rows spread over all of them; zero where the space is not shifted."""
    k = tl.program_id(0).to(tl.int64) * DEPTH + tl.arange(0, DEPTH)
    total = tl.full([ROWS, DEPTH], 0.0, tl.float64)
    for first in range(0, sample, ROWS):
        s = (first + tl.arange(0, ROWS)).to(tl.int64)
        j = s * rows // sample
        live = s < sample
        live = live & (tl.load(y_largest + j, mask=live, other=-1.0) >= 0)
        m = _multiplier(parameters, y_norms, j, live, normalise)
        mask = live[:, None] & (k < dims)[None, :]
        total += to_float64(tl.load(y + j[:, None] * dims + k[None, :], mask=mask, other=0.0)) * m[:, None]
    mean = tl.sum(total, axis=0) / sample * tl.load(parameters + CENTERED)
    tl.store(center + k, mean, mask=k < dims)


@triton.jit
def _multiplier(parameters, norms, i, live, normalise):
    """What each row is multiplied with: a power of two, over its length in a space of directions."""
    m = tl.where(live, tl.load(parameters + SCALE), 0.0)
    if normalise != 0:
        length = tl.load(norms + i, mask=live, other=1.0)
        m = tl.where(length > 0, m / tl.where(length > 0, length, 1.0), 0.0)
    return m


# ------------------------------------------------------------------ packing


@triton.jit
def pack_kernel(
    x,  # [N, D]
    x_largest,  # [N] float64
    x_norms,  # [N] float64, read where `normalise`
    order,  # [N] int64: packed row r is row order[r], where `ordered`
    parameters,  # [4] float64
    center,  # [D] float64
    packed,  # [Np, Dp]
    half_norms,  # [Np] float64
    errors,  # [Np] float32
    near,  # [Np] float32: a lower bound of v + a.b, that of the row's own error
    far,  # [Np] float32: an upper bound
    relative,  # [3] float64: relative, spread and absolute
    rows,
    dims,
    packed_dims,
    normalise,
    fixed,  # 1: rows of length one (or zero), where a space that cannot be shifted takes h = 1/2
    ordered,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = r < rows
    i = r
    if ordered != 0:
        i = tl.load(order + r, mask=live, other=0)
    live = live & (tl.load(x_largest + i, mask=live, other=-1.0) >= 0)
    m = _multiplier(parameters, x_norms, i, live, normalise)
    squares = tl.full([ROWS, DEPTH], 0.0, tl.float64)
    for first in range(0, packed_dims, DEPTH):
        k = first + tl.arange(0, DEPTH)
        mask = live[:, None] & (k < dims)[None, :]
        value = to_float64(tl.load(x + i[:, None] * dims + k[None, :], mask=mask, other=0.0)) * m[:, None]
        value -= tl.load(center + k, mask=k < dims, other=0.0)[None, :]
        value = tl.where(mask, value, 0.0)
        squares += value * value
        target = packed + r[:, None] * packed_dims + k[None, :]
        value = value.to(tl.float32).to(packed.dtype.element_ty)
        tl.store(target, value, mask=(k < packed_dims)[None, :])
    half = tl.sum(squares, axis=1) * 0.5
    if fixed != 0:
        scale = tl.load(parameters + SCALE)
        half = tl.where(tl.load(parameters + CENTERED) > 0, half, 0.5 * scale * scale)
    error = tl.load(relative) * half + tl.load(relative + 1) * tl.sqrt(2.0 * half) + tl.load(relative + 2)
    error = tl.where(tl.load(parameters + USABLE) > 0, error, OPEN).to(tl.float32)
    low, high = (half - error).to(tl.float32), (half + error).to(tl.float32)
    tl.store(half_norms + r, tl.where(live, half, float("nan")))
    tl.store(errors + r, tl.where(live, error, 0.0))
    tl.store(near + r, tl.where(live, low, float("inf")))
    tl.store(far + r, tl.where(live, high, float("-inf")))


#: The mean is a chain of steps in few programs: long steps, and few of them.
CENTER_CONFIG = RowsConfig(rows=64, depth=32, num_warps=8)
CENTER = Kernel(
    center_kernel, {"y": "*kind", **dict.fromkeys(("y_largest", "y_norms", "parameters", "center"), "*fp64")},
    choices(kind=KINDS), always(num_warps=CENTER_CONFIG.num_warps),
    always(ROWS=CENTER_CONFIG.rows, DEPTH=CENTER_CONFIG.depth),
)  # fmt: skip
_DOUBLES = ("x_largest", "x_norms", "parameters", "center", "half_norms", "relative")
PACK = Kernel(
    pack_kernel,
    {"x": "*kind", "packed": "*operand", "order": "*i64", **dict.fromkeys(_DOUBLES, "*fp64"),
     **dict.fromkeys(("errors", "near", "far"), "*fp32")},
    choices(kind=KINDS, operand=("fp16", "fp32")), _ROWS_OPTIONS, _ROWS_CONSTANTS,
    divisible=("packed", "half_norms", "errors", "near", "far", "packed_dims"),
)  # fmt: skip


@dataclass(frozen=True)
class Packed:
    """Rows as an operand."""

    rows: torch.Tensor  # [Np, Dp] float16 or float32
    half_norms: torch.Tensor  # [Np] float64, NaN for rows that take no part
    errors: torch.Tensor  # [Np] float32
    near: torch.Tensor  # [Np] float32
    far: torch.Tensor  # [Np] float32


@dataclass(frozen=True)
class Filter:
    """Anchors and columns as operands; one object where both are the same rows in the same order."""

    anchors: Packed
    columns: Packed
    precision: str
    depth: int  # values a step of a tile
    parameters: torch.Tensor  # [4] float64: scale, whether shifted, whether usable, to_selection

    @property
    def dims(self) -> int:
        """The padded dimension, a multiple of `depth`."""
        return self.anchors.rows.shape[1]


def depth_of(dims: int, precision: str) -> int:
    """Values a step: the whole row where it is short, so that a tile of anchors is loaded once."""
    if precision == "float16":
        return 128 if 64 < dims <= 128 else 64
    return 32 if dims > 16 else 16


def bounds(dims: int, precision: str, normalise: bool) -> tuple[float, float, float]:
    """relative, spread and absolute of a row's error, in the scaled space."""
    u, depth = 2.0**-24, depth_of(dims, precision)
    padded_dims = blocks(dims, depth) * depth
    steps = padded_dims // depth
    if precision == "float16":
        relative, spread = 2.0**-10 * 1.01 + 4 * padded_dims * u, 2.0**-25 * math.sqrt(dims) * 1.01
    elif precision == "tf32x3":
        relative, spread = 2.0**-19 + (12 * depth + steps) * u, 0.0
    else:
        relative, spread = (depth + steps + 4) * u, 0.0
    relative = (relative + 16 * u) * 1.02 + (dims / 4 + 16) * 2.0**-53
    absolute = dims * 2.0**-49 + ((dims + 64) * 2.0**-30 if normalise else 0.0)
    return relative, spread, absolute


@triton.jit
def scale_kernel(
    x_facts,  # [N] float64: each row's largest magnitude, or its length in a space of directions
    y_facts,  # [M] float64
    parameters,  # [4] float64
    limits,  # [3] float64: relative, spread and absolute
    x_rows,
    y_rows,
    relative_bits: tl.int64,  # a float64's, as Triton passes a Python float as float32
    spread_bits: tl.int64,
    absolute_bits: tl.int64,
    space,  # SQUARED, DIRECTIONS or UNIT
    BLOCK: tl.constexpr,
):
    """Shift, scale and usability, in one program.

    A power of two brings the largest value to 2^10..2^11; unusable below 2^-400. Directions are of length one
    already. A zero row's cosine distance is 1 by definition, wherever the others lie, so with zero rows that
    space is not shifted; a row that float64 all but loses is unusable.
    """
    lane = tl.arange(0, BLOCK)
    most, least = tl.full([BLOCK], 0.0, tl.float64), tl.full([BLOCK], float("inf"), tl.float64)
    zeros = tl.full([BLOCK], 0, tl.int32)
    for side in tl.static_range(2):
        facts, rows = x_facts, x_rows
        if side == 1:
            facts, rows = y_facts, y_rows
        for first in range(0, rows, BLOCK):
            fact = tl.load(facts + first + lane, mask=first + lane < rows, other=-1.0)
            most = tl.where(fact > most, fact, most)
            least = tl.where((fact > 0) & (fact < least), fact, least)
            zeros += tl.where(fact == 0, 1, 0)
    one = tl.arange(0, 1)
    squared = space == SQUARED
    largest, shortest = tl.max(most, axis=0, keep_dims=True), tl.min(least, axis=0, keep_dims=True)
    exponent = ((largest.to(tl.int64, bitcast=True) >> 52) & 0x7FF) - 1022
    exponent = tl.minimum(tl.maximum(tl.where(largest > 0, exponent, 0), -400), 500)
    exponent = tl.where(squared, exponent, 0)
    usable = tl.where(squared, (largest <= 0) | (largest >= 2.0**-400), ~(shortest < 2.0**-450))
    centered = (space != DIRECTIONS) | (tl.sum(zeros, axis=0, keep_dims=True) == 0)
    scale = _power_of_two(11 - exponent)
    to_selection = _power_of_two(2 * exponent - tl.where(space == DIRECTIONS, 22, 21))
    tl.store(parameters + SCALE + one, scale)
    tl.store(parameters + CENTERED + one, tl.where(centered, 1.0, 0.0))
    tl.store(parameters + USABLE + one, tl.where(usable, 1.0, 0.0))
    tl.store(parameters + TO_SELECTION + one, to_selection)
    tl.store(limits + one, (relative_bits + one.to(tl.int64)).to(tl.float64, bitcast=True))
    tl.store(limits + 1 + one, (spread_bits + one.to(tl.int64)).to(tl.float64, bitcast=True))
    tl.store(limits + 2 + one, (absolute_bits + one.to(tl.int64)).to(tl.float64, bitcast=True))


@triton.jit
def _power_of_two(exponent):
    """Exact, of a normal float64."""
    return ((exponent.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)


@dataclass(frozen=True)
class ScaleConfig:
    """Rows a step of the one program."""

    block: int = 2048
    num_warps: int = 8


SCALE_CONFIG = ScaleConfig()
SCALING = Kernel(
    scale_kernel,
    {**dict.fromkeys(("x_facts", "y_facts", "parameters", "limits"), "*fp64"),
     **dict.fromkeys(("relative_bits", "spread_bits", "absolute_bits"), "i64")},
    [{}], always(num_warps=SCALE_CONFIG.num_warps), always(BLOCK=SCALE_CONFIG.block),
)  # fmt: skip


def _scale(
    x_facts: torch.Tensor,  # [N] float64
    y_facts: torch.Tensor,  # [M] float64; may be x_facts itself
    space: str,
    limits: tuple[float, float, float],
) -> tuple[torch.Tensor, torch.Tensor]:  # parameters [4], limits [3]
    numbers = torch.empty(7, dtype=torch.float64, device=y_facts.device)
    with on_device(y_facts):
        SCALING(
            (1,), x_facts, y_facts, numbers[:4], numbers[4:], 0 if x_facts is y_facts else len(x_facts),
            len(y_facts), *struct.unpack("3q", struct.pack("3d", *limits)), SPACES[space].value,
        )  # fmt: skip
    return numbers[:4], numbers[4:]


def prepare(
    x: torch.Tensor,  # [N, D], contiguous
    y: torch.Tensor,  # [M, D], contiguous; may be x itself
    x_largest: torch.Tensor,  # [N] float64, of `inspect`
    y_largest: torch.Tensor,  # [M] float64
    space: str,  # "squared", "cosine", or "unit": squared distances of normalised rows
    precision: str,  # of PRECISIONS
    x_order: torch.Tensor | None = None,  # [N] int64: the order in which anchors are packed
    y_order: torch.Tensor | None = None,  # [M] int64
    x_norms: torch.Tensor | None = None,  # [N] float64, canonical lengths where they are known
    y_norms: torch.Tensor | None = None,  # [M] float64
) -> Filter:
    """Pack both sides. Nothing is read back: shift, scale and usability stay on the device."""
    normalise = space != "squared"
    device, dims = x.device, x.shape[1]
    if normalise:
        y_norms = norms(y) if y_norms is None else y_norms
        x_norms = (y_norms if y is x else norms(x)) if x_norms is None else x_norms
        facts = (x_norms, y_norms)
    else:
        facts = (x_largest, y_largest)
        x_norms = y_norms = y_largest  # not read
    parameters, limits = _scale(*facts, space, bounds(dims, precision, normalise))
    center = torch.empty(dims, dtype=torch.float64, device=device)
    with on_device(x):
        CENTER(
            (blocks(dims, CENTER_CONFIG.depth),), y, y_largest, y_norms, parameters, center, len(y), dims,
            min(len(y), 256), int(normalise),
        )  # fmt: skip
    space_arguments = (parameters, center, limits, space, precision)
    columns = _pack(y, y_largest, y_norms, y_order, *space_arguments)
    same = y is x and y_order is x_order
    anchors = columns if same else _pack(x, x_largest, x_norms, x_order, *space_arguments)
    return Filter(anchors, columns, precision, depth_of(dims, precision), parameters)


def _pack(
    x: torch.Tensor,  # [N, D]
    x_largest: torch.Tensor,
    x_norms: torch.Tensor,
    order: torch.Tensor | None,
    parameters: torch.Tensor,
    center: torch.Tensor,
    limits: torch.Tensor,
    space: str,
    precision: str,
) -> Packed:
    rows, dims, depth = padded(len(x)), x.shape[1], depth_of(x.shape[1], precision)
    wide = blocks(dims, depth) * depth
    packed = torch.empty(rows, wide, dtype=PRECISIONS[precision][0], device=x.device)
    half_norms = torch.empty(rows, dtype=torch.float64, device=x.device)
    errors, near, far = torch.empty(3, rows, dtype=torch.float32, device=x.device)
    unread = x_largest.view(torch.int64)
    with on_device(x):
        PACK(
            (blocks(rows, ROWS_CONFIG.rows),), x, x_largest, x_norms, unread if order is None else order,
            parameters, center, packed, half_norms, errors, near, far, limits, len(x), dims, wide,
            int(space != "squared"), int(space == "cosine"), int(order is not None),
        )  # fmt: skip
    return Packed(packed, half_norms, errors, near, far)


# ------------------------------------------------------------------ tiles


@triton.jit
def load_anchors(a, row, dims, k, ROWS: tl.constexpr, DEPTH: tl.constexpr):  # [ROWS, DEPTH]
    """One step of a tile of anchors; the rows and values are padded, so no mask."""
    rows = (row + tl.arange(0, ROWS)).to(tl.int64)
    return tl.load(a + rows[:, None] * dims + (k + tl.arange(0, DEPTH))[None, :])


@triton.jit
def load_columns(b, column, dims, k, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):  # [DEPTH, COLUMNS]
    """One step of a tile of columns, transposed."""
    columns = (column + tl.arange(0, COLUMNS)).to(tl.int64)
    return tl.load(b + columns[None, :] * dims + (k + tl.arange(0, DEPTH))[:, None])


@triton.jit
def tile_dots(
    a,  # [Np, Dp]
    b,  # [Mp, Dp]
    row,
    column,
    dims,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):  # [ROWS, COLUMNS] float32
    """a . b of a tile. float32 operands are summed in steps, whose errors do not add up along the row."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in range(0, dims, DEPTH):
        left = load_anchors(a, row, dims, k, ROWS, DEPTH)
        right = load_columns(b, column, dims, k, COLUMNS, DEPTH)
        if a.dtype.element_ty == tl.float16:
            total = tl.dot(left, right, total, input_precision=INPUT_PRECISION)
        else:
            total += tl.dot(left, right, input_precision=INPUT_PRECISION)
    return total
