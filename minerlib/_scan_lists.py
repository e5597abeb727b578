"""Listing the pairs that a scan has marked, and drawing negatives by their distance (numba).

Arguments are those of `_scan_kernels`; kernels that need no canonical distance are here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minerlib.backends._numba_jit import kernel

NEITHER, POSITIVE, NEGATIVE = 0, 1, 2


@kernel
def list_negatives(
    marks: np.ndarray,  # [B, M] uint8
    rows: np.ndarray,  # [B] the anchors
    starts: np.ndarray,  # [B + 1] where each row's columns go
    anchors: np.ndarray,  # out
    columns: np.ndarray,  # out
) -> None:
    """The (anchor, column) pairs marked as negative, by anchor, then column."""
    for row in range(marks.shape[0]):
        place, end = starts[row], starts[row + 1]
        anchors[place:end] = rows[row]
        j = 0
        while place < end:
            if marks[row, j] == NEGATIVE:
                columns[place] = j
                place += 1
            j += 1


@kernel
def list_positives(
    marks: np.ndarray,  # [B, M] uint8
    rows: np.ndarray,  # [B] the anchors
    x_class: np.ndarray,
    class_starts: np.ndarray,
    members: np.ndarray,
    starts: np.ndarray,  # [B + 1] where each row's columns go
    anchors: np.ndarray,  # out
    columns: np.ndarray,  # out
) -> None:
    """The (anchor, column) pairs marked as positive, by anchor, then column."""
    for row in range(marks.shape[0]):
        place, a = starts[row], rows[row]
        anchors[place : starts[row + 1]] = a
        for j in members[class_starts[x_class[a]] : class_starts[x_class[a] + 1]]:
            if marks[row, j] == POSITIVE:
                columns[place] = j
                place += 1


@kernel
def draw_weighted(
    g: np.ndarray,  # [B, M]
    first: int,
    x: np.ndarray,
    y: np.ndarray,
    x_norm: np.ndarray,
    y_norm: np.ndarray,
    x_class: np.ndarray,
    class_starts: np.ndarray,
    members: np.ndarray,
    options: Any,
    cutoffs: tuple[
        float, float
    ],  # distances are clamped below at the first, weigh nothing from the second on
    starts: np.ndarray,  # [B + 1] each anchor's draws
    uniform: np.ndarray,  # [draws] in [0, 1)
    drawn: np.ndarray,  # [draws] out: a negative, or -1 where all of them weigh nothing
) -> None:
    """Negatives drawn with weight d^(2-D) (1 - d^2/4)^((3-D)/2), in log space, scaled per anchor."""
    columns, dimension = y.shape
    weight, cumulative = np.empty(columns), np.empty(columns)
    least = cutoffs[0] * cutoffs[0]
    for row in range(g.shape[0]):
        a = first + row
        for j in range(columns):
            square = x_norm[a] * x_norm[a] + y_norm[j] * y_norm[j] - 2.0 * np.float64(g[row, j])
            cumulative[j] = max(square, least)
        for j in members[class_starts[x_class[a]] : class_starts[x_class[a] + 1]]:
            cumulative[j] = 4.0  # weighs nothing
        heaviest = -np.inf
        for j in range(columns):
            square = cumulative[j]
            weight[j] = -np.inf
            if 0.0 < square < 4.0 and np.sqrt(square) < cutoffs[1]:
                weight[j] = 0.5 * (2.0 - dimension) * np.log(square)
                weight[j] -= 0.5 * (dimension - 3.0) * np.log(1.0 - 0.25 * square)
                heaviest = max(heaviest, weight[j])
        total = 0.0
        for j in range(columns):
            if weight[j] > -np.inf:
                total += np.exp(weight[j] - heaviest)
            cumulative[j] = total
        for place in range(starts[row], starts[row + 1]):
            drawn[place] = -1
            if total > 0.0:
                target = min(uniform[place] * total, np.nextafter(total, 0.0))
                drawn[place] = np.searchsorted(cumulative, target, side="right")
