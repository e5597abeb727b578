"""One pass gives the loss and its gradients; the backward pass only scales them.

Each loss is a function of (x, y or None, ..., differentiate) that returns the loss and gradients of x and y.
Eager code calls it through an autograd function; while torch compiles, through an operator of torch, so that
`torch.compile(fullgraph=True)` works and nothing inside is traced.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minerlib import inputs
from minerlib.backends import native, triton
from minerlib.inputs import METRICS
from minerlib.losses import _checks, _pairs, _tiles
from minerlib.miners import call_seed
from minerlib.mining import mine

Parts = tuple[Tensor, Tensor, Tensor]  # loss [], gradient of x (or empty), gradient of y (or empty)


def _scaled(rows: Tensor, factor: Tensor) -> Tensor:
    if rows.device.type != "cpu":
        return rows * factor
    with np.errstate(over="ignore", invalid="ignore"):
        return torch.from_numpy(rows.numpy() * factor.item())  # as below: no threads for so little


class _Once(torch.autograd.Function):
    """Calls a loss, keeps its gradients, scales them in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., Parts], x: Tensor, y: Tensor | None, rest: tuple[Any, ...]
    ) -> Tensor:
        loss, into_x, into_y = function(x, y, *rest, True)
        ctx.save_for_backward(into_x, into_y)
        ctx.with_y = y is not None
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor | None, None]:
        into_x, into_y = ctx.saved_tensors
        return None, _scaled(into_x, gradient), _scaled(into_y, gradient) if ctx.with_y else None, None


@dataclass(frozen=True)
class Loss:
    """A loss as a plain function and as an operator of torch."""

    plain: Callable[..., Parts]
    operator: Any


def fused(loss: Loss, x: Tensor, y: Tensor | None, *rest: Any) -> Tensor:
    """The loss, connected to x and y."""
    wanted = torch.is_grad_enabled() and (x.requires_grad or (y is not None and y.requires_grad))
    if torch.compiler.is_compiling():
        traced: Tensor = loss.operator(x, y, *rest, wanted)[0]
        return traced
    if not wanted:
        return loss.plain(x, y, *rest, False)[0]
    connected: Tensor = _Once.apply(loss.plain, x, y, rest)
    return connected


def _empty_parts(x: Tensor, y: Tensor | None, differentiate: bool, make: Callable[..., Tensor]) -> Parts:
    nothing = x.new_empty(0)
    with_y = differentiate and y is not None
    return (
        x.new_zeros(()) if make is torch.zeros_like else x.new_empty(()),
        make(x) if differentiate else nothing,
        make(y) if with_y else nothing.clone(),
    )


def _zero(x: Tensor, y: Tensor | None, differentiate: bool) -> Parts:
    """A batch to learn nothing from."""
    return _empty_parts(x, y, differentiate, torch.zeros_like)


def _finite(*tensors: Tensor | None) -> bool:
    """Whether no value is NaN or infinite: a finite sum proves it, another may only have overflowed."""
    for rows in tensors:
        if rows is None:
            continue
        if rows.device.type == "cpu":  # NumPy starts no threads for what takes microseconds
            with np.errstate(over="ignore", invalid="ignore"):
                total = float(rows.detach().numpy().sum())
        else:
            total = float(rows.detach().sum())
        if not math.isfinite(total) and not bool(torch.isfinite(rows).all()):
            return False
    return True


def _as_parts(x: Tensor, loss: float, into_x: Any, into_y: Any) -> Parts:
    """What a native kernel returns, as tensors of x's type."""
    nothing = x.new_empty(0)
    return (
        torch.tensor(loss, dtype=x.dtype),
        nothing if into_x is None else torch.from_numpy(into_x),
        nothing.clone() if into_y is None else torch.from_numpy(into_y),
    )


