"""`minerlib mine --cases ...`: mining a whole data set on the command line, also under torchrun."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minerlib.offline._cases import CASES, HARD, HardNegatives
from minerlib.usage import UsageError, arguments_named

_HARD_OPTIONS = ("count", "skip", "window", "hard_margin", "positive")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of whole data sets, in a group of their own."""
    group = parser.add_argument_group(
        "whole data sets",
        "With --cases instead of --strategy a data set of any size is mined in pieces, in little memory. A "
        "run that ends early leaves OUTPUT.unfinished, and the same command continues it. EMBEDDINGS may be "
        "a .parquet, .arrow or .feather file with the columns embedding and label. torchrun "
        "--nproc-per-node=R -m minerlib mine ... splits the work over ranks.",
    )
    group.add_argument(
        "--cases", nargs="+", choices=CASES, metavar="CASE", help=f"some of {', '.join(CASES)}"
    )
    group.add_argument("--outlier-percentile", default="99", metavar="P",
                       help="leave out what lies beyond, for each anchor; or none (default 99)")  # fmt: skip
    group.add_argument(
        "--chunk-rows", type=int, metavar="N", help="rows taken at a time; answers do not change"
    )
    group.add_argument("--dry-run", action="store_true", help="print what it would take in time and memory")
    group.add_argument("--quiet", action="store_true", help="no progress bar")
    hard = parser.add_argument_group(f"the case {HARD}")
    hard.add_argument("--count", type=int, metavar="K", help="negatives of each anchor (default 3)")
    hard.add_argument("--skip", type=int, metavar="R", help="ranks left out, the nearest ones (default 0)")
    hard.add_argument("--window", type=int, metavar="R", help="rank to stop before")
    hard.add_argument("--hard-margin", type=float, metavar="M",
                      help="take negatives farther than the positive by at least M")  # fmt: skip
    hard.add_argument("--positive", choices=("nearest", "farthest"), help="(default nearest)")


def check_unused(arguments: argparse.Namespace) -> None:
    """Options of whole data sets make no sense with --strategy."""
    if arguments.labels is None:
        raise UsageError("LABELS.npy: expected a file of labels with --strategy")
    for name in ("chunk_rows", "dry_run", *_HARD_OPTIONS):
        if getattr(arguments, name) not in (None, False):
            raise UsageError(f"--{name.replace('_', '-')}: expected together with --cases")


def run(arguments: argparse.Namespace) -> int:
    """Mine, or say what mining would take."""
    from minerlib import offline

    for name in ("reference", "reference_labels"):
        if getattr(arguments, name) is not None:
            raise UsageError(
                f"--{name.replace('_', '-')}: expected together with --strategy, not with --cases"
            )
    options: dict[str, Any] = {
        "outlier_percentile": _percentile(arguments.outlier_percentile),
        "chunk_rows": arguments.chunk_rows,
        "metric": arguments.metric,
        "hard_negatives": _hard_negatives(arguments),
        "backend": arguments.backend,
    }
    rows = arguments.embeddings, arguments.labels, arguments.cases
    sources = {
        "embeddings": str(arguments.embeddings),
        "labels": str(arguments.labels or arguments.embeddings),
        "cases": "--cases",
        "hard_negatives": "--count, --skip, --window, --hard-margin, --positive",
    } | {name: f"--{name.replace('_', '-')}" for name in ("outlier_percentile", "chunk_rows", "seed")}
    with arguments_named(sources), _ranks() as rank:
        if arguments.dry_run:
            if rank == 0:
                print(describe(offline.estimate(*rows, **options)))
            return 0
        start = time.perf_counter()
        try:
            found = offline.mine(
                *rows, **options, seed=arguments.seed, output=arguments.output, progress=not arguments.quiet
            )
        except KeyboardInterrupt:
            raise SystemExit(_interrupted(arguments.output)) from None
        except offline.RankLost as error:
            raise UsageError(f"{error}. {_continue(arguments.output)}") from None
        if rank == 0:
            counts = ", ".join(f"{count} {case}" for case, count in found.counts.items())
            print(f"{counts} triplets in {time.perf_counter() - start:.1f} s: {arguments.output}")
    return 0


def describe(found: Any) -> str:
    """An estimate as text."""
    ranks = "" if found.ranks == 1 else f" on each of {found.ranks} ranks"
    return "\n".join(
        [
            f"time    about {_duration(found.seconds)}{ranks}: {found.distances:.3g} distances at "
            f"{found.distances_per_second:.3g} a second and rank, measured on a slice",
            f"memory  about {_size(found.memory)}{ranks}, beside the libraries and the pages of the inputs",
            f"disk    {_size(found.state)}{ranks} until it is done; result up to {_size(found.result)}",
        ]
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _continue(output: Path) -> str:
    return f"What is finished is kept in {output}.unfinished*; the same command continues from there"


def _interrupted(output: Path) -> int:
    print(f"minerlib: interrupted. {_continue(output)}", file=sys.stderr)
    return 130


@contextmanager
def _ranks() -> Iterator[int]:
    """Under torchrun the ranks find each other; SIGTERM, which ends the ranks of a broken run, is told of."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            yield 0
            return
        import torch

        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo")
        yield torch.distributed.get_rank()
        torch.distributed.destroy_process_group()
    finally:
        signal.signal(signal.SIGTERM, before)


def _percentile(text: str) -> float | None:
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--outlier-percentile: expected a number or none, got {text!r}") from None


def _hard_negatives(arguments: argparse.Namespace) -> HardNegatives | None:
    given = {name: getattr(arguments, name) for name in _HARD_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None}
    if HARD not in arguments.cases:
        for name in given:
            raise UsageError(f"--{name.replace('_', '-')}: expected together with --cases {HARD}")
        return None
    if "hard_margin" in given:
        given["margin"] = given.pop("hard_margin")
    names = {"count": "--count", "skip": "--skip", "window": "--window", "margin": "--hard-margin"}
    with arguments_named(names):
        return HardNegatives(**given)
