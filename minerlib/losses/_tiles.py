"""Losses over all rows of a batch, a tile of anchors at a time: distances, their weights, gradients.

A tile's distances d [R, M] come from float64 products of centred rows; where |x|^2 + |y|^2 - 2 x.y has lost
digits, from differences of rows. A loss turns them into its terms and their derivatives by d, and two
products turn those into gradients of the rows. So nothing is kept between the passes, and
no tile is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from minerlib.losses import _pairs

_TILE_ELEMENTS = 1 << 17
_CLOSE = 1e-6

# (sum of terms, terms, terms above zero, derivatives by d [R, M])
Weighed = tuple[Tensor, Tensor, Tensor, Tensor]


class Rows:
    """Rows in float64, centred (of unit length for cosine distances), and the gradient they collect."""

    def __init__(self, rows: Tensor, center: Tensor | None) -> None:
        self.given = rows
        wide = rows.double()
        self.lengths: Tensor | None = None
        if center is None:
            self.lengths = wide.norm(dim=1, keepdim=True)
            self.rows = torch.where(self.lengths > 0, wide / self.lengths, 0)
        else:
            self.rows = wide - center
        self.squares = self.rows.square().sum(1)
        self.sums = torch.zeros_like(self.rows)
        self.weights = torch.zeros_like(self.squares)

    def gradient(self, scale: Tensor) -> Tensor:
        """Of the rows as given: weight x - sums, or that part of -sums that turns a unit row."""
        if self.lengths is None:
            found = self.weights[:, None] * self.rows - self.sums
        else:
            across = (self.sums * self.rows).sum(1, keepdim=True) * self.rows - self.sums
            found = torch.where(self.lengths > 0, across / self.lengths, 0)
        return (scale * found).to(self.given.dtype)


def batch_loss(
    x: Tensor,  # [N, D]
    y: Tensor | None,  # [M, D]
    labels: Tensor,  # [N] or [N, C] bool
    y_labels: Tensor | None,  # [M] or [M, C] bool
    kind: str,
    margin: float,
    metric: str,
    reduction: str,
    *,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # loss [], gradients of x and y (empty where not asked for)
    other = x if y is None else y
    center = None if metric == "cosine" else other.double().mean(0)
    ready = Rows(x, center)
    columns = ready if y is None else Rows(other, center)
    step = max(1, _TILE_ELEMENTS // max(len(other), len(x)))
    tiles = [slice(first, first + step) for first in range(0, len(x), step)]
    weigh: Callable[[slice, Tensor], Weighed]
    if kind == "proxies":
        assert y is not None
        weigh = partial(_proxies, labels, _assigned(ready, columns, labels, y_labels, metric, tiles))
    else:
        rules: dict[str, Callable[[Tensor, Tensor, Tensor], Weighed]]
        rules = {"batch_all": partial(_batch_all, margin), "nca": _nca, "easiest": _easiest}
        weigh = partial(_by_labels, rules[kind], labels, y_labels)
    parts = []
    for tile in tiles:
        distances = _distances(ready, columns, tile, metric, own=y is None)
        total, terms, above, weights = weigh(tile, distances)
        parts.append(torch.stack((total, terms.double(), above.double())))
        if differentiate:
            _collect(ready, columns, tile, distances, weights, metric)
    sums = torch.stack(parts).sum(0)
    scale = _pairs.reduced(reduction, sums[1], sums[2])
    loss, nothing = (sums[0] * scale).to(x.dtype), x.new_empty(0)
    if not differentiate:
        return loss, nothing, nothing.clone()
    return loss, ready.gradient(scale), nothing if y is None else columns.gradient(scale)


def _distances(x: Rows, y: Rows, tile: slice, metric: str, *, own: bool) -> Tensor:  # [R, M]
    found = x.rows[tile] @ y.rows.T
    if metric == "cosine":
        return 1 - found
    norms = x.squares[tile, None] + y.squares
    found = norms - 2 * found
    close = found <= _CLOSE * norms
    if own:
        place = torch.arange(len(found), device=found.device)
        close[place, place + tile.start] = False
        found[place, place + tile.start] = 0
    rows, columns = close.nonzero(as_tuple=True)
    if len(rows):
        found[rows, columns] = _pairs.pair_distances(
            x.given, y.given, rows + tile.start, columns, "sqeuclidean"
        )
    return found.sqrt() if metric == "euclidean" else found


def _collect(x: Rows, y: Rows, tile: slice, distances: Tensor, weights: Tensor, metric: str) -> None:
    if metric == "euclidean":
        weights = torch.where(distances > 0, weights / distances, 0)
    elif metric == "sqeuclidean":
        weights = 2 * weights
    x.sums[tile] += weights @ y.rows
    y.sums += weights.T @ x.rows[tile]
    x.weights[tile] += weights.sum(1)
    y.weights += weights.sum(0)


def same_class(labels: Tensor, others: Tensor) -> Tensor:  # [R, M] bool
    """Which rows share a label."""
    if labels.ndim == 1:
        return labels[:, None] == others
    return (labels.float() @ others.float().T) > 0


def _by_labels(
    rule: Callable[[Tensor, Tensor, Tensor], Weighed],
    labels: Tensor,
    y_labels: Tensor | None,
    tile: slice,
    distances: Tensor,  # [R, M]
) -> Weighed:
    """A rule for anchors that have positives and negatives; the others take no part."""
    positive = same_class(labels[tile], labels if y_labels is None else y_labels)
    negative = ~positive
    if y_labels is None:
        place = torch.arange(len(positive), device=positive.device)
        positive[place, place + tile.start] = False
        negative[place, place + tile.start] = False
    usable = positive.any(1, keepdim=True) & negative.any(1, keepdim=True)
    return rule(distances, positive & usable, negative & usable)


def _batch_all(margin: float, distances: Tensor, positive: Tensor, negative: Tensor) -> Weighed:
    """Every triplet's hinge: a negative lies below a sorted threshold d(a, p) + margin, or it does not."""
    farthest = torch.inf
    thresholds = torch.where(positive, distances + margin, -farthest)
    sorted_negatives = torch.where(negative, distances, farthest).sort(1).values
    active = torch.searchsorted(sorted_negatives, thresholds) * positive  # of each positive
    before = torch.where(sorted_negatives < farthest, sorted_negatives, 0).cumsum(1)
    before = torch.cat((torch.zeros_like(before[:, :1]), before), 1).gather(1, active)
    hinges = torch.where(positive, active * torch.where(positive, thresholds, 0) - before, 0)
    ordered = thresholds.sort(1).values
    farther = ordered.shape[1] - torch.searchsorted(ordered, distances, right=True)  # of each negative
    weights = active.double() - torch.where(negative, farther, 0)
    total = (positive.sum(1) * negative.sum(1)).sum()
    return hinges.sum(), total, active.sum(), weights


