"""Losses of triplets: those given, and those mined on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from minerlib import inputs
from minerlib.inputs import FALLBACKS, METRICS
from minerlib.losses import _checks, _fused
from minerlib.losses._checks import REDUCTIONS
from minerlib.results import PaddedTriplets, Triplets
from minerlib.strategies import STRATEGIES


def triplet_margin(
    embeddings: Tensor,  # [N, D]
    triplets: Triplets | PaddedTriplets | Sequence[Any],  # anchors [T], positives [T], negatives [T]
    margin: float = 0.2,
    metric: str = "sqeuclidean",
    reduction: str = "mean",
    *,
    reference: Tensor | None = None,  # [M, D]
    backend: str = "auto",
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

    No triplets give a loss of zero with zero gradients, and so does a batch with a value that is not finite:
    nothing is learned from it. Euclidean distances have gradient zero between equal rows; cosine distances of
    zero rows are 1 with gradient zero. Distances, sums and gradients are accumulated in float64; the loss
    is of the embeddings' type, float32 for half precision. The gradient is differentiable once. `backend`:
    `native` on the host, `torch` anywhere, `auto` the first of them that can; `triton` on a GPU, where padded
    triplets are taken as they are (one out of range then takes no part) and nothing waits for the device.

    Raises `TypeError` or `ValueError` that names the argument, `BackendUnavailable`. Peak memory beyond the
    gradients: 48 bytes for each distinct pair of rows; no [T, D] array. Source: FaceNet; JTANet, section
    2.1.2.

    >>> import torch
    >>> x = torch.tensor([[0.0], [1.0], [2.0]], requires_grad=True)
    >>> triplet_margin(x, (torch.tensor([0]), torch.tensor([2]), torch.tensor([1])), margin=0.5).item()
    3.5
    """
    x = _checks.rows("embeddings", embeddings)
    y = None if reference is None else _checks.rows_like("reference", reference, embeddings)
    inputs.one_of("metric", metric, METRICS)
    inputs.one_of("reduction", reduction, REDUCTIONS)
    _checks.backend_for(backend, embeddings)
    margin = inputs.finite_non_negative("margin", margin)
    *vectors, counted = _checks.triplet_vectors(triplets, embeddings, backend)
    return _fused.fused(
        _fused.triplet_loss, x, y, *vectors, margin, metric, reduction, False, counted, backend
    )


def dtsh(
    embeddings: Tensor,  # [N, bits], real-valued codes
    triplets: Triplets | PaddedTriplets | Sequence[Any],  # anchors [T], positives [T], negatives [T]
    alpha: float = 16.0,
    quantization_weight: float = 10.0,
    reduction: str = "mean",
    *,
    backend: str = "auto",
) -> Tensor:  # scalar
    """Deep triplet supervised hashing: -ln sigmoid(t(a,p) - t(a,n) - alpha) + weight * |sign(u) - u|^2.

    t(i,j) = u_i . u_j / 2. Reductions of the triplets' terms: `mean`, `sum`, or the mean of those above
    zero in floating point (`mean-nonzero`); the quantisation error, a sum over a row's bits, is averaged over
    the rows, or with `sum` added up. A weight of 0 leaves it out. sign(0) is 0.

    Triplets, zero losses, types, errors and memory are those of `triplet_margin`. Without triplets the
    quantisation error is left. Source: Wang, Shi, Kitani 2016; the DeepHashing report, whose first settings
    are the defaults here (alpha 16; the weight 10 after 15 epochs, 0 before).

    >>> import torch
    >>> u = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0]], requires_grad=True)
    >>> round(dtsh(u, ([0], [1], [2]), alpha=2.0).item(), 4)
    0.6931
    """
    x = _checks.rows("embeddings", embeddings)
    inputs.one_of("reduction", reduction, REDUCTIONS[:3])
    _checks.backend_for(backend, embeddings)
    alpha = inputs.finite_non_negative("alpha", alpha)
    weight = inputs.finite_non_negative("quantization_weight", quantization_weight)
    *vectors, counted = _checks.triplet_vectors(triplets, embeddings, backend)
    loss = _fused.fused(
        _fused.triplet_loss, x, None, *vectors, alpha, "product", reduction, True, counted, backend
    )
    if weight == 0 or not x.numel():
        return loss
    # As elsewhere, nothing is learned from a batch that is not finite; its gradient is masked too.
    usable = x.detach().isfinite().all()
    error = x.where(usable, x.detach().sign().nan_to_num())
    error = (error - x.detach().sign().nan_to_num()).square().sum()
    return loss + (weight if reduction == "sum" else weight / len(x)) * error


