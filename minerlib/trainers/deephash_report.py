"""What DeepHash runs leave for people: Table 1, the share of mining, pictures, one page with all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minerlib.trainers import common, report
from minerlib.trainers.deephash_config import PAPERS_DATA, ROWS, DeepHashConfig
from minerlib.trainers.deephash_measures import MEASURES, Features, plot_tsne
from minerlib.trainers.report import Cell, Part, Picture, Table
from minerlib.trainers.settings import plain
from minerlib.trainers.validation import MiningRecord

if TYPE_CHECKING:
    from minerlib.trainers.deephash import DeepHashResult

ROW_FILES = {"summary": "summary.json", "tsne": "tsne.png", "losses": "losses.png", "report": "report.html"}
_LOSSES = ("triplet", "quantization", "total")
_TSNE = "Images that query, coloured by class."
_CURVES = """Over the triplets that each row trains on: the harder they are, the greater the loss.
That of hashing is another one, and here without the quantisation error."""
_QUANTIZED = ", then quantised"
_NOTE = """Per cent. KNN and mAP over whole rankings: by Euclidean distance, and of codes by Hamming distance,
there mAP as the expectation over all orders of ties, and as the usual script counts.
Codes are the signs of the features, less their mean where no codes were learned."""


def write_row(
    result: DeepHashResult,
    features: Features,
    classes: tuple[str, ...],
) -> None:
    """The files of one row, by name in `ROW_FILES`."""
    import torch

    config, files = result.config, result.files
    title = f"{ROWS[config.row].title}, {config.data}"
    plot_tsne(files["tsne"], features, classes, config.seed, title)
    pictures = [Picture("t-SNE", files["tsne"], _TSNE)]
    losses = {name: result.history[name] for name in _LOSSES if name in result.history}
    if losses:
        report.plot_losses(files["losses"], result.history["step"], losses, title)
        pictures.append(Picture("Losses", files["losses"]))
    facts = {
        "network": result.origin,
        "train_images": result.train_images,
        "held_out_images": result.held_out_images,
        "seconds": result.seconds,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    summary = {
        "config": plain(config),
        **facts,
        "measures_percent": result.measures,
        "unquantized_percent": result.unquantized,
        "mining": asdict(result.mining),
    }
    common.write_json(files["summary"], summary)
    tables = [measures_table({config.row: config}, {config.row: outcome(result)})]
    if result.mining.steps:
        tables.append(report.mining_table({ROWS[config.row].title: result.mining}))
    parts: list[Part] = [
        *tables,
        *pictures,
        report.Facts("Run", facts),
        report.Facts("Settings", plain(config)),
    ]
    report.write_html(files["report"], "DeepHash", title, parts)


def outcome(result: DeepHashResult) -> dict[str, Any]:
    """What a row adds to the tables, as JSON can hold it."""
    return {
        "origin": result.origin,
        "measures": result.measures,
        "unquantized": result.unquantized,
        "losses": _mean_by_epoch(result.history),
        "mining": asdict(result.mining),
        "seconds": result.seconds,
        "files": {name: str(path) for name, path in result.files.items() if name == "tsne"},
    }


def _mean_by_epoch(history: Mapping[str, list[Any]]) -> dict[str, float]:
    """The mean triplet loss of every epoch; keys are strings, as JSON has them."""
    losses: dict[str, list[float]] = {}
    steps = history.get("triplet", history.get("total", ()))  # without the quantisation error
    for epoch, loss in zip(history.get("epoch", ()), steps, strict=True):
        losses.setdefault(str(epoch), []).append(loss)
    return {epoch: sum(values) / len(values) for epoch, values in losses.items()}


def write_sweep(
    config: DeepHashConfig,
    cases: Mapping[str, DeepHashConfig],
    outcomes: Mapping[str, Mapping[str, Any]],
) -> str:
    """`table1.csv`, `mining.csv`, `losses.png` and `report.html` with all of it; the tables as text."""
    trained = {name: found for name, found in outcomes.items() if "mining" in found and found["losses"]}
    table = measures_table(cases, outcomes)
    records = {ROWS[name].title: MiningRecord(**found["mining"]) for name, found in trained.items()}
    mining = report.mining_table({title: record for title, record in records.items() if record.steps})
    files = {name: config.output / name for name in ("table1.csv", "mining.csv", "losses.png", "report.html")}
    report.write_table(files["table1.csv"], table)
    report.write_table(files["mining.csv"], mining)
    curves = {
        ROWS[name].title: {int(epoch): loss for epoch, loss in found["losses"].items()}
        for name, found in trained.items()
    }
    report.plot_curves(files["losses.png"], curves, "Mean triplet loss of an epoch", "epoch", "loss")
    pictures = [
        report.Picture(ROWS[name].title, Path(found["files"]["tsne"]), _TSNE)
        for name, found in outcomes.items()
        if "measures" in found
    ]
    losses = report.Picture("Losses", files["losses.png"], _CURVES)
    facts = report.Facts("Settings", _facts(config, cases, outcomes))
    intro = f"DeepHashing using triplet loss, the rows of Table 1, on {config.data}; preset {config.preset}."
    report.write_html(files["report.html"], "DeepHash", intro, [table, mining, losses, *pictures, facts])
    validated = sum(record.validated_steps for record in records.values())
    return "\n".join([
        report.text_table(table),
        "",
        report.text_table(mining),
        "",
        f"validated {validated} steps, {sum(record.mismatches for record in records.values())} mismatches; "
        f"{sum(found.get('seconds', 0) for found in outcomes.values()):.0f} s of training and evaluation",
        f"written: {', '.join(str(path) for path in files.values())}",
    ])  # fmt: skip


def measures_table(
    cases: Mapping[str, DeepHashConfig],  # by row
    outcomes: Mapping[str, Mapping[str, Any]],  # by row
) -> Table:
    """Table 1: the rows in its order, and beneath those that hash what they became under quantisation."""
    rows: list[list[Cell]] = []
    reasons: list[str] = []
    for name, found in outcomes.items():
        case, title = cases[name], ROWS[name].title
        if "skipped" in found:
            reasons.append(found["skipped"])
            rows.append([title, *(None for _ in MEASURES), None, f"skipped [{len(reasons)}]"])
            continue
        points = [(title, case.epochs if case.trains else 0, found["measures"])]
        if found["unquantized"] is not None:
            points = [
                (title, case.quantization_after, found["unquantized"]),
                (f"{title}{_QUANTIZED}", case.epochs, found["measures"]),
            ]
        for part, epochs, measures in points:
            rows.append([part, *(measures[key] for key in MEASURES), epochs, found["origin"]])
    case = next(iter(cases.values()))
    trained_as = (
        f"Preset {case.preset}: from scratch at width {case.width:g}, {case.side} x {case.side} pixels, "
        f"seed {case.seed}."
    )
    skipped = [f"[{number}] {reason}" for number, reason in enumerate(reasons, start=1)]
    note = "\n".join([_NOTE, trained_as, *skipped])
    table = Table("Table 1", ("row", *MEASURES.values(), "epochs", "network"), rows, note)
    others = [None] * (len(table.columns) - 3)
    published = {row.title: [row.knn_percent, row.map_percent, *others] for row in ROWS.values()}
    return report.with_published(table, published, case.data, PAPERS_DATA)


def _facts(
    config: DeepHashConfig,
    cases: Mapping[str, DeepHashConfig],
    outcomes: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The settings that all rows share, and what each took."""
    own = {"row", "output", *(name for row in ROWS.values() for name in row.settings)}
    shared = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if field.name not in own and len({getattr(case, field.name) for case in cases.values()}) == 1
    }
    took = {
        f"{ROWS[name].title}: epochs, seconds": f"{cases[name].epochs}, {found['seconds']:.0f}"
        for name, found in outcomes.items()
        if "seconds" in found and cases[name].trains
    }
    return shared | took
