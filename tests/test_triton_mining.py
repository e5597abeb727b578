"""The triton backend under the interpreter: the triplets of the reference, bit for bit.

The interpreter runs one program after the other as NumPy code, milliseconds each, so the cases are small;
they take what is hard from the data sets of the other backends: ties, duplicates, huge and shifted rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import minerlib
from minerlib import device_inputs, reference
from tests import datasets
from tests.conftest import FAMILIES, Running, _recorder, load_backend
from tests.triton_interpreter import INTERPRETED, NOT_INTERPRETED, with_constants

pytestmark = pytest.mark.skipif(not INTERPRETED, reason=NOT_INTERPRETED)

EXTREMES = ("epen", "ephn", "hpen", "hphn", "batch-hard", "assorted", "easy-positive")
WINDOWS = ("hard", "semi-hard", "random-hard", "semi-hard-nearest")
SEED = 0x9E3779B97F4A7C15


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Running:
    """The backend, recording which of its families run."""
    module = load_backend("triton")
    assert module.reasons_unusable() == ()
    from tritonkernels import sample, window

    # A program that finds no pair left costs the interpreter as much as the start of any other.
    monkeypatch.setattr(window, "WINDOW", replace(window.WINDOW, shares=1))
    monkeypatch.setattr(sample, "SAMPLE", replace(sample.SAMPLE, shares=2))
    running = Running("triton", "", module)
    for family in FAMILIES:
        monkeypatch.setattr(module, family, _recorder(running, family, getattr(module, family)))
    return running


class Batch:
    """Rows and labels with the reference's view of them."""

    def __init__(
        self,
        data: str,
        labels: str,
        dtype: str,
        metric: str,
        n: int,
        m: int,
        d: int,
        margin: float | None = None,
    ) -> None:
        rows, marks = datasets.rows(data, n + m, d, dtype), datasets.labels(labels, n + m)
        self.own = m == 0
        self.x, self.x_labels = rows[:n], marks[:n]
        self.y, self.y_labels = (self.x, self.x_labels) if self.own else (rows[n:], marks[n:])
        self.same = datasets.same_class(self.x_labels, self.y_labels)
        self.arguments: dict[str, Any] = {
            "embeddings": datasets.as_dtype(self.x, dtype), "labels": self.x_labels, "metric": metric,
        }  # fmt: skip
        if not self.own:
            self.arguments |= {
                "reference": datasets.as_dtype(self.y, dtype),
                "reference_labels": self.y_labels,
            }
        distances = reference.pairwise_distance(self.x, self.y, metric)
        spread = float(np.median(np.abs(distances - np.median(distances))))
        self.options = {"margin": spread if margin is None else margin, "metric": metric}

    def expected(self, strategy: str, **options: Any) -> list[np.ndarray]:
        return list(reference.mine(self.x, self.y, self.same, self.own, strategy, **self.options, **options))

    def mined(self, strategy: str, **options: Any) -> list[np.ndarray]:
        found = minerlib.mine(
            **self.arguments, strategy=strategy, margin=self.options["margin"], backend="triton", **options
        )
        return [np.asarray(column) for column in found]


def assert_mined(batch: Batch, triton: Running, family: str, strategy: str, **options: Any) -> None:
    found = batch.mined(strategy, **options)
    assert triton.families() == [family]
    for column, wanted in zip(found, batch.expected(strategy, **options), strict=True):
        assert column.dtype == np.int64
        assert np.array_equal(column, wanted), (strategy, options)


