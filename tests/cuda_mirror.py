"""The kernels of csrc/cuda compiled for the host: the same bodies and launchers, run block by block.

A C++ compiler builds them once into build/cuda-mirror, under a name made of the sources; processes that
test in parallel wait for the first.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from minerlib._cuda_library import Library
from tests.conftest import IN_CI

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["-x", "c++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-Icsrc"]


@functools.cache
def recipe() -> ModuleType:
    """setup.py as a module."""
    spec = importlib.util.spec_from_file_location("minerlib_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def mirror() -> Library:
    compiler = recipe().find_compiler()
    if compiler is None:
        assert not IN_CI, "CI has a C++ compiler"
        pytest.skip("no C++ compiler for the mirror of the CUDA kernels")
    sources = sorted((ROOT / "csrc/cuda").iterdir())
    digest = hashlib.sha256(repr([FLAGS, compiler, [path.read_bytes() for path in sources]]).encode())
    folder = ROOT / "build/cuda-mirror"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest.hexdigest()[:16]}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            part = path.with_suffix(".part")
            subprocess.run([*compiler, *FLAGS, "csrc/cuda/hamming.cu", "-o", str(part)], cwd=ROOT, check=True)
            part.rename(path)
    return Library(path)


@contextmanager
def threads_in_order(order: int) -> Iterator[None]:
    """0: threads take their turns forwards; 1: backwards; 2: shuffled."""
    choose = mirror()._library.minerlib_cuda_thread_order
    choose(order)
    try:
        yield
    finally:
        choose(0)
