"""CUDA tensors in, CUDA tensors out, with the answers that the host gives; `make gpu` runs this."""

from __future__ import annotations

import pytest
import torch

import minerlib
from minerlib import dispatch
from minerlib.strategies import STRATEGIES

pytestmark = pytest.mark.gpu


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(130, 33, generator=torch.Generator().manual_seed(0)), torch.arange(130) % 7


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_triplets_come_back_to_their_device(batch: tuple[torch.Tensor, torch.Tensor], strategy: str) -> None:
    rows, labels = batch
    expected = minerlib.mine(rows, labels, strategy, margin=5.0)
    for marks in (labels.cuda(), labels.numpy()):
        found = minerlib.mine(rows.cuda(), marks, strategy, margin=5.0)
        assert all(ours.is_cuda for ours in found)
        if strategy != "distance-weighted":  # whose draws are those of a backend
            for ours, theirs in zip(found, expected, strict=True):
                assert torch.equal(ours.cpu(), theirs)


def test_auto_takes_the_gpu_that_holds_the_tensors(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows, labels = (tensor.cuda() for tensor in batch)
    assert minerlib.explain("mine", rows, labels, "hard").chosen == "triton"
    assert minerlib.explain("nearest", rows, rows, 3).chosen == "triton"
    codes = minerlib.pack_bits(rows)
    usable = minerlib.explain("hamming_search").reasons["cuda"] == (dispatch.ON_HOST.format("cuda"),)
    assert minerlib.explain("hamming_search", codes, codes, 3).chosen == ("cuda" if usable else "triton")
    assert minerlib.explain("mine", *batch, "hard").chosen == "native"


def test_tensors_on_two_devices_are_refused(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows, labels = batch
    with pytest.raises(
        ValueError, match="labels: expected a tensor on cuda:0 like embeddings, got one on cpu"
    ):
        minerlib.mine(rows.cuda(), labels, "hard")


def test_codes_come_back_to_their_device(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    rows, _ = batch
    codes = minerlib.pack_bits(rows)
    on_device = minerlib.pack_bits(rows.cuda())
    for ours, theirs in zip(_of_codes(on_device), _of_codes(codes), strict=True):
        assert ours.is_cuda
        assert torch.equal(ours.cpu(), theirs)


def _of_codes(codes: torch.Tensor) -> list[torch.Tensor]:
    return [
        codes,
        minerlib.unpack_bits(codes, 33),
        minerlib.hamming_distance(codes, codes),
        *minerlib.hamming_search(codes, codes, 9),
        *minerlib.hamming_range(codes, codes, 12),
    ]
