"""`HammingIndex`: binary codes that are added and removed, searched, and kept in a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from minerlib import _faiss_files, _hamming_chunks, _index_files, dispatch, inputs
from minerlib._index_files import IndexFileError, Layout, Mapped
from minerlib._sorted_ids import SortedIds, id_array, is_in, repeated
from minerlib.arrays import Origin
from minerlib.results import Neighbors, RangeNeighbors

__all__ = ["HammingIndex", "IndexFileError"]

#: Of a mapped file this much is searched, and held in memory, at a time.
CHUNK_BYTES = 1 << 26


class HammingIndex:
    """Packed binary codes under exact search by Hamming distance, in memory or in a file larger than memory.

    Codes are rows of ceil(bits / 8) bytes as `pack_bits` makes them, zero beyond `bits` in the last byte. A
    code's position is its place in the order of adding. Order is by (distance, position) always: of equally
    distant codes the one added first comes first, with ids or without. What a search returns as indices are
    the ids if the codes were given ids, else the positions.

    Several threads may search at once. `add` and `remove` while another thread searches are not supported.

    Args:
        bits: the length of the codes, from 1 up.

    Memory: ceil(bits / 8) bytes a code and 8 for its id; up to half as much again is reserved for growth.
    A mapped index (see `load`) holds none of it.

    Source: SPEC section 5.

    >>> import minerlib, numpy as np
    >>> index = minerlib.HammingIndex(bits=8)
    >>> index.add(np.array([[7], [1], [0]], dtype=np.uint8), ids=[70, 10, 0])
    >>> index.search(np.array([[0]], dtype=np.uint8), k=2).indices.tolist()
    [[0, 10]]
    """

    def __init__(self, bits: int) -> None:
        self._bits = inputs.integer("bits", bits, 1, _index_files.MOST_BITS)
        self._width = -(-self._bits // 8)
        self._rows = 0
        # The arrays may be longer than the rows in use. No row in use is ever overwritten, so that views stay
        # what they were: `add` writes behind them, `remove` makes new arrays.
        self._codes = np.empty((0, self._width), dtype=np.uint8)
        self._ids: np.ndarray | None = None
        self._known_ids: SortedIds | None = None  # made by the first `add` that needs it
        self._mapped: Mapped | None = None

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        ids = ", with ids" if self._ids is not None else ""
        mapped = f", mapped from {self._mapped.path!r}" if self._mapped else ""
        return f"HammingIndex(bits={self._bits}: {self._rows} codes{ids}{mapped})"

    @property
    def bits(self) -> int:
        """The length of the codes."""
        return self._bits

    @property
    def codes(self) -> np.ndarray:  # [rows, bytes] uint8
        """All codes by position: a read-only view, which later changes of the index leave as it is."""
        return _read_only(self._codes[: self._rows])

    @property
    def ids(self) -> np.ndarray | None:  # [rows] int64
        """All ids by position, a read-only view like `codes`; None if the codes have none."""
        return None if self._ids is None else _read_only(self._ids[: self._rows])

    # -------------------------------------------------------------- changing

    def add(
        self,
        codes: Any,  # [n, bytes] uint8
        ids: Any = None,  # [n] integers
    ) -> None:
        """Append codes, with ids if the index has ids; an index without codes takes either.

        The time is that of copying the codes, over many batches a small multiple of it. If anything is
        refused, nothing was added.

        Args:
            codes: `[n, ceil(bits / 8)]` uint8, a torch tensor, a NumPy array or anything that speaks DLPack.
            ids: `[n]` integers within int64, each one new to the index.

        Raises:
            TypeError, ValueError: the message names the argument, what was expected and what came; ValueError
                also for an index that is mapped from a file, which cannot change.

        >>> import minerlib, numpy as np
        >>> index = minerlib.HammingIndex(bits=3)
        >>> index.add(np.array([[7], [1]], dtype=np.uint8))
        >>> len(index)
        2
        """
        self._changeable("add")
        inputs.same_device(codes=codes, ids=ids)
        new, _ = self._packed("codes", codes)
        new_ids, ordered = self._new_ids(ids, len(new))
        rows = self._rows + len(new)
        self._codes = _with_room(self._codes, self._rows, rows)
        self._codes[self._rows : rows] = new
        if new_ids is not None and ordered is not None:
            old_ids = np.empty(0, dtype=np.int64) if self._ids is None else self._ids
            all_ids = _with_room(old_ids, self._rows, rows)
            all_ids[self._rows : rows] = new_ids
            self._ids_known().add(ordered)
            self._ids = all_ids
        self._rows = rows

    def _new_ids(self, ids: Any, rows: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The ids of an `add` as int64 in their order and sorted, or neither."""
        if ids is None:
            if self._ids is not None:
                raise ValueError(f"ids: expected {rows} ids, as the codes so far have ids, got None")
            return None, None
        if self._ids is None and self._rows:
            raise ValueError(f"ids: expected None, as the {self._rows} codes so far have no ids")
        array = id_array(ids)
        if len(array) != rows:
            raise ValueError(f"ids: expected {rows} ids, one for each code, got {len(array)}")
        ordered = np.sort(array)
        taken = repeated(ordered)
        if not len(taken):
            taken = array[self._ids_known().contains(array)]
        if len(taken):
            raise ValueError(f"ids: expected each id once in the index, got {taken[0]} a second time")
        return array, ordered

    def _ids_known(self) -> SortedIds:
        if self._known_ids is None:
            self._known_ids = SortedIds()
            if self._ids is not None:
                self._known_ids.add(np.sort(self._ids[: self._rows]))
        return self._known_ids

    def remove(
        self,
        ids: Any,  # [n] integers
    ) -> int:
        """Remove the codes of these ids and return how many; the others keep their order and move up.

        Without ids, the codes at these positions. If anything is refused, nothing was removed.

        Args:
            ids: `[n]` integers, all of them in the index; one that is named twice counts once.

        Raises:
            TypeError, ValueError: as `add`; also for an id that the index has not.

        Memory: the remaining codes once more while they are copied.

        >>> import minerlib, numpy as np
        >>> index = minerlib.HammingIndex(bits=8)
        >>> index.add(np.array([[7], [1], [0]], dtype=np.uint8), ids=[70, 10, 0])
        >>> index.remove([10])
        1
        >>> index.ids.tolist()
        [70, 0]
        """
        self._changeable("remove")
        wanted = np.unique(id_array(ids))
        stays = np.ones(self._rows, dtype=bool)
        if self._ids is None:
            present = (wanted >= 0) & (wanted < self._rows)
            stays[wanted[present]] = False
        else:
            stays = ~is_in(self._ids[: self._rows], wanted)
            present = is_in(wanted, np.sort(self._ids[: self._rows][~stays]))
        if not present.all():
            kind = "positions" if self._ids is None else "ids"
            raise ValueError(f"ids: expected {kind} in the index, it has no {wanted[~present][0]}")
        if len(wanted):
            codes = self._codes[: self._rows][stays]
            self._ids = None if self._ids is None else self._ids[: self._rows][stays]
            self._codes, self._rows, self._known_ids = codes, len(codes), None
        return len(wanted)

    def _changeable(self, operation: str) -> None:
        if self._mapped:
            raise ValueError(
                f"{operation}: expected an index in memory, this one is mapped from {self._mapped.path}; "
                "HammingIndex.load(path, mmap=False) makes one that can change"
            )

    # -------------------------------------------------------------- searching

    def search(
        self,
        queries: Any,  # [Q, bytes] uint8
        k: int,
        *,
        chunk_rows: int | None = None,
        progress: bool = False,
        backend: str = "auto",
    ) -> Neighbors:
        """The k codes nearest to every query, nearest first, ties by the lowest position: `hamming_search`.

        Args:
            queries: `[Q, ceil(bits / 8)]` uint8 of any kind that `add` takes.
            k: 1 to the number of codes.
            chunk_rows: search this many codes at a time; the answer does not depend on it. By default 64 MiB
                of a mapped file, or with `progress`, and everything at once otherwise.
            progress: show a bar of the codes searched.
            backend: `auto`, or a name of `explain("hamming_search")`.

        Returns:
            `Neighbors(distances, indices)`: int32 `[Q, k]` in bits, int64 `[Q, k]` ids, or positions if there
            are no ids; of the queries' kind, on their device.

        Raises:
            TypeError, ValueError: the message names the argument, what was expected and what came.
            BackendUnavailable: the named backend cannot be used here; the message lists the reasons.

        Memory: the result; in chunks twice the result, and of a mapped file one chunk.

        >>> import minerlib, numpy as np
        >>> index = minerlib.HammingIndex(bits=8)
        >>> index.add(np.array([[7], [1], [0]], dtype=np.uint8))
        >>> index.search(np.array([[3]], dtype=np.uint8), k=2).indices.tolist()
        [[0, 1]]
        """
        x, origin = self._packed("queries", queries)
        if not self._rows:
            raise ValueError("k: expected an index with at least k codes, this one has none")
        k = inputs.integer("k", k, 1, self._rows)
        kernel = dispatch.choose(backend).hamming_search
        chunks = self._chunks(chunk_rows, progress)
        distances, indices = _hamming_chunks.search(kernel, x, chunks, k)
        return Neighbors(origin.wrap(distances), origin.wrap(indices))

    def range_search(
        self,
        queries: Any,  # [Q, bytes] uint8
        radius: int,
        *,
        chunk_rows: int | None = None,
        progress: bool = False,
        backend: str = "auto",
    ) -> RangeNeighbors:
        """All codes within `radius` bits of each query, nearest first, ties by the lowest position.

        Args:
            queries, chunk_rows, progress: as for `search`.
            radius: at least 0.
            backend: `auto`, or a name of `explain("hamming_range")`.

        Returns:
            `RangeNeighbors(offsets, indices, distances)`: query q's hits are
            `indices[offsets[q] : offsets[q + 1]]` (int64 ids, or positions if there are no ids), their
            `distances` (int32) lie at the same places.

        Raises:
            TypeError, ValueError, BackendUnavailable: as `search`.

        Memory: at most twice the result, and of a mapped file one chunk.

        >>> import minerlib, numpy as np
        >>> index = minerlib.HammingIndex(bits=8)
        >>> index.add(np.array([[7], [1], [0]], dtype=np.uint8))
        >>> index.range_search(np.array([[3]], dtype=np.uint8), radius=1).indices.tolist()
        [0, 1]
        """
        x, origin = self._packed("queries", queries)
        radius = min(inputs.integer("radius", radius, 0, sys.maxsize), self._bits)
        kernel = dispatch.choose(backend).hamming_range
        found = _hamming_chunks.range_search(kernel, x, self._chunks(chunk_rows, progress), radius)
        offsets, indices, distances = (origin.wrap(array) for array in found)
        return RangeNeighbors(offsets, indices, distances)

    def _chunks(self, chunk_rows: int | None, progress: bool) -> Iterator[_hamming_chunks.Chunk]:
        """The codes some rows at a time, with what their rows are called."""
        rows = self._rows
        if chunk_rows is not None:
            step = inputs.integer("chunk_rows", chunk_rows, 1, sys.maxsize)
        elif self._mapped or progress:
            step = max(1, CHUNK_BYTES // self._width)
        else:
            step = rows
        bar = _bar(rows) if inputs.boolean("progress", progress) else None
        return self._walk(rows, max(step, 1), bar)

    def _walk(self, rows: int, step: int, bar: Any) -> Iterator[_hamming_chunks.Chunk]:
        codes, ids, mapped = self._codes, self._ids, self._mapped
        try:
            for first in range(0, rows, step):
                last = min(first + step, rows)
                if mapped:
                    mapped.will_need(first, min(last + step, rows))  # this chunk and the next
                yield codes[first:last], first if ids is None else ids[first:last]
                if mapped:
                    mapped.let_go(first, last)
                if bar is not None:
                    bar.update(last - first)
        finally:
            if bar is not None:
                bar.close()

    # -------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index file; it replaces `path` at the end, whole, or not at all.

        Whatever interrupts a save (an exception, a kill, a full disk), an old file under this name stays what
        it was. What a killed save left behind is removed by the next save into that folder. A mapped index
        may be saved onto its own file. The same index gives the same bytes.

        Raises:
            OSError: what the system refuses, as its usual subclass; the message names the path.

        Memory: a few megabytes.

        Source: SPEC "The index file".
        """
        layout = Layout(self._bits, self._rows, self._ids is not None)
        ids = (names for _, names in self._file_chunks() if isinstance(names, np.ndarray))
        _index_files.write(_path(path), layout, (codes for codes, _ in self._file_chunks()), ids)

    @classmethod
    def load(cls, path: str | os.PathLike[str], mmap: bool = True, verify: bool = True) -> HammingIndex:
        """Open an index file.

        Args:
            path: a file that `save` wrote.
            mmap: leave the codes in the file, which may be larger than memory: searches read them chunk by
                chunk, and the index cannot change. While it is in use the file may be replaced (`save` does)
                or removed, but not cut short in place: the system ends processes that read beyond a mapped
                file's end. False reads everything into memory.
            verify: read the whole file once and compare all checksums (a few GB a second), so that a damaged
                file of any kind is refused. False checks the header, the file's length and the table of
                checksums alone, which takes no time at any size: damaged codes then go unnoticed.

        Raises:
            IndexFileError: a ValueError; this is no whole index file: cut short, damaged, too long, of
                another kind or version. The message names the path and what is wrong.
            OSError: there is no such file, or it cannot be read.

        Memory: 256 KiB a thread; without mmap also the codes and ids.

        Source: SPEC "The index file".

        >>> import minerlib, numpy as np, os, tempfile
        >>> index = minerlib.HammingIndex(bits=8)
        >>> index.add(np.array([[7], [1], [0]], dtype=np.uint8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     index.save(os.path.join(folder, "codes.index"))
        ...     minerlib.HammingIndex.load(os.path.join(folder, "codes.index"), mmap=False)
        HammingIndex(bits=8: 3 codes)
        """
        in_file = inputs.boolean("mmap", mmap)
        mapped = _index_files.open_mapped(_path(path), inputs.boolean("verify", verify))
        index = cls(mapped.layout.bits)
        index._rows, index._codes, index._ids = mapped.layout.rows, mapped.codes, mapped.ids
        index._mapped = mapped
        if not in_file:
            index._take_into_memory()
        return index

    def _take_into_memory(self) -> None:
        codes = np.empty((self._rows, self._width), dtype=np.uint8)
        ids: np.ndarray | None = None if self._ids is None else np.empty(self._rows, dtype=np.int64)
        first = 0
        for chunk, names in self._file_chunks():
            codes[first : first + len(chunk)] = chunk
            if ids is not None:
                ids[first : first + len(chunk)] = names
            first += len(chunk)
        self._codes, self._ids, self._mapped = codes, ids, None

    def _file_chunks(self) -> Iterator[_hamming_chunks.Chunk]:
        return self._walk(self._rows, max(1, CHUNK_BYTES // 8 // self._width), None)

    def to_faiss(self, path: str | os.PathLike[str]) -> None:
        """Write a file that `faiss.read_index_binary` opens: IndexBinaryFlat, with ids IndexBinaryIDMap.

        faiss knows whole bytes only: its index has ceil(bits / 8) * 8 bits, of which the last are 0 in every
        code, so that all distances stay the same. The file appears whole or not at all, as with `save`.

        Raises:
            OSError: what the system refuses.

        Memory: a few megabytes.
        """
        codes = (codes for codes, _ in self._file_chunks())
        _faiss_files.write(_path(path), self._width, self._rows, codes, self.ids)

    @classmethod
    def from_faiss(cls, path: str | os.PathLike[str], bits: int | None = None) -> HammingIndex:
        """Read a file of faiss's IndexBinaryFlat, IndexBinaryIDMap or IndexBinaryIDMap2 over it.

        Args:
            path: a file that `faiss.write_index_binary` or `to_faiss` wrote. It has no checksums, so what is
                checked is that its sizes fit each other and the file.
            bits: the length of the codes, where it is not faiss's whole number of bytes.

        Raises:
            IndexFileError: a ValueError; no such index, or a damaged one.
            ValueError: `bits` does not fit the codes, or an id occurs twice.
            OSError: there is no such file, or it cannot be read.

        Memory: the codes and ids.

        >>> import minerlib, numpy as np, os, tempfile
        >>> index = minerlib.HammingIndex(bits=8)
        >>> index.add(np.array([[7], [1], [0]], dtype=np.uint8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     index.to_faiss(os.path.join(folder, "codes.faiss"))
        ...     minerlib.HammingIndex.from_faiss(os.path.join(folder, "codes.faiss"))
        HammingIndex(bits=8: 3 codes)
        """
        name = _path(path)
        codes, ids = _faiss_files.read(name)
        most = 8 * codes.shape[1]
        index = cls(most if bits is None else inputs.integer("bits", bits, most - 7, most))
        beyond = index._bits_beyond(codes)
        if beyond is not None:
            raise ValueError(
                f"bits: expected codes of {index._bits} bits in {name}, row {beyond} has others set"
            )
        taken = None if ids is None else repeated(np.sort(ids))
        if taken is not None and len(taken):
            raise IndexFileError(f"{name}: expected each id once, got {taken[0]} a second time")
        index._rows, index._codes, index._ids = len(codes), codes, ids
        return index

    # -------------------------------------------------------------- pickling

    def __getstate__(self) -> dict[str, Any]:
        """Plain arrays; a mapped index is pickled with its codes and comes back in memory."""
        return {"bits": self._bits, "codes": self.codes, "ids": self.ids}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["bits"])  # type: ignore[misc]
        self._codes, self._ids = state["codes"], state["ids"]
        self._rows = len(self._codes)

    # -------------------------------------------------------------- arguments

    def _packed(self, name: str, value: Any) -> tuple[np.ndarray, Origin]:
        """Codes of this index's length, uint8 [n, bytes], C-contiguous."""
        array, origin = inputs.code_rows(name, value)
        if array.shape[1] != self._width:
            raise ValueError(
                f"{name}: expected {self._width} bytes a row for {self._bits} bits, got {array.shape[1]}"
            )
        beyond = self._bits_beyond(array)
        if beyond is not None:
            raise ValueError(
                f"{name}: expected zeros beyond bit {self._bits} (see pack_bits), row {beyond} has others"
            )
        return array, origin

    def _bits_beyond(self, codes: np.ndarray) -> int | None:
        """The first row with bits set beyond the index's."""
        mask = _index_files.padding_mask(self._bits)
        if not mask:
            return None
        bad = (codes[:, -1] & mask) != 0
        return int(bad.argmax()) if bad.any() else None


def _path(path: Any) -> str:
    try:
        return os.fsdecode(path)
    except TypeError:
        raise TypeError(f"path: expected a string or a path, got {type(path).__name__}") from None


def _with_room(array: np.ndarray, used: int, rows: int) -> np.ndarray:
    """The array, or a longer one with its first `used` rows, that has room for `rows` rows."""
    if rows <= len(array):
        return array
    longer = np.empty((max(rows, len(array) + len(array) // 2), *array.shape[1:]), dtype=array.dtype)
    longer[:used] = array[:used]
    return longer


def _read_only(view: np.ndarray) -> np.ndarray:
    view.flags.writeable = False
    return view


def _bar(rows: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=rows, desc="search", unit="code", unit_scale=True)
