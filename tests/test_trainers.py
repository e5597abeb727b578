"""JTANet: the networks of Table 1, the losses, validated mining, exact resumption, what a run leaves."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import minerlib
from minerlib import cli
from minerlib.results import Triplets
from minerlib.trainers import common, data, images, jtanet, networks
from minerlib.trainers.jtanet_config import PRESETS, JTANetConfig, parse_weights
from minerlib.trainers.validation import MinerMismatch, MiningRecord, StepMiner, step_seed

SIAMCODER_TABLE = [
    ("Conv2d", 64, 64), ("BatchNorm2d", 64, 64), ("LeakyReLU", 64, 64), ("MaxPool2d", 64, 32),
    ("Conv2d", 128, 32), ("BatchNorm2d", 128, 32), ("LeakyReLU", 128, 32), ("MaxPool2d", 128, 16),
    ("Conv2d", 256, 16), ("BatchNorm2d", 256, 16), ("LeakyReLU", 256, 16), ("MaxPool2d", 256, 8),
    ("Conv2d", 512, 8), ("BatchNorm2d", 512, 8), ("LeakyReLU", 512, 8), ("MaxPool2d", 512, 4),
    ("Conv2d", 1024, 4), ("BatchNorm2d", 1024, 4), ("LeakyReLU", 1024, 4), ("MaxPool2d", 1024, 2),
    ("Conv2d", 1024, 2), ("BatchNorm2d", 1024, 2), ("LeakyReLU", 1024, 2), ("MaxPool2d", 1024, 1),
    ("Conv2d", 48, 1), ("BatchNorm2d", 48, 1), ("LeakyReLU", 48, 1),
]  # fmt: skip
DECODER_TABLE = [
    ("ConvTranspose2d", 1024, 1), ("BatchNorm2d", 1024, 1), ("LeakyReLU", 1024, 1), ("Upsample", 1024, 2),
    ("ConvTranspose2d", 1024, 2), ("BatchNorm2d", 1024, 2), ("LeakyReLU", 1024, 2), ("Upsample", 1024, 4),
    ("ConvTranspose2d", 512, 4), ("BatchNorm2d", 512, 4), ("LeakyReLU", 512, 4), ("Upsample", 512, 8),
    ("ConvTranspose2d", 256, 8), ("BatchNorm2d", 256, 8), ("LeakyReLU", 256, 8), ("Upsample", 256, 16),
    ("ConvTranspose2d", 128, 16), ("BatchNorm2d", 128, 16), ("LeakyReLU", 128, 16), ("Upsample", 128, 32),
    ("ConvTranspose2d", 64, 32), ("BatchNorm2d", 64, 32), ("LeakyReLU", 64, 32), ("Upsample", 64, 64),
    ("ConvTranspose2d", 3, 64), ("BatchNorm2d", 3, 64), ("Tanh", 3, 64),
]  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> images.ImageSet:
    return data.read_digits()


@pytest.fixture(autouse=True)
def few_digits(monkeypatch, digits) -> None:
    """A tenth of the digits: real images, a run of seconds."""
    few = digits.rows(torch.arange(180))
    monkeypatch.setattr(data, "read_digits", lambda side: few)


def tiny(folder: Path, **settings) -> JTANetConfig:
    defaults = {"epochs": 2, "batch_size": 64, "embedding_length": 8, "width": 1 / 32, "progress": False}
    return JTANetConfig(output=folder, **{**defaults, **settings})


def curve(result: jtanet.JTANetResult) -> dict[str, list]:
    return {name: values for name, values in result.history.items() if not name.endswith("_ms")}


def network_of(result: jtanet.JTANetResult) -> dict[str, torch.Tensor]:
    return torch.load(result.files["checkpoint"], weights_only=True)["network"]


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------ networks


def layer_outputs(network: nn.Module, value: torch.Tensor) -> list[tuple[str, int, int]]:
    seen = []
    for layer in network.modules():
        if not list(layer.children()):
            layer.register_forward_hook(
                lambda layer, _, out: (
                    seen.append((type(layer).__name__, out.shape[1], out.shape[2]))
                    if out.shape[2] == out.shape[3]
                    else None
                )
            )
    with torch.no_grad():
        network.eval()(value)
    return seen


def test_networks_are_those_of_table_1_layer_by_layer():
    network = networks.JTANet(embedding_length=48)
    assert layer_outputs(network.siamcoder, torch.zeros(1, 3, 64, 64)) == SIAMCODER_TABLE
    assert layer_outputs(network.decoder, torch.zeros(1, 48)) == DECODER_TABLE


def test_layers_have_the_settings_of_table_1():
    kinds: dict[type, int] = {}
    for layer in networks.JTANet(8, width=1 / 32).modules():
        kinds[type(layer)] = kinds.get(type(layer), 0) + 1
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
            assert layer.bias is None
        elif isinstance(layer, nn.LeakyReLU):
            assert layer.negative_slope == 0.2
        elif isinstance(layer, nn.MaxPool2d):
            assert (layer.kernel_size, layer.stride) == (2, 2)
        elif isinstance(layer, nn.Upsample):
            assert (layer.scale_factor, layer.mode) == (2, "bilinear")
    assert (kinds[nn.Conv2d], kinds[nn.ConvTranspose2d]) == (7, 7)
    assert (kinds[nn.BatchNorm2d], kinds[nn.LeakyReLU], kinds[nn.Tanh]) == (14, 13, 1)


def test_width_narrows_the_inner_layers_alone():
    network = networks.JTANet(embedding_length=5, width=0.25)
    features, images = network(torch.rand(2, 3, 64, 64))
    assert features.shape == (2, 5)
    assert images.shape == (2, 3, 64, 64)
    assert network.siamcoder.layers[0][0].out_channels == 16
    assert images.abs().max() <= 1
    with pytest.raises(ValueError, match="width"):
        networks.Siamcoder(5, width=0.0)


# ------------------------------------------------------------------ data


def test_images_cover_the_range_of_tanh(digits):
    pixels = images.unit_range(digits.images[:50])
    assert pixels.shape == (50, 3, 64, 64)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert torch.equal(pixels[:, 0], pixels[:, 2])


def test_the_split_is_stratified_disjoint_and_drawn_by_the_seed(digits):
    split = images.stratified_split(digits, 0.25, seed=1)
    for label in range(10):
        members = int((digits.labels == label).sum())
        assert int((split.held_out.labels == label).sum()) == round(0.25 * members)
    assert len(split.train) + len(split.held_out) == len(digits)
    known = {image.numpy().tobytes() for image in split.train.images}
    assert not any(image.numpy().tobytes() in known for image in split.held_out.images)
    again, other = (images.stratified_split(digits, 0.25, seed=seed) for seed in (1, 2))
    assert torch.equal(again.held_out.images, split.held_out.images)
    assert not torch.equal(other.held_out.labels, split.held_out.labels)


def test_unknown_data_and_bad_shares_are_refused():
    with pytest.raises(ValueError, match="data: expected one of digits"):
        data.load(JTANetConfig(data="imagenet"))
    with pytest.raises(ValueError, match="held_out"):
        JTANetConfig(held_out=1.0)


# ------------------------------------------------------------------ losses


@pytest.mark.parametrize("reduction", ["sum", "hinge-of-sums"])
def test_the_total_is_the_weighted_sum_of_the_three_losses(reduction):
    generator = torch.Generator().manual_seed(0)
    images, drawn = (torch.rand(6, 3, 64, 64, generator=generator).double() for _ in range(2))
    features = torch.randn(6, 4, generator=generator).double()
    units = features / features.norm(dim=1, keepdim=True)
    anchors, positives, negatives = [0, 1, 2], [1, 0, 3], [4, 5, 0]
    config = JTANetConfig(weights=(2.0, 3.0, 5.0), reduction=reduction)
    triplets = Triplets(*map(torch.tensor, (anchors, positives, negatives)))
    terms = jtanet.loss_terms(images, drawn, features, units, triplets, config)

    ae = sum(((images[i] - drawn[i]) ** 2).mean() for i in range(6))
    pairs = zip(anchors * 2, positives + negatives, strict=True)
    apart = [((units[a] - units[b]) ** 2).sum() for a, b in pairs]
    hinges = [max(apart[i] - apart[i + 3] + 0.5, 0) for i in range(3)]
    siamese = sum(hinges) if reduction == "sum" else max(sum(apart[:3]) - sum(apart[3:]) + 0.5, 0)
    fr = sum((features[i] ** 2).sum() for i in range(6))
    for name, expected in (
        ("ae", ae),
        ("siamese", siamese),
        ("fr", fr),
        ("total", 2 * ae + 3 * siamese + 5 * fr),
    ):
        assert terms[name].item() == pytest.approx(float(expected), rel=1e-12), name


def test_defaults_are_the_settings_of_the_paper():
    config = JTANetConfig()
    assert (config.learning_rate, config.epochs, config.batch_size, config.margin) == (1e-3, 50, 256, 0.5)
    assert (config.weights, config.width) == ((1, 1, 1), 1.0)


# ------------------------------------------------------------------ mining with validation


def test_validation_compares_every_step_and_finds_no_mismatch(tmp_path):
    result = jtanet.train(tiny(tmp_path, validate=True))
    mining = result.mining
    assert mining.validated_steps == mining.steps == len(result.history["step"]) == 2 * 3
    assert mining.validated_triplets == sum(result.history["triplets"]) > 0
    assert mining.mismatches == 0
    assert mining.naive_seconds > mining.fast_seconds > 0


def planted(monkeypatch, change) -> None:
    """Let the fast miner answer wrongly from its fourth call on (the first is the warm-up)."""
    honest, calls = minerlib.mine, []

    def dishonest(*args, backend, **options):
        triplets = honest(*args, backend=backend, **options)
        calls.append(backend)
        return change(triplets) if backend == "auto" and calls.count("auto") == 4 else triplets

    monkeypatch.setattr(minerlib, "mine", dishonest)


def test_a_wrong_triplet_stops_the_run_with_its_step_and_place(tmp_path, monkeypatch):
    def wrong(triplets):
        triplets.negatives[7] += 1
        return triplets

    planted(monkeypatch, wrong)
    with pytest.raises(MinerMismatch, match=r"^step 3: triplet 7 is \(\d+, \d+, \d+\) by auto") as caught:
        jtanet.train(tiny(tmp_path, validate=True))
    record = caught.value.record
    assert (record.mismatches, record.validated_steps) == (1, 3)


def test_a_missing_triplet_stops_the_run(tmp_path, monkeypatch):
    planted(monkeypatch, lambda triplets: Triplets(*(index[:-1] for index in triplets)))
    with pytest.raises(MinerMismatch, match=r"step 3: triplet \d+ is missing by auto"):
        jtanet.train(tiny(tmp_path, validate=True))


def test_a_mismatch_ends_the_command_with_one_line(tmp_path, monkeypatch, capsys):
    planted(monkeypatch, lambda triplets: Triplets(*(index[1:] for index in triplets)))
    assert cli.main(["train", "jtanet", *NARROW, "--validate", "--output", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("minerlib: the miners disagree: step 3: triplet 0 is")
    assert message.count("\n") == 1


@pytest.mark.parametrize("strategy", ["hard", "random-hard", "semi-hard"])
def test_the_curve_is_the_same_whichever_miner_chose(tmp_path, strategy):
    fast = jtanet.train(tiny(tmp_path / "fast", strategy=strategy))
    naive = jtanet.train(
        tiny(tmp_path / "naive", strategy=strategy, miner_backend="reference", validate=True)
    )
    assert curve(fast) == curve(naive)
    assert same_bits(network_of(fast), network_of(naive))
    assert fast.precision == naive.precision
    assert naive.mining.mismatches == 0
    assert fast.history["total"][-1] != fast.history["total"][0]


def test_a_step_mines_alike_whenever_it_is_asked():
    rows, labels = torch.randn(40, 6), torch.arange(40) % 4
    miner = StepMiner(
        "random-hard",
        seed=3,
        backend="auto",
        validate=False,
        record=MiningRecord(),
        margin=5.0,
        pairs="combinations",
    )
    first = [miner(rows, labels, step) for step in range(3)]
    again = [miner(rows, labels, step) for step in (2, 0, 1)]
    assert torch.equal(first[2].negatives, again[0].negatives)
    assert torch.equal(first[0].negatives, again[1].negatives)
    assert not torch.equal(first[0].negatives, first[1].negatives)
    assert len({step_seed(seed, step) for seed in range(20) for step in range(20)}) == 400


# ------------------------------------------------------------------ checkpoints


def test_a_resumed_run_gives_the_same_bits(tmp_path):
    whole = jtanet.train(tiny(tmp_path / "whole", epochs=3))
    jtanet.train(tiny(tmp_path / "parts", epochs=1))
    torch.rand(7)  # the caller's random numbers have no say
    parts = jtanet.train(tiny(tmp_path / "parts", epochs=3, resume=True))
    assert curve(parts) == curve(whole)
    assert same_bits(network_of(parts), network_of(whole))
    assert parts.precision == whole.precision
    assert parts.mining.steps == whole.mining.steps


def test_an_interrupted_run_goes_on_from_its_last_epoch(tmp_path, monkeypatch, capsys):
    whole = jtanet.train(tiny(tmp_path / "whole"))
    losses, calls = jtanet.loss_terms, []

    def interrupted(*arguments):
        calls.append(None)
        if len(calls) == 5:  # in the second epoch
            raise KeyboardInterrupt
        return losses(*arguments)

    monkeypatch.setattr(jtanet, "loss_terms", interrupted)
    command = ["train", "jtanet", *NARROW, "--output", str(tmp_path / "parts")]
    assert cli.main(command) == 130
    assert "--resume" in capsys.readouterr().err
    assert cli.main([*command, "--resume"]) == 0
    checkpoint = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    assert same_bits(checkpoint["network"], network_of(whole))


def test_training_leaves_the_callers_random_numbers_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    jtanet.train(tiny(tmp_path, epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_a_checkpoint_is_refused_under_other_settings_or_when_damaged(tmp_path):
    path = jtanet.train(tiny(tmp_path, epochs=2)).files["checkpoint"]
    with pytest.raises(ValueError, match=r"^margin: the run to resume had 0\.5, got 0\.25"):
        jtanet.train(tiny(tmp_path, margin=0.25, resume=True))
    with pytest.raises(ValueError, match=r"^epochs: expected at least the 2 already trained, got 1"):
        jtanet.train(tiny(tmp_path, epochs=1, resume=True))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="expected a whole checkpoint"):
        jtanet.train(tiny(tmp_path, resume=True))
    torch.save({"network": {}}, path)
    with pytest.raises(ValueError, match="expected a checkpoint of minerlib jtanet"):
        jtanet.train(tiny(tmp_path, resume=True))


def test_a_failed_write_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    common.save_checkpoint(path, {"epochs": 1})

    def fails(state, stream):
        stream.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(Exception, match="disk full"):
        common.save_checkpoint(path, {"epochs": 2})
    monkeypatch.undo()
    assert torch.load(path) == {"epochs": 1}
    assert list(tmp_path.iterdir()) == [path]


# ------------------------------------------------------------------ what a run finds and leaves behind


def test_precision_is_that_of_held_out_queries_among_training_features(tmp_path):
    config = tiny(tmp_path, epochs=1)
    result = jtanet.train(config)
    assert list(result.precision) == list(range(5, 101, 5))
    split = data.load(config)
    network = networks.JTANet(config.embedding_length, config.width)
    network.load_state_dict(network_of(result))
    with torch.no_grad():
        encoder = network.eval().siamcoder
        database, queries = (
            encoder(images.unit_range(part.images)) for part in (split.train, split.held_out)
        )
    ranking = torch.cdist(queries.double(), database.double()).argsort(dim=1)
    relevant = split.train.labels[ranking] == split.held_out.labels[:, None]
    for k, percent in result.precision.items():
        assert percent == pytest.approx(100 * relevant[:, :k].double().mean().item(), abs=0.2)


def test_training_learns(tmp_path):
    untrained = jtanet.train(tiny(tmp_path / "a", epochs=1, learning_rate=1e-9, width=1 / 8, validate=False))
    trained = jtanet.train(tiny(tmp_path / "b", epochs=12, width=1 / 8))
    assert trained.precision[5] > untrained.precision[5] + 10
    assert trained.history["total"][-2] < trained.history["total"][0] / 2


def test_tables_and_pictures_are_written(tmp_path):
    result = jtanet.train(tiny(tmp_path / "new" / "folder", validate=True))
    with result.files["metrics"].open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == [
        "epoch",
        "step",
        "images",
        "ae",
        "siamese",
        "fr",
        "total",
        "triplets",
        "mining_ms",
        "step_ms",
    ]
    assert [float(row["total"]) for row in rows] == result.history["total"]
    assert [int(row["epoch"]) for row in rows] == [1, 1, 1, 2, 2, 2]
    sizes = [int(row["images"]) for row in rows]
    assert sizes == [64, 64, result.train_images - 128] * 2
    steps, losses = jtanet.loss_curves(result.history)  # a shorter batch has smaller sums
    assert (steps, len(losses["AE loss"])) == ([1, 2, 4, 5], 4)
    summary = json.loads(result.files["summary"].read_text())
    assert summary["precision_percent"]["5"] == result.precision[5]
    assert summary["mining"] == dataclasses.asdict(result.mining)
    assert summary["config"]["embedding_length"] == 8
    for picture in ("precision", "losses"):
        content = result.files[picture].read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {
        "checkpoint.pt", "metrics.csv", "summary.json", "precision.png", "losses.png", "report.html",
    }  # fmt: skip


def test_a_last_batch_of_one_image_is_left_out(tmp_path):
    split = data.load(JTANetConfig())
    result = jtanet.train(tiny(tmp_path, epochs=1, batch_size=len(split.train) - 1))
    assert len(result.history["step"]) == 1


def test_a_batch_without_triplets_trains_on(tmp_path, monkeypatch):
    one_class = images.ImageSet(
        torch.zeros(40, 3, 64, 64, dtype=torch.uint8), torch.zeros(40).long(), ("only",)
    )
    monkeypatch.setattr(data, "read_digits", lambda side: one_class)
    result = jtanet.train(tiny(tmp_path, epochs=1, batch_size=16, validate=True))
    assert result.history["triplets"] == [0, 0]
    assert np.isfinite(result.history["total"]).all()
    assert list(result.precision) == [5, 10, 15, 20, 25, 30]


# ------------------------------------------------------------------ the command

NARROW = [
    "--width",
    "0.03125",
    "--epochs",
    "2",
    "--batch-size",
    "64",
    "--embedding-length",
    "8",
    "--no-progress",
]


def test_the_command_ends_with_the_figures(tmp_path, capsys):
    options = ["--weights", "1:5:1", "--reduction", "mean", "--strategy", "random-hard", "--validate"]
    assert cli.main(["train", "jtanet", *NARROW, *options, "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    for text in (
        "% at 5",
        "% at 10",
        "% at 100",
        "6 steps",
        "0 mismatches",
        "naive miner",
        "of a step",
        "width 0.03125",
    ):
        assert text in shown.out
    assert str(tmp_path / "precision.png") in shown.out
    assert "error" not in shown.err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["config"]["weights"] == [1.0, 5.0, 1.0]
    assert summary["config"]["strategy"] == "random-hard"


def test_presets_are_settings_and_what_is_given_wins(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        jtanet, "train", lambda config: seen.append(config) or (_ for _ in ()).throw(OSError("enough"))
    )
    for given in ([], ["--epochs", "7", "--no-validate"]):
        assert cli.main(["train", "jtanet", "--preset", "demo", "--output", str(tmp_path), *given]) == 2
    assert seen[0] == JTANetConfig(**PRESETS["demo"], output=tmp_path, preset="demo")
    assert seen[0].validate
    assert (seen[1].epochs, seen[1].validate) == (7, False)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--weights", "1:1"], "weights"),
        (["--weights", "a:b:c"], "weights"),
        (["--weights", "1:nan:1"], "weights"),
        (["--strategy", "soft"], "strategy"),
        (["--reduction", "median"], "reduction"),
        (["--backend", "abacus"], "backend"),
        (["--data", "imagenet"], "data"),
        (["--device", "toaster"], "device"),
        (["--epochs", "0"], "epochs"),
        (["--epochs", "many"], "epochs"),
        (["--batch-size", "1"], "batch_size"),
        (["--width", "0"], "width"),
        (["--margin", "-1"], "margin"),
        (["--learning-rate", "0"], "learning_rate"),
        (["--seed", "-1"], "seed"),
        (["--embedding-length", "0"], "embedding_length"),
        (["--held-out", "0"], "held_out"),
        (["--resume"], "no checkpoint to resume from"),
        (["--preset", "fast"], "preset"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(tmp_path, capsys, options, named):
    try:
        code = cli.main(["train", "jtanet", *NARROW, "--output", str(tmp_path / "out"), *options])
    except SystemExit as end:  # argparse's own way
        code = end.code
    message = capsys.readouterr().err
    assert code == 2
    assert named in message
    assert message.startswith("minerlib: error: ")
    assert message.count("\n") == 1
    assert not (tmp_path / "out" / "metrics.csv").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "taken").write_text("a file")
    for output in (tmp_path / "taken", tmp_path / "taken" / "below"):
        assert cli.main(["train", "jtanet", *NARROW, "--output", str(output)]) == 2
        message = capsys.readouterr().err
        assert "taken" in message
        assert message.count("\n") == 1


def test_a_loss_that_explodes_is_blamed_on_the_learning_rate(tmp_path):
    with pytest.raises(ValueError, match=r"learning_rate: .* step 2"):
        jtanet.train(tiny(tmp_path, learning_rate=1e30))


def test_weights_are_read_as_the_paper_writes_them():
    assert parse_weights("0:1:10") == (0.0, 1.0, 10.0)
    with pytest.raises(ValueError, match="weights"):
        JTANetConfig(weights=(1.0, 2.0))  # type: ignore[arg-type]
