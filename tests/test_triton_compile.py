"""Every Triton kernel in every form compiles for every target, without spills and within its memory.

`launching.Kernel` refuses to launch anything but its forms, and a launch is compiled as its form says. What
the written table (bench/results/triton_compile.json) holds under the key of today's source, options and
compiler is taken from there; one configuration of each kernel is compiled afresh for sm_90 or gfx942
all the same. `python -m tritonkernels.compile_report` writes the table.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed (make build installs it)", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels defined under the interpreter cannot be compiled", allow_module_level=True)

from tritonkernels import compile_matrix, compile_report, launching


def test_everything_compiles_without_spills_and_fits() -> None:
    wanted = compile_report.jobs()
    kernels = list(dict.fromkeys(name.partition("[")[0] for name, _ in wanted))
    first = {
        kernel: (name, place)
        for name, place in reversed(wanted)
        for kernel in [name.partition("[")[0]]
        if compile_report.target_name(place) == ("sm_90", "gfx942")[kernels.index(kernel) % 2]
    }
    assert len(first) == len(kernels)
    rows = compile_report.rows_of(wanted, fresh=first.values())
    assert [(row.name, row.target) for row in rows] == [
        (name, compile_report.target_name(place)) for name, place in wanted
    ]
    faults = compile_report.faults_of(wanted, rows)
    assert not faults, "\n".join(faults)


def test_every_kernel_has_its_forms_and_no_other_launch() -> None:
    """Kernels are functions named so; a launch past `Kernel` would be written kernel[grid](...)."""
    compile_matrix.compilations()
    files = Path(compile_matrix.__file__).parent.glob("*.py")
    trees = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    written = {
        f"{name}.{node.name.removesuffix('_kernel')}"
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    }
    assert sorted(kernel.name for kernel in launching.KERNELS) == sorted(written)
    assert {name.partition(".")[0] for name in written} == set(compile_matrix.MODULES)
    launches = [
        f"{name}: {ast.unparse(node)}"
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
    ]
    assert launches == ["launching: self.function[grid](*arguments, **constants)"]


@pytest.mark.parametrize("number", [0, 1, 16, 17, (1 << 31) - 1])
@pytest.mark.parametrize("offset", [0, 8])
def test_a_launch_is_compiled_as_its_form_says(number: int, offset: int) -> None:
    """Whatever the numbers and wherever the pointers: what Triton makes of a launch's arguments."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    backends = {
        kind: make_backend(GPUTarget(kind, arch, warp)) for kind, arch, warp in compile_matrix.TARGETS[1:4:2]
    }
    for (_, kind), compilation in compile_matrix.compilations().items():
        function, backend = compilation.function, backends[kind]
        bind = create_function_from_signature(function.signature, function.params, backend)
        arguments = {}
        for name, of in compilation.types.items():
            divisible = name in compilation.divisible
            if of == "constexpr":
                arguments[name] = compilation.constants[name]
            elif of.startswith("*"):
                place = (1 << 20) + (0 if divisible else offset)
                arguments[name] = SimpleNamespace(data_ptr=lambda place=place: place,
                                                  dtype=launching.DTYPES[of])  # fmt: skip
            else:
                arguments[name] = number - number % 16 if divisible else number
        found = bind(**arguments)[1]
        for (name, of), (bound, key) in zip(compilation.types.items(), found, strict=True):
            if of != "constexpr":
                wanted = (of, "D" if name in compilation.divisible else None)
                assert (bound, key or None) == wanted, (compilation.name, name)


def test_what_is_no_form_is_refused() -> None:
    """An unknown choice, another type, a number too large, memory that is not aligned."""
    import torch

    from tritonkernels import pairwise, values

    root, distances = pairwise.ROOT_KERNEL, pairwise.PAIRWISE_KERNEL
    doubles = torch.zeros(8, dtype=torch.float64)
    halves, numbers = doubles.half(), (4, 4, 2, 1, 1)
    with pytest.raises(AssertionError, match=r"pairwise.pairwise has no form for \['fp16'\]"):
        distances((1,), halves, halves, doubles, doubles, doubles, *numbers, COSINE=False)
    with pytest.raises(AssertionError, match="has no form for"):
        distances((1,), doubles, doubles, doubles, doubles, doubles, *numbers, COSINE=2)
    with pytest.raises(AssertionError, match="has no form for"):
        root((1,), doubles, 8, WIDE=True)
    with pytest.raises(AssertionError, match=r"pairwise.root: values is not as declared"):
        root((1,), halves, 8)
    with pytest.raises(ValueError, match=r"pairwise.pairwise: rows: expected less than 2147483648, got 2147"):
        distances((1,), doubles, doubles, doubles, doubles, doubles, 1 << 31, 4, 2, 1, 1, COSINE=True)
    words, floats, ints = doubles.long(), doubles.float(), doubles.int()
    for a, first, name in ((floats[1:], 0, "a"), (floats, 8, "first")):
        with pytest.raises(AssertionError, match=f"values.values: {name} is not as declared"):
            values.VALUES_KERNEL(
                (1, 1), a, floats, doubles, ints, ints, words, words, floats, first, 16, 16, 1, 1,
                MULTI=False, DEPTH=16, INPUT_PRECISION="ieee",
            )  # fmt: skip


def test_every_product_names_its_precision() -> None:
    """Left out, it would silently be TF32."""
    products = 0
    for path in Path(compile_matrix.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "tl.dot":
                products += 1
                assert "input_precision" in {keyword.arg for keyword in node.keywords}, f"{path.name}"
    assert products >= 4


def test_popcounts_are_one_instruction() -> None:
    """The sum that every compiler and the interpreter understand must not stay one on a GPU."""
    import triton
    from triton.backends.compiler import GPUTarget

    for place, (kind, word) in ((1, ("ptx", "popc.b32")), (3, ("amdgcn", "v_bcnt_u32_b32"))):
        distances = compile_report.compilation_of(("hamming.distance[bq=1,unroll=2]", place))
        target = GPUTarget(*compile_matrix.TARGETS[place])
        compiled = triton.compile(distances.source(), target=target, options=dict(distances.options))
        assert compiled.asm[kind].count(word) == 2 * 1024 // (4 * (32 if place == 1 else 64))


def test_faults_are_found() -> None:
    fine = compile_report.Row("kernel", "sm_90", "", 255, 8, 0, 0, 227 << 10, 0)
    assert fine.faults(canonical=True) == []
    bad = dataclasses.replace(fine, spilled=8, shared=(227 << 10) + 1, warps=16, fused=3)
    assert [fault.partition(": ")[2] for fault in bad.faults(canonical=True)] == [
        "spills 8 bytes a thread",
        "takes 232449 bytes of shared memory of 232448",
        "takes 130560 registers of 65536",
        "fuses 3 float64 multiplications into additions",
    ]
    assert dataclasses.replace(fine, fused=3).faults(canonical=False) == []


def test_a_fused_product_is_seen() -> None:
    """The same kernel with fusion left on must show what the check looks for."""
    norms = compile_report.compilation_of(("canonical.norms[fp32]", 1))
    import triton
    from triton.backends.compiler import GPUTarget

    compiled = triton.compile(
        norms.source(), target=GPUTarget(*compile_matrix.TARGETS[1]),
        options=dict(norms.options) | {"enable_fp_fusion": True},
    )  # fmt: skip
    assert compile_report._nvidia(compiled.asm)["fused"] > 0
