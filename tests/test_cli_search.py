"""`minerlib search`: the library's answers from every kind of file, and one clear line for every mistake."""

from __future__ import annotations

import os
import re
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import minerlib
from minerlib import retrieval, search_cli
from minerlib.cli import main

BITS, ROWS, QUERIES = 20, 300, 7


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """x.npy, q.npy: features; codes.npy, qcodes.npy: the same, packed; index: a HammingIndex with ids."""
    generator = np.random.default_rng(0)
    for name, rows in (("x", ROWS), ("q", QUERIES)):
        features = generator.normal(size=(rows, BITS)).astype(np.float32)
        np.save(tmp_path / f"{name}.npy", features)
        np.save(tmp_path / f"{'q' if name == 'q' else ''}codes.npy", minerlib.pack_bits(features))
    index = minerlib.HammingIndex(BITS)
    index.add(np.load(tmp_path / "codes.npy"), ids=1000 - np.arange(ROWS))
    index.save(tmp_path / "index")
    return tmp_path


def search(folder: Path, *options: str, database: str = "codes.npy", queries: str = "qcodes.npy") -> int:
    command = ["search", str(folder / database), str(folder / queries), *options]
    return main(command if "--bits" in options else [*command, "--bits", str(BITS)])


def loaded(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return np.load(folder / "qcodes.npy"), np.load(folder / "codes.npy")


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a mistake may print."""
    captured = capsys.readouterr()
    assert captured.err.startswith("minerlib: error: "), captured.err
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


# ------------------------------------------------------------------ answers


@pytest.mark.parametrize("database", ["codes.npy", "x.npy", "index"])
@pytest.mark.parametrize("queries", ["qcodes.npy", "q.npy"])
def test_every_kind_of_file_gives_the_same_hits(folder: Path, capsys, database: str, queries: str) -> None:
    output = folder / "hits.npz"
    sources = {"database": database, "queries": queries}
    expected = minerlib.hamming_search(*loaded(folder), 9)
    names = (lambda rows: 1000 - rows) if database == "index" else (lambda rows: rows)
    assert search(folder, "-k", "9", "--output", str(output), **sources) == 0
    written = np.load(output, allow_pickle=False)
    assert (written["indices"].dtype, written["distances"].dtype) == (np.int64, np.int32)
    np.testing.assert_array_equal(written["indices"], names(expected.indices))
    np.testing.assert_array_equal(written["distances"], expected.distances)
    assert (int(written["bits"]), int(written["k"])) == (BITS, 9)
    shown = capsys.readouterr().out
    assert shown.startswith(f"9 nearest of {ROWS} codes of {BITS} bits for {QUERIES} queries in ")
    assert re.search(r" s, \d+\.\d+ [GM] pairs/s \(\w+ backend\): .*hits\.npz\n$", shown)

    within = minerlib.hamming_range(*loaded(folder), 6)
    assert search(folder, "--radius", "6", "--output", str(output), **sources) == 0
    written = np.load(output, allow_pickle=False)
    np.testing.assert_array_equal(written["offsets"], within.offsets)
    np.testing.assert_array_equal(written["indices"], names(within.indices))
    np.testing.assert_array_equal(written["distances"], within.distances)
    assert int(written["radius"]) == 6
    assert len(within.indices) > QUERIES
    assert f"{len(within.indices)} hits within 6 bits among {ROWS} codes" in capsys.readouterr().out


@pytest.mark.parametrize("option", [("-k", "11"), ("--radius", "7")])
def test_parquet_holds_a_row_for_each_hit(folder: Path, option: tuple[str, str], monkeypatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("minerlib.files._ROW_GROUP", 30)  # several groups, one of them of a single query
    assert search(folder, *option, "--output", str(folder / "hits.parquet")) == 0
    table = parquet.read_table(folder / "hits.parquet")
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("query", "int64"),
        ("index", "int64"),
        ("distance", "int32"),
    ]
    if option[0] == "-k":
        found = minerlib.hamming_search(*loaded(folder), 11)
        counts = [11] * QUERIES
    else:
        found = minerlib.hamming_range(*loaded(folder), 7)
        counts = np.diff(found.offsets)
    query, index, distance = (column.to_numpy() for column in table.columns)
    np.testing.assert_array_equal(query, np.repeat(np.arange(QUERIES), counts))
    np.testing.assert_array_equal(index, found.indices.reshape(-1))
    np.testing.assert_array_equal(distance, found.distances.reshape(-1))
    assert table.schema.metadata[b"minerlib.bits"] == b"20"
    name = f"minerlib.{option[0].lstrip('-')}"
    assert table.schema.metadata[name.encode()] == option[1].encode()
    assert parquet.ParquetFile(folder / "hits.parquet").num_row_groups > 1


@pytest.mark.parametrize("database", ["codes.npy", "x.npy", "index"])
@pytest.mark.parametrize("option", [("-k", "1"), ("-k", "300"), ("--radius", "0"), ("--radius", "99")])
def test_chunks_change_nothing(folder: Path, database: str, option: tuple[str, str], monkeypatch) -> None:
    outputs = [str(folder / name) for name in ("whole.npz", "chunks.npz")]
    assert search(folder, *option, "--output", outputs[0], database=database) == 0
    monkeypatch.setattr(search_cli, "_CHUNK_BYTES", 3 * 41)
    monkeypatch.setattr(search_cli, "_MERGED_ROWS", 0)
    assert search(folder, *option, "--output", outputs[1], database=database) == 0
    whole, chunks = (np.load(output) for output in outputs)
    for name in whole.files:
        np.testing.assert_array_equal(whole[name], chunks[name])


def test_without_an_output_the_first_hits_are_printed(folder: Path, capsys) -> None:
    assert search(folder, "-k", "6") == 0
    lines = capsys.readouterr().out.splitlines()
    found = minerlib.hamming_search(*loaded(folder), 6)
    first = [f"{i} ({d} bits)" for i, d in zip(found.indices[0, :5], found.distances[0, :5], strict=True)]
    assert lines[0] == f"query 0: {', '.join(first)}, ..."
    assert lines[5] == "... 2 more queries; --output FILE keeps all"
    assert lines[6].startswith("6 nearest of 300 codes")
    assert len(lines) == 7
    assert search(folder, "--radius", "0") == 0
    assert capsys.readouterr().out.splitlines()[0] == "query 0: nothing"


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float16, ">f4", np.int8, np.int64, bool], ids=lambda dtype: np.dtype(dtype).str
)
def test_numbers_of_any_type_are_packed_by_their_signs(folder: Path, dtype) -> None:
    for name in ("x", "q"):
        features = np.load(folder / f"{name}.npy")
        values = features > 0 if dtype is bool else np.sign(features)
        np.save(folder / f"other-{name}.npy", np.asfortranarray(values.astype(dtype)))
    outputs = [str(folder / name) for name in ("a.npz", "b.npz")]
    assert search(folder, "-k", "3", "--output", outputs[0]) == 0
    sources = {"database": "other-x.npy", "queries": "other-q.npy"}
    assert search(folder, "-k", "3", "--output", outputs[1], **sources) == 0
    np.testing.assert_array_equal(np.load(outputs[0])["indices"], np.load(outputs[1])["indices"])


def test_no_queries_find_nothing(folder: Path, capsys) -> None:
    np.save(folder / "none.npy", np.zeros((0, BITS)))
    for option in (("-k", "2"), ("--radius", "3")):
        assert search(folder, *option, "--output", str(folder / "none.npz"), queries="none.npy") == 0
        assert np.load(folder / "none.npz")["indices"].size == 0
    assert "for 0 queries" in capsys.readouterr().out


def test_features_are_never_in_memory_all_at_once(folder: Path, monkeypatch) -> None:
    rows, bits = 200_000, 64
    features = np.lib.format.open_memmap(folder / "large.npy", "w+", np.float32, (rows, bits))
    features[:] = np.random.default_rng(0).normal(size=bits).astype(np.float32)
    features[17] *= -1
    del features
    np.save(folder / "one.npy", np.load(folder / "large.npy", mmap_mode="r")[17:18])
    monkeypatch.setattr(search_cli, "_CHUNK_BYTES", 8 * 10_000)
    monkeypatch.setattr(search_cli, "_MERGED_ROWS", 0)
    command = ["search", str(folder / "large.npy"), str(folder / "one.npy"), "--bits", "64", "-k", "1"]
    command += ["--output", str(folder / "out.npz")]
    assert main(command) == 0
    tracemalloc.start()
    try:
        assert main(command) == 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.load(folder / "out.npz")["indices"].tolist() == [[17]]
    assert peak < 10e6  # of 51 MB


@pytest.mark.parametrize("database", ["codes.npy", "x.npy", "index"])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_long_run_shows_a_bar_on_a_terminal(
    folder: Path, capsys, monkeypatch, database: str, terminal: bool
) -> None:
    monkeypatch.setattr(search_cli, "_LONG_RUN", 100)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    assert search(folder, "-k", "2", database=database) == 0
    shown = capsys.readouterr().err
    assert ("300/300" in shown) == terminal
    assert ("code/s" in shown) == terminal


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("-k", "0"), "-k: expected an integer from 1 to 300, got 0"),
        (("-k", "301"), "-k: expected an integer from 1 to 300, got 301"),
        (("--radius", "-1"), "--radius: expected an integer from 0"),
        (("--bits", "0", "-k", "1"), "--bits: expected an integer from 1"),
        (
            ("--bits", "32", "-k", "1"),
            "codes.npy: expected packed codes of 4 bytes a row for --bits 32, got 3",
        ),
        (("--bits", "18", "-k", "1"), "codes.npy: expected zeros beyond bit 18, row "),
    ],
)
def test_bad_options(folder: Path, capsys, options: tuple[str, ...], complaint: str) -> None:
    assert search(folder, *options, "--output", str(folder / "hits.npz")) == 2
    assert complaint in error_of(capsys)
    assert not (folder / "hits.npz").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "one of the arguments -k --radius is required"),
        (("-k", "1", "--radius", "2"), "not allowed with"),
        (("-k", "many"), "-k"),
        (("-k", "1", "--backend", "abacus"), "native"),
    ],
)
def test_options_that_do_not_parse(folder: Path, capsys, options: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(SystemExit) as ended:
        search(folder, *options)
    assert ended.value.code == 2
    assert complaint in error_of(capsys)


def test_the_length_of_the_codes_is_demanded(folder: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["search", str(folder / "codes.npy"), str(folder / "qcodes.npy"), "-k", "1"])
    assert "--bits" in error_of(capsys)


NAN = np.ones((ROWS, BITS))
NAN[211, 3] = np.nan


@pytest.mark.parametrize("spoilt", ["database", "queries"])
@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (
            np.ones((5, BITS + 1)),
            f"expected {BITS} columns for --bits {BITS}, as float64 is packed by its signs",
        ),
        (
            np.ones((5, BITS), np.uint8),
            f"expected packed codes of 3 bytes a row for --bits {BITS}, got {BITS}",
        ),
        (np.ones((5, 3), np.int64), f"expected {BITS} columns"),
        (np.ones(BITS), "expected shape [rows, bytes] or [rows, bits], got [20]"),
        (np.ones((5, BITS), complex), "expected numbers, got dtype complex128"),
        (np.full((5, BITS), "a"), "expected numbers, got dtype <U1"),
        (np.full((5, 3), 255, np.uint8), f"expected zeros beyond bit {BITS}, row 0 has others"),
        (NAN, "row 211 holds NaN or infinity"),
    ],
)
def test_bad_arrays(
    folder: Path, capsys, monkeypatch, spoilt: str, array: np.ndarray, complaint: str
) -> None:
    monkeypatch.setattr(search_cli, "_CHUNK_BYTES", 3 * 100)  # the row is named by its place in the file
    monkeypatch.setattr(search_cli, "_MERGED_ROWS", 0)
    np.save(folder / "bad.npy", array)
    assert search(folder, "-k", "1", "--output", str(folder / "hits.npz"), **{spoilt: "bad.npy"}) == 2
    message = error_of(capsys)
    assert f"{folder}/bad.npy: " in message
    assert complaint in message
    assert not (folder / "hits.npz").exists()


def test_an_empty_database(folder: Path, capsys) -> None:
    np.save(folder / "none.npy", np.zeros((0, 3), np.uint8))
    assert search(folder, "--radius", "1", database="none.npy") == 2
    assert "none.npy: expected at least one code, got none" in error_of(capsys)


@pytest.mark.parametrize("spoilt", ["database", "queries"])
def test_files_that_cannot_be_read(folder: Path, capsys, spoilt: str) -> None:
    (folder / "text.npy").write_text("1, 2, 3\n")
    (folder / "folder.npy").mkdir()
    os.mkfifo(folder / "pipe.npy")
    for name, complaint in (
        ("text.npy", "expected a .npy file"),
        ("folder.npy", "no regular file"),
        ("pipe.npy", "no regular file"),
        ("absent.npy", "no such file"),
    ):
        assert search(folder, "-k", "1", **{spoilt: name}) == 2
        message = error_of(capsys)
        assert f"{folder}/{name}: " in message
        assert complaint in message


def test_a_damaged_index_is_refused(folder: Path, capsys) -> None:
    whole = (folder / "index").read_bytes()
    for damaged in (whole[:-1], whole[:100], whole[:4100] + b"\xff" + whole[4101:]):
        (folder / "index").write_bytes(damaged)
        assert search(folder, "-k", "1", database="index") == 2
        assert f"{folder}/index: " in error_of(capsys)


def test_an_index_of_codes_of_another_length(folder: Path, capsys) -> None:
    assert search(folder, "--bits", "24", "-k", "1", database="index") == 2
    assert "expected codes of 24 bits (--bits), this index holds 20" in error_of(capsys)


@pytest.mark.parametrize("output", ["hits.csv", "nowhere/hits.npz"])
def test_bad_output_is_refused_before_the_search(folder: Path, capsys, output: str) -> None:
    (folder / "codes.npy").unlink()  # what is complained about shows what was looked at first
    assert search(folder, "-k", "1", "--output", str(folder / output)) == 2
    assert f"{folder}/{output}: " in error_of(capsys)


def test_a_named_backend_does_not_give_way(folder: Path, capsys, monkeypatch) -> None:
    module = sys.modules["minerlib.backends.reference"]
    monkeypatch.setattr(module, "reasons_unusable", lambda: ("not today",))
    assert search(folder, "-k", "1", "--backend", "reference") == 2
    assert "not today" in error_of(capsys)


# ------------------------------------------------------------------ evaluate


def test_codes_can_be_evaluated(folder: Path, capsys) -> None:
    np.save(folder / "labels.npy", np.arange(ROWS) % 3)
    command = ["evaluate", str(folder / "codes.npy"), str(folder / "labels.npy"), "--metric", "hamming"]
    assert main([*command, "--k", "1"]) == 0
    shown = capsys.readouterr().out
    codes, labels = np.load(folder / "codes.npy"), np.arange(ROWS) % 3
    average = retrieval.mean_average_precision(codes, labels, metric="hamming")
    assert f"mean average precision {average:.4f}" in shown
