"""Losses of the triton backend under the interpreter: values and gradients of the plain float64 forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import minerlib
from minerlib import losses
from minerlib import reference_losses as plain
from minerlib.losses import METRICS, REDUCTIONS
from minerlib.results import PaddedTriplets
from tests.triton_interpreter import INTERPRETED, NOT_INTERPRETED, with_constants

pytestmark = pytest.mark.skipif(not INTERPRETED, reason=NOT_INTERPRETED)

if INTERPRETED:
    from tritonkernels import losses_batch, losses_rows, losses_triplet


def rows(count: int, dims: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dims, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def integers(high: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(high, (count,), generator=torch.Generator().manual_seed(seed))


def triplets(n: int, m: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors of x, positives and negatives of y, none of them the same row."""
    anchors = integers(n, count)
    positives = (anchors + 1 + integers(m - 2, count, 1)) % m
    negatives = torch.where((positives + 1) % m == anchors, (positives + 2) % m, (positives + 1) % m)
    return anchors, positives, negatives


def assert_same(ours: Tensor, expected: Tensor, inputs: Sequence[Tensor], limit: float = 1e-10) -> None:
    """Values to a relative limit, gradients to that of the largest entry."""
    assert ours.dtype == inputs[0].dtype
    torch.testing.assert_close(ours.double(), expected, rtol=limit, atol=limit)
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        assert mine.dtype == theirs.dtype
        scale = max(1e-30, float(theirs.abs().max()))
        assert float((mine.double() - theirs.double()).abs().max()) <= limit * scale + 1e-13


# ------------------------------------------------------------------ given triplets


@pytest.mark.parametrize("place", range(4))
def test_triplets_of_rows_and_of_a_reference(place: int) -> None:
    """More triplets than a program, more of a row than a step, more dimensions than a program."""
    metric, reduction = METRICS[place % 3], REDUCTIONS[place]
    options = {"margin": 0.9, "metric": metric, "reduction": reduction}
    x, given = (rows(5, 3), triplets(5, 5, 66)) if place else (rows(4, 67), triplets(4, 4, 9))
    ours = losses.triplet_margin(x, given, **options, backend="triton")
    assert_same(ours, plain.triplet_margin(x, given, **options), (x,))
    x, y, across = rows(3, 4), rows(4, 4, 1), triplets(3, 4, 9)
    options["reduction"] = REDUCTIONS[place - 1]
    ours = losses.triplet_margin(x, across, **options, reference=y, backend="triton")
    assert_same(ours, plain.triplet_margin(x, across, **options, reference=y), (x, y))


def test_hashing() -> None:
    """Terms from those that are all but zero (e^-60) to large ones."""
    u, given = rows(5, 3), triplets(5, 5, 20)
    for scale, alpha, reduction in ((1.0, 2.0, "mean"), (20.0, 0.0, "mean-nonzero")):
        ours = losses.dtsh(u * scale, given, alpha, 0.5, reduction, backend="triton")
        assert_same(ours, plain.dtsh(u * scale, given, alpha, 0.5, reduction), (u,))


def test_padding_takes_no_part_and_float32_keeps_its_digits() -> None:
    x = (rows(6, 5).detach().float() * 1e-3 + 100).requires_grad_()
    anchors, positives, negatives = triplets(6, 6, 12)
    valid = torch.arange(12) % 3 > 0
    positives[0] = 10**6  # of a triplet that is not valid: never read
    padded = PaddedTriplets(anchors, positives, negatives, valid)
    kept = (anchors[valid], positives[valid], negatives[valid])
    for metric in METRICS:
        ours = losses.triplet_margin(x, padded, 1e-6, metric, backend="triton")
        assert_same(ours, plain.triplet_margin(x, kept, 1e-6, metric), (x,), 2e-6)