@pytest.mark.parametrize(
    "case",
    [
        ("gaussian", "few", "float32", "sqeuclidean", 66, 0, 5),  # two blocks of rows, two of columns
        ("clusters", "eights", "float16", "cosine", 12, 0, 9),
        ("duplicates", "few", "bfloat16", "euclidean", 9, 0, 9),  # nothing certifies
        ("zeros", "multi-few", "float64", "cosine", 12, 0, 9),
        ("grid", "multi-many", "float32", "sqeuclidean", 10, 20, 5),
        ("huge", "skewed", "float64", "sqeuclidean", 12, 20, 5),
        ("subnormal", "skewed", "float64", "euclidean", 7, 9, 3),  # no filter holds such values
        ("off-centre", "distinct", "float32", "cosine", 7, 20, 5),
        ("outlier", "one", "float32", "sqeuclidean", 7, 0, 3),
        ("last-bit", "extreme", "float32", "sqeuclidean", 7, 0, 150),  # several steps of a row
        ("gaussian", "few", "float32", "sqeuclidean", 1, 0, 1),
    ],
    ids=lambda case: "-".join(map(str, case)),
)
def test_extremes(case: Any, triton: Running) -> None:
    batch = Batch(*case)
    problem = device_inputs.mining_problem(
        batch.arguments["embeddings"], batch.x_labels, batch.arguments.get("reference"),
        None if batch.own else batch.y_labels, batch.options["metric"],
    )  # fmt: skip
    found = triton.module.extremes(problem, range(4), True).numpy()
    wanted = reference.extremes(batch.x, batch.y, batch.same, batch.own, batch.options["metric"])
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("strategy", EXTREMES)
def test_strategies_per_anchor(strategy: str, triton: Running) -> None:
    assert_mined(
        Batch("grid", "few", "float32", "euclidean", 7, 0, 3), triton, "extremes", strategy, seed=SEED
    )


@pytest.mark.parametrize(
    "case",
    [
        ("gaussian", "few", "float32", "sqeuclidean", 10, 0, 5, None, "ordered"),
        ("clusters", "few", "float32", "cosine", 10, 0, 9, None, "combinations"),
        ("duplicates", "few", "bfloat16", "euclidean", 7, 0, 9, 0.5, "ordered"),
        ("zeros", "multi-few", "float64", "cosine", 9, 0, 5, None, "combinations"),
        ("grid", "few", "float32", "sqeuclidean", 4, 16, 3, 3.0, "ordered"),  # edges met exactly
        ("tiny", "skewed", "float64", "euclidean", 6, 9, 3, None, "ordered"),
        (
            "off-centre",
            "extreme",
            "float32",
            "euclidean",
            5,
            135,
            3,
            None,
            "ordered",
        ),  # two blocks of columns
    ],
    ids=lambda case: "-".join(map(str, case)),
)
def test_windows(case: Any, triton: Running) -> None:
    *data, pairs = case
    batch = Batch(*data)
    for strategy in WINDOWS:
        assert_mined(batch, triton, "window", strategy, pairs=pairs, seed=SEED)


