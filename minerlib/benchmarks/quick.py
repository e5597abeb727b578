"""`minerlib bench`: a short choice of measurements, against whatever peers are installed."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from minerlib import files

if TYPE_CHECKING:
    from minerlib.benchmarks.contest import Limits, Spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="a few small measurements, in seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.set_defaults(run=run)


def choice(quick: bool) -> tuple[list[Spec], Limits]:
    """What is measured, and for how long."""
    from minerlib.benchmarks.contest import Limits, Spec

    jtanet = {"rows": 256, "dims": 512, "classes": 4, "margin": 0.5}
    rows = {"rows": 1024, "dims": 128, "classes": 128}
    small = [
        Spec("JTANet batch, semi-hard", "per_pair", {"strategy": "semi-hard", **jtanet}),
        Spec("batch-hard, 1024 rows", "batch_hard", rows),
        Spec("nearest 10 of 10000", "nearest", {"queries": 1000, "database": 10_000, "dims": 128, "k": 10}),
        Spec(
            "codes, 10 of 100000", "code_search", {"queries": 200, "database": 100_000, "bits": 64, "k": 10}
        ),
    ]
    if quick:
        return small, Limits(seconds=0.2, rounds=5, least_rounds=1, call_seconds=2, gemm_size=1024)
    more = [
        Spec("JTANet batch, hard", "per_pair", {"strategy": "hard", **jtanet}),
        Spec("JTANet batch, random-hard", "per_pair", {"strategy": "random-hard", **jtanet}),
        Spec("batch-hard, 4096 rows", "batch_hard", {"rows": 4096, "dims": 128, "classes": 512}),
        Spec("semi-hard, 1024 rows", "window", {"strategy": "semi-hard", **rows}),
        Spec("distance-weighted, 1024 rows", "distance_weighted", rows),
        Spec("count of triplets, 1024 rows", "count", rows),
        Spec("distances, 1024 rows", "pairwise", {"rows": 1024, "dims": 128}),
    ]
    return small + more, Limits(seconds=0.8, rounds=7, call_seconds=2)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, and write the JSON if asked for. Progress goes to stderr."""
    from minerlib.benchmarks import contest, machine, results, works

    if arguments.json is not None:
        check_writable(arguments.json)
    specs, limits = choice(arguments.quick)
    machine.use_all_threads()
    facts = machine.describe()
    outcomes = []
    for place, spec in enumerate(specs, 1):
        print(f"[{place}/{len(specs)}] {spec.title}", file=sys.stderr)
        say = lambda line: print(line, file=sys.stderr)  # noqa: E731
        outcomes.append(contest.hold(spec, works.build(spec), limits, say=say))
    print(results.headline(facts))
    print(results.table(outcomes))
    if arguments.json is not None:
        command = f"python -m minerlib bench{' --quick' if arguments.quick else ''}"
        written = results.document(outcomes, facts, command)
        with files.written_whole(arguments.json) as stream:
            stream.write(f"{json.dumps(written, indent=1)}\n".encode())
    return 0


def check_writable(path: Path) -> None:
    """Find out before a minute is spent on what cannot be kept."""
    folder = path.parent
    if path.is_dir():
        raise files.FileError(f"{path}: expected a file, this is a folder")
    if not folder.is_dir():
        raise files.FileError(f"{path}: the folder {folder} does not exist")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise files.FileError(f"{path}: cannot be written")
