"""Losses over all rows of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minerlib import inputs
from minerlib.inputs import METRICS
from minerlib.losses import _checks, _fused
from minerlib.losses._checks import REDUCTIONS


def batch_all(
    embeddings: Tensor,  # [N, D]
    labels: Any,  # [N] or [N, C] bool
    margin: float = 0.2,
    metric: str = "sqeuclidean",
    reduction: str = "mean",
    *,
    reference: Tensor | None = None,  # [M, D]
    reference_labels: Any = None,  # [M] or [M, C] bool
    backend: str = "auto",
) -> Tensor:  # scalar
    """The hinge max((d(a,p) - d(a,n)) + margin, 0) of every triplet of the batch, without listing any.

    An anchor's positives are sorted once; each of its negatives falls between two of them, and running sums
    over those places give every hinge and every gradient: O(N^2 (D + log N)) for N^3 triplets. Reductions:
    `sum`, `mean` over all triplets (a, p, n), or `mean-nonzero` over those above zero. With a reference,
    positives and negatives are its rows.

    A batch without triplets gives zero with zero gradients, and so does one with a value that is not finite.
    Everything is accumulated in float64; the loss is of the embeddings' type, float32 for half precision. The
    gradient is differentiable once, zero where the Euclidean distance or, under `cosine`, a row is zero.

    Raises `TypeError` or `ValueError` that names the argument, `BackendUnavailable`. Peak memory beyond the
    gradients: 24 bytes a value of the rows and 4 MiB, or 8 bytes a pair of up to 2048 rows without a
    reference (`native`), some 15 MiB (`torch`), or 32 MiB (`triton`).
    Source: Ding et al. 2015; EXT eq. 1.

    >>> x = torch.tensor([[0.0], [1.0], [3.0]], requires_grad=True)
    >>> batch_all(x, [0, 0, 1], margin=5.0, reduction="sum").item()  # 1 - 9 + 5 < 0, 1 - 4 + 5
    2.0
    """
    return _of_batch(
        "batch_all", embeddings, labels, margin, metric, reduction, reference, reference_labels, backend
    )


def nca(
    embeddings: Tensor,  # [N, D]
    labels: Any,  # [N] or [N, C] bool
    metric: str = "sqeuclidean",
    reduction: str = "mean",
    *,
    reference: Tensor | None = None,  # [M, D]
    reference_labels: Any = None,  # [M] or [M, C] bool
    backend: str = "auto",
) -> Tensor:  # scalar
    """-ln(exp(-d(a,p)) / sum over the anchor's negatives of exp(-d(a,n))), for every pair (a, p).

    As the paper has it the positive is not in the sum, so that a term may be negative. Reductions: `sum`,
    `mean` over the pairs of anchors that have negatives, `mean-nonzero` over those not exactly zero.

    Zero losses, types and errors are those of `batch_all`. Peak memory beyond the gradients: 24 bytes a value
    of the rows and some 15 MiB. Source: Goldberger et al. 2005; EXT eq. 4.

    >>> nca(torch.tensor([[0.0], [1.0], [3.0]]), [0, 0, 1]).item()  # (1 - 9 + 1 - 4) / 2
    -5.5
    """
    return _of_batch("nca", embeddings, labels, 0.0, metric, reduction, reference, reference_labels, backend)


def proxy_nca(
    embeddings: Tensor,  # [N, D]
    labels: Any,  # [N] or [N, C] bool
    proxies: Tensor | None = None,  # [C, D]
    proxy_labels: Any = None,  # [C] or [C, C'] bool
    metric: str = "sqeuclidean",
    reduction: str = "mean",
    *,
    backend: str = "auto",
) -> Tensor:  # scalar
    """NCA with every positive and negative at its proxy: -ln(exp(-d(a,P(p))) / sum_n exp(-d(a,P(n)))).

    P(row) is the nearest proxy, of the row's own class where `proxy_labels` says of which class each is.
    Without `proxies` they are the centres of the batch's classes (single labels only). Gradients reach the
    proxies. Pairs, reductions, zero losses and memory are those of `nca`.

    Raises `TypeError` or `ValueError` that names the argument, also for a row whose class has no proxy.
    Source: Movshovitz-Attias et al. 2017; EXT eq. 5.

    >>> x = torch.tensor([[0.0], [1.0], [3.0]])
    >>> proxy_nca(x, [0, 0, 1], torch.tensor([[0.5], [3.0]]), [0, 1]).item()  # (0.25 - 9 + 0.25 - 4) / 2
    -6.25
    """
    x = _checks.rows("embeddings", embeddings)
    x_labels = _checks.label_vector("labels", labels, embeddings)
    inputs.one_of("metric", metric, METRICS)
    inputs.one_of("reduction", reduction, REDUCTIONS[:3])
    _checks.backend_for(backend, embeddings, natively=False)
    if proxies is None:
        if x_labels.ndim == 2 or proxy_labels is not None:
            raise ValueError("proxies: expected a tensor with multi-label rows or proxy_labels, got None")
        classes, index, counts = torch.unique(x_labels, return_inverse=True, return_counts=True)
        sums = x.new_zeros(len(classes), x.shape[1]).index_add(0, index, x)
        y, y_labels = sums / counts[:, None], classes
    else:
        y, y_labels = _checks.rows_like("proxies", proxies, embeddings), None
        if not len(y):
            raise ValueError("proxies: expected at least one, got none")
        if proxy_labels is not None:
            y_labels = _checks.label_vector("proxy_labels", proxy_labels, y, "proxies")
            if y_labels.shape[1:] != x_labels.shape[1:]:
                raise ValueError(
                    f"proxy_labels: expected the form of labels {list(x_labels.shape)}, "
                    f"got {list(y_labels.shape)}"
                )
    return _fused.fused(
        _fused.batch_loss, x, y, x_labels, y_labels, "proxies", 0.0, metric, reduction, backend
    )


def easy_positive(
    embeddings: Tensor,  # [N, D]
    labels: Any,  # [N] or [N, C] bool
    reduction: str = "mean",
    *,
    reference: Tensor | None = None,  # [M, D]
    reference_labels: Any = None,  # [M] or [M, C] bool
    backend: str = "auto",
) -> Tensor:  # scalar
    """-ln(exp(s(a,e)) / (exp(s(a,e)) + sum_n exp(s(a,n)))) with e the anchor's nearest positive.

    s are inner products of rows, which are L2-normalised first, as the equation presumes; it is minimised
    (the paper prints it without the minus). Reductions: `sum`, `mean` over the anchors that have
    positives and negatives, `mean-nonzero`.
    A zero row is at inner product 0 to all. Zero losses, types, errors and memory are those of `nca`.
    Source: Xuan et al. 2020; EXT eq. 6.

    >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    >>> round(easy_positive(x, [0, 0, 1]).item(), 4)  # ln(1 + exp(0 - 1))
    0.3133
    """
    # s = 1 - cosine distance, and what all logarithms share falls out
    return easy_positive_distance(
        embeddings, labels, "cosine", reduction, reference=reference, reference_labels=reference_labels,
        backend=backend,
    )  # fmt: skip


def easy_positive_distance(
    embeddings: Tensor,  # [N, D]
    labels: Any,  # [N] or [N, C] bool
    metric: str = "sqeuclidean",
    reduction: str = "mean",
    *,
    reference: Tensor | None = None,  # [M, D]
    reference_labels: Any = None,  # [M] or [M, C] bool
    backend: str = "auto",
) -> Tensor:  # scalar
    """EP-D: `easy_positive` with minus distances in place of inner products.

    -ln(exp(-d(a,e)) / (exp(-d(a,e)) + sum_n exp(-d(a,n)))) with e the nearest positive, the lowest index
    among equals. (The printed eq. 7 lacks the minus before d(a,n) that its text asks for.) Reductions, zero
    losses, types, errors and memory are those of `easy_positive`. Source: EXT eq. 7.

    >>> x = torch.tensor([[0.0], [0.0], [1.0]])
    >>> round(easy_positive_distance(x, [0, 0, 1]).item(), 4)  # ln(1 + exp(0 - 1))
    0.3133
    """
    return _of_batch(
        "easiest", embeddings, labels, 0.0, metric, reduction, reference, reference_labels, backend
    )


def _of_batch(
    kind: str,
    embeddings: Tensor,
    labels: Any,
    margin: float,
    metric: str,
    reduction: str,
    reference: Tensor | None,
    reference_labels: Any,
    backend: str,
) -> Tensor:
    x = _checks.rows("embeddings", embeddings)
    x_labels, y, y_labels = _checks.labels_and_reference(embeddings, labels, reference, reference_labels)
    inputs.one_of("metric", metric, METRICS)
    inputs.one_of("reduction", reduction, REDUCTIONS[:3])
    _checks.backend_for(backend, embeddings, natively=kind == "batch_all")
    margin = inputs.finite_non_negative("margin", margin)
    return _fused.fused(_fused.batch_loss, x, y, x_labels, y_labels, kind, margin, metric, reduction, backend)
