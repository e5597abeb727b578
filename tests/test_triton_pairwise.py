"""All distances under Triton's interpreter: the bits of the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minerlib import reference
from tests import datasets
from tests.triton_interpreter import INTERPRETED, NOT_INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason=NOT_INTERPRETED)

if INTERPRETED:
    from tritonkernels import pairwise

#: Rows, columns and dimensions: one of each, both sides of a tile and of the eight lanes.
SIZES = ((1, 1, 1), (2, 3, 7), (33, 31, 8), (7, 65, 9), (32, 33, 17), (5, 2, 130))


def rows(data: str, n: int, d: int, dtype: str) -> tuple[np.ndarray, torch.Tensor]:
    values = datasets.rows(data, n, d, dtype)
    return values, torch.from_numpy(values).to(getattr(torch, dtype))


@pytest.mark.parametrize(
    ("data", "dtype", "size", "metric"),
    [
        (
            data,
            datasets.DTYPES[place % 4],
            SIZES[place % len(SIZES)],
            datasets.METRICS[(place + place // 6) % 3],
        )
        for place, data in enumerate(sorted(datasets.ROWS))
    ],
)
def test_bits_of_the_reference(data: str, dtype: str, size: tuple[int, int, int], metric: str) -> None:
    n, m, d = size
    (x, tx), (y, ty) = rows(data, n, d, dtype), rows(data, m, d, dtype)
    found = pairwise.pairwise(tx, ty, metric)
    assert found.dtype == torch.float64
    assert np.array_equal(found.numpy(), reference.pairwise_distance(x, y, metric))


@pytest.mark.parametrize("metric", datasets.METRICS[1:])
def test_batches_strides_and_one_side(metric: str) -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 2, 33, 3))
    wide = torch.zeros(2, 33, 6, dtype=torch.float64)
    wide[..., ::2] = torch.from_numpy(x)
    found = pairwise.pairwise(wide[..., ::2], torch.from_numpy(y), metric)
    own = pairwise.pairwise(wide[..., ::2], wide[..., ::2], metric)
    same = torch.from_numpy(x)
    one = pairwise.pairwise(same, same, metric)
    assert torch.equal(own, one)
    for b in range(2):
        assert np.array_equal(found[b].numpy(), reference.pairwise_distance(x[b], y[b], metric))
        assert np.array_equal(one[b].numpy(), reference.pairwise_distance(x[b], x[b], metric))


def test_no_rows() -> None:
    assert pairwise.pairwise(torch.zeros(0, 3), torch.zeros(4, 3), "cosine").shape == (0, 4)
    assert pairwise.pairwise(torch.zeros(2, 5, 3), torch.zeros(2, 0, 3), "euclidean").shape == (2, 5, 0)