def _nca(distances: Tensor, positive: Tensor, negative: Tensor) -> Weighed:
    return _log_ratio(distances, positive.double(), negative.double())


def _log_ratio(distances: Tensor, positives: Tensor, negatives: Tensor) -> Weighed:
    """d(a, p) + ln sum_n exp(-d(a, n)), for as many of each column as the two [R, M] say."""
    logits = negatives.log() - distances
    sums = logits.logsumexp(1, keepdim=True)
    usable = sums > -torch.inf
    terms = torch.where((positives > 0) & usable, distances + sums, 0)
    shares = torch.where(usable, (logits - torch.where(usable, sums, 0)).exp(), 0)
    positives = positives * usable
    weights = positives - positives.sum(1, keepdim=True) * shares
    return (positives * terms).sum(), positives.sum(), positives[terms != 0].sum(), weights


def _easiest(distances: Tensor, positive: Tensor, negative: Tensor) -> Weighed:
    """ln(1 + sum_n exp(d(a, p) - d(a, n))) with p the nearest positive, the lowest index among equals."""
    usable = positive.any(1)
    masked = torch.where(positive, distances, torch.inf)
    nearest = masked.amin(1, keepdim=True)
    places = torch.arange(distances.shape[1], device=distances.device)
    chosen = torch.where(masked == nearest, places, distances.shape[1]).amin(1)[usable]
    logits = torch.where(negative, -distances, -torch.inf)[usable]
    sums = logits.logsumexp(1) + nearest[usable, 0]
    terms = torch.nn.functional.softplus(sums)
    slope = torch.sigmoid(sums)
    weights = torch.zeros_like(distances)
    shares = -slope[:, None] * (logits - logits.logsumexp(1, keepdim=True)).exp()
    shares[torch.arange(len(chosen), device=chosen.device), chosen] = slope
    weights[usable] = shares
    return terms.sum(), usable.sum(), torch.count_nonzero(terms), weights


def _assigned(
    x: Rows, proxies: Rows, labels: Tensor, proxy_labels: Tensor | None, metric: str, tiles: list[slice]
) -> Tensor:  # [N] the proxy of each row: the nearest one, of its own class where classes are known
    found = []
    for tile in tiles:
        distances = _distances(x, proxies, tile, metric, own=False)
        if proxy_labels is not None:
            same = same_class(labels[tile], proxy_labels)
            if not bool(same.any(1).all()):
                row = tile.start + int((~same.any(1)).int().argmax())
                raise ValueError(
                    f"proxy_labels: expected a proxy for the class of every row, got none for row {row}"
                )
            distances = torch.where(same, distances, torch.inf)
        found.append(distances.argmin(1))
    return torch.cat(found)


def _proxies(labels: Tensor, assigned: Tensor, tile: slice, distances: Tensor) -> Weighed:
    """Each row stands where its proxy does; a proxy counts once for each row assigned to it."""
    same = same_class(labels[tile], labels)
    place = torch.arange(len(same), device=same.device)
    negatives = torch.zeros_like(distances).index_add_(1, assigned, (~same).double())
    same[place, place + tile.start] = False
    positives = torch.zeros_like(distances).index_add_(1, assigned, same.double())
    return _log_ratio(distances, positives, negatives)
