"""The data sets that trainers know by name, and how one of them becomes a split of images.

A set with a published split keeps it; the others are split here, stratified by class, drawn by the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from minerlib import inputs
from minerlib.trainers import published, ranks
from minerlib.trainers.images import ImageSet, Split, split_by, stratified_split
from minerlib.trainers.published import Listing
from minerlib.trainers.settings import Settings

DIGITS_SIDE = 64


@dataclass(frozen=True)
class Source:
    """A data set by name."""

    held_out: float  # share of every class, where the set comes without a split
    side: int  # pixels, as published
    listing: Callable[[Path], Listing] | None = None  # what lies in the user's folder; None: embedded
    published: str = ""  # where


@lru_cache(maxsize=2)
def read_digits(side: int = DIGITS_SIDE) -> ImageSet:
    """The 1,797 scanned handwritten digits of scikit-learn, 8x8 greys scaled to 3 x side x side."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    greys = torch.from_numpy(digits.images)[:, None] * (255 / 16)  # [N, 1, 8, 8], 0..255
    scaled = torch.nn.functional.interpolate(greys, size=(side, side), mode="bilinear")
    images = scaled.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    return ImageSet(images, torch.from_numpy(digits.target).long(), tuple(str(name) for name in range(10)))


#: Data sets by name.
SOURCES: dict[str, Source] = {
    "digits": Source(0.2, DIGITS_SIDE),
    "crchistophenotypes": Source(2000 / 22444, 32, published.crchistophenotypes, published.CRC_URL),
    "nct-crc-he-100k": Source(0.15, 224, published.nct_crc_he, published.NCT_URL),
    "cifar-10": Source(0.2, 32, published.cifar10, published.CIFAR_URL),
    "folder": Source(0.2, 64, published.class_folders),
}


def load(settings: Settings) -> Split:
    """The data set that the settings name, split into training and held-out images.

    Images of a folder are decoded once and kept in the cache, whence they are mapped: a set may be larger
    than memory. Under torchrun the first rank decodes and the others wait for it.

    Raises `ValueError` for a set that is unknown or needs a folder, and `FileError` for a folder without
    what was published: it names the file, what was expected there, and where the set is published.

    >>> split = load(Settings(data="digits"))
    >>> len(split.train), len(split.held_out), tuple(split.train.images.shape[1:])
    (1438, 359, (3, 64, 64))
    """
    inputs.one_of("data", settings.data, tuple(SOURCES))
    source = SOURCES[settings.data]
    side = source.side if settings.side is None else settings.side
    if source.listing is None:
        images, chosen = read_digits(side), None
    elif settings.data_folder is None:
        where = f" (published at {source.published})" if source.published else ""
        raise ValueError(f"data_folder: expected the folder that holds {settings.data}{where}, got none")
    else:
        folder, cache = settings.data_folder, settings.cache
        with ranks.first_alone():
            images, chosen = published.read(settings.data, source.listing, folder, side, cache)
    if chosen is not None and settings.held_out is None:
        return split_by(images, chosen)
    share = source.held_out if settings.held_out is None else settings.held_out
    return stratified_split(images, share, settings.seed)
