"""What each CUDA kernel takes on each architecture: registers, stack, spills; no GPU is needed.

    python -m bench.cuda_report     # after a build: writes the table in bench/results, and csrc/README.md

`setup.py` keeps what ptxas said of its build (`-Xptxas=-v`); the tests read the same, so nothing is compiled
twice.
"""

from __future__ import annotations

import json
import re
import sys
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path

from minerlib import _cuda_library

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "build" / f"cuda-{sysconfig.get_platform()}" / "ptxas.txt"
TABLE = ROOT / "bench" / "results" / "cuda_ptxas.json"
README = ROOT / "csrc" / "README.md"
BEGIN, END = "<!-- ptxas: written by bench/cuda_report.py -->", "<!-- end of ptxas -->"

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_KERNEL = re.compile(r"entryINS0_\d+([A-Za-z]+?)(?:I((?:Li\d+E)+)E)?EEEv")


@dataclass(frozen=True)
class Row:
    """A kernel on one architecture."""

    kernel: str  # Collect<2, 1>
    target: str  # sm_90a
    registers: int  # of a thread
    stack: int  # bytes of a thread
    spill_stores: int
    spill_loads: int


def rows_of(report: str) -> list[Row]:
    """The rows of a report, by kernel and architecture."""
    rows = []
    for part in re.split(r"(?=ptxas info\s+: Compiling entry function)", report)[1:]:
        entry, spills, registers = (pattern.search(part) for pattern in (_ENTRY, _SPILLS, _REGISTERS))
        assert entry, part
        assert spills, part
        assert registers, part
        stack, stores, loads = map(int, spills.groups())
        rows.append(Row(kernel_name(entry[1]), entry[2], int(registers[1]), stack, stores, loads))
    return sorted(rows, key=lambda row: (row.kernel, _number(row.target)))


def kernel_name(mangled: str) -> str:
    """Collect<2, 1> of what a compiler makes of it."""
    found = _KERNEL.search(mangled)
    assert found, mangled
    if found[2] is None:
        return found[1]
    values = re.findall(r"Li(\d+)E", found[2])
    return f"{found[1]}<{', '.join(values)}>"


def _number(target: str) -> int:
    return int(re.sub(r"\D", "", target))


def summary(rows: list[Row], build: str) -> str:
    """Registers of a thread, a line for each kernel."""
    targets = sorted({row.target for row in rows}, key=_number)
    lines = [f"| kernel | {' | '.join(targets)} |", "|---|" + "---|" * len(targets)]
    for kernel in dict.fromkeys(row.kernel for row in rows):
        registers = {row.target: row.registers for row in rows if row.kernel == kernel}
        lines.append(f"| `{kernel}` | {' | '.join(str(registers[target]) for target in targets)} |")
    spilled = sum(row.stack + row.spill_stores + row.spill_loads > 0 for row in rows)
    return "\n".join(
        [*lines, "", f"{build}: {len(rows)} compilations, {spilled} of which use a stack or spill."]
    )


def main() -> int:
    if _cuda_library.missing() or not REPORT.exists():
        print(f"bench.cuda_report: {_cuda_library.missing() or f'{REPORT} is missing'}", file=sys.stderr)
        return 1
    build = _cuda_library.library().build()
    rows = rows_of(REPORT.read_text(encoding="utf-8"))
    document = {"build": build, "rows": [asdict(row) for row in rows]}
    TABLE.write_text(json.dumps(document, indent=0) + "\n", encoding="utf-8")
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    text = f"{before}{BEGIN}\n\n{summary(rows, build)}\n\n{END}{rest.partition(END)[2]}"
    README.write_text(text, encoding="utf-8")
    print(summary(rows, build))
    return 0


if __name__ == "__main__":
    sys.exit(main())
