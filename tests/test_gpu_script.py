"""What `make gpu` does with and without a GPU: its script over programs that only note their calls."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "gpu" / "run.sh"

PROGRAM = """#!/bin/sh
echo "{name} $*" >> "$NOTES"
case "$*" in {failing}) exit {code};; esac
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs, the only ones beside the system's own."""
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return tmp_path


def add(folder: Path, name: str, failing: str = "nothing", code: int = 1) -> str:
    path = folder / name
    path.write_text(PROGRAM.format(name=name, failing=failing, code=code), encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def run(*pythons: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(SCRIPT), *pythons], capture_output=True, text=True, check=False)


def steps(folder: Path) -> list[str]:
    lines = (folder / "notes").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if " -c import" not in line]


def test_without_a_gpu_it_says_so(programs: Path) -> None:
    blind = add(programs, "blind", "*is_available*")
    done = run("missing", blind)
    assert done.returncode == 0
    assert "no Python here has a torch that sees a GPU" in done.stdout
    assert steps(programs) == []


def test_a_gpu_that_no_torch_sees_is_a_failure(programs: Path) -> None:
    add(programs, "nvidia-smi")
    done = run(add(programs, "blind", "*is_available*"))
    assert done.returncode == 1
    assert "nvidia-smi lists a GPU" in done.stderr


def test_it_builds_tests_checks_memory_and_measures(programs: Path) -> None:
    blind, seeing = add(programs, "blind", "*is_available*"), add(programs, "seeing")
    add(programs, "compute-sanitizer")
    assert run(blind, seeing).returncode == 0
    found = steps(programs)
    checked = [line for line in found if line.startswith("compute-sanitizer")]
    others = [line for line in found if line not in checked]
    assert all(line.startswith("seeing ") for line in others)
    assert "build_ext --inplace" in others[0]
    assert others[1].endswith("-m minerlib info")
    assert "-m pytest -m gpu -n " in others[2]
    assert others[3].endswith("-m bench.gpu")
    assert found[-1] == others[3]
    files = {f"tests/{path.name}" for path in Path(__file__).parent.glob("test_gpu*.py")}
    files.remove(f"tests/{Path(__file__).name}")
    assert set(others[2].split()[7:]) == files
    assert all("--error-exitcode" in line and "-k smallest" in line for line in checked)
    assert {line.split()[-1] for line in checked if "memcheck" in line} == files - {"tests/test_gpu.py"}


@pytest.mark.parametrize(("name", "failing"), [("seeing", "*pytest*"), ("compute-sanitizer", "*memcheck*")])
def test_nothing_is_timed_while_a_test_fails(programs: Path, name: str, failing: str) -> None:
    for program in ("seeing", "compute-sanitizer"):
        add(programs, program, failing if program == name else "nothing", 9)
    done = run(str(programs / "seeing"))
    assert done.returncode == 1
    assert "tests failed, so nothing was timed" in done.stderr
    assert not any("bench.gpu" in line for line in steps(programs))


def test_without_a_sanitizer_it_says_so(programs: Path) -> None:
    done = run(add(programs, "seeing"))
    assert done.returncode == 0
    assert "no compute-sanitizer here" in done.stdout
