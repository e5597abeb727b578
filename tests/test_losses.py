"""The triplet margin loss against its plain [T, D] float64 form, in value and in gradient."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import minerlib
from minerlib.losses import METRICS, REDUCTIONS, _pairs, triplet_margin


def plain(x, triplets, margin, metric, reduction, y=None):
    """The definition, gathered: three [T, D] float64 arrays and autograd's own derivatives."""
    y = x if y is None else y
    anchors, positives, negatives = (torch.as_tensor(index) for index in triplets)
    a, p, n = x[anchors], y[positives], y[negatives]
    if metric == "cosine":
        positive, negative = (1 - torch.cosine_similarity(a, other, dim=1) for other in (p, n))
    else:
        positive, negative = ((a - other).square().sum(1) for other in (p, n))
    if metric == "euclidean":
        positive, negative = positive.sqrt(), negative.sqrt()
    if reduction == "hinge-of-sums":
        return torch.relu(positive.sum() - negative.sum() + margin)
    hinge = torch.relu(positive - negative + margin)
    return {
        "mean": hinge.mean(),
        "sum": hinge.sum(),
        "mean-nonzero": hinge[hinge > 0].mean() if (hinge > 0).any() else hinge.sum(),
    }[reduction]


def random_triplets(generator, rows, columns, count):
    """Anchors, positives and negatives of three distinct rows each."""
    anchors = torch.randint(rows, (count,), generator=generator)
    positives = (anchors + torch.randint(1, columns, (count,), generator=generator)) % columns
    negatives = (positives + torch.randint(1, columns - 1, (count,), generator=generator)) % columns
    negatives = torch.where(negatives == anchors, (negatives + 1) % columns, negatives)
    return anchors, positives, torch.where(negatives == positives, (negatives + 1) % columns, negatives)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("count", [1, 7, 5000])
