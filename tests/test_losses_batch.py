"""Every loss against its plain float64 form, values and gradients; zero losses; autocast; compile."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable

import numpy as np
import pytest
import torch

import minerlib
from minerlib import BackendUnavailable, losses
from minerlib import reference_losses as plain
from minerlib.backends import native
from minerlib.losses import METRICS, REDUCTIONS

HINGES = REDUCTIONS[:3]
PATHS = (*(f"native:{isa}" for isa in native.instruction_sets()), "torch")
EXTREMES = ("epen", "ephn", "hpen", "hphn", "assorted", "distance_weighted")
STRATEGY = {name: name.replace("_", "-") for name in EXTREMES}
#: Those that take embeddings and labels alone.
OF_LABELS: dict[str, Callable[..., torch.Tensor]] = {
    name: getattr(losses, name)
    for name in (*EXTREMES, "batch_all", "nca", "proxy_nca", "easy_positive", "easy_positive_distance")
}


@pytest.fixture(params=PATHS)
def path(request):
    """`backend=` for a loss, with its instruction set pinned."""
    name, _, isa = request.param.partition(":")
    if not isa:
        yield name
        return
    with native.use_instruction_set(isa):
        yield name


def batch(rows, dims, classes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dims, generator=generator, dtype=torch.float64).to(dtype)
    return x.requires_grad_(), torch.randint(classes, (rows,), generator=generator)


def assert_same(ours, expected, rows, limit=1e-10):
    """Values to a relative limit, gradients to that of the largest entry."""
    torch.testing.assert_close(ours.double(), expected, rtol=limit, atol=limit)
    for mine, theirs in zip(
        torch.autograd.grad(ours, rows), torch.autograd.grad(expected, rows), strict=True
    ):
        assert mine.dtype == theirs.dtype
        scale = max(1e-30, float(theirs.abs().max()))
        assert float((mine.double() - theirs.double()).abs().max()) <= limit * scale + 1e-13


# ------------------------------------------------------------------ values and gradients


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("reduction", HINGES)
@pytest.mark.parametrize(
    ("rows", "dims", "classes"),
    [(2, 3, 2), (3, 1, 2), (17, 7, 3), (33, 16, 16), (70, 33, 2), (65, 5, 1), (40, 257, 4)],
)
def test_batch_all_is_the_sum_over_all_triplets(metric, reduction, rows, dims, classes, path):
    x, labels = batch(rows, dims, classes)
    margin = 0.3 if metric == "cosine" else dims**0.5
    ours = losses.batch_all(x, labels, margin, metric, reduction, backend=path)
    assert_same(ours, plain.batch_all(x, labels, margin, metric, reduction), (x,))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("threads", [1, 3])
def test_batch_all_of_float32_over_several_blocks(metric, threads, path):
    """More columns than one block of anchors holds, in single precision, off the origin."""
    x, labels = batch(90, 12, 4, torch.float32)
    x = (x.detach() + 100).requires_grad_()
    minerlib.set_num_threads(threads)
    assert_same(
        losses.batch_all(x, labels, 0.4, metric, backend=path),
        plain.batch_all(x, labels, 0.4, metric), (x,), 1e-6,
    )  # fmt: skip


def test_batch_all_over_more_anchors_than_a_block(path):
    x, labels = batch(2100, 4, 1500, torch.float32)
    rows = torch.randperm(2100, generator=torch.Generator().manual_seed(1))[:25]
    # the plain form of a few anchors; those of the others follow from the same code
    whole = [
        losses.batch_all(x[rows], labels[rows], 0.5, reduction="sum", reference=x, reference_labels=labels,
                         backend=path),
        plain.batch_all(x[rows], labels[rows], 0.5, reduction="sum", reference=x, reference_labels=labels),
    ]  # fmt: skip
    assert_same(*whole, (x,), 1e-6)
    counted = losses.batch_all(x, labels, 0.5, reduction="sum", backend=path)
    triplets = minerlib.mine(x, labels, "all", margin=0.5)
    assert_same(counted, losses.triplet_margin(x, triplets, 0.5, reduction="sum").double(), (x,), 2e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_batch_all_with_label_sets_and_a_reference(metric, path):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(13, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randn(29, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    sets = [torch.rand(rows, 70, generator=generator) < 0.1 for rows in (13, 29)]
    assert_same(
        losses.batch_all(x, sets[0], 0.4, metric, reference=y, reference_labels=sets[1], backend=path),
        plain.batch_all(x, sets[0], 0.4, metric, reference=y, reference_labels=sets[1]), (x, y),
    )  # fmt: skip
    assert_same(
        losses.batch_all(y, sets[1], 0.4, metric, backend=path),
        plain.batch_all(y, sets[1], 0.4, metric),
        (y,),
    )
    single = [torch.randint(4, (rows,), generator=generator) for rows in (13, 29)]
    assert_same(
        losses.batch_all(x, single[0], 0.4, metric, reference=y, reference_labels=single[1], backend=path),
        plain.batch_all(x, single[0], 0.4, metric, reference=y, reference_labels=single[1]), (x, y),
    )  # fmt: skip


@pytest.mark.parametrize("metric", METRICS)
def test_batch_all_keeps_the_digits_of_close_rows(metric, path):
    """Rows 1e-4 apart, 50 from others: |x|^2 + |y|^2 - 2 x.y in float32 keeps no digit of their distances."""
    generator = torch.Generator().manual_seed(5)
    far = 50 * torch.randn(12, 1, 6, generator=generator)
    x = (far + 1e-4 * torch.randn(12, 4, 6, generator=generator)).reshape(48, 6).requires_grad_()
    labels = torch.arange(48) % 2
    margin = 0.0
    ours = losses.batch_all(x, labels, margin, metric, backend=path)
    assert_same(ours, plain.batch_all(x, labels, margin, metric), (x,), 2e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_batch_all_of_equal_rows_and_zero_rows(metric, path):
    x = torch.zeros(12, 5, dtype=torch.float64)
    x[6:] = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    x.requires_grad_()
    labels = torch.arange(12) % 3
    loss = losses.batch_all(x, labels, 0.5, metric, backend=path)
    (gradient,) = torch.autograd.grad(loss, x)
    assert torch.isfinite(gradient).all()
    if metric != "cosine":  # whose plain form divides zero by zero
        assert_same(
            losses.batch_all(x, labels, 0.5, metric, backend=path),
            plain.batch_all(x, labels, 0.5, metric), (x,),
        )  # fmt: skip


@pytest.mark.parametrize("rows", [700, 2100])  # all distances at once, and blocks of anchors
def test_batch_all_gives_the_same_bits_for_any_number_of_threads(rows):
    x, labels = batch(rows, 20, 5, torch.float32)
    found = []
    for threads in (1, 2, 5):
        minerlib.set_num_threads(threads)
        loss = losses.batch_all(x, labels, 1.0)
        found.append((loss, *torch.autograd.grad(loss, x)))
    for loss, gradient in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(gradient, found[0][1])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("reduction", HINGES)
@pytest.mark.parametrize("name", ["nca", "easy_positive_distance"])
def test_losses_of_ratios(name, metric, reduction):
    x, labels = batch(23, 6, 4)
    expected = getattr(plain, name)(x, labels, metric, reduction)
    assert_same(getattr(losses, name)(x, labels, metric, reduction), expected, (x,))
    y, y_labels = batch(31, 6, 4, seed=8)
    with_reference = {"reference": y, "reference_labels": y_labels}
    expected = getattr(plain, name)(x, labels, metric, reduction, **with_reference)
    assert_same(getattr(losses, name)(x, labels, metric, reduction, **with_reference), expected, (x, y))


def test_losses_of_ratios_with_label_sets():
    x, _ = batch(20, 6, 4)
    sets = torch.rand(20, 9, generator=torch.Generator().manual_seed(4)) < 0.15
    assert_same(losses.nca(x, sets), plain.nca(x, sets), (x,))
    assert_same(losses.easy_positive_distance(x, sets), plain.easy_positive_distance(x, sets), (x,))


@pytest.mark.parametrize("reduction", HINGES)
def test_easy_positive(reduction):
    x, labels = batch(23, 6, 4)
    assert_same(losses.easy_positive(x, labels, reduction), plain.easy_positive(x, labels, reduction), (x,))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("reduction", HINGES)
def test_proxy_nca(metric, reduction):
    x, labels = batch(23, 6, 4)
    proxies, _ = batch(7, 6, 4, seed=9)
    proxy_labels = torch.tensor([0, 1, 2, 3, 0, 1, 8])
    for given in ((), (proxies,), (proxies, proxy_labels)):
        options = {"metric": metric, "reduction": reduction}
        ours = losses.proxy_nca(x, labels, *given, **options)
        rows = (x, proxies) if given else (x,)
        assert_same(ours, plain.proxy_nca(x, labels, *given, **options), rows)


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("metric", METRICS)
def test_mined_losses(name, metric, path):
    x, labels = batch(40, 6, 4)
    # the reference draws distance-weighted negatives of its own
    seed, strategy = 7, STRATEGY[name]
    if name == "distance_weighted":
        triplets = minerlib.mine(x, labels, strategy, metric=metric, seed=seed)
        expected = plain.triplet_margin(x, triplets, 0.25, metric)
    else:
        expected = plain.mined(x, labels, strategy, 0.25, metric, seed=seed)
    assert_same(getattr(losses, name)(x, labels, metric=metric, seed=seed, backend=path), expected, (x,))


@pytest.mark.parametrize("reduction", HINGES)
def test_dtsh(reduction, path):
    x, labels = batch(24, 16, 3)
    triplets = minerlib.mine(x, labels, "random-hard", margin=50.0)
    ours = losses.dtsh(x, triplets, 3.0, 0.5, reduction, backend=path)
    assert_same(ours, plain.dtsh(x, triplets, 3.0, 0.5, reduction), (x,))
    # scores so large that exp overflows
    big = (100 * x.detach()).requires_grad_()
    ours = losses.dtsh(big, triplets, 3.0, 0.0, reduction, backend=path)
    assert_same(ours, plain.dtsh(big, triplets, 3.0, 0.0, reduction), (big,))


@pytest.mark.parametrize("name", [*OF_LABELS, "dtsh"])
def test_gradcheck(name, path):
    if path == "torch" or name in ("batch_all", "dtsh", *EXTREMES):
        x, labels = batch(9, 4, 3, seed=12)
        options = {"backend": path} if name in ("batch_all", "dtsh", *EXTREMES) else {}
        if name == "dtsh":
            triplets = minerlib.mine(x, labels, "random-hard", margin=50.0)
            assert torch.autograd.gradcheck(
                lambda rows: losses.dtsh(rows, triplets, 1.0, 0.1, **options), (x,)
            )
            return
        assert torch.autograd.gradcheck(lambda rows: OF_LABELS[name](rows, labels, **options), (x,))


# ------------------------------------------------------------------ nothing to learn


@pytest.mark.parametrize("name", OF_LABELS)
@pytest.mark.parametrize(
    "labels", [[], [4], [1, 1, 1, 1], [1, 2, 3, 4]], ids=["empty", "one row", "one class", "all distinct"]
)
def test_batches_without_triplets_give_zero(name, labels):
    x = torch.randn(len(labels), 3, requires_grad=True)
    loss = OF_LABELS[name](x, torch.tensor(labels, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("name", [*OF_LABELS, "dtsh", "triplet_margin"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_batches_that_are_not_finite_give_zero(name, bad, path):
    x, labels = batch(12, 3, 3, torch.float32)
    x = x.detach()
    x[5, 1] = bad
    x.requires_grad_()
    options = {"backend": path} if name in ("batch_all", "dtsh", "triplet_margin", *EXTREMES) else {}
    if name in OF_LABELS:
        loss = OF_LABELS[name](x, labels, **options)
    else:
        loss = getattr(losses, name)(x, ([0], [1], [5]), **options)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(x.grad, torch.zeros_like(x))


# ------------------------------------------------------------------ types, autocast, compile, modules


@pytest.mark.parametrize("name", OF_LABELS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(name, dtype):
    x, labels = batch(16, 8, 3, torch.float32)
    half = x.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = OF_LABELS[name](half, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert half.grad.dtype == dtype
    wide = half.detach().float().requires_grad_()
    expected = OF_LABELS[name](wide, labels)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(half.grad, wide.grad.to(dtype))


@pytest.mark.parametrize("name", ["batch_all", "nca", "proxy_nca", "easy_positive", "assorted", "dtsh"])
def test_compiled_without_a_graph_break(name):
    x, labels = batch(16, 8, 3, torch.float32)
    proxies = batch(3, 8, 3, torch.float32, seed=2)[0]
    weight = torch.eye(8, requires_grad=True)
    triplets = minerlib.mine(x, labels, "hard")

    def step(rows, weight):
        if name == "dtsh":
            return losses.dtsh(rows @ weight, triplets)
        if name == "proxy_nca":
            return losses.proxy_nca(rows @ weight, labels, proxies)
        return OF_LABELS[name](rows @ weight, labels)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found, expected = compiled(x, weight), step(x, weight)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, (x, weight)), torch.autograd.grad(expected, (x, weight))
    )


def test_operators_pass_torchs_own_check():
    x, labels = batch(10, 4, 3)
    y, y_labels = batch(12, 4, 3, seed=3)
    index = torch.tensor([0, 1, 2])
    ops = torch.ops.minerlib
    calls = [
        (ops.batch_loss, (x, None, labels, None, "batch_all", 0.2, "cosine", "mean", "auto", True)),
        (ops.batch_loss, (x, y, labels, y_labels, "nca", 0.2, "sqeuclidean", "sum", "auto", True)),
        (ops.triplet_loss,
         (x, y, index, index + 1, index + 2, 0.2, "euclidean", "mean", False, True, "auto", True)),
        (ops.mined_triplet_loss,
         (x, None, labels, None, "hphn", 0.2, "cosine", "drop", 0, None, "mean", "auto", True)),
    ]  # fmt: skip
    for operator, arguments in calls:
        torch.library.opcheck(operator, arguments)


def test_modules_answer_like_their_functions():
    x, labels = batch(30, 6, 4)
    triplets = minerlib.mine(x, labels, "hard")
    pairs = [
        (losses.TripletMargin(0.7, "cosine", "sum")(x, triplets),
         losses.triplet_margin(x, triplets, 0.7, "cosine", "sum")),
        (losses.DTSH(3.0, 0.5)(x, triplets), losses.dtsh(x, triplets, 3.0, 0.5)),
        (losses.BatchAll(0.7)(x, labels), losses.batch_all(x, labels, 0.7)),
        (losses.NCA("cosine")(x, labels), losses.nca(x, labels, "cosine")),
        (losses.EasyPositive("sum")(x, labels), losses.easy_positive(x, labels, "sum")),
        (losses.EasyPositiveDistance()(x, labels), losses.easy_positive_distance(x, labels)),
        (losses.EPEN(0.3)(x, labels), losses.epen(x, labels, 0.3)),
        (losses.EPHN(0.3)(x, labels), losses.ephn(x, labels, 0.3)),
        (losses.HPEN(0.3)(x, labels), losses.hpen(x, labels, 0.3)),
        (losses.HPHN(0.3)(x, labels), losses.hphn(x, labels, 0.3)),
        (losses.Assorted(0.3, seed=4)(x, labels), losses.assorted(x, labels, 0.3, seed=4)),
        (losses.DistanceWeighted(0.3)(x, labels), losses.distance_weighted(x, labels, 0.3)),
        (losses.Mined("semi-hard", 0.9)(x, labels), losses.mined(x, labels, "semi-hard", 0.9)),
    ]  # fmt: skip
    for module, function in pairs:
        assert torch.equal(module, function)
    proxies = losses.ProxyNCA(4, 6).double()
    expected = losses.proxy_nca(x, labels, proxies.proxies, torch.arange(4))
    assert torch.equal(proxies(x, labels), expected)
    proxies(x, labels).backward()
    assert proxies.proxies.grad.abs().sum() > 0


def test_random_modules_draw_anew_and_go_on_from_their_state():
    x, labels = batch(60, 6, 4)
    module = losses.Assorted(5.0, seed=3)
    values = [module(x, labels).item() for _ in range(4)]
    assert len(set(values)) > 1
    other = losses.Assorted(5.0, seed=3)
    other(x, labels)
    resumed = losses.Assorted(5.0, seed=3)
    resumed.load_state_dict(other.state_dict())
    assert [resumed(x, labels).item() for _ in range(3)] == values[1:]
    resumed.eval()
    assert resumed(x, labels).item() == resumed(x, labels).item()


# ------------------------------------------------------------------ on data, memory, errors


@pytest.mark.parametrize("name", [*OF_LABELS, "triplet_margin", "dtsh"])
def test_every_loss_decreases_on_the_digits(name):
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = torch.tensor(digits.data[:300] / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target[:300])
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    values = []
    for _ in range(30):
        embedded = network(rows)
        if name == "triplet_margin":
            triplets = minerlib.mine(embedded, labels, "batch-hard")
            loss = losses.triplet_margin(embedded, triplets, 0.5)
        elif name == "dtsh":
            triplets = minerlib.mine(embedded, labels, "random-hard", margin=1.0)
            loss = losses.dtsh(embedded, triplets, alpha=2.0, quantization_weight=0.1)
        else:
            loss = OF_LABELS[name](embedded, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    assert np.mean(values[-5:]) < np.mean(values[:5]) - 1e-3


@pytest.mark.skipif(not native.instruction_sets(), reason="the native extension is not built")
def test_batch_all_takes_little_memory():
    """N = 4096: one N x N array of float32 would be 64 MiB, and a list of its triplets 2.7 GB."""
    script = """
        import resource, torch
        from minerlib import losses
        torch.manual_seed(0)
        x, labels = torch.randn(4096, 128), torch.arange(4096) // 8
        small = x[:64].clone().requires_grad_()
        losses.batch_all(small, labels[:64]).backward()
        x.requires_grad_()
        x.grad = torch.zeros_like(x)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        losses.batch_all(x, labels, 20.0).backward()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, x.grad.abs().sum().item() > 0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    grown, learned = done.stdout.split()
    assert learned == "True"
    assert int(grown) < 40 * 1024  # KiB


