"""How every kernel of the numba backend is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first use, without the GIL, and keep the machine code for the next process.

    No fast-math: sums keep their order and no multiply is fused with an add. No `parallel=True`: the adapter
    deals out anchors to threads of its own (`over_chunks` in _numba_chunks.py). That compiles in a fraction
    of the time, and numba's pools end the whole process when a forked child, or on some platforms a second
    thread, calls them.

    numba looks only at a kernel's own file to see whether its machine code is stale, so kernels call nothing
    but kernels of the same file.
    """
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written to
        return njit(nogil=True, error_model="numpy")(function)
