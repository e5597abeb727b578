"""`minerlib train ...`: the options that all trainers share, and how a command ends."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from minerlib.trainers.settings import Presets, Settings

_NEEDED = {
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "scipy": "scipy",
    "jinja2": "jinja2",
}

DATA = "digits, crchistophenotypes, nct-crc-he-100k, cifar-10, or folder: any folder of class folders"

Config = TypeVar("Config", bound=Settings)


def add_common(
    parser: argparse.ArgumentParser,
    default: Settings,
    presets: Presets,
    strategies: tuple[str, ...],
) -> None:
    """The options of `Settings`. What is not given keeps the preset's value, or else the default's."""
    plain = parser.add_argument
    plain("--preset", choices=tuple(presets), default="paper", help="settings to start from (default: paper)")
    add(parser, "--data", str, "NAME", f"{DATA} (default: {default.data})")
    add(parser, "--data-folder", Path, "DIR", "where the data set lies; the digits need none")
    add(parser, "--cache", Path, "DIR", "where decoded images are kept (default: the user's cache folder)")
    add(parser, "--held-out", float, "SHARE", "share of each class held out (default: the data set's own)")
    add(parser, "--side", int, "PIXELS", "of an image's side (default: the trainer's own, or the data set's)")
    add(parser, "--epochs", int, "N", f"epochs in all, resumed ones included (default: {default.epochs})")
    add(parser, "--batch-size", int, "N", f"images a step, over all ranks (default: {default.batch_size})")
    add(parser, "--learning-rate", float, "LR", f"of Adam (default: {default.learning_rate})")
    add(parser, "--strategy", str, "NAME", f"{', '.join(strategies)} (default: {default.strategy})")
    add(parser, "--margin", float, "M", f"of the triplets (default: {default.margin})")
    add(parser, "--seed", int, "N", f"of split, weights, order and mining (default: {default.seed})")
    add(parser, "--device", str, "NAME", f"as torch names it (default: {default.device})")
    add(parser, "--output", Path, "DIR", f"folder to write into (default: {default.output})")
    plain(
        "--amp", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS,
        help="networks in bfloat16, where torch thinks it safe; mining and losses stay in float32",
    )  # fmt: skip
    plain(
        "--backend", dest="miner_backend", metavar="NAME", default=argparse.SUPPRESS,
        help="backend that chooses the triplets (default: auto)",
    )  # fmt: skip
    plain(
        "--validate", action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS,
        help="run the naive miner beside the fast one on every step and require the same triplets",
    )  # fmt: skip
    plain("--resume", action="store_true", help="go on from the checkpoints in the output folder")
    plain("--no-progress", dest="progress", action="store_false", help="no progress bar")


def add(parser: argparse.ArgumentParser, flag: str, kind: type, metavar: str, text: str, **more: Any) -> None:
    """An option that is absent from the namespace unless given, so that presets know what was given."""
    parser.add_argument(flag, type=kind, metavar=metavar, default=argparse.SUPPRESS, help=text, **more)


def settings(args: argparse.Namespace, config: type[Config], presets: Presets, **parsed: Any) -> Config:
    """The preset, with what was given beside it; `parsed` holds options that the trainer reads itself."""
    given = {field.name: getattr(args, field.name) for field in fields(config) if field.name in args}
    return config(**{**presets[args.preset], **given, **parsed})


def execute(trainer: str, config: Settings, work: Callable[[], str]) -> int:
    """Do the work, among the ranks that torchrun started if it did, and print what it returns.

    The exit code is 0 when done, 1 when two miners disagreed, 2 for what the user can mend (in one line), and
    130 when interrupted.
    """
    missing = [name for module, name in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        return fail(f"train {trainer} needs {' and '.join(missing)}: pip install 'minerlib[trainers]'")
    from minerlib.trainers import ranks
    from minerlib.trainers.validation import MinerMismatch

    try:
        with ranks.process_group(config.device):
            said = work()
            if ranks.current().main:
                print(said)
    except MinerMismatch as mismatch:
        record = mismatch.record
        compared = f"{record.validated_steps} steps and {record.validated_triplets} triplets compared"
        print(f"minerlib: the miners disagree: {mismatch}; {compared}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"minerlib: interrupted; --resume goes on from what is in {config.output}", file=sys.stderr)
        return 130
    return 0


def fail(message: object) -> int:
    """One line on stderr; the exit code of a user's mistake."""
    print(f"minerlib: error: {' '.join(str(message).split())}", file=sys.stderr)
    return 2
