"""The index file of `HammingIndex`: a header page, the codes, the ids, and a table of checksums.

    0                     header page of 4096 bytes: fields, zeros, and in its last 4 bytes their CRC-32
    4096                  codes, uint8 [rows, ceil(bits / 8)], then zeros up to a multiple of 4096
    after the codes       ids, int64 [rows], then zeros up to a multiple of 4096; only with flag 1
    after these           the table: a CRC-32 for each MiB between the header page and the table

All numbers are little-endian. Every byte of the file lies under exactly one checksum (the table's own is in
the header) and the file's length is in the header, so whatever was cut, added or flipped shows. The places
all follow from bits, rows and flags; they are stored for other readers, such as `numpy.memmap(path,
offset=...)`.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from minerlib._whole_files import replacing
from minerlib.threads import get_num_threads

MAGIC = b"\x93HAMMING"
VERSION = 1
WITH_IDS = 1  # flags
PAGE = 4096
BLOCK = 1 << 20  # bytes under one checksum of the table
MOST_BITS = 2**31 - 8  # distances are int32

# magic, version, flags, bits, rows, where codes, ids and table begin, file length, BLOCK, the table's CRC
_FIELDS = struct.Struct("<8sIIQQQQQQQI")
_CRC = struct.Struct("<I")
_PIECE = 1 << 18  # bytes read at a time: they stay in a processor's cache for the checksum


class IndexFileError(ValueError):
    """A file that is no whole index file; the message begins with its path."""


@dataclass(frozen=True)
class Layout:
    """Where everything lies."""

    bits: int
    rows: int
    has_ids: bool

    @property
    def code_bytes(self) -> int:
        return -(-self.bits // 8)

    @property
    def codes_end(self) -> int:
        return PAGE + self.rows * self.code_bytes

    @property
    def ids_at(self) -> int:  # 0: there are none
        return _up(self.codes_end) if self.has_ids else 0

    @property
    def table_at(self) -> int:
        return _up(self.ids_at + 8 * self.rows) if self.has_ids else _up(self.codes_end)

    @property
    def blocks(self) -> int:
        return -(-(self.table_at - PAGE) // BLOCK)

    @property
    def file_bytes(self) -> int:
        return self.table_at + _CRC.size * self.blocks

    def header_page(self, table_crc: int) -> bytes:
        flags = WITH_IDS if self.has_ids else 0
        places = (PAGE, self.ids_at, self.table_at, self.file_bytes, BLOCK)
        fields = _FIELDS.pack(MAGIC, VERSION, flags, self.bits, self.rows, *places, table_crc)
        page = fields.ljust(PAGE - _CRC.size, b"\0")
        return page + _CRC.pack(zlib.crc32(page))


def _up(place: int) -> int:
    return -(-place // PAGE) * PAGE


# ------------------------------------------------------------------ writing


def write(
    path: str | os.PathLike[str],
    layout: Layout,
    codes: Iterable[np.ndarray],  # uint8 [n, bytes] each, all rows in order
    ids: Iterable[np.ndarray],  # int64 [n] each; none without ids
) -> None:
    """Write an index file that appears whole or not at all."""
    with replacing(path) as stream:
        stream.write(bytes(PAGE))
        body = _Body(stream)
        for chunk in codes:
            body.write(chunk)
        body.fill_page()
        for chunk in ids:
            body.write(chunk.astype("<i8", copy=False))
        body.fill_page()
        table = np.array(body.sums(), dtype="<u4").tobytes()
        stream.write(table)
        assert stream.tell() == layout.file_bytes
        stream.seek(0)
        stream.write(layout.header_page(zlib.crc32(table)))


class _Body:
    """What lies between header page and table: written in order, a CRC-32 kept for each block."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._sums: list[int] = []
        self._written = 0

    def write(self, array: np.ndarray) -> None:
        data = array.reshape(-1).view(np.uint8).data
        while data:
            begun = self._written % BLOCK
            piece = data[: BLOCK - begun]
            if not begun:
                self._sums.append(0)
            self._sums[-1] = zlib.crc32(piece, self._sums[-1])
            self._stream.write(piece)
            self._written += len(piece)
            data = data[len(piece) :]

    def fill_page(self) -> None:
        self.write(np.zeros(-self._written % PAGE, dtype=np.uint8))

    def sums(self) -> list[int]:
        return self._sums


# ------------------------------------------------------------------ reading


@dataclass(frozen=True, eq=False)
class Mapped:
    """The arrays of an index file in the system's memory for files: read when used, dropped when let go."""

    path: str
    layout: Layout
    pages: mmap.mmap
    codes: np.ndarray  # uint8 [rows, bytes], read-only
    ids: np.ndarray | None  # int64 [rows], read-only

    def will_need(self, first: int, last: int) -> None:
        """Have the system begin to read these rows."""
        self._advise("MADV_WILLNEED", first, last)

    def let_go(self, first: int, last: int) -> None:
        """These rows need not stay in this process's memory."""
        self._advise("MADV_DONTNEED", first, last)

    def _advise(self, advice: str, first: int, last: int) -> None:
        if not hasattr(mmap, advice):
            return
        width = self.layout.code_bytes
        places = [(PAGE + first * width, PAGE + last * width)]
        if self.ids is not None:
            places.append((self.layout.ids_at + 8 * first, self.layout.ids_at + 8 * last))
        for start, end in places:
            start -= start % mmap.PAGESIZE
            if start < end:
                self.pages.madvise(getattr(mmap, advice), start, end - start)


