"""Rows of a data set, read a range at a time: arrays, .npy files, columns of Parquet and Arrow files and
tables.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minerlib import files, inputs
from minerlib.arrays import Origin, to_numpy

TABLE_SUFFIXES = (".parquet", ".arrow", ".feather")
EMBEDDING, LABEL = "embedding", "label"  # the columns of a table

_SPOOLED = 1 << 24  # bytes copied at a time


class ArrayRows:
    """Rows [N, D] of an array; float16 and foreign byte orders are converted a range at a time."""

    def __init__(self, name: str, array: np.ndarray, sample: np.ndarray) -> None:
        if array.ndim != 2:
            raise ValueError(f"{name}: expected shape [rows, dimensions], got {list(array.shape)}")
        if sample.dtype.kind != "f" or sample.dtype.itemsize not in (4, 8):
            raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {array.dtype}")
        if array.shape[1] == 0:
            raise ValueError(f"{name}: expected at least one dimension, got shape {list(array.shape)}")
        self.name, self.array = name, array
        self.count, self.dims = int(array.shape[0]), int(array.shape[1])
        self.dtype = sample.dtype

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows first .. last - 1, float32 or float64, C-contiguous."""
        return np.ascontiguousarray(to_numpy(self.name, self.array[first:last])[0])

    def local(self, first: int, last: int, folder: Path | None) -> ArrayRows:
        """What gives rows first .. last - 1 quickly, again and again."""
        return self


