"""The command line: `minerlib info | mine | search | evaluate | train | bench`, also `python -m minerlib`.

A user's mistake ends in one line on stderr, `minerlib: error: ...`, and exit code 2, never in a traceback.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import minerlib
from minerlib import dispatch, files, inputs, offline_cli, rankings, search_cli
from minerlib.benchmarks import quick
from minerlib.strategies import STRATEGIES
from minerlib.trainers import deephash_cli, extremes_cli, jtanet_cli
from minerlib.usage import UsageError, arguments_named


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    try:
        arguments = _parser().parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except (UsageError, files.FileError, dispatch.BackendUnavailable) as error:
        return _fail(str(error))
    except MemoryError as error:
        return _fail(f"not enough memory ({error})" if str(error) else "not enough memory")
    except KeyboardInterrupt:
        print("minerlib: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has left, as in `minerlib info | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _fail(message: str) -> int:
    print(f"minerlib: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Warnings in one line too, without the source line that raised them."""
    print(f"minerlib: warning: {message}", file=sys.stderr)


# ------------------------------------------------------------------ the parsers


class _Parser(argparse.ArgumentParser):
    """A parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"minerlib: error: {message} (see: {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="minerlib", description="Exact triplet mining and search for metric learning.")
    parser.add_argument("--version", action="version", version=f"minerlib {minerlib.__version__}")
    commands = parser.add_subparsers(metavar="command", required=True, parser_class=_Parser)

    info = commands.add_parser(
        "info", help="what is installed, what this machine can use, and why not the rest"
    )
    info.set_defaults(run=_info)
    _add_mine(commands.add_parser("mine", help="mine triplets from a batch, or from a whole data set"))
    search_cli.add_arguments(
        commands.add_parser("search", help="search binary codes, or floats by their signs")
    )
    _add_evaluate(commands.add_parser("evaluate", help="retrieval measures of embeddings in .npy files"))

    train = commands.add_parser("train", help="train a reference model with mined triplets")
    trainers = train.add_subparsers(metavar="trainer", required=True, parser_class=_Parser)
    jtanet = trainers.add_parser("jtanet", help="JTANet: an autoencoder with triplet loss")
    jtanet_cli.add_arguments(jtanet)
    jtanet.set_defaults(run=jtanet_cli.run)
    extremes = trainers.add_parser("extremes", help="extreme distances: 17 ways to mine triplets")
    extremes_cli.add_arguments(extremes)
    extremes.set_defaults(run=extremes_cli.run)
    deephash = trainers.add_parser(
        "deephash", help="DeepHash: triplet features, and codes that are their signs"
    )
    deephash_cli.add_arguments(deephash)
    deephash.set_defaults(run=deephash_cli.run)

    quick.add_arguments(commands.add_parser("bench", help="measure this machine, in less than a minute"))
    return parser


def _add_mine(parser: argparse.ArgumentParser) -> None:
    _add_rows(parser, "reference", "R", "where positives and negatives come from", labels="?")
    parser.add_argument("--strategy", choices=tuple(STRATEGIES), metavar="NAME",
                        help=f"one of {', '.join(STRATEGIES)}")  # fmt: skip
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="triplets.npz or .parquet")
    parser.add_argument("--margin", type=float, default=0.2, help="in the metric's unit (default 0.2)")
    _add_choice(parser, "--metric", inputs.METRICS)
    _add_choice(parser, "--pairs", inputs.PAIRS)
    _add_choice(parser, "--fallback", inputs.FALLBACKS)
    parser.add_argument("--seed", type=int, default=0, help="of the random strategies (default 0)")
    _add_choice(parser, "--backend", dispatch.NAMES)
    offline_cli.add_arguments(parser)
    parser.set_defaults(run=_mine)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_rows(parser, "database", "D", "what the embeddings query; without it they query each other")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 4, 8, 16], help="(default 1 4 8 16)")
    _add_choice(parser, "--metric", rankings.METRICS)
    _add_choice(parser, "--backend", dispatch.NAMES)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_evaluate)


def _add_rows(
    parser: argparse.ArgumentParser, second: str, letter: str, meaning: str, labels: str | None = None
) -> None:
    """Two files of embeddings and labels, and options for two more."""
    parser.add_argument("embeddings", type=Path, metavar="EMBEDDINGS.npy", help="[N, D] floats")
    parser.add_argument("labels", type=Path, nargs=labels, metavar="LABELS.npy",
                        help="[N] integers, or [N, C] bool")  # fmt: skip
    parser.add_argument(f"--{second}", type=Path, metavar=f"{letter}.npy", help=f"[M, D]: {meaning}")
    parser.add_argument(f"--{second}-labels", type=Path, metavar=f"{letter}L.npy", help="[M] or [M, C]")


def _add_choice(parser: argparse.ArgumentParser, option: str, valid: tuple[str, ...]) -> None:
    text = f"one of {', '.join(valid)} (default {valid[0]})"
    parser.add_argument(option, choices=valid, default=valid[0], metavar="NAME", help=text)


# ------------------------------------------------------------------ mine


def _mine(arguments: argparse.Namespace) -> int:
    if (arguments.strategy is None) == (arguments.cases is None):
        raise UsageError("expected one of --strategy, for a batch, and --cases, for a whole data set")
    if arguments.cases is not None:
        return offline_cli.run(arguments)
    offline_cli.check_unused(arguments)
    files.check_output(arguments.output)
    arrays = _read(arguments, "embeddings", "labels", "reference", "reference_labels")
    options = ("margin", "metric", "pairs", "fallback", "seed")
    facts = {"strategy": arguments.strategy} | {name: getattr(arguments, name) for name in options}
    start = time.perf_counter()
    with arguments_named(_sources(arguments)):
        triplets = minerlib.mine(**arrays, **facts, backend=arguments.backend)
    seconds = time.perf_counter() - start
    assert isinstance(triplets, minerlib.Triplets)
    files.write_triplets(arguments.output, triplets, facts | {"minerlib_version": minerlib.__version__})
    backend = minerlib.explain("mine").chosen if arguments.backend == "auto" else arguments.backend
    rows = len(arrays["embeddings"])
    print(
        f"{len(triplets.anchors)} {arguments.strategy} triplets from {rows} rows in {seconds:.3f} s "
        f"({backend} backend): {arguments.output}"
    )
    return 0


def _read(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The arrays of those files that were named."""
    paths = {name: getattr(arguments, name) for name in names}
    return {name: files.read_array(path) for name, path in paths.items() if path is not None}


