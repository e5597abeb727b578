"""What the trainers share: ranks under torchrun, bfloat16, sweeps that go on, backbones, reports."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from minerlib import cli
from minerlib.benchmarks import per_pair_loop
from minerlib.trainers import backbones, data, jtanet, jtanet_sweeps, report, sweep
from minerlib.trainers.jtanet_config import STRATEGIES, JTANetConfig
from minerlib.trainers.validation import MiningRecord
from tests.trainer_worker import linear_run

WORKER = Path(__file__).with_name("trainer_worker.py")


@pytest.fixture(autouse=True)
def few_digits(monkeypatch) -> None:
    few = data.read_digits(64).rows(torch.arange(120))
    monkeypatch.setattr(data, "read_digits", lambda side: few)


def tiny(folder: Path, **settings) -> JTANetConfig:
    defaults = {"epochs": 1, "batch_size": 48, "embedding_length": 4, "width": 1 / 64, "progress": False}
    return JTANetConfig(output=folder, **{**defaults, **settings})


# ------------------------------------------------------------------ ranks


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)
def test_two_processes_train_as_one_and_resume_to_the_same_bits(tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(WORKER),
        str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["world"] == 2
    # a network without BatchNorm takes the steps that one process takes, and both ranks hold the same weights
    alone = linear_run(tmp_path / "alone")
    assert first["linear history"] == pytest.approx(alone.history["total"], rel=1e-5)
    for name, weights in alone.network.state_dict().items():
        assert torch.equal(first["linear"][name], second["linear"][name])
        assert torch.allclose(first["linear"][name], weights, rtol=1e-4, atol=1e-6)
    # JTANet: resumed or not, the same numbers on both ranks; every rank's triplets were compared
    assert first["histories"][0] == first["histories"][1] == second["histories"][0]
    assert first["precisions"][0] == first["precisions"][1] == second["precisions"][0]
    assert first["validated"] + second["validated"] == first["triplets"] > 0
    assert first["mismatches"] == second["mismatches"] == 0
    whole, parts = (torch.load(tmp_path / run / "checkpoint.pt")["network"] for run in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_run_of_other_ranks_is_not_resumed(tmp_path):
    path = jtanet.train(tiny(tmp_path), pictures=False).files["checkpoint"]
    state = torch.load(path)
    state["config"]["ranks"] = 2
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"^ranks: the run to resume had 2, got 1"):
        jtanet.train(tiny(tmp_path, resume=True))


# ------------------------------------------------------------------ bfloat16


def test_amp_trains_in_bfloat16_and_mines_in_float32(tmp_path, monkeypatch):
    seen = []
    honest = jtanet.loss_terms
    monkeypatch.setattr(jtanet, "loss_terms", lambda *given: seen.append(given[:4]) or honest(*given))
    run = jtanet.train(tiny(tmp_path / "amp", amp=True, validate=True), pictures=False)
    plain = jtanet.train(tiny(tmp_path / "plain"), pictures=False)
    _, _, features, units = seen[0]
    assert (features.dtype, units.dtype) == (torch.bfloat16, torch.float32)
    assert run.mining.validated_steps == 2
    assert run.history["total"] != plain.history["total"]
    assert run.history["total"][0] == pytest.approx(plain.history["total"][0], rel=0.1)


# ------------------------------------------------------------------ sweeps


def test_a_sweep_goes_on_where_it_was_left(tmp_path):
    trained = []

    def train(config: JTANetConfig) -> JTANetConfig:
        if config.seed == 2 and len(trained) == 2:
            raise KeyboardInterrupt
        if config.seed == 3:
            raise backbones.NoWeights("none here")
        trained.append((config.seed, config.resume))
        return config

    def run(resume: bool, **settings):
        cases = {
            str(seed): tiny(tmp_path / str(seed), seed=seed, resume=resume, **settings) for seed in range(4)
        }
        for case in cases.values():
            case.output.mkdir(exist_ok=True)
        found = sweep.run_cases(cases, train, lambda config: {"seed": config.seed}, (backbones.NoWeights,))
        return found

    with pytest.raises(KeyboardInterrupt):
        run(resume=True)
    assert trained == [(0, False), (1, False)]
    (tmp_path / "2" / "checkpoint.pt").write_bytes(b"")  # as the interrupted run would have left it
    trained.append("again")
    found = run(resume=True)
    assert trained[3:] == [(2, True)]
    assert list(found.values()) == [{"seed": 0}, {"seed": 1}, {"seed": 2}, {"skipped": "none here"}]
    run(resume=True, margin=0.7)  # other settings: nothing that lies there is theirs
    assert [seed for seed, _ in trained[4:]] == [0, 1, 2]
    run(resume=False)
    assert trained[7:] == [(0, False), (1, False), (2, False)]
    (tmp_path / "0" / "outcome.json").write_text("{")
    with pytest.raises(ValueError, match=r"outcome\.json: expected the outcome of a run"):
        run(resume=True)


def test_table_2_has_every_length_and_strategy_and_both_figures(tmp_path, capsys):
    command = ["train", "jtanet", "--sweep", "embedding-length", "--lengths", "4", "2", "--seeds", "2"]
    command += "--width 0.015625 --epochs 1 --batch-size 48 --validate --no-progress".split()
    assert cli.main([*command, "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for text in (
        "Table 2.",
        "random-hard",
        "±",
        "width 0.015625",
        "1 epochs",
        "2 seeds",
        "not for digits",
        "Gain over",
        "Share of",
    ):
        assert text in said
    with (tmp_path / "table2.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["EL"] for row in rows] == ["4", "2"]
    with (tmp_path / "embedding-length-runs.csv").open(newline="") as stream:
        runs = list(csv.DictReader(stream))
    assert len(runs) == 2 * 3 * 2
    cell = [
        float(run["precision@5"])
        for run in runs
        if (run["strategy"], run["embedding_length"]) == ("hard", "2")
    ]
    assert rows[1]["hard"] == sweep.spread(cell)
    page = (tmp_path / "embedding-length.html").read_text()
    assert page.count('src="data:image/png;base64,iVBOR') == 2
    assert "Share of a training step" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    outcome = json.loads((tmp_path / "runs" / "hard-el2-w1-1-1-seed1" / "outcome.json").read_text())[
        "outcome"
    ]
    assert outcome["mining"]["validated_steps"] == 2
    assert outcome["mining"]["mismatches"] == 0


def test_table_3_has_every_weighting(tmp_path, monkeypatch):
    monkeypatch.setattr(jtanet_sweeps, "BEST_LENGTH", dict.fromkeys(STRATEGIES, 4))
    monkeypatch.setattr(
        jtanet, "train", lambda config, pictures: seen.append(config) or replace(result, config=config)
    )
    seen: list[JTANetConfig] = []
    result = jtanet.JTANetResult(
        tiny(tmp_path), 1, 1, {}, {5: 50.0}, MiningRecord(steps=1, seconds=0.1, step_seconds=1.0), 1.0, {}
    )
    for config in (tiny(tmp_path), tiny(tmp_path, data="crchistophenotypes")):
        found = jtanet_sweeps.loss_weights(config)
    assert len(seen) == 60
    assert {config.weights for config in seen} >= {
        (1, 1, 1),
        (5, 1, 1),
        (1, 10, 1),
        (0, 1, 1),
        (1, 0, 1),
        (1, 1, 0),
    }
    table = found.tables[0]
    assert [row[0] for row in table.rows] == list(jtanet_sweeps.TABLE_3)
    # beside the paper's own values, where the data set is the paper's
    assert table.columns[:3] == ("AE:SM:FR", "hard", "hard (paper)")
    assert tuple(table.rows[7]) == ("0:1:1", 50.0, 58.77, 50.0, 74.11, 50.0, 73.60)
    assert "58.77" in found.files["report"].read_text()


@pytest.mark.parametrize(
    "options",
    [
        "--sweep loss-weights --weights 1:1:1",
        "--sweep embedding-length --strategy hard",
        "--seeds 3",
        "--sweep all",
    ],
)
def test_a_sweep_is_not_given_what_it_varies(tmp_path, capsys, options):
    try:
        code = cli.main(["train", "jtanet", *options.split(), "--output", str(tmp_path)])
    except SystemExit as end:
        code = end.code
    message = capsys.readouterr().err
    assert code == 2
    assert message.count("\n") == 1
    assert options.split()[-2].removeprefix("--") in message


# ------------------------------------------------------------------ backbones


def test_resnets_have_the_parameters_that_torchvision_publishes(tmp_path):
    torch.manual_seed(0)
    published = backbones._resnet("resnet18", 1.0)
    assert sum(weights.numel() for weights in published.parameters()) == 11_689_512
    names = list(published.state_dict())
    assert names[:2] == ["conv1.weight", "bn1.weight"]
    assert "layer2.0.downsample.0.weight" in names
    assert names[-2:] == ["fc.weight", "fc.bias"]
    path = tmp_path / "resnet18.pth"
    torch.save(published.state_dict(), path)
    named = backbones.backbone("resnet18", weights=path)
    assert named.origin == f"weights of {path}"
    assert torch.equal(named.network[1].conv1.weight, published.conv1.weight)
    assert named.network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, named.features) == (1, 512)
    with pytest.raises(backbones.NoWeights, match=r"resnet50, they do not fit"):
        backbones.backbone("resnet50", weights=path)
    path.write_bytes(b"weights")
    with pytest.raises(backbones.NoWeights, match="it cannot be read"):
        backbones.backbone("resnet18", weights=path)
    with pytest.raises(backbones.NoWeights, match="no such file"):
        backbones.backbone("resnet18", weights=tmp_path / "none.pth")


def test_pretrained_weights_need_torchvision_and_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    for name in ("vgg16", "resnet18"):
        with pytest.raises(backbones.NoWeights, match="torchvision, which did not import"):
            backbones.backbone(name, weights="torchvision")
    with pytest.raises(ValueError, match="backbone: expected one of resnet18"):
        backbones.backbone("alexnet")
    with pytest.raises(ValueError, match="width"):
        backbones.backbone("resnet18", width=0.5, weights="torchvision")


# ------------------------------------------------------------------ shares and reports


def test_shares_of_a_step():
    record = MiningRecord(
        steps=10, seconds=1.0, step_seconds=11.0, selector_steps=2, selector_seconds=18.0, triplets=50
    )
    assert record.share == pytest.approx(1 / 11)
    assert record.selector_share == pytest.approx(9 / (9 + 1))
    text = report.text_table(report.mining_table({"hard": record, "none": MiningRecord()}))
    assert re.search(r"hard +10 +50 +1100\.00 +100\.00 +9\.09 +9000\.00 +90\.00", text)
    assert re.search(r"none +0 +0 +- +- +-", text)


@pytest.mark.parametrize("strategy", ["semi-hard-nearest", "epen", "ephn", "hpen", "hphn", "easy-positive"])
def test_python_loops_choose_what_the_definition_chooses(strategy):
    import minerlib

    generator = torch.Generator().manual_seed(0)
    rows, labels = torch.rand(30, 4, generator=generator), torch.arange(30) % 5
    loop = per_pair_loop.usual(strategy)(rows, labels, 0.3)
    pairs = "combinations" if strategy == "semi-hard-nearest" else "ordered"
    ours = torch.stack(minerlib.mine(rows, labels, strategy, margin=0.3, pairs=pairs), dim=1)
    assert {tuple(triplet) for triplet in loop.tolist()} == {tuple(triplet) for triplet in ours.tolist()}
    assert len(per_pair_loop.usual("assorted")(rows, labels, 0.3)) == 30
    assert len(per_pair_loop.usual(strategy)(rows, labels * 0, 0.3)) == 0
    assert per_pair_loop.usual("hinge") is None


def test_a_page_shows_what_it_is_given_and_escapes_it(tmp_path):
    report.plot_curves(tmp_path / "curve.png", {"a": {1: 2.0, 2: 3.0}}, "t", "x", "y")
    parts = [
        report.Table("Rows <one>", ("name", "value"), [("a & b", 1.234), ("c", None)], "a note"),
        report.Picture("A curve", tmp_path / "curve.png"),
        report.Facts("Facts", {"seed": 3}),
    ]
    report.write_html(tmp_path / "page.html", "A title", "An intro", parts)
    page = (tmp_path / "page.html").read_text()
    for text in (
        "Rows &lt;one&gt;",
        "a &amp; b",
        "<td>1.23</td>",
        "<td>-</td>",
        "a note",
        "<td>seed</td><td>3</td>",
    ):
        assert text in page
    report.write_table(tmp_path / "rows.csv", parts[0])
    assert (tmp_path / "rows.csv").read_text() == "name,value\na & b,1.234\nc,\n"
