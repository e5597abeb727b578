"""The command line: what it writes, and one clear line for every mistake."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minerlib
from minerlib import files, retrieval
from minerlib.cli import main

ROWS, CLASSES = 40, 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """x.npy and labels.npy: 40 rows of 4 classes in 8 dimensions."""
    generator = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", generator.normal(size=(ROWS, 8)).astype(np.float32))
    np.save(tmp_path / "labels.npy", np.arange(ROWS) % CLASSES)
    return tmp_path


def mine(folder: Path, *options: str, output: str = "out.npz") -> int:
    paths = [str(folder / name) for name in ("x.npy", "labels.npy", output)]
    command = ["mine", paths[0], paths[1], "--output", paths[2], "--backend", "reference", *options]
    return main(command if "--strategy" in options else [*command, "--strategy", "semi-hard"])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a mistake may print."""
    captured = capsys.readouterr()
    assert captured.err.startswith("minerlib: error: "), captured.err
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def expected(folder: Path, strategy: str, **options: object) -> minerlib.Triplets:
    x, labels = np.load(folder / "x.npy"), np.load(folder / "labels.npy")
    return minerlib.mine(x, labels, strategy, backend="reference", **options)


# ------------------------------------------------------------------ mine


def test_npz_holds_the_triplets_and_how_they_were_mined(folder: Path, capsys) -> None:
    assert mine(folder, "--margin", "2.5", "--seed", "7", "--metric", "euclidean") == 0
    written = np.load(folder / "out.npz", allow_pickle=False)
    triplets = expected(folder, "semi-hard", margin=2.5, seed=7, metric="euclidean")
    assert len(triplets.anchors) > 100
    for name, column in triplets._asdict().items():
        assert written[name].dtype == np.int64
        np.testing.assert_array_equal(written[name], column)
    assert str(written["strategy"]) == "semi-hard"
    assert str(written["metric"]) == "euclidean"
    assert (float(written["margin"]), int(written["seed"])) == (2.5, 7)
    summary = capsys.readouterr().out
    assert summary.count("\n") == 1
    assert summary.startswith(f"{len(triplets.anchors)} semi-hard triplets from {ROWS} rows in ")
    assert "reference backend" in summary


def test_parquet_holds_the_same(folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert mine(folder, "--strategy", "hard", "--pairs", "combinations", output="out.parquet") == 0
    table = parquet.read_table(folder / "out.parquet")
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("anchor", "int64"),
        ("positive", "int64"),
        ("negative", "int64"),
    ]
    for column, array in zip(table.columns, expected(folder, "hard", pairs="combinations"), strict=True):
        np.testing.assert_array_equal(column.to_numpy(), array)
    assert table.schema.metadata[b"minerlib.pairs"] == b"combinations"


def test_a_reference_gives_positives_and_negatives(folder: Path) -> None:
    y = np.random.default_rng(1).normal(size=(30, 8)).astype(np.float32)
    y_labels = np.arange(30) % CLASSES
    np.save(folder / "y.npy", y)
    np.save(folder / "yl.npy", y_labels)
    options = ("--reference", str(folder / "y.npy"), "--reference-labels", str(folder / "yl.npy"))
    assert mine(folder, *options, "--strategy", "batch-hard") == 0
    written = np.load(folder / "out.npz")
    triplets = expected(folder, "batch-hard", reference=y, reference_labels=y_labels)
    np.testing.assert_array_equal(written["positives"], triplets.positives)
    np.testing.assert_array_equal(written["negatives"], triplets.negatives)


@pytest.mark.parametrize(
    ("x", "labels"),
    [
        (np.zeros((0, 4), np.float32), np.zeros(0, np.int64)),
        (np.zeros((1, 4), np.float32), np.zeros(1, np.int64)),
        (np.asfortranarray(np.ones((6, 2))), np.array([True, False] * 3)),
        (np.ones((6, 2), ">f8"), np.eye(6, dtype=bool)),
        (np.ones((6, 2), np.float16), np.arange(6, dtype=np.uint8)),
    ],
)
def test_unusual_but_valid_files(folder: Path, x: np.ndarray, labels: np.ndarray) -> None:
    np.save(folder / "x.npy", x)
    np.save(folder / "labels.npy", labels)
    assert mine(folder, "--strategy", "all") == 0
    assert np.load(folder / "out.npz")["anchors"].dtype == np.int64


def test_embeddings_are_mapped_and_not_read(folder: Path) -> None:
    assert isinstance(files.read_array(folder / "x.npy"), np.memmap)


# ------------------------------------------------------------------ mistakes


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


