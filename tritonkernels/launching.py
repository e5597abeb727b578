"""What all launchers share: the device of a launch, scalars on it, and the forms of every kernel."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.runtime.interpreter import InterpretedFunction

#: Options of every kernel that computes canonical float64 values: Triton's default would fuse a
#: multiplication and an addition into one rounding.
CANONICAL = {"enable_fp_fusion": False}

#: Types of rows that kernels are compiled for; float16 arrives as float32, which holds it exactly.
KINDS = ("bf16", "fp32", "fp64")

#: Options of kernels that NVIDIA's compiler would otherwise let spill a register or two so that more programs
#: fit a multiprocessor. AMD's has no such option: `Kernel` leaves it out there.
ALL_REGISTERS = {"maxnreg": 255}

HIP = torch.version.hip is not None
BACKENDS = ("cuda", "hip")

DTYPES = {"*fp16": torch.float16, "*bf16": torch.bfloat16, "*fp32": torch.float32, "*fp64": torch.float64,
          "*i32": torch.int32, "*i64": torch.int64}  # fmt: skip
NUMBERS = ("i32", "i64")
KIND_OF = {dtype: kind[1:] for kind, dtype in DTYPES.items()}

#: Whether the types of all tensors are looked at in every launch, as the tests have it, or in a form's first.
EVERY_TYPE = os.environ.get("TRITON_INTERPRET", "") == "1"

#: Every kernel whose module has been imported.
KERNELS: list[Kernel] = []

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


def always(**values: Any) -> Callable[..., dict[str, Any]]:
    """The same options or constants for every form."""
    return lambda *_, **__: values


def choices(**values: Iterable[Any]) -> list[dict[str, Any]]:
    """Every combination of the values, by name."""
    return [dict(zip(values, one, strict=True)) for one in itertools.product(*values.values())]


@dataclass(frozen=True)
class Compilation:
    """A kernel in one of its forms, for one maker's GPUs: what `triton.compile` needs to build it."""

    name: str  # "<module>.<kernel>[<what was chosen>]"
    function: Any
    types: Mapping[str, str]  # argument -> "*fp32", "i32", ... or "constexpr", in the arguments' order
    constants: Mapping[str, Any]
    options: Mapping[str, Any]  # num_warps, num_stages, enable_fp_fusion, maxnreg
    divisible: tuple[str, ...]  # arguments that are multiples of 16
    backend: str

    @property
    def canonical(self) -> bool:
        """Whether it computes canonical values: its code must not hold a fused float64 multiply-add."""
        return self.options.get("enable_fp_fusion") is False

    def source(self) -> Any:
        """What `triton.compile` takes, and what a launch makes of the same arguments."""
        from triton.compiler import ASTSource

        places = [place for place, name in enumerate(self.types) if name in self.divisible]
        attributes = {(place,): [["tt.divisibility", 16]] for place in places}
        return ASTSource(self.function, dict(self.types), constexprs=dict(self.constants), attrs=attributes)


