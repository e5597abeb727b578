"""faiss's files of binary flat indexes: what `faiss.write_index_binary` writes and `read_index_binary` reads.

    IndexBinaryFlat     "IBxF", header, codes as a vector of bytes
    IndexBinaryIDMap    "IBMp" (IndexBinaryIDMap2: "IBM2"), header, its flat index as above, ids as a vector
                        of int64

The header is d (int32, bits), code_size (int32, d / 8), ntotal (int64), is_trained (one byte) and
metric_type (int32, 1); a vector is its length (uint64) and its elements. All is little-endian, nothing is
aligned or under a checksum. Checked against faiss 1.15.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

from minerlib._index_files import IndexFileError, naming, open_regular
from minerlib._whole_files import replacing

_HEADER = struct.Struct("<4siiqBi")
_LENGTH = struct.Struct("<Q")
_FLAT = b"IBxF"
_WITH_IDS = (b"IBMp", b"IBM2")


def write(
    path: str | os.PathLike[str],
    code_bytes: int,
    rows: int,
    codes: Iterable[np.ndarray],  # uint8 [n, bytes] each, all rows in order
    ids: np.ndarray | None,  # int64 [rows]
) -> None:
    """Write a file that appears whole or not at all."""

    def header(kind: bytes) -> bytes:
        return _HEADER.pack(kind, 8 * code_bytes, code_bytes, rows, 1, 1)

    with replacing(path) as stream:
        if ids is not None:
            stream.write(header(_WITH_IDS[0]))
        stream.write(header(_FLAT) + _LENGTH.pack(rows * code_bytes))
        for chunk in codes:
            stream.write(chunk.reshape(-1).data)
        if ids is not None:
            stream.write(_LENGTH.pack(rows))
            stream.write(ids.astype("<i8", copy=False).view(np.uint8).data)


def read(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Codes uint8 [rows, bytes] and ids int64 [rows], if the file has any. Memory: these."""
    name = os.fspath(path)
    with open_regular(path, "a faiss index file") as stream, naming(path):
        file = _File(name, stream)
        kind, code_bytes, rows = file.header()
        has_ids = kind in _WITH_IDS
        if has_ids:
            kind, *inner = file.header()
            if inner != [code_bytes, rows] or kind != _FLAT:
                raise IndexFileError(f"{name}: the headers of the ids and of the codes contradict each other")
        codes = file.vector("codes", rows * code_bytes, 1).reshape(rows, code_bytes)
        ids = file.vector("ids", rows, 8).view("<i8").astype(np.int64, copy=False) if has_ids else None
        if file.left:
            raise IndexFileError(
                f"{name}: expected the file to end behind its index, got {file.left} bytes more"
            )
    return codes, ids


class _File:
    """Reads no more than the file holds, and allocates nothing by a size it does not hold."""

    def __init__(self, name: str, stream: BinaryIO) -> None:
        self._name = name
        self._stream = stream
        self.left = os.fstat(stream.fileno()).st_size

    def header(self) -> tuple[bytes, int, int]:
        """(kind, bytes a code, rows)"""
        kind, bits, code_bytes, rows, trained, metric = _HEADER.unpack(self._take(_HEADER.size, "a header"))
        if kind not in (_FLAT, *_WITH_IDS):
            raise IndexFileError(
                f"{self._name}: expected a faiss index of binary codes without compression "
                f"({', '.join(name.decode() for name in (_FLAT, *_WITH_IDS))}), got kind {kind!r}"
            )
        if code_bytes < 1 or bits != 8 * code_bytes or rows < 0 or trained > 1 or metric != 1:
            raise IndexFileError(
                f"{self._name}: a header is damaged: {bits} bits in {code_bytes} bytes, {rows} rows, "
                f"trained {trained}, metric {metric}"
            )
        return kind, code_bytes, rows

    def vector(self, what: str, count: int, size: int) -> np.ndarray:  # uint8 [count * size]
        (length,) = _LENGTH.unpack(self._take(_LENGTH.size, f"the length of its {what}"))
        if length != count:
            raise IndexFileError(f"{self._name}: expected {count} elements of its {what}, got {length}")
        return np.frombuffer(self._take(count * size, f"its {what}"), dtype=np.uint8)

    def _take(self, count: int, what: str) -> bytearray:
        if count > self.left:
            raise IndexFileError(
                f"{self._name}: the file is cut short: {what} of {count} bytes, {self.left} are left"
            )
        taken = bytearray(count)
        if self._stream.readinto(taken) != count:  # type: ignore[attr-defined]
            raise IndexFileError(f"{self._name}: the file was cut short while it was read")
        self.left -= count
        return taken
