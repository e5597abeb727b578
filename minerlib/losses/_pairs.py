"""The loss of triplets in plain torch: where there is no native extension, and on other devices.

Many triplets share a pair of rows, so distances are computed once per distinct (anchor, row) pair and the
triplets only look them up. Distances come from float64 differences of rows, chunk by chunk, never from
|x|^2 + |y|^2 - 2xy: close rows keep their digits, and so do their gradients.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import softplus

#: The metrics, and minus half the inner product.
COMPARISONS = ("sqeuclidean", "euclidean", "cosine", "product")
_CHUNK_ELEMENTS = 1 << 20


def triplet_terms(
    x: Tensor,  # [N, D]
    y: Tensor | None,  # [M, D]
    triplets: tuple[Tensor, Tensor, Tensor],  # anchors, positives, negatives [T]
    margin: float,
    comparison: str,
    reduction: str,
    *,
    soft: bool,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # loss [], gradients of x and y (empty where not asked for)
    other = x if y is None else y
    anchors, positives, negatives = triplets
    rows, columns, slots = distinct_pairs(
        torch.cat((anchors, anchors)), torch.cat((positives, negatives)), len(other)
    )
    distances = pair_distances(x, other, rows, columns, comparison)
    to_positive, to_negative = distances[slots].chunk(2)
    if reduction == "hinge-of-sums":
        total = to_positive.sum() - to_negative.sum() + margin
        loss, slope = total.clamp_min(0), (total > 0).double().expand(len(anchors))
    else:
        score = (to_positive - to_negative) + margin
        terms = softplus(score) if soft else score.clamp_min(0)
        slope = torch.sigmoid(score) if soft else (score > 0).double()
        scale = reduced(reduction, len(terms), torch.count_nonzero(terms))
        loss, slope = terms.sum() * scale, slope * scale
    nothing = x.new_empty(0)
    if not differentiate:
        return loss.to(x.dtype), nothing, nothing.clone()
    weights = torch.zeros_like(distances).index_add_(0, slots, torch.cat((slope, -slope)))
    into_x, into_y = _pull(x, other, rows, columns, distances, weights, comparison)
    if y is None:
        return loss.to(x.dtype), (into_x + into_y).to(x.dtype), nothing
    return loss.to(x.dtype), into_x.to(x.dtype), into_y.to(x.dtype)


def reduced(reduction: str, terms: int | Tensor, above: Tensor) -> Tensor:
    """What the sum of the terms is multiplied by."""
    count = {"mean": torch.as_tensor(terms, device=above.device), "mean-nonzero": above}.get(reduction)
    if count is None:
        return torch.ones((), dtype=torch.float64, device=above.device)
    return 1 / count.clamp_min(1).double()


def pair_distances(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, comparison: str) -> Tensor:  # [P]
    """d(x[row], y[column]) of each pair, in float64."""
    distances = torch.empty(len(rows), dtype=torch.float64, device=x.device)
    differences = comparison in ("sqeuclidean", "euclidean")
    for part in _chunks(len(rows), x.shape[1]):
        a, b = x[rows[part]].double(), y[columns[part]].double()
        distances[part] = (a - b).square().sum(1) if differences else (a * b).sum(1)
    if comparison == "euclidean":
        return distances.sqrt()
    if comparison == "product":
        return distances / -2
    if comparison == "cosine":
        norms = x.double().norm(dim=1)[rows] * y.double().norm(dim=1)[columns]
        return 1 - torch.where(norms > 0, distances / norms, 0)
    return distances


def _pull(
    x: Tensor,  # [N, D]
    y: Tensor,  # [M, D]
    rows: Tensor,  # [P]
    columns: Tensor,  # [P]
    distances: Tensor,  # [P]
    weights: Tensor,  # [P] of the distances
    comparison: str,
) -> tuple[Tensor, Tensor]:  # float64 gradients of x and y
    into_x, into_y = torch.zeros_like(x, dtype=torch.float64), torch.zeros_like(y, dtype=torch.float64)
    if comparison == "cosine":  # dd/dx = c x / |x|^2 - y / (|x| |y|)
        norm_x, norm_y = x.double().norm(dim=1), y.double().norm(dim=1)
        norms = norm_x[rows] * norm_y[columns]
        turn = weights * (1 - distances)
        weights = torch.where(norms > 0, weights / norms, 0)
        for into, of, norm, index in ((into_x, x, norm_x, rows), (into_y, y, norm_y, columns)):
            along = torch.zeros_like(norm).index_add_(0, index, turn)
            into += torch.where(norm > 0, along / norm.square(), 0)[:, None] * of
    elif comparison == "product":
        weights = weights / 2
    elif comparison == "euclidean":
        weights = torch.where(distances > 0, weights / distances, 0)
    else:
        weights = 2 * weights
    differences = comparison in ("sqeuclidean", "euclidean")
    for part in _chunks(len(rows), x.shape[1]):
        a, b = x[rows[part]].double(), y[columns[part]].double()
        scale = weights[part, None]
        if differences:
            pull = (a - b) * scale
            into_x.index_add_(0, rows[part], pull)
            into_y.index_add_(0, columns[part], pull, alpha=-1)
        else:
            into_x.index_add_(0, rows[part], b * scale, alpha=-1)
            into_y.index_add_(0, columns[part], a * scale, alpha=-1)
    return into_x, into_y


def _chunks(pairs: int, dimensions: int) -> Iterator[slice]:
    step = max(1, _CHUNK_ELEMENTS // max(1, dimensions))
    return (slice(start, start + step) for start in range(0, pairs, step))


def distinct_pairs(
    rows: Tensor,  # [P]
    columns: Tensor,  # [P]
    width: int,
) -> tuple[
    Tensor, Tensor, Tensor
]:  # distinct rows [U], distinct columns [U], slot of each pair among them [P]
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
