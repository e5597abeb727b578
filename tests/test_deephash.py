"""DeepHash: the 13 rows, the schedules, drawn and mined triplets, what features and codes are worth."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from minerlib import cli
from minerlib.trainers import backbones, data, deephash, deephash_measures, deephash_report, images, ranks
from minerlib.trainers.deephash_config import RISING_ALPHA, ROWS, DeepHashConfig, row_config
from minerlib.trainers.deephash_measures import Features

MINED = ("semi-hard", "hard", "random-hard", "hash-alpha-16", "hash-alpha-1-16")
DRAWN = ("margin-1", "margin-2", "embedding-layer")
PRETRAINED = ("vgg16", "vgg19", "resnet18", "resnet50", "resnet101")
TINY = {"width": 1 / 64, "side": 8, "batch_size": 20, "per_class": 2, "epochs": 2, "progress": False}


@pytest.fixture(scope="module")
def digits() -> images.ImageSet:
    return data.read_digits(8)


@pytest.fixture(autouse=True)
def few_digits(monkeypatch, digits) -> None:
    few = digits.rows(torch.arange(75))
    monkeypatch.setattr(data, "read_digits", lambda side: few)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks as small as these only wait for a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_report(monkeypatch) -> None:
    """Pictures take most of the time of runs as small as these."""
    monkeypatch.setattr(deephash_report, "write_row", lambda *arguments: None)


def tiny(row: str, folder: Path, **settings) -> DeepHashConfig:
    short = {"epochs": 3, "epochs_per_alpha": 1, "quantization_after": 2} if ROWS[row].hashes else {}
    return row_config(row, output=folder, **{**TINY, **short, **settings})


def network_of(result: deephash.DeepHashResult) -> dict[str, torch.Tensor]:
    return torch.load(result.files["checkpoint"], weights_only=True)["network"]


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------ rows and schedules


def test_the_rows_are_those_of_table_1_with_its_values():
    assert tuple(ROWS) == (*PRETRAINED, *DRAWN, *MINED)
    published = [
        (57.26, 47.95), (59.26, 51.55), (57.19, 46.19), (53.06, 45.86), (55.40, 51.71),
        (71.60, 61.21), (70.06, 61.15), (63.73, 61.68), (85.06, 86.80), (36.53, 29.44), (84.26, 86.76),
        (79.20, 84.83), (81.90, 79.55),
    ]  # fmt: skip
    assert [(row.knn_percent, row.map_percent) for row in ROWS.values()] == published
    assert [row_config(name).backbone for name in PRETRAINED] == list(PRETRAINED)
    assert [row_config(name).strategy for name in ROWS] == ["none"] * 5 + ["drawn"] * 3 + [
        "semi-hard", "hard", "random-hard", "random-hard", "random-hard",
    ]  # fmt: skip
    assert [row_config(name).margin for name in DRAWN] == [1, 2, 1]
    assert row_config("embedding-layer").embedding == 128
    assert not row_config("resnet101").trains


def test_alpha_rises_every_three_epochs_and_quantisation_comes_after_fifteen():
    rising, constant = row_config("hash-alpha-1-16"), row_config("hash-alpha-16")
    assert rising.epochs == constant.epochs == 20
    assert [rising.alpha(epoch) for epoch in range(1, 21)] == [
        *(alpha for alpha in (1, 2, 4, 8, 16) for _ in range(3)), 16, 16, 16, 16, 16,
    ]  # fmt: skip
    assert {constant.alpha(epoch) for epoch in range(1, 21)} == {16}
    for config in (rising, constant):
        assert [config.quantization(epoch) for epoch in range(1, 21)] == [0.0] * 15 + [10.0] * 5


def test_the_quick_preset_keeps_the_shape_of_the_schedules():
    config = row_config("hash-alpha-1-16", "quick")
    unquantized = [config.alpha(epoch) for epoch in range(1, config.quantization_after + 1)]
    assert tuple(unquantized) == RISING_ALPHA
    assert config.epochs > config.quantization_after
    assert row_config("semi-hard", "quick", epochs=9, width=0.5).epochs == 9


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"loss": "dtsh", "strategy": "drawn"}, "strategy: expected a selector"),
        ({"loss": "softmax"}, "loss: expected one of triplet, dtsh"),
        ({"row": "vgg11"}, "row: expected one of vgg16"),
        ({"strategy": "soft"}, "strategy"),
        ({"alphas": ()}, "alphas: expected at least one"),
        ({"alphas": (1.0, -2.0)}, "alphas"),
        ({"bits": 0}, "bits"),
        ({"embedding": 0}, "embedding"),
        ({"per_class": 0}, "per_class"),
        ({"quantization_weight": float("nan")}, "quantization_weight"),
        ({"width": 0.0}, "width"),
    ],
)
def test_settings_that_no_run_could_use_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        DeepHashConfig(**settings)


# ------------------------------------------------------------------ triplets


def test_drawn_triplets_are_triplets_of_the_whole_set():
    labels = torch.tensor([7, -1, 7, 3, 3, 3, 9, 7] * 30 + [100])
    batches = deephash.drawn_triplets(labels, batch_size=30, seed=1)
    epochs = [torch.cat(batches(epoch)).view(-1, 3) for epoch in (1, 1, 2)]
    assert torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[0], epochs[2])
    assert len(epochs[0]) == len(labels) // 3
    assert all(len(rows) == 30 for rows in batches(1)[:-1])
    anchors, positives, negatives = torch.cat(epochs).unbind(dim=1)
    assert (anchors != positives).all()
    assert torch.equal(labels[anchors], labels[positives])
    assert (labels[anchors] != labels[negatives]).all()
    assert len(epochs[0][:, 0].unique()) == len(epochs[0])
    assert 240 not in anchors  # alone in its class
    chosen = torch.cat([torch.cat(batches(epoch)).view(-1, 3) for epoch in range(60)])
    of_first = chosen[chosen[:, 0] == 0]
    assert len(of_first[:, 1].unique()) > 10
    assert len(of_first[:, 2].unique()) > 10


def test_a_last_batch_that_leaves_a_rank_without_a_triplet_is_left_out(monkeypatch):
    batches = deephash.drawn_triplets(torch.arange(21) % 2, batch_size=9, seed=0)
    assert [len(rows) for rows in batches(1)] == [9, 9, 3]
    monkeypatch.setattr(ranks, "current", lambda: ranks.Ranks(1, 2))
    assert [len(rows) for rows in batches(1)] == [9, 9]


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_triplets_cannot_be_drawn_without_two_classes_and_a_pair(labels):
    with pytest.raises(ValueError, match=r"^data: expected two classes"):
        deephash.drawn_triplets(torch.tensor(labels), 30, 0)


def test_every_step_of_every_selector_is_validated_and_both_miners_train_the_same_bits(tmp_path, no_report):
    """The second epoch of rows that hash has another alpha, and is quantised."""
    for row in MINED:
        short = {"epochs": 2, "quantization_after": 1} if ROWS[row].hashes else {"epochs": 1}
        fast = deephash.train(tiny(row, tmp_path / "fast" / row, validate=True, **short))
        naive = deephash.train(tiny(row, tmp_path / "naive" / row, miner_backend="reference", **short))
        assert fast.mining.validated_steps == fast.mining.steps == len(fast.history["step"]) >= 3
        assert fast.mining.mismatches == 0
        assert fast.mining.validated_triplets == sum(fast.history["triplets"]) > 0, row
        assert same_bits(network_of(fast), network_of(naive)), row
        assert fast.measures == naive.measures
        assert fast.mining.selector_steps > 0
        assert 0 < fast.mining.share < 1


def test_drawn_rows_train_and_mine_nothing(tmp_path, no_report):
    first, second = (deephash.train(tiny(row, tmp_path / row, learning_rate=1e-2)) for row in DRAWN[1:])
    assert first.mining.steps == 0
    assert first.history["total"][-1] != first.history["total"][0] > 0
    width = network_of(first)[next(reversed(network_of(first)))].shape
    assert network_of(second)[next(reversed(network_of(second)))].shape == (128,)
    assert width != (128,)


def test_the_total_is_the_triplets_part_until_quantisation_comes_on(tmp_path, no_report):
    result = deephash.train(tiny("hash-alpha-16", tmp_path, bits=6))
    history = {name: np.array(values) for name, values in result.history.items()}
    before = history["epoch"] <= 2
    assert before.any()
    assert (~before).any()
    np.testing.assert_array_equal(history["total"][before], history["triplet"][before])
    quantized = history["triplet"] + 10 * history["quantization"]
    np.testing.assert_allclose(history["total"][~before], quantized[~before], rtol=1e-6)
    assert (history["quantization"] > 0).all()
    assert result.unquantized is not None
    assert result.unquantized != result.measures


def test_a_resumed_run_gives_the_same_bits_and_keeps_what_was_measured_between(tmp_path, no_report):
    settings = {"epochs": 4}
    whole = deephash.train(tiny("hash-alpha-1-16", tmp_path / "whole", **settings))
    deephash.train(tiny("hash-alpha-1-16", tmp_path / "parts", epochs=3))
    parts = deephash.train(tiny("hash-alpha-1-16", tmp_path / "parts", resume=True, **settings))
    assert same_bits(network_of(whole), network_of(parts))
    assert (parts.measures, parts.unquantized) == (whole.measures, whole.unquantized)


# ------------------------------------------------------------------ weights


def test_a_named_weights_file_is_measured_untrained_and_folders_are_searched(tmp_path):
    network = backbones.backbone("resnet18").network[1]
    state = network.state_dict() | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    file = tmp_path / "resnet18-0123abcd.pth"
    torch.save(state, file)
    config = tiny("resnet18", tmp_path / "out", weights=str(tmp_path), side=32)
    result = deephash.train(config)
    assert result.origin == f"weights of {file}"
    assert result.history == {}
    assert not result.files["checkpoint"].exists()
    assert set(result.measures) == set(deephash_measures.MEASURES)
    with pytest.raises(backbones.NoWeights, match=r"resnet50\.pth: expected the weights of resnet50"):
        deephash.train(tiny("resnet50", tmp_path / "out", weights=str(tmp_path)))
    with pytest.raises(ValueError, match="width: expected 1"):
        deephash.train(tiny("semi-hard", tmp_path / "out", weights=str(file)))


def test_rows_that_train_start_from_scratch_where_pretrained_weights_cannot_be_had(monkeypatch):
    def nothing(name, weights):
        raise backbones.NoWeights("no such library")

    monkeypatch.setattr(backbones, "_state", nothing)
    small = row_config("semi-hard", width=1.0)
    assert deephash.network(small).origin == "from scratch"
    with pytest.raises(backbones.NoWeights, match="no such library"):
        deephash.network(row_config("resnet18"))
    with pytest.raises(backbones.NoWeights, match="weights are none"):
        deephash.network(row_config("resnet18", weights="none"))


# ------------------------------------------------------------------ measures and pictures


def features_of(rows: torch.Tensor, labels: torch.Tensor, are_codes: bool) -> Features:
    half = len(rows) // 2
    return Features(rows[:half], labels[:half], rows[half:], labels[half:], are_codes)


def test_features_apart_score_everything_and_codes_are_taken_around_the_mean():
    labels = torch.arange(40) % 2
    rows = torch.stack([5.0 + labels, 6.0 - labels, 5.0 + labels], dim=1)  # all of one sign
    config = DeepHashConfig(neighbours=3)
    around = deephash_measures.measure(features_of(rows, labels, are_codes=False), config)
    assert around == dict.fromkeys(deephash_measures.MEASURES, 100.0) | {
        "code_map_script": around["code_map_script"]
    }
    as_they_are = deephash_measures.measure(features_of(rows, labels, are_codes=True), config)
    assert as_they_are["knn"] == 100
    assert as_they_are["code_knn"] == 50  # all codes are one: the first of the database win
    assert as_they_are["code_map"] < 80


def test_measures_are_those_of_brute_force(digits):
    generator = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(60, 9, generator=generator), torch.arange(60) % 3
    rows[:, 0] += 2 * labels
    found = deephash_measures.measure(features_of(rows, labels, are_codes=True), DeepHashConfig(neighbours=1))
    database, queries = rows[:30].double(), rows[30:].double()
    nearest = torch.cdist(queries, database).argsort(dim=1)
    relevant = (labels[:30][nearest] == labels[30:, None]).double()
    precision = relevant.cumsum(dim=1) / torch.arange(1, 31)
    assert found["knn"] == pytest.approx(100 * relevant[:, 0].mean().item())
    average = (precision * relevant).sum(dim=1) / relevant.sum(dim=1)
    assert found["map"] == pytest.approx(100 * average.mean().item())
    bits = [rows_ > 0 for rows_ in (database, queries)]
    apart = (bits[1][:, None] != bits[0][None]).sum(dim=2)
    first = apart.argsort(dim=1, stable=True)[:, 0]
    assert found["code_knn"] == pytest.approx(
        100 * (labels[:30][first] == labels[30:]).double().mean().item()
    )
    assert abs(found["code_map"] - found["code_map_script"]) < 5


@pytest.mark.parametrize("are_codes", [False, True])
def test_collapsed_features_still_give_a_picture(tmp_path, are_codes):
    features = features_of(torch.zeros(24, 4), torch.arange(24) % 3, are_codes)
    deephash_measures.plot_tsne(tmp_path / "tsne.png", features, ("a", "b", "c"), 2**63, "collapsed")
    assert (tmp_path / "tsne.png").read_bytes().startswith(b"\x89PNG")
    assert deephash_measures.tsne(torch.rand(3, 4), 0).shape == (3, 2)


# ------------------------------------------------------------------ the command


OPTIONS = ["--width", "0.015625", "--side", "8", "--batch-size", "20", "--per-class", "2", "--no-progress"]


def test_one_command_gives_a_table_of_all_rows(tmp_path, capsys):
    command = ["train", "deephash", "--sweep", "rows", "--preset", "quick", *OPTIONS, "--epochs", "1",
               "--quantization-after", "0", "--validate", "--output", str(tmp_path)]  # fmt: skip
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert shown.count("skipped [") == len(PRETRAINED)
    assert "torchvision" in shown
    assert ", 0 mismatches" in shown
    with (tmp_path / "table1.csv").open(newline="") as stream:
        rows = {row["row"]: row for row in csv.DictReader(stream)}
    assert list(rows) == [row.title for row in ROWS.values()]
    for name, row in ROWS.items():
        assert (rows[row.title]["mAP, codes, script"] == "") == (name in PRETRAINED)
        assert rows[row.title]["network"] == (
            "from scratch" if name not in PRETRAINED else rows[row.title]["network"]
        )
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png") == 1 + len(DRAWN) + len(MINED)
    assert "Share of a training step spent mining" in page
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoint.pt")}
    assert len(times) == len(DRAWN) + len(MINED)
    assert cli.main([*command, "--resume"]) == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert capsys.readouterr().out == shown


def test_the_papers_values_stand_beside_those_of_its_data():
    measures = dict.fromkeys(deephash_measures.MEASURES, 50.0)
    found = {"measures": measures, "unquantized": dict.fromkeys(measures, 60.0), "origin": "from scratch"}
    outcomes = {"vgg16": {"skipped": "no weights"}, "hash-alpha-1-16": found}
    cases = {name: row_config(name, data="cifar-10") for name in outcomes}
    table = deephash_report.measures_table(cases, outcomes)
    assert tuple(table.columns)[:5] == ("row", "KNN accuracy", "KNN accuracy (paper)", "mAP", "mAP (paper)")
    assert list(table.rows[0][:5]) == ["VGG16", None, 57.26, None, 47.95]
    assert list(table.rows[1][:5]) == ["hashing, alpha 1 to 16", 60.0, 81.90, 60.0, 79.55]
    assert list(table.rows[2][:5]) == ["hashing, alpha 1 to 16, then quantised", 50.0, None, 50.0, None]
    assert [row[-2] for row in table.rows] == [None, 15, 20]
    assert table.note.endswith("[1] no weights")
    ours = deephash_report.measures_table({name: row_config(name) for name in outcomes}, outcomes)
    assert len(ours.columns) == 8


def test_a_row_ends_with_its_figures_and_files(tmp_path, capsys):
    options = ["--row", "hash-alpha-1-16", "--epochs", "2", "--quantization-after", "1", "--alphas", "1,4"]
    assert cli.main(["train", "deephash", *options, *OPTIONS, "--validate", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for text in ("alpha 1 to 16, then quantised", "0 mismatches", "% of a training step", "from scratch"):
        assert text in shown
    assert {path.name for path in tmp_path.iterdir()} == {
        "checkpoint.pt", "metrics.csv", "summary.json", "tsne.png", "losses.png", "report.html",
    }  # fmt: skip
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["config"]["alphas"] == [1.0, 4.0]
    assert summary["unquantized_percent"].keys() == summary["measures_percent"].keys()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--row", "alexnet"], "row: expected one of"),
        (["--alphas", "1,x"], "alphas: expected numbers"),
        (["--sweep", "rows", "--margin", "2"], "margin: every row of the sweep has its own"),
        (["--sweep", "rows", "--row", "hard"], "row: every row of the sweep has its own"),
        (["--row", "resnet101", "--weights", "none"], "resnet101 is measured as it was pretrained"),
        (["--weights", "missing.pth", "--width", "1"], "missing.pth"),
        (["--loss", "dtsh", "--strategy", "drawn"], "strategy"),
        (["--backbone", "alexnet"], "backbone: expected one of"),
        (["--backend", "abacus"], "backend"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(tmp_path, capsys, options, named):
    assert cli.main(["train", "deephash", *OPTIONS, "--output", str(tmp_path / "out"), *options]) == 2
    message = capsys.readouterr().err
    assert named in message
    assert message.startswith("minerlib: error: ")
    assert message.count("\n") == 1
