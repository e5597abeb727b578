"""Every Triton kernel in every configuration compiles for every target, without spills and within its memory.

What the written table (bench/results/triton_compile.json) holds under the key of today's source, options
and compiler is taken from there; one configuration of each kernel is compiled afresh for sm_90 or gfx942
all the same. `python -m tritonkernels.compile_report` writes the table.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed (make build installs it)", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels defined under the interpreter cannot be compiled", allow_module_level=True)

from tritonkernels import compile_matrix, compile_report


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
    canonical = {name: found.canonical for name, found in compile_report.by_name().items()}
    faults = [fault for row in rows for fault in row.faults(canonical[row.name])]
    assert not faults, "\n".join(faults)


def test_every_kernel_file_is_in_the_matrix() -> None:
    files = {path.stem for path in Path(compile_matrix.__file__).parent.glob("*.py")}
    with_kernels = {
        name
        for name in files
        if "_kernel[" in (Path(compile_matrix.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    }
    assert with_kernels == set(compile_matrix.MODULES)


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

    distances = compile_report.by_name()["hamming.distance[1x1024 unroll=2]"]
    for place, (kind, word) in ((1, ("ptx", "popc.b32")), (3, ("amdgcn", "v_bcnt_u32_b32"))):
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
    norms = compile_report.by_name()["canonical.norms[fp32]"]
    import triton
    from triton.backends.compiler import GPUTarget

    compiled = triton.compile(
        norms.source(), target=GPUTarget(*compile_matrix.TARGETS[1]),
        options=dict(norms.options) | {"enable_fp_fusion": True},
    )  # fmt: skip
    assert compile_report._nvidia(compiled.asm)["fused"] > 0
