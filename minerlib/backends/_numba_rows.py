"""Canonical float64 distances (SPEC section 2) from a few anchors to every column, compiled by numba.

    acc[l] = 0 for l in 0..7;  acc[k % 8] += t * t with t = x[k] - y[k]  (x[k] * y[k] for cosine)
    sum = ((acc0 + acc1) + (acc2 + acc3)) + ((acc4 + acc5) + (acc6 + acc7))

anchors [B, D] float64, columns packed as panels [P, D, W] float32 or float64, rows [B, M] float64 out.
The columns of a panel lie side by side, so that a vector register holds one lane's sum for several columns:
nothing is added across a register, and the order of additions is the specification's whatever its width.
Two anchors share what is loaded of a panel. Sums are written once for every four steps of a lane.
"""

from __future__ import annotations

import numpy as np

from minerlib.backends._numba_jit import kernel

LANES = 8


@kernel
def _squares_of_four(
    a: np.ndarray,  # [W] one lane's sums of the first anchor
    b: np.ndarray,  # [W] and of the second
    x: np.ndarray,  # [D] the first anchor
    z: np.ndarray,  # [D] the second
    panel: np.ndarray,  # [D, W]
    k: int,
) -> None:
    x0, x1, x2, x3 = x[k], x[k + 8], x[k + 16], x[k + 24]
    z0, z1, z2, z3 = z[k], z[k + 8], z[k + 16], z[k + 24]
    p0, p1, p2, p3 = panel[k], panel[k + 8], panel[k + 16], panel[k + 24]
    for c in range(a.size):
        y0, y1, y2, y3 = np.float64(p0[c]), np.float64(p1[c]), np.float64(p2[c]), np.float64(p3[c])
        t0, t1, t2, t3 = x0 - y0, x1 - y1, x2 - y2, x3 - y3
        a[c] = (((a[c] + t0 * t0) + t1 * t1) + t2 * t2) + t3 * t3
        t0, t1, t2, t3 = z0 - y0, z1 - y1, z2 - y2, z3 - y3
        b[c] = (((b[c] + t0 * t0) + t1 * t1) + t2 * t2) + t3 * t3


@kernel
def _squares_of_one(
    a: np.ndarray, b: np.ndarray, x: np.ndarray, z: np.ndarray, panel: np.ndarray, k: int
) -> None:
    x0, z0, p0 = x[k], z[k], panel[k]
    for c in range(a.size):
        y0 = np.float64(p0[c])
        t0 = x0 - y0
        a[c] += t0 * t0
        t0 = z0 - y0
        b[c] += t0 * t0


@kernel
def _products_of_four(
    a: np.ndarray, b: np.ndarray, x: np.ndarray, z: np.ndarray, panel: np.ndarray, k: int
) -> None:
    x0, x1, x2, x3 = x[k], x[k + 8], x[k + 16], x[k + 24]
    z0, z1, z2, z3 = z[k], z[k + 8], z[k + 16], z[k + 24]
    p0, p1, p2, p3 = panel[k], panel[k + 8], panel[k + 16], panel[k + 24]
    for c in range(a.size):
        y0, y1, y2, y3 = np.float64(p0[c]), np.float64(p1[c]), np.float64(p2[c]), np.float64(p3[c])
        a[c] = (((a[c] + x0 * y0) + x1 * y1) + x2 * y2) + x3 * y3
        b[c] = (((b[c] + z0 * y0) + z1 * y1) + z2 * y2) + z3 * y3


@kernel
def _products_of_one(
    a: np.ndarray, b: np.ndarray, x: np.ndarray, z: np.ndarray, panel: np.ndarray, k: int
) -> None:
    x0, z0, p0 = x[k], z[k], panel[k]
    for c in range(a.size):
        y0 = np.float64(p0[c])
        a[c] += x0 * y0
        b[c] += z0 * y0


@kernel
def _combine(
    acc: np.ndarray,  # [8, W]
    out: np.ndarray,  # [at most W]
) -> None:
    for c in range(out.size):
        out[c] = ((acc[0, c] + acc[1, c]) + (acc[2, c] + acc[3, c])) + (
            (acc[4, c] + acc[5, c]) + (acc[6, c] + acc[7, c])
        )


@kernel
def _to_cosine(
    row: np.ndarray,  # [at most W] dot products in, distances out
    norm: float,
    norms: np.ndarray,  # [at most W]
) -> None:
    for c in range(row.size):
        scale = norm * norms[c]
        row[c] = 1.0 - (row[c] / scale if scale != 0.0 else 0.0)


@kernel
def fill_rows(
    anchors: np.ndarray,  # [B, D] float64
    panels: np.ndarray,  # [P, D, W] float32 or float64
    norms: tuple[np.ndarray, np.ndarray] | None,  # [B] and [M] float64, for cosine distances
    rows: np.ndarray,  # [B, M] float64, written
) -> None:
    """Squared distances without norms, cosine distances with them; numba compiles only the branch taken."""
    count, dimension = anchors.shape
    width = panels.shape[2]
    acc = np.empty((2, LANES, width))
    for p in range(panels.shape[0]):
        panel = panels[p]
        first = p * width
        last = min(first + width, rows.shape[1])
        for i in range(0, count, 2):
            j = min(i + 1, count - 1)
            acc[:] = 0.0
            for lane in range(min(LANES, dimension)):
                k = lane
                while k + 24 < dimension:
                    if norms is None:
                        _squares_of_four(acc[0, lane], acc[1, lane], anchors[i], anchors[j], panel, k)
                    else:
                        _products_of_four(acc[0, lane], acc[1, lane], anchors[i], anchors[j], panel, k)
                    k += 32
                while k < dimension:
                    if norms is None:
                        _squares_of_one(acc[0, lane], acc[1, lane], anchors[i], anchors[j], panel, k)
                    else:
                        _products_of_one(acc[0, lane], acc[1, lane], anchors[i], anchors[j], panel, k)
                    k += 8
            _combine(acc[0], rows[i, first:last])
            _combine(acc[1], rows[j, first:last])
            if norms is not None:
                _to_cosine(rows[i, first:last], norms[0][i], norms[1][first:last])
                if j != i:
                    _to_cosine(rows[j, first:last], norms[0][j], norms[1][first:last])
