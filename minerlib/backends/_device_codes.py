"""Packed codes for the backends whose kernels run on a GPU.

Tensors stay on the device they are on, and so do the answers. Host arrays go to the current GPU, and the
answers come back as arrays. Importing this module does not import torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from minerlib.inputs import Relevance

if TYPE_CHECKING:
    import torch


def answer(kernel: Callable[..., Any], device: str, *arguments: Any) -> Any:
    """What a launcher of torch tensors says, one or a tuple of them; arrays where it was given arrays."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(arguments[0], torch.Tensor):
        return kernel(*arguments)
    found = kernel(*(_to_device(argument, device) for argument in arguments))
    if isinstance(found, tuple):
        return tuple(tensor.cpu().numpy() for tensor in found)
    return found.cpu().numpy()


def _to_device(argument: Any, device: str) -> Any:
    """An array, or a relevance of arrays, as tensors; anything else as it is."""
    if isinstance(argument, np.ndarray):
        return _tensor(argument, device)
    if isinstance(argument, Relevance):
        arrays = {
            name: _tensor(value, device) if isinstance(value, np.ndarray) else value
            for name, value in vars(argument).items()
        }
        return SimpleNamespace(**arrays)
    return argument


def _tensor(array: np.ndarray, device: str) -> torch.Tensor:
    import torch

    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)
