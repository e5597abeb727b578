"""Pictures of a run as PNG files: retrieval precision, and losses over the iterations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minerlib.files import written_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS_NAMES = {"ae": "AE loss", "siamese": "SE loss", "fr": "RE loss", "total": "TOTAL loss"}


def plot_precision(
    path: Path,
    curves: Mapping[str, Mapping[int, float]],  # name: {images retrieved: per cent}
    title: str,
) -> None:
    """Mean precision against the number of images retrieved, one curve a name, as in JTANet's Fig. 7."""
    figure = _figure()
    axes = figure.add_subplot()
    for name, precision in curves.items():
        axes.plot(list(precision), list(precision.values()), marker="o", markersize=3, label=name)
    axes.set(title=title, xlabel="images retrieved", ylabel="mean precision (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def plot_losses(
    path: Path,
    steps: Sequence[int],
    losses: Mapping[str, Sequence[float]],  # by key of LOSS_NAMES
    title: str,
) -> None:
    """Each loss and the total against the iteration, as in JTANet's Fig. 8; zero stays visible.

    The last batch of an epoch may be smaller than the others, and its sums with it.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure()
    axes = figure.add_subplot()
    for key, name in LOSS_NAMES.items():
        axes.plot(steps, losses[key], linewidth=2 if key == "total" else 1, label=name)
    axes.set_yscale("symlog", linthresh=1)
    axes.set(title=title, ylabel="loss, summed over the batch")
    axes.set_xlabel("iteration (the last batch of an epoch may be smaller)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def _figure() -> Figure:
    from matplotlib.figure import Figure  # a figure of its own, drawn by Agg: no window, no global state

    return Figure(figsize=(7, 4.5), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    with written_whole(path) as stream:
        figure.savefig(stream, format="png", dpi=150)
