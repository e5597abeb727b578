"""The GPU benchmark's script on small inputs under the interpreter: it checks, times, judges and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import minerlib
from tests.triton_interpreter import INTERPRETED, NOT_INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason=NOT_INTERPRETED)

if INTERPRETED:
    from bench.gpu import __main__ as script
    from bench.gpu import measure, works


def test_every_row_is_checked_timed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu.json"
    assert script.main(["--tiny", "--results", str(path)]) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["failed"] == []
    titles = [row["title"] for row in found["rows"]]
    assert titles == [build().title for build in script.suite(torch.device("cpu"), True)]
    assert found["facts"]["gpu"] is None
    assert {"torch", "triton", "commit", "driver"} <= found["facts"].keys()
    for row in found["rows"]:
        assert row["pairs_per_second"] > 0
        assert row["times"]["ours"]["least"] <= row["times"]["ours"]["median"] <= row["times"]["ours"]["most"]
    assert set(found["rows"][0]["goals"]) == {"1x torch.cdist and masks"}
    printed = capsys.readouterr().out
    assert all(f"| {title} |" in printed for title in titles)


def test_a_wrong_answer_is_not_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tritonkernels import hamming_search

    right = hamming_search.search
    monkeypatch.setattr(hamming_search, "search", lambda x, y, k: (right(x, y, k)[0] + 1, right(x, y, k)[1]))
    path = tmp_path / "gpu.json"
    assert script.main(["--tiny", "--only", "Hamming", "--results", str(path)]) == 1
    assert "the GPU's answer is not the CPU backend's" in capsys.readouterr().out
    assert json.loads(path.read_text(encoding="utf-8"))["rows"] == []


def test_without_a_gpu_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert script.main([]) == 1
    assert "no GPU here" in capsys.readouterr().err


def test_inputs_rotate_through_more_than_a_cache() -> None:
    assert measure.sets_needed(100 << 20) == 3
    assert measure.sets_needed(1) == measure.MOST_SETS
    assert measure.sets_needed(1 << 40) == 2
    seen: list[int] = []
    measure.time_calls(seen.append, [0, 1, 2], torch.device("cpu"), 0.0)
    assert seen == [0]


def test_goals() -> None:
    assert works.faster("peer", 2).met({"ours": 1.0, "peer": 2.0}, 0.0, None)
    assert not works.faster("peer", 2).met({"ours": 1.0, "peer": 1.9}, 0.0, None)
    assert not works.faster("peer", 2).met({"ours": 1.0}, 0.0, None)
    assert works.faster("peer", 2, "graph").met({"ours": 9.0, "graph": 1.0, "peer": 2.0}, 0.0, None)
    assert not works.faster("peer", 2, "graph").met({"ours": 1.0, "peer": 2.0}, 0.0, None)
    assert works.pair_rate(5.0).met({}, 5.0, None)
    assert not works.device_time(0.1).met({"ours": 0.01}, 0.0, None)
    assert works.within("peer", 2).met({"graph": 2.0, "peer": 1.0}, 0.0, None)
    assert not works.within("peer", 2).met({"graph": 2.1, "peer": 1.0}, 0.0, None)
    assert works.extra_memory(64).met({}, 0.0, (64 << 20) - 1)
    assert not works.extra_memory(64).met({}, 0.0, 64 << 20)
    assert not works.extra_memory(64).met({}, 0.0, None)


def test_pairs_are_counted_as_they_are_mined() -> None:
    labels = torch.tensor([2, 0, 0, 2, 2, 7])
    for pairs in ("ordered", "combinations"):
        found = minerlib.mine(torch.ones(6, 1), labels, "hard", pairs=pairs, margin=1.0)
        assert works.pair_count(labels, pairs) == len(found.anchors)
