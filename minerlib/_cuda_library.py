"""The shared library of csrc/cuda: found and loaded when first asked for, and its launchers called.

`setup.py` builds it where nvcc is; nothing here needs CUDA to be imported. A launch that is refused raises
CudaError, which names the kernel.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("_cuda.so")

_TYPES = {"p": ctypes.c_void_p, "q": ctypes.c_int64, "i": ctypes.c_int32}

#: Each launcher's arguments (csrc/cuda/hamming.cu) before `int device, void* stream`: pointer, int64, int32.
LAUNCHERS = {
    "hamming_distance": "pqpqip",
    "hamming_collect": "pqpqqqipqqqqqppqppii",
    "hamming_limits": "pqiqip",
    "hamming_search": "pqpqiiqiqqiiiipqqqppppiipp",
    "hamming_select": "ppqqppqipp",
    "hamming_histogram": "pqqpqqippppiiqiiiiipppp",
    "hamming_rank": "pqqpqippppiiqiiiiippqpp",
    "hamming_precision": "ppqqp",
}


class CudaError(RuntimeError):
    """A kernel could not be launched; the message names it and gives CUDA's reason."""


class Library:
    """A loaded library: its launchers by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        self._message = self._library.minerlib_cuda_message
        self._message.restype = ctypes.c_char_p
        self._launchers = {name: self._launcher(name) for name in LAUNCHERS}

    def _launcher(self, name: str) -> Any:
        function = getattr(self._library, f"minerlib_cuda_{name}")
        function.argtypes = [_TYPES[kind] for kind in LAUNCHERS[name] + "ip"]
        function.restype = ctypes.c_int
        return function

    def launch(self, name: str, *arguments: Any) -> None:
        """Call a launcher: its arguments, the device's number, the stream's address."""
        if self._launchers[name](*arguments):
            raise CudaError(f"CUDA kernel {self._message().decode()}")

    def build(self) -> str:
        """The compiler, and the architectures there is code for."""
        function = self._library.minerlib_cuda_build
        function.restype = ctypes.c_char_p
        return str(function().decode())


@functools.cache
def _loaded() -> Library | str:
    """The library, or why there is none."""
    if not PATH.exists():
        return f"the CUDA kernels are not built ({PATH.name}): nvcc was not found, or MINERLIB_BUILD_CUDA=0"
    try:
        return Library(PATH)
    except (OSError, AttributeError) as error:
        return f"the CUDA kernels do not load ({error})"


def missing() -> str:
    """Why there is no library; empty where it is loaded."""
    found = _loaded()
    return found if isinstance(found, str) else ""


def library() -> Library:
    found = _loaded()
    if isinstance(found, str):
        raise CudaError(found)
    return found


def info() -> dict[str, Any]:
    """What was built, for `minerlib info`."""
    if missing():
        return {"built": False, "reason": missing()}
    return {"built": True, "path": PATH, "build": library().build()}
