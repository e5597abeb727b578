"""losses_batch: losses over all rows of a batch, and their gradients, a tile of anchors at a time.

x [N, D] anchors, y [M, D] columns (or own rows), float32 or float64, labels; d canonical, in float64.
`batch_all` is in losses_hinges.py; `nca`, `easiest` and `proxies` are in losses_ratios.py.

1. `pairwise.selections` writes the distances of a tile of anchors to all columns, [R, M] float64.
2. One program an anchor turns them into the terms' sum and the derivatives by d, in place.
3. `losses_rows.collect` multiplies the derivatives with the rows, for both sides.

The same call gives the same bits. Nothing is read back, but for `proxies` whether every class has one.
Limits: N, M < 2^31. Memory: TILE_BYTES, 8 bytes a value of the rows and 40 a row.
Source: Ding et al. 2015, EXT eq. 1, 4-7. As csrc/cpu/losses_batch_all_impl.h.
"""

from __future__ import annotations

import torch

from tritonkernels import losses_rows
from tritonkernels.canonical import metric_norms
from tritonkernels.labels import Labels
from tritonkernels.launching import float64_on, on_device, power_of_two
from tritonkernels.losses_hinges import BATCH_ALL
from tritonkernels.losses_ratios import RATIO, RULES, STAND
from tritonkernels.losses_rows import METRICS, TILE_BYTES, Collected, Sums
from tritonkernels.losses_triplet import Parts
from tritonkernels.pairwise import selections, to_metric


def batch_loss(
    x: torch.Tensor,  # [N, D] float32 or float64
    y: torch.Tensor | None,  # [M, D] of the same type
    labels: Labels,  # of x against y; of x against itself for proxies
    kind: str,  # batch_all, nca, easiest or proxies
    margin: float,
    metric: str,
    reduction: str,
    *,
    differentiate: bool,
    assigned: torch.Tensor | None = None,  # [N] int64 of `assign`, for proxies
) -> Parts:
    """The loss and, where asked for, its gradients. Nothing is read back."""
    own, x = y is None, x.contiguous()
    y = x if y is None else y.contiguous()
    n, m, device = len(x), len(y), x.device
    nothing = x.new_empty(0)
    if n == 0 or m == 0 or x.shape[1] == 0:
        zeros = torch.zeros_like(x) if differentiate else nothing
        return x.new_zeros(()), zeros, torch.zeros_like(y) if differentiate and not own else nothing.clone()
    norms, center = metric_norms(x, y, metric), y[0]
    columns = Collected.of(y, norms[1], center, metric)
    anchors = columns if own else Collected.of(x, norms[0], center, metric)
    parts = Sums.empty(n, device)
    weigh = _Weigh(labels, parts, kind, margin, METRICS.index(metric), x, m, assigned)
    for first in range(0, n, weigh.step):
        tile = weigh.values[: min(weigh.step, n - first)]
        with on_device(x):
            selections(x[first : first + len(tile)], y, metric, tile)
            to_metric(tile, metric)
            weigh.run(tile, first)
        if differentiate:
            losses_rows.collect(tile, first, anchors, columns)
    usable = losses_rows.finite(x, None if own else y)
    loss, scale = losses_rows.total(parts, usable, 0.0, reduction, x.dtype)
    if not differentiate:
        return loss, nothing, nothing.clone()
    return loss, anchors.gradient(scale), nothing if own else columns.gradient(scale)


class _Weigh:
    """The second step, with the buffers of a tile."""

    def __init__(
        self,
        labels: Labels,
        parts: Sums,
        kind: str,
        margin: float,
        metric: int,
        x: torch.Tensor,
        columns: int,
        assigned: torch.Tensor | None,
    ) -> None:
        self.labels, self.parts, self.kind, self.metric, self.assigned = labels, parts, kind, metric, assigned
        self.rows, self.columns, self.length = len(x), columns, power_of_two(columns)
        taken = 8 * columns + {"batch_all": 12 * self.length, "proxies": 8 * columns}.get(kind, 0)
        self.step = max(1, min(len(x), TILE_BYTES // taken))
        self.values = torch.empty(self.step, columns, dtype=torch.float64, device=x.device)
        self.counts = torch.empty(2, self.step, columns if kind == "proxies" else 0, dtype=torch.int32,
                                  device=x.device)  # fmt: skip
        if kind == "batch_all":
            self.ordered = torch.empty(self.step, self.length, dtype=torch.float64, device=x.device)
            self.active = torch.empty(self.step, self.length, dtype=torch.int32, device=x.device)
            self.margin = float64_on(x.device, margin)

    def run(self, tile: torch.Tensor, first: int) -> None:
        labels, parts = self.labels, self.parts
        classes = (labels.anchor_class, labels.column_class, labels.anchor_bits, labels.column_bits)
        own, multi = int(labels.own), labels.multi
        if self.kind == "batch_all":
            BATCH_ALL(
                (len(tile),), tile, self.ordered, self.active, *classes, self.margin, parts.sums, parts.terms,
                parts.above, first, self.columns, self.length, labels.words, own, self.metric, MULTI=multi,
            )  # fmt: skip
            return
        near, far = self.counts
        if self.kind == "proxies":
            self.counts.zero_()
            STAND(
                (len(tile),), self.assigned, labels.anchor_class, labels.anchor_bits, near, far, first,
                self.rows, self.columns, labels.words, MULTI=multi,
            )  # fmt: skip
        RATIO(
            (len(tile),), tile, near, far, *classes, parts.sums, parts.terms, parts.above, first,
            self.columns, labels.words, own, self.metric, RULE=RULES[self.kind].value, MULTI=multi,
        )  # fmt: skip
