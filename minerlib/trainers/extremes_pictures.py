"""Pictures of the extreme-distance study: which classes are whose negatives, and what is retrieved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minerlib.trainers.images import ImageSet
from minerlib.trainers.report import figure, save

_WRONG = (214, 39, 40)  # the frame of a wrong hit
_MOST_NUMBERED = 15  # classes up to which the cells of a matrix have room for their numbers


def negative_flow(
    anchors: Tensor,  # [T] rows
    negatives: Tensor,  # [T] rows
    labels: Tensor,  # [N]
    classes: int,
) -> list[list[int]]:  # [classes][classes]
    """How many triplets with an anchor of class i take a negative of class j.

    >>> import torch
    >>> negative_flow(torch.tensor([0, 1, 2]), torch.tensor([2, 2, 0]), torch.tensor([0, 0, 1]), 2)
    [[0, 2], [1, 0]]
    """
    pairs = labels[anchors] * classes + labels[negatives]
    counts: list[list[int]] = pairs.bincount(minlength=classes * classes).view(classes, classes).tolist()
    return counts


def plot_flows(
    path: Path,
    flows: Mapping[str, Sequence[Sequence[int]]],  # by title: [classes][classes]
    classes: Sequence[str],
    title: str,
) -> None:
    """One matrix a title: row i says where the anchors of class i take their negatives from (Fig. 4)."""
    side = min(12, max(3.6, 0.42 * len(classes)))
    drawn = figure(side * len(flows) + 0.8, side + 1.1)
    places = np.arange(len(classes))
    all_axes = []
    for place, (name, flow) in enumerate(flows.items(), start=1):
        axes = drawn.add_subplot(1, len(flows), place)
        all_axes.append(axes)
        counts = np.asarray(flow)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_title(name, fontsize="medium")
        axes.set_xlabel("class of the negative")
        axes.set_xticks(places, classes, rotation=90 if max(map(len, classes)) > 2 else 0)
        axes.set_yticks(places, classes)
        if place == 1:
            axes.set_ylabel("class of the anchor")
        if len(classes) <= _MOST_NUMBERED:
            for i, j in zip(*counts.nonzero(), strict=True):
                colour = "white" if shares[i, j] > 0.5 else "black"
                axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=7, color=colour)
    drawn.colorbar(shown, ax=all_axes, label="share of the anchor's class", shrink=0.8)
    drawn.suptitle(title)
    save(drawn, path)


def plot_retrievals(
    path: Path,
    images: ImageSet,
    retrievals: Sequence[tuple[str, int, Sequence[int]]],  # name, row of the query, rows retrieved in order
    title: str,
) -> None:
    """A line for each retrieval: the query, then what was retrieved, wrong hits framed in red (Fig. 5)."""
    frame = max(1, images.side // 16)
    tile = images.side + 4 * frame
    columns = 1 + max(len(rows) for _, _, rows in retrievals)
    sheet = np.full((tile * len(retrievals), tile * columns, 3), 255, dtype=np.uint8)
    for line, (_, query, rows) in enumerate(retrievals):
        shown = images.rows(torch.tensor([query, *rows]))
        pictures = shown.images.permute(0, 2, 3, 1).numpy()
        wrong = (shown.labels != images.labels[query]).tolist()
        for column, picture in enumerate(pictures):
            cell = sheet[tile * line : tile * (line + 1), tile * column : tile * (column + 1)]
            if wrong[column]:
                cell[frame:-frame, frame:-frame] = _WRONG
            cell[2 * frame : -2 * frame, 2 * frame : -2 * frame] = picture

    drawn = figure(0.75 * columns + 1.8, 0.75 * len(retrievals) + 0.9)
    axes = drawn.add_subplot()
    axes.imshow(sheet, interpolation="nearest")
    axes.set_yticks(tile * (np.arange(len(retrievals)) + 0.5), [name for name, _, _ in retrievals])
    axes.set_xticks(tile * (np.arange(columns) + 0.5), ["query", *(str(rank) for rank in range(1, columns))])
    axes.tick_params(length=0, labelsize="small")
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    drawn.suptitle(title)
    save(drawn, path)
