"""`python -m minerlib train jtanet`: its options, its errors, and what it prints at the end."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from minerlib.trainers.jtanet_config import PRESETS, REDUCTIONS, STRATEGIES, JTANetConfig, parse_weights

if TYPE_CHECKING:
    from minerlib.trainers.jtanet import JTANetResult

_NEEDED = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `train jtanet`. What is not given keeps the preset's value, or else JTANetConfig's."""
    add = parser.add_argument
    default = JTANetConfig()
    add("--preset", choices=tuple(PRESETS), default="paper", help="settings to start from (default: paper)")
    _add(parser, "--data", str, "NAME", f"data set (default: {default.data})")
    _add(parser, "--held-out", float, "SHARE", f"share of each class held out (default: {default.held_out})")
    _add(
        parser, "--embedding-length", int, "EL", f"length of a feature (default: {default.embedding_length})"
    )
    _add(parser, "--width", float, "FACTOR", "factor on the inner layers' channels (default: 1, the paper's)")
    _add(parser, "--epochs", int, "N", f"epochs in all, resumed ones included (default: {default.epochs})")
    _add(parser, "--batch-size", int, "N", f"images a step (default: {default.batch_size})")
    _add(parser, "--learning-rate", float, "LR", f"of Adam (default: {default.learning_rate})")
    _add(parser, "--strategy", str, "NAME", f"{', '.join(STRATEGIES)} (default: {default.strategy})")
    _add(parser, "--margin", float, "M", f"between squared distances (default: {default.margin})")
    _add(parser, "--weights", str, "AE:SM:FR", "of autoencoder, triplets, features (default: 1:1:1)")
    _add(parser, "--reduction", str, "NAME", f"{', '.join(REDUCTIONS)} (default: {default.reduction})")
    _add(parser, "--seed", int, "N", f"of split, weights, order and mining (default: {default.seed})")
    _add(parser, "--device", str, "NAME", f"as torch names it (default: {default.device})")
    _add(parser, "--output", Path, "DIR", f"folder to write into (default: {default.output})")
    add(
        "--backend", dest="miner_backend", metavar="NAME", default=argparse.SUPPRESS,
        help="backend that chooses the triplets (default: auto)",
    )  # fmt: skip
    add(
        "--validate", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS,
        help="run the naive miner beside the fast one on every step and require the same triplets",
    )  # fmt: skip
    add("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    add("--no-progress", dest="progress", action="store_false", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Train as the arguments say and print the summary.

    The exit code is 0 when done, 1 when two miners disagreed, 2 for what the user can mend (in one line), and
    130 when interrupted.
    """
    try:
        return _run(_config(args))
    except (ValueError, TypeError, OSError) as error:
        print(f"minerlib: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _run(config: JTANetConfig) -> int:
    missing = [name for module, name in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(f"train jtanet needs {' and '.join(missing)}: pip install 'minerlib[trainers]'")
    from minerlib.trainers import jtanet
    from minerlib.trainers.validation import MinerMismatch

    try:
        print(summary(jtanet.train(config)))
    except MinerMismatch as mismatch:
        record = mismatch.record
        compared = f"{record.validated_steps} steps and {record.validated_triplets} triplets compared"
        print(f"minerlib: the miners disagree: {mismatch}; {compared}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"minerlib: interrupted; --resume goes on from the last epoch in {config.output}", file=sys.stderr
        )
        return 130
    return 0


def summary(result: JTANetResult) -> str:
    """The end of a run in a few lines."""
    config, mining, files = result.config, result.mining, result.files
    shown = {k: value for k, value in result.precision.items() if k in (5, 10, 100)}
    precision = ", ".join(f"{value:.2f} % at {k}" for k, value in shown.items())
    lines = [
        f"JTANet on {config.data}, {config.strategy}, EL {config.embedding_length}, width {config.width:g}",
        f"  trained         {result.history['epoch'][-1]} epochs of {result.train_images} images in "
        f"{result.seconds:.0f} s; {result.held_out_images} images held out",
        f"  mean precision  {precision}",
    ]
    if mining.validated_steps:
        ours, naive = 1e3 * mining.fast_seconds, 1e3 * mining.naive_seconds
        lines += [
            f"  validated       {mining.validated_steps} steps, {mining.validated_triplets:,} triplets, "
            f"{mining.mismatches} mismatches",
            f"  mining          ours {ours:.1f} ms, the naive miner {naive:.0f} ms, {naive / ours:.0f} times",
        ]
    else:
        spent = f"{1e3 * mining.seconds:.1f} ms by backend {config.miner_backend}"
        lines.append(f"  mining          {spent} for {mining.triplets:,} triplets")
    lines += [
        f"  pictures        {files['precision']}, {files['losses']}",
        f"  numbers         {files['metrics']}, {files['summary']}",
    ]
    return "\n".join(lines)


def _add(parser: argparse.ArgumentParser, flag: str, kind: type, metavar: str, text: str) -> None:
    parser.add_argument(flag, type=kind, metavar=metavar, default=argparse.SUPPRESS, help=text)


def _config(args: argparse.Namespace) -> JTANetConfig:
    given = {field.name: getattr(args, field.name) for field in fields(JTANetConfig) if field.name in args}
    if "weights" in given:
        given["weights"] = parse_weights(given["weights"])
    return JTANetConfig(**{**PRESETS[args.preset], **given})
