"""The extreme-distance trainer: 17 methods, measures, tables and pictures, and that miners agree in all."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

import minerlib
from minerlib import cli, random, reference, reference_losses
from minerlib.trainers import data, extremes, extremes_sweep, images, validation
from minerlib.trainers.extremes_config import METHODS, OFFLINE, ONLINE, PRESETS, ExtremesConfig
from minerlib.trainers.extremes_pictures import negative_flow, plot_retrievals
from minerlib.trainers.extremes_space import FeatureSpace, feature_space, flows, parts_of_training
from minerlib.trainers.extremes_tables import TABLE_1, TABLE_2, method_table
from minerlib.trainers.validation import MinerMismatch, MiningRecord, StepMiner, step_seed

TINY = {
    "epochs": 1, "feature_epochs": 1, "batch_size": 20, "per_class": 2, "embedding_length": 8,
    "width": 1 / 32, "side": 16, "mined_share": 0.3, "learning_rate": 1e-3, "progress": False,
}  # fmt: skip
OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items() if name != "progress"]
OPTIONS.append("--no-progress")


@pytest.fixture(scope="module")
def digits() -> images.ImageSet:
    return data.read_digits(16)


@pytest.fixture(autouse=True)
def few_digits(monkeypatch, digits) -> None:
    """A tenth of the digits: real images, a run of seconds."""
    few = digits.rows(torch.arange(180))
    monkeypatch.setattr(data, "read_digits", lambda side: few)


@pytest.fixture
def no_report(monkeypatch) -> None:
    """Pictures take longer than such short training."""
    monkeypatch.setattr(extremes, "_write_report", lambda *_: None)


def tiny(folder: Path, **settings) -> ExtremesConfig:
    return ExtremesConfig(output=folder, **{**TINY, **settings})


def same_bits(one: extremes.ExtremesResult, other: extremes.ExtremesResult) -> bool:
    ours, theirs = (torch.load(run.files["checkpoint"], weights_only=True)["network"] for run in (one, other))
    assert ours.keys() == theirs.keys()
    same_losses = one.history["total"] == other.history["total"]
    return same_losses and all(torch.equal(ours[name], theirs[name]) for name in ours)


# ------------------------------------------------------------------ the paper's settings and figures


def test_the_methods_are_those_of_both_tables():
    assert [method.title for method in OFFLINE.values()] == list(TABLE_1)
    assert [method.title for method in ONLINE.values()] == list(TABLE_2)
    assert len(METHODS) == 17
    for method in METHODS.values():
        assert method.strategy in (None, *minerlib.strategies.STRATEGIES)
        assert hasattr(minerlib.losses, method.loss)


@pytest.mark.parametrize("table", [TABLE_1, TABLE_2])
def test_published_recalls_grow_with_the_rank(table):
    for title, values in table.items():
        assert len(values) == 10, title
        for part in (values[:4], values[5:9]):
            assert list(part) == sorted(part), title
        assert all(values[first] < values[first + 4] < 100 for first in (0, 5)), title


def test_defaults_are_the_settings_of_the_paper():
    config = ExtremesConfig()
    assert (config.learning_rate, config.epochs, config.margin) == (1e-5, 50, 0.25)
    assert (config.backbone, config.width, config.embedding_length, config.per_class) == (
        "resnet18",
        1,
        128,
        5,
    )
    assert config.batch_size // 3 == 16  # triplets, 48 images
    assert min(config.batch_size // config.per_class, 9) * config.per_class == 45
    assert (config.held_out, config.mined_share, config.outlier_percentile) == (0.15, 0.15, 99)


def test_x1_x2_and_held_out_images_are_70_15_15_per_cent(digits, monkeypatch):
    monkeypatch.setattr(data, "read_digits", lambda side: digits)
    config = ExtremesConfig()
    split = data.load(config)
    x = parts_of_training(split.train, config)
    shares = [len(part) / len(digits) for part in (x.train, x.held_out, split.held_out)]
    assert shares == pytest.approx([0.70, 0.15, 0.15], abs=0.005)
    rows = torch.cat([part.index for part in (x.train, x.held_out, split.held_out)])
    assert torch.equal(rows.sort().values, torch.arange(len(digits)))


# ------------------------------------------------------------------ losses and mining of each method


@pytest.mark.parametrize("name", list(ONLINE))
def test_each_method_has_the_loss_of_its_equation(name):
    method, margin, seed = METHODS[name], 2.0, 7
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(20) % 4
    rows = torch.nn.functional.normalize(torch.randn(20, 6, generator=generator).double(), dim=1)
    if not method.learns_from_triplets:
        expected = getattr(reference_losses, method.loss)(rows, labels, reduction="sum")
        found = extremes.batch_loss(method, rows, labels)
    else:
        if name == "ba":
            expected = reference_losses.batch_all(rows, labels, margin, reduction="sum")
        else:
            expected = reference_losses.mined(
                rows, labels, method.strategy, margin, reduction="sum", seed=seed
            )
        triplets = minerlib.mine(rows, labels, method.strategy, margin=margin, seed=seed)
        found = extremes.triplet_loss(rows, triplets, margin)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    assert found.item() > 0


@pytest.mark.parametrize("name", list(ONLINE))
def test_online_training_is_the_same_whichever_miner_chose(tmp_path, name, no_report):
    fast = extremes.train(tiny(tmp_path / "fast", strategy=name))
    naive = extremes.train(tiny(tmp_path / "naive", strategy=name, miner_backend="reference", validate=True))
    assert same_bits(fast, naive)
    assert fast.measured == naive.measured
    steps, mining = len(naive.history["step"]), naive.mining
    assert steps == 7
    assert mining.mismatches == 0
    assert mining.validated_steps == (0 if METHODS[name].strategy is None else steps)
    assert (mining.validated_triplets > 0) == (METHODS[name].strategy is not None)
    assert fast.history["total"][0] != fast.history["total"][-1]


@pytest.fixture(scope="module")
def spaces(tmp_path_factory, digits) -> dict[str, FeatureSpace]:
    """The same feature space mined by the fast and by the naive miner."""
    found = {}
    for backend in ("auto", "reference"):
        folder = tmp_path_factory.mktemp(backend)
        config = tiny(folder, miner_backend=backend, validate=backend == "reference")
        found[backend] = feature_space(digits.rows(torch.arange(153)), config, folder)
    return found


@pytest.mark.parametrize("name", list(OFFLINE))
def test_offline_training_is_the_same_whichever_miner_chose(tmp_path, name, spaces, no_report):
    fast = extremes.train(tiny(tmp_path / "fast", strategy=name), spaces["auto"])
    naive = extremes.train(tiny(tmp_path / "naive", strategy=name), spaces["reference"])
    assert same_bits(fast, naive)
    anchors = len(spaces["auto"].triplets[METHODS[name].strategy].anchors)
    assert sum(fast.history["triplets"]) == anchors > 40
    assert (naive.mining.validated_triplets, naive.mining.mismatches) == (anchors, 0)


def test_offline_triplets_are_the_extremes_of_x2_without_outliers(spaces):
    space = spaces["auto"]
    x, labels = space.features.double(), space.x2.labels
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
    found, near = space.triplets["hphn"], space.triplets["epen"]
    left_out = 0
    for place, anchor in enumerate(found.anchors.tolist()):
        apart = distances[anchor]
        others = apart[torch.arange(len(x)) != anchor]
        limit = others.mean() + 2.3263 * others.std(correction=0)
        eligible = apart <= limit
        left_out += int((~eligible).sum())
        same = labels == labels[anchor]
        positives, negatives = same & eligible, ~same & eligible
        positives[anchor] = False
        assert apart[found.positives[place]] == pytest.approx(apart[positives].max())
        assert apart[found.negatives[place]] == pytest.approx(apart[negatives].min())
        assert apart[near.positives[place]] == pytest.approx(apart[positives].min())
        assert apart[near.negatives[place]] == pytest.approx(apart[negatives].max())
    assert left_out > 0
    assert space.record.mismatches == 0


def test_offline_triplets_that_differ_stop_the_run(tmp_path, monkeypatch, digits):
    honest = minerlib.offline.mine

    def dishonest(*args, backend, **options):
        found = honest(*args, backend=backend, **options)
        if backend == "auto":
            found["hpen"].negatives[3] += 1
        return found

    monkeypatch.setattr(minerlib.offline, "mine", dishonest)
    with pytest.raises(MinerMismatch, match="offline case hpen"):
        feature_space(digits.rows(torch.arange(153)), tiny(tmp_path, validate=True), tmp_path)


# ------------------------------------------------------------------ validation of draws


def draw_at(monkeypatch, shift: float) -> tuple[MiningRecord, StepMiner, torch.Tensor]:
    """A miner whose fast answer takes the row after a border that the draw is `shift` from."""
    rows = torch.nn.functional.normalize(
        torch.randn(12, 6, generator=torch.Generator().manual_seed(3)), dim=1
    )
    labels, honest = torch.arange(12) % 2, minerlib.mine
    record = MiningRecord()
    miner = StepMiner("distance-weighted", seed=0, backend="auto", validate=True, record=record)
    naive = honest(rows, labels, "distance-weighted", seed=step_seed(0, 1), backend="reference")
    anchor, positive, negative = (int(index[5]) for index in naive)
    negatives = (labels != labels[anchor]).nonzero()[:, 0].numpy()
    x = rows.double().numpy()
    sums = np.exp(reference.DistanceWeights(x, x).log_weights(anchor, negatives)).cumsum()
    place = int(np.searchsorted(negatives, negative))
    other = int(negatives[place + 1])
    bits = int((sums[place] / sums[-1] + shift) * 2**64)
    drawn = random.uniform_bits

    def mine(*args, backend, **options):
        found = honest(*args, backend=backend, **options)
        if backend == "auto":
            found.negatives[5] = other
        return found

    monkeypatch.setattr(minerlib, "mine", mine)
    monkeypatch.setattr(
        validation.random,
        "uniform_bits",
        lambda seed, a, p: bits if (a, p) == (anchor, positive) else drawn(seed, a, p),
    )
    return record, miner, rows


def test_a_draw_on_the_border_of_two_rows_is_no_mismatch_and_is_counted(monkeypatch):
    record, miner, rows = draw_at(monkeypatch, 1e-7)
    miner(rows, torch.arange(12) % 2, 1)
    assert (record.mismatches, record.border_draws, record.validated_steps) == (0, 1, 1)


def test_a_draw_away_from_the_border_is_a_mismatch(monkeypatch):
    record, miner, rows = draw_at(monkeypatch, 1e-3)
    with pytest.raises(MinerMismatch, match="step 1: triplet 5"):
        miner(rows, torch.arange(12) % 2, 1)
    assert (record.mismatches, record.border_draws) == (1, 0)


# ------------------------------------------------------------------ measures, tables, pictures


def test_measures_are_those_of_a_brute_force_search():
    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randn(count, 3, generator=generator) for count in (60, 30))
    train_labels, test_labels = torch.arange(60) % 4, torch.arange(30) % 4
    found = extremes.measures(train, train_labels, test, test_labels)
    for name, rows, labels in (("train", train, train_labels), ("test", test, test_labels)):
        ranking = torch.cdist(rows, rows).fill_diagonal_(torch.inf).argsort(dim=1)
        hits = labels[ranking] == labels[:, None]
        for k in (1, 4, 8, 16):
            assert found[name][f"R@{k}"] == pytest.approx(100 * hits[:, :k].any(1).double().mean().item())
    closest = train_labels[torch.cdist(test, train).argmin(1)]
    assert found["test"]["Acc."] == pytest.approx(100 * (closest == test_labels).double().mean().item())
    assert found["train"]["Acc."] == found["train"]["R@1"]


def test_published_values_stand_beside_ours_on_the_papers_data_alone():
    measures = dict.fromkeys(("R@1", "R@4", "R@8", "R@16", "Acc."), 50.0)
    measured = {
        "bsh": {"train": measures, "test": measures},
        "offline-hphn": {"train": measures, "test": measures},
    }
    table = method_table(False, measured, "nct-crc-he-100k")
    assert len(table.rows) == 1
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (row["method"], row["test R@1"], row["test R@1 (paper)"], row["train Acc. (paper)"]) == (
        "BSH", 50.0, 84.70, 98.00,
    )  # fmt: skip
    offline = method_table(True, measured, "nct-crc-he-100k")
    assert dict(zip(offline.columns, offline.rows[0], strict=True))["test R@1 (paper)"] == 42.71
    assert len(method_table(True, measured, "digits").columns) == 11


def test_the_flow_of_negatives_counts_each_triplet_once(spaces):
    for title, case in (("nearest negatives (EPHN, HPHN)", "hphn"), ("assorted", "assorted")):
        found, labels = spaces["auto"].triplets[case], spaces["auto"].x2.labels
        expected = np.zeros((10, 10), dtype=int)
        for anchor, negative in zip(found.anchors.tolist(), found.negatives.tolist(), strict=True):
            expected[labels[anchor], labels[negative]] += 1
        if case == "hphn":  # the picture's panel shows EPHN, whose negatives are the same
            assert negative_flow(found.anchors, found.negatives, labels, 10) == expected.tolist()
        assert flows(spaces["auto"])[title] == expected.tolist()
        assert np.trace(expected) == 0


def test_wrong_hits_alone_are_framed(tmp_path, digits):
    some = digits.rows(torch.arange(30))
    right = [row for row in range(1, 30) if some.labels[row] == some.labels[0]][:2]
    wrong = [row for row in range(1, 30) if some.labels[row] != some.labels[0]][:1]

    def red(hits: list[int]) -> int:
        plot_retrievals(tmp_path / "sheet.png", some, [("BSH", 0, hits)], "sheet")
        picture = matplotlib.image.imread(tmp_path / "sheet.png")[..., :3]
        return int((np.abs(picture - np.array([214, 39, 40]) / 255).max(axis=2) < 0.02).sum())

    one = red([right[0], wrong[0]])
    assert red(right) == 0
    assert one > 100
    assert red([wrong[0], wrong[0]]) == pytest.approx(2 * one, rel=0.1)


# ------------------------------------------------------------------ resumption


def test_a_run_stopped_in_its_second_epoch_gives_the_same_bits(tmp_path, no_report):
    whole = extremes.train(tiny(tmp_path / "whole", strategy="assorted", epochs=2))
    extremes.train(tiny(tmp_path / "parts", strategy="assorted", epochs=1))
    parts = extremes.train(tiny(tmp_path / "parts", strategy="assorted", epochs=2, resume=True))
    assert same_bits(whole, parts)
    assert whole.measured == parts.measured


def test_an_offline_run_stopped_in_its_feature_space_goes_on(tmp_path, monkeypatch, no_report):
    settings = {"strategy": "offline-assorted", "feature_epochs": 2}
    whole = extremes.train(tiny(tmp_path / "whole", **settings))
    with pytest.raises(FileNotFoundError, match=r"parts/checkpoint\.pt: no checkpoint to resume from"):
        extremes.train(tiny(tmp_path / "parts", resume=True, **settings))
    mine = minerlib.offline.mine

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(minerlib.offline, "mine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extremes.train(tiny(tmp_path / "parts", **settings))
    monkeypatch.setattr(minerlib.offline, "mine", mine)
    parts = extremes.train(tiny(tmp_path / "parts", resume=True, **settings))
    assert same_bits(whole, parts)


# ------------------------------------------------------------------ the command


def test_a_run_prints_its_figures_and_leaves_a_report(tmp_path, capsys):
    command = [
        "train",
        "extremes",
        *OPTIONS,
        "--strategy",
        "offline-hpen",
        "--validate",
        "--output",
        str(tmp_path),
    ]
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    for text in ("HPEN offline on digits", "from scratch", "R@16", "one pass over X2", "0 mismatches"):
        assert text in shown
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["measures_percent"]["test"].keys() == {"R@1", "R@4", "R@8", "R@16", "Acc."}
    assert summary["feature_space"]["mismatches"] == 0
    assert len(summary["retrieved"]) == 10
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png") == 3
    assert "values are for nct-crc-he-100k" in page


def test_one_command_sweeps_methods_and_goes_on_where_it_was(
    tmp_path, capsys, monkeypatch, digits, no_report
):
    some = digits.rows((digits.labels < 3).nonzero()[:90, 0])
    three = images.ImageSet(some.pixels, some.labels, some.classes[:3], some.index)
    monkeypatch.setattr(data, "read_digits", lambda side: three)
    command = ["train", "extremes", *OPTIONS, "--sweep", "methods", "--output", str(tmp_path)]
    sweeps = {**extremes_sweep.SWEEPS, "methods": ("offline-epen", "offline-assorted", "nca", "dws")}
    monkeypatch.setattr(extremes_sweep, "SWEEPS", sweeps)
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    for text in ("Table I: offline", "Table II: online", "Share of a training step spent mining", "DWS"):
        assert text in shown
    with (tmp_path / "table-2.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["method"] for row in rows] == ["NCA", "DWS"]
    outcome = json.loads((tmp_path / "dws" / "outcome.json").read_text())["outcome"]
    assert float(rows[1]["test R@4"]) == outcome["measured"]["test"]["R@4"]
    with (tmp_path / "negatives.csv").open(newline="") as stream:
        flow = list(csv.DictReader(stream))
    assert len(flow) == 9
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "negatives.png", "retrievals-0.png", "retrievals-1.png", "retrievals-2.png",
    }  # fmt: skip
    assert (tmp_path / "report.html").read_text().count("data:image/png") == 4

    monkeypatch.setattr(extremes, "train", None)  # nothing is left to train
    assert cli.main([*command, "--resume"]) == 0
    assert capsys.readouterr().out == shown


def test_presets_are_settings_and_quick_says_so():
    for name, preset in PRESETS.items():
        assert dataclasses.asdict(ExtremesConfig(**preset, preset=name))["preset"] == name


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--strategy", "semi-hard"], "strategy: expected one of offline-epen"),
        (["--batch-size", "3"], "batch_size: expected room for two classes of 2 images, got 3"),
        (["--per-class", "1"], "per_class"),
        (["--mined-share", "0.9"], "mined_share: expected a share between 0 and what held_out = 0.15 leaves"),
        (["--backbone", "alexnet"], "backbone: expected one of resnet18"),
        (["--weights", "nowhere.pt", "--width", "1"], "nowhere.pt"),
        (["--outlier-percentile", "101", "--strategy", "offline-epen"], "outlier_percentile"),
        (["--sweep", "everything"], "sweep"),
        (["--sweep", "online", "--strategy", "ba"], "strategy: expected none, as --sweep online"),
        (["--resume"], "no checkpoint to resume from"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(tmp_path, capsys, options, named):
    try:
        code = cli.main(["train", "extremes", *OPTIONS, "--output", str(tmp_path / "out"), *options])
    except SystemExit as end:  # argparse's own way
        code = end.code
    message = capsys.readouterr().err
    assert code == 2
    assert named in message
    assert message.startswith("minerlib: error: ")
    assert message.count("\n") == 1
