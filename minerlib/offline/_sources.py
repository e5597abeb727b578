"""Rows of a data set, read a range at a time: arrays, memory-mapped .npy files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from minerlib import files, inputs
from minerlib.arrays import Origin, to_numpy


class ArrayRows:
    """Rows [N, D] of an array; float16 and foreign byte orders are converted a range at a time."""

    def __init__(self, name: str, array: np.ndarray, sample: np.ndarray) -> None:
        if array.ndim != 2:
            raise ValueError(f"{name}: expected shape [rows, dimensions], got {list(array.shape)}")
        if sample.dtype.kind != "f" or sample.dtype.itemsize not in (4, 8):
            raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {array.dtype}")
        if array.shape[1] == 0:
            raise ValueError(f"{name}: expected at least one dimension, got shape {list(array.shape)}")
        self.name, self.array = name, array
        self.count, self.dims = int(array.shape[0]), int(array.shape[1])
        self.dtype = sample.dtype

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows first .. last - 1, float32 or float64, C-contiguous."""
        return np.ascontiguousarray(to_numpy(self.name, self.array[first:last])[0])

    def checked(self, first: int, last: int) -> np.ndarray:
        """`read`, and every row is finite and small enough to be squared."""
        rows = self.read(first, last)
        inputs.check_values(self.name, rows, first)
        return rows


def open_rows(name: str, value: Any) -> tuple[ArrayRows, Origin]:
    """The rows of an array or of a file."""
    if isinstance(value, (str, os.PathLike)):
        value = files.read_array(Path(value))
    array, sample, origin = inputs.sliceable(name, value)
    return ArrayRows(name, array, sample), origin


def open_labels(name: str, value: Any, rows_name: str, rows: int) -> np.ndarray:
    """Labels [N] of integers, or label sets as bits [N, W] uint64."""
    if isinstance(value, (str, os.PathLike)):
        value = files.read_array(Path(value))
    labels = inputs.labels_of(name, value, rows_name, rows)
    return inputs.label_bits(labels) if labels.ndim == 2 else labels
