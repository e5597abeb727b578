"""Losses over mined triplets, with gradients, in memory that does not grow with triplets times dimensions.

Many triplets share a pair of rows, so distances are computed once per distinct (anchor, row) pair and the
triplets only look them up. Distances come from differences of rows, chunk by chunk, never from |x|^2 +
|y|^2 - 2xy: close rows keep their digits, and so do their gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minerlib import inputs
from minerlib.inputs import METRICS
from minerlib.results import PaddedTriplets, Triplets

REDUCTIONS = ("mean", "sum", "mean-nonzero", "hinge-of-sums")
_CHUNK_ELEMENTS = 1 << 20


def triplet_margin(
    embeddings: Tensor,  # [N, D]
    triplets: Triplets | PaddedTriplets | Sequence[Any],  # anchors [T], positives [T], negatives [T]
    margin: float = 0.2,
    metric: str = "sqeuclidean",
    reduction: str = "mean",
    *,
    reference: Tensor | None = None,  # [M, D]
) -> Tensor:  # scalar
    """The triplet hinge max((d(a,p) - d(a,n)) + margin, 0), reduced to one number, with gradients.

    `triplets` is what `minerlib.mine` returns: row numbers of anchors in `embeddings`, of positives and
    negatives in `reference` (in `embeddings` when there is none). Of padded triplets only the valid ones
    count. Reductions:

    - `mean`: over all triplets;
    - `sum`: over all triplets;
    - `mean-nonzero`: over the triplets whose hinge is above zero;
    - `hinge-of-sums`: one hinge for the batch, max(sum d(a,p) - sum d(a,n) + margin, 0), as equations 4-7
      of JTANet have it. Semi-hard triplets all have d(a,n) > d(a,p), so more than a few of them give zero.

    No triplets give a loss of zero with zero gradients, under every reduction. Euclidean distances have
    gradient zero between equal rows; cosine distances of zero vectors are 1 with gradient zero. Half-
    precision embeddings are computed in float32, and so is their loss; values that are not finite are
    passed on, as a gradient scaler expects. The gradient is differentiable once.

    Raises `TypeError` or `ValueError` that names the argument. Peak memory beyond the gradients: O(T) plus
    chunks of 4 MiB in float32; with T near N*M or above, O(N*M). Source: FaceNet; JTANet, section 2.1.2.

    >>> x = torch.tensor([[0.0], [1.0], [2.0]], requires_grad=True)
    >>> triplet_margin(x, (torch.tensor([0]), torch.tensor([2]), torch.tensor([1])), margin=0.5).item()
    3.5
    """
    other = embeddings if reference is None else reference
    _check_embeddings(embeddings, reference)
    inputs.one_of("metric", metric, METRICS)
    inputs.one_of("reduction", reduction, REDUCTIONS)
    margin = inputs.finite_non_negative("margin", margin)
    anchors, positives, negatives = _checked_triplets(triplets, embeddings, other)

    if embeddings.dtype in (torch.float16, torch.bfloat16):
        embeddings, other = embeddings.float(), other.float()
    rows, columns, slots = _distinct_pairs(
        torch.cat((anchors, anchors)), torch.cat((positives, negatives)), other
    )
    distances = _pair_distances(embeddings, other, rows, columns, metric)
    # index_select, whose gradient adds up in order; that of distances[slots] is a race between threads
    to_positive, to_negative = distances.index_select(0, slots).chunk(2)
    if reduction == "hinge-of-sums":
        if not anchors.numel():
            return to_positive.sum()
        return (to_positive.sum() - to_negative.sum() + margin).clamp_min(0)
    hinge = (to_positive - to_negative + margin).clamp_min(0)
    if reduction == "mean":
        return hinge.sum() / max(1, hinge.numel())
    if reduction == "mean-nonzero":
        return hinge.sum() / torch.count_nonzero(hinge).clamp_min(1)
    return hinge.sum()


def _pair_distances(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
    rows: Tensor,  # [P] into x
    columns: Tensor,  # [P] into y
    metric: str,
) -> Tensor:  # [P]
    if metric != "cosine":
        distances: Tensor = _PairDistance.apply(x, y, rows, columns, metric == "euclidean")
        return distances
    # On unit vectors 1 - cos = |x - y|^2 / 2, which unlike 1 - cos keeps the digits of small angles.
    (unit_x, zero_x), (unit_y, zero_y) = _unit_rows(x), _unit_rows(y)
    halves = _PairDistance.apply(unit_x, unit_y, rows, columns, False) / 2
    return torch.where(zero_x[rows] | zero_y[columns], torch.ones_like(halves), halves)


def _unit_rows(
    x: Tensor,  # [N, D]
) -> tuple[Tensor, Tensor]:  # unit rows [N, D] (zero rows stay zero), which rows are zero [N]
    if not x.shape[1]:
        return x, torch.ones(len(x), dtype=torch.bool, device=x.device)
    largest = (
        x.detach().abs().amax(1, keepdim=True)
    )  # scaled by it first, a norm neither overflows nor vanishes
    zero = largest == 0
    scaled = x / largest.masked_fill(zero, 1)
    norm = scaled.square().sum(1, keepdim=True).masked_fill(zero, 1).sqrt()
    return scaled / norm, zero.squeeze(1)


class _PairDistance(torch.autograd.Function):
    """d = |x[row] - y[column]|^2, or its root, per pair; differences live in chunks only, both ways."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [N, D]
        y: Tensor,  # [M, D]
        rows: Tensor,  # [P]
        columns: Tensor,  # [P]
        root: bool,
    ) -> Tensor:  # [P]
        distances = x.new_empty(len(rows))
        for part in _chunks(len(rows), x.shape[1]):
            distances[part] = (x[rows[part]] - y[columns[part]]).square().sum(1)
        if root:
            distances = distances.sqrt()
        ctx.save_for_backward(x, y, rows, columns, distances)
        ctx.root = root
        return distances

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        gradient: Tensor,  # [P]
    ) -> tuple[Tensor, Tensor, None, None, None]:
        x, y, rows, columns, distances = ctx.saved_tensors
        # d|x-y|^2 = 2 (x-y) and d|x-y| = (x-y) / |x-y|, taken as zero where the rows are equal
        scale = torch.where(distances > 0, gradient / distances, 0) if ctx.root else 2 * gradient
        into_x, into_y = torch.zeros_like(x), torch.zeros_like(y)
        for part in _chunks(len(rows), x.shape[1]):
            pull = (x[rows[part]] - y[columns[part]]) * scale[part, None]
            into_x.index_add_(0, rows[part], pull)
            into_y.index_add_(0, columns[part], pull, alpha=-1)
        return into_x, into_y, None, None, None


