"""Saving an index: the old file is there, whole, until the new one is; and files larger than memory."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from minerlib import HammingIndex, _whole_files
from tests.test_hamming_index_files import assert_same, run_script, some_index

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files are locked and read the POSIX way")


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


class _Breaks:
    """A stream whose writes fail once so many bytes went through."""

    def __init__(self, stream: BinaryIO, room: int, error: BaseException) -> None:
        self._stream, self._room, self._error = stream, room, error

    def write(self, data: Any) -> int:
        self._room -= memoryview(data).nbytes
        if self._room < 0:
            raise self._error
        return self._stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("write", [HammingIndex.save, HammingIndex.to_faiss])
def test_an_interrupted_save_leaves_the_old_file(
    write: Callable[[HammingIndex, Path], None],
    error: BaseException,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "a.index"
    write(some_index(50, 16, True), path)
    old = path.read_bytes()
    new = some_index(300_000, 40, True)
    for room in (0, 10, 5000, 500_000, 1_400_000, 2_000_000, 3_900_000):

        @contextmanager
        def replacing(path: Path, room: int = room) -> Iterator[_Breaks]:
            with _whole_files.replacing(path) as stream:
                yield _Breaks(stream, room, error)

        monkeypatch.setattr("minerlib._index_files.replacing", replacing)
        monkeypatch.setattr("minerlib._faiss_files.replacing", replacing)
        with pytest.raises(type(error)) as failure:
            write(new, path)
        if isinstance(failure.value, OSError):
            assert failure.value.filename == str(path)
        assert path.read_bytes() == old
        assert not leftovers(tmp_path)
    monkeypatch.undo()
    write(new, path)
    assert path.read_bytes() != old


def test_a_failing_sync_or_rename_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, index = tmp_path / "a.index", some_index(50, 16, True)
    index.save(path)
    for function in ("fsync", "replace"):

        def fails(*arguments: Any) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patched:
            patched.setattr(os, function, fails)
            with pytest.raises(OSError, match="Input/output error"):
                some_index(60, 16, False).save(path)
        assert_same(HammingIndex.load(path), index)
        assert not leftovers(tmp_path)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """The system's own refusal: no file of this process may grow beyond a megabyte."""
    path, index = tmp_path / "a.index", some_index(1000, 64, True)
    index.save(path)
    script = f"""
import resource, numpy as np
from minerlib import HammingIndex

index = HammingIndex(64)
index.add(np.zeros((200_000, 8), np.uint8))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
for write in (index.save, index.to_faiss):
    try:
        write({str(path)!r})
    except OSError as error:
        assert error.filename == {str(path)!r}, error
    else:
        raise SystemExit("it was written")
"""
    run_script(script)
    assert_same(HammingIndex.load(path), index)
    assert not leftovers(tmp_path)


WRITER = """
import os, sys, numpy as np
from minerlib import HammingIndex

def index_of(version):
    index = HammingIndex(64)
    rows = 1000 + 250_000 * (version % 2)
    index.add(np.full((rows, 8), version % 251, np.uint8), np.arange(rows) + version)
    return index

path, first = sys.argv[1], int(sys.argv[2])
for line in sys.stdin:  # each line asks for one more writer, which saves until it is killed
    child = os.fork()
    if not child:
        version = int(line)
        while True:
            index_of(version).save(path)
            version += 1
    print(child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def wait_while(look: Callable[[], object], seen: object) -> None:
    deadline = time.monotonic() + 60
    while look() == seen:
        assert time.monotonic() < deadline


def test_kill_minus_nine_while_saving(tmp_path: Path) -> None:
    """50 times at a random moment after a save began or ended; the file is one of the versions, whole."""
    path = tmp_path / "a.index"
    rng, left, seen = np.random.default_rng(9), 0, set()
    some_index(10, 64, True).save(path)
    before, old = path.read_bytes(), list[str]()
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    try:
        for number in range(50):
            saved = path.stat().st_mtime_ns
            print(1000 * number, file=writer.stdin, flush=True)
            child = int(writer.stdout.readline())
            if number % 2:
                wait_while(lambda: path.stat().st_mtime_ns, saved)
            else:
                wait_while(lambda: leftovers(tmp_path), old)
            time.sleep(rng.uniform(0.0, 0.03))
            os.kill(child, signal.SIGKILL)
            assert writer.stdout.readline() == "dead\n"
            old = leftovers(tmp_path)
            left += bool(old)
            index = HammingIndex.load(path)
            if path.read_bytes() == before:  # killed before its first save was whole
                continue
            before = path.read_bytes()
            assert index.ids is not None
            version = int(index.ids[0])
            seen.add(version)
            assert len(index) == 1000 + 250_000 * (version % 2)
            np.testing.assert_array_equal(index.ids, np.arange(len(index)) + version)
            assert (index.codes == version % 251).all()
    finally:
        writer.stdin.close()
        writer.wait(timeout=30)
        writer.stdout.close()
    assert left > 5  # some were killed within a save
    assert len(seen) > 5  # some between saves or after one
    some_index(3, 64, False).save(path)
    assert not leftovers(tmp_path)


def test_only_what_dead_writers_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".minerlib-0123456789abcdef.part").write_bytes(b"left by a killed process")
    (tmp_path / ".somebody-elses.part").touch()
    old, new = some_index(20, 16, False), some_index(30, 16, False)
    with _whole_files.replacing(tmp_path / "a") as stream:
        stream.write(b"not finished ")
        (part,) = [name for name in leftovers(tmp_path) if name != ".somebody-elses.part"]
        old.save(tmp_path / "a")
        new.save(tmp_path / "b")
        assert sorted(leftovers(tmp_path)) == sorted([part, ".somebody-elses.part"])
        stream.write(b"yet")
    assert (tmp_path / "a").read_bytes() == b"not finished yet"
    assert leftovers(tmp_path) == [".somebody-elses.part"]


def test_several_writers_of_one_file(tmp_path: Path) -> None:
    """The last one wins, each time whole, and no writer takes another's unfinished file for a leftover."""
    path = tmp_path / "a.index"
    versions = [some_index(2000 + number, 64, True) for number in range(4)]
    versions[0].save(path)
    errors: list[BaseException] = []

    def write(index: HammingIndex) -> None:
        try:
            for _ in range(15):
                index.save(path)
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=(index,)) for index in versions]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        loaded = HammingIndex.load(path)
        assert_same(loaded, versions[len(loaded) - 2000])
    for writer in writers:
        writer.join()
    assert not errors
    assert not leftovers(tmp_path)


