"""The sampler of m per class: what is in a batch, in an epoch, on each rank."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from minerlib.samplers import MPerClass


def labels(classes: int = 7, each: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(classes) * 3 - 5, each))


@pytest.mark.parametrize(("m", "batch_size"), [(1, 1), (1, 7), (2, 8), (3, 3), (4, 28), (9, 18)])
def test_every_batch_has_m_samples_of_each_of_its_classes(m, batch_size):
    y = labels()
    sampler = MPerClass(y, m, batch_size, batches=50)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 50
    for batch in batches:
        assert len(batch) == len(set(batch)) == batch_size
        classes, counts = np.unique(y[batch], return_counts=True)
        assert len(classes) == batch_size // m
        assert (counts == m).all()


def test_nothing_comes_again_before_everything_has_come():
    y = labels(6, 8)
    drawn = list(itertools.chain.from_iterable(MPerClass(y, 4, 12)))
    assert sorted(drawn) == list(range(48))  # one epoch deals every sample once
    classes = [y[batch[::4]].tolist() for batch in MPerClass(y, 4, 12)]
    for first, second in zip(classes[::2], classes[1::2], strict=True):
        assert len(set(first + second)) == 6
    many = np.concatenate(list(MPerClass(y, 4, 12, batches=400)))
    assert (np.bincount(many) == 100).all()


def test_small_classes_repeat_and_large_ones_do_not():
    y = np.array([0] * 2 + [1] * 50 + [2])
    for batch in MPerClass(y, 5, 15, batches=20):
        assert sorted(y[batch].tolist()) == [0] * 5 + [1] * 5 + [2] * 5
        counts = np.bincount(batch, minlength=53)
        assert counts[2:52].max() == 1
        assert set(counts[:2]) == {2, 3}
        assert counts[52] == 5


def test_default_length_is_what_the_samples_fill():
    assert len(MPerClass(labels(7, 9), 2, 8)) == 63 // 8
    assert len(MPerClass(labels(7, 9), 9, 63)) == 1
    assert len(MPerClass(labels(7, 9), 10, 70)) == 1
    assert len(MPerClass(labels(7, 9), 2, 8, rank=0, world_size=3)) == 63 // 24


def test_epochs_shuffle_and_repeat_by_seed():
    y = labels()
    one, other = MPerClass(y, 2, 8, seed=5), MPerClass(torch.from_numpy(y), 2, 8, seed=5)
    epochs = [list(one) for _ in range(3)]
    assert epochs == [list(other) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    other.set_epoch(1)
    assert list(other) == epochs[1]
    assert list(MPerClass(y, 2, 8, seed=6)) != epochs[0]
    resumed = MPerClass(y, 2, 8)
    state = MPerClass(y, 2, 8, seed=5).state_dict() | {"epoch": 2}
    resumed.load_state_dict(state)
    assert list(resumed) == epochs[2]
    twin = pickle.loads(pickle.dumps(one))
    assert list(twin) == list(one)


def test_positions_are_as_likely_as_each_other():
    """Chi-square of which class comes first and of which of its samples does, over 4200 epochs."""
    y = labels(6, 5)
    sampler = MPerClass(y, 1, 1, batches=1)
    first = np.array([next(iter(sampler))[0] for _ in range(4200)])
    counts = np.bincount(first, minlength=30)
    assert ((counts - 140) ** 2 / 140).sum() < 70  # 29 degrees of freedom: one in 30,000


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_one_deal(world_size):
    y = labels(8, 12)
    ranks = [list(MPerClass(y, 2, 4, batches=30, rank=r, world_size=world_size)) for r in range(world_size)]
    for step in zip(*ranks, strict=True):
        everything = list(itertools.chain.from_iterable(step))
        assert len(set(everything)) == len(everything)
        classes = np.unique(y[everything])
        assert len(classes) == min(8, 2 * world_size)
        assert all(len(np.unique(y[batch])) == 2 for batch in step)


def test_a_data_loader_takes_it():
    y = torch.from_numpy(labels())
    data = TensorDataset(torch.arange(len(y)), y)
    for workers in (0, 2):
        sampler = MPerClass(y, 3, 9, seed=2)
        loader = DataLoader(data, batch_sampler=sampler, num_workers=workers)
        assert len(loader) == len(sampler)
        batches = [rows.tolist() for rows, _ in loader]
        assert batches == list(MPerClass(y, 3, 9, seed=2))
        again = [rows.tolist() for rows, _ in loader]
        assert again != batches


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((labels(), 0, 4), {}, ValueError, r"^m: "),
        ((labels(), 2, 5), {}, ValueError, r"^batch_size: expected a multiple of m = 2, got 5"),
        ((labels(3), 2, 8), {}, ValueError, r"^batch_size: expected at most m x classes = 6"),
        ((labels(), 2, 4), {"seed": -1}, ValueError, r"^seed: "),
        ((labels(), 2, 4), {"batches": 0}, ValueError, r"^batches: "),
        ((labels(), 2, 4), {"rank": 0}, ValueError, r"^world_size: "),
        ((labels(), 2, 4), {"rank": 2, "world_size": 2}, ValueError, r"^rank: .* 0 to 1, got 2"),
        (([], 2, 4), {}, ValueError, r"^labels: expected at least one"),
        ((labels().reshape(7, 9), 2, 4), {}, ValueError, r"^labels: expected shape"),
        ((labels() * 0.5, 2, 4), {}, TypeError, r"^labels: expected integers"),
        ((labels(), 2.0, 4), {}, TypeError, r"^m: expected an integer"),
    ],
)
def test_wrong_arguments_are_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        MPerClass(*arguments, **options)
