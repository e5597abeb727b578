"""The CUDA kernels of csrc/cuda, for packed codes, as a backend.

Codes come validated as host arrays: they go to the current GPU and the answers come back. Importing this
module loads neither the library nor torch.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from minerlib import _cuda_library

if TYPE_CHECKING:
    import torch

    from minerlib.inputs import Relevance

#: Until a GPU has run the tests of these kernels, "auto" leaves codes to the host.
UNPROVEN = "unproven: no GPU run of its tests is recorded; name backend='cuda' to try it"

#: The oldest devices that the library has code for.
LEAST_CAPABILITY = (8, 0)


@functools.cache
def reasons_unusable() -> tuple[str, ...]:
    missing = _cuda_library.missing()
    if missing:
        return (missing,)
    import torch

    if torch.version.hip is not None:
        return ("this torch is built for ROCm",)
    if not torch.cuda.is_available():
        return ("torch sees no CUDA device",)
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        found, wanted = ("{}.{}".format(*version) for version in (capability, LEAST_CAPABILITY))
        return (f"the GPU has compute capability {found}; there is code for {wanted} and later",)
    return ()


def info() -> dict[str, Any]:
    """What was built, for `minerlib info`."""
    return _cuda_library.info()


def hamming_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from minerlib.backends import _cuda_hamming as kernels

    return _to_host(kernels.distance(_to_device(a), _to_device(b)))[0]


def hamming_search(queries: np.ndarray, database: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
    from minerlib.backends import _cuda_hamming as kernels

    return _to_host(*kernels.search(_to_device(queries), _to_device(database), k))


def hamming_range(queries: np.ndarray, database: np.ndarray, radius: int) -> tuple[np.ndarray, ...]:
    from minerlib.backends import _cuda_hamming as kernels

    return _to_host(*kernels.range_search(_to_device(queries), _to_device(database), radius))


def hamming_counts(queries: np.ndarray, database: np.ndarray, relevance: Relevance) -> tuple[np.ndarray, ...]:
    from minerlib.backends import _cuda_hamming as kernels

    return _to_host(*kernels.counts(_to_device(queries), _to_device(database), _of_tensors(relevance)))


def hamming_average_precision(
    queries: np.ndarray, database: np.ndarray, relevance: Relevance, k: int
) -> np.ndarray:
    from minerlib.backends import _cuda_hamming as kernels

    found = kernels.average_precision(_to_device(queries), _to_device(database), _of_tensors(relevance), k)
    return _to_host(found)[0]


def device() -> str:
    """Where torch puts what the kernels work on."""
    return "cuda"


def _to_device(array: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device())


def _to_host(*tensors: torch.Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.cpu().numpy() for tensor in tensors)


def _of_tensors(relevance: Relevance) -> Any:
    arrays = {
        name: None if array is None else _to_device(array)
        for name, array in vars(relevance).items()
        if name != "own"
    }
    return SimpleNamespace(own=relevance.own, **arrays)
