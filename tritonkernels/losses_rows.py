"""What the families of losses share: sums over terms, sums of rows under weights, and gradients.

    total:    loss = scale sum_b sums[b],  scale = 1, 1 / sum terms, or 1 / sum above;
              hinge of sums: max(sum + margin, 0)
    collect:  out[o] (+)= sum_t W(o, t) (rows[t] - center);   weights[o] (+)= sum_t W(o, t)
    finish:   gradient[o] = scale (weights[o] (rows[o] - center) - out[o]), or under the cosine distance,
              whose rows are divided by their lengths, the part of -out[o] across the row, over its length

rows [N, D] float32 or float64; W float64, a tile of anchors at a time. Everything is summed in float64 and in
one order, so a call gives the same bits every time: nothing is added atomically. `center` is the first
column: differences of rows do not depend on it, and what is far from the origin keeps its digits.
A batch that is not finite has scale 0 and gradients 0. Limits: N, M < 2^31.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tritonkernels.canonical import to_float64
from tritonkernels.launching import Kernel, always, blocks, choices, float64_on, on_device
from tritonkernels.pairwise import WIDE_KINDS

MEAN, SUM, MEAN_NONZERO, HINGE_OF_SUMS = (tl.constexpr(place) for place in range(4))
REDUCTIONS = ("mean", "sum", "mean-nonzero", "hinge-of-sums")

SQEUCLIDEAN, EUCLIDEAN, COSINE = (tl.constexpr(place) for place in range(3))
METRICS = ("sqeuclidean", "euclidean", "cosine")
INFINITY = tl.constexpr(float("inf"))

#: What the distances of a tile may take, with what sorting them needs, unless one anchor takes more.
TILE_BYTES = 32 << 20

#: Of a batch's labels, for the kernels that ask for an anchor's positives and negatives.
LABEL_TYPES = {**dict.fromkeys(("anchor_class", "column_class"), "*i32"),
               **dict.fromkeys(("anchor_bits", "column_bits"), "*i64")}  # fmt: skip
#: What those kernels make of every anchor.
PART_TYPES = {"sums": "*fp64", "terms": "*i64", "above": "*i64"}


@dataclass(frozen=True)
class WeighConfig:
    """Columns a step of a program, which has an anchor."""

    columns: int = 256
    num_warps: int = 4


@dataclass(frozen=True)
class TotalConfig:
    """Partial sums a step of the one program."""

    block: int = 1024
    num_warps: int = 4


@dataclass(frozen=True)
class CollectConfig:
    """Rows that a program sums for, dimensions of them, rows a step."""

    owners: int = 32
    depth: int = 64
    step: int = 16
    num_warps: int = 4


@dataclass(frozen=True)
class FinishConfig:
    """Rows a program, dimensions a step."""

    rows: int = 16
    depth: int = 64
    num_warps: int = 4


WEIGH, TOTAL, COLLECT, FINISH = WeighConfig(), TotalConfig(), CollectConfig(), FinishConfig()
_DOUBLES = dict.fromkeys(("weights", "sums", "weight_sums", "norms"), "*fp64")
_FORMS = choices(kind=WIDE_KINDS, COSINE=(False, True))


# ------------------------------------------------------------------ the loss


@triton.jit
def total_kernel(
    sums,  # [B] float64
    terms,  # [B] int64: how many terms there are
    above,  # [B] int64: how many are above zero
    usable,  # [1] int32: whether every value of the batch is finite
    margin_at,  # [1] float64, of the hinge of sums
    loss,  # [1] of the rows' type
    scale,  # [1] float64: what the terms' gradients are multiplied by
    count,
    reduction,  # of REDUCTIONS
    BLOCK: tl.constexpr,
):
    sum_lanes = tl.full([BLOCK], 0.0, tl.float64)
    term_lanes = tl.full([BLOCK], 0, tl.int64)
    above_lanes = tl.full([BLOCK], 0, tl.int64)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        live = at < count
        sum_lanes += tl.load(sums + at, mask=live, other=0.0)
        term_lanes += tl.load(terms + at, mask=live, other=0)
        above_lanes += tl.load(above + at, mask=live, other=0)
    one = tl.arange(0, 1)
    total = tl.sum(sum_lanes, axis=0, keep_dims=True)
    number = tl.sum(term_lanes, axis=0, keep_dims=True)
    factor = tl.where(number > 0, 1.0, 0.0).to(tl.float64)
    parts = tl.where(reduction == MEAN, number, tl.sum(above_lanes, axis=0, keep_dims=True))
    parts = tl.where((reduction == MEAN) | (reduction == MEAN_NONZERO), parts, 1)
    factor = factor / tl.maximum(parts, 1).to(tl.float64)
    if reduction == HINGE_OF_SUMS:
        total += tl.load(margin_at + one)
        factor = tl.where(total > 0, factor, 0.0)
    fine = (tl.load(usable + one) != 0) & (factor > 0)
    tl.store(loss + one, tl.where(fine, total * factor, 0.0).to(loss.dtype.element_ty))
    tl.store(scale + one, tl.where(fine, factor, 0.0))


TOTAL_KERNEL = Kernel(
    total_kernel,
    {"loss": "*kind", **dict.fromkeys(("sums", "margin_at", "scale"), "*fp64"), "terms": "*i64",
     "above": "*i64", "usable": "*i32"},
    choices(kind=WIDE_KINDS), always(num_warps=TOTAL.num_warps), always(BLOCK=TOTAL.block),
)  # fmt: skip


@dataclass(frozen=True)
class Sums:
    """What the terms of a loss add up to, in parts."""

    sums: torch.Tensor  # [B] float64
    terms: torch.Tensor  # [B] int64
    above: torch.Tensor  # [B] int64

    @classmethod
    def empty(cls, parts: int, device: torch.device) -> Sums:
        counts = torch.empty(2, parts, dtype=torch.int64, device=device)
        return cls(torch.empty(parts, dtype=torch.float64, device=device), counts[0], counts[1])


def total(
    sums: Sums, usable: torch.Tensor, margin: float, reduction: str, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:  # loss [] of the rows' type, scale [1] float64
    device = sums.sums.device
    loss = torch.empty(1, dtype=dtype, device=device)
    scale = torch.empty(1, dtype=torch.float64, device=device)
    with on_device(loss):
        TOTAL_KERNEL(
            (1,), sums.sums, sums.terms, sums.above, usable, float64_on(device, margin), loss, scale,
            len(sums.sums), REDUCTIONS.index(reduction),
        )  # fmt: skip
    return loss.reshape(()), scale


def finite(x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:  # [1] int32
    """Whether every value is, found on the device and not read back."""
    usable = torch.isfinite(x).all()
    if y is not None:
        usable = usable & torch.isfinite(y).all()
    return usable.reshape(1).int()


# ------------------------------------------------------------------ an anchor's columns


@triton.jit
def sides(
    anchor_class, column_class, anchor_bits, column_bits, i, j, live, words, own, MULTI: tl.constexpr,
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
    live = live & (j != tl.where(own != 0, i, -1))
    return live & same, live & ~same


@triton.jit
def slope_of(d, metric):
    """What derivatives by d are multiplied by: dd/dx = slope (x - y), of unit rows -y."""
    slope = tl.full([d.shape[0]], 1.0, tl.float64) + tl.where(metric == SQEUCLIDEAN, 1.0, 0.0)
    if metric == EUCLIDEAN:
        slope = tl.where(d > 0, 1.0 / tl.where(d > 0, d, 1.0), 0.0)
    return slope


# ------------------------------------------------------------------ rows under weights


@triton.jit
def _rows(rows, norms, center, at, live, k, inside, dims, COSINE: tl.constexpr):  # [R, K] float64
    """Rows less the center, or over their lengths; zero for a zero row and where there is nothing."""
    value = to_float64(
        tl.load(rows + at[:, None] * dims + k[None, :], mask=live[:, None] & inside[None, :], other=0.0)
    )
    if COSINE:
        length = tl.load(norms + at, mask=live, other=0.0)
        value = value * tl.where(length > 0, 1.0 / tl.where(length > 0, length, 1.0), 0.0)[:, None]
    else:
        value = value - to_float64(tl.load(center + k, mask=inside, other=0.0))[None, :]
    return value


@triton.jit
def collect_kernel(
    weights,  # [R, M] float64: rows of the anchors from `first` on
    rows,  # [N or M, D]: those that are summed
    norms,  # [N or M] float64, for the cosine
    center,  # [D]: the first column
    sums,  # [owners, D] float64
    weight_sums,  # [owners] float64
    first,
    anchors,  # R
    columns,  # M
    dims,
    BY_COLUMN: tl.constexpr,  # the owners are columns, and what is there already is added to
    COSINE: tl.constexpr,
    OWNERS: tl.constexpr,
    DEPTH: tl.constexpr,
    STEP: tl.constexpr,
):
    owner = tl.program_id(0).to(tl.int64) * OWNERS + tl.arange(0, OWNERS)
    k = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    inside = k < dims
    owners, others = anchors, columns
    if BY_COLUMN:
        owners, others = columns, anchors
    live = owner < owners
    total = tl.zeros([OWNERS, DEPTH], tl.float64)
    along = tl.zeros([OWNERS], tl.float64)
    for start in range(0, others, STEP):
        other = (start + tl.arange(0, STEP)).to(tl.int64)
        there = other < others
        if BY_COLUMN:
            at = other[None, :] * columns + owner[:, None]
            row = first + other
        else:
            at = owner[:, None] * columns + other[None, :]
            row = other
        weight = tl.load(weights + at, mask=live[:, None] & there[None, :], other=0.0)
        value = _rows(rows, norms, center, row, there, k, inside, dims, COSINE)
        value = tl.where(there[:, None], value, 0.0)
        total += tl.dot(weight, value, out_dtype=tl.float64, input_precision="ieee")
        along += tl.sum(weight, axis=1)
    if not BY_COLUMN:
        owner += first
    out = sums + owner[:, None] * dims + k[None, :]
    mask = live[:, None] & inside[None, :]
    before = tl.load(out, mask=mask, other=0.0)
    tl.store(out, before + total, mask=mask)
    if tl.program_id(1) == 0:
        tl.store(weight_sums + owner, tl.load(weight_sums + owner, mask=live, other=0.0) + along, mask=live)


@triton.jit
def finish_kernel(
    rows,  # [N, D]
    norms,  # [N] float64, for the cosine
    center,  # [D]
    sums,  # [N, D] float64
    weight_sums,  # [N] float64
    scale,  # [1] float64, 0 where nothing is to be learned
    gradient,  # [N, D] of the rows' type
    count,
    dims,
    COSINE: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = i < count
    factor = tl.load(scale)
    along = tl.load(weight_sums + i, mask=live, other=0.0)
    inverse = tl.full([ROWS], 1.0, tl.float64)
    if COSINE:
        length = tl.load(norms + i, mask=live, other=0.0)
        inverse = tl.where(length > 0, 1.0 / tl.where(length > 0, length, 1.0), 0.0)
        along = tl.zeros([ROWS], tl.float64)
        for start in range(0, dims, DEPTH):
            k = start + tl.arange(0, DEPTH)
            value = _rows(rows, norms, center, i, live, k, k < dims, dims, COSINE)
            mask = live[:, None] & (k < dims)[None, :]
            total = tl.load(sums + i[:, None] * dims + k[None, :], mask=mask, other=0.0)
            along += tl.sum(total * value, axis=1)
    for start in range(0, dims, DEPTH):
        k = start + tl.arange(0, DEPTH)
        mask = live[:, None] & (k < dims)[None, :]
        value = _rows(rows, norms, center, i, live, k, k < dims, dims, COSINE)
        at = i[:, None] * dims + k[None, :]
        found = along[:, None] * value - tl.load(sums + at, mask=mask, other=0.0)
        found = tl.where(factor > 0, found * (factor * inverse)[:, None], 0.0)
        tl.store(gradient + at, found.to(gradient.dtype.element_ty), mask=mask)


COLLECTING = Kernel(
    collect_kernel, {"rows": "*kind", "center": "*kind", **_DOUBLES},
    [{**form, "BY_COLUMN": by_column} for form in _FORMS for by_column in (False, True)],
    always(num_warps=COLLECT.num_warps),
    always(OWNERS=COLLECT.owners, DEPTH=COLLECT.depth, STEP=COLLECT.step),
)  # fmt: skip
FINISHING = Kernel(
    finish_kernel,
    {**dict.fromkeys(("rows", "center", "gradient"), "*kind"), "scale": "*fp64",
     **{name: kind for name, kind in _DOUBLES.items() if name != "weights"}},
    _FORMS, always(num_warps=FINISH.num_warps), always(ROWS=FINISH.rows, DEPTH=FINISH.depth),
)  # fmt: skip


@dataclass(frozen=True)
class Collected:
    """Rows of one side with what is summed for each of them."""

    rows: torch.Tensor  # [N, D], contiguous
    norms: torch.Tensor  # [N] float64, or one value that is not read
    center: torch.Tensor  # [D]
    sums: torch.Tensor  # [N, D] float64
    weights: torch.Tensor  # [N] float64
    cosine: bool

    @classmethod
    def of(cls, rows: torch.Tensor, norms: torch.Tensor, center: torch.Tensor, metric: str) -> Collected:
        sums = torch.zeros(rows.shape, dtype=torch.float64, device=rows.device)
        weights = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        return cls(rows, norms, center, sums, weights, metric == "cosine")

    def gradient(self, scale: torch.Tensor) -> torch.Tensor:  # [N, D] of the rows' type
        out = torch.empty_like(self.rows)
        with on_device(out):
            FINISHING(
                (blocks(len(out), FINISH.rows),), self.rows, self.norms, self.center, self.sums, self.weights,
                scale, out, *out.shape, COSINE=self.cosine,
            )  # fmt: skip
        return out


def collect(
    weights: torch.Tensor,  # [R, M] float64, contiguous
    first: int,  # the anchor of the first row
    anchors: Collected,
    columns: Collected,
) -> None:
    """Add what a tile of weights gives to both sides."""
    count, m = weights.shape
    dims = anchors.rows.shape[1]
    for by_column, owners, others, number in ((False, anchors, columns, count), (True, columns, anchors, m)):
        with on_device(weights):
            COLLECTING(
                (blocks(number, COLLECT.owners), blocks(dims, COLLECT.depth)), weights, others.rows,
                others.norms, others.center, owners.sums, owners.weights, first, count, m, dims,
                BY_COLUMN=by_column, COSINE=owners.cosine,
            )  # fmt: skip
