"""The machine a measurement ran on: what it is, how fast it multiplies, how much memory is free."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import minerlib

PACKAGES = ("numpy", "torch", "numba", "pytorch-metric-learning", "faiss-cpu", "scikit-learn")


def describe() -> dict[str, Any]:
    """What a reader needs to judge a figure; no names of users, hosts or folders."""
    return {
        "cpu": cpu_model(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": minerlib.get_num_threads(),
        "backend": minerlib.explain("mine").chosen,
        "instruction_set": instruction_set(),
        "instruction_sets": list(instruction_sets()),
        "amx": any("amx" in name for name in instruction_sets()),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "minerlib": minerlib.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def instruction_sets() -> tuple[str, ...]:
    """Those of the native kernels that this processor runs, best last; empty without the extension."""
    from minerlib.backends import native

    return native.instruction_sets()


def instruction_set() -> str:
    """The one our kernels use, or the backend's name where they are not the native ones."""
    from minerlib.backends import native

    return minerlib.explain("mine").chosen if native.reasons_unusable() else native.instruction_set()


def without_amx() -> str | None:
    """The best instruction set but AMX; None without the extension."""
    plain = [name for name in instruction_sets() if "amx" not in name]
    return plain[-1] if plain else None


def commit() -> str | None:
    """The commit of the sources, `+` behind it where tracked files differ; None outside a checkout."""
    root = Path(minerlib.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root)]
        name = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*command, "diff", "--quiet", "HEAD"], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return name.stdout.strip() + ("+" if changed else "")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def available_memory() -> float:
    """Bytes that can be had without swapping; without /proc, what the system has."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def square_product(size: int) -> Callable[[], Any]:
    """torch's float32 product of two size x size matrices: the rate that others are held against."""
    import torch

    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, size, size, generator=generator)
    out = torch.empty(size, size)
    return lambda: torch.mm(a, b, out=out)


def use_all_threads() -> None:
    """As many threads for the peers as for us."""
    import torch

    threads = minerlib.get_num_threads()
    torch.set_num_threads(threads)
    with contextlib.suppress(ImportError):
        importlib.import_module("faiss").omp_set_num_threads(threads)
