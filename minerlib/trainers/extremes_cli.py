"""`python -m minerlib train extremes`: its options, and what it prints at the end."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from minerlib.trainers import command
from minerlib.trainers.command import add
from minerlib.trainers.extremes_config import METHODS, PRESETS, SWEEPS, ExtremesConfig

if TYPE_CHECKING:
    from minerlib.trainers.extremes import ExtremesResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `train extremes`."""
    default = ExtremesConfig()
    command.add_common(parser, default, PRESETS, tuple(METHODS))
    parser.add_argument(
        "--sweep", choices=tuple(SWEEPS), metavar="NAME",
        help="all methods, or those of Table I (offline) or of Table II (online), in tables like the paper's",
    )  # fmt: skip
    add(
        parser,
        "--embedding-length",
        int,
        "D",
        f"of embedding and features (default: {default.embedding_length})",
    )
    add(
        parser,
        "--per-class",
        int,
        "M",
        f"images of a class in an online batch (default: {default.per_class})",
    )
    add(parser, "--backbone", str, "NAME", f"resnet18, resnet50, ... (default: {default.backbone})")
    add(parser, "--width", float, "FACTOR", "factor on the backbone's channels (default: 1, the paper's)")
    add(parser, "--weights", str, "FILE", "pretrained weights, or 'torchvision' for its own (default: none)")
    add(
        parser, "--feature-epochs", int, "N", f"of the supervised network (default: {default.feature_epochs})"
    )
    add(
        parser,
        "--mined-share",
        float,
        "SHARE",
        f"of all images: X2, mined offline (default: {default.mined_share})",
    )
    add(
        parser, "--outlier-percentile", float, "P",
        f"distances beyond are no neighbours offline (default: {default.outlier_percentile:g})",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Train as the arguments say and print the summary; exit codes are those of `command.execute`."""
    try:
        config = command.settings(args, ExtremesConfig, PRESETS)
        if args.sweep is not None and "strategy" in args:
            raise ValueError(f"strategy: expected none, as --sweep {args.sweep} runs through its own")
        return command.execute("extremes", config, lambda: _run(config, args.sweep))
    except (ValueError, TypeError, OSError) as error:
        return command.fail(error)


def _run(config: ExtremesConfig, sweep: str | None) -> str:
    if sweep is None:
        from minerlib.trainers import extremes

        return summary(extremes.train(config))
    from minerlib.trainers import extremes_sweep, report

    found = extremes_sweep.sweep(config, sweep)
    tables = [report.text_table(table) for table in found.tables]
    written = ", ".join(path.name for path in found.files.values())
    return "\n\n".join([*tables, f"In {config.output}: {written}"])


def summary(result: ExtremesResult) -> str:
    """The end of a run in a few lines."""
    config, mining, files = result.config, result.mining, result.files
    kind = "offline" if result.method.offline else "online"
    lines = [
        f"{result.method.title} {kind} on {config.data}, {config.backbone} at width {config.width:g}, "
        f"{result.origin}",
        f"  trained     {config.epochs} epochs, {len(result.history.get('step', ()))} steps in "
        f"{result.seconds:.0f} s; {result.train_images} training images, {result.held_out_images} held out",
    ]
    for part in ("train", "test"):
        shown = ", ".join(f"{name} {value:.2f}" for name, value in result.measured[part].items())
        lines.append(f"  {part:<11} {shown} (%)")
    if mining.share is not None:
        lines.append(f"  mining      {100 * mining.share:.2f} % of a step, {mining.triplets:,} triplets")
    if mining.validated_steps:
        where = "one pass over X2" if result.method.offline else f"{mining.validated_steps} steps"
        lines.append(
            f"  validated   {where}, {mining.validated_triplets:,} triplets, {mining.mismatches} mismatches"
        )
    lines += [
        f"  numbers     {files['metrics']}, {files['summary']}",
        f"  all in one  {files['report']}",
    ]
    return "\n".join(lines)
