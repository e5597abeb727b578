"""`python -m minerlib train deephash`: its options, one row or all 13 of Table 1, and what is printed."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minerlib.trainers import command
from minerlib.trainers.command import add
from minerlib.trainers.deephash_config import (
    LOSSES,
    PAPERS_DATA,
    PRESETS,
    ROWS,
    STRATEGIES,
    DeepHashConfig,
    row_config,
)

if TYPE_CHECKING:
    from minerlib.trainers.deephash import DeepHashResult
    from minerlib.trainers.report import Cell, Table

SWEEPS = ("rows",)
_QUANTIZED = ", then quantised"
_NOTE = """Per cent. KNN and mAP over whole rankings: by Euclidean distance, and of codes by Hamming distance,
there mAP as the expectation over all orders of ties, and as the usual script counts.
Codes are the signs of the features, less their mean where no codes were learned."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `train deephash`."""
    default = DeepHashConfig()
    command.add_common(parser, default, PRESETS, STRATEGIES)
    parser.add_argument(
        "--sweep", choices=SWEEPS, help="all 13 rows of Table 1, each in a folder of its own, and one report"
    )
    add(parser, "--row", str, "NAME", f"of Table 1: {', '.join(ROWS)} (default: {default.row})")
    add(parser, "--backbone", str, "NAME", "resnet18, resnet50, resnet101, vgg16, vgg19 (default: the row's)")
    add(
        parser,
        "--weights",
        str,
        "WHAT",
        "auto: pretrained, through torchvision, where they can be had; none; "
        "or a file, or a folder of files, as torchvision publishes them (default: auto)",
    )
    add(parser, "--width", float, "FACTOR", "factor on a backbone's channels that is trained from scratch")
    add(
        parser, "--embedding", int, "LENGTH", "of a layer behind the backbone's features (default: the row's)"
    )
    add(parser, "--loss", str, "NAME", f"{', '.join(LOSSES)} (default: the row's)")
    add(parser, "--bits", int, "N", f"of the codes that are learned (default: {default.bits})")
    add(parser, "--per-class", int, "N", f"images of a class in a batch (default: {default.per_class})")
    add(parser, "--alphas", str, "A,B,...", "of dtsh, one after the other (default: the row's)")
    add(parser, "--epochs-per-alpha", int, "N", f"(default: {default.epochs_per_alpha})")
    add(parser, "--quantization-after", int, "N", f"epochs (default: {default.quantization_after})")
    add(
        parser,
        "--quantization-weight",
        float,
        "W",
        f"from then on (default: {default.quantization_weight:g})",
    )
    add(parser, "--neighbours", int, "N", f"that vote for an image's class (default: {default.neighbours})")
    add(parser, "--queries", int, "N", "held-out images that are looked up (default: all)")


def run(args: argparse.Namespace) -> int:
    """Train as the arguments say and print the summary; exit codes are those of `command.execute`."""
    try:
        given = {
            field.name: getattr(args, field.name) for field in fields(DeepHashConfig) if field.name in args
        }
        if "alphas" in given:
            given["alphas"] = _numbers("alphas", given["alphas"])
        preset = given.pop("preset")
        if args.sweep is None:
            config = row_config(given.pop("row", DeepHashConfig.row), preset, **given)
            return command.execute("deephash", config, lambda: _run(config))
        cases = _cases(preset, given)
        config = row_config(DeepHashConfig.row, preset, **given)
        return command.execute("deephash", config, lambda: _sweep(config, cases))
    except (ValueError, TypeError, OSError) as error:
        return command.fail(error)


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{name}: expected numbers like 1,2,4, got {text!r}") from None


def _run(config: DeepHashConfig) -> str:
    from minerlib.trainers import deephash

    return summary(deephash.train(config))


def summary(result: DeepHashResult) -> str:
    """The end of a run in a few lines."""
    from minerlib.trainers import report

    config, mining, files = result.config, result.mining, result.files
    outcomes = {config.row: outcome(result)}
    trained = f"{config.epochs} epochs in {result.seconds:.0f} s" if config.trains else "not trained"
    lines = [
        report.text_table(measures_table(config, outcomes)),
        f"  network         {config.backbone} {result.origin}, width {config.width:g}; {trained}",
        f"  images          {result.train_images} to train on and search, {result.held_out_images} held out",
    ]
    if mining.validated_steps:
        lines.append(
            f"  validated       {mining.validated_steps} steps, {mining.validated_triplets:,} triplets, "
            f"{mining.mismatches} mismatches"
        )
    if mining.share is not None:
        lines.append(f"  mining          {100 * mining.share:.2f} % of a training step")
    written = ", ".join(str(path) for path in files.values() if path.exists())
    return "\n".join([*lines, f"  files           {written}"])


# ------------------------------------------------------------------ the sweep


def _cases(preset: str, given: Mapping[str, Any]) -> dict[str, DeepHashConfig]:
    """Every row of Table 1 under what was given, each in a folder of its own."""
    of_rows = {"row"}.union(*(row.settings for row in ROWS.values()))
    for name in sorted(of_rows & given.keys()):
        raise ValueError(f"{name}: every row of the sweep has its own, got {given[name]!r}")
    cases = {name: row_config(name, preset, **given) for name in ROWS}
    return {name: replace(case, output=case.output / name) for name, case in cases.items()}


