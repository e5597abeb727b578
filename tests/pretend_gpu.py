"""Host code of the Triton backend on a GPU that is not there: two devices of fake tensors, no kernel runs.

    python -m tests.pretend_gpu    # prints JSON

Torch's fake tensors have shapes, types and devices but no values, so what waits for a value or mixes devices
raises here. Launches are recorded instead of run. `test_triton_devices.py` starts this as a process of its
own, because a pretended device cannot be taken back.
"""

from __future__ import annotations

import contextlib
import json
import sys
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import minerlib
from minerlib import device_inputs, losses
from minerlib.backends import triton as backend
from minerlib.results import PaddedTriplets
from minerlib.strategies import STRATEGIES, Assorted, Every, PerAnchor

GPU = "gpu"
CURRENT = [f"{GPU}:0"]  # the tensors are on the other one
HERE = f"{GPU}:1"
READ = 5  # what the host reads, whenever it reads a number
LARGE = 131072  # rows whose extra memory docs/performance.md names


@contextlib.contextmanager
def current_device(device: torch.device) -> Any:
    """`torch.cuda.device`, for which torch wants a driver."""
    CURRENT.append(str(device))
    yield
    CURRENT.pop()


class Launches:
    """What was launched; refuses a launch that is not on the device of its tensors."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def run(self, kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        names = [name for name in kernel.arg_names if name not in options]
        assert len(arguments) == len(names), (kernel.__name__, len(arguments), len(names))
        for name, argument in zip(names, arguments, strict=True):
            if isinstance(argument, torch.Tensor):
                assert str(argument.device) == HERE, f"{kernel.__name__}: {name} is on {argument.device}"
        assert CURRENT[-1] == HERE, f"{kernel.__name__} is launched on {CURRENT[-1]}"
        assert all(int(size) > 0 for size in grid), (kernel.__name__, grid)
        self.names.append(kernel.__name__)


class Memory(TorchDispatchMode):
    """The most bytes of tensors that were alive at once since it was entered, results included."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return found

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


# ------------------------------------------------------------------ what is called


def rows(count: int, dims: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(count, dims, dtype=dtype, device=HERE)


def numbers(count: int) -> torch.Tensor:
    return torch.empty(count, dtype=torch.int64, device=HERE)


def mined(strategy: str, count: int, dims: int, dtype: torch.dtype, **options: Any) -> Any:
    return minerlib.mine(rows(count, dims, dtype), numbers(count), strategy, **options, backend="triton")


# A loss finds its gradient on the way forward, where the backward pass only scales it.


def padded_loss() -> Any:
    x = rows(300, 130).requires_grad_()
    found = mined("batch-hard", 300, 130, torch.float32, compact=False)
    return losses.triplet_margin(x, found, 0.5, backend="triton")


def batch_loss(loss: Callable[..., torch.Tensor], count: int, dims: int) -> Any:
    x = rows(count, dims).requires_grad_()
    return loss(x, numbers(count), backend="triton")


def hashing() -> Any:
    u = rows(300, 48).requires_grad_()
    given = PaddedTriplets(*(numbers(900) for _ in range(3)), numbers(900) > 0)
    return losses.dtsh(u, given, quantization_weight=0.0, backend="triton")


def cases() -> dict[str, Callable[[], Any]]:
    """Calls by name; those that begin with "padded" or "loss" must read nothing."""
    found: dict[str, Callable[[], Any]] = {}
    for strategy, plan in STRATEGIES.items():
        small = (strategy, 300, 130, torch.float32)
        found[f"compact {strategy}"] = lambda small=small: mined(*small)
        if isinstance(plan, Every):
            continue
        slots = {} if isinstance(plan, (PerAnchor, Assorted)) else {"slots": 900}
        options = {"fallback": "hardest", "metric": "cosine", "compact": False, **slots}
        found[f"padded {strategy}"] = lambda small=small, options=options: mined(*small, **options)
    found["count_triplets"] = lambda: minerlib.count_triplets(rows(300, 9), numbers(300), backend="triton")
    found["nearest"] = lambda: minerlib.nearest(rows(9, 64), rows(5000, 64), 3, backend="triton")
    found["pairwise_distance"] = lambda: minerlib.pairwise_distance(rows(9, 64), backend="triton")
    codes = lambda count: torch.empty(count, 8, dtype=torch.uint8, device=HERE)  # noqa: E731
    found["padded search of codes"] = lambda: minerlib.hamming_search(
        codes(40), codes(5000), 9, backend="triton"
    )
    found["range of codes"] = lambda: minerlib.hamming_range(codes(4), codes(500), 9, backend="triton")
    found["distances of codes"] = lambda: minerlib.hamming_distance(codes(4), codes(9), backend="triton")
    found["loss of padded triplets"] = padded_loss
    found["loss of codes"] = hashing
    found["loss batch_all"] = lambda: batch_loss(losses.batch_all, 300, 130)
    found["loss nca"] = lambda: batch_loss(losses.nca, 300, 130)
    found["loss easy_positive"] = lambda: batch_loss(losses.easy_positive, 300, 130)
    found["loss hphn"] = lambda: batch_loss(losses.hphn, 300, 130)
    for dtype in (torch.bfloat16, torch.float32):
        large = ("batch-hard", LARGE, 128, dtype)
        found[f"padded large {dtype}"] = lambda large=large: mined(*large, compact=False)
    found["loss large"] = lambda: batch_loss(losses.batch_all, 8192, 128)
    return found


def main() -> None:
    _setup_privateuseone_for_python_backend(GPU)
    report = {}
    for name, call in cases().items():
        launches, memory, reads = Launches(), Memory(), []

        def read(problem: Any, *wanted: torch.Tensor, reads: list[int] = reads) -> list[int]:
            reads.append(len(wanted))
            return [READ] * len(wanted)

        with (
            mock.patch("triton.runtime.jit.JITFunction.run", lambda *a, run=launches.run, **o: run(*a, **o)),
            mock.patch("torch.cuda.device", current_device),
            mock.patch("tritonkernels.launching.EVERY_TYPE", True),
            mock.patch.object(backend, "reasons_unusable", tuple),
            mock.patch.object(device_inputs.DeviceProblem, "read", read),
            mock.patch.object(torch.Tensor, "__int__", lambda tensor, reads=reads: reads.append(1) or READ),
            FakeTensorMode(), memory,
        ):  # fmt: skip
            found = call()
            assert [f"{GPU}:0"] == CURRENT
            for tensor in found if isinstance(found, tuple) else ():
                assert not isinstance(tensor, torch.Tensor) or str(tensor.device) == HERE, name
        report[name] = {"launches": launches.names, "reads": len(reads), "bytes": memory.most}
    json.dump(report, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
