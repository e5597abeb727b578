"""Results of offline mining: Parquet or .npz, written whole or not at all, and read a case at a time.

Parquet: a row for each triplet, case by case, anchors ascending; a row group holds the triplets of one case
and of BLOCK consecutive anchors, so that the file does not depend on chunks or ranks.

    case               dictionary<string>   epen, ephn, hpen, hphn, assorted, ... or hard-negatives
    anchor             int64                rows of the embeddings
    positive           int64
    negative           int64
    positive_distance  float64              in the metric's unit
    negative_distance  float64
    rank               int32                of a hard negative among the anchor's negatives, 0 the nearest;
    else -1

The options of the run are metadata of the schema, keys `minerlib.<option>`. An .npz holds for each case the
arrays `<case>.<column>`, and a scalar for each option.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minerlib import files
from minerlib.offline._cases import CaseTriplets

BLOCK = 1 << 16  # anchors of a row group
COLUMNS = {
    "anchor": "int64",
    "positive": "int64",
    "negative": "int64",
    "positive_distance": "float64",
    "negative_distance": "float64",
    "rank": "int32",
}


def write(
    path: Path,
    facts: dict[str, Any],
    cases: tuple[str, ...],
    blocks: Callable[[str], Iterator[CaseTriplets]],
) -> dict[str, int]:
    """Write the triplets of each case, a block of anchors at a time; how many there are of each."""
    counts = dict.fromkeys(cases, 0)
    with files.written_whole(path) as stream:
        if path.suffix == ".npz":
            arrays: dict[str, Any] = {}
            for case in cases:
                parts = list(blocks(case))
                for column, part in zip(COLUMNS, zip(*parts, strict=True), strict=True):
                    arrays[f"{case}.{column}"] = np.concatenate(part)
                counts[case] = len(arrays[f"{case}.anchor"])
            np.savez(stream, **arrays, **facts)
            return counts
        pyarrow, parquet = files.pyarrow_for(path)
        metadata = {f"minerlib.{name}": str(value) for name, value in facts.items()}
        kinds = {"case": pyarrow.dictionary(pyarrow.int8(), pyarrow.string())}
        kinds |= {name: getattr(pyarrow, kind)() for name, kind in COLUMNS.items()}
        schema = pyarrow.schema(list(kinds.items()), metadata)
        names = pyarrow.array(cases, pyarrow.string())
        # Nothing but the case repeats itself: dictionaries of the rest would only be tried and given up.
        with parquet.ParquetWriter(stream, schema, use_dictionary=["case"]) as writer:
            for number, case in enumerate(cases):
                for block in blocks(case):
                    if not len(block.anchors):
                        continue
                    counts[case] += len(block.anchors)
                    index = pyarrow.array(np.full(len(block.anchors), number, np.int8))
                    columns = [pyarrow.DictionaryArray.from_arrays(index, names)]
                    columns += [pyarrow.array(values) for values in block]
                    table = pyarrow.Table.from_arrays(columns, schema=schema)
                    writer.write_table(table, row_group_size=len(block.anchors))
    return counts


def cases_of(path: Path) -> tuple[str, ...]:
    """The cases that a result holds, in the order they were asked for."""
    if path.suffix == ".npz":
        with _npz(path) as archive:
            return tuple(str(archive["cases"]).split(","))
    metadata = _parquet(path).schema_arrow.metadata or {}
    try:
        return tuple(metadata[b"minerlib.cases"].decode().split(","))
    except KeyError:
        raise files.FileError(
            f"{path}: expected a result of offline mining, its schema names no cases"
        ) from None


def read(path: Path, case: str) -> CaseTriplets:
    """The triplets of one case."""
    if path.suffix == ".npz":
        with _npz(path) as archive:
            return CaseTriplets(*(archive[f"{case}.{column}"] for column in COLUMNS))
    file = _parquet(path)
    parts = []
    for group in range(file.num_row_groups):
        if file.metadata.row_group(group).column(0).statistics.min != case:
            continue
        table = file.read_row_group(group, columns=list(COLUMNS))
        parts.append([table.column(name).to_numpy() for name in COLUMNS])
    if not parts:
        return CaseTriplets(*(np.empty(0, kind) for kind in COLUMNS.values()))
    return CaseTriplets(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _npz(path: Path) -> Any:
    try:
        archive = np.load(path, allow_pickle=False)
        archive["cases"]
    except Exception as error:
        raise files.FileError(f"{path}: cannot be read as a result of offline mining ({error})") from None
    return archive


def _parquet(path: Path) -> Any:
    if not path.is_file():
        raise files.FileError(f"{path}: no such file")
    files.pyarrow_for(path)
    try:
        return importlib.import_module("pyarrow.parquet").ParquetFile(path)
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise files.FileError(f"{path}: cannot be read as Parquet ({first})") from None
