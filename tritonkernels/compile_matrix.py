"""Every kernel in every form in which it may be launched, for the tests that compile them all."""

from __future__ import annotations

import functools
import importlib

from tritonkernels import launching
from tritonkernels.launching import Compilation

#: Modules with kernels.
MODULES = (
    "canonical",
    "filter",
    "labels",
    "extremes",
    "values",
    "window",
    "sample",
    "pairwise",
    "topk",
    "hamming",
    "hamming_search",
    "hamming_ranking",
    "losses_rows",
    "losses_triplet",
    "losses_hinges",
    "losses_ratios",
)

#: (backend, architecture, warp size) of `triton.backends.compiler.GPUTarget`.
TARGETS = (("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 100, 32), ("hip", "gfx942", 64))


@functools.cache
def compilations() -> dict[tuple[str, str], Compilation]:
    """All of them, by name and backend, in the order of MODULES."""
    for module in MODULES:
        importlib.import_module(f"tritonkernels.{module}")
    kernels = sorted(launching.KERNELS, key=lambda kernel: MODULES.index(kernel.name.partition(".")[0]))
    found = [compilation for kernel in kernels for compilation in kernel.compilations()]
    named = {(compilation.name, compilation.backend): compilation for compilation in found}
    assert len(named) == len(found), "each compilation has its own name"
    return named
