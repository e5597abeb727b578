"""Which backends the tests run on, and what every test starts from.

`backend` runs a test once for each backend and, for the native one, once for each instruction set that this
machine has. A backend that cannot run is skipped with its reasons; test_dispatch.py fails where CI skips one.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

import minerlib

FAMILIES = (
    *("extremes", "window", "sample", "every_triplet", "counts", "topk", "pairwise"),
    *("hamming_distance", "hamming_search", "hamming_range", "hamming_counts", "hamming_average_precision"),
)

IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")

hypothesis.settings.register_profile("local", deadline=None, max_examples=25)
hypothesis.settings.register_profile(
    "ci", deadline=None, max_examples=40, derandomize=True, database=None, print_blob=True
)
hypothesis.settings.load_profile("ci" if IN_CI else "local")

torch.set_num_threads(1)  # the test processes themselves run in parallel


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", action="store_true", help="all 200 random batches of each drop-in miner, not a fifth"
    )


def load_backend(name: str) -> ModuleType:
    return importlib.import_module(f"minerlib.backends.{name}")


def _backend_ids() -> list[str]:
    try:
        native = load_backend("native")
        if not native.reasons_unusable():
            return [*(f"native:{isa}" for isa in native.instruction_sets()), "numba", "reference"]
    except ImportError:
        pass  # the fixture says so for each test it skips
    return ["native", "numba", "reference"]


#: The fast ones first: a reader of a failing run meets them first.
BACKENDS = tuple(_backend_ids())
FAST_BACKENDS = tuple(name for name in BACKENDS if name != "reference")


def _emulated_ids() -> list[str]:
    try:
        return [f"native:{isa}" for isa in load_backend("native").emulated_instruction_sets()]
    except ImportError:
        return []


#: AMX in plain C++, in `extremes`, `chunk_extremes` and `topk`; the other families are those of AVX2.
EMULATED = tuple(_emulated_ids())


@dataclass
class Running:
    """The backend under test, and which kernel families it ran."""

    name: str  # what `backend=` takes
    instruction_set: str  # "" outside the native backend
    module: ModuleType
    ran: list[str] = field(default_factory=list)
    inside: bool = False  # a family may answer through another one of its own backend

    def families(self) -> list[str]:
        """The families run since the last call."""
        ran, self.ran = self.ran, []
        return ran


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    name, _, instruction_set = request.param.partition(":")
    try:
        module = load_backend(name)
    except ImportError as error:
        pytest.skip(f"{name}: {error}")
    reasons = module.reasons_unusable()
    if reasons:
        pytest.skip(f"{name}: {'; '.join(reasons)}")
    running = Running(name, instruction_set, module)
    for family in FAMILIES:
        monkeypatch.setattr(module, family, _recorder(running, family, getattr(module, family)))
    with module.use_instruction_set(instruction_set) if instruction_set else nullcontext():
        yield running


def _recorder(running: Running, family: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if running.inside:
            return function(*arguments, **options)
        running.ran.append(family)
        if running.instruction_set:
            assert running.module.instruction_set() == running.instruction_set
        running.inside = True
        try:
            return function(*arguments, **options)
        finally:
            running.inside = False

    return call


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `backend` runs on all of them, unless it chooses itself which.

    Backends vary fastest, so that the tests of one case follow each other and share what it computes.
    """
    chosen = any("backend" in str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize"))
    if "backend" in metafunc.fixturenames and not chosen:
        metafunc.parametrize("backend", BACKENDS, indirect=True)


@pytest.fixture(autouse=True)
def _same_threads_after() -> Iterator[None]:
    before = minerlib.threads._threads
    yield
    minerlib.threads._threads = before


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and what NumPy leaves uninitialised is full of 0x5A from then on.

    Numba resolves `np.empty` while it compiles, so run the call once before this.
    """

    def poisoned(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        @functools.wraps(function)
        def allocate(*arguments: Any, **options: Any) -> np.ndarray:
            array = function(*arguments, **options)
            array.reshape(-1).view(np.uint8)[...] = 0x5A
            return array

        return allocate

    def apply() -> None:
        monkeypatch.setattr(np, "empty", poisoned(np.empty))
        monkeypatch.setattr(np, "empty_like", poisoned(np.empty_like))

    return apply
