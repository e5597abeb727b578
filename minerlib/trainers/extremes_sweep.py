"""All methods of the extreme-distance study by one command: Tables I and II, Fig. 4 and Fig. 5."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from minerlib.files import written_whole
from minerlib.trainers import common, data, extremes, ranks, report
from minerlib.trainers.extremes import ExtremesResult
from minerlib.trainers.extremes_config import METHODS, SWEEPS, ExtremesConfig
from minerlib.trainers.extremes_pictures import plot_retrievals
from minerlib.trainers.extremes_space import FeatureSpace, feature_space, flow_picture, flows, space_facts
from minerlib.trainers.extremes_tables import method_table
from minerlib.trainers.images import ImageSet
from minerlib.trainers.settings import plain
from minerlib.trainers.sweep import Outcome, run_cases
from minerlib.trainers.validation import MiningRecord

MINED_BESIDE = (
    "Offline methods mined once, before training; NCA and PNCA mine nothing; EP and EP-D choose inside\n"
    "their loss, and the miner mines beside it only to be validated."
)


@dataclass(frozen=True)
class Sweep:
    """What a sweep found, and where it was written."""

    outcomes: dict[str, Outcome]  # by key of METHODS
    tables: list[report.Table]
    files: dict[str, Path]


def sweep(config: ExtremesConfig, name: str) -> Sweep:
    """Train every method of a sweep, each in a folder of its own, on one feature space.

    Writes `table-1.csv` and `table-2.csv`, `mining.csv`, `negatives.png` and `negatives.csv` (Fig. 4),
    `retrievals-CLASS.png` (Fig. 5, a line for each method) and `report.html`, which holds them all, into
    `config.output`. Under `resume` methods that are done are not trained again.

    Raises what `train` raises.
    """
    split = data.load(config)
    cases = {
        method: replace(config, strategy=method, output=config.output / method) for method in SWEEPS[name]
    }
    space = None
    if any(METHODS[method].offline for method in cases):
        space = feature_space(split.train, config, config.output / "feature-space")
    outcomes = run_cases(cases, lambda case: extremes.train(case, space), _outcome)
    files = {"report": config.output / "report.html"}
    tables = _tables(outcomes, config)
    if ranks.current().main:
        common.prepare_output(config.output)
        _write(config, name, outcomes, tables, split.held_out, space, files)
    return Sweep(outcomes, tables, files)


def _outcome(result: ExtremesResult) -> Outcome:
    return {
        "measured": result.measured,
        "retrieved": list(result.retrieved.items()),
        "mining": vars(result.mining),
        "steps": len(result.history["step"]),
        "seconds": result.seconds,
        "origin": result.origin,
    }


def _tables(outcomes: Mapping[str, Outcome], config: ExtremesConfig) -> list[report.Table]:
    """Table I and Table II, as far as they were swept, and the share of mining."""
    measured = {name: outcome["measured"] for name, outcome in outcomes.items()}
    note = (
        f"epochs {config.epochs}, {config.backbone} at width {config.width:g}, "
        f"{next(iter(outcomes.values()))['origin']}, learning rate {config.learning_rate:g}, "
        f"preset {config.preset}."
    )
    tables = [
        method_table(offline, measured, config.data, note)
        for offline in (True, False)
        if any(METHODS[name].offline == offline for name in outcomes)
    ]
    records = {
        f"{METHODS[name].title}{' offline' if METHODS[name].offline else ''}": MiningRecord(
            **outcome["mining"]
        )
        for name, outcome in outcomes.items()
    }
    mining = report.mining_table(records)
    borders = sum(record.border_draws for record in records.values())
    notes = [mining.note, MINED_BESIDE]
    if borders:
        notes.append(f"DWS: {borders} draws fell on the border of two rows, where rounding decides.")
    return [*tables, replace(mining, note="\n".join(notes))]


def _write(
    config: ExtremesConfig,
    name: str,
    outcomes: Mapping[str, Outcome],
    tables: list[report.Table],
    held_out: ImageSet,
    space: FeatureSpace | None,
    files: dict[str, Path],
) -> None:
    parts: list[report.Part] = [*tables]
    for table in tables:
        key = {"Table I:": "table-1", "Table II": "table-2"}.get(table.title[:8], "mining")
        files[key] = config.output / f"{key}.csv"
        report.write_table(files[key], table)
    if space is not None:
        files["negatives"] = config.output / "negatives.png"
        parts.append(flow_picture(files["negatives"], space, config.data))
        files["negatives-csv"] = config.output / "negatives.csv"
        _write_flows(files["negatives-csv"], space)
        parts.append(report.Facts("Feature space", space_facts(space)))
    for query in dict(next(iter(outcomes.values()))["retrieved"]):
        of_class = held_out.classes[int(held_out.labels[query])]
        path = config.output / f"retrievals-{of_class}.png"
        lines = [
            (
                f"{METHODS[method].title}{' offline' if METHODS[method].offline else ''}",
                query,
                dict(o["retrieved"])[query],
            )
            for method, o in outcomes.items()
        ]
        plot_retrievals(path, held_out, lines, f"Nearest held-out images to one of class {of_class}")
        files[path.stem] = path
        parts.append(
            report.Picture(
                f"Retrieved for an image of class {of_class}, wrong hits framed, as in Fig. 5", path
            )
        )
    parts.append(report.Facts("Settings", plain(config)))
    report.write_html(
        files["report"],
        f"Extreme distances: {len(outcomes)} methods on {config.data}",
        f"minerlib train extremes --sweep {name}, preset {config.preset}.",
        parts,
    )


def _write_flows(path: Path, space: FeatureSpace) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("negatives", "class of anchor", *space.x2.classes))
    for title, counts in flows(space).items():
        writer.writerows((title, name, *row) for name, row in zip(space.x2.classes, counts, strict=True))
    with written_whole(path) as stream:
        stream.write(text.getvalue().encode())
