"""Losses with their gradients as contests: forward and backward, against what is used today."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import minerlib
from minerlib.benchmarks import agreement, data, peers
from minerlib.benchmarks.contest import Contender, Contest
from minerlib.losses import batch_all, triplet_margin

INDEXING = "torch, indexed and subtracted"
PML_LOSS = f"{peers.PML} TripletMarginLoss"

#: Ours, rounded to float32 once, against the definition; others', in float32 throughout.
_EXACTLY, _NEARLY = 1e-6, 1e-4
_MARGIN = 0.2
_MOST_DEFINED = 2048  # more rows are judged by the losses' plain form in torch, whose method is another

_Outcome = tuple[torch.Tensor, torch.Tensor]  # loss [], gradient [N, D]


def batch_all_loss(rows: int, dims: int, classes: int) -> Contest:
    """The mean hinge of all triplets of a batch, and its gradient."""
    b = data.batch(rows, dims, classes)
    members = np.bincount(b.classes)
    triplets = float(np.sum(members * (members - 1) * (rows - members)))

    def ours() -> _Outcome:
        return _with_gradient(b.x, lambda x: batch_all(x, b.labels, _MARGIN))

    def judge(result: _Outcome) -> None:
        if rows <= _MOST_DEFINED:
            _demand_equal(result, _every_hinge(b, triplets), _EXACTLY)
        else:
            plain = _with_gradient(b.x, lambda x: batch_all(x, b.labels, _MARGIN, backend="torch"))
            _demand_equal(result, plain, _EXACTLY)

    return Contest(rows * (rows - 1), 0, ours, judge, (_pml_loss(b, triplets),))


def triplet_loss(strategy: str, rows: int, dims: int, classes: int, margin: float) -> Contest:
    """The hinge of the triplets mined from a paper's batch, and its gradient; mining itself is not timed."""
    b = data.batch(rows, dims, classes)
    triplets = minerlib.mine(b.x, b.labels, strategy, margin=margin, pairs="combinations")

    def indexed(x: torch.Tensor) -> torch.Tensor:
        a, p, n = (x[index] for index in triplets)
        return torch.relu((a - p).square().sum(1) - (a - n).square().sum(1) + margin).mean()

    def ours() -> _Outcome:
        return _with_gradient(b.x, lambda x: triplet_margin(x, triplets, margin))

    def judge(result: _Outcome) -> None:
        _demand_equal(result, _with_gradient(b.x.double(), indexed), _EXACTLY)

    def check(result: _Outcome, other: _Outcome) -> None:
        _demand_equal(result, other, _NEARLY)

    peer = Contender(INDEXING, lambda: _with_gradient(b.x, indexed), check)
    return Contest(len(triplets.anchors), 0, ours, judge, (peer,))


def _with_gradient(rows: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor]) -> _Outcome:
    x = rows.detach().requires_grad_()
    value = loss(x)
    value.backward()
    assert x.grad is not None
    return value.detach(), x.grad


def _every_hinge(b: data.Batch, triplets: float) -> _Outcome:
    """By the definition, in float64, a few anchors at a time."""
    x = b.x.double().requires_grad_()
    total = 0.0
    for first in range(0, len(x), 32):
        anchors = torch.arange(first, min(first + 32, len(x)))
        distances = (x[anchors, None] - x[None]).square().sum(2)
        same = b.labels[anchors, None] == b.labels
        others = ~same
        same[torch.arange(len(anchors)), anchors] = False
        hinges = []
        for row, positive, negative in zip(distances, same, others, strict=True):
            hinges.append(torch.relu(row[positive, None] - row[None, negative] + _MARGIN).sum())
        part = torch.stack(hinges).sum() / triplets
        part.backward()
        total += float(part.detach())
    assert x.grad is not None
    return torch.tensor(total, dtype=torch.float64), x.grad


def _demand_equal(result: _Outcome, other: _Outcome, tolerance: float) -> None:
    """Up to a share of the loss and of the largest gradient."""
    for mine, theirs, what in zip(result, other, ("loss", "gradient"), strict=True):
        gap, scale = float((mine.double() - theirs.double()).abs().max()), float(theirs.double().abs().max())
        agreement.demand(gap <= tolerance * scale, f"the {what} differs by {gap}, its size is {scale}")


def _pml_loss(b: data.Batch, triplets: float) -> Contender:
    """Over all triplets, which it lists first."""
    reason = peers.missing(peers.PML)
    if reason:
        return peers.absent(PML_LOSS, reason)
    package = "pytorch_metric_learning"
    losses, distances, reducers = (
        importlib.import_module(f"{package}.{name}") for name in ("losses", "distances", "reducers")
    )
    loss = losses.TripletMarginLoss(
        margin=_MARGIN,
        distance=distances.LpDistance(normalize_embeddings=False, power=2),
        reducer=reducers.MeanReducer(),
    )

    def check(result: Any, other: Any) -> None:
        _demand_equal(result, other, _NEARLY)

    return Contender(
        PML_LOSS,
        lambda: _with_gradient(b.x, lambda x: loss(x, b.labels)),
        check,
        bytes_needed=float(len(b.x)) ** 3 + 100 * triplets,
        seconds_needed=float(len(b.x)) ** 3 * 1e-9,
    )