WHOLE = saved(np.ones((ROWS, 8), np.float32))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "this one is empty"),
        (b"1.0,2.0\n", "expected a .npy file"),
        (WHOLE[:3], "expected a .npy file"),
        (WHOLE[:8], "expected a whole .npy file"),
        (WHOLE[:60], "expected a whole .npy file"),
        (WHOLE[:-1], "cut short"),
        (WHOLE[:200], "cut short"),
        (saved(np.array([{}, None])), "Python objects"),
        (pickle.dumps([1.0]), "expected a .npy file"),
        (saved(np.ones(ROWS, np.float32)), "expected shape [rows, dimensions]"),
        (saved(np.ones((2, ROWS, 8), np.float32)), "expected shape [rows, dimensions]"),
        (saved(np.ones((ROWS, 8), np.int64)), "expected float16, bfloat16, float32 or float64, got int64"),
        (saved(np.ones((ROWS, 8), np.complex64)), "complex64"),
        (saved(np.full((ROWS, 8), "a")), "<U1"),
        (saved(np.ones((ROWS, 0), np.float32)), "at least one dimension"),
        (saved(np.full((ROWS, 8), np.nan)), "row 0 holds NaN or infinity"),
    ],
)
def test_bad_embeddings(folder: Path, capsys, content: bytes, complaint: str) -> None:
    (folder / "x.npy").write_bytes(content)
    assert mine(folder) == 2
    message = error_of(capsys)
    assert f"{folder}/x.npy: " in message
    assert complaint in message
    assert not list(folder.glob("*out*"))


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (np.zeros(ROWS - 1, np.int64), f"expected {ROWS} rows like embeddings, got {ROWS - 1}"),
        (np.zeros(ROWS), "expected integers or bool, got float64"),
        (np.zeros((ROWS, 1), np.int64), "expected bool for multi-label rows"),
        (np.int64(3), "expected shape"),
    ],
)
def test_bad_labels(folder: Path, capsys, labels: np.ndarray, complaint: str) -> None:
    np.save(folder / "labels.npy", labels)
    assert mine(folder) == 2
    message = error_of(capsys)
    assert f"{folder}/labels.npy: " in message
    assert complaint in message


def test_missing_file_and_folder_in_place_of_a_file(folder: Path, capsys) -> None:
    (folder / "x.npy").unlink()
    assert mine(folder) == 2
    assert f"{folder}/x.npy: no such file" in error_of(capsys)
    (folder / "x.npy").mkdir()
    assert mine(folder) == 2
    assert "no regular file" in error_of(capsys)


def test_a_pipe_is_refused_and_not_waited_for(folder: Path, capsys) -> None:
    (folder / "x.npy").unlink()
    os.mkfifo(folder / "x.npy")
    assert mine(folder) == 2
    assert "no regular file" in error_of(capsys)


def test_damaged_headers_never_end_in_a_traceback(folder: Path, capsys) -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(WHOLE)
        for place in generator.integers(0, 128, size=generator.integers(1, 4)):
            damaged[place] = generator.integers(256)
        (folder / "x.npy").write_bytes(damaged)
        if mine(folder, "--strategy", "batch-hard") != 0:  # some damage still spells an array
            assert f"{folder}/x.npy: " in error_of(capsys)
        capsys.readouterr()


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        ("out.csv", "expected an output that ends in .npz or .parquet"),
        ("out", "expected an output that ends in .npz or .parquet"),
        ("nowhere/out.npz", "to exist"),
        ("folder.npz", "this is a folder"),
    ],
)
def test_bad_output_is_refused_before_mining(folder: Path, capsys, output: str, complaint: str) -> None:
    (folder / "folder.npz").mkdir()
    (folder / "x.npy").unlink()  # what is complained about shows what was looked at first
    assert mine(folder, output=output) == 2
    message = error_of(capsys)
    assert f"{folder}/{output}: " in message
    assert complaint in message