def _sweep(config: DeepHashConfig, cases: Mapping[str, DeepHashConfig]) -> str:
    from minerlib.trainers import common, deephash, ranks
    from minerlib.trainers.backbones import NoWeights
    from minerlib.trainers.sweep import run_cases

    common.prepare_output(config.output)
    outcomes = run_cases(cases, deephash.train, outcome, skip=(NoWeights,))
    return write_sweep(config, cases, outcomes) if ranks.current().main else ""


def outcome(result: DeepHashResult) -> dict[str, Any]:
    """What a row adds to the tables, as JSON can hold it."""
    return {
        "origin": result.origin,
        "measures": result.measures,
        "unquantized": result.unquantized,
        "losses": _mean_by_epoch(result.history),
        "mining": asdict(result.mining),
        "seconds": result.seconds,
        "files": {name: str(path) for name, path in result.files.items() if name == "tsne"},
    }


def _mean_by_epoch(history: Mapping[str, list[Any]]) -> dict[str, float]:
    """The mean loss of every epoch; keys are strings, as JSON has them."""
    losses: dict[str, list[float]] = {}
    for epoch, loss in zip(history.get("epoch", ()), history.get("total", ()), strict=True):
        losses.setdefault(str(epoch), []).append(loss)
    return {epoch: sum(values) / len(values) for epoch, values in losses.items()}


def write_sweep(
    config: DeepHashConfig,
    cases: Mapping[str, DeepHashConfig],
    outcomes: Mapping[str, Mapping[str, Any]],
) -> str:
    """`table1.csv`, `mining.csv`, `losses.png` and `report.html` with all of it; the tables as text."""
    from minerlib.trainers import report
    from minerlib.trainers.validation import MiningRecord

    trained = {name: found for name, found in outcomes.items() if "mining" in found and found["losses"]}
    table = measures_table(config, outcomes)
    records = {ROWS[name].title: MiningRecord(**found["mining"]) for name, found in trained.items()}
    mining = report.mining_table({title: record for title, record in records.items() if record.steps})
    files = {name: config.output / name for name in ("table1.csv", "mining.csv", "losses.png", "report.html")}
    report.write_table(files["table1.csv"], table)
    report.write_table(files["mining.csv"], mining)
    curves = {
        ROWS[name].title: {int(epoch): loss for epoch, loss in found["losses"].items()}
        for name, found in trained.items()
    }
    report.plot_curves(files["losses.png"], curves, "Mean loss of an epoch", "epoch", "loss")
    pictures = [
        report.Picture(
            ROWS[name].title, Path(found["files"]["tsne"]), "The queries by t-SNE, coloured by class."
        )
        for name, found in outcomes.items()
        if "measures" in found
    ]
    losses = report.Picture(
        "Losses", files["losses.png"], "Those of different rows measure different things."
    )
    facts = report.Facts("Settings", _facts(config, cases, outcomes))
    intro = f"DeepHashing using triplet loss, the rows of Table 1, on {config.data}; preset {config.preset}."
    report.write_html(files["report.html"], "DeepHash", intro, [table, mining, losses, *pictures, facts])
    validated = sum(record.validated_steps for record in records.values())
    return "\n".join([
        report.text_table(table),
        "",
        report.text_table(mining),
        "",
        f"validated {validated} steps, {sum(record.mismatches for record in records.values())} mismatches; "
        f"{sum(found.get('seconds', 0) for found in outcomes.values()):.0f} s of training and evaluation",
        f"written: {', '.join(str(path) for path in files.values())}",
    ])  # fmt: skip


def measures_table(
    config: DeepHashConfig,
    outcomes: Mapping[str, Mapping[str, Any]],  # by row
) -> Table:
    """Table 1: the rows in its order, and beneath those that hash what they became under quantisation."""
    from minerlib.trainers import report
    from minerlib.trainers.deephash_measures import MEASURES

    rows: list[list[Cell]] = []
    reasons: list[str] = []
    for name, found in outcomes.items():
        title = ROWS[name].title
        if "skipped" in found:
            reasons.append(found["skipped"])
            rows.append([title, *(None for _ in MEASURES), f"skipped [{len(reasons)}]"])
            continue
        points = {title: found["measures"]}
        if found["unquantized"] is not None:
            points = {title: found["unquantized"], f"{title}{_QUANTIZED}": found["measures"]}
        for part, measures in points.items():
            rows.append([part, *(measures[key] for key in MEASURES), found["origin"]])
    skipped = [f"[{number}] {reason}" for number, reason in enumerate(reasons, start=1)]
    note = "\n".join([_NOTE, _trained_as(config), *skipped])
    columns = ("row", *MEASURES.values(), "network")
    table = report.Table("Table 1", columns, rows, note)
    nothing = [None] * (len(MEASURES) - 2)
    published = {row.title: [row.knn_percent, row.map_percent, *nothing, None] for row in ROWS.values()}
    return report.with_published(table, published, config.data, PAPERS_DATA)


def _trained_as(config: DeepHashConfig) -> str:
    return f"Preset {config.preset}: width {config.width:g}, images of {config.side} x {config.side} pixels."


def _facts(
    config: DeepHashConfig,
    cases: Mapping[str, DeepHashConfig],
    outcomes: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The settings that all rows share, and what each took."""
    own = {"row", "output", *(name for row in ROWS.values() for name in row.settings)}
    shared = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if field.name not in own and len({getattr(case, field.name) for case in cases.values()}) == 1
    }
    took = {
        f"{ROWS[name].title}: epochs, seconds": f"{cases[name].epochs}, {found['seconds']:.0f}"
        for name, found in outcomes.items()
        if "seconds" in found and cases[name].trains
    }
    return shared | took
