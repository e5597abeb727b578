"""Rows to measure on: unit rows around class centres, so that every strategy finds something to choose."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch


class Batch(NamedTuple):
    """The same rows and labels as torch tensors and, sharing their memory, as NumPy arrays."""

    x: torch.Tensor  # [N, D] float32, unit rows
    labels: torch.Tensor  # [N] int64
    rows: np.ndarray  # x
    classes: np.ndarray  # labels


def batch(rows: int, dims: int, classes: int, spread: float = 0.6, seed: int = 0) -> Batch:
    """`classes` classes of about rows / classes members, interleaved as a shuffled batch has them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    labels = labels[torch.randperm(rows, generator=generator)]
    centres = torch.randn(classes, dims, generator=generator)
    x = spread * centres[labels] + torch.randn(rows, dims, generator=generator)
    x = torch.nn.functional.normalize(x)
    return Batch(x, labels, x.numpy(), labels.numpy())


def codes(rows: int, bits: int, seed: int = 0) -> np.ndarray:  # [rows, bytes] uint8
    """Random codes."""
    generator = np.random.default_rng([seed, bits])
    packed = generator.integers(0, 256, (rows, -(-bits // 8)), dtype=np.uint8)
    if bits % 8:
        packed[:, -1] &= (1 << bits % 8) - 1
    return packed


def labelled_codes(rows: int, bits: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes [rows, bytes] around those of their classes, a quarter of the bits flipped; and labels [rows]."""
    centres = np.random.default_rng(bits).random((classes, bits)) < 0.5  # of every seed the same
    generator = np.random.default_rng([seed, bits])
    labels = generator.integers(0, classes, rows)
    flipped = generator.random((rows, bits), dtype=np.float32) < 0.25
    return np.packbits(centres[labels] ^ flipped, axis=1, bitorder="little"), labels


def duplicates(rows: int, dims: int, classes: int) -> Batch:
    """One row, `rows` times: every distance is a tie, and float32 tells nothing apart."""
    base = batch(rows, dims, classes)
    x = base.x[:1].repeat(rows, 1)
    return Batch(x, base.labels, x.numpy(), base.classes)
