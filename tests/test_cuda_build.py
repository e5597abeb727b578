"""The CUDA library: when it is built, what it links and shows, what its kernels take; no GPU is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import cuda_report
from minerlib import _cuda_library
from tests.conftest import IN_CI
from tests.cuda_mirror import ROOT, mirror, recipe

#: Says what is asked of nvcc, and "compiles" by writing the output.
NVCC = """#!/bin/sh
case "$*" in
*--list-gpu-code*) echo sm_75 sm_80 sm_86 sm_89 sm_90 ;;
*--version*) echo "Cuda compilation tools, release 12.4, V12.4.131" ;;
*) echo "told: $*"; grep -q broken csrc/cuda/kernels.cu && exit 1
   while [ "$1" != -o ]; do shift; done
   echo library > "$2" ;;
esac
"""


def needs_library() -> None:
    """Where nvcc is, the build makes the library; elsewhere there is none."""
    if _cuda_library.missing():
        assert not (IN_CI and recipe().find_nvcc()), _cuda_library.missing()
        pytest.skip(_cuda_library.missing())


# ------------------------------------------------------------------ the build


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the build with one CUDA source and a stand-in for nvcc."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "minerlib").mkdir()
    (tmp_path / "minerlib/__init__.py").touch()
    (tmp_path / "csrc/cuda").mkdir(parents=True)
    (tmp_path / "csrc/cuda/kernels.cu").touch()
    (tmp_path / "nvcc").write_text(NVCC)
    (tmp_path / "nvcc").chmod(0o755)
    return tmp_path


def build(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "MINERLIB_BUILD_CUDA"}
    chosen = {"MINERLIB_BUILD_NATIVE": "0", "NVCC": str(project / "nvcc")} | environment
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=project, env=inherited | chosen,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
    )  # fmt: skip


def test_where_nvcc_is_a_library_is_built_for_the_architectures_it_knows(project: Path) -> None:
    built = build(project)
    assert built.returncode == 0, built.stdout
    assert (project / "minerlib/_cuda.so").read_text() == "library\n"
    told = next(project.glob("build/cuda-*/ptxas.txt")).read_text()
    for name in ("80", "86", "89", "90a"):
        assert f"-gencode=arch=compute_{name},code=sm_{name}" in told
    assert "sm_100" not in told
    assert "-gencode=arch=compute_80,code=compute_80" in told
    assert '-DMINERLIB_CUDA_BUILD="nvcc 12.4.131 for sm_80 sm_86 sm_89 sm_90a and PTX of compute_80"' in told
    assert "-cudart=static" in told
    assert "torch" not in told


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"NVCC": "no-such-nvcc"}, ""),
        ({"MINERLIB_BUILD_CUDA": "0"}, ""),
        ({"NVCC": "no-such-nvcc", "MINERLIB_BUILD_CUDA": "1"}, "=1, but NVCC=no-such-nvcc was not found"),
        ({"MINERLIB_BUILD_CUDA": "yes"}, "MINERLIB_BUILD_CUDA must be auto, 0 or 1, not 'yes'"),
    ],
)
def test_a_build_can_be_declined_or_demanded(project: Path, environment: dict[str, str], said: str) -> None:
    built = build(project, **environment)
    assert (built.returncode != 0) == bool(said), built.stdout
    assert said in built.stdout
    assert "Traceback" not in built.stdout
    if not said:
        assert built.stdout.count("\n") == 1  # about the native extension, declined too
    assert not list(project.rglob("*.so"))


def test_a_compile_error_fails_the_build_and_says_how_to_do_without(project: Path) -> None:
    (project / "csrc/cuda/kernels.cu").write_text("broken\n")
    built = build(project)
    assert built.returncode != 0
    assert "told: " in built.stdout  # what the compiler said
    assert "compiling minerlib._cuda failed (MINERLIB_BUILD_CUDA=0 does without it)" in built.stdout
    assert not list(project.rglob("*.so"))


# ------------------------------------------------------------------ the library


def test_it_holds_code_for_every_architecture() -> None:
    needs_library()
    build = _cuda_library.library().build()
    for name in recipe().CUDA_ARCHITECTURES:
        assert f"sm_{name}" in build.split()
    assert build.endswith("PTX of compute_80")


def test_it_needs_no_cuda_library_and_shows_its_launchers_alone() -> None:
    needs_library()
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed (binutils)")
    table = subprocess.run(
        ["readelf", "--wide", "--dynamic", "--dyn-syms", str(_cuda_library.PATH)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    needed = [line.split("[")[1].rstrip("]") for line in table.splitlines() if "(NEEDED)" in line]
    assert not [name for name in needed if "cuda" in name or "torch" in name or "python" in name]
    shown = [
        fields[7]
        for fields in map(str.split, table.splitlines())
        if len(fields) == 8 and fields[3] == "FUNC" and fields[4] == "GLOBAL" and fields[6] != "UND"
    ]
    assert set(shown) - {"_init", "_fini"} == {
        "minerlib_cuda_build", "minerlib_cuda_message",
        *(f"minerlib_cuda_{name}" for name in _cuda_library.LAUNCHERS),
    }  # fmt: skip


def test_a_launch_without_a_device_raises_and_names_the_kernel() -> None:
    needs_library()
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(_cuda_library.CudaError, match=r"^CUDA kernel hamming_precision: .*\(cudaError\w+\)$"):
        _cuda_library.library().launch("hamming_precision", 0, 0, 1, 1, 0, 0, 0)
    _cuda_library.library().launch("hamming_precision", 0, 0, 0, 1, 0, 0, 0)  # nothing to do, nothing asked


@pytest.mark.parametrize("content", ["", "no library"])
def test_what_does_not_load_is_a_reason(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "_cuda.so"
    monkeypatch.setattr(_cuda_library, "PATH", path)
    _cuda_library._loaded.cache_clear()
    try:
        reason = _cuda_library.missing()
        assert reason.startswith("the CUDA kernels are not built (_cuda.so): nvcc was not found")
        path.write_text(content)
        _cuda_library._loaded.cache_clear()
        assert _cuda_library.missing().startswith(f"the CUDA kernels do not load ({path}")
        assert _cuda_library.info() == {"built": False, "reason": _cuda_library.missing()}
        with pytest.raises(_cuda_library.CudaError, match="do not load"):
            _cuda_library.library()
    finally:
        _cuda_library._loaded.cache_clear()


# ------------------------------------------------------------------ what ptxas said of it


def test_no_kernel_spills_on_any_architecture() -> None:
    needs_library()
    rows = cuda_report.rows_of(cuda_report.REPORT.read_text(encoding="utf-8"))
    architectures = {f"sm_{name}" for name in recipe().CUDA_ARCHITECTURES}
    for kernel in {row.kernel for row in rows}:
        assert {row.target for row in rows if row.kernel == kernel} == architectures
    widths = ("0", "1", "2", "4", "8")
    assert {row.kernel for row in rows} == {
        "Limits", "Nearest", "Precision", "Select",
        *(f"{kernel}<{width}>" for kernel in ("Distance", "Histogram", "Rank") for width in widths),
        *(f"Collect<{width}, {way}>" for width in widths for way in (0, 1)),
        *(f"Products<{width}>" for width in (1, 2, 4, 8, 16)),
    }  # fmt: skip
    assert not [row for row in rows if row.stack or row.spill_stores or row.spill_loads]
    assert not [row for row in rows if row.kernel.startswith(("Collect", "Products")) and row.registers > 128]


def test_the_written_table_is_todays() -> None:
    needs_library()
    written = json.loads(cuda_report.TABLE.read_text(encoding="utf-8"))
    build = _cuda_library.library().build()
    if written["build"] != build:
        pytest.skip(f"the table is of another compiler: {written['build']}, here {build}")
    rows = cuda_report.rows_of(cuda_report.REPORT.read_text(encoding="utf-8"))
    again = "write it anew with: python -m bench.cuda_report"
    assert [cuda_report.Row(**fields) for fields in written["rows"]] == rows, again
    assert cuda_report.summary(rows, build) in cuda_report.README.read_text(encoding="utf-8"), again


def test_spills_are_seen() -> None:
    name = "_ZN8minerlib4cuda5entryINS0_7CollectILi2ELi1EEEEEvNT_4ArgsE"
    said = f"""
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{name}' for 'sm_90a'
ptxas info    : Function properties for {name}
    24 bytes stack frame, 8 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size
"""
    assert cuda_report.rows_of(said) == [cuda_report.Row("Collect<2, 1>", "sm_90a", 255, 24, 8, 16)]
    assert cuda_report.kernel_name("_ZN8minerlib4cuda5entryINS0_6SelectEEEvNT_4ArgsE") == "Select"


def test_the_mirror_has_the_same_launchers() -> None:
    assert mirror()._launchers.keys() == _cuda_library.LAUNCHERS.keys()