def mined(
    embeddings: Tensor,  # [N, D]
    labels: Any,  # [N] or [N, C] bool
    strategy: str,
    margin: float = 0.2,
    metric: str = "sqeuclidean",
    reduction: str = "mean",
    *,
    reference: Tensor | None = None,  # [M, D]
    reference_labels: Any = None,  # [M] or [M, C] bool
    fallback: str = "drop",
    seed: int = 0,
    call: Tensor | None = None,  # [] int64
    backend: str = "auto",
) -> Tensor:  # scalar
    """`minerlib.mine` with a strategy, and the `triplet_margin` loss of what it finds, in one operator.

    `seed` is that of random strategies; with `call`, the number of calls so far, each call draws anew (see
    `minerlib.miners`). Nothing to mine gives zero, and so does a batch that is not finite. Reductions, types,
    errors and memory are those of `triplet_margin` and `mine`. Source: SPEC sections 4 and 7.

    >>> import torch
    >>> x = torch.tensor([[0.0], [1.0], [3.0]], requires_grad=True)
    >>> mined(x, [0, 0, 1], "batch-hard", margin=5.0).item()  # (1 - 9 + 5 = -3, 1 - 4 + 5 = 2)
    1.0
    """
    inputs.one_of("strategy", strategy, tuple(STRATEGIES))
    inputs.one_of("metric", metric, METRICS)
    inputs.one_of("reduction", reduction, REDUCTIONS)
    inputs.one_of("fallback", fallback, FALLBACKS)
    x = _checks.rows("embeddings", embeddings)
    x_labels, y, y_labels = _checks.labels_and_reference(embeddings, labels, reference, reference_labels)
    _checks.backend_for(backend, embeddings)
    margin, seed = inputs.finite_non_negative("margin", margin), inputs.seed_value(seed)
    signed = seed - (1 << 64) if seed >= 1 << 63 else seed
    return _fused.fused(
        _fused.mined_triplet_loss, x, y, x_labels, y_labels, strategy, margin, metric, fallback, signed, call,
        reduction, backend,
    )  # fmt: skip


def epen(
    embeddings: Tensor,
    labels: Any,
    margin: float = 0.25,
    metric: str = "sqeuclidean",
    reduction: str = "mean",
    **options: Any,
) -> Tensor:
    """Easiest positive, easiest negative: the hinge of each anchor's nearest positive and farthest negative.

    Options, zero losses, errors and memory are those of `mined`. Source: EXT eq. 9.

    >>> import torch
    >>> epen(torch.tensor([[0.0], [1.0], [3.0]]), [0, 0, 1], margin=5.0).item()
    1.0
    """
    return mined(embeddings, labels, "epen", margin, metric, reduction, **options)


def ephn(
    embeddings: Tensor,
    labels: Any,
    margin: float = 0.25,
    metric: str = "sqeuclidean",
    reduction: str = "mean",
    **options: Any,
) -> Tensor:
    """Easiest positive, hardest negative: nearest positive, nearest negative of each anchor.

    Options, zero losses, errors and memory are those of `mined`. Source: EXT eq. 10.

    >>> import torch
    >>> ephn(torch.tensor([[0.0], [1.0], [3.0]]), [0, 0, 1], margin=5.0).item()
    1.0
    """
    return mined(embeddings, labels, "ephn", margin, metric, reduction, **options)


def hpen(
    embeddings: Tensor,
    labels: Any,
    margin: float = 0.25,
    metric: str = "sqeuclidean",
    reduction: str = "mean",
    **options: Any,
) -> Tensor:
    """Hardest positive, easiest negative: farthest positive, farthest negative of each anchor.

    Options, zero losses, errors and memory are those of `mined`. Source: EXT eq. 11.

    >>> import torch
    >>> hpen(torch.tensor([[0.0], [1.0], [3.0]]), [0, 0, 1], margin=5.0).item()
    1.0
    """
    return mined(embeddings, labels, "hpen", margin, metric, reduction, **options)


def hphn(
    embeddings: Tensor,
    labels: Any,
    margin: float = 0.25,
    metric: str = "sqeuclidean",
    reduction: str = "mean",
    **options: Any,
) -> Tensor:
    """Hardest positive, hardest negative (batch-hard): farthest positive, nearest negative of each anchor.

    Options, zero losses, errors and memory are those of `mined`. Source: Hermans et al. 2017; EXT eq. 3.

    >>> import torch
    >>> hphn(torch.tensor([[0.0], [1.0], [3.0]]), [0, 0, 1], margin=5.0).item()
    1.0
    """
    return mined(embeddings, labels, "hphn", margin, metric, reduction, **options)


def assorted(
    embeddings: Tensor,
    labels: Any,
    margin: float = 0.25,
    metric: str = "sqeuclidean",
    reduction: str = "mean",
    **options: Any,
) -> Tensor:
    """One of the four extreme cases for each anchor, at random by `seed`.

    Options, zero losses, errors and memory are those of `mined`. Source: EXT eq. 12.

    >>> import torch
    >>> assorted(torch.tensor([[0.0], [1.0], [3.0]]), [0, 0, 1], margin=5.0, seed=3).item()
    1.0
    """
    return mined(embeddings, labels, "assorted", margin, metric, reduction, **options)


def distance_weighted(
    embeddings: Tensor,
    labels: Any,
    margin: float = 0.25,
    metric: str = "sqeuclidean",
    reduction: str = "mean",
    **options: Any,
) -> Tensor:
    """For each pair (a, p) the hinge with one negative, drawn by the inverse density of its distance.

    Options, zero losses, errors and memory are those of `mined`: `seed` for the draw, `fallback` for pairs
    whose negatives all lie beyond 1.4 on the unit sphere. Source: Wu et al. 2017; EXT eq. 8.

    >>> import torch
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    >>> distance_weighted(x, [0, 0, 1], margin=1.0, fallback="hardest").item()  # (2 - 0 + 1 + 2 - 2 + 1) / 2
    2.0
    """
    return mined(embeddings, labels, "distance-weighted", margin, metric, reduction, **options)
