"""Padded mining as an operator: what torch's own checks say of it, and that it compiles without a break."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import minerlib
from minerlib import hamming, inputs
from minerlib.strategies import STRATEGIES
from tests.triton_interpreter import INTERPRETED, NOT_INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason=NOT_INTERPRETED)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    return rows, torch.tensor([0, 1, 0, 1, 0, 1, 2])


def arguments(batch: tuple[torch.Tensor, torch.Tensor], strategy: str, slots: int) -> tuple[Any, ...]:
    options = (2.0, "sqeuclidean", "ordered", "drop", -3, True)  # -3: a seed of 2^64 - 3
    return (*batch, None, None, strategy, *options, slots)


@pytest.mark.parametrize(("strategy", "slots"), [("batch-hard", -1), ("hard", 12), ("hard", -1)])
def test_opcheck(batch: tuple[torch.Tensor, torch.Tensor], strategy: str, slots: int) -> None:
    from minerlib import ops

    kinds = ("test_schema", "test_faketensor") + ("test_aot_dispatch_dynamic",) * (strategy == "hard")
    torch.library.opcheck(ops.mine_padded, arguments(batch, strategy, slots), test_utils=kinds)


@pytest.mark.parametrize("strategy", ["batch-hard", "assorted", "semi-hard", "distance-weighted"])
def test_compiled_whole(batch: tuple[torch.Tensor, torch.Tensor], strategy: str) -> None:
    def mined(rows: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = minerlib.mine(
            rows * 2, labels, strategy, margin=2.0, seed=2**64 - 3, compact=False, backend="triton"
        )
        return found.anchors, found.positives, found.negatives, found.valid

    rows, labels = batch
    compiled = torch.compile(mined, fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(rows, labels), mined(rows, labels), strict=True):
        assert torch.equal(found, expected)


def test_neighbours_and_distances_as_operators(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    from minerlib import ops

    x, kinds = batch[0], ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.nearest_rows, (x[:2], x, 3, "cosine", True), test_utils=kinds)
    torch.library.opcheck(ops.all_distances, (x[None, :2], x[None], "euclidean"), test_utils=kinds)

    def found(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        near = minerlib.nearest(rows[:2], rows, 3, backend="triton")
        return near.distances, near.indices, minerlib.pairwise_distance(rows[:2], backend="triton")

    compiled = torch.compile(found, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(compiled(x), found(x), strict=True))


@pytest.mark.parametrize("strategy", ["hard", "random-hard", "distance-weighted"])
def test_more_and_fewer_slots_than_pairs(batch: tuple[torch.Tensor, torch.Tensor], strategy: str) -> None:
    from minerlib import ops

    assert strategy in STRATEGIES
    exact = ops.mine_padded(*arguments(batch, strategy, -1))
    pairs = len(exact[0])
    assert pairs == 12
    more, fewer = (ops.mine_padded(*arguments(batch, strategy, slots)) for slots in (17, 5))
    for column, wide, narrow in zip(exact, more, fewer, strict=True):
        assert torch.equal(wide[:pairs], column)
        assert torch.equal(narrow, column[:5])
    assert len(more[3]) == 17
    assert not more[3][pairs:].any()
    for column in more[:3]:  # safe to gather with
        assert ((column >= 0) & (column < 7)).all()
    if strategy == "distance-weighted":
        return
    for slots, found in (
        (17, more),
        (5, fewer),
    ):  # what the host answers
        wanted = minerlib.mine(*batch, strategy, margin=2.0, seed=2**64 - 3, compact=False, slots=slots)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))


# ------------------------------------------------------------------ packed codes


@pytest.fixture
def codes() -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.randint(256, (23, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return made[:3], made[3:]


def test_opcheck_of_codes(codes: tuple[torch.Tensor, torch.Tensor]) -> None:
    from minerlib import ops

    kinds = ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.code_distances, codes, test_utils=kinds)
    torch.library.opcheck(ops.nearest_codes, (*codes, 4), test_utils=kinds)
    torch.library.opcheck(ops.codes_within, (*codes, 33), test_utils=(*kinds, "test_aot_dispatch_dynamic"))


def test_codes_compiled_whole(codes: tuple[torch.Tensor, torch.Tensor]) -> None:
    def found(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            minerlib.hamming_distance(~x, y, backend="triton") + 1,
            *minerlib.hamming_search(~x, y, 4, backend="triton"),
            *minerlib.hamming_range(~x, y, 33, backend="triton"),
        )

    compiled = torch.compile(found, backend="aot_eager", fullgraph=True)
    for ours, plain in zip(compiled(*codes), found(*codes), strict=True):
        assert torch.equal(ours, plain)


def test_codes_on_the_device_stay_there(
    codes: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the interpreter the host is the device: nothing passes through NumPy, which arrays still do."""
    from minerlib.backends import _device_codes

    wanted = minerlib.hamming_range(*codes, 33, backend="reference")
    arrays = [code.numpy() for code in codes]
    for ours, theirs in zip(minerlib.hamming_range(*arrays, 33, backend="triton"), wanted, strict=True):
        assert (ours == theirs.numpy()).all()
    for module, name in ((hamming, "to_numpy"), (inputs, "to_numpy"), (_device_codes, "_to_device")):
        monkeypatch.setattr(module, name, None)
    for ours, theirs in zip(minerlib.hamming_range(*codes, 33, backend="triton"), wanted, strict=True):
        assert torch.equal(ours, theirs)
    assert minerlib.hamming_search(*codes, 1, backend="triton").indices.shape == (3, 1)
    assert minerlib.hamming_distance(*codes, backend="triton").dtype == torch.int32


def test_bad_codes_are_refused_as_on_the_host(codes: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = codes
    for arguments in ((x[0], y, 1), (x.int(), y, 1), (x[:, :0], y[:, :0], 1), (x, y[:, :8], 1), (x, y[:0], 1),
                      (x, y, 0), (x, y, 21), (x.to(torch.complex64), y, 1), (x, y, "3")):  # fmt: skip
        messages = []
        for backend in ("reference", "triton"):
            with pytest.raises((TypeError, ValueError)) as caught:
                minerlib.hamming_search(*arguments, backend=backend)
            messages.append((type(caught.value), str(caught.value)))
        assert messages[0] == messages[1]