def test_parquet_without_pyarrow(folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert mine(folder, output="out.parquet") == 2
    message = error_of(capsys)
    assert "out.parquet: Parquet needs pyarrow (pip install 'minerlib[parquet]')" in message


def test_a_failed_write_leaves_the_old_file_and_no_rest(
    folder: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "out.npz").write_bytes(b"old")

    def disk_full(stream: io.BufferedWriter, **_: object) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", disk_full)
    assert mine(folder) == 2
    assert "out.npz: cannot be written (No space left on device)" in error_of(capsys)
    assert (folder / "out.npz").read_bytes() == b"old"
    assert {path.name for path in folder.iterdir()} == {"x.npy", "labels.npy", "out.npz"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--margin", "nan"), "--margin: expected a finite number"),
        (("--margin", "-1"), "--margin: expected a finite number"),
        (("--margin", "wide"), "--margin"),
        (("--seed", "-1"), "--seed: expected an integer from 0"),
        (("--seed", "0.5"), "--seed"),
        (("--strategy", "hardest"), "--strategy"),
        (("--metric", "manhattan"), "sqeuclidean"),
        (("--backend", "abacus"), "native"),
        (("--reference", "x.npy"), "--reference"),
        (("--unknown",), "--unknown"),
    ],
)
def test_bad_options(
    folder: Path, capsys, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], complaint: str
) -> None:
    monkeypatch.chdir(folder)
    try:
        code = mine(folder, *options)
    except SystemExit as exit:
        code = int(exit.code or 0)
    assert code == 2
    assert complaint in error_of(capsys)


def test_a_bug_is_not_dressed_up_as_a_mistake(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("operands could not be broadcast together")

    monkeypatch.setattr(minerlib, "mine", broken)
    with pytest.raises(ValueError, match="broadcast"):
        mine(folder)


# ------------------------------------------------------------------ evaluate


def evaluate(folder: Path, *options: str) -> int:
    return main(
        ["evaluate", str(folder / "x.npy"), str(folder / "labels.npy"), "--backend", "reference", *options]
    )


def test_measures_as_json(folder: Path, capsys) -> None:
    assert evaluate(folder, "--k", "1", "5", "--metric", "cosine", "--json") == 0
    measures = json.loads(capsys.readouterr().out)
    x, labels = np.load(folder / "x.npy"), np.load(folder / "labels.npy")
    options = {"metric": "cosine", "backend": "reference"}
    assert measures == {
        "queries": ROWS,
        "database": None,
        "metric": "cosine",
        "k": [1, 5],
        "precision": retrieval.precision_at(x, labels, [1, 5], **options),
        "recall": retrieval.recall_at(x, labels, [1, 5], **options),
        "knn_accuracy": [retrieval.knn_accuracy(x, labels, k, **options) for k in (1, 5)],
        "mean_average_precision": retrieval.mean_average_precision(x, labels, **options),
    }


def test_measures_as_a_table_against_a_database(folder: Path, capsys) -> None:
    np.save(folder / "y.npy", np.load(folder / "x.npy")[:30])
    np.save(folder / "yl.npy", np.load(folder / "labels.npy")[:30])
    options = ("--database", str(folder / "y.npy"), "--database-labels", str(folder / "yl.npy"))
    assert evaluate(folder, *options, "--k", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("40 queries against 30 rows, sqeuclidean")
    assert lines[1].split() == ["k", "precision", "recall", "knn_accuracy"]
    # 30 of the queries find themselves, so these are at least 3 in 4
    assert all(0.75 <= float(value) <= 1 for value in lines[2].split()[1:])


def test_multi_labels_have_no_vote(folder: Path, capsys) -> None:
    np.save(folder / "labels.npy", np.random.default_rng(0).random((ROWS, 3)) < 0.5)
    assert evaluate(folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["knn_accuracy"] is None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--k", "40"), "--k: expected an integer from 1 to 39, got 40"),
        (("--k", "0"), "--k: expected an integer from 1"),
        (("--database", "x.npy"), "--database-labels: database and database_labels go together"),
        (("--database-labels", "labels.npy"), "--database: database and database_labels go together"),
        (("--database", "x.npy", "--database-labels", "x.npy"), "x.npy: "),
    ],
)
def test_bad_options_of_evaluate(
    folder: Path, capsys, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], complaint: str
) -> None:
    monkeypatch.chdir(folder)
    assert evaluate(folder, *options) == 2
    assert complaint in error_of(capsys)


# ------------------------------------------------------------------ the program


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "minerlib", *arguments], capture_output=True, text=True, timeout=120
    )


def test_help_lists_the_commands_and_imports_nothing_heavy() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    assert all(command in shown.stdout for command in ("info", "mine", "evaluate", "train"))
    code = "import sys, minerlib.cli as c; c._parser(); print({'torch', 'numba', 'sklearn'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("arguments", [(), ("dig",), ("train",), ("train", "nothing"), ("mine",)])
def test_incomplete_commands(arguments: tuple[str, ...]) -> None:
    shown = run(*arguments)
    assert shown.returncode == 2
    assert shown.stderr.startswith("minerlib: error: ")
    assert shown.stderr.count("\n") == 1


def test_the_example_in_the_readme_runs(capsys) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    assert re.match(r"[1-9]\d* TripletCounts\(total=\d+", capsys.readouterr().out)
