"""Losses with their gradients as contests: forward and backward, against what is used today."""

from __future__ import annotations

import functools
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
_IN_DOUBLE, _PART = 1e-12, 256
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

    def defined() -> _Outcome:
        if rows <= _MOST_DEFINED:
            return _every_hinge(b, triplets)
        return _with_gradient(b.x, lambda x: batch_all(x, b.labels, _MARGIN, backend="torch"))

    defined_once = functools.cache(defined)

    def judge(result: _Outcome) -> None:
        _demand_equal(result, defined_once(), _EXACTLY)

    return Contest(rows * (rows - 1), 0, ours, judge, (_pml_loss(b, triplets, defined_once),))


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
    for gap, what in zip(_gaps(result, other), ("loss", "gradient"), strict=True):
        agreement.demand(gap <= tolerance, f"the {what} differs by {gap} of its size")


def _gaps(result: _Outcome, other: _Outcome) -> tuple[float, float]:
    """How far the losses and the gradients are apart, as shares of the largest of the other's."""
    loss, gradient = (
        float((one.double() - two.double()).abs().max() / two.double().abs().max())
        for one, two in zip(result, other, strict=True)
    )
    return loss, gradient


def _pml_loss(b: data.Batch, triplets: float, defined: Callable[[], _Outcome]) -> Contender:
    """Over all triplets, which it lists first.

    In float64 it is held to ours on a part of the batch. In float32 it adds a row's gradient up from three
    terms a triplet one by one, with as many roundings, and is held to the definition within those.
    """
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
        part, labels = b.x[:_PART].double(), b.labels[:_PART]
        in_double = _with_gradient(part, lambda x: loss(x, labels))
        _demand_equal(_with_gradient(part, lambda x: batch_all(x, labels, _MARGIN)), in_double, _IN_DOUBLE)
        within = max(_NEARLY, 3 * triplets / len(b.x) * 2.0**-24)
        _demand_equal(other, defined(), within)
        _demand_equal(result, other, within)
        theirs, mine = _gaps(other, defined())[1], _gaps(result, defined())[1]
        print(f"  its float32 gradient is off by {theirs:.1e} of its size, ours by {mine:.1e}")

    return Contender(
        PML_LOSS,
        lambda: _with_gradient(b.x, lambda x: loss(x, b.labels)),
        check,
        bytes_needed=float(len(b.x)) ** 3 + 100 * triplets,
        seconds_needed=float(len(b.x)) ** 3 * 1e-9,
    )
