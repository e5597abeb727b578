"""The CUDA kernels of csrc/cuda, for packed codes, as a backend.

Importing this module loads neither the library nor torch.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from minerlib import _cuda_library
from minerlib.backends._device_codes import answer

if TYPE_CHECKING:
    import numpy as np
    import torch

    from minerlib.inputs import Relevance

    Codes = np.ndarray | torch.Tensor  # [rows, bytes] uint8; tensors of the GPU stay there

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


def reasons_for_auto() -> tuple[str, ...]:
    """Why "auto" does not take it for codes on a GPU, though it can be used."""
    return ()


def info() -> dict[str, Any]:
    """What was built, for `minerlib info`."""
    return _cuda_library.info()


def reasons_for(place: torch.device) -> tuple[str, ...]:
    """Why codes on this device cannot be served there."""
    return () if place.type == device() else (f"the codes are on {place}",)


def device() -> str:
    """Where torch puts what the kernels work on, and where codes of host arrays go."""
    return "cuda"


def hamming_distance(a: Codes, b: Codes) -> Any:  # [N, M] int32
    from minerlib.backends import _cuda_hamming as kernels

    return answer(kernels.distance, device(), a, b)


def hamming_search(queries: Codes, database: Codes, k: int) -> tuple[Any, ...]:
    from minerlib.backends import _cuda_hamming as kernels

    return answer(kernels.search, device(), queries, database, k)


def hamming_range(queries: Codes, database: Codes, radius: int) -> tuple[Any, ...]:
    from minerlib.backends import _cuda_hamming as kernels

    return answer(kernels.range_search, device(), queries, database, radius)


def hamming_counts(queries: Codes, database: Codes, relevance: Relevance) -> tuple[Any, ...]:
    from minerlib.backends import _cuda_ranking as kernels

    return answer(kernels.counts, device(), queries, database, relevance)


def hamming_average_precision(queries: Codes, database: Codes, relevance: Relevance, k: int) -> Any:
    from minerlib.backends import _cuda_ranking as kernels

    return answer(kernels.average_precision, device(), queries, database, relevance, k)
