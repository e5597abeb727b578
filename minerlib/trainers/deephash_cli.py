"""`python -m minerlib train deephash`: its options, one row or all 13 of Table 1, and what is printed."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from minerlib.trainers import command
from minerlib.trainers.command import add
from minerlib.trainers.deephash_config import (
    LOSSES,
    PRESETS,
    ROWS,
    STRATEGIES,
    DeepHashConfig,
    row_config,
)

if TYPE_CHECKING:
    from minerlib.trainers.deephash import DeepHashResult

SWEEPS = ("rows",)


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
    from minerlib.trainers import deephash_report, report

    config, mining, files = result.config, result.mining, result.files
    outcomes = {config.row: deephash_report.outcome(result)}
    trained = f"{config.epochs} epochs in {result.seconds:.0f} s" if config.trains else "not trained"
    lines = [
        report.text_table(deephash_report.measures_table({config.row: config}, outcomes)),
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


def _cases(preset: str, given: Mapping[str, Any]) -> dict[str, DeepHashConfig]:
    """Every row of Table 1 under what was given, each in a folder of its own."""
    of_rows = {"row"}.union(*(row.settings for row in ROWS.values()))
    for name in sorted(of_rows & given.keys()):
        raise ValueError(f"{name}: every row of the sweep has its own, got {given[name]!r}")
    cases = {name: row_config(name, preset, **given) for name in ROWS}
    return {name: replace(case, output=case.output / name) for name, case in cases.items()}


def _sweep(config: DeepHashConfig, cases: Mapping[str, DeepHashConfig]) -> str:
    from minerlib.trainers import common, deephash, deephash_report, ranks
    from minerlib.trainers.backbones import NoWeights
    from minerlib.trainers.sweep import run_cases

    common.prepare_output(config.output)
    outcomes = run_cases(cases, deephash.train, deephash_report.outcome, skip=(NoWeights,))
    return deephash_report.write_sweep(config, cases, outcomes) if ranks.current().main else ""