def test_value_and_gradient_equal_the_plain_form(metric, reduction, count):
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(19, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    triplets = random_triplets(generator, 19, 19, count)
    loss = triplet_margin(x, triplets, 0.7, metric, reduction)
    expected = plain(x, triplets, 0.7, metric, reduction)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(loss, x)
    (expected_gradient,) = torch.autograd.grad(expected, x)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(metric, reduction):
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(8, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randn(9, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    own = random_triplets(generator, 8, 8, 30)
    across = (
        own[0],
        torch.randint(9, (30,), generator=generator),
        torch.randint(9, (30,), generator=generator),
    )
    assert torch.autograd.gradcheck(lambda rows: triplet_margin(rows, own, 3.0, metric, reduction), (x,))
    assert torch.autograd.gradcheck(
        lambda rows, others: triplet_margin(rows, across, 3.0, metric, reduction, reference=others), (x, y)
    )


@pytest.mark.parametrize("metric", METRICS)
def test_reference_rows_get_their_own_gradient(metric):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randn(11, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    triplets = [torch.randint(high, (40,), generator=generator) for high in (6, 11, 11)]
    loss = triplet_margin(x, triplets, 0.5, metric, "sum", reference=y)
    expected = plain(x, triplets, 0.5, metric, "sum", y)
    for ours, theirs in zip(
        torch.autograd.grad(loss, (x, y)), torch.autograd.grad(expected, (x, y)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("metric", METRICS)
def test_chunks_change_nothing(metric, monkeypatch):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(30, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    triplets = random_triplets(generator, 30, 30, 300)
    (whole,) = torch.autograd.grad(triplet_margin(x, triplets, 1.0, metric), x)
    monkeypatch.setattr(_pairs, "_CHUNK_ELEMENTS", 8 * 13)
    (chunked,) = torch.autograd.grad(triplet_margin(x, triplets, 1.0, metric), x)
    torch.testing.assert_close(whole, chunked, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_no_triplets_give_zero_loss_and_zero_gradient(metric, reduction, rows):
    x = torch.randn(rows, 3, requires_grad=True)
    nothing = torch.empty(0, dtype=torch.int64)
    loss = triplet_margin(x, (nothing, nothing, nothing), 0.5, metric, reduction)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_equal_rows_and_zero_rows_keep_the_gradient_finite(metric, reduction):
    x = torch.zeros(6, 4)
    x[3:] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    x.requires_grad_()
    every = torch.tensor(list(itertools.permutations(range(6), 3)))
    triplet_margin(x, tuple(every.T), 0.5, metric, reduction).backward()
    assert torch.isfinite(x.grad).all()


def test_cosine_distance_of_a_zero_row_is_one_and_pulls_nothing():
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    loss = triplet_margin(x, ([0], [1], [2]), 0.25, "cosine", "sum")
    loss.backward()
    assert loss.item() == 0.25
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("metric", METRICS)
def test_float32_keeps_the_digits_of_close_rows_far_from_the_origin(metric):
    """Expanding |x|^2 + |y|^2 - 2xy would leave no digit of distances 1e-3 around 1e3."""
    generator = torch.Generator().manual_seed(7)
    x = 1e3 + 1e-3 * torch.randint(-50, 50, (24, 16), generator=generator).double()
    x = x.float().requires_grad_()
    triplets = random_triplets(generator, 24, 24, 60)
    exact = x.detach().double().requires_grad_()
    # a margin of zero keeps only differences of distances, which cancellation would swamp
    ours = torch.autograd.grad(triplet_margin(x, triplets, 1.0, metric, "sum"), x)[0].double()
    expected = torch.autograd.grad(plain(exact, triplets, 1.0, metric, "sum"), exact)[0]
    limit = 1e-2 if metric == "cosine" else 1e-5  # unit rows round at 6e-8 before their differences of 1e-5
    assert (ours - expected).norm() <= limit * expected.norm()


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_cosine_of_tiny_and_huge_rows_neither_vanishes_nor_overflows(scale):
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(7, 3, generator=generator)
    triplets = random_triplets(generator, 7, 7, 20)
    scaled = triplet_margin(rows * scale, triplets, 0.3, "cosine")
    torch.testing.assert_close(scaled, triplet_margin(rows, triplets, 0.3, "cosine"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(9, 300, generator=generator).to(dtype).requires_grad_()
    triplets = random_triplets(generator, 9, 9, 25)
    loss = triplet_margin(x, triplets, 0.5, reduction="sum")
    loss.backward()
    assert loss.dtype == torch.float32
    assert x.grad.dtype == dtype
    torch.testing.assert_close(
        loss, triplet_margin(x.float(), triplets, 0.5, reduction="sum"), rtol=0, atol=0
    )


def test_peak_memory_stays_below_one_gathered_array():
    """200,000 triplets of 256 dimensions would gather 205 MB an array; the loss may use a tenth of one."""
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(512, 256, generator=generator, requires_grad=True)
    triplets = random_triplets(generator, 512, 512, 200_000)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as log:
        triplet_margin(x, triplets, 0.5).backward()
    largest = max(event.cpu_memory_usage for event in log.events())
    assert largest < 200_000 * 256 * 4 / 10


def test_gradients_are_the_same_bits_every_time():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 16, generator=generator, requires_grad=True)
    triplets = random_triplets(generator, 64, 64, 300_000)
    gradients = [torch.autograd.grad(triplet_margin(x, triplets, 0.5, "cosine"), x)[0] for _ in range(5)]
    assert all(torch.equal(gradients[0], gradient) for gradient in gradients[1:])


def test_mined_triplets_go_straight_in():
    rng = np.random.default_rng(8)
    x = torch.tensor(rng.normal(size=(32, 8)), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor(rng.integers(0, 4, 32))
    triplets = minerlib.mine(x, labels, "random-hard", margin=2.0)
    assert len(triplets.anchors)
    loss = triplet_margin(x, triplets, 2.0)
    torch.testing.assert_close(loss, plain(x, triplets, 2.0, "sqeuclidean", "mean"), rtol=1e-12, atol=0)


def test_padded_triplets_count_only_where_they_are_valid():
    rng = np.random.default_rng(9)
    x, labels = torch.tensor(rng.normal(size=(24, 3))), torch.tensor(rng.integers(0, 3, 24))
    compact = minerlib.mine(x, labels, "semi-hard", margin=0.5)
    padded = minerlib.mine(x, labels, "semi-hard", margin=0.5, compact=False)
    assert 0 < len(compact.anchors) < len(padded.anchors)
    assert torch.equal(triplet_margin(x, compact, 0.5), triplet_margin(x, padded, 0.5))


X = torch.randn(5, 3)
TRIPLET = ([0], [1], [2])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "named"),
    [
        ((X.numpy(), TRIPLET), {}, TypeError, "embeddings:"),
        ((X.long(), TRIPLET), {}, TypeError, "embeddings:"),
        ((X[0], TRIPLET), {}, ValueError, "embeddings:"),
        ((X, TRIPLET), {"reference": X[:, :2]}, ValueError, "reference:"),
        ((X, TRIPLET), {"reference": X.double()}, TypeError, "reference:"),
        ((X, ([0], [1])), {}, TypeError, "triplets:"),
        ((X, torch.zeros(3, 1).long()), {}, TypeError, "triplets:"),
        ((X, ([0], [1], [5])), {}, ValueError, "triplets: negatives"),
        ((X, ([-1], [1], [2])), {}, ValueError, "triplets: anchors"),
        ((X, ([0], [1.0], [2])), {}, TypeError, "triplets: positives"),
        ((X, ([0], [[1]], [2])), {}, ValueError, "triplets: positives"),
        ((X, ([0], [1], [2, 3])), {}, ValueError, "triplets:"),
        ((X, TRIPLET, -1.0), {}, ValueError, "margin:"),
        ((X, TRIPLET, float("nan")), {}, ValueError, "margin:"),
        ((X, TRIPLET, "wide"), {}, TypeError, "margin:"),
        ((X, TRIPLET), {"metric": "manhattan"}, ValueError, "metric:"),
        ((X, TRIPLET), {"reduction": "median"}, ValueError, "reduction:"),
    ],
)
def test_errors_name_the_argument(arguments, options, error, named):
    with pytest.raises(error, match=named):
        triplet_margin(*arguments, **options)
