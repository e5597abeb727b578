"""CUDA tensors in, CUDA tensors out, with the answers that the host gives; `make gpu` runs this."""

from __future__ import annotations

import pytest
import torch

import minerlib
from minerlib.strategies import STRATEGIES

pytestmark = pytest.mark.gpu


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(130, 33, generator=torch.Generator().manual_seed(0)), torch.arange(130) % 7


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_triplets_come_back_to_their_device(batch: tuple[torch.Tensor, torch.Tensor], strategy: str) -> None:
    rows, labels = batch
    expected = minerlib.mine(rows, labels, strategy, margin=5.0)
    found = minerlib.mine(rows.cuda(), labels.cuda(), strategy, margin=5.0)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.is_cuda
        assert torch.equal(ours.cpu(), theirs)


def test_tensors_on_two_devices_are_refused(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows, labels = batch
    with pytest.raises(
        ValueError, match="labels: expected a tensor on cuda:0 like embeddings, got one on cpu"
    ):
        minerlib.mine(rows.cuda(), labels, "hard")