def _chunks(pairs: int, dimensions: int) -> Iterator[slice]:
    step = max(1, _CHUNK_ELEMENTS // max(1, dimensions))
    return (slice(start, start + step) for start in range(0, pairs, step))


def _distinct_pairs(
    rows: Tensor,  # [P]
    columns: Tensor,  # [P]
    y: Tensor,  # [M, D]
) -> tuple[
    Tensor, Tensor, Tensor
]:  # distinct rows [U], distinct columns [U], slot of each pair among them [P]
    width = max(1, len(y))
    keys = rows * width + columns
    grid = (int(rows.max()) + 1) * width if len(rows) else 0
    if grid <= 4 * len(keys):  # so many pairs that marking a grid is cheaper than sorting them
        marked = torch.zeros(grid, dtype=torch.bool, device=keys.device)
        marked[keys] = True
        distinct = marked.nonzero().squeeze(1)
        slots = (marked.cumsum(0) - 1)[keys]
    else:
        distinct, slots = torch.unique(keys, return_inverse=True)
    return distinct // width, distinct % width, slots


def _check_embeddings(embeddings: Tensor, reference: Tensor | None) -> None:
    for name, value in (("embeddings", embeddings), ("reference", reference)):
        if name == "reference" and value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a torch tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating type, got {value.dtype}")
        if value.ndim != 2:
            raise ValueError(f"{name}: expected shape [rows, dimensions], got {list(value.shape)}")
    if reference is None:
        return
    if reference.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"reference: expected {embeddings.shape[1]} dimensions like embeddings, got {reference.shape[1]}"
        )
    if reference.dtype != embeddings.dtype:
        raise TypeError(f"reference: expected {embeddings.dtype} like embeddings, got {reference.dtype}")
    inputs.same_device(embeddings=embeddings, reference=reference)


def _checked_triplets(
    triplets: Any, embeddings: Tensor, other: Tensor
) -> tuple[Tensor, Tensor, Tensor]:  # three int64 [T] on the embeddings' device
    valid = None
    if isinstance(triplets, PaddedTriplets):
        valid = torch.as_tensor(triplets.valid, device=embeddings.device)
        triplets = triplets[:3]
    if isinstance(triplets, Tensor) or not isinstance(triplets, Sequence) or len(triplets) != 3:
        raise TypeError(
            "triplets: expected (anchors, positives, negatives), three index vectors of one length"
        )
    anchors = _indices("anchors", triplets[0], embeddings)
    positives = _indices("positives", triplets[1], other)
    negatives = _indices("negatives", triplets[2], other)
    if not len(anchors) == len(positives) == len(negatives):
        lengths = f"{len(anchors)}, {len(positives)} and {len(negatives)}"
        raise ValueError(f"triplets: expected vectors of one length, got {lengths}")
    if valid is None:
        return anchors, positives, negatives
    return anchors[valid], positives[valid], negatives[valid]


def _indices(name: str, values: Any, rows: Tensor) -> Tensor:  # int64 [T]
    vector = torch.as_tensor(values, device=rows.device)
    if vector.ndim != 1:
        raise ValueError(f"triplets: {name}: expected shape [triplets], got {list(vector.shape)}")
    if not vector.numel():
        return vector.long()
    if vector.is_floating_point() or vector.is_complex() or vector.dtype == torch.bool:
        raise TypeError(f"triplets: {name}: expected integers, got {vector.dtype}")
    low, high = int(vector.min()), int(vector.max())
    if low < 0 or high >= len(rows):
        raise ValueError(f"triplets: {name}: expected rows 0 to {len(rows) - 1}, got {low} to {high}")
    return vector.long()
