"""The table of backends: which can serve a request, which is chosen, and why not the others."""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from minerlib import inputs
from minerlib.arrays import compiling
from minerlib.backends import cuda, triton


class BackendUnavailable(RuntimeError):
    """A backend that was named explicitly cannot serve the request; the message lists the reasons."""


@dataclass(frozen=True)
class Backend:
    """A row of the table. `module` has `reasons_unusable()` and one function per kernel family."""

    name: str
    module: str
    description: str
    on_gpu: bool = False  # "auto" takes it for tensors on a GPU, and for nothing else
    codes_only: bool = False  # has the families of packed codes and no others

    def load(self) -> ModuleType:
        return importlib.import_module(self.module)

    def reasons_unusable(self) -> tuple[str, ...]:
        """Empty where the backend can be used here; pure and cheap."""
        reasons: tuple[str, ...] = self.load().reasons_unusable()
        return reasons

    def reasons_against(self, rows: bool) -> tuple[str, ...]:
        """Why it cannot serve a request here; rows: for embeddings, not for packed codes."""
        if rows and self.codes_only:
            return ("it has kernels for packed codes alone (hamming_search and its kin)",)
        return self.reasons_unusable()

    def reasons_for_auto(self, rows: bool = False, gpu: bool = False) -> tuple[str, ...]:
        """Why "auto" does not take it; gpu: for tensors on a GPU."""
        reasons = self.reasons_against(rows)
        if reasons or not self.on_gpu:
            return reasons
        if gpu:
            return tuple(self.load().reasons_for_auto())
        return (ON_HOST.format(self.name),)


#: Why "auto" leaves the backends of GPUs alone.
ON_HOST = "auto takes it for tensors on a GPU; name backend={!r} for others"


#: In order of preference.
BACKENDS = (
    Backend("native", "minerlib.backends.native", "C++ kernels, instruction set chosen at run time"),
    Backend("numba", "minerlib.backends.numba", "compiled on first use, for machines without a C++ compiler"),
    Backend("reference", "minerlib.backends.reference", "the specification as plain NumPy: the judge, slow"),
    Backend(
        "cuda",
        "minerlib.backends.cuda",
        "CUDA kernels for packed codes, compiled ahead of time",
        on_gpu=True,
        codes_only=True,
    ),
    Backend(
        "triton",
        "minerlib.backends.triton",
        "Triton kernels on the GPU that holds the tensors",
        on_gpu=True,
    ),
)
NAMES = ("auto", *(backend.name for backend in BACKENDS))


def on_gpu(array: Any) -> bool:
    """Whether it is a tensor on an NVIDIA or AMD GPU."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor) and bool(array.is_cuda)


def resolve(name: str, array: Any, rows: bool = False) -> str:
    """The backend to name instead of "auto" where the first argument lies on a GPU.

    rows: for the families that take embeddings; else for those that take packed codes.
    """
    if name == "auto" and on_gpu(array):
        for backend in BACKENDS:
            if backend.on_gpu and not backend.reasons_for_auto(rows, gpu=True):
                return backend.name
    return name


def traced(name: str, array: Any) -> bool:
    """Whether torch is tracing a call that the triton backend's operators serve."""
    return compiling() and (
        name == "triton" or (name == "auto" and on_gpu(array) and not triton.reasons_for_auto())
    )


def on_device(name: str) -> bool:
    """Whether the named backend works on tensors where they are, and can be used."""
    return name == "triton" and not BACKENDS[-1].reasons_unusable()


def codes_stay(name: str, *codes: Any) -> bool:
    """Whether the named backend takes all these packed codes as tensors, where they are."""
    if name not in ("cuda", "triton") or "torch" not in sys.modules:
        return False
    module = cuda if name == "cuda" else triton
    return not module.reasons_unusable() and all(
        isinstance(code, sys.modules["torch"].Tensor) and not module.reasons_for(code.device)
        for code in codes
    )


