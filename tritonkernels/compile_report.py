"""What each kernel takes on each target: registers, spills, shared memory; no GPU is needed.

    python -m tritonkernels.compile_report    # compiles what changed, writes the table and README.md's part

A row is one configuration of `compile_matrix` on one target. Its key is a digest of all that the compiler
sees (the kernel's source and what it calls, types, constants, options, target, Triton's version), so a row
of the written table stays true until something changes, and only then is compiled anew. Compilers: those in
Triton's package.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

from tritonkernels import compile_matrix
from tritonkernels.launching import Compilation

TABLE = Path(__file__).parents[1] / "bench" / "results" / "triton_compile.json"
README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- compiled: written by compile_report.py -->", "<!-- end of compiled -->"

#: Bytes of shared memory that one program may have, by the vendors' guides.
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
REGISTERS = 1 << 16  # 32-bit registers of an NVIDIA multiprocessor: those of one program must fit


@dataclass(frozen=True)
class Row:
    """What one configuration takes on one target."""

    name: str
    target: str
    key: str
    registers: int  # of a thread; on AMD vector registers, accumulation registers included
    warps: int
    spilled: int  # bytes of a thread that go to memory and come back
    scalars_moved: int  # AMD: scalar registers kept in lanes of vector registers, which is no memory
    shared: int  # bytes of a program
    fused: int  # float64 multiply-adds beyond those of division and root

    def faults(self, canonical: bool) -> list[str]:
        """Why the configuration must not be used."""
        faults = []
        if self.spilled:
            faults.append(f"spills {self.spilled} bytes a thread")
        if self.shared > SHARED_LIMIT[self.target]:
            faults.append(f"takes {self.shared} bytes of shared memory of {SHARED_LIMIT[self.target]}")
        if not self.target.startswith("gfx") and self.registers * self.warps * 32 > REGISTERS:
            faults.append(f"takes {self.registers * self.warps * 32} registers of {REGISTERS}")
        if canonical and self.fused:
            faults.append(f"fuses {self.fused} float64 multiplications into additions")
        return [f"{self.name} on {self.target}: {fault}" for fault in faults]


Job = tuple[str, int]  # a compilation's name, and the place of its target


def compilation_of(job: Job) -> Compilation:
    return compile_matrix.compilations()[job[0], compile_matrix.TARGETS[job[1]][0]]


def target_name(place: int) -> str:
    backend, arch, _ = compile_matrix.TARGETS[place]
    return f"sm_{arch}" if backend == "cuda" else str(arch)


def jobs() -> list[Job]:
    """Every form on every target where a launcher may choose it."""
    return [
        (name, place)
        for name, made_for in compile_matrix.compilations()
        for place, (backend, _, _) in enumerate(compile_matrix.TARGETS)
        if backend == made_for
    ]


def sources(kernel: Any) -> list[tuple[str, str]]:
    """The text of a kernel, of the functions that it calls, and of the constants that they name.

    Triton's own key also holds line numbers, so that a line more in a file would compile all of it anew.
    """
    found: dict[str, str] = {}
    waiting = [kernel]
    while waiting:
        function = waiting.pop()
        place = f"{function.__module__}.{function.__name__}"
        if place in found:
            continue
        found[place] = function.src
        for node in ast.walk(ast.parse(function.src)):
            value = function.__globals__.get(node.id) if isinstance(node, ast.Name) else None
            assert not isinstance(value, ModuleType) or value is tl, f"{place}: {node}"
            if isinstance(value, JITFunction):
                waiting.append(value)
            elif isinstance(value, (tl.constexpr, int, float)):
                found[f"{function.__module__}.{node.id}"] = repr(getattr(value, "value", value))
    return sorted(found.items())


def key_of(job: Job) -> str:
    compilation = compilation_of(job)
    seen = (
        sources(compilation.function), compilation.types, sorted(compilation.constants.items()),
        sorted(compilation.options.items()), sorted(compilation.divisible), compile_matrix.TARGETS[job[1]],
        triton.__version__,
    )  # fmt: skip
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]


# ------------------------------------------------------------------ compiling


def compile_row(job: Job) -> Row:
    from triton.backends.compiler import GPUTarget

    compilation, target = compilation_of(job), target_name(job[1])
    compiled = triton.compile(
        compilation.source(),
        target=GPUTarget(*compile_matrix.TARGETS[job[1]]),
        options=dict(compilation.options),
    )
    found = _amd(compiled.asm) if target.startswith("gfx") else _nvidia(compiled.asm)
    warps = compiled.metadata.num_warps
    return Row(job[0], target, key_of(job), warps=warps, shared=compiled.metadata.shared, **found)


def _nvidia(asm: dict[str, Any]) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(asm["cubin"])
        usage = dict(re.findall(r"\b(REG|STACK):(\d+)", _cuobjdump("-res-usage", path)))
        stack = int(usage["STACK"])
        if stack and not re.search(r"\b(LDL|STL)\b", _cuobjdump("-sass", path)):
            stack = 0  # the frame of a called function, which nothing is moved to
    fused = len(re.findall(r"\bfma\.rn\.f64\b", asm["ptx"]))
    return {"registers": int(usage["REG"]), "spilled": stack, "scalars_moved": 0, "fused": fused}


def _cuobjdump(option: str, path: Path) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, option, path], check=True, capture_output=True, text=True).stdout


def _amd(asm: dict[str, Any]) -> dict[str, int]:
    code, middle = asm["amdgcn"], asm["llir"]

    def number(what: str) -> int:
        found = re.search(rf"\.{what}:\s+(\d+)", code)
        assert found is not None, what
        return int(found[1])

    # Division and root are sequences of multiply-adds, correct to the last bit; elsewhere none may appear.
    fused = len(
        re.findall(r"fmuladd\S*f64|llvm\.fma\S*f64|= f(?:mul|add|sub) [a-z ]*contract[a-z ]* double", middle)
    )
    if not re.search(r"fdiv [a-z ]*double|sqrt", middle):
        fused += len(re.findall(r"\bv_(?:fma|fmac|pk_fma)_f64", code))
    return {
        "registers": number("vgpr_count"), "spilled": number("private_segment_fixed_size"),
        "scalars_moved": number("sgpr_spill_count"), "fused": fused,
    }  # fmt: skip


def known_rows(path: Path = TABLE) -> dict[tuple[str, str], Row]:
    """Rows of the written table, by name and target."""
    if not path.exists():
        return {}
    rows = (Row(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))["rows"])
    return {(row.name, row.target): row for row in rows}


def rows_of(
    wanted: Iterable[Job],
    fresh: Iterable[Job] = (),
    processes: int = 2,
    keep: Callable[[list[Row]], None] | None = None,  # called with what is there, now and then
) -> list[Row]:
    """A row for each job: the written one where nothing changed and it is not to be compiled afresh."""
    known, fresh = known_rows(), set(fresh)
    rows: dict[Job, Row] = {}
    for job in wanted:
        row = known.get((job[0], target_name(job[1])))
        if row is not None and row.key == key_of(job) and job not in fresh:
            rows[job] = row
    missing = [job for job in wanted if job not in rows]
    if missing:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            for job, row in zip(missing, pool.map(compile_row, missing, chunksize=4), strict=True):
                rows[job] = row
                if keep is not None and len(rows) % 50 == 0:
                    keep([rows[each] for each in wanted if each in rows])
    return [rows[job] for job in wanted]


def faults_of(wanted: Iterable[Job], rows: Iterable[Row]) -> list[str]:
    """Why some of the configurations must not be used."""
    pairs = zip(wanted, rows, strict=True)
    return [fault for job, row in pairs for fault in row.faults(compilation_of(job).canonical)]


# ------------------------------------------------------------------ the table


def summary(rows: list[Row]) -> str:
    """A line for each kernel: configurations, and the most that any of them takes on each target."""
    targets = [target_name(place) for place in range(len(compile_matrix.TARGETS))]
    lines = [
        "| kernel | configurations | "
        + " | ".join(f"{target} registers, shared" for target in targets)
        + " |",
        "|---|---|" + "---|" * len(targets),
    ]
    kernels = dict.fromkeys(row.name.partition("[")[0] for row in rows)
    for kernel in kernels:
        own = [row for row in rows if row.name.partition("[")[0] == kernel]
        cells = [f"`{kernel}`", str(len({row.name for row in own}))]
        for target in targets:
            most = [row for row in own if row.target == target]
            cells.append(
                f"{max(row.registers for row in most)}, {max(row.shared for row in most)}" if most else "-"
            )
        lines.append("| " + " | ".join(cells) + " |")
    spilled = sum(row.spilled > 0 for row in rows)
    lines += ["", f"Triton {triton.__version__}; {len(rows)} compilations, {spilled} of which spill."]
    return "\n".join(lines)


def write_table(rows: list[Row]) -> None:
    document = {"triton": triton.__version__, "rows": [asdict(row) for row in rows]}
    TABLE.write_text(json.dumps(document, indent=0) + "\n", encoding="utf-8")


def write_summary(rows: list[Row]) -> None:
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    README.write_text(
        f"{before}{BEGIN}\n\n{summary(rows)}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8"
    )


def main() -> None:
    wanted = jobs()
    rows = rows_of(wanted, processes=os.cpu_count() or 1, keep=write_table)
    write_table(rows)
    write_summary(rows)
    faults = faults_of(wanted, rows)
    print(summary(rows), *faults, sep="\n")
    print(f"written: {TABLE}")


if __name__ == "__main__":
    main()
