"""`python -m minerlib train jtanet`: its options, and what it prints at the end."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from minerlib.trainers import command
from minerlib.trainers.command import add
from minerlib.trainers.jtanet_config import PRESETS, REDUCTIONS, STRATEGIES, JTANetConfig, parse_weights

#: What each sweep varies, so that it cannot be given beside it.
VARIED = {
    "embedding-length": ("strategy", "embedding_length"),
    "loss-weights": ("strategy", "embedding_length", "weights", "lengths"),
}

if TYPE_CHECKING:
    from minerlib.trainers.jtanet import JTANetResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `train jtanet`."""
    default = JTANetConfig()
    command.add_common(parser, default, PRESETS, STRATEGIES)
    add(parser, "--embedding-length", int, "EL", f"length of a feature (default: {default.embedding_length})")
    add(parser, "--width", float, "FACTOR", "factor on the inner layers' channels (default: 1, the paper's)")
    add(parser, "--weights", str, "AE:SM:FR", "of autoencoder, triplets, features (default: 1:1:1)")
    add(parser, "--reduction", str, "NAME", f"{', '.join(REDUCTIONS)} (default: {default.reduction})")
    parser.add_argument(
        "--sweep", choices=tuple(VARIED), metavar="NAME",
        help="a table of the paper: embedding-length (Table 2, Figs. 7 and 8) or loss-weights (Table 3)",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="of a sweep: seeds a cell (default: 1)"
    )
    add(parser, "--lengths", int, "EL", "of a sweep: embedding lengths (default: the paper's ten)", nargs="+")


def run(args: argparse.Namespace) -> int:
    """Train as the arguments say and print the summary; exit codes are those of `command.execute`."""
    try:
        parsed: dict[str, Any] = {"weights": parse_weights(args.weights)} if "weights" in args else {}
        config = command.settings(args, JTANetConfig, PRESETS, **parsed)
        _check_sweep(args)
        return command.execute("jtanet", config, lambda: _run(config, args))
    except (ValueError, TypeError, OSError) as error:
        return command.fail(error)


def _check_sweep(args: argparse.Namespace) -> None:
    if args.sweep is None:
        for option in ("seeds", "lengths"):
            if getattr(args, option, 1) != 1:
                raise ValueError(f"{option}: expected --sweep beside it, which says what is repeated")
        return
    for option in VARIED[args.sweep]:
        if option in args:
            shown = option.replace("_", "-")
            raise ValueError(f"{shown}: expected none, as --sweep {args.sweep} runs through its own")


def _run(config: JTANetConfig, args: argparse.Namespace) -> str:
    from minerlib.trainers import jtanet, jtanet_sweeps, report

    if args.sweep is None:
        return summary(jtanet.train(config))
    options = {name: getattr(args, name) for name in ("seeds", "lengths") if name in args}
    found = jtanet_sweeps.SWEEPS[args.sweep](config, **options)
    return "\n\n".join([*map(report.text_table, found.tables), f"all in one: {found.files['report']}"])


def summary(result: JTANetResult) -> str:
    """The end of a run in a few lines."""
    from minerlib.trainers import ranks

    config, mining, files = result.config, result.mining, result.files
    shown = {k: value for k, value in result.precision.items() if k in (5, 10, 100)}
    precision = ", ".join(f"{value:.2f} % at {k}" for k, value in shown.items())
    lines = [
        f"JTANet on {config.data}, {config.strategy}, EL {config.embedding_length}, width {config.width:g}",
        f"  trained         {result.history['epoch'][-1]} epochs of {result.train_images} images in "
        f"{result.seconds:.0f} s; {result.held_out_images} images held out",
        f"  mean precision  {precision}",
    ]
    whose = f" {ranks.current().whose}".rstrip()
    if mining.validated_steps:
        ours, naive = 1e3 * mining.fast_seconds, 1e3 * mining.naive_seconds
        lines += [
            f"  validated       {mining.validated_steps} steps, {mining.validated_triplets:,} triplets, "
            f"{mining.mismatches} mismatches{whose}",
            f"  mining          ours {ours:.1f} ms, the naive miner {naive:.0f} ms, {naive / ours:.0f} times",
        ]
    else:
        spent = f"{1e3 * mining.seconds:.1f} ms by backend {config.miner_backend}"
        lines.append(f"  mining          {spent} for {mining.triplets:,} triplets{whose}")
    if mining.share is not None:
        share = f"mining {100 * mining.share:.2f} %"
        if mining.selector_share is not None:
            share += f"; with the usual Python loop {100 * mining.selector_share:.0f} %"
        lines.append(f"  of a step       {share}")
    lines += [
        f"  pictures        {files['precision']}, {files['losses']}",
        f"  numbers         {files['metrics']}, {files['summary']}",
        f"  all in one      {files['report']}",
    ]
    return "\n".join(lines)
