"""JTANet's experiments: embedding lengths (Table 2, Figs. 7 and 8) and loss weights (Table 3).

Every run of a sweep is `jtanet.train` under its own settings, in a folder of its own below `runs` in the
output folder, so a run that both sweeps share is trained once under `resume`. Several seeds give each cell
of a table its mean and standard deviation.

Source: JTANet, section 5; the published values are those of its Tables 2 and 3.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from minerlib import inputs
from minerlib.trainers import jtanet, ranks, report, sweep
from minerlib.trainers.jtanet_config import STRATEGIES, JTANetConfig, parse_weights
from minerlib.trainers.report import Table
from minerlib.trainers.settings import plain
from minerlib.trainers.validation import MiningRecord

PAPERS_DATA = "crchistophenotypes"
MEASURED = 5  # images retrieved in both tables
SMALL = 8  # embedding lengths up to this one are small ones
BEST_LENGTH = {"hard": 1024, "random-hard": 512, "semi-hard": 512}  # of Table 3 and of Fig. 8

#: Mean precision in per cent at 5 images retrieved, in the order of STRATEGIES.
TABLE_2 = {
    1024: (52.64, 73.56, 73.52),
    512: (52.46, 73.67, 73.47),
    256: (49.82, 71.88, 73.39),
    128: (52.40, 71.46, 73.90),
    64: (46.93, 72.36, 71.98),
    32: (50.82, 72.82, 71.87),
    16: (50.08, 71.20, 72.66),
    8: (46.15, 73.18, 72.83),
    4: (38.58, 68.85, 71.38),
    2: (37.03, 61.43, 59.82),
}
TABLE_3 = {
    "1:1:1": (52.64, 73.67, 73.47),
    "5:1:1": (50.41, 72.21, 73.96),
    "1:5:1": (47.90, 73.50, 74.18),
    "1:1:5": (48.24, 72.03, 72.85),
    "10:1:1": (51.14, 72.25, 72.36),
    "1:10:1": (43.65, 73.43, 72.86),
    "1:1:10": (48.10, 73.13, 73.27),
    "0:1:1": (58.77, 74.11, 73.60),
    "1:0:1": (50.76, 52.12, 44.24),
    "1:1:0": (50.09, 70.78, 72.23),
}
LENGTHS = tuple(TABLE_2)
WEIGHTINGS = tuple(TABLE_3)


_VARIED = {"table2": ("embedding_length",), "table3": ("embedding_length", "weights")}


@dataclass(frozen=True)
class Case:
    """One run of a sweep: what it varies, and the row of the table that it belongs to."""

    row: str
    strategy: str
    seed: int
    config: JTANetConfig


@dataclass(frozen=True)
class SweepResult:
    """The tables of a sweep, the outcome of each of its runs by name, and where all of it was written."""

    tables: list[Table]
    outcomes: dict[str, sweep.Outcome]
    files: dict[str, Path]


def embedding_lengths(config: JTANetConfig, seeds: int = 1, lengths: Sequence[int] = LENGTHS) -> SweepResult:
    """Table 2: every embedding length with every strategy; Figs. 7 and 8 from the same runs.

    `config` gives everything that the sweep does not vary; `seeds` runs each cell under `config.seed` and
    the seeds after it. Files, in `config.output`: the table as `table2.csv`, every run in `runs.csv`,
    `fig7.png`, `fig8.png`, and `embedding-length.html`, which holds them all.

    Raises what `jtanet.train` raises, and `ValueError` for lengths or seeds that no run could have.
    """
    cases = _cases(
        config,
        seeds,
        [
            (str(length), strategy, {"embedding_length": inputs.integer("lengths", length, 1, 2**16)})
            for length in lengths
            for strategy in STRATEGIES
        ],
    )
    outcomes = _train(cases)
    title = f"Mean precision (%) at {MEASURED} images retrieved"
    rows = [str(length) for length in lengths]
    table = _table("Table 2. " + title, "EL", rows, cases, outcomes, config)
    published = {str(length): values for length, values in TABLE_2.items()}
    tables = [report.with_published(table, published, config.data, PAPERS_DATA)]
    if seeds > 1:
        tables.append(_against_hard(rows, cases, outcomes))
    tables.append(_mining(cases, outcomes))
    drawn = {
        name: max((length for length in lengths if length <= BEST_LENGTH[name]), default=max(lengths))
        for name in STRATEGIES
    }
    files = _files(config, "table2", "fig7", "fig8", page="embedding-length")
    if ranks.current().main:
        _plot_precision(files["fig7"], rows, cases, outcomes, config)
        _plot_losses(files["fig8"], {name: str(length) for name, length in drawn.items()}, cases)
        pictures = [
            report.Picture(f"Fig. 7. Precision against images retrieved, seed {config.seed}", files["fig7"]),
            report.Picture(f"Fig. 8. Losses, seed {config.seed}", files["fig8"], jtanet.FULL_BATCHES),
        ]
        _write("table2", tables, pictures, cases, outcomes, files, config)
    return SweepResult(tables, outcomes, files)


def loss_weights(config: JTANetConfig, seeds: int = 1) -> SweepResult:
    """Table 3: ten weightings of the three losses, each strategy at the embedding length it was best at.

    As `embedding_lengths`; the files are `table3.csv`, `runs.csv` and `loss-weights.html`.
    """
    cases = _cases(
        config,
        seeds,
        [
            (row, strategy, {"weights": parse_weights(row), "embedding_length": BEST_LENGTH[strategy]})
            for row in WEIGHTINGS
            for strategy in STRATEGIES
        ],
    )
    outcomes = _train(cases)
    title = f"Table 3. Mean precision (%) at {MEASURED} images retrieved"
    table = _table(title, "AE:SM:FR", WEIGHTINGS, cases, outcomes, config)
    at = ", ".join(f"{name} at EL {length}" for name, length in BEST_LENGTH.items())
    table = replace(table, note=f"{at}.\n{table.note}")
    published = report.with_published(table, TABLE_3, config.data, PAPERS_DATA)
    tables = [published, _mining(cases, outcomes)]
    files = _files(config, "table3", page="loss-weights")
    if ranks.current().main:
        _write("table3", tables, [], cases, outcomes, files, config)
    return SweepResult(tables, outcomes, files)


SWEEPS: dict[str, Callable[..., SweepResult]] = {
    "embedding-length": embedding_lengths,
    "loss-weights": loss_weights,
}


# ------------------------------------------------------------------ the runs


def _cases(
    config: JTANetConfig,
    seeds: int,
    varied: Sequence[tuple[str, str, Mapping[str, Any]]],  # row, strategy, settings
) -> dict[str, Case]:
    inputs.integer("seeds", seeds, 1, 1000)
    cases = {}
    for row, strategy, changes in varied:
        for seed in range(config.seed, config.seed + seeds):
            case = replace(config, strategy=strategy, seed=seed, **changes)
            weights = "-".join(f"{weight:g}" for weight in case.weights)
            name = f"{strategy}-el{case.embedding_length}-w{weights}-seed{seed}"
            case = replace(case, output=config.output / "runs" / name)
            cases[name] = Case(row, strategy, seed, case)
    return cases


def _train(cases: Mapping[str, Case]) -> dict[str, sweep.Outcome]:
    configs = {name: case.config for name, case in cases.items()}
    return sweep.run_cases(configs, lambda config: jtanet.train(config, pictures=False), _outcome)


def _outcome(result: jtanet.JTANetResult) -> sweep.Outcome:
    return {
        "precision": {str(k): value for k, value in result.precision.items()},
        "mining": asdict(result.mining),
        "seconds": result.seconds,
    }


def _at(outcome: sweep.Outcome, retrieved: int = MEASURED) -> float:
    value: float = outcome["precision"][str(retrieved)]
    return value


# ------------------------------------------------------------------ tables


def _table(
    title: str,
    first: str,
    rows: Sequence[str],
    cases: Mapping[str, Case],
    outcomes: Mapping[str, sweep.Outcome],
    config: JTANetConfig,
) -> Table:
    cells: list[list[report.Cell]] = []
    for row in rows:
        line: list[report.Cell] = [row]
        for strategy in STRATEGIES:
            found = list(_by_seed(row, strategy, cases, outcomes).values())
            line.append(found[0] if len(found) == 1 else sweep.spread(found))
        cells.append(line)
    seeds = len({case.seed for case in cases.values()})
    note = (
        f"{config.data}; preset {config.preset}: width {config.width:g} of the paper's channels, "
        f"{config.epochs} epochs of the paper's 50, batches of {config.batch_size}; "
        + (f"mean ± standard deviation over {seeds} seeds." if seeds > 1 else f"seed {config.seed}.")
    )
    return Table(title, (first, *STRATEGIES), cells, note)


def _by_seed(
    row: str, strategy: str, cases: Mapping[str, Case], outcomes: Mapping[str, sweep.Outcome]
) -> dict[int, float]:
    return {
        case.seed: _at(outcomes[name])
        for name, case in cases.items()
        if (case.row, case.strategy) == (row, strategy)
    }


def _against_hard(
    rows: Sequence[str], cases: Mapping[str, Case], outcomes: Mapping[str, sweep.Outcome]
) -> Table:
    """What the random strategies gain over `hard`, seed by seed: the same split, weights and batches."""
    others = [strategy for strategy in STRATEGIES if strategy != "hard"]
    cells: list[list[report.Cell]] = []
    for row in rows:
        hard = _by_seed(row, "hard", cases, outcomes)
        line: list[report.Cell] = [row]
        for strategy in others:
            found = _by_seed(row, strategy, cases, outcomes)
            gains = [found[seed] - hard[seed] for seed in hard]
            line += [sweep.spread(gains), f"{sum(gain > 0 for gain in gains)} of {len(gains)}"]
        cells.append(line)
    columns = ["EL"]
    for strategy in others:
        columns += [f"{strategy} - hard", "seeds won"]
    pooled = []
    for strategy in others:
        gains = [
            value - _by_seed(row, "hard", cases, outcomes)[seed]
            for row in rows
            if int(row) <= SMALL
            for seed, value in _by_seed(row, strategy, cases, outcomes).items()
        ]
        if gains:
            won = sum(gain > 0 for gain in gains)
            mean = statistics.mean(gains)
            pooled.append(f"{strategy} {mean:+.2f} points on average, ahead in {won} of {len(gains)} runs")
    note = f"At embedding lengths up to {SMALL}, against hard: {'; '.join(pooled)}." if pooled else ""
    return Table("Gain over hard (points of precision)", columns, cells, note)


# ------------------------------------------------------------------ files


def _files(config: JTANetConfig, *names: str, page: str) -> dict[str, Path]:
    suffixed = {name: f"{name}.png" if name.startswith("fig") else f"{name}.csv" for name in names}
    named = suffixed | {"runs": f"{page}-runs.csv", "report": f"{page}.html"}
    return {name: config.output / file for name, file in named.items()}


def _write(
    name: str,
    tables: Sequence[Table],
    pictures: Sequence[report.Picture],
    cases: Mapping[str, Case],
    outcomes: Mapping[str, sweep.Outcome],
    files: Mapping[str, Path],
    config: JTANetConfig,
) -> None:
    report.write_table(files[name], tables[0])
    cutoffs = [f"precision@{k}" for k in jtanet.RETRIEVED]
    runs = [
        (
            run,
            case.strategy,
            case.config.embedding_length,
            ":".join(f"{weight:g}" for weight in case.config.weights),
            case.seed,
            *(outcomes[run]["precision"].get(str(k)) for k in jtanet.RETRIEVED),
            outcomes[run]["seconds"],
        )
        for run, case in cases.items()
    ]
    columns = ("run", "strategy", "embedding_length", "weights", "seed", *cutoffs, "seconds")
    report.write_table(files["runs"], Table("", columns, runs))
    varied = ("strategy", "seed", "output", "resume", "progress", *_VARIED[name])
    shared = {setting: value for setting, value in plain(config).items() if setting not in varied}
    report.write_html(
        files["report"],
        f"JTANet: {tables[0].title}",
        f"{len(cases)} runs of minerlib train jtanet.",
        [tables[0], *pictures, *tables[1:], report.Facts("Settings that the runs share", shared)],
    )


def _mining(cases: Mapping[str, Case], outcomes: Mapping[str, sweep.Outcome]) -> Table:
    return report.mining_table({strategy: _records(strategy, cases, outcomes) for strategy in STRATEGIES})


def _records(strategy: str, cases: Mapping[str, Case], outcomes: Mapping[str, sweep.Outcome]) -> MiningRecord:
    """The mining of all runs of a strategy, added up."""
    total = MiningRecord()
    for name, case in cases.items():
        if case.strategy == strategy:
            for field, value in outcomes[name]["mining"].items():
                setattr(total, field, getattr(total, field) + value)
    return total


def _plot_precision(
    path: Path,
    rows: Sequence[str],
    cases: Mapping[str, Case],
    outcomes: Mapping[str, sweep.Outcome],
    config: JTANetConfig,
) -> None:
    """Like Fig. 7: a panel a strategy, a curve an embedding length."""
    drawn = report.figure(15, 4.5)
    panels = drawn.subplots(1, len(STRATEGIES), sharey=True)
    for axes, strategy in zip(panels, STRATEGIES, strict=True):
        for row in rows:
            name = next(
                name
                for name, case in cases.items()
                if (case.row, case.strategy, case.seed) == (row, strategy, config.seed)
            )
            points = outcomes[name]["precision"]
            axes.plot([int(k) for k in points], list(points.values()), marker="o", markersize=3, label=row)
        axes.set(title=strategy, xlabel="images retrieved")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("mean precision (%)")
    drawn.legend(*panels[0].get_legend_handles_labels(), title="EL", loc="outside right center")
    report.save(drawn, path)


def _plot_losses(path: Path, rows: Mapping[str, str], cases: Mapping[str, Case]) -> None:
    """Like Fig. 8: a panel a strategy, at the embedding length named for it."""
    drawn = report.figure(15, 4.5)
    panels = drawn.subplots(1, len(rows), sharey=True)
    for axes, (strategy, row) in zip(panels, rows.items(), strict=True):
        case = next(case for case in cases.values() if (case.row, case.strategy) == (row, strategy))
        with (case.config.output / "metrics.csv").open(newline="") as stream:
            lines = list(csv.DictReader(stream))
        history = {name: [float(line[name]) for line in lines] for name in lines[0]}
        report.draw_losses(axes, *jtanet.loss_curves(history))
        axes.set_title(f"{strategy}, EL {row}")
    panels[0].set_ylabel("loss, summed over the batch")
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    report.save(drawn, path)
