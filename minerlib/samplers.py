"""Batches with m samples of every class in them, for `torch.utils.data.DataLoader`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from minerlib import inputs
from minerlib.arrays import to_numpy


def given_ranks(rank: Any, world_size: Any) -> tuple[int, int] | None:
    """Rank and number of ranks that a sampler was given, None where it was given neither."""
    if (rank is None) != (world_size is None):
        missing = "rank" if rank is None else "world_size"
        raise ValueError(f"{missing}: expected rank and world_size together, or neither; got None")
    if rank is None:
        return None
    size = inputs.integer("world_size", world_size, 1, 2**31)
    return inputs.integer("rank", rank, 0, size - 1), size


def current_ranks() -> tuple[int, int]:
    """Rank and number of ranks of this process, (0, 1) where none are distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class MPerClass(Sampler[list[int]]):
    """A batch sampler: each batch holds `batch_size / m` classes with m samples each.

    Classes and the samples of a class are dealt like cards: in random order, and none again before all have
    been dealt, so every sample of a class is seen before one is repeated. Only a class of fewer than m
    samples appears with repetitions inside a batch.

    Epochs: every iteration is one epoch and shuffles anew; `set_epoch` chooses which one comes next. The
    order depends on `seed` and the epoch alone.

    Ranks: each rank iterates over its own batches of one common deal, so that in one step no sample comes to
    two ranks, and no class either while there are classes enough. All ranks must be at the same epoch. Rank
    and number of ranks are those of torch.distributed, if it runs when an iteration starts, unless given.

    Args:
        labels: `[N]` integers or bool, the class of each sample.
        m: samples of a class in a batch, at least 1.
        batch_size: of one rank; a multiple of m, for no more classes than there are.
        batches: of one rank in an epoch; by default as many as the samples fill, at least one.
        seed: 0 <= seed < 2^64.
        rank, world_size: both or neither.

    Raises `TypeError` or `ValueError` that names the argument. Memory: O(N).

    >>> sampler = MPerClass([0, 0, 0, 1, 1, 1, 2, 2, 2], m=2, batch_size=4, seed=1)
    >>> len(sampler), [len(batch) for batch in sampler]
    (2, [4, 4])
    """

    def __init__(
        self,
        labels: Any,  # [N]
        m: int,
        batch_size: int,
        *,
        batches: int | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        order, starts = _by_class(labels)
        self._order, self._starts = order, starts
        self.m = inputs.integer("m", m, 1, 2**31)
        self.batch_size = inputs.integer("batch_size", batch_size, 1, 2**31)
        self.seed = inputs.seed_value(seed)
        self._ranks = given_ranks(rank, world_size)
        if self.batch_size % self.m:
            raise ValueError(f"batch_size: expected a multiple of m = {self.m}, got {self.batch_size}")
        if self._classes_in_batch > len(starts) - 1:
            raise ValueError(
                f"batch_size: expected at most m x classes = {self.m * (len(starts) - 1)}, as a batch has "
                f"each class once; got {self.batch_size}"
            )
        self._batches = None if batches is None else inputs.integer("batches", batches, 1, 2**62)
        self.epoch = 0

    @property
    def _classes_in_batch(self) -> int:
        return self.batch_size // self.m

    def ranks(self) -> tuple[int, int]:
        """This process's rank and the number of ranks."""
        return self._ranks or current_ranks()

    def __len__(self) -> int:
        """Batches of this rank in an epoch."""
        if self._batches is not None:
            return self._batches
        return max(1, len(self._order) // (self.batch_size * self.ranks()[1]))

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is; without it, the one after the last."""
        self.epoch = inputs.integer("epoch", epoch, 0, 2**62)

    def state_dict(self) -> dict[str, int]:
        """What `load_state_dict` needs to go on with the epoch that comes next."""
        return {"epoch": self.epoch, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where the sampler that gave the state would have gone on."""
        self.set_epoch(state["epoch"])
        self.seed = inputs.seed_value(state["seed"])

    def __iter__(self) -> Iterator[list[int]]:
        # A generator runs from its first batch on; a DataLoader with workers makes one more and leaves it.
        epoch, self.epoch = self.epoch, self.epoch + 1
        rank, world_size = self.ranks()
        draw = np.random.Generator(np.random.PCG64([self.seed & 0xFFFFFFFF, self.seed >> 32, epoch]))
        classes = _Deck(np.arange(len(self._starts) - 1), draw)
        decks: dict[int, _Deck] = {}
        for _ in range(len(self)):
            dealt_classes: set[int] = set()
            dealt_samples: dict[int, set[int]] = {}
            for owner in range(world_size):
                batch: list[int] = []
                for each in classes.deal(self._classes_in_batch, dealt_classes):
                    if each not in decks:
                        decks[each] = _Deck(self._order[self._starts[each] : self._starts[each + 1]], draw)
                    batch += decks[each].deal(self.m, dealt_samples.setdefault(each, set()))
                if owner == rank:
                    yield batch


class _Deck:
    """Cards dealt in random order, shuffled anew when all have been dealt."""

    def __init__(self, cards: np.ndarray, draw: np.random.Generator) -> None:
        self.cards, self.draw = cards, draw
        self.left: list[int] = []  # the next one last

    def deal(self, count: int, dealt: set[int]) -> list[int]:
        """The next cards. They differ from each other and from those dealt in this step, if so many exist."""
        hand: list[int] = []
        for _ in range(count):
            avoid = dealt if len(dealt) < len(self.cards) else set(hand)
            hand.append(self._next(avoid if len(avoid) < len(self.cards) else set()))
            dealt.add(hand[-1])
        return hand

    def _next(self, avoid: set[int]) -> int:
        place = len(self.left) - 1
        while place >= 0 and self.left[place] in avoid:
            place -= 1
        if place < 0:  # cards that have to wait stay on top of the fresh ones
            self.left = self.draw.permutation(self.cards).tolist() + self.left
            return self._next(avoid)
        return self.left.pop(place)


def _by_class(labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Sample numbers by class, and where each class starts."""
    if isinstance(labels, (list, tuple, range)):
        labels = np.asarray(labels)
    array, _ = to_numpy("labels", labels)
    if array.ndim != 1:
        raise ValueError(f"labels: expected shape [samples], got {list(array.shape)}")
    if len(array) == 0:
        raise ValueError("labels: expected at least one sample, got none")
    if array.dtype.kind not in "biu":
        raise TypeError(f"labels: expected integers or bool, got {array.dtype}")
    order = np.argsort(array, kind="stable")
    ordered = array[order]
    first = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    return order, np.concatenate([[0], first, [len(array)]]).astype(np.int64)
