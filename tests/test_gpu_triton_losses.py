"""The losses' Triton kernels on a GPU: the native backend's values and gradients, graphs, torch.compile.

`make gpu` runs these, and `-k smallest` once more under compute-sanitizer; the smallest also run on the host:

    TRITON_INTERPRET=1 python -m pytest -m gpu tests/test_gpu_triton_losses.py -k smallest
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import minerlib
from minerlib import losses
from minerlib.losses import METRICS
from tests.test_gpu_triton import DEVICE, batch, capture, on_gpu, to

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="no CUDA or ROCm device"
    ),
]

OF_LABELS = ("batch_all", "nca", "easy_positive", "easy_positive_distance", "proxy_nca", "hphn")


def learned(loss: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    rows = x.detach().requires_grad_()
    value = loss(rows)
    return [value.detach(), *torch.autograd.grad(value, rows)]


def close(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    """To 1e-6 of the largest entry: both backends sum in float64 and round once."""
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.device.type == DEVICE.type
        assert ours.dtype == theirs.dtype
        scale = float(theirs.abs().max())
        assert float((ours.cpu().double() - theirs.double()).abs().max()) <= 1e-6 * scale + 1e-30


def same_loss(name: str, x: torch.Tensor, labels: torch.Tensor, **options: Any) -> None:
    loss = getattr(losses, name)
    wanted = learned(lambda rows: loss(rows, labels, **options), x)
    there = labels.to(DEVICE)
    close(learned(lambda rows: loss(rows, there, **options, backend="triton"), x.to(DEVICE)), wanted)


@pytest.mark.parametrize("name", OF_LABELS)
def test_smallest_losses_of_batches(name: str) -> None:
    same_loss(name, *batch(5, 3, 2))


@pytest.mark.parametrize("metric", METRICS)
def test_smallest_losses_of_triplets(metric: str) -> None:
    x, labels = batch(5, 3, 2)
    given = minerlib.mine(x, labels, "hard")
    wanted = learned(lambda rows: losses.triplet_margin(rows, given, 0.5, metric), x)
    there = to(DEVICE, *given)
    close(
        learned(lambda rows: losses.triplet_margin(rows, there, 0.5, metric, backend="triton"), x.to(DEVICE)),
        wanted,
    )


@on_gpu
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["batch_all", "nca", "easy_positive_distance"])
def test_thousands_of_rows(name: str, metric: str) -> None:
    same_loss(name, *batch(2051, 129, 256), metric=metric)


@on_gpu
def test_two_classes_of_thousands() -> None:
    """Each anchor sorts half of the batch."""
    same_loss("batch_all", *batch(4096, 64, 2))


@on_gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types(dtype: str) -> None:
    same_loss("batch_all", *batch(515, 33, 50, dtype))


@on_gpu
def test_every_triplet_of_a_thousand_rows() -> None:
    x, labels = batch(1024, 64, 128)
    given = minerlib.mine(x, labels, "all")
    wanted = learned(lambda rows: losses.triplet_margin(rows, given), x)
    there = to(DEVICE, *given)
    close(learned(lambda rows: losses.triplet_margin(rows, there, backend="triton"), x.to(DEVICE)), wanted)


@on_gpu
def test_the_same_bits_each_time() -> None:
    x, labels = to(DEVICE, *batch(2048, 64, 64))
    first, again = (
        learned(lambda rows: losses.batch_all(rows, labels, backend="triton"), x) for _ in range(2)
    )
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@on_gpu
@pytest.mark.parametrize("name", ["batch_all", "nca", "hphn"])
def test_losses_in_a_graph(name: str) -> None:
    """Forward and backward: nothing in them waits for the device."""
    x, labels = to(DEVICE, *batch(512, 64, 64))
    loss = getattr(losses, name)

    def call() -> list[torch.Tensor]:
        return learned(lambda rows: loss(rows, labels, backend="triton"), x)

    found, graph = capture(call)
    x.copy_(batch(512, 64, 64, seed=1)[0])
    graph.replay()
    assert all(torch.equal(one, other) for one, other in zip(found, call(), strict=True))


@on_gpu
def test_compiled_whole_and_under_autocast() -> None:
    x, labels = to(DEVICE, *batch(512, 64, 64))

    def call(rows: torch.Tensor) -> torch.Tensor:
        return losses.batch_all(rows * 2, labels, backend="triton")

    wanted = learned(call, x)
    found = learned(torch.compile(call, fullgraph=True), x)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert torch.equal(learned(call, x)[0], wanted[0])


@on_gpu
def test_memory_of_batch_all() -> None:
    """Below 64 MB beside rows, labels and gradient."""
    x, labels = to(DEVICE, *batch(8192, 128, 1024))
    learned(lambda rows: losses.batch_all(rows, labels, backend="triton"), x)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    learned(lambda rows: losses.batch_all(rows, labels, backend="triton"), x)
    assert torch.cuda.max_memory_allocated() - before < 64 << 20