def _triplet_loss(
    x: Tensor,  # [N, D]
    y: Tensor | None,  # [M, D]
    anchors: Tensor,  # [T]
    positives: Tensor,  # [T]
    negatives: Tensor,  # [T]
    margin: float,
    comparison: str,
    reduction: str,
    soft: bool,
    counted: bool,  # every triplet counts: one with a negative index is no padding but a mistake
    backend: str,
    differentiate: bool,
) -> Parts:
    """The loss of given triplets."""
    columns = len(x if y is None else y)
    if counted:
        _checks.within("anchors", anchors, len(x))
        _checks.within("positives", positives, columns)
        _checks.within("negatives", negatives, columns)
    backend = _checks.backend_for(backend, x)
    if backend == "triton":  # what is not finite it finds on the device
        x, y = x.detach(), None if y is None else y.detach()
        triplets = (anchors, positives, negatives)
        return triton.losses_triplet(x, y, triplets, margin, comparison, reduction, soft, differentiate)
    if not len(anchors) or not x.shape[1] or not _finite(x, y):
        return _zero(x, y, differentiate)
    triplets = (anchors, positives, negatives)
    x, y = x.detach(), None if y is None else y.detach()
    if backend == "native":
        other = None if y is None else y.contiguous().numpy()
        found = native.losses_triplet(
            x.contiguous().numpy(), other, tuple(index.contiguous().numpy() for index in triplets), margin,
            _pairs.COMPARISONS.index(comparison),
            _checks.REDUCTIONS.index(reduction), soft, differentiate,
        )  # fmt: skip
        return _as_parts(x, *found)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return _pairs.triplet_terms(
            x, y, triplets, margin, comparison, reduction, soft=soft, differentiate=differentiate
        )


def _mined_triplet_loss(
    x: Tensor,  # [N, D]
    y: Tensor | None,  # [M, D]
    labels: Tensor,
    y_labels: Tensor | None,
    strategy: str,
    margin: float,
    metric: str,
    fallback: str,
    seed: int,  # 64 bits as a signed number
    call: Tensor | None,  # [] int64: which call of a module this is
    reduction: str,
    backend: str,
    differentiate: bool,
) -> Parts:
    """Triplets are mined, and their loss is computed."""
    on_device = _checks.backend_for(backend, x) == "triton"
    if not x.shape[1] or not (on_device or _finite(x, y)):
        return _zero(x, y, differentiate)
    draw = seed & (2**64 - 1)
    padded = on_device and strategy != "all"  # so that nothing waits for how many there are
    found = mine(
        x.detach(), labels, strategy, margin=margin, metric=metric,
        reference=None if y is None else y.detach(), reference_labels=y_labels, fallback=fallback,
        seed=draw if call is None else call_seed(draw, int(call)), compact=not padded,
        backend="triton" if on_device else "auto",
    )  # fmt: skip
    anchors, positives, negatives, _ = _checks.triplet_vectors(found, x, "triton" if padded else "torch")
    return _triplet_loss(
        x, y, anchors, positives, negatives, margin, metric, reduction, False, False, backend, differentiate
    )


def _batch_loss(
    x: Tensor,  # [N, D]
    y: Tensor | None,  # [M, D]
    labels: Tensor,
    y_labels: Tensor | None,
    kind: str,
    margin: float,
    metric: str,
    reduction: str,
    backend: str,
    differentiate: bool,
) -> Parts:
    """The losses over all rows of a batch: `batch_all`, `nca`, `easiest`, `proxies`."""
    backend = _checks.backend_for(backend, x, natively=kind == "batch_all")
    empty = not x.shape[1] or not len(x) or (y is not None and not len(y))
    if empty or (backend != "triton" and not _finite(x, y)):
        return _zero(x, y, differentiate)
    x, y = x.detach(), None if y is None else y.detach()
    if backend == "triton":
        return triton.losses_batch(x, y, labels, y_labels, kind, margin, metric, reduction, differentiate)
    if backend == "native":
        problem = inputs.mining_problem(x, labels, y, y_labels, metric)
        found = native.losses_batch_all(problem, margin, _checks.REDUCTIONS.index(reduction), differentiate)
        return _as_parts(x, *found)
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return _tiles.batch_loss(
            x, y, labels, y_labels, kind, margin, metric, reduction, differentiate=differentiate
        )


def _registered(name: str, plain: Callable[..., Parts]) -> Loss:
    """The operator of a loss: the shapes of what it returns, and its backward pass."""
    operator = torch.library.custom_op(f"minerlib::{name}", plain, mutates_args=())
    others = len(inspect.signature(plain).parameters) - 2

    def fake(x: Tensor, y: Tensor | None, *rest: Any) -> Parts:
        return _empty_parts(x, y, rest[-1], torch.empty_like)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Parts) -> None:
        ctx.save_for_backward(output[1], output[2])
        ctx.with_y = inputs[1] is not None

    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
        into_x, into_y = ctx.saved_tensors
        of_y = gradient * into_y if ctx.with_y else None
        return gradient * into_x, of_y, *(None for _ in range(others))

    operator.register_fake(fake)
    operator.register_autograd(backward, setup_context=keep)
    return Loss(plain, operator)


triplet_loss = _registered("triplet_loss", _triplet_loss)
mined_triplet_loss = _registered("mined_triplet_loss", _mined_triplet_loss)
batch_loss = _registered("batch_loss", _batch_loss)

assert _pairs.COMPARISONS[:3] == METRICS  # the kernels number both
