"""Every kernel in every configuration that a launcher can choose, for the tests that compile them all."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from tritonkernels.launching import Compilation, all_compilations

#: Modules with `compilations() -> Iterable[Compilation]`.
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
    "losses_batch",
)

#: (backend, architecture, warp size) of `triton.backends.compiler.GPUTarget`.
TARGETS = (("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 100, 32), ("hip", "gfx942", 64))


def compilations() -> list[Compilation]:
    """All of them, named "<module>.<kernel>[<what was chosen>]"."""
    return all_compilations(_by_module())


def _by_module() -> Iterator[list[Compilation]]:
    for module in MODULES:
        yield list(importlib.import_module(f"tritonkernels.{module}").compilations())
