"""Some rows mined against the whole set: the triplets that mining the whole set gives their anchors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import minerlib
from minerlib.against import mine_rows
from minerlib.strategies import STRATEGIES


def rows_and_labels(kind: str) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(len(kind))
    count = {"one": 1, "label sets": 30}.get(kind, 70)
    x = draw.normal(size=(count, 9)).astype(np.float32)
    if kind == "duplicates":
        x = x[draw.integers(0, 6, count)]
    if kind == "label sets":
        return x, draw.random((count, 5)) < 0.3
    return x, draw.integers(-3, 4, count).astype(np.int8)


@pytest.mark.parametrize("kind", ["plain", "duplicates", "one", "label sets"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_whole_sets_triplets(kind, strategy):
    x, y = rows_and_labels(kind)
    n = len(x)
    for metric in ("sqeuclidean", "euclidean", "cosine"):
        for options in ({}, {"pairs": "combinations"}, {"fallback": "farthest"}, {"backend": "numba"}):
            settings = {"margin": 0.5, "metric": metric, "seed": 7, **options}
            whole = minerlib.mine(x, y, strategy, **settings)
            for first, last in ((0, n), (0, n // 3), (n // 3, n), (n // 2, n // 2)):
                found = mine_rows(x, y, strategy, first, last, **settings)
                mine = (whole.anchors >= first) & (whole.anchors < last)
                for got, expected in zip(found, whole, strict=True):
                    assert np.array_equal(got, expected[mine]), (metric, options, first, last)


def test_tensors_come_back():
    x, y = (torch.from_numpy(array) for array in rows_and_labels("plain"))
    for strategy in ("semi-hard", "batch-hard", "hard"):
        found = mine_rows(x.requires_grad_(), y, strategy, 10, 40)
        assert all(index.dtype == torch.int64 for index in found)


def test_bad_arguments_are_named():
    x, y = rows_and_labels("plain")
    with pytest.raises(ValueError, match=r"^last: .* 20 to 70, got 71"):
        mine_rows(x, y, "hard", 20, 71)
    with pytest.raises(ValueError, match=r"^strategy: expected one of"):
        mine_rows(x, y, "hardest", 0, 5)
    with pytest.raises(ValueError, match=r"^pairs: expected one of"):
        mine_rows(x, y, "hard", 0, 5, pairs="some")
    with pytest.raises(ValueError, match=r"^margin: "):
        mine_rows(x, y, "batch-hard", 0, 5, margin=-1)
