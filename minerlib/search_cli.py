"""`minerlib search`: the nearest codes of a database, or all within a radius, for a file of queries.

A database is read and searched in chunks, so it may be larger than memory; floats are packed by their signs
chunk by chunk, and never held as codes all at once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import minerlib
from minerlib import _hamming_chunks, _index_files, dispatch, files, inputs
from minerlib.arrays import to_numpy
from minerlib.results import Neighbors, RangeNeighbors
from minerlib.usage import UsageError, arguments_named

if TYPE_CHECKING:
    from minerlib.hamming_index import HammingIndex

_CHUNK_BYTES = 1 << 24  # of codes searched at a time
_CHUNK_PAIRS = 1 << 32  # with many queries less, so that a bar moves about once a second
_MERGED_ROWS = 64  # a chunk has at least so many rows for each hit: merging costs little beside finding
_LONG_RUN = 1 << 34  # pairs from which on a bar is shown
_SHOWN = 5  # queries, and hits of each, that are printed where nothing is written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("database", type=Path, metavar="DATABASE",
        help=".npy of packed codes, uint8 [M, bytes], or of other numbers [M, bits], of which the signs are "
             "packed; or a saved HammingIndex")  # fmt: skip
    add("queries", type=Path, metavar="QUERIES", help=".npy of codes or numbers, like the database's")
    add("--bits", required=True, type=int, metavar="N", help="the length of the codes")
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("-k", type=int, metavar="K", help="the K nearest codes of every query")
    wanted.add_argument("--radius", type=int, metavar="R", help="all codes within R bits of each query")
    add("--output", type=Path, metavar="FILE", help="hits.npz or .parquet; without it a few are printed")
    text = f"one of {', '.join(dispatch.NAMES)} (default auto)"
    add("--backend", choices=dispatch.NAMES, default="auto", metavar="NAME", help=text)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.output is not None:
        files.check_output(arguments.output)
    sources = {name: str(getattr(arguments, name)) for name in ("database", "queries")}
    with arguments_named({**sources, "bits": "--bits", "k": "-k", "radius": "--radius"}):
        bits = inputs.integer("bits", arguments.bits, 1, _index_files.MOST_BITS)
        database = _open_database(arguments.database, bits)
        queries = _packed("queries", files.read_array(arguments.queries), bits)
        if arguments.k is not None:
            inputs.integer("k", arguments.k, 1, _rows(database))
        else:
            inputs.integer("radius", arguments.radius, 0, sys.maxsize)
        start = time.perf_counter()
        found = _search(database, queries, bits, arguments.k, arguments.radius, arguments.backend)
        seconds = time.perf_counter() - start
    facts = {"bits": bits}
    facts |= {"k": arguments.k} if arguments.k is not None else {"radius": arguments.radius}
    if arguments.output is not None:
        files.write_hits(arguments.output, found, {**facts, "minerlib_version": minerlib.__version__})
    else:
        print("\n".join(_first_hits(found)))
    print(_summary(arguments, _rows(database), len(queries), len(found.indices), seconds))
    return 0


# ------------------------------------------------------------------ what is searched


@dataclass(frozen=True, eq=False)
class _Array:
    """Codes or numbers of a .npy file, left there."""

    rows: np.ndarray  # [M, bytes] uint8 or [M, bits]
    bits: int

    def chunks(self, step: int) -> Iterator[_hamming_chunks.Chunk]:
        """Packed codes and the number of the first, `step` rows at a time."""
        for first in range(0, len(self.rows), step):
            yield _packed("database", self.rows[first : first + step], self.bits, first), first


def _open_database(path: Path, bits: int) -> _Array | HammingIndex:
    if _is_index(path):
        from minerlib.hamming_index import HammingIndex, IndexFileError

        try:
            index = HammingIndex.load(path)
        except (IndexFileError, OSError) as error:
            raise files.FileError(str(error)) from None
        if index.bits != bits:
            raise UsageError(f"{path}: expected codes of {bits} bits (--bits), this index holds {index.bits}")
        rows = len(index)
        database: _Array | HammingIndex = index
    else:
        array = files.read_array(path)
        _check_shape("database", array, bits)
        rows, database = len(array), _Array(array, bits)
    if rows == 0:
        raise ValueError("database: expected at least one code, got none")
    return database


def _is_index(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return stream.read(len(_index_files.MAGIC)) == _index_files.MAGIC
    except OSError as error:
        raise files.FileError(f"{path}: cannot be read ({error.strerror})") from None


def _rows(database: _Array | HammingIndex) -> int:
    return len(database.rows) if isinstance(database, _Array) else len(database)


def _check_shape(name: str, array: np.ndarray, bits: int) -> None:
    if array.ndim != 2:
        raise ValueError(f"{name}: expected shape [rows, bytes] or [rows, bits], got {list(array.shape)}")
    width = -(-bits // 8)
    if array.dtype == np.uint8 and array.shape[1] != width:
        raise ValueError(
            f"{name}: expected packed codes of {width} bytes a row for --bits {bits}, got {array.shape[1]}"
        )
    if array.dtype != np.uint8 and array.shape[1] != bits:
        raise ValueError(
            f"{name}: expected {bits} columns for --bits {bits}, as {array.dtype} is packed by its signs, "
            f"got {array.shape[1]}"
        )


def _packed(name: str, rows: np.ndarray, bits: int, first: int = 0) -> np.ndarray:  # [n, bytes] uint8
    """The codes of some rows, which are those from `first` on of the file."""
    _check_shape(name, rows, bits)
    if rows.dtype != np.uint8:
        numbers, _ = to_numpy(name, rows)
        inputs.finite_rows(name, numbers, first)
        codes: np.ndarray = minerlib.pack_bits(numbers)
        return codes
    mask = _index_files.padding_mask(bits)
    if mask:
        bad = (rows[:, -1] & mask) != 0
        if bad.any():
            raise ValueError(
                f"{name}: expected zeros beyond bit {bits}, row {first + bad.argmax()} has others"
            )
    return np.ascontiguousarray(rows)


# ------------------------------------------------------------------ the search


def _search(
    database: _Array | HammingIndex,
    queries: np.ndarray,  # [Q, bytes] uint8
    bits: int,
    k: int | None,
    radius: int | None,
    backend: str,
) -> Neighbors | RangeNeighbors:
    rows, count = _rows(database), max(1, len(queries))
    step = min(_CHUNK_BYTES // queries.shape[1], max(1 << 16, _CHUNK_PAIRS // count))
    step = max(1, step, _MERGED_ROWS * (k or 0))
    bar = rows * count >= _LONG_RUN and sys.stderr.isatty()
    if not isinstance(database, _Array):
        how: dict[str, Any] = {"chunk_rows": step, "progress": bar, "backend": backend}
        if k is not None:
            return database.search(queries, k, **how)
        return database.range_search(queries, radius or 0, **how)
    adapter = dispatch.choose(backend)
    with _bar(rows) if bar else nullcontext() as shown:
        chunks = _counted(database.chunks(step), shown)
        if k is not None:
            return Neighbors(*_hamming_chunks.search(adapter.hamming_search, queries, chunks, k))
        within = min(radius or 0, bits)
        return RangeNeighbors(*_hamming_chunks.range_search(adapter.hamming_range, queries, chunks, within))


def _bar(rows: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=rows, desc="search", unit="code", unit_scale=True)


def _counted(chunks: Iterator[_hamming_chunks.Chunk], bar: Any) -> Iterator[_hamming_chunks.Chunk]:
    """The chunks; each moves the bar once it has been searched."""
    for codes, first in chunks:
        yield codes, first
        if bar is not None:
            bar.update(len(codes))


# ------------------------------------------------------------------ what is printed


def _first_hits(found: Neighbors | RangeNeighbors) -> Iterator[str]:
    """A line for each of the first queries."""
    queries = len(found.offsets) - 1 if isinstance(found, RangeNeighbors) else len(found.indices)
    for query in range(min(queries, _SHOWN)):
        where: Any = query
        if isinstance(found, RangeNeighbors):
            where = slice(found.offsets[query], found.offsets[query + 1])
        indices, distances = found.indices[where], found.distances[where]
        shown = zip(indices[:_SHOWN].tolist(), distances[:_SHOWN].tolist(), strict=True)
        more = ", ..." if len(indices) > _SHOWN else ""
        hits = ", ".join(f"{index} ({distance} bits)" for index, distance in shown) or "nothing"
        yield f"query {query}: {hits}{more}"
    if queries > _SHOWN:
        yield f"... {queries - _SHOWN} more queries; --output FILE keeps all"


def _summary(arguments: argparse.Namespace, rows: int, queries: int, hits: int, seconds: float) -> str:
    backend = arguments.backend
    if backend == "auto":
        backend = minerlib.explain("hamming_search").chosen
    if arguments.k is not None:
        what = f"{arguments.k} nearest of"
    else:
        what = f"{hits} hits within {arguments.radius} bits among"
    rate = rows * queries / max(seconds, 1e-9)
    pace = f"{rate / 1e9:.2f} G pairs/s" if rate >= 1e9 else f"{rate / 1e6:.1f} M pairs/s"
    where = "" if arguments.output is None else f": {arguments.output}"
    return (
        f"{what} {rows} codes of {arguments.bits} bits for {queries} queries in {seconds:.3f} s, "
        f"{pace} ({backend} backend){where}"
    )
