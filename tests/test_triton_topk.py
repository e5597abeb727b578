"""The k nearest columns under Triton's interpreter: the reference's answers, by exact equality."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from minerlib import reference
from tests import datasets
from tests.triton_interpreter import INTERPRETED, NOT_INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason=NOT_INTERPRETED)

if INTERPRETED:
    from tritonkernels import topk


def rows(data: str, n: int, d: int, dtype: str) -> tuple[np.ndarray, torch.Tensor]:
    values = datasets.rows(data, n, d, dtype)
    return values, torch.from_numpy(values).to(getattr(torch, dtype))


def assert_nearest(
    x: tuple[np.ndarray, torch.Tensor], y: tuple[np.ndarray, torch.Tensor], k: int, metric: str
) -> None:
    distances, indices = topk.topk(x[1], y[1], k, metric)
    wanted, order = reference.nearest(x[0], y[0], k, metric)
    assert distances.dtype == torch.float64
    assert indices.dtype == torch.int64
    assert np.array_equal(indices.numpy(), order)
    assert np.array_equal(distances.numpy(), wanted)


@pytest.fixture
def certified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Small problems go through the filter; which way each call went."""
    taken: list[str] = []

    def watched(name: str) -> None:
        kernel = getattr(topk, name)

        def call(*arguments: object) -> None:
            taken.append(name)
            kernel(*arguments)

        monkeypatch.setattr(topk, name, call)

    watched("_certified")
    watched("_whole")
    monkeypatch.setattr(topk, "FEWEST_COLUMNS", 2)
    return taken


@pytest.mark.parametrize(("place", "data"), list(enumerate(sorted(datasets.ROWS))))
def test_filtered(place: int, data: str, certified: list[str]) -> None:
    metric = datasets.METRICS[place // 2 % 3]
    dtype, d = datasets.DTYPES[place % 4], (7, 17, 33, 130)[place // 4 % 4]
    x, y = rows(data, 2, d, dtype), rows(data, 259, d, dtype)
    assert_nearest(x, y, 1 + place % 2, metric)
    assert certified == ["_certified"]


@pytest.mark.parametrize("k", [1, 2, 20, 130, 131])
def test_any_k(k: int) -> None:
    for data in ("grid", "gaussian"):
        assert_nearest(rows(data, 3, 9, "float32"), rows(data, 131, 9, "float32"), k, "euclidean")


def test_rows_among_themselves_and_chunks(certified: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk, "CHUNK_BYTES", 8 * 130 * 30)  # one tile of rows, or 30 rows, at a time
    x = rows("clusters", 130, 16, "float32")
    assert_nearest(x, x, 1, "cosine")
    assert_nearest(x, x, 9, "sqeuclidean")
    assert certified == ["_certified", "_whole"]


@pytest.mark.parametrize("data", ["duplicates", "grid"])
def test_more_candidates_than_a_list_holds(
    data: str, certified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole rows are decided in float64, two programs sharing three rows."""
    monkeypatch.setattr(topk, "WHOLE", topk.WholeConfig(programs=2))
    x, y = rows(data, 3, 5, "float32"), rows(data, 390, 5, "float32")
    assert_nearest(x, y, 3, "euclidean" if data == "grid" else "cosine")
    assert certified == ["_certified"]


def test_a_list_that_holds_too_few(certified: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Distinct rows through the whole-row kernel: the k-th value is found by bisection, negative ones too."""
    candidates = topk._candidates

    def few(task: topk._Task, first: int, count: int) -> torch.Tensor:
        return candidates(replace(task, capacity=task.k), first, count)

    monkeypatch.setattr(topk, "_candidates", few)
    monkeypatch.setattr(topk, "_decide", lambda task, first, found, decide=topk._decide: decide(
        replace(task, capacity=task.k), first, found))  # fmt: skip
    for data, metric in (("clusters", "cosine"), ("zeros", "sqeuclidean")):
        x, y = rows(data, 2, 17, "float64"), rows(data, 260, 17, "float64")
        assert_nearest(x, y, 2, metric)


def test_columns_that_are_not_finite_come_last(certified: list[str]) -> None:
    x, y = torch.ones(2, 4), torch.arange(1200, dtype=torch.float32).reshape(300, 4)
    y[0, 1], y[2, 2] = torch.nan, torch.inf
    for k in (2, 298):
        distances, indices = topk.topk(x, y, k, "sqeuclidean")
        assert indices.tolist() == [[j for j in range(300) if j not in (0, 2)][:k]] * 2
        assert distances.isfinite().all()
    distances, indices = topk.topk(x, y[:3], 3, "sqeuclidean")
    assert indices.tolist() == [[1, -1, -1]] * 2
    assert distances[:, 1:].tolist() == [[torch.inf, torch.inf]] * 2
    assert certified == ["_certified", "_whole", "_whole"]


def test_no_rows() -> None:
    distances, indices = topk.topk(torch.zeros(0, 3), torch.zeros(4, 3), 2, "cosine")
    assert distances.shape == indices.shape == (0, 2)
