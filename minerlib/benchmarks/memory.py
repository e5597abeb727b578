"""Peak extra memory of one call, measured in a process of its own: `python -m minerlib.benchmarks.memory`.

The call runs once on a small problem first, so that libraries and their threads are there; then what is free
goes back to the system, its mark of the peak is reset, and the peak during the one real call is compared with
what was held before it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from minerlib.benchmarks import machine, works
from minerlib.benchmarks.contest import Contest, Spec, pinned
from minerlib.benchmarks.results import OURS

_STATUS = Path("/proc/self/status")


def measure(spec: Spec, name: str, instruction_set: str | None = None) -> float | None:
    """MB beyond what was held before the call; None where the system does not tell."""
    if not _STATUS.exists():
        return None
    request = json.dumps({"spec": asdict(spec), "name": name, "instruction_set": instruction_set})
    command = [sys.executable, "-m", "minerlib.benchmarks.memory", request]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(answer.stdout.splitlines()[-1])["extra_mb"])


def _run(contest: Contest, name: str) -> object:
    if name == OURS:
        return contest.ours()
    what = _without_sizes(name)
    return next(other for other in contest.others if _without_sizes(other.name) == what).run()


def _without_sizes(name: str) -> str:
    """A name that says in brackets how much of the work is done says something else for a tiny one."""
    return name.partition(" (")[0]


def _kilobytes(field: str) -> int:
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _give_back_what_is_free() -> None:
    """Or the call would take memory that making the data has left behind, and it would count for nothing."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def main(request: str) -> None:
    facts = json.loads(request)
    spec = Spec(**facts["spec"])
    machine.use_all_threads()
    with pinned(facts["instruction_set"]):
        _run(works.build(works.tiny(spec)), facts["name"])
        contest = works.build(spec)
        _give_back_what_is_free()
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the mark of the peak
        before = _kilobytes("VmRSS")
        result = _run(contest, facts["name"])
        peak = _kilobytes("VmHWM")
        del result
    print(json.dumps({"extra_mb": max(0, peak - before) * 1024 / 1e6}))


if __name__ == "__main__":
    main(sys.argv[1])
