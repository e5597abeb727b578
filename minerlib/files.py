"""Arrays in from .npy files, triplets out to .npz and Parquet, for the command line.

Every failure is a `FileError` of one line that names the file and what was expected.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from minerlib.results import Triplets

NPY_MAGIC = b"\x93NUMPY"
OUTPUT_SUFFIXES = (".npz", ".parquet")


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
        _pyarrow(path)


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
            _write_parquet(path, stream, triplets, facts)


def _write_parquet(path: Path, stream: IO[bytes], triplets: Triplets, facts: dict[str, Any]) -> None:
    pyarrow, parquet = _pyarrow(path)
    columns = {"anchor": triplets.anchors, "positive": triplets.positives, "negative": triplets.negatives}
    table = pyarrow.table({name: pyarrow.array(column, pyarrow.int64()) for name, column in columns.items()})
    metadata = {f"minerlib.{name}": str(value) for name, value in facts.items()}
    parquet.write_table(table.replace_schema_metadata(metadata), stream)


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise FileError(
            f"{path}: Parquet needs pyarrow (pip install 'minerlib[parquet]'), which did not import: {error}"
        ) from None


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A stream to a file beside `path` that takes its name at the end, if all went well."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        part.unlink(missing_ok=True)
