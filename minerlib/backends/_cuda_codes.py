"""Packed codes as the CUDA kernels take them, and how a kernel is launched on torch tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from minerlib import _cuda_library

MOST = 1 << 25  # counts or ranks of 8 bytes that are held at a time
MOST_QUERIES = 8192
MOST_ROWS = (1 << 31) - 1
MOST_BITS = (1 << 23) - 8  # of a code
BLOCKS = 4096  # wanted on the device: several rounds even of the largest, so that the last one is short


@dataclass(frozen=True, eq=False)
class Codes:
    """Codes as words, row by row, or in planes of up to four words (csrc/cuda/codes.h)."""

    words: torch.Tensor  # int32
    count: int
    width: int  # words of a row
    bits: int  # 8 * bytes

    @property
    def values(self) -> int:
        """How many distances there can be."""
        return self.bits + 1

    def rows(self, first: int, last: int) -> Codes:
        """Some of the rows, as a view; not of planes."""
        return Codes(self.words[first:last], last - first, self.width, self.bits)


def width_for(length: int) -> int:
    """Words that the kernels take for codes of so many bytes."""
    words = -(-length // 4)
    return next((width for width in (1, 2, 4, 8) if words <= width), -(-words // 8) * 8)


def as_words(
    codes: torch.Tensor,  # [rows, bytes] uint8
    planes: bool,
) -> Codes:
    """Codes as words: the tensor itself where it can be read so, else a copy."""
    count, length = codes.shape
    if count > MOST_ROWS or 8 * length > MOST_BITS:
        raise ValueError(
            f"codes: expected at most {MOST_ROWS} rows of {MOST_BITS} bits, got {count} of {8 * length}"
        )
    width = width_for(length)
    if length != 4 * width or count == 0:  # NumPy's empty arrays may come without strides
        padded = codes.new_zeros((count, 4 * width))
        padded[:, :length] = codes
        codes = padded
    elif not codes.is_contiguous() or codes.data_ptr() % 16:
        codes = codes.clone(memory_format=torch.contiguous_format)
    words = codes.view(torch.int32)
    if planes and width > 4:
        words = words.view(count, width // 4, 4).transpose(0, 1).contiguous()
    return Codes(words, count, width, 8 * length)


def launch(kernel: str, near: torch.Tensor, *arguments: Any) -> None:
    """near: a tensor on the device; its current stream is used."""
    values = [value.data_ptr() if isinstance(value, torch.Tensor) else value for value in arguments]
    library, device = _cuda_library.library(), near.device
    if device.type != "cuda":  # the tests' mirror
        library.launch(kernel, *values, 0, 0)
    elif device.index == torch.cuda.current_device():
        library.launch(kernel, *values, device.index, torch.cuda.current_stream().cuda_stream)
    else:  # the library's CUDA runtime and torch's agree about the device
        with torch.cuda.device(device):
            library.launch(kernel, *values, device.index, torch.cuda.current_stream().cuda_stream)


def chunks(count: int, each: int) -> Iterator[tuple[int, int]]:
    """So many queries at a time that `each` values of all of them fit, about as many each time."""
    most = max(1, min(MOST_QUERIES, MOST // max(1, each)))
    step = max(1, -(-count // max(1, -(-count // most))))
    for first in range(0, count, step):
        yield first, min(count, first + step)
