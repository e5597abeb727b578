"""losses_triplet: the loss of given triplets and its gradient, fused.

    s = (d(a, p) - d(a, n)) + margin;    term = max(s, 0), or log(1 + exp(s)) where `soft`
    loss = the terms' mean, sum, or mean over those above zero;
           hinge of sums: max(sum (d(a, p) - d(a, n)) + margin, 0)
    dloss/drow = scale * sum over the triplets it is in of dterm/ds * (dd(a, p)/drow - dd(a, n)/drow)

x [N, D], y [M, D] float32 or float64; anchors, positives, negatives [T] int64: a triplet with an index out of
range, as padding has, takes no part. d is a metric's distance, or (product) minus half the inner product.
Distances are canonical, in float64, and so are all sums, each in one order: triplets are sorted by anchor, by
positive and by negative, and one program adds up all that a row gets. Nothing is added atomically and nothing
is read back. Where the hinge, a Euclidean distance or, under the cosine, a row is zero, so is the derivative.
Limits: N, M < 2^31. Memory: about 70 bytes a triplet; no [T, D] array.
Source: FaceNet; JTANet eq. 4-7; deep triplet supervised hashing (soft). As csrc/cpu/losses_triplet_impl.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from tritonkernels import losses_rows
from tritonkernels.canonical import metric_norms, pair_sums, to_float64
from tritonkernels.launching import (
    ALL_REGISTERS,
    CANONICAL,
    Kernel,
    always,
    blocks,
    choices,
    float64_on,
    on_device,
)
from tritonkernels.losses_rows import Sums
from tritonkernels.pairwise import WIDE_KINDS

SQEUCLIDEAN, EUCLIDEAN, COSINE, PRODUCT = (tl.constexpr(place) for place in range(4))
COMPARISONS = ("sqeuclidean", "euclidean", "cosine", "product")

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # loss [], gradients of x and y (or empty)


@dataclass(frozen=True)
class TermsConfig:
    """Triplets a program."""

    triplets: int = 64
    num_warps: int = 4


@dataclass(frozen=True)
class PullConfig:
    """Triplets of a row a step, dimensions a program."""

    entries: int = 16
    depth: int = 64
    num_warps: int = 4


TERMS, PULL = TermsConfig(), PullConfig()


@triton.jit
def _distance(x, y, x_norms, y_norms, i, j, live, dims, COMPARISON: tl.constexpr):
    """(distance, what its derivative is multiplied by) of pairs, [P] float64 each.

    dd/dx = slope (x - y); for the cosine and the product, what is along the other row: -slope y.
    """
    value = pair_sums(x, y, i, j, live, dims, COMPARISON >= COSINE)
    slope = tl.full([i.shape[0]], 2.0, tl.float64)
    if COMPARISON == EUCLIDEAN:
        value = tl.sqrt(value)
        slope = tl.where(value > 0, 1.0 / tl.where(value > 0, value, 1.0), 0.0)
    if COMPARISON == PRODUCT:
        value = -0.5 * value
        slope = tl.full([i.shape[0]], 0.5, tl.float64)
    if COMPARISON == COSINE:
        norms = tl.load(x_norms + i, mask=live, other=1.0) * tl.load(y_norms + j, mask=live, other=1.0)
        zero = norms == 0.0
        slope = tl.where(zero, 0.0, 1.0 / tl.where(zero, 1.0, norms))
        value = 1.0 - tl.where(zero, 0.0, value / tl.where(zero, 1.0, norms))
    return value, slope


@triton.jit
def terms_kernel(
    x,  # [N, D]
    y,  # [M, D]
    x_norms,  # [N] float64, for the cosine
    y_norms,  # [M] float64
    anchors,  # [T] int64
    positives,  # [T] int64
    negatives,  # [T] int64
    margin_at,  # [1] float64
    near,  # [T] float64: weight of the rows of (a, p) in the gradient, not yet scaled
    far,  # [T] float64: of (a, n)
    near_turns,  # [T] float64: under the cosine, what turns a row itself: weight times cosine
    far_turns,  # [T] float64
    sums,  # [B] float64
    terms,  # [B] int64
    above,  # [B] int64
    rows,
    columns,
    count: tl.int64,
    dims,
    literal,  # 1: the terms are differences of distances, and one hinge follows over all
    COMPARISON: tl.constexpr,
    SOFT: tl.constexpr,
    TRIPLETS: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64) * TRIPLETS + tl.arange(0, TRIPLETS)
    a = tl.load(anchors + t, mask=t < count, other=-1)
    p = tl.load(positives + t, mask=t < count, other=-1)
    n = tl.load(negatives + t, mask=t < count, other=-1)
    live = (a >= 0) & (a < rows) & (p >= 0) & (p < columns) & (n >= 0) & (n < columns)
    dp, p_slope = _distance(x, y, x_norms, y_norms, a, p, live, dims, COMPARISON)
    dn, n_slope = _distance(x, y, x_norms, y_norms, a, n, live, dims, COMPARISON)
    term, slope = dp - dn, tl.full([TRIPLETS], 1.0, tl.float64)
    if literal == 0:
        s = term + tl.load(margin_at)
        if SOFT:
            e = tl.exp(-tl.abs(s))
            one = 1.0 + e  # log(1 + e) would lose an e that is small
            log = tl.where(one == 1.0, e, tl.log(one) * (e / tl.where(one == 1.0, 1.0, one - 1.0)))
            term = tl.maximum(s, 0.0) + log
            slope = tl.where(s > 0, 1.0, e) / one
        else:
            term, slope = tl.where(s > 0, s, 0.0), tl.where(s > 0, 1.0, 0.0).to(tl.float64)
    term, slope = tl.where(live, term, 0.0), tl.where(live, slope, 0.0)
    tl.store(near + t, slope * p_slope, mask=t < count)
    tl.store(far + t, -slope * n_slope, mask=t < count)
    if COMPARISON == COSINE:
        tl.store(near_turns + t, slope * (1.0 - dp), mask=t < count)
        tl.store(far_turns + t, -slope * (1.0 - dn), mask=t < count)
    part = tl.program_id(0)
    tl.store(sums + part, tl.sum(term, axis=0))
    tl.store(terms + part, tl.sum(live.to(tl.int64), axis=0))
    tl.store(above + part, tl.sum((term > 0).to(tl.int64), axis=0))


# ------------------------------------------------------------------ the gradient


@triton.jit
def _pull(total, along, own, others, indices, order, weights, turns, first, last, k, inside, dims,
          COMPARISON: tl.constexpr, ENTRIES: tl.constexpr):  # fmt: skip
    """Adds what a row gets from the triplets at first .. last of an order, [K]; and its turns, [E]."""
    for start in range(first, last, ENTRIES):
        at = (start + tl.arange(0, ENTRIES)).to(tl.int64)
        t = tl.load(order + at, mask=at < last, other=0)
        weight = tl.load(weights + t, mask=at < last, other=0.0)
        live = weight != 0.0  # triplets that take no part weigh exactly nothing
        j = tl.load(indices + t, mask=live, other=0)
        mask = live[:, None] & inside[None, :]
        other = to_float64(tl.load(others + j[:, None] * dims + k[None, :], mask=mask, other=0.0))
        if COMPARISON < COSINE:
            other = other - own[None, :]
        total -= tl.sum(tl.where(live[:, None], weight[:, None] * other, 0.0), axis=0)
        if COMPARISON == COSINE:
            along += tl.load(turns + t, mask=at < last, other=0.0)
    return total, along


@triton.jit
def pull_kernel(
    rows,  # [N, D]: those that the gradient is of
    others,  # [M, D]: the other rows of their pairs
    norms,  # [N] float64, for the cosine
    anchors,  # [T] int64
    positives,  # [T] int64
    negatives,  # [T] int64
    near,  # [T] float64
    far,  # [T] float64
    near_turns,  # [T] float64
    far_turns,  # [T] float64
    by_anchor,  # [T] int64: triplets in the order of their anchors
    by_positive,  # [T] int64
    by_negative,  # [T] int64
    anchor_starts,  # [N + 1] int64: where each row's triplets start in the order
    positive_starts,
    negative_starts,
    scale,  # [1] float64, 0 where nothing is to be learned
    gradient,  # [N, D] of the rows' type
    dims,
    as_anchor,  # 1: what the rows get as anchors
    as_other,  # 1: what they get as positives and as negatives
    COMPARISON: tl.constexpr,
    ENTRIES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * DEPTH + tl.arange(0, DEPTH)
    inside = k < dims
    own = to_float64(tl.load(rows + i * dims + k, mask=inside, other=0.0))
    total = tl.full([DEPTH], 0.0, tl.float64)
    along = tl.full([ENTRIES], 0.0, tl.float64)
    if as_anchor != 0:
        first, last = tl.load(anchor_starts + i), tl.load(anchor_starts + i + 1)
        total, along = _pull(total, along, own, others, positives, by_anchor, near, near_turns, first, last,
                             k, inside, dims, COMPARISON, ENTRIES)  # fmt: skip
        total, along = _pull(total, along, own, others, negatives, by_anchor, far, far_turns, first, last,
                             k, inside, dims, COMPARISON, ENTRIES)  # fmt: skip
    if as_other != 0:
        first, last = tl.load(positive_starts + i), tl.load(positive_starts + i + 1)
        total, along = _pull(total, along, own, others, anchors, by_positive, near, near_turns, first, last,
                             k, inside, dims, COMPARISON, ENTRIES)  # fmt: skip
        first, last = tl.load(negative_starts + i), tl.load(negative_starts + i + 1)
        total, along = _pull(total, along, own, others, anchors, by_negative, far, far_turns, first, last,
                             k, inside, dims, COMPARISON, ENTRIES)  # fmt: skip
    if COMPARISON == COSINE:  # dd/dx = c x / |x|^2 - y / (|x| |y|)
        length = tl.load(norms + i)
        square = tl.where(length > 0, length * length, 1.0)
        total += tl.where(length > 0, tl.sum(along, axis=0) / square, 0.0) * own
    factor = tl.load(scale)
    total = tl.where(factor > 0, total * factor, 0.0)
    tl.store(gradient + i * dims + k, total.to(gradient.dtype.element_ty), mask=inside)


# ------------------------------------------------------------------ launchers

_INDICES = dict.fromkeys(("anchors", "positives", "negatives"), "*i64")
_WEIGHTS = dict.fromkeys(("near", "far", "near_turns", "far_turns"), "*fp64")


def _options(hip: bool, SOFT: bool, **_: Any) -> dict[str, Any]:
    """Exponentials and logarithms are made of fused multiply-adds."""
    return {"num_warps": TERMS.num_warps, **ALL_REGISTERS, **({} if SOFT else CANONICAL)}


TERMS_KERNEL = Kernel(
    terms_kernel,
    {"x": "*kind", "y": "*kind", **_INDICES, **_WEIGHTS, "terms": "*i64", "above": "*i64", "count": "i64",
     **dict.fromkeys(("x_norms", "y_norms", "margin_at", "sums"), "*fp64")},
    choices(kind=WIDE_KINDS, COMPARISON=range(len(COMPARISONS)), SOFT=(False, True)), _options,
    always(TRIPLETS=TERMS.triplets),
)  # fmt: skip
_ORDERS = ("by_anchor", "by_positive", "by_negative", "anchor_starts", "positive_starts", "negative_starts")
PULL_KERNEL = Kernel(
    pull_kernel,
    {**dict.fromkeys(("rows", "others", "gradient"), "*kind"), **_INDICES, **_WEIGHTS,
     **dict.fromkeys(_ORDERS, "*i64"), "norms": "*fp64", "scale": "*fp64"},
    choices(kind=WIDE_KINDS, COMPARISON=range(len(COMPARISONS))),
    always(num_warps=PULL.num_warps, **ALL_REGISTERS), always(ENTRIES=PULL.entries, DEPTH=PULL.depth),
)  # fmt: skip


def triplet_loss(
    x: torch.Tensor,  # [N, D] float32 or float64
    y: torch.Tensor | None,  # [M, D] of the same type
    triplets: tuple[torch.Tensor, torch.Tensor, torch.Tensor],  # anchors, positives, negatives [T] int64
    margin: float,
    comparison: str,
    reduction: str,
    *,
    soft: bool,
    differentiate: bool,
) -> Parts:
    """The loss and, where asked for, its gradients. Nothing is read back."""
    own, x = y is None, x.contiguous()
    y = x if y is None else y.contiguous()
    triplets = tuple(index.contiguous() for index in triplets)  # type: ignore[assignment]
    nothing = x.new_empty(0)
    count, dims = len(triplets[0]), x.shape[1]
    if count == 0 or dims == 0 or len(x) == 0 or len(y) == 0:
        zeros = torch.zeros_like(x) if differentiate else nothing
        return x.new_zeros(()), zeros, torch.zeros_like(y) if differentiate and not own else nothing.clone()
    norms = metric_norms(x, y, comparison)
    literal = reduction == losses_rows.REDUCTIONS[losses_rows.HINGE_OF_SUMS.value]
    weights = torch.empty(4 if comparison == "cosine" else 2, count, dtype=torch.float64, device=x.device)
    near, far, near_turns, far_turns = (weights[part % len(weights)] for part in range(4))
    parts = Sums.empty(blocks(count, TERMS.triplets), x.device)
    with on_device(x):
        TERMS_KERNEL(
            (len(parts.sums),), x, y, *norms, *triplets, float64_on(x.device, margin), near, far, near_turns,
            far_turns, parts.sums, parts.terms, parts.above, len(x), len(y), count, dims, int(literal),
            COMPARISON=COMPARISONS.index(comparison), SOFT=soft,
        )  # fmt: skip
    usable = losses_rows.finite(x, None if own else y)
    loss, scale = losses_rows.total(parts, usable, margin, reduction, x.dtype)
    if not differentiate:
        return loss, nothing, nothing.clone()
    pull = _Pull(triplets, (near, far, near_turns, far_turns), scale, COMPARISONS.index(comparison))
    if own:
        return loss, pull.gradient(x, x, norms[0], as_anchor=True, as_other=True), nothing
    return (
        loss,
        pull.gradient(x, y, norms[0], as_anchor=True, as_other=False),
        pull.gradient(y, x, norms[1], as_anchor=False, as_other=True),
    )


@dataclass(frozen=True)
class _Pull:
    triplets: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    scale: torch.Tensor  # [1]
    comparison: int

    def gradient(
        self,
        rows: torch.Tensor,  # [N, D]
        others: torch.Tensor,  # [M, D]
        norms: torch.Tensor,  # [N]
        *,
        as_anchor: bool,
        as_other: bool,
    ) -> torch.Tensor:  # [N, D]
        out = torch.empty_like(rows)
        orders, starts = [], []
        for index, wanted in zip(self.triplets, (as_anchor, as_other, as_other), strict=True):
            if not wanted:  # not read
                orders.append(index)
                starts.append(index)
                continue
            ordered, order = torch.sort(index, stable=True)
            orders.append(order)
            starts.append(torch.searchsorted(ordered, torch.arange(len(rows) + 1, device=rows.device)))
        with on_device(rows):
            PULL_KERNEL(
                (len(rows), blocks(rows.shape[1], PULL.depth)), rows, others, norms, *self.triplets,
                *self.weights, *orders, *starts, self.scale, out, rows.shape[1], int(as_anchor),
                int(as_other), COMPARISON=self.comparison,
            )  # fmt: skip
        return out
