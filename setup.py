"""Builds `minerlib._native` and the CUDA kernels from csrc/ with ninja; metadata is in pyproject.toml.

MINERLIB_BUILD_NATIVE  `auto` (default): build when a C++ compiler is there, else install pure Python;
                       `1`: a missing compiler is an error; `0`: never build.
MINERLIB_BUILD_CUDA    `auto` (default): build minerlib/_cuda.so where nvcc is;
                       `1`: a missing nvcc is an error; `0`: never build.
CXX, CXXFLAGS, LDFLAGS as everywhere; NVCC names another nvcc, NVCC_APPEND_FLAGS is nvcc's own. A compile
error always fails the build.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# Equality with the float64 definition rests on these: no contraction into fused multiply-adds, no reordering,
# and no instruction set beyond the platform's baseline outside the files that ask for one by their name.
BASE_FLAGS = """-std=c++17 -O3 -fPIC -fvisibility=hidden -fno-fast-math -ffp-contract=off -fno-math-errno
-Wall -Wextra -pthread""".split()
AVX2_FLAGS = "-mavx2 -mfma -mf16c -mbmi2 -mpopcnt".split()
AVX512_FLAGS = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512cd".split() + AVX2_FLAGS
X86_FLAGS = {  # by the last part of a source file's name: window_avx2.cpp -> avx2
    "avx2": AVX2_FLAGS,
    "amxemulated": AVX2_FLAGS,  # for tests
    "avx512": AVX512_FLAGS,
    "avx512bf16": [*AVX512_FLAGS, "-mavx512bf16"],
    "avx512vpopcntdq": [*AVX512_FLAGS, "-mavx512vpopcntdq"],
    "amxbf16": [*AVX512_FLAGS, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}

# Nothing of CUDA but its static runtime is linked, and none of its names are seen outside: a framework in the
# same process has a runtime of its own. The report of ptxas goes to a file that the tests read.
CUDA_ARCHITECTURES = ("80", "86", "89", "90a", "100")
CUDA_PTX = "80"  # for devices newer than the last of those: their driver compiles it
CUDA_FLAGS = """-std=c++17 -O3 -fmad=false -Xptxas=-v -Xcompiler=-fPIC,-fvisibility=hidden,-Wall -shared
-cudart=static -Xlinker=--exclude-libs=ALL -Icsrc --threads=0""".split()
CUDA_FOLDER = Path("build", f"cuda-{sysconfig.get_platform()}")
PTXAS_REPORT = CUDA_FOLDER / "ptxas.txt"


def isa_of(source: str) -> str:
    """The instruction set that a file is named after: `avx2` for csrc/cpu/window_avx2.cpp, else `generic`."""
    suffix = Path(source).stem.rpartition("_")[2]
    return suffix if suffix in X86_FLAGS else "generic"


def on_x86_64() -> bool:
    return platform.machine().lower() in {"x86_64", "amd64"} and sys.maxsize > 2**32


def native_sources() -> list[str]:
    """In link order, wider instruction sets last: of an inline function that several objects hold the linker
    keeps the first, and that one must run on every processor."""
    cpu = [path.as_posix() for path in sorted(Path("csrc/cpu").glob("*.cpp"))]
    order = ["generic", *X86_FLAGS]
    usable = [source for source in cpu if on_x86_64() or isa_of(source) == "generic"]
    return ["csrc/bindings.cpp", *sorted(usable, key=lambda source: order.index(isa_of(source)))]


def compile_flags(source: str) -> list[str]:
    """Every flag that depends on the file alone (the environment's CXXFLAGS come before these)."""
    return [*BASE_FLAGS, f"-DMINERLIB_X86={int(on_x86_64())}", "-Icsrc", *X86_FLAGS.get(isa_of(source), [])]


def find_compiler() -> list[str] | None:
    """The C++ compiler as a command, or None when there is none."""
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    commands = (shlex.split(candidate) for candidate in candidates)
    return next((command for command in commands if command and shutil.which(command[0])), None)


def reason_not_to_build() -> str:
    """Why no extension is built, or an empty string."""
    if os.environ.get("MINERLIB_BUILD_NATIVE") == "0":
        return "MINERLIB_BUILD_NATIVE=0"
    if find_compiler() is None:
        named = os.environ.get("CXX")
        return f"CXX={named} was not found" if named else "no C++ compiler (c++, g++ or clang++) was found"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return f"Python.h was not found in {sysconfig.get_path('include')} (Debian: package python3-dev)"
    return ""


def wish_for(variable: str) -> str:
    wish = os.environ.get(variable, "auto")
    if wish not in {"auto", "0", "1"}:
        raise SystemExit(f"minerlib: {variable} must be auto, 0 or 1, not {wish!r}")
    return wish


def extensions() -> list[Extension]:
    wish, reason = wish_for("MINERLIB_BUILD_NATIVE"), reason_not_to_build()
    if reason and wish == "1":
        raise SystemExit(f"minerlib: MINERLIB_BUILD_NATIVE=1, but {reason}")
    if reason:
        print(f"minerlib: {reason}; installing without the native extension (numba takes its place)")
        return cuda_extensions()
    return [Extension("minerlib._native", native_sources()), *cuda_extensions()]


def cuda_extensions() -> list[Extension]:
    """Most machines have no nvcc: nothing is said of that unless it was asked for; `minerlib info` tells."""
    wish, reason = wish_for("MINERLIB_BUILD_CUDA"), reason_not_to_build_cuda()
    if reason and wish == "1":
        raise SystemExit(f"minerlib: MINERLIB_BUILD_CUDA=1, but {reason}")
    return [] if reason else [Extension("minerlib._cuda", cuda_sources())]


def cuda_sources() -> list[str]:
    return [path.as_posix() for path in sorted(Path("csrc/cuda").glob("*.cu"))]


def find_nvcc() -> str | None:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = ["nvcc", *(f"{home}/bin/nvcc" for home in (*homes, "/usr/local/cuda"))]
    named = os.environ.get("NVCC")
    found = (shutil.which(candidate) for candidate in ([named] if named else candidates))
    return next((path for path in found if path), None)


def reason_not_to_build_cuda() -> str:
    """Why there are no CUDA kernels, or an empty string."""
    if os.environ.get("MINERLIB_BUILD_CUDA") == "0":
        return "MINERLIB_BUILD_CUDA=0"
    if not cuda_sources():
        return "csrc/cuda holds no sources"
    if not find_nvcc():
        return f"NVCC={os.environ['NVCC']} was not found" if os.environ.get("NVCC") else "nvcc was not found"
    if find_compiler() is None:
        return "nvcc needs a C++ compiler, and none was found"
    return ""


def cuda_code(nvcc: str) -> tuple[str, list[str]]:
    """What is built, for `minerlib info`, and the flags: those architectures that this nvcc knows."""
    listed = subprocess.run(
        [nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True
    ).stdout.split()
    known = [name for name in CUDA_ARCHITECTURES if f"sm_{name.rstrip('a')}" in listed]
    flags = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in known]
    flags.append(f"-gencode=arch=compute_{CUDA_PTX},code=compute_{CUDA_PTX}")
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    number = re.search(r"V(\d[\d.]*)", version)
    built = f"nvcc {number[1] if number else 'of unknown version'}"
    names = " ".join(f"sm_{name}" for name in known)
    return f"{built} for {names} and PTX of compute_{CUDA_PTX}", flags


class NinjaBuild(build_ext):
    """build_ext that hands compiling and linking to ninja: parallel, and only what changed."""

    def get_ext_filename(self, ext_name: str) -> str:
        if ext_name.rpartition(".")[2] == "_cuda":  # no Python module: the same library serves every Python
            return os.path.join(*ext_name.split(".")) + ".so"
        return super().get_ext_filename(ext_name)

    def build_extension(self, ext: Extension) -> None:
        # Not self.build_temp: an editable install puts that into a temporary directory and rebuilds all.
        cuda = ext.name == "minerlib._cuda"
        folder = CUDA_FOLDER
        if not cuda:
            folder = Path("build", f"native-{sys.implementation.cache_tag}-{sysconfig.get_platform()}")
        library = folder / Path(self.get_ext_filename(ext.name)).name
        folder.mkdir(parents=True, exist_ok=True)
        write = write_cuda_ninja_file if cuda else write_ninja_file
        write(folder / "build.ninja", ext.sources, folder, library)

        from ninja import BIN_DIR

        if subprocess.run([Path(BIN_DIR, "ninja"), "-f", folder / "build.ninja"]).returncode:
            hint = " (MINERLIB_BUILD_CUDA=0 does without it)" if cuda else ""
            raise CompileError(
                f"minerlib: compiling {ext.name} failed{hint}; the compiler's message stands above"
            )
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Replaced, not overwritten: a process that has the old library loaded keeps it.
        part = target.with_name(f"{target.name}.part")
        shutil.copy2(library, part)
        os.replace(part, target)


def write_ninja_file(path: Path, sources: list[str], folder: Path, library: Path) -> None:
    import pybind11
    from ninja.ninja_syntax import Writer

    compiler = find_compiler()
    assert compiler is not None, "no extension is declared without a compiler"
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    facts = f"{version.splitlines()[0]}; {' '.join(BASE_FLAGS)}".replace("\\", "\\\\").replace('"', '\\"')
    bindings_flags = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
    bindings_flags.append(f'-DMINERLIB_COMPILER_INFO="{facts}"')
    link_flags = ["-shared", "-pthread"]
    if sys.platform == "darwin":
        link_flags += ["-undefined", "dynamic_lookup"]

    with path.open("w", encoding="utf-8") as stream:
        ninja = Writer(stream)
        ninja.variable("builddir", str(folder))
        ninja.variable("cxx", escaped(compiler))
        user_flags = escaped(shlex.split(os.environ.get("CXXFLAGS", "")))
        command = f"$cxx {user_flags} $flags -MMD -MF $out.d -c $in -o $out"
        ninja.rule("compile", command, description="compile $in", depfile="$out.d", deps="gcc")
        # Written under another name first, so that a link that dies leaves no half library behind.
        user_flags = escaped(shlex.split(os.environ.get("LDFLAGS", "")))
        command = f"$cxx $in {user_flags} {escaped(link_flags)} -o $out.part && mv $out.part $out"
        ninja.rule("link", command, description="link $out")
        objects = []
        for source in sources:
            flags = compile_flags(source) + (bindings_flags if source == "csrc/bindings.cpp" else [])
            obj = str(folder / Path(source).with_suffix(".o"))
            objects += ninja.build(obj, "compile", source, variables={"flags": escaped(flags)})
        ninja.build(str(library), "link", objects)


def write_cuda_ninja_file(path: Path, sources: list[str], folder: Path, library: Path) -> None:
    from ninja.ninja_syntax import Writer

    nvcc = find_nvcc()
    assert nvcc is not None, "no extension is declared without nvcc"
    built, code = cuda_code(nvcc)
    flags = escaped([*CUDA_FLAGS, *code, f'-DMINERLIB_CUDA_BUILD="{built}"'])
    report = escaped([PTXAS_REPORT.as_posix()])
    with path.open("w", encoding="utf-8") as stream:
        ninja = Writer(stream)
        ninja.variable("builddir", str(folder))
        command = f"{escaped([nvcc])} {flags} -MMD -MF $out.d $in -o $out.part"
        ninja.rule(
            "nvcc", f"{command} >{report} 2>&1 && mv $out.part $out || {{ cat {report}; exit 1; }}",
            description="nvcc $in", depfile="$out.d", deps="gcc",
        )  # fmt: skip
        ninja.build(str(library), "nvcc", sources)


def escaped(words: list[str]) -> str:
    """Words of a command, quoted for the shell and then for a ninja file."""
    return shlex.join(words).replace("$", "$$")


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": NinjaBuild})
