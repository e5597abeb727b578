"""Time against the number of rows, ours and the peers'."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minerlib.benchmarks.results import OURS, Outcome


def series(outcomes: Sequence[Outcome]) -> dict[str, list[tuple[int, float]]]:
    """For each contender its (rows, milliseconds), ours first; none where it was left out."""
    found: dict[str, list[tuple[int, float]]] = {OURS: []}
    for outcome in outcomes:
        for timing in outcome.timings:
            found.setdefault(timing.name, []).append((outcome.options["rows"], timing.median_s * 1e3))
    return {name: sorted(points) for name, points in found.items()}


def time_against_rows(outcomes: Sequence[Outcome], headline: str, path: Path) -> None:
    """Write the plot, both axes logarithmic: a slope of two is a time that grows with the square of N."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    for name, points in series(outcomes).items():
        width = 2.5 if name == OURS else 1.2
        axes.loglog(*zip(*points, strict=True), marker="o", markersize=4, linewidth=width, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("rows N (D = 128, 8 rows a class)")
    axes.set_ylabel("milliseconds, median")
    axes.set_title(f"batch-hard\n{headline.splitlines()[0]}", fontsize=9)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)
