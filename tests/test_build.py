"""setup.py: flags by file name, incremental builds, and what happens without a compiler or on an error."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
NO_COMPILER = {"CXX": "no-such-compiler"}


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minerlib_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the build with a native part of two small files (no pybind11: that alone takes seconds)."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "minerlib").mkdir()
    (tmp_path / "minerlib/__init__.py").touch()
    (tmp_path / "csrc/cpu").mkdir(parents=True)
    (tmp_path / "csrc/bindings.cpp").write_text("int bindings() { return 0; }\n")
    (tmp_path / "csrc/cpu/family.h").write_text("int family();\n")
    (tmp_path / "csrc/cpu/family_generic.cpp").write_text(
        '#include "cpu/family.h"\nint family() { return 1; }\n'
    )
    return tmp_path


def build(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "MINERLIB_BUILD_NATIVE"}
    return subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=project,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )


def needs_compiler(recipe: ModuleType) -> None:
    reason = recipe.reason_not_to_build()
    if reason:
        pytest.skip(f"nothing can be compiled here: {reason}")


@pytest.mark.parametrize(
    ("source", "isa"),
    [
        ("csrc/cpu/window_generic.cpp", "generic"),
        ("csrc/cpu/window_avx2.cpp", "avx2"),
        ("csrc/cpu/window_avx512.cpp", "avx512"),
        ("csrc/cpu/topk_avx512bf16.cpp", "avx512bf16"),
        ("csrc/cpu/hamming_search_avx512vpopcntdq.cpp", "avx512vpopcntdq"),
        ("csrc/cpu/topk_amxbf16.cpp", "amxbf16"),
        ("csrc/cpu/avx2.cpp", "avx2"),
        ("csrc/cpu/avx2_helpers.cpp", "generic"),
        ("csrc/cpu/myavx2.cpp", "generic"),
        ("csrc/bindings.cpp", "generic"),
    ],
)
def test_instruction_set_comes_from_the_end_of_the_name(recipe: ModuleType, source: str, isa: str) -> None:
    assert recipe.isa_of(source) == isa


def test_flags_of_each_instruction_set(recipe: ModuleType) -> None:
    def flags(isa: str) -> set[str]:
        return {flag for flag in recipe.compile_flags(f"csrc/cpu/x_{isa}.cpp") if flag.startswith("-m")}

    assert flags("generic") == set()
    assert flags("avx2") == {"-mavx2", "-mfma", "-mf16c", "-mbmi2", "-mpopcnt"}
    assert flags("avx512") - flags("avx2") == {f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "cd")}
    assert flags("avx512bf16") - flags("avx512") == {"-mavx512bf16"}
    assert flags("avx512vpopcntdq") - flags("avx512") == {"-mavx512vpopcntdq"}
    assert flags("amxbf16") - flags("avx512bf16") == {"-mamx-tile", "-mamx-bf16"}
    assert flags("amxemulated") == flags("avx2")


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512", "avx512bf16", "avx512vpopcntdq", "amxbf16"])
def test_no_file_may_change_floating_point_results(recipe: ModuleType, isa: str) -> None:
    flags = recipe.compile_flags(f"csrc/cpu/x_{isa}.cpp")
    assert "-ffp-contract=off" in flags
    assert not {"-ffast-math", "-Ofast", "-funsafe-math-optimizations", "-march=native"} & set(flags)


def test_other_processors_get_the_portable_files_alone(
    recipe: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "csrc/cpu/family_avx2.cpp").touch()
    monkeypatch.chdir(project)
    monkeypatch.setattr(recipe.platform, "machine", lambda: "aarch64")
    assert recipe.native_sources() == ["csrc/bindings.cpp", "csrc/cpu/family_generic.cpp"]
    assert "-DMINERLIB_X86=0" in recipe.compile_flags("csrc/bindings.cpp")


def test_without_a_compiler_the_build_says_so_in_one_line_and_goes_on(project: Path) -> None:
    built = build(project, **NO_COMPILER)
    assert built.returncode == 0, built.stdout
    assert built.stdout.count("\n") == 1
    assert "CXX=no-such-compiler was not found; installing without the native extension" in built.stdout
    assert not list(project.rglob("*.so"))


def test_without_a_compiler_a_required_extension_fails(project: Path) -> None:
    built = build(project, **NO_COMPILER, MINERLIB_BUILD_NATIVE="1")
    assert built.returncode != 0
    assert "MINERLIB_BUILD_NATIVE=1, but CXX=no-such-compiler was not found" in built.stdout
    assert "Traceback" not in built.stdout


def test_a_build_can_be_declined(project: Path) -> None:
    built = build(project, MINERLIB_BUILD_NATIVE="0")
    assert built.returncode == 0, built.stdout
    assert "MINERLIB_BUILD_NATIVE=0; installing without" in built.stdout
    assert not list(project.rglob("*.so"))


def test_an_unknown_wish_is_refused(project: Path) -> None:
    built = build(project, MINERLIB_BUILD_NATIVE="yes")
    assert built.returncode != 0
    assert "must be auto, 0 or 1, not 'yes'" in built.stdout


def test_a_compile_error_fails_the_build(recipe: ModuleType, project: Path) -> None:
    needs_compiler(recipe)
    (project / "csrc/cpu/family_generic.cpp").write_text("#error broken on purpose\n")
    built = build(project)
    assert built.returncode != 0
    assert "broken on purpose" in built.stdout
    assert "compiling minerlib._native failed" in built.stdout
    assert not list(project.rglob("*.so"))


def test_only_what_depends_on_a_changed_header_is_compiled_again(recipe: ModuleType, project: Path) -> None:
    needs_compiler(recipe)
    first = build(project)
    assert first.returncode == 0, first.stdout
    assert len(list(project.glob("minerlib/_native*.so"))) == 1
    assert "no work to do" in build(project).stdout

    (project / "csrc/cpu/family.h").write_text("int family();  // changed\n")
    again = build(project)
    assert again.returncode == 0, again.stdout
    assert "compile csrc/cpu/family_generic.cpp" in again.stdout
    assert "bindings.cpp" not in again.stdout


def test_of_shared_code_the_linker_keeps_the_portable_copy(recipe: ModuleType, project: Path) -> None:
    """Were it the copy compiled for AVX-512, portable code would die of it on an older processor."""
    needs_compiler(recipe)
    if not recipe.on_x86_64():
        pytest.skip("one instruction set only on this processor")
    shared = """
        #ifdef __AVX2__
        inline constexpr int level = 2;
        #else
        inline constexpr int level = 1;
        #endif
        __attribute__((noinline)) inline int shared() { return level; }
        #define PUBLIC extern "C" __attribute__((visibility("default")))
    """
    (project / "csrc/cpu/family.h").write_text(shared)
    for isa in ("avx2", "generic"):
        code = f'#include "cpu/family.h"\nPUBLIC int family_{isa}() {{ return shared(); }}\n'
        (project / f"csrc/cpu/family_{isa}.cpp").write_text(code)
    built = build(project)
    assert built.returncode == 0, built.stdout
    (library,) = project.glob("minerlib/_native*.so")
    loaded = ctypes.CDLL(str(library))
    assert (loaded.family_generic(), loaded.family_avx2()) == (1, 1)
