"""A mining call of pytorch-metric-learning as arrays that minerlib takes, or the reason why it cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning import distances
from torch import Tensor

from minerlib.arrays import Origin
from minerlib.inputs import LARGEST_VALUE, Problem, SingleLabels

try:  # version 3 returns named tuples, and there a reference that is given is always a separate set
    from pytorch_metric_learning import types as _types
except ImportError:
    _types = None

METRICS = ("sqeuclidean", "euclidean", "cosine")

#: Of fewer elements torch shares no operation out. Where it does, its second thread waits for more work for
#: milliseconds, on the core that the kernels' second thread needs.
_SERIAL = 1 << 15


class Fallback(Exception):
    """Why the original implementation has to answer."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows as the miner's distance object normalises them; anchors against columns."""

    x: np.ndarray  # [N, D] float32 or float64, C-contiguous
    y: np.ndarray  # [M, D] of the same type; the very array x in self-mining
    x_class: np.ndarray  # [N] int64
    y_class: np.ndarray  # [M] int64
    own: bool
    metric: str
    device: torch.device

    @property
    def empty(self) -> bool:
        return len(self.x) == 0 or len(self.y) == 0

    @cached_property
    def problem(self) -> Problem:
        """The batch as the native kernels take it."""
        classes = 1 + max(int(self.x_class.max()), int(self.y_class.max()))
        starts = np.zeros(classes + 1, dtype=np.int64)
        np.cumsum(np.bincount(self.y_class, minlength=classes), out=starts[1:])
        labels = SingleLabels(self.x_class, starts, np.argsort(self.y_class, kind="stable"))
        return Problem(self.x, self.y, labels, self.own, self.metric, Origin("numpy"))

    def give(self, *columns: np.ndarray) -> tuple[Tensor, ...]:
        """Index vectors as pytorch-metric-learning's losses take them: `(a, p, n)` or `(a1, p, a2, n)`."""
        tensors = tuple(torch.from_numpy(np.ascontiguousarray(column)) for column in columns)
        return named(*(tensor.to(self.device) for tensor in tensors))


def named(*columns: Tensor) -> tuple[Tensor, ...]:
    """Version 3's named tuples where it is installed; they are tuples too."""
    if _types is None:
        return columns
    result: tuple[Tensor, ...] = (_types.TripletIndices if len(columns) == 3 else _types.PairIndices)(
        *columns
    )
    return result


def metric_of(distance: Any) -> str:
    """minerlib's metric for a distance object; `Fallback` for what the kernels do not compute."""
    kind = type(distance)  # a subclass may compute anything
    if kind is distances.LpDistance:
        if distance.p == 2 and distance.power in (1, 2):
            return "euclidean" if distance.power == 1 else "sqeuclidean"
        raise Fallback(
            f"LpDistance(p={distance.p}, power={distance.power}) is neither Euclidean nor its square"
        )
    if kind is distances.CosineSimilarity or (
        kind is distances.DotProductSimilarity and distance.normalize_embeddings
    ):
        if distance.p == 2 and distance.power == 1:
            return "cosine"
        raise Fallback(f"{kind.__name__}(p={distance.p}, power={distance.power}) is no cosine")
    raise Fallback(f"{kind.__name__} is not one of LpDistance and CosineSimilarity")


def prepare(
    distance: Any,
    embeddings: Tensor,  # [N, D]
    labels: Tensor,  # [N]
    ref_emb: Tensor | None,  # [M, D]
    ref_labels: Tensor | None,  # [M]
) -> Batch:
    """The call as a `Batch`."""
    metric = metric_of(distance)
    own = _own(embeddings, labels, ref_emb, ref_labels)
    rows = _normalised(distance, embeddings)
    columns = rows if own else _normalised(distance, ref_emb)
    _collect_norms(distance, embeddings, embeddings if own else ref_emb, rows, columns)
    x = _array(rows, metric)
    y = x if own else _array(columns, metric)
    if x.dtype != y.dtype:
        x, y = x.astype(np.float64), y.astype(np.float64)
    x_class, y_class = _classes(labels, None if own else ref_labels)
    return Batch(x, y, x_class, y_class, own, metric, embeddings.device)


def _own(embeddings: Tensor, labels: Tensor, ref_emb: Tensor | None, ref_labels: Tensor | None) -> bool:
    """Whether the batch is mined against itself, so that no row is its own positive."""
    if ref_emb is None:
        return True
    if _types is not None:
        return False
    same_rows, same_labels = ref_emb is embeddings, ref_labels is labels
    if same_rows != same_labels:
        raise Fallback(
            "rows or labels alone are shared with the reference, which the originals treat each in its way"
        )
    return same_rows


def _normalised(distance: Any, embeddings: Tensor | None) -> Tensor:
    assert embeddings is not None
    if embeddings.ndim != 2 or not embeddings.is_floating_point() or not embeddings.shape[1]:
        raise Fallback("rows of floating-point numbers are needed")
    rows = embeddings.detach()
    if not distance.normalize_embeddings:
        return rows
    step = max(1, (_SERIAL - 1) // rows.shape[1])
    if rows.device.type != "cpu" or rows.dtype not in (torch.float32, torch.float64):
        step = max(1, len(rows))
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    for first in range(0, len(rows), step):
        distance.normalize(rows[first : first + step], out=out[first : first + step])
    return out


def _collect_norms(
    distance: Any, embeddings: Tensor, ref_emb: Tensor | None, rows: Tensor, columns: Tensor
) -> None:
    """The distance object's own records of its last call."""
    if getattr(distance, "collect_stats", False):
        distance.reset_stats()
        distance.set_default_stats(embeddings.detach(), ref_emb, rows, columns)


def _array(rows: Tensor, metric: str) -> np.ndarray:
    if rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.float()
    array = np.ascontiguousarray(rows.cpu().numpy())
    if array.size and not max(float(array.max()), -float(array.min())) <= LARGEST_VALUE:
        raise Fallback("a row is not finite")
    if metric == "cosine":
        short = np.einsum("ij,ij->i", array, array) < 0.25
        if short.any() and array[short].any():
            raise Fallback("a row is too short to be normalised")
    return array


def _classes(labels: Tensor, ref_labels: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """Dense class numbers; two labels are of one class when `==` says so."""
    every = labels if ref_labels is None else torch.cat((labels, ref_labels.to(labels.device)))
    if every.is_complex() or (every.is_floating_point() and bool(every.isnan().any())):
        raise Fallback("labels are not ordinary numbers")
    dense = every.detach().cpu().numpy()
    if dense.dtype.kind not in "iu" or (dense.size and not 0 <= dense.min() <= dense.max() < 4 * dense.size):
        dense = np.unique(dense, return_inverse=True)[1]
    dense = np.ascontiguousarray(dense, dtype=np.int64)
    x_class = dense[: len(labels)]
    return x_class, x_class if ref_labels is None else dense[len(labels) :]