class ColumnRows:
    """Rows of a list column of a table, which comes in pieces: row groups or record batches."""

    def __init__(self, name: str, path: str, table: _Table) -> None:
        self.name, self._path, self._table = name, path, table
        self._starts = np.concatenate([[0], np.cumsum(table.sizes)]).astype(np.int64)
        self.count = int(self._starts[-1])
        self._cached: tuple[int, np.ndarray] | None = None
        sample = next((self._piece(i)[:1] for i, size in enumerate(table.sizes) if size), None)
        if sample is None:
            raise ValueError(f"{name}: expected at least one row, got none in {path}")
        self.dims, self.dtype = sample.shape[1], sample.dtype

    def read(self, first: int, last: int) -> np.ndarray:
        """Rows first .. last - 1, float32 or float64, C-contiguous."""
        out = np.empty((last - first, self.dims), self.dtype)
        i = int(np.searchsorted(self._starts, first, side="right")) - 1
        while i < len(self._table.sizes) and self._starts[i] < last:
            start = int(self._starts[i])
            low, high = max(first, start), min(last, int(self._starts[i + 1]))
            out[low - first : high - first] = self._piece(i)[low - start : high - start]
            i += 1
        return out

    def local(self, first: int, last: int, folder: Path | None) -> SpooledRows:
        """A copy of the rows in a file without a name, as decoding them once for each use would take long."""
        return SpooledRows(self, first, last, folder)

    def _piece(self, i: int) -> np.ndarray:  # [n, D]
        if self._cached is None or self._cached[0] != i:
            self._cached = i, self._decoded(i)
        return self._cached[1]

    def _decoded(self, i: int) -> np.ndarray:
        column = _combined(self._table.read(i, EMBEDDING))
        start = int(self._starts[i]) if i else 0
        kind = str(column.type)
        if not kind.startswith(("list<", "large_list<", "fixed_size_list<")):
            raise TypeError(f"{self.name}: expected lists of floats in column {EMBEDDING}, got {kind}")
        if column.null_count:
            row = int(np.flatnonzero(np.asarray(column.is_null()))[0])
            raise ValueError(f"{self.name}: expected a list in every row, row {start + row} is null")
        values = column.flatten()
        if values.null_count:
            raise ValueError(f"{self.name}: expected numbers, {values.null_count} values are null")
        array = np.asarray(values)
        if array.dtype.kind != "f":
            raise TypeError(f"{self.name}: expected lists of floats in column {EMBEDDING}, got {kind}")
        dims = getattr(self, "dims", None) or (len(array) // max(len(column), 1))
        if not kind.startswith("fixed"):
            lengths = np.diff(np.asarray(column.offsets))
            wrong = np.flatnonzero(lengths != dims)
            if len(wrong):
                raise ValueError(
                    f"{self.name}: expected {dims} values in every row, row {start + int(wrong[0])} has "
                    f"{lengths[wrong[0]]}"
                )
        if dims == 0 or len(array) != dims * len(column):
            raise ValueError(f"{self.name}: expected one number of dimensions, at least 1, in all rows")
        return to_numpy(self.name, array.reshape(len(column), dims))[0]


class SpooledRows:
    """Rows first .. last - 1 of a source, copied to a file that ends with the process."""

    def __init__(self, source: ColumnRows, first: int, last: int, folder: Path | None) -> None:
        self._first = first
        step = max(1, _SPOOLED // (source.dims * source.dtype.itemsize))
        try:
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it is mapped
            for low in range(first, last, step):
                file.write(source.read(low, min(low + step, last)).tobytes())
            file.flush()
        except OSError as error:
            where = folder or tempfile.gettempdir()
            raise files.FileError(
                f"{where}: cannot hold a copy of {source.name} ({error.strerror or error})"
            ) from None
        shape = (last - first, source.dims)
        self._rows = (
            np.memmap(file, source.dtype, "r", shape=shape) if last > first else np.empty(shape, source.dtype)
        )

    def read(self, first: int, last: int) -> np.ndarray:
        return np.asarray(self._rows[first - self._first : last - self._first])


class _Table:
    """A table in pieces: their sizes, and what reads a column of one."""

    def __init__(self, sizes: list[int], names: list[str], read: Callable[[int, str], Any]) -> None:
        self.sizes, self.names, self.read = sizes, names, read


Rows = ArrayRows | ColumnRows
LocalRows = ArrayRows | SpooledRows


def open_rows(name: str, value: Any) -> tuple[Rows, Origin]:
    """The rows of an array, of a .npy file, or of the embeddings in a table or a file of one."""
    table = _table(name, value)
    if table is not None:
        if EMBEDDING not in table.names:
            raise ValueError(f"{name}: expected a column {EMBEDDING!r}, got {', '.join(table.names)}")
        where = os.fspath(value) if _is_path(value) else "the table"
        return ColumnRows(name, where, table), Origin("numpy")
    if _is_path(value):
        value = files.read_array(Path(value))
    array, sample, origin = inputs.sliceable(name, value)
    return ArrayRows(name, array, sample), origin


def open_labels(name: str, value: Any, rows_name: str, embeddings: Any, rows: int) -> np.ndarray:
    """Labels [N] of integers, or label sets as bits [N, W] uint64; None: those in the table of the
    embeddings.
    """
    table = _table(name, value) if value is not None else _table(rows_name, embeddings)
    if table is not None:
        if LABEL not in table.names:
            raise ValueError(f"{name}: expected a column {LABEL!r}, got {', '.join(table.names)}")
        parts = [np.asarray(_combined(table.read(i, LABEL))) for i in range(len(table.sizes))]
        value = np.concatenate(parts) if parts else np.empty(0, np.int64)
    elif value is None:
        raise TypeError(f"{name}: expected an array or a file, None is for embeddings in a table")
    elif _is_path(value):
        value = files.read_array(Path(value))
    labels = inputs.labels_of(name, value, rows_name, rows)
    return inputs.label_bits(labels) if labels.ndim == 2 else labels


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _table(name: str, value: Any) -> _Table | None:
    if _is_path(value) and Path(value).suffix in TABLE_SUFFIXES:
        return _file_table(Path(value))
    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is None or not isinstance(value, (pyarrow.Table, pyarrow.RecordBatch)):
        return None
    table = value if isinstance(value, pyarrow.Table) else pyarrow.Table.from_batches([value])
    batches = table.to_batches()
    return _Table([len(batch) for batch in batches], table.column_names, lambda i, of: batches[i].column(of))


def _file_table(path: Path) -> _Table:
    if not path.is_file():
        raise files.FileError(f"{path}: no such file")
    files.pyarrow_for(path)
    try:
        if path.suffix == ".parquet":
            parquet = importlib.import_module("pyarrow.parquet")
            file = parquet.ParquetFile(path, memory_map=True)
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            return _Table(
                sizes,
                file.schema_arrow.names,
                lambda i, of: _reading(path, lambda: file.read_row_group(i, columns=[of]).column(of)),
            )
        pyarrow = importlib.import_module("pyarrow")
        reader = importlib.import_module("pyarrow.ipc").open_file(pyarrow.memory_map(os.fspath(path)))
        sizes = [len(reader.get_batch(i)) for i in range(reader.num_record_batches)]
        return _Table(
            sizes,
            reader.schema.names,
            lambda i, of: _reading(path, lambda: reader.get_batch(i).column(of)),
        )
    except Exception as error:  # pyarrow's own kinds, which it does not share with its parts
        raise files.FileError(f"{path}: cannot be read as a table ({_first_line(error)})") from None


def _reading(path: Path, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:
        raise files.FileError(f"{path}: cannot be read ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _combined(column: Any) -> Any:
    """One array of a column that may come in chunks."""
    if not hasattr(column, "combine_chunks"):
        return column
    whole = column.combine_chunks()
    return whole if not hasattr(whole, "num_chunks") else whole.chunk(0)
