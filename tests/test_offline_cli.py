"""`minerlib mine --cases`: whole data sets on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minerlib import offline
from minerlib.cli import main
from minerlib.offline import _run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    draw = np.random.default_rng(1)
    np.save(tmp_path / "x.npy", draw.standard_normal((200, 8), dtype=np.float32))
    np.save(tmp_path / "y.npy", draw.integers(0, 4, 200))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(text: str) -> int:
    return main(["mine", *text.split()])


def test_cases_are_mined_to_a_file(folder, capsys):
    options = "--count 2 --skip 1 --hard-margin 0.5 --chunk-rows 60 --outlier-percentile 95 --seed 3"
    assert (
        run(f"x.npy y.npy --cases assorted hard-negatives --output t.parquet --metric euclidean {options}")
        == 0
    )
    out, err = capsys.readouterr()
    assert "200 assorted, " in out
    assert "mining: 100%" in err
    rules = offline.HardNegatives(count=2, skip=1, margin=0.5)
    expected = offline.mine(
        "x.npy", "y.npy", ["assorted", "hard-negatives"], outlier_percentile=95, seed=3, metric="euclidean",
        hard_negatives=rules, progress=False,
    )  # fmt: skip
    found = offline.OfflineTriplets("t.parquet")
    assert found.counts == tuple(expected.counts.values())
    assert np.array_equal(found.negatives, np.concatenate([case.negatives for case in expected.values()]))


def test_a_dry_run_only_tells(folder, capsys):
    assert run("x.npy y.npy --cases hphn hard-negatives --output t.npz --dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["time", "memory", "disk"]
    assert "8e+04 distances" in lines[0]
    assert sorted(path.name for path in folder.iterdir()) == ["x.npy", "y.npy"]


def test_what_a_run_would_take_grows_with_it():
    x, y = np.zeros((4000, 4), np.float32), np.zeros(4000, int)
    one = offline.estimate(x, y, "hphn")
    four = offline.estimate(x, y, ["hphn", "epen"], ranks=4)
    assert one.distances == four.distances == 16_000_000
    assert one.result == 45 * 4000
    assert four.result == 2 * one.result
    assert one.state == 8192 + 4000 * 72
    assert four.state == 8192 + 1000 * 136
    assert one.seconds > 0


def test_an_interrupted_run_says_how_to_continue(folder, capsys, monkeypatch):
    update = _run.Run._update

    def stop(self, *task):
        raise KeyboardInterrupt

    monkeypatch.setattr(_run.Run, "_update", stop)
    with pytest.raises(SystemExit) as ended:
        run("x.npy y.npy --cases hphn --output t.npz --quiet")
    assert ended.value.code == 130
    assert "kept in t.npz.unfinished*; the same command continues" in capsys.readouterr().err
    monkeypatch.setattr(_run.Run, "_update", update)
    assert run("x.npy y.npy --cases hphn --output t.npz --quiet") == 0
    assert sorted(path.name for path in folder.iterdir()) == ["t.npz", "x.npy", "y.npy"]


MISTAKES = {
    "x.npy y.npy": "expected one of --strategy, for a batch, and --cases, for a whole data set",
    "x.npy y.npy --strategy hphn --cases hphn": "expected one of --strategy, for a batch",
    "x.npy --strategy hphn": "LABELS.npy: expected a file of labels with --strategy",
    "x.npy y.npy --strategy hphn --dry-run": "--dry-run: expected together with --cases",
    "x.npy y.npy --cases hphn --count 3": "--count: expected together with --cases hard-negatives",
    "x.npy y.npy --cases hphn --reference x.npy": "--reference: expected together with --strategy",
    "x.npy y.npy --cases hphn --outlier-percentile many": "--outlier-percentile: expected a number or none",
    "x.npy y.npy --cases hphn --outlier-percentile 5": "--outlier-percentile: expected a number from 50",
    "x.npy y.npy --cases hard-negatives --hard-margin -1": "--hard-margin: expected a finite number",
    "x.npy y.npy --cases hphn --chunk-rows 0": "--chunk-rows: expected an integer from 1",
    "y.npy y.npy --cases hphn": "y.npy: expected shape [rows, dimensions], got [200]",
    "x.npy x.npy --cases hphn": "x.npy: expected bool for multi-label rows [200, 8], got float32",
    "x.npy --cases hphn": "x.npy: expected an array or a file",
    "none.npy y.npy --cases hphn": "none.npy: no such file",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_ends_in_one_line(folder, capsys, command):
    assert run(f"{command} --output t.npz") == 2
    err = capsys.readouterr().err
    assert err.startswith("minerlib: error: ")
    assert MISTAKES[command] in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["x.npy", "y.npy"]
