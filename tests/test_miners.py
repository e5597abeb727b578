"""Miner objects: the triplets of `mine`, settings that are checked, random draws that differ and repeat."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

import minerlib
from minerlib import miners
from minerlib.results import PaddedTriplets, Triplets
from minerlib.strategies import STRATEGIES

RANDOM = ("semi-hard", "random-hard", "distance-weighted", "assorted")


def batch() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(4)
    return draw.normal(size=(60, 8)).astype(np.float32), draw.integers(0, 5, 60)


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_strategy_has_its_class():
    assert set(miners.MINERS) == set(STRATEGIES)
    assert len({kind.__name__ for kind in miners.MINERS.values()}) == len(STRATEGIES)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_miner_mines_what_mine_mines(strategy):
    x, y = batch()
    kind = miners.MINERS[strategy]
    settings = {"metric": "euclidean"}
    settings |= {name: value for name, value in {"margin": 0.7, "seed": 9}.items() if hasattr(kind, name)}
    if hasattr(kind, "fallback"):
        settings |= {"fallback": "hardest", "pairs": "combinations"}
    expected = minerlib.mine(x, y, strategy, **settings)
    found = kind(**settings)(x, y)
    assert isinstance(found, Triplets)
    assert len(found.anchors) > 0
    assert same(found, expected)
    settings.pop("pairs", None)
    across = kind(**settings)(x[:20], y[:20], x, y)
    assert same(across, minerlib.mine(x[:20], y[:20], strategy, reference=x, reference_labels=y, **settings))
    tensors = kind(**settings)(torch.from_numpy(x), torch.from_numpy(y))
    assert isinstance(tensors.anchors, torch.Tensor)
    if strategy == "all":
        return
    padded = kind(compact=False, **settings)(x, y)
    assert isinstance(padded, PaddedTriplets)


@pytest.mark.parametrize("strategy", RANDOM)
def test_random_draws_differ_from_call_to_call_and_repeat_from_run_to_run(strategy):
    x, y = batch()
    kind = miners.MINERS[strategy]
    first, again = kind(seed=3), kind(seed=3)
    calls = [first(x, y) for _ in range(4)]
    assert not any(same(calls[0], call) for call in calls[1:])
    assert all(same(call, again(x, y)) for call in calls)
    assert first.calls == 4
    later = kind(seed=3)
    later.calls = 2
    assert same(later(x, y), calls[2])
    assert not same(kind(seed=4)(x, y), calls[0])


def test_seeds_of_calls_are_spread():
    seeds = {miners.call_seed(seed, call) for seed in (0, 1, 2**64 - 1) for call in range(1000)}
    assert len(seeds) == 3000
    assert all(0 <= seed < 2**64 for seed in seeds)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_miners_pickle_copy_compare_and_show_their_settings(strategy):
    x, y = batch()
    miner = miners.MINERS[strategy](metric="cosine")
    miner(x, y)
    for twin in (pickle.loads(pickle.dumps(miner)), copy.deepcopy(miner)):
        assert twin == miner
        assert twin.calls == 1
        assert same(twin(x, y), copy.copy(miner)(x, y))
    assert repr(miner).startswith(f"{type(miner).__name__}(metric='cosine'")
    assert eval(repr(miner), vars(miners)) == miner
    assert miner != miners.MINERS[strategy](metric="euclidean")


def test_settings_may_change_between_calls():
    x, y = batch()
    miner = miners.Hard(0.0)
    few = len(miner(x, y).anchors)
    miner.margin = 50.0
    assert len(miner(x, y).anchors) > few


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: miners.Hard(margin=-1), r"^margin: .* at least 0"),
        (lambda: miners.SemiHard(margin=float("nan")), r"^margin: "),
        (lambda: miners.SemiHard(seed=-1), r"^seed: "),
        (lambda: miners.BatchHard(metric="manhattan"), r"^metric: .* sqeuclidean, euclidean, cosine"),
        (lambda: miners.BatchHard(backend="none"), r"^backend: "),
        (lambda: miners.Hard(fallback="none"), r"^fallback: "),
        (lambda: miners.Hard(pairs="none"), r"^pairs: "),
        (lambda: miners.BatchHard()(np.zeros((3, 2)), np.zeros(2, int)), r"^labels: expected 3 rows"),
    ],
)
def test_wrong_values_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: miners.Hard(margin="big"), r"^margin: expected a number"),
        (lambda: miners.BatchHard(exact=1), r"^exact: "),
        (lambda: miners.BatchHard(compact=None), r"^compact: "),
        (lambda: miners.Miner(), r"^Miner: expected one of its subclasses"),
        (lambda: miners.BatchHard(margin=0.2), r"margin"),
        (lambda: miners.BatchAll(compact=False), r"compact"),
    ],
)
def test_wrong_types_are_named(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_torch_is_not_needed():
    code = "import sys; sys.modules['torch'] = None; import minerlib.miners as m; print(m.BatchHard())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("BatchHard(")