def test_saving_onto_the_mapped_file(tmp_path: Path) -> None:
    path, index = tmp_path / "a.index", some_index(20_000, 64, True)
    index.save(path)
    mapped = HammingIndex.load(path)
    mapped.save(path)
    assert_same(HammingIndex.load(path), index)
    some_index(5, 64, True).save(path)  # another index under that name
    assert_same(mapped, index)
    path.unlink()
    query = np.asarray(index.codes[:2])
    np.testing.assert_array_equal(mapped.search(query, 9).indices, index.search(query, 9).indices)
    mapped.save(path)
    assert_same(HammingIndex.load(path), index)


def test_links_and_permissions(tmp_path: Path) -> None:
    index = some_index(5, 16, True)
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "a.index", tmp_path / "link"
    index.save(target)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask
    target.chmod(0o640)
    link.symlink_to(target)
    some_index(6, 16, True).save(link)
    assert link.is_symlink()
    assert len(HammingIndex.load(target)) == 6
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_a_read_only_file_is_not_replaced(tmp_path: Path) -> None:
    path, index = tmp_path / "a.index", some_index(5, 16, False)
    index.save(path)
    path.chmod(0o444)
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):  # pytest's own, closed to others
        folder.chmod(folder.stat().st_mode | 0o111)
    tmp_path.chmod(0o777)
    script = f"""
import os
from minerlib import HammingIndex
if os.geteuid() == 0:
    os.seteuid(65534)
index = HammingIndex(8)
index.save({str(tmp_path / "other")!r})
try:
    index.save({str(path)!r})
except PermissionError as error:
    assert error.filename == {str(path)!r}, error
else:
    raise SystemExit("it was replaced")
"""
    run_script(script)
    assert_same(HammingIndex.load(path), index)


def test_where_nothing_can_be_saved(tmp_path: Path) -> None:
    index = some_index(5, 16, True)
    for write in (index.save, index.to_faiss):
        with pytest.raises(FileNotFoundError, match="missing/a"):
            write(tmp_path / "missing" / "a")
        with pytest.raises(IsADirectoryError, match="this is a folder"):
            write(tmp_path)
        with pytest.raises(OSError, match="expected a regular file"):
            write("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert not leftovers(tmp_path)


# ------------------------------------------------------------------ larger than memory


def test_a_file_larger_than_the_memory_allowed(tmp_path: Path) -> None:
    """132 MiB of codes and ids where the process may take 64 MiB: it holds a chunk of the file at a time."""
    path = tmp_path / "large.index"
    script = f"""
import resource, sys, numpy as np
import minerlib
from minerlib import HammingIndex, hamming_index

minerlib.set_num_threads(2)  # the limit below counts the stack of every thread

def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) / 1024

rng = np.random.default_rng(0)
index = HammingIndex(128)
hamming_index.CHUNK_BYTES = 1 << 24
for _ in range(8):
    codes = rng.integers(0, 256, (1 << 16, 16), dtype=np.uint8)
    index.add(np.repeat(codes, 11, axis=0), np.arange(11 << 16) + len(index))
queries = index.codes[rng.integers(len(index), size=4)]
index.save({str(path)!r})
small = HammingIndex(128)
small.add(queries)
small.search(queries, 1)
small.range_search(queries, 1)
expected = index.search(queries, 40), index.range_search(queries, 30)
del index, codes
"""
    script_below = f"""
with open("/proc/self/clear_refs", "w") as clear:
    clear.write("5")  # VmHWM starts anew
before = resident("VmRSS")
data = resident("VmData")
limit = int((data + 64) * 2**20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
mapped = HammingIndex.load({str(path)!r})
for found, wanted in zip((mapped.search(queries, 40), mapped.range_search(queries, 30)), expected):
    for got, want in zip(found, wanted):
        np.testing.assert_array_equal(got, want)
mapped.save({str(path)!r})
peak = resident("VmHWM") - before
try:
    HammingIndex.load({str(path)!r}, mmap=False)
except MemoryError:
    pass
else:
    raise SystemExit("the limit is none")
print(peak)
"""
    if not os.access("/proc/self/clear_refs", os.W_OK) or not hasattr(mmap, "MADV_DONTNEED"):
        pytest.skip("the peak of resident memory is read the Linux way")
    peak = float(run_script(script + script_below))
    assert path.stat().st_size > 132 << 20
    assert peak < 64  # two chunks of 16 MiB and their ids of 8 MiB, and what the search itself takes
