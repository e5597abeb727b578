"""What all launchers share: the device of a launch, scalars on it, and what a kernel can be compiled for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from triton.runtime.interpreter import InterpretedFunction

#: Options of every kernel that computes canonical float64 values: Triton's default would fuse a
#: multiplication and an addition into one rounding.
CANONICAL = {"enable_fp_fusion": False}

#: Types of rows that kernels are compiled for; float16 arrives as float32, which holds it exactly.
KINDS = ("bf16", "fp32", "fp64")

#: Options of kernels that NVIDIA's compiler would otherwise let spill a register or two so that more programs
#: fit a multiprocessor. AMD's has no such option.
ALL_REGISTERS = {"maxnreg": 255} if torch.version.hip is None else {}

#: Rows of packed operands are padded to a multiple of this, so that tiles load without masks.
ROW_PADDING = 128


def interpreted() -> bool:
    """Whether kernels run as NumPy code on host tensors: TRITON_INTERPRET=1 before Triton's import."""
    return os.environ.get("TRITON_INTERPRET", "") == "1"


def is_interpreted(kernel: Any) -> bool:
    """Whether this kernel was defined under the interpreter, and so cannot be compiled."""
    return isinstance(kernel, InterpretedFunction)


def on_device(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Kernels launched inside go to the tensor's GPU, on the stream that is current there."""
    if tensor.device.type == "cpu":
        return nullcontext()
    return torch.cuda.device(tensor.device)


def float64_on(device: torch.device, value: float) -> torch.Tensor:  # [1]
    """A float64 argument: Triton passes a Python float as float32. Filled on the device, without a copy."""
    return torch.full((1,), value, dtype=torch.float64, device=device)


def int64_on(device: torch.device, value: int) -> torch.Tensor:  # [1]
    """64 bits, signed or unsigned: Triton would compile a variant for each width that a value needs."""
    return torch.full(
        (1,), value - (1 << 64) if value >= 1 << 63 else value, dtype=torch.int64, device=device
    )


def blocks(count: int, size: int) -> int:
    """How many blocks of `size` hold `count`."""
    return -(-count // size)


def padded(count: int) -> int:
    """Rows of a packed operand that hold `count` rows: never none, so that every pointer is valid."""
    return max(1, blocks(count, ROW_PADDING)) * ROW_PADDING


def power_of_two(count: int) -> int:
    """The least power of two that is at least `count`."""
    return 1 << max(0, count - 1).bit_length()


@dataclass(frozen=True)
class Compilation:
    """A kernel with one choice of types and constants: what `triton.compile` needs to build it."""

    name: str
    kernel: Any
    signature: Mapping[str, str]  # argument -> "*fp32", "i32", ...; constants may be left out
    constants: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)  # num_warps, num_stages, enable_fp_fusion
    multiples: tuple[str, ...] = ()  # numbers that are always multiples of 16, which a launch finds out
    backends: tuple[str, ...] = ("cuda", "hip")  # on which a launcher may choose it

    @property
    def canonical(self) -> bool:
        """Whether it computes canonical values: its code must not hold a fused float64 multiply-add."""
        return self.options.get("enable_fp_fusion") is False

    def types(self) -> dict[str, str]:
        """The whole signature, constants as "constexpr", in the order of the arguments."""
        return {
            name: "constexpr" if name in self.constants else self.signature[name]
            for name in self.kernel.arg_names
        }

    def source(self) -> Any:
        """What `triton.compile` takes: pointers to whole tensors are aligned to 16 bytes, as torch's are."""
        from triton.compiler import ASTSource

        aligned = [
            place
            for place, (name, kind) in enumerate(self.types().items())
            if kind.startswith("*") or name in self.multiples
        ]
        attributes = {(place,): [["tt.divisibility", 16]] for place in aligned}
        return ASTSource(self.kernel, self.types(), constexprs=dict(self.constants), attrs=attributes)


def all_compilations(parts: Iterable[Iterable[Compilation]]) -> list[Compilation]:
    """The parts in one list; two of one name would hide each other in a report."""
    found = [compilation for part in parts for compilation in part]
    names = [compilation.name for compilation in found]
    assert len(names) == len(set(names)), "each compilation has its own name"
    return found
