"""Labelled images for the trainers: what a set is, and how it is split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images kept as bytes, a quarter of their size as floats; `unit_range` makes them an input.

    The pixels may be mapped from a file, and several sets may be parts of one: `index` says which rows of
    the pixels are meant.
    """

    pixels: Tensor  # [M, 3, H, W] uint8
    labels: Tensor  # [N] int64
    classes: tuple[str, ...]  # the name of each label
    index: Tensor | None = None  # [N] int64 rows of pixels; None: all

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:  # [N, 3, H, W] uint8
        """The images themselves, copied where they are a part."""
        return self.pixels if self.index is None else self.pixels[self.index]

    @property
    def side(self) -> int:
        """Pixels of an image's side."""
        return int(self.pixels.shape[-1])

    def rows(
        self,
        index: Tensor,  # [n] int64
    ) -> ImageSet:
        """The images at these rows, in this order; no pixel is copied where they are a part."""
        of_pixels = index if self.index is None else self.index[index]
        return ImageSet(self.pixels, self.labels[index], self.classes, of_pixels)


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
    return split_by(images, torch.from_numpy(chosen))


def split_by(
    images: ImageSet,
    held_out: Tensor,  # [N] bool
) -> Split:
    """Both parts, in the set's order."""
    return Split(
        train=images.rows((~held_out).nonzero()[:, 0]), held_out=images.rows(held_out.nonzero()[:, 0])
    )
