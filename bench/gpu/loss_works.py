"""Losses on a GPU, forward and backward, beside plain torch and pytorch-metric-learning.

A check compares value and gradient with the native backend's on the same rows, to 1e-5 of the largest entry:
both sum in float64 and round once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

import minerlib
from bench.gpu.works import PML, Goal, Work, batches, extra_memory, faster, on_host, pml_missing
from minerlib import losses

INDEXING = "indexing and subtracting"
TORCH = "the torch backend"

One = tuple[torch.Tensor, torch.Tensor]


def learned(
    loss: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward and backward."""
    rows = x.detach().requires_grad_()
    value = loss(rows)
    return value.detach(), torch.autograd.grad(value, rows)[0]


def close(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        ours, theirs = ours.cpu().double(), theirs.cpu().double()
        if not float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max()) + 1e-12:
            raise AssertionError("the GPU's loss or gradient is not the CPU backend's")


def of_batches(name: str, sets: list[One], goals: tuple[Goal, ...], operations: int, **options: Any) -> Work:
    """A loss over all rows of a batch, in operations a pair and dimension."""
    loss = getattr(losses, name)

    def ours(one: One) -> Any:
        return learned(lambda x: loss(x, one[1], **options, backend="triton"), one[0])

    def plain(one: One) -> Any:
        return learned(lambda x: loss(x, one[1], **options, backend="torch"), one[0])

    def check() -> None:
        x, labels = on_host(*sets[0])
        close(ours(sets[0]), learned(lambda rows: loss(rows, labels, **options), x))

    rows, dims = sets[0][0].shape
    peers: dict[str, Callable[[Any], Any]] = {TORCH: plain}
    left_out = []
    if name == "batch_all":
        missing = pml_missing()
        if missing:
            left_out.append(missing)
        elif rows <= 8192:
            from pytorch_metric_learning.losses import TripletMarginLoss

            their = TripletMarginLoss(margin=options["margin"], triplets_per_anchor="all")
            peers[PML] = lambda one: learned(lambda x: their(x, one[1]), one[0])
    return Work(
        f"loss {name}, N={rows}", sets, rows**2, operations * rows**2 * dims, ours, check, peers,
        graph=ours, goals=goals, left_out=tuple(left_out),
    )  # fmt: skip


def of_triplets(sets: list[One], goals: tuple[Goal, ...], margin: float = 0.5) -> Work:
    """Triplets that are mined beforehand: what a training step adds to mining."""
    given = [
        minerlib.mine(*one, "random-hard", margin=margin, pairs="combinations", backend="triton")
        for one in sets
    ]
    inputs = [(one[0], found) for one, found in zip(sets, given, strict=True)]

    def ours(one: Any) -> Any:
        return learned(lambda x: losses.triplet_margin(x, one[1], margin, backend="triton"), one[0])

    def indexing(one: Any) -> Any:
        a, p, n = one[1]

        def loss(x: torch.Tensor) -> torch.Tensor:
            near, far = (x[a] - x[p]).square().sum(1), (x[a] - x[n]).square().sum(1)
            return torch.relu(near - far + margin).mean()

        return learned(loss, one[0])

    def check() -> None:
        x, host = inputs[0][0].cpu(), on_host(*given[0])
        close(ours(inputs[0]), learned(lambda rows: losses.triplet_margin(rows, host, margin), x))

    count, dims = len(given[0][0]), sets[0][0].shape[1]
    return Work(
        f"loss of {count} triplets, D={dims}", inputs, 2 * count, 10 * count * dims, ours, check,
        {INDEXING: indexing}, goals=goals,
    )  # fmt: skip


def suite(device: torch.device, tiny: bool) -> list[Callable[[], Work]]:
    if tiny:
        small = batches(4, 2, 2, torch.float32, device, 2)
        return [
            lambda: of_batches("batch_all", small, (faster(PML, 1),), 7, margin=0.2),
            lambda: of_triplets(small, (), 9.0),
        ]

    def batch(rows: int, sets: int) -> list[One]:
        return batches(rows, 128, rows // 8, torch.float32, device, sets)

    return [
        lambda: of_batches("batch_all", batch(2048, 16), (faster(PML, 30), extra_memory(64)), 7, margin=0.2),
        lambda: of_batches("batch_all", batch(8192, 4), (extra_memory(64),), 7, margin=0.2),
        lambda: of_batches("nca", batch(2048, 16), (), 7),
        lambda: of_batches("easy_positive_distance", batch(2048, 16), (), 7),
        lambda: of_triplets(batches(256, 512, 4, torch.float32, device, 4), (faster(INDEXING, 5),)),
    ]