def test_rows_that_are_equal_or_zero() -> None:
    x = torch.zeros(6, 3)
    x[3:] = torch.tensor([1.0, 2.0, 3.0])
    x.requires_grad_()
    labels = torch.arange(6) % 2
    for metric in METRICS[1:]:
        for loss in (
            losses.triplet_margin(x, ([0, 3, 3], [1, 4, 0], [2, 5, 4]), 0.5, metric, backend="triton"),
            losses.nca(x, labels, metric, backend="triton"),
        ):
            (gradient,) = torch.autograd.grad(loss, x)
            assert torch.isfinite(loss)
            assert torch.isfinite(gradient).all()


# ------------------------------------------------------------------ whole batches

OF_BATCHES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    name: (getattr(losses, name), getattr(plain, name))
    for name in ("batch_all", "nca", "easy_positive_distance")
}


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("name", OF_BATCHES)
def test_losses_over_a_batch(name: str, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tiles of anchors, two steps of columns; every metric and reduction; sets of labels; a reference."""
    ours, expected = OF_BATCHES[name]
    kind, columns = {"batch_all": 8 * 7 + 12 * 8}.get(name, 8 * 7), 4
    monkeypatch.setattr(losses_batch, "TILE_BYTES", 4 * kind)
    for kernel in ("BATCH_ALL", "RATIO"):
        few = with_constants(getattr(losses_batch, kernel), COLUMNS=columns)
        monkeypatch.setattr(losses_batch, kernel, few)
    options = {"metric": METRICS[place], "reduction": REDUCTIONS[(place + len(name)) % 3]}
    if name == "batch_all":
        options["margin"] = 0.4
    x, labels = rows(7, 5), integers(3, 7)
    assert_same(ours(x, labels, **options, backend="triton"), expected(x, labels, **options), (x,))
    x, y = rows(4, 5), rows(6, 5, 2)
    mine, theirs = integers(3, 4), integers(3, 6)
    if place == 1:  # sets, in a second word too
        mine, theirs = (torch.nn.functional.one_hot(label, 70) > 0 for label in (mine * 32, theirs * 32))
        mine[0, 64] = theirs[1, 5] = True
    options |= {"reference": y, "reference_labels": theirs}
    assert_same(ours(x, mine, **options, backend="triton"), expected(x, mine, **options), (x, y))


def test_batch_all_where_nearly_all_are_positives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sort of several steps, ties of distances, a margin that is met exactly."""
    monkeypatch.setattr(losses_batch, "BATCH_ALL", with_constants(losses_batch.BATCH_ALL, COLUMNS=4))
    x = torch.randint(4, (9, 2), generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    labels = (torch.arange(9) < 2).long()
    ours = losses.batch_all(x, labels, 1.0, reduction="mean-nonzero", backend="triton")
    assert_same(ours, plain.batch_all(x, labels, 1.0, reduction="mean-nonzero"), (x,))


@pytest.mark.parametrize("metric", METRICS)
def test_proxies(metric: str) -> None:
    x, labels, proxies = rows(7, 4), integers(3, 7), rows(5, 4, 3)
    of = torch.tensor([0, 1, 2, 0, 8])
    assert_same(
        losses.proxy_nca(x, labels, proxies, of, metric, backend="triton"),
        plain.proxy_nca(x, labels, proxies, of, metric), (x, proxies),
    )  # fmt: skip
    for given in ((), (proxies,)):
        ours = losses.proxy_nca(x, labels, *given, metric=metric, reduction="sum", backend="triton")
        expected = plain.proxy_nca(x, labels, *given, metric=metric, reduction="sum")
        assert_same(ours, expected, (x, *given))
    with pytest.raises(ValueError, match=r"^proxy_labels: expected a proxy for the class of every row"):
        losses.proxy_nca(x, labels, proxies, torch.tensor([0, 1, 3, 0, 8]), backend="triton")


def test_easy_positive_and_mined_ones() -> None:
    x, labels = rows(6, 4), integers(2, 6)
    assert_same(losses.easy_positive(x, labels, backend="triton"), plain.easy_positive(x, labels), (x,))
    for strategy in ("hphn", "semi-hard", "all"):
        ours = losses.mined(x, labels, strategy, 2.0, backend="triton", seed=3)
        assert_same(ours, plain.mined(x, labels, strategy, 2.0, seed=3), (x,))


def test_gradients_by_differences() -> None:
    x, y, labels = rows(3, 2), rows(3, 2, 5), torch.tensor([0, 0, 1])
    given = ([0, 1], [1, 0], [2, 2])
    for call, inputs in (
        (lambda a, b: losses.triplet_margin(a, given, 9.0, "cosine", reference=b, backend="triton"), (x, y)),
        (lambda a: losses.triplet_margin(a, given, 9.0, "euclidean", backend="triton"), (x,)),
        (lambda a: losses.batch_all(a, labels, 9.0, backend="triton"), (x,)),
        (lambda a: losses.nca(a, labels, backend="triton"), (x,)),
    ):
        assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


# ------------------------------------------------------------------ nothing to learn; torch


def test_nothing_to_learn_gives_zeros() -> None:
    """No triplets, one class, a value that is not finite; half precision; no rows."""
    x, labels = rows(5, 3, dtype=torch.float32), torch.arange(5) % 2
    bad = x.detach().clone()
    bad[3, 1] = torch.nan
    none = torch.zeros(0, dtype=torch.int64)
    half = rows(4, 3, dtype=torch.bfloat16)
    for given, loss in (
        (x, lambda r: losses.triplet_margin(r, (none, none, none), backend="triton")),
        (x, lambda r: losses.triplet_margin(
            r, PaddedTriplets(*[labels] * 3, labels < 0), reduction="hinge-of-sums", backend="triton")),
        (x[:0], lambda r: losses.batch_all(r, labels[:0], backend="triton")),
        *((x, lambda r, f=f: f(r, labels * 0, backend="triton")) for f, _ in OF_BATCHES.values()),
        *((bad, lambda r, f=f: f(r, labels, backend="triton")) for f, _ in OF_BATCHES.values()),
        (bad, lambda r: losses.triplet_margin(r, ([0], [2], [3]), backend="triton")),
        (bad, lambda r: losses.mined(r, labels, "batch-hard", backend="triton")),
        (half, lambda r: losses.nca(r, torch.arange(4), backend="triton")),
    ):  # fmt: skip
        leaf = given.detach().requires_grad_()
        found = loss(leaf)
        assert found.item() == 0
        assert torch.equal(torch.autograd.grad(found, leaf)[0], torch.zeros_like(leaf))


def test_mistakes_are_refused() -> None:
    x = rows(4, 3)
    for wrong in (-1, 4):
        with pytest.raises(
            ValueError, match=rf"^triplets: negatives: expected rows 0 to 3, got {min(wrong, 2)}"
        ):
            losses.triplet_margin(x, ([0, 0], [1, 1], [2, wrong]), backend="triton")


def test_operators_and_compilation() -> None:
    """Torch's own checks, one graph without a break, the same bits each time, autocast."""
    x, labels = rows(4, 2, dtype=torch.float32), torch.arange(4) % 2
    options: tuple[Any, ...] = (None, labels, None, "nca", 0.5, "cosine", "mean", "triton", True)
    torch.library.opcheck(
        torch.ops.minerlib.batch_loss, (x, *options), test_utils=("test_schema", "test_faketensor")
    )
    found = minerlib.mine(x, labels, "batch-hard", compact=False, backend="triton")

    def step(r: Tensor) -> Tensor:
        return losses.triplet_margin(r * 2, found, 0.5, backend="triton") + losses.nca(
            r * 2, labels, backend="triton"
        )

    eager = torch.autograd.grad(step(x), x)[0]
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(torch.autograd.grad(compiled(x), x)[0], eager)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(torch.autograd.grad(step(x), x)[0], eager)


def test_reductions_and_comparisons_are_numbered_as_the_losses_name_them() -> None:
    from minerlib.losses import _pairs

    assert losses_rows.REDUCTIONS == REDUCTIONS
    assert losses_triplet.COMPARISONS == _pairs.COMPARISONS
    assert losses_batch.METRICS == METRICS