def choose(name: str, rows: bool = False) -> ModuleType:
    """The adapter of the named backend, or of the first usable one for "auto".

    rows: for the families that take embeddings; else for those that take packed codes.
    """
    inputs.one_of("backend", name, NAMES)
    if name != "auto":
        backend = next(backend for backend in BACKENDS if backend.name == name)
        reasons = backend.reasons_against(rows)
        if reasons:
            raise BackendUnavailable(f"backend {name!r} cannot be used: " + "; ".join(reasons))
        return backend.load()
    missed: list[str] = []
    for backend in BACKENDS:
        if backend.on_gpu:
            continue
        reasons = backend.reasons_unusable()
        if not reasons:
            _say_once(missed, backend.name)
            return backend.load()
        missed.append(f"{backend.name}: {'; '.join(reasons)}")
    raise AssertionError("the reference backend needs NumPy alone and is always usable")


_said: set[str] = set()


def _say_once(missed: list[str], chosen: str) -> None:
    """A machine without the native kernels still works, but its user should know what it costs."""
    if missed and chosen not in _said:
        _said.add(chosen)
        warnings.warn(
            f"minerlib runs on its {chosen} backend; " + " | ".join(missed), RuntimeWarning, stacklevel=4
        )


def describe_backends() -> list[tuple[str, bool, tuple[str, ...], str]]:
    """(name, usable, reasons why not, description) of every backend, in order of preference."""
    rows = []
    for backend in BACKENDS:
        reasons = backend.reasons_for_auto(gpu=True)
        rows.append((backend.name, not reasons, reasons, backend.description))
    return rows


@dataclass(frozen=True)
class Explanation:
    """What `explain` found: for each backend no reasons (usable), or the reasons why not."""

    operation: str
    reasons: dict[str, tuple[str, ...]]

    @property
    def chosen(self) -> str:
        """The backend that "auto" takes."""
        return next(name for name, reasons in self.reasons.items() if not reasons)

    def __str__(self) -> str:
        width = max(map(len, self.reasons))
        lines = [f"{self.operation}: auto takes {self.chosen}"]
        for name, reasons in self.reasons.items():
            lines.append(f"  {name:<{width}}  {'; '.join(reasons) if reasons else 'usable'}")
        return "\n".join(lines)


def explain(operation: str, *arguments: Any, **options: Any) -> Explanation:
    """For each backend: usable for this call, or the reasons why not.

    `operation` is the name of a public function (`"mine"`, `"count_triplets"`, `"nearest"`,
    `"pairwise_distance"`, `"hamming_distance"`, `"hamming_search"`, `"hamming_range"`); the rest is what
    would be passed to it and may be left out. Arguments that the function itself would refuse raise the
    same TypeError or ValueError here. Nothing is computed.

    >>> import minerlib
    >>> minerlib.explain("mine").reasons["reference"]
    ()
    """
    from minerlib import hamming, mining, neighbors

    checks: dict[str, Callable[..., object]] = {
        "mine": mining.check_mine,
        "count_triplets": mining.check_count_triplets,
        "nearest": neighbors.check_nearest,
        "pairwise_distance": neighbors.check_pairwise_distance,
        "hamming_distance": hamming.check_hamming_distance,
        "hamming_search": hamming.check_hamming_search,
        "hamming_range": hamming.check_hamming_range,
    }
    inputs.one_of("operation", operation, tuple(checks))
    named = "auto"
    if arguments or options:
        named = backend = options.pop("backend", "auto")
        inputs.one_of("backend", backend, NAMES)
        try:
            inspect.signature(checks[operation]).bind(*arguments, **options)
        except TypeError as error:
            raise TypeError(f"explain: {operation} {error}") from None
        checks[operation](*arguments, **options)
    rows = not operation.startswith("hamming")
    gpu = bool(arguments) and on_gpu(arguments[0])
    reasons = {
        row.name: row.reasons_against(rows) if row.name == named else row.reasons_for_auto(rows, gpu)
        for row in sorted(BACKENDS, key=lambda row: gpu and not row.on_gpu)
    }
    return Explanation(operation, reasons)