class Kernel:
    """A kernel with all the forms in which it may be launched, and the one way to launch it.

    A launcher passes the runtime arguments in order, and the constants that are a choice by name; types that
    are a choice are those of the tensors. Whatever else a form holds (tile, warps) follows from its choices.
    What is no form is refused, so the forms, which the tests compile for every target, are all that can run.
    Triton would compile variants of its own for a number that is 1, a multiple of 16 or wider than 32 bits,
    and for aligned pointers. It is told not to: numbers are of one type, and only of `divisible` arguments is
    it known that they are multiples of 16, which every launch checks.
    """

    def __init__(
        self,
        function: Any,
        types: Mapping[str, str],  # pointers: "*fp32", or "*kind" where `kind` is a choice; numbers: "i64"
        forms: Iterable[Mapping[str, Any]],  # `choices`: constants in capitals, types in small letters
        options: Callable[..., Mapping[str, Any]],  # (hip, **choice)
        constants: Callable[..., Mapping[str, Any]] = dict,  # (**choice): all but the choices themselves
        divisible: tuple[str, ...] = (),
        backends: Callable[..., tuple[str, ...]] = lambda **choice: BACKENDS,  # where it may be chosen
    ) -> None:
        self.function, self.divisible, self.backends = function, divisible, backends
        self.forms = [dict(form) for form in forms]
        module = function.fn.__module__.rpartition(".")[2]
        self.name = f"{module}.{function.__name__.removesuffix('_kernel')}"
        self._constants, self._options = constants, options
        self._kinds = [name for name in self.forms[0] if name.islower()]
        self._flags = [name for name in self.forms[0] if not name.islower()]
        fixed = self.constants(self.forms[0])
        self.arguments = [name for name in function.arg_names if name not in fixed]
        assert types.keys() | set(divisible) <= set(self.arguments), self.name
        self.types = {name: types.get(name, "i32") for name in self.arguments}
        if not is_interpreted(function):
            plain = [name for name in self.arguments if name not in divisible]
            self.function = triton.jit(function.fn, do_not_specialize=plain)
        kinds = list(self.types.values())
        self._places = [kinds.index(f"*{name}") for name in self._kinds]
        self._ready = {
            tuple(form[name] for name in (*self._kinds, *self._flags)): (
                {**self.constants(form), **self.options(form, HIP)}, self._checks(form),
            )
            for form in self.forms
            if ("hip" if HIP else "cuda") in backends(**form)
        }  # fmt: skip
        self._typed: set[tuple[Any, ...]] = set()  # forms whose tensors' types have been looked at
        KERNELS.append(self)

    def constants(self, form: Mapping[str, Any]) -> dict[str, Any]:
        return {**{name: form[name] for name in self._flags}, **self._constants(**form)}

    def options(self, form: Mapping[str, Any], hip: bool) -> dict[str, Any]:
        options = {"enable_fp_fusion": True, **self._options(hip, **form)}
        return {name: value for name, value in options.items() if not hip or name != "maxnreg"}

    def type_of(self, argument: str, form: Mapping[str, Any]) -> str:
        kind = self.types[argument]
        return f"*{form[kind[1:]]}" if kind[1:] in self._kinds else kind

    def _checks(self, form: Mapping[str, Any]) -> tuple[list[tuple[int, Any]], ...]:
        """(place, type) of tensors; (place, limit) of numbers; (place, whether tensor) of divisible ones."""
        kinds = [self.type_of(name, form) for name in self.arguments]
        tensors = [(place, DTYPES[kind]) for place, kind in enumerate(kinds) if kind in DTYPES]
        numbers = [
            (place, 1 << (63 if kind == "i64" else 31))
            for place, kind in enumerate(kinds)
            if kind not in DTYPES
        ]
        divisible = [(self.arguments.index(name), self.types[name] not in NUMBERS) for name in self.divisible]
        return tensors, numbers, divisible

    def __call__(self, grid: tuple[int, ...], *arguments: Any, **choice: Any) -> None:
        kinds = [KIND_OF[arguments[place].dtype] for place in self._places]
        form = (*kinds, *[choice.get(name) for name in self._flags])
        ready = self._ready.get(form)
        if ready is None or len(choice) != len(self._flags):
            raise AssertionError(f"{self.name} has no form for {kinds} and {choice}")
        constants, (tensors, numbers, divisible) = ready
        assert len(arguments) == len(self.arguments), self.name
        if form not in self._typed:
            for place, dtype in tensors:
                if arguments[place].dtype is not dtype:
                    self._refuse(place, arguments)
            if not EVERY_TYPE:
                self._typed.add(form)
        for place, limit in numbers:
            if not -limit <= arguments[place] < limit:
                name, number = self.arguments[place], arguments[place]
                raise ValueError(f"{self.name}: {name}: expected less than {limit}, got {number}")
        for place, tensor in divisible:
            value = arguments[place]
            if (value.storage_offset() * value.element_size() if tensor else value) % 16:
                self._refuse(place, arguments)
        if HIP:  # where tensors below 2 GB have variants too, but not those whose size cannot be seen
            arguments = tuple(
                triton.reinterpret(value, value.dtype) if isinstance(value, torch.Tensor) else value
                for value in arguments
            )
        self.function[grid](*arguments, **constants)

    def _refuse(self, place: int, arguments: tuple[Any, ...]) -> None:
        raise AssertionError(f"{self.name}: {self.arguments[place]} is not as declared: {arguments[place]}")

    def compilations(self) -> Iterator[Compilation]:
        """All forms, for each maker's GPUs where they may be launched."""
        for form in self.forms:
            constants = self.constants(form)
            types = {
                name: "constexpr" if name in constants else self.type_of(name, form)
                for name in self.function.arg_names
            }
            chosen = ",".join(
                str(value) if name.islower() else f"{name.lower()}={value}" for name, value in form.items()
            )
            for backend in self.backends(**form):
                yield Compilation(
                    f"{self.name}[{chosen}]", self.function, types, constants,
                    self.options(form, backend == "hip"), self.divisible, backend,
                )  # fmt: skip
