"""Arrays in from .npy files, triplets and search hits out to .npz and Parquet, for the command line.

Every failure is a `FileError` of one line that names the file and what was expected.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from minerlib._whole_files import replacing
from minerlib.results import Neighbors, RangeNeighbors, Triplets

NPY_MAGIC = b"\x93NUMPY"
OUTPUT_SUFFIXES = (".npz", ".parquet")

_ROW_GROUP = 1 << 20  # hits


class FileError(Exception):
    """A file that cannot be read or written, in one line for the user."""


def read_array(path: Path) -> np.ndarray:
    """The array of a .npy file, memory-mapped: nothing is read before it is used. Pickles are refused.

    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(Path(folder, "labels.npy"), np.arange(3))
    ...     read_array(Path(folder, "labels.npy")).tolist()
    [0, 1, 2]
    """
    try:
        if not path.exists():
            raise FileError(f"{path}: no such file")
        if not path.is_file():  # a folder; a pipe, which cannot be mapped and may block
            raise FileError(f"{path}: expected a .npy file, this is no regular file")
        with path.open("rb") as stream:
            magic = stream.read(len(NPY_MAGIC))
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror})") from None
    if not magic:
        raise FileError(f"{path}: expected a .npy file, this one is empty")
    if magic != NPY_MAGIC:
        raise FileError(
            f"{path}: expected a .npy file (numpy.save writes one), this one starts with {magic!r}"
        )
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy's header parser raises whatever its parts raise
        raise FileError(f"{path}: {_why_unreadable(path, error)}") from None


def _why_unreadable(path: Path, error: Exception) -> str:
    if "Python objects" in str(error):
        return "expected numbers, this .npy file holds Python objects, which are never unpickled"
    if "mmap length" in str(error):
        return f"the file is cut short: its header announces more than its {path.stat().st_size} bytes"
    first_line = str(error).partition("\n")[0]
    return f"expected a whole .npy file, its header cannot be read ({first_line})"


def check_output(path: Path) -> None:
    """Refuse an output that could not be written, before the work is done and not after."""
    if path.suffix not in OUTPUT_SUFFIXES:
        raise FileError(f"{path}: expected an output that ends in {' or '.join(OUTPUT_SUFFIXES)}")
    if path.is_dir():
        raise FileError(f"{path}: expected a file to write, this is a folder")
    if not path.parent.is_dir():
        raise FileError(f"{path}: expected its folder {path.parent} to exist")
    if not os.access(path.parent, os.W_OK):
        raise FileError(f"{path}: its folder {path.parent} cannot be written to")
    if path.suffix == ".parquet":
        pyarrow_for(path)


def write_triplets(
    path: Path,
    triplets: Triplets,  # int64 [T] NumPy arrays
    facts: dict[str, Any],
) -> None:
    """Write the triplets and the facts they were mined by; the file appears whole or not at all.

    `.npz` holds anchors, positives, negatives and one scalar for each fact; `.parquet` holds the columns
    anchor, positive, negative and the facts as the schema's metadata (keys `minerlib.<fact>`).
    """
    with written_whole(path) as stream:
        if path.suffix == ".npz":
            np.savez(stream, **triplets._asdict(), **facts)
        else:
            names = {
                "anchor": triplets.anchors,
                "positive": triplets.positives,
                "negative": triplets.negatives,
            }
            _write_parquet(path, stream, facts, dict.fromkeys(names, "int64"), iter([names]))


def write_hits(
    path: Path,
    found: Neighbors | RangeNeighbors,  # NumPy arrays
    facts: dict[str, Any],
) -> None:
    """Write what a search found and the facts it was searched by; the file appears whole or not at all.

    `.npz` holds the arrays of `found` by name and one scalar for each fact. `.parquet` holds a row for each
    hit, queries in order and their hits nearest first, with the columns query, index and distance, and the
    facts as the schema's metadata (keys `minerlib.<fact>`).
    """
    with written_whole(path) as stream:
        if path.suffix == ".npz":
            np.savez(stream, **found._asdict(), **facts)
        else:
            types = {"query": "int64", "index": "int64", "distance": "int32"}
            _write_parquet(path, stream, facts, types, _hit_columns(found))


def _hit_columns(found: Neighbors | RangeNeighbors) -> Iterator[dict[str, np.ndarray]]:
    """A few queries at a time: hits as columns take twice the room."""
    if isinstance(found, RangeNeighbors):
        offsets = found.offsets
    else:
        queries, k = found.indices.shape
        offsets = np.arange(queries + 1) * k
    indices, distances = found.indices.reshape(-1), found.distances.reshape(-1)
    first = 0
    while first < len(offsets) - 1:
        room = int(np.searchsorted(offsets, offsets[first] + _ROW_GROUP, side="right")) - 1
        last = max(first + 1, room)
        hits = slice(offsets[first], offsets[last])
        query = np.repeat(np.arange(first, last), np.diff(offsets[first : last + 1]))
        yield {"query": query, "index": indices[hits], "distance": distances[hits]}
        first = last


def _write_parquet(
    path: Path,
    stream: IO[bytes],
    facts: dict[str, Any],
    types: dict[str, str],
    groups: Iterable[dict[str, np.ndarray]],
) -> None:
    """The columns, a row group at a time."""
    pyarrow, parquet = pyarrow_for(path)
    metadata = {f"minerlib.{name}": str(value) for name, value in facts.items()}
    schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in types.items()], metadata)
    with parquet.ParquetWriter(stream, schema) as writer:
        for columns in groups:
            writer.write_table(pyarrow.table(columns, schema))


def pyarrow_for(path: Path) -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise FileError(
            f"{path}: Parquet needs pyarrow (pip install 'minerlib[parquet]'), which did not import: {error}"
        ) from None


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A stream to a file that takes the name `path` at the end, if all went well."""
    try:
        with replacing(path) as stream:
            yield stream
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror or error})") from None