X, Y = torch.randn(6, 3), torch.arange(6) % 2


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: losses.batch_all(X.numpy(), Y), TypeError, "embeddings:"),
        (lambda: losses.batch_all(X, Y[:5]), ValueError, "labels:"),
        (lambda: losses.batch_all(X, Y.float()), TypeError, "labels:"),
        (lambda: losses.batch_all(X, Y, -1.0), ValueError, "margin:"),
        (lambda: losses.batch_all(X, Y, metric="l1"), ValueError, "metric:"),
        (lambda: losses.batch_all(X, Y, reduction="hinge-of-sums"), ValueError, "reduction:"),
        (lambda: losses.batch_all(X, Y, reference=X), ValueError, "reference_labels:"),
        (lambda: losses.batch_all(X, Y, backend="cuda"), ValueError, "backend:"),
        (lambda: losses.nca(X, Y, reference=X[:, :2], reference_labels=Y), ValueError, "reference:"),
        (lambda: losses.nca(X, Y, reference=X, reference_labels=Y[:, None] > 0), ValueError,
         "reference_labels:"),
        (lambda: losses.proxy_nca(X, Y, X[:0]), ValueError, "proxies:"),
        (lambda: losses.proxy_nca(X, Y, X, Y[:2]), ValueError, "proxy_labels:"),
        (lambda: losses.proxy_nca(X, Y, X[:1], [1]), ValueError, "proxy_labels:.*row 0"),
        (lambda: losses.mined(X, Y, "hardest"), ValueError, "strategy:"),
        (lambda: losses.mined(X, Y, "hard", seed=-1), ValueError, "seed:"),
        (lambda: losses.mined(X, Y, "hard", fallback="none"), ValueError, "fallback:"),
        (lambda: losses.dtsh(X, ([0], [1], [6])), ValueError, "triplets: negatives"),
        (lambda: losses.dtsh(X, ([0], [1], [2]), quantization_weight=-1), ValueError, "quantization_weight:"),
        (lambda: losses.batch_all(X.to("meta"), Y, backend="native"), BackendUnavailable, "meta"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, error, named):
    with pytest.raises(error, match=named):
        call()