@pytest.mark.parametrize(
    ("data", "dtype", "margin"),
    [("gaussian", "float32", None), ("duplicates", "bfloat16", 0.5), ("grid", "float32", 3.0)],
)
def test_the_drawn_one_lies_in_any_part_of_the_row(
    data: str, dtype: str, margin: float | None, triton: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three parts of two blocks: with nothing to ask, with everything, and with some at the edges."""
    from tritonkernels import window

    small = with_constants(window.WINDOW_KERNEL, PAIRS=2, COLUMNS=16, ASKED=8, PARTS=4)
    monkeypatch.setattr(window, "WINDOW_KERNEL", small)
    batch = Batch(data, "few", dtype, "euclidean", 1, 79, 3, margin)
    for strategy in ("semi-hard", "random-hard", "semi-hard-nearest"):
        assert_mined(batch, triton, "window", strategy, seed=SEED)
    negatives = batch.expected("random-hard", seed=SEED)[2]
    assert set(negatives // 32) == {0, 1, 2}
    assert_mined(batch, triton, "every_triplet", "all")


@pytest.mark.parametrize("fallback", ["hardest", "farthest"])
def test_fallbacks(fallback: str, triton: Running) -> None:
    batch = Batch("gaussian", "few", "float32", "sqeuclidean", 7, 0, 5, margin=0.0)
    for strategy in ("hard", "semi-hard", "semi-hard-nearest"):
        assert_mined(batch, triton, "window", strategy, fallback=fallback, seed=SEED)


@pytest.mark.parametrize("pairs", ["ordered", "combinations"])
def test_every_triplet_and_counts(pairs: str, triton: Running) -> None:
    batch = Batch("grid", "few", "float32", "sqeuclidean", 7, 0, 3, margin=2.0)
    assert_mined(batch, triton, "every_triplet", "all", pairs=pairs)
    found = minerlib.count_triplets(**batch.arguments, margin=2.0, pairs=pairs, backend="triton")
    assert triton.families() == ["counts"]
    wanted = reference.count_triplets(batch.x, batch.y, batch.same, True, **batch.options, pairs=pairs)
    assert tuple(found) == wanted
    assert all(type(number) is int for number in found)


@pytest.mark.parametrize(
    "dtype_data", [("float32", "clusters"), ("float64", "subnormal"), ("float64", "zeros")]
)
def test_distance_weighted_draws_what_the_reference_may(dtype_data: tuple[str, str], triton: Running) -> None:
    dtype, data = dtype_data
    batch = Batch(data, "few", dtype, "sqeuclidean", 9, 0, 5)
    found = batch.mined("distance-weighted", seed=SEED)
    assert triton.families() == ["sample"]
    wanted = batch.expected("distance-weighted", seed=SEED)
    assert np.array_equal(found[0], wanted[0])
    assert np.array_equal(found[1], wanted[1])
    weights = reference.DistanceWeights(batch.x, batch.y)
    for a, p, n in zip(*found, strict=True):
        assert not batch.same[a, n], (a, p, n)
        assert np.isfinite(weights.log_weights(a, np.array([n]))).all(), (a, p, n)


def test_distance_weighted_follows_its_distribution(triton: Running) -> None:
    """Frequencies of many pairs of one anchor, by a chi-squared test that a wrong power fails."""
    x = datasets.rows("gaussian", 6, 4, "float32").astype(np.float32)
    columns = np.concatenate([np.repeat(x[:1], 150, axis=0), x[1:]])
    labels = np.array([0] * 150 + [1] * 5)
    found = minerlib.mine(
        x[:1], labels[:1], "distance-weighted", reference=columns, reference_labels=labels, backend="triton"
    )
    assert len(found.negatives) == 150
    log_w = reference.DistanceWeights(x[:1], x[1:]).log_weights(0, np.arange(5))
    probability = np.exp(log_w - log_w.max())
    expected = 150 * probability / probability.sum()
    seen = np.bincount(found.negatives - 150, minlength=5)
    kept = expected > 0
    assert kept.sum() >= 3
    assert seen[~kept].sum() == 0
    assert (
        (seen[kept] - expected[kept]) ** 2 / expected[kept]
    ).sum() < 18  # exceeded once in a thousand times


def test_tensors_of_every_kind_and_stride(triton: Running) -> None:
    values = datasets.rows("gaussian", 24, 10, "float32").astype(np.float32)
    labels = datasets.labels("few", 12)
    x = torch.from_numpy(values)[::2, ::2].requires_grad_()
    wanted = minerlib.mine(x.detach().numpy(), labels, "semi-hard", margin=9.0, backend="reference")
    for marks in (labels.astype(np.int8), labels.astype(np.uint8), labels.astype(np.uint64) + 2**63):
        with torch.autocast("cpu", dtype=torch.bfloat16):  # which must change nothing
            found = minerlib.mine(x, torch.from_numpy(marks), "semi-hard", margin=9.0, backend="triton")
        for column, expected in zip(found, wanted, strict=True):
            assert isinstance(column, torch.Tensor)
            assert not column.requires_grad
            assert np.array_equal(column.numpy(), expected)


def test_unsigned_labels_beside_signed_ones(triton: Running) -> None:
    """2^64 - 1 has the bits of -1 and is not equal to it."""
    x, y = (torch.from_numpy(datasets.rows("gaussian", 4, 3, "float32", seed=s)).float() for s in (0, 1))
    signed = torch.tensor([-1, 5, 5, 7])
    unsigned = torch.tensor([5, 5, 7, 2**64 - 1], dtype=torch.uint64)
    for one, other in ((signed, unsigned), (unsigned, signed)):
        found, wanted = (
            minerlib.mine(x, one, "hphn", reference=y, reference_labels=other, backend=name)
            for name in ("triton", "reference")
        )
        for column, expected in zip(found, wanted, strict=True):
            assert torch.equal(column, expected)


@pytest.mark.parametrize("strategy", ["hphn", "semi-hard", "hard", "distance-weighted"])
def test_padded_slots_hold_the_compact_ones(strategy: str, triton: Running) -> None:
    batch = Batch("gaussian", "skewed", "float32", "sqeuclidean", 9, 0, 4)
    compact = batch.mined(strategy)
    anchors, positives, negatives, valid = batch.mined(strategy, compact=False)
    assert valid.dtype == bool
    for padded, wanted in zip((anchors, positives, negatives), compact, strict=True):
        assert np.array_equal(padded[valid], wanted)
        assert np.array_equal(padded[~valid], anchors[~valid])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_rows_that_are_not_finite(value: float, triton: Running) -> None:
    """An error where the result is compact; no part of any triplet where it is padded."""
    batch = Batch("gaussian", "few", "float64", "sqeuclidean", 9, 0, 4, margin=5.0)
    x, keep = batch.x.copy(), np.delete(np.arange(9), 4)
    x[4, 2] = value
    for strategy in ("hphn", "semi-hard", "all") if value == np.inf else ("hphn",):
        with pytest.raises(ValueError, match=r"^embeddings: expected .* row 4 holds"):
            minerlib.mine(x, batch.x_labels, strategy, margin=5.0, backend="triton")
    for strategy in ("hpen", "random-hard", "semi-hard-nearest") if value != np.inf else ("hphn",):
        options = {"margin": 1e9, "backend": "triton", "fallback": "farthest"}
        padded = minerlib.mine(x, batch.x_labels, strategy, compact=False, **options)
        found = np.stack([np.asarray(column) for column in padded[:3]])[:, np.asarray(padded.valid)]
        wanted = np.stack(
            minerlib.mine(x[keep], batch.x_labels[keep], strategy, **options | {"backend": "reference"})
        )
        if strategy == "random-hard":  # what is eligible moved, and with it the r-th of it
            assert np.array_equal(found[:2], keep[wanted[:2]])
            assert 4 not in found
        else:
            assert np.array_equal(found, keep[wanted])


@pytest.mark.parametrize("labels", [[], [1], [2, 2, 2], [1, 2, 3]])
def test_nothing_to_mine(labels: list[int], triton: Running) -> None:
    x = torch.arange(len(labels), dtype=torch.float32)[:, None]
    for strategy in ("hphn", "hard", "semi-hard", "distance-weighted", "all"):
        found = minerlib.mine(x, torch.tensor(labels, dtype=torch.int64), strategy, backend="triton")
        assert all(column.dtype == torch.int64 and len(column) == 0 for column in found)
    assert tuple(minerlib.count_triplets(x, torch.tensor(labels).long(), backend="triton")) == (0, 0, 0, 0)


def test_inexact_answers_are_legal(triton: Running) -> None:
    batch = Batch("clusters", "few", "float32", "sqeuclidean", 12, 0, 5)
    for strategy in ("hphn", "semi-hard"):
        exact, (a, p, n) = batch.mined(strategy), batch.mined(strategy, exact=False)
        assert np.array_equal(a, exact[0])
        assert batch.same[a, p].all()
        assert (a != p).all()
        assert not batch.same[a, n].any()


def test_bad_input_is_refused_as_on_the_host(triton: Running) -> None:
    x, labels = torch.zeros(4, 3), torch.arange(4) % 2
    cases: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((x[0], labels, "hard"), {}), ((x.int(), labels, "hard"), {}),
        ((x.to(torch.complex64), labels, "hard"), {}),
        ((x[:, :0], labels, "hard"), {}), ((x, labels[:3], "hard"), {}), ((x, labels.float(), "hard"), {}),
        ((x, labels[:, None], "hard"), {}), ((x, labels, "hard"), {"margin": -1.0}),
        ((x, labels, "hard"), {"metric": "manhattan"}), ((x, labels, "hard"), {"reference": x}),
        ((x, labels, "hard"), {"reference": x[:, :2], "reference_labels": labels}),
        ((x, labels, "hard"), {"reference": x, "reference_labels": torch.zeros(4, 2, dtype=torch.bool)}),
        ((x, labels, "hard"), {"reference": x, "reference_labels": labels, "pairs": "combinations"}),
        ((x, labels, "softest"), {}), ((x, labels, "all"), {"compact": False}),
    ]  # fmt: skip
    for arguments, options in cases:
        messages = []
        for name in ("native", "triton"):
            with pytest.raises((TypeError, ValueError)) as caught:
                minerlib.mine(*arguments, backend=name, **options)
            messages.append((type(caught.value), str(caught.value)))
        assert messages[0] == messages[1]


def test_neighbours_and_distances_through_the_public_functions(triton: Running) -> None:
    x, y = (datasets.rows("grid", n, 5, "float32", seed=n).astype(np.float32) for n in (6, 9))
    for metric in datasets.METRICS:
        distances = minerlib.pairwise_distance(x, y, metric=metric, backend="triton")
        assert np.array_equal(distances, reference.pairwise_distance(x, y, metric))
        found = minerlib.nearest(x, y, 4, metric=metric, backend="triton")
        wanted = reference.nearest(x, y, 4, metric)
        assert np.array_equal(found.distances, wanted[0])
        assert np.array_equal(found.indices, wanted[1])
    assert triton.families() == ["pairwise", "topk"] * 3
    batched = minerlib.pairwise_distance(x.reshape(2, 3, 5), backend="triton")
    assert np.array_equal(batched[1], reference.pairwise_distance(x[3:], x[3:], "sqeuclidean"))


@pytest.mark.parametrize("places", [(700, 701), (67, 1090), (66, 1090, 6, 7), (66, 67, 74, 1098)])
def test_columns_that_share_a_lane_of_the_filter(places: tuple[int, ...]) -> None:
    """The list holds the best of a lane alone; its other columns are looked at where they may be as near."""
    labels = torch.arange(1100).flip(0)  # the filter's order is from the last column to the first
    y = torch.randn(1100, 9, generator=torch.Generator().manual_seed(0))
    alike = [1099 - place for place in places]
    y[alike] = y[alike[0]].clone()
    first = min(alike)
    x, marks = y[[first, 5, alike[0]]] + 1e-6, labels[[5, 5, 5]]
    arguments = {"reference": y, "reference_labels": labels}
    found = minerlib.mine(x, marks, "batch-hard", **arguments, backend="triton")
    wanted = minerlib.mine(x, marks, "batch-hard", **arguments, backend="reference")
    assert wanted.negatives[0] == first
    assert torch.equal(found.negatives, wanted.negatives)


@pytest.mark.parametrize("count", [1, 2, 300])
def test_labels_are_ranked_as_a_stable_sort_has_them(count: int) -> None:
    from tritonkernels import labels

    generator = torch.Generator().manual_seed(count)
    values = torch.tensor([-(1 << 63), -1, 0, 5, (1 << 63) - 1])
    marks = values[torch.randint(0, 5, (count,), generator=generator)]
    for found, wanted in zip(labels._sorted(marks), torch.sort(marks, stable=True), strict=True):
        assert torch.equal(found, wanted)