def _sources(arguments: argparse.Namespace) -> dict[str, str]:
    """For each of the library's arguments what the user called it: a file, or an option."""
    names = vars(arguments).items()
    return {
        name: str(value) if isinstance(value, Path) else f"--{name.replace('_', '-')}"
        for name, value in names
    }


# ------------------------------------------------------------------ evaluate


def _evaluate(arguments: argparse.Namespace) -> int:
    from minerlib import retrieval

    arrays = _read(arguments, "embeddings", "labels", "database", "database_labels")
    rows = {"queries": arrays.pop("embeddings"), "query_labels": arrays.pop("labels"), **arrays}
    options = {"metric": arguments.metric, "backend": arguments.backend}
    sources = _sources(arguments)
    sources |= {"queries": sources["embeddings"], "query_labels": sources["labels"]}
    with arguments_named(sources):
        precision = retrieval.precision_at(**rows, k=arguments.k, **options)
        recall = retrieval.recall_at(**rows, k=arguments.k, **options)
        average = retrieval.mean_average_precision(**rows, **options)
        accuracy = None  # a vote needs one class a row
        if rows["query_labels"].ndim == 1:
            accuracy = [retrieval.knn_accuracy(**rows, k=k, **options) for k in arguments.k]
    measures = {
        "queries": len(rows["queries"]),
        "database": len(rows["database"]) if "database" in rows else None,
        "metric": arguments.metric,
        "k": arguments.k,
        "precision": precision,
        "recall": recall,
        "knn_accuracy": accuracy,
        "mean_average_precision": average,
    }
    print(json.dumps(measures) if arguments.json else _table(measures))
    return 0


def _table(measures: dict[str, Any]) -> str:
    database = measures["database"]
    against = "each other" if database is None else f"{database} rows"
    lines = [f"{measures['queries']} queries against {against}, {measures['metric']}; all values from 0 to 1"]
    columns = [name for name in ("precision", "recall", "knn_accuracy") if measures[name] is not None]
    lines.append("".join(f"{name:>14}" for name in ("k", *columns)))
    for place, k in enumerate(measures["k"]):
        lines.append(f"{k:>14}" + "".join(f"{measures[name][place]:>14.4f}" for name in columns))
    lines.append(f"mean average precision {measures['mean_average_precision']:.4f}")
    return "\n".join(lines)


# ------------------------------------------------------------------ info


def _info(arguments: argparse.Namespace) -> int:
    print(f"minerlib {minerlib.__version__} in {Path(minerlib.__file__).parent}")
    facts = {"python": f"{platform.python_version()}, {platform.platform()}"}
    facts |= {package: _version(package) for package in ("numpy", "torch", "numba", "triton")}
    facts |= {"threads": str(minerlib.get_num_threads())} | _native_facts() | _cuda_facts()
    for name, fact in facts.items():
        print(f"  {name:<12} {fact}")
    print("backends, in order of preference:")
    for name, usable, reasons, description in dispatch.describe_backends():
        print(f"  {name:<12} {'usable' if usable else 'not usable'}: {description}")
        for reason in reasons:
            print(f"  {'':<12} because {reason}")
    return 0


def _native_facts() -> dict[str, str]:
    from minerlib.backends import native

    info = native.info()
    if not info["built"]:
        return {"extension": info["reason"]}
    library = Path(importlib.import_module("minerlib._native").__file__ or "")
    sets = ", ".join(info["instruction_sets"])
    return {
        "extension": f"{library.name}, built {_when(library)}",
        "compiler": info["compiler"],
        "instructions": f"{info['instruction_set']} is used, of {sets}",
        "amx": f"not used: {info['without_amx']}" if info["without_amx"] else "used, its self-check passed",
    }


def _cuda_facts() -> dict[str, str]:
    from minerlib.backends import cuda

    info = cuda.info()
    if not info["built"]:
        return {"cuda": info["reason"]}
    return {"cuda": f"{info['path'].name}, built {_when(info['path'])} by {info['build']}"}


def _when(path: Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))


def _version(package: str) -> str:
    try:
        return str(importlib.import_module(package).__version__)
    except Exception as error:  # whatever a broken installation raises: the reason is what the reader needs
        return f"not usable: {error}"