def open_mapped(path: str | os.PathLike[str], verify: bool) -> Mapped:
    """Check an index file (its body too, if `verify`) and map it. Memory: 256 KiB a thread."""
    name = os.fspath(path)
    with open_regular(path, "an index file") as stream, naming(path):
        layout, sums = _checked_header(name, stream.fileno())
        if verify:
            _check_body(name, stream.fileno(), layout, sums)
        pages = mmap.mmap(stream.fileno(), layout.file_bytes, access=mmap.ACCESS_READ)
    shape = (layout.rows, layout.code_bytes)
    codes: np.ndarray = np.ndarray(shape, np.uint8, pages, PAGE)
    ids: np.ndarray | None = np.ndarray(layout.rows, "<i8", pages, layout.ids_at) if layout.has_ids else None
    return Mapped(name, layout, pages, codes, ids)


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """An OSError inside, such as of a failing disk, names the file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


def open_regular(path: str | os.PathLike[str], expected: str) -> BinaryIO:
    """A file open for reading. What is no regular file with something in it is refused; no pipe blocks."""
    name = os.fspath(path)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IndexFileError(f"{name}: expected {expected}, this is a folder")
        if not stat.S_ISREG(found.st_mode):
            raise IndexFileError(f"{name}: expected {expected}, this is no regular file")
        if found.st_size == 0:
            raise IndexFileError(f"{name}: expected {expected}, this one is empty")
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _checked_header(name: str, descriptor: int) -> tuple[Layout, np.ndarray]:
    """The layout and the table of a file whose header, length and table are whole."""
    page = os.pread(descriptor, PAGE, 0)
    if page[: len(MAGIC)] != MAGIC:
        raise IndexFileError(
            f"{name}: expected an index file (HammingIndex.save writes one), "
            f"this one starts with {page[: len(MAGIC)]!r}"
        )
    if len(page) < PAGE:
        raise IndexFileError(f"{name}: the file is cut short within its header, at {len(page)} bytes")
    if _CRC.pack(zlib.crc32(page[: -_CRC.size])) != page[-_CRC.size :]:
        raise IndexFileError(f"{name}: the header is damaged, its checksum does not match")
    _, version, flags, bits, rows, *_, table_crc = _FIELDS.unpack_from(page)
    if version != VERSION:
        raise IndexFileError(f"{name}: expected an index file of version {VERSION}, got version {version}")
    layout = Layout(bits, rows, bool(flags & WITH_IDS))
    size = os.fstat(descriptor).st_size
    if size != layout.file_bytes:
        what = "cut short" if size < layout.file_bytes else "too long"
        raise IndexFileError(
            f"{name}: the file is {what}, its header announces {layout.file_bytes} bytes, got {size}"
        )
    if not 1 <= bits <= MOST_BITS or layout.header_page(table_crc) != page:
        raise IndexFileError(f"{name}: the header's fields contradict each other")
    table = os.pread(descriptor, _CRC.size * layout.blocks, layout.table_at)
    if len(table) != _CRC.size * layout.blocks or zlib.crc32(table) != table_crc:
        raise IndexFileError(f"{name}: the table of checksums is damaged")
    return layout, np.frombuffer(table, dtype="<u4")


def _check_body(name: str, descriptor: int, layout: Layout, sums: np.ndarray) -> None:
    """Every block of the body has its checksum, and no code has a bit beyond `bits`."""
    count = min(get_num_threads(), layout.blocks)
    if count <= 1:
        found = _first_damage(descriptor, layout, sums, range(layout.blocks))
    else:
        with ThreadPoolExecutor(count) as pool:
            strides = [range(first, layout.blocks, count) for first in range(count)]
            damages = pool.map(lambda blocks: _first_damage(descriptor, layout, sums, blocks), strides)
            found = min((damage for damage in damages if damage), default=None)
    if found:
        raise IndexFileError(f"{name}: {found[1]}")


def _first_damage(descriptor: int, layout: Layout, sums: np.ndarray, blocks: range) -> tuple[int, str] | None:
    """The first damaged of these blocks, and what is wrong with it."""
    buffer = np.empty(_PIECE, dtype=np.uint8)
    for block in blocks:
        start = PAGE + block * BLOCK
        end = min(start + BLOCK, layout.table_at)
        checksum, padded = 0, False
        for place in range(start, end, _PIECE):
            piece = buffer[: min(_PIECE, end - place)]
            if not _filled(piece.data, descriptor, place):
                return block, "the file was cut short while it was read"
            checksum = zlib.crc32(piece.data, checksum)
            padded = padded or _bits_beyond(piece, place, layout)
        if checksum != sums[block]:
            return block, f"the bytes from {start} to {end} are damaged, their checksum does not match"
        if padded:
            return block, f"a code in the bytes from {start} to {end} has bits set beyond its {layout.bits}"
    return None


def _filled(buffer: memoryview, descriptor: int, place: int) -> bool:
    """Read as much as the buffer holds; False where the file ends before."""
    while buffer:
        count = os.preadv(descriptor, [buffer], place)
        if not count:
            return False
        buffer, place = buffer[count:], place + count
    return True


def _bits_beyond(piece: np.ndarray, place: int, layout: Layout) -> bool:
    """Whether a code that ends within this piece of the file has bits set beyond `bits`."""
    mask = padding_mask(layout.bits)
    if not mask:
        return False
    width = layout.code_bytes
    last_bytes = piece[(PAGE + width - 1 - place) % width : max(layout.codes_end - place, 0) : width]
    return bool((last_bytes & mask).any())


def padding_mask(bits: int) -> int:
    """The bits of a code's last byte that must be 0."""
    return (0xFF << (bits % 8)) & 0xFF if bits % 8 else 0
