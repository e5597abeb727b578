"""Labelled images for the trainers: what a data set looks like, how it is split, and where it is read from.

A reader is a function without arguments but its folder that returns one `ImageSet`; `READERS` names them. A
set without a published split is split here, stratified by class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minerlib import inputs

SIDE = 64


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images kept as bytes, a quarter of their size as floats; `unit_range` makes them an input."""

    images: Tensor  # [N, 3, 64, 64] uint8
    labels: Tensor  # [N] int64
    classes: tuple[str, ...]  # the name of each label

    def __len__(self) -> int:
        return len(self.labels)

    def rows(
        self,
        index: Tensor,  # [n] int64
    ) -> ImageSet:
        """The images at these rows, in this order."""
        return ImageSet(self.images[index], self.labels[index], self.classes)


@dataclass(frozen=True, eq=False)
class Split:
    """Training images and held-out ones."""

    train: ImageSet
    held_out: ImageSet


def unit_range(
    images: Tensor,  # [B, 3, H, W] uint8
) -> Tensor:  # [B, 3, H, W] float32 in [-1, 1]
    """Bytes 0..255 to -1..1, the range of the decoder's Tanh.

    >>> unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist()
    [-1.0, 1.0]
    """
    return images.float() / 127.5 - 1


def stratified_split(
    images: ImageSet,
    held_out: float,
    seed: int,
) -> Split:
    """Hold out the same share of every class, drawn by the seed; both parts keep the set's order."""
    if not 0 < held_out < 1:
        raise ValueError(f"held_out: expected a share between 0 and 1, got {held_out}")
    generator = np.random.default_rng(seed)
    labels = images.labels.numpy()
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        chosen[members[: round(held_out * len(members))]] = True
    return Split(
        train=images.rows(torch.from_numpy(np.flatnonzero(~chosen))),
        held_out=images.rows(torch.from_numpy(np.flatnonzero(chosen))),
    )


def read_digits() -> ImageSet:
    """The 1,797 scanned handwritten digits that come with scikit-learn, 8x8 greys scaled to 3x64x64."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    greys = torch.from_numpy(digits.images)[:, None] * (255 / 16)  # [N, 1, 8, 8], 0..255
    scaled = torch.nn.functional.interpolate(greys, size=(SIDE, SIDE), mode="bilinear")
    images = scaled.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    return ImageSet(images, torch.from_numpy(digits.target).long(), tuple(str(name) for name in range(10)))


#: Data sets by name.
READERS: dict[str, Callable[[], ImageSet]] = {"digits": read_digits}


def load(
    name: str,
    held_out: float = 0.2,
    seed: int = 0,
) -> Split:
    """A data set by name, split into training and held-out images.

    >>> split = load("digits")
    >>> len(split.train), len(split.held_out), tuple(split.train.images.shape[1:])
    (1438, 359, (3, 64, 64))
    """
    inputs.one_of("data", name, tuple(READERS))
    return stratified_split(READERS[name](), held_out, seed)
