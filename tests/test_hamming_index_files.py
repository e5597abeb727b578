"""Index files: what they hold, and that damaged ones are refused."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from minerlib import HammingIndex
from minerlib.hamming_index import IndexFileError
from tests.test_hamming_index import filled, random_codes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files are locked and read the POSIX way")


def some_index(rows: int, bits: int, with_ids: bool) -> HammingIndex:
    rng = np.random.default_rng([rows, bits])
    return filled(
        random_codes(rng, rows, bits), bits, rng.permutation(10 * rows)[:rows] if with_ids else None
    )


def assert_same(index: HammingIndex, other: HammingIndex) -> None:
    assert index.bits == other.bits
    np.testing.assert_array_equal(index.codes, other.codes)
    assert (index.ids is None) == (other.ids is None)
    if index.ids is not None and other.ids is not None:
        np.testing.assert_array_equal(index.ids, other.ids)


def run_script(script: str, timeout: float = 120) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ------------------------------------------------------------------ the format


def by_hand(
    bits: int, codes: bytes, ids: bytes | None, rows: int, change: dict[str, int] | None = None
) -> bytes:
    """An index file as the specification describes it; `change` overwrites fields of the header."""

    def pages(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4096)

    body = pages(codes) + (pages(ids) if ids is not None else b"")
    table = b"".join(
        struct.pack("<I", zlib.crc32(body[at : at + 2**20])) for at in range(0, len(body), 2**20)
    )
    ids_at = 4096 + len(pages(codes)) if ids is not None else 0
    fields = {
        "version": 1,
        "flags": int(ids is not None),
        "bits": bits,
        "rows": rows,
        "codes_at": 4096,
        "ids_at": ids_at,
        "table_at": 4096 + len(body),
        "bytes": 4096 + len(body) + len(table),
        "block": 2**20,
        "table_crc": zlib.crc32(table),
    }
    header = struct.pack("<8s2I7QI", b"\x93HAMMING", *{**fields, **(change or {})}.values())
    header += bytes(4092 - len(header))
    return header + struct.pack("<I", zlib.crc32(header)) + body + table


@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize(
    ("rows", "bits"), [(0, 12), (1, 12), (512, 64), (513, 64), (30_000, 300), (131_072, 64)]
)
def test_the_file_is_as_specified(rows: int, bits: int, with_ids: bool, tmp_path: Path) -> None:
    index = some_index(rows, bits, with_ids)
    index.save(tmp_path / "a.index")
    ids = index.ids.astype("<i8").tobytes() if index.ids is not None and len(index.ids) else None
    if rows == 0:
        ids = b"" if index.ids is not None else None
    assert (tmp_path / "a.index").read_bytes() == by_hand(bits, index.codes.tobytes(), ids, rows)
    for in_file in (True, False):
        for verify in (True, False):
            loaded = HammingIndex.load(tmp_path / "a.index", mmap=in_file, verify=verify)
            assert_same(loaded, index)
            assert ("mapped from" in repr(loaded)) == in_file
    if rows:
        codes = np.memmap(tmp_path / "a.index", np.uint8, "r", offset=4096, shape=index.codes.shape)
        np.testing.assert_array_equal(codes, index.codes)


def test_the_same_index_gives_the_same_bytes(tmp_path: Path) -> None:
    index = some_index(1000, 70, True)
    index.save(tmp_path / "a")
    HammingIndex.load(tmp_path / "a").save(os.fsencode(tmp_path / "b"))  # type: ignore[arg-type]
    HammingIndex.load(tmp_path / "a", mmap=False).save(str(tmp_path / "c"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_a_mapped_index_cannot_change(tmp_path: Path) -> None:
    some_index(10, 16, True).save(tmp_path / "a")
    index = HammingIndex.load(tmp_path / "a")
    with pytest.raises(ValueError, match=r"add: expected an index in memory.*mmap=False"):
        index.add(np.zeros((1, 2), np.uint8), [-1])
    with pytest.raises(ValueError, match="remove: expected an index in memory"):
        index.remove(index.ids)
    assert not index.codes.flags.writeable
    loaded = HammingIndex.load(tmp_path / "a", mmap=False)
    loaded.add(np.zeros((1, 2), np.uint8), [-1])
    assert len(loaded) == 11
    assert len(HammingIndex.load(tmp_path / "a")) == 10


# ------------------------------------------------------------------ damaged files


@contextmanager
def restored(path: Path) -> Iterator[BinaryIO]:
    """The file open for damage, and whole again afterwards."""
    whole = path.read_bytes()
    with path.open("r+b", buffering=0) as stream:
        yield stream  # type: ignore[misc]
    path.write_bytes(whole)


def flip_bits(rng: np.random.Generator, stream: BinaryIO, size: int) -> None:
    """One to four bits, anywhere or in the first page or the last."""
    region = [(0, 4096), (0, size), (max(0, size - 4096), size)][rng.integers(3)]
    for place in rng.choice(np.arange(*region), size=rng.integers(1, 5), replace=False).tolist():
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ (1 << int(rng.integers(8)))]))


def cut(rng: np.random.Generator, stream: BinaryIO, size: int) -> None:
    end = [rng.integers(0, 4097), rng.integers(0, size), size - rng.integers(1, 100)][rng.integers(3)]
    stream.truncate(int(end))


def lengthen(rng: np.random.Generator, stream: BinaryIO, size: int) -> None:
    stream.seek(size)
    stream.write(rng.bytes(int(rng.choice([1, 4, 512, 4096, 100_000]))))


def overwrite(rng: np.random.Generator, stream: BinaryIO, size: int) -> None:
    """A sector of noise."""
    stream.seek(int(rng.integers(0, size // 512)) * 512)
    stream.write(rng.bytes(512))


def lose(rng: np.random.Generator, stream: BinaryIO, size: int) -> None:
    """A page of codes that never reached the disk: zeros."""
    stream.seek(int(rng.integers(0, 3)) * 4096)
    stream.write(bytes(4096))


def shift(rng: np.random.Generator, stream: BinaryIO, size: int) -> None:
    """A byte lost in the middle, one gained at the end."""
    place = int(rng.integers(0, 8192))
    stream.seek(place + 1)
    rest = stream.read()
    stream.seek(place)
    stream.write(rest + b"\0")


DAMAGES = (flip_bits, flip_bits, flip_bits, cut, cut, lengthen, overwrite, lose, shift)


@pytest.mark.parametrize(
    ("rows", "bits", "with_ids"),
    [(3000, 64, False), (4000, 61, True), (1500, 1025, True), (260_000, 64, True)],
)
def test_damaged_files_are_refused(rows: int, bits: int, with_ids: bool, tmp_path: Path) -> None:
    """250 of each kind of index, 1,000 in all."""
    path = tmp_path / "damaged.index"
    index = some_index(rows, bits, with_ids)
    index.save(path)
    whole, rng = path.read_bytes(), np.random.default_rng(rows)
    for number in range(250):
        with restored(path) as stream:
            DAMAGES[number % len(DAMAGES)](rng, stream, len(whole))
            assert path.read_bytes() != whole
            with pytest.raises(IndexFileError) as refusal:
                HammingIndex.load(path, mmap=bool(number % 2))
            assert str(refusal.value).startswith(f"{path}: ")
            assert "\n" not in str(refusal.value)
    assert_same(HammingIndex.load(path), index)  # it was the damage that was refused


def test_every_bit_of_the_header_page_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.index"
    some_index(5, 16, True).save(path)
    whole = path.read_bytes()
    for place in [*range(96), *range(4080, 4096)]:
        for bit in range(8):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
            with pytest.raises(IndexFileError):
                HammingIndex.load(path, verify=False)


def test_without_verify_header_table_and_length_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.index"
    index = some_index(300_000, 32, False)
    index.save(path)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"\0", whole[:20] + b"x" + whole[21:], whole[:-2] + b"xx"):
        path.write_bytes(damaged)
        with pytest.raises(IndexFileError):
            HammingIndex.load(path, verify=False)
    path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    assert (HammingIndex.load(path, verify=False).codes != index.codes).sum() == 1
    with pytest.raises(IndexFileError, match="the bytes from 4096 to 1052672 are damaged"):
        HammingIndex.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "expected an index file of version 1, got version 2"),
        ({"flags": 3}, "contradict each other"),
        ({"flags": 0}, "too long"),
        ({"bits": 0}, "too long"),
        ({"bits": 15}, "bits set beyond its 15"),
        ({"bits": 2**31}, "cut short"),
        ({"bits": 2**64 - 1, "rows": 2**64 - 1}, "cut short"),
        ({"rows": 2**40}, "cut short"),
        ({"rows": 2**64 - 1}, "cut short"),
        ({"codes_at": 8192}, "contradict each other"),
        ({"ids_at": 0}, "contradict each other"),
        ({"table_at": 4096}, "contradict each other"),
        ({"bytes": 1}, "contradict each other"),
        ({"block": 4096}, "contradict each other"),
        ({"table_crc": 1}, "the table of checksums is damaged"),
    ],
)
def test_whole_headers_that_say_nonsense(change: dict[str, int], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.index"
    codes, ids = bytes(range(246, 256)), np.arange(5, dtype="<i8").tobytes()
    path.write_bytes(by_hand(16, codes, ids, 5))
    assert len(HammingIndex.load(path)) == 5
    path.write_bytes(by_hand(16, codes, ids, 5, change))
    with pytest.raises(IndexFileError, match=message):
        HammingIndex.load(path)


@pytest.mark.parametrize("bits", [12, 61, 1025])
def test_bits_beyond_the_length_are_found_wherever_they_are(bits: int, tmp_path: Path) -> None:
    """With right checksums; the rows are those at the edges of what is read at a time."""
    width = -(-bits // 8)
    rows, edge = 600_000 // width, (1 << 18) // width
    for row in (0, 1, edge - 1, edge, edge + 1, 2 * edge, 2 * edge + 1, rows - 1):
        codes = np.zeros((rows, width), np.uint8)
        codes[row, -1] = 0x80
        (tmp_path / "a").write_bytes(by_hand(bits, codes.tobytes(), None, rows))
        with pytest.raises(IndexFileError, match=f"bits set beyond its {bits}"):
            HammingIndex.load(tmp_path / "a")


def test_what_is_no_index_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for load in (HammingIndex.load, HammingIndex.from_faiss):
        with pytest.raises(FileNotFoundError, match=str(path)):
            load(path)
        with pytest.raises(IndexFileError, match=f"{tmp_path}: .*this is a folder"):
            load(tmp_path)
        with pytest.raises(IndexFileError, match=r"/dev/null: .*this is no regular file"):
            load("/dev/null")
        os.mkfifo(path)
        with pytest.raises(IndexFileError, match="this is no regular file"):
            load(path)  # and does not wait for a writer
        path.unlink()
        path.touch()
        with pytest.raises(IndexFileError, match="this one is empty"):
            load(path)
        path.write_text("lorem ipsum dolor sit amet\n" * 500)
        with pytest.raises(IndexFileError, match=f"{path}: expected .*b'lore"):
            load(path)
        path.unlink()
        with pytest.raises(TypeError, match="path: expected a string or a path"):
            load(3)  # type: ignore[arg-type]
    np.save(tmp_path / "a.npy", np.zeros((300, 300)))
    with pytest.raises(IndexFileError, match=r"this one starts with b'.x93NUMPY"):
        HammingIndex.load(tmp_path / "a.npy")


def test_an_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "a.index"
    some_index(5, 16, False).save(path)
    path.chmod(0)
    script = f"""
import os
from minerlib import HammingIndex
if os.geteuid() == 0:
    os.seteuid(65534)
for load in (HammingIndex.load, HammingIndex.from_faiss):
    try:
        load({str(path)!r})
    except PermissionError as error:
        assert error.filename == {str(path)!r}, error
    else:
        raise SystemExit("it was read")
"""
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):  # pytest's own, closed to others
        folder.chmod(folder.stat().st_mode | 0o111)
    run_script(script)


def test_a_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.index"
    some_index(5, 16, False).save(path)

    def fails(*arguments: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    with pytest.raises(OSError, match="Input/output error") as failure:
        HammingIndex.load(path)
    assert failure.value.filename == str(path)
    HammingIndex.load(path, verify=False)
