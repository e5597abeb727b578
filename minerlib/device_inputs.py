"""Validation where the rows stay on their device: torch tensors in, a problem of tensors out.

The rules and messages are those of inputs.py. Whether values are finite is found on the device and not read
back here: `DeviceProblem.read` does that together with the number that sizes a compact result, and a padded
result never asks, because rows that are not finite take no part in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from minerlib import arrays, inputs
from minerlib.arrays import Origin

if TYPE_CHECKING:
    from tritonkernels.extremes import Rows
    from tritonkernels.labels import Labels, Pairs

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.bool, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16,
             torch.uint32, torch.uint64)  # fmt: skip


@dataclass(frozen=True, eq=False)
class DeviceProblem:
    """`inputs.Problem` with tensors: anchors (or queries) against columns."""

    anchors: torch.Tensor  # [N, D] bfloat16, float32 or float64, contiguous
    columns: torch.Tensor  # [M, D] of the same type; the very tensor `anchors` in self-mining
    group: Callable[[], Labels] | None  # who is of one class: kernels, which run when they are first asked
    own: bool  # self-mining: row i is never its own positive
    metric: str
    origin: Origin
    names: tuple[str, str]  # of the arguments, for messages
    strict: bool = True  # False: rows that are not finite take no part, instead of an error
    slots: int | None = None  # of a padded answer by pair; None: as many as there are pairs, read back

    where: ClassVar[Any] = staticmethod(torch.where)

    @cached_property
    def labels(self) -> Labels | None:
        return None if self.group is None else self.group()

    @cached_property
    def rows(self) -> Rows:
        """What the kernels take; rows that are not finite are marked."""
        from tritonkernels import extremes, filter

        largest = filter.inspect(self.anchors)
        other = largest if self.columns is self.anchors else filter.inspect(self.columns)
        return extremes.Rows(self.anchors, self.columns, largest, other, self.metric)

    def indices(self) -> torch.Tensor:  # [N] int64
        return torch.arange(len(self.anchors), device=self.anchors.device)

    def cases(self, seed: int) -> torch.Tensor:  # [N] int64
        """The case of each anchor under `assorted`."""
        from tritonkernels import philox

        return philox.cases(seed, self.indices())

    def pairs(self, combinations: bool) -> Pairs:
        """All anchor-positive pairs, or as many as there are slots."""
        from tritonkernels import labels

        assert self.labels is not None
        n, m = len(self.anchors), len(self.columns)
        offsets = labels.pair_offsets(self.labels, n, m, combinations)
        slots = self.read(offsets[-1])[0] if self.slots is None else self.slots
        return labels.list_pairs(self.labels, offsets, slots, m, combinations)

    def read(self, *numbers: torch.Tensor) -> list[int]:
        """The numbers on the host, in one transfer that also tells whether all rows are finite."""
        if not self.strict:
            return torch.stack([number.reshape(()).long() for number in numbers]).tolist()
        bad = [_any_negative(largest) for largest in (self.rows.x_largest, self.rows.y_largest)]
        found: list[int] = torch.stack([*bad, *(number.reshape(()).long() for number in numbers)]).tolist()
        for name, rows, flag in zip(self.names, (self.anchors, self.columns), found, strict=False):
            if flag:
                inputs.rows_of(name, rows)  # says which row it is
                raise AssertionError("the host refuses the rows that the device marks")
        return found[2:]


def _any_negative(largest: torch.Tensor) -> torch.Tensor:
    return (largest < 0).any().long()


def mining_problem(
    embeddings: Any,  # [N, D]
    labels: Any,  # [N] or [N, C] bool
    reference: Any,  # [M, D] or None
    reference_labels: Any,  # [M], [M, C] bool or None
    metric: str,
    strict: bool = True,
) -> DeviceProblem:
    """As `inputs.mining_problem`."""
    from tritonkernels import labels as grouping

    inputs.one_of("metric", metric, inputs.METRICS)
    inputs.both_or_neither(reference, reference_labels)
    inputs.same_device(
        embeddings=embeddings, labels=labels, reference=reference, reference_labels=reference_labels
    )
    x, origin = _rows("embeddings", embeddings)
    x_labels = _labels("labels", labels, "embeddings", len(x)).to(x.device)  # host arrays follow the rows
    group: Callable[..., Labels] = grouping.multiple if x_labels.ndim == 2 else grouping.single
    if reference is None:
        keys = x_labels if x_labels.ndim == 2 else _keys(x_labels)
        return DeviceProblem(
            x, x, partial(group, keys, keys), True, metric, origin, ("embeddings", "embeddings"), strict
        )
    y = _rows("reference", reference)[0].to(x.device)
    inputs.same_width("embeddings", x, "reference", y)
    y_labels = _labels("reference_labels", reference_labels, "reference", len(y)).to(x.device)
    inputs.same_form(x_labels, y_labels)
    x, y = _common_type(x, y)
    group = group if x_labels.ndim == 2 else _across
    return DeviceProblem(
        x, y, partial(group, x_labels, y_labels), False, metric, origin, ("embeddings", "reference"), strict
    )


def search_problem(
    queries: Any,  # [Q, D]
    database: Any,  # [M, D]
    metric: str,
    names: tuple[str, str] = ("queries", "database"),
) -> DeviceProblem:
    """As `inputs.search_problem`."""
    inputs.one_of("metric", metric, inputs.METRICS)
    inputs.same_device(**{names[0]: queries, names[1]: database})
    x, origin = _rows(names[0], queries)
    y = x if database is queries else _rows(names[1], database)[0].to(x.device)
    inputs.same_width(names[0], x, names[1], y)
    x, y = _common_type(x, y)
    return DeviceProblem(x, y, None, False, metric, origin, names)


def code_pair(x_name: str, x: torch.Tensor, y_name: str, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As `inputs.code_pair`, of tensors that stay where they are: uint8 [rows, bytes]."""
    inputs.same_device(**{x_name: x, y_name: y})
    found = []
    for name, value in ((x_name, x), (y_name, y)):
        codes = arrays.plain_tensor(name, value, torch)
        inputs.code_form(name, codes.shape, _name(codes.dtype))
        found.append(codes)
    inputs.same_bytes(x_name, found[0], y_name, found[1])
    return tuple(found)


def to_tensor(name: str, value: Any) -> tuple[torch.Tensor, Origin]:
    """A tensor on its own device (host arrays become host tensors), detached, and its origin."""
    if isinstance(value, torch.Tensor):
        return arrays.plain_tensor(name, value, torch), Origin("torch", value.device)
    array, origin = arrays.to_numpy(name, value)
    return torch.from_numpy(np.array(array)), origin


def back(origin: Origin, tensor: torch.Tensor) -> Any:
    """A result as the caller's kind of array; a tensor stays where it is."""
    return tensor if origin.kind == "torch" else origin.wrap(tensor.numpy())


def _rows(name: str, value: Any) -> tuple[torch.Tensor, Origin]:
    tensor, origin = to_tensor(name, value)
    if tensor.ndim != 2:
        raise ValueError(
            f"{name}: expected shape [rows, dimensions], got {tensor.ndim} axes {list(tensor.shape)}"
        )
    if tensor.dtype not in _FLOATS:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {_name(tensor.dtype)}")
    if tensor.shape[1] == 0:
        raise ValueError(f"{name}: expected at least one dimension, got shape {list(tensor.shape)}")
    if tensor.dtype == torch.float16:
        tensor = tensor.float()
    return tensor.contiguous(), origin


def _common_type(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if x.dtype == y.dtype:
        return x, y
    wide = torch.promote_types(x.dtype, y.dtype)  # exact: each of the three types holds the smaller ones
    return x.to(wide), y.to(wide)


def _labels(name: str, value: Any, rows_name: str, rows: int) -> torch.Tensor:
    tensor, _ = to_tensor(name, value)
    if tensor.ndim not in (1, 2):
        raise ValueError(f"{name}: expected shape [rows] or [rows, labels], got {list(tensor.shape)}")
    if tensor.ndim == 2 and tensor.dtype != torch.bool:
        raise TypeError(
            f"{name}: expected bool for multi-label rows {list(tensor.shape)}, got {_name(tensor.dtype)}"
        )
    if tensor.dtype not in _INTEGERS:
        raise TypeError(f"{name}: expected integers or bool, got {_name(tensor.dtype)}")
    if len(tensor) != rows:
        raise ValueError(f"{name}: expected {rows} rows like {rows_name}, got {len(tensor)}")
    return tensor


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _keys(
    labels: torch.Tensor,  # [N]
) -> torch.Tensor:  # [N] int64, equal where the labels are
    return labels.view(torch.int64) if labels.dtype == torch.uint64 else labels.long()


def _across(x: torch.Tensor, y: torch.Tensor) -> Labels:
    """Labels of both sides. Where one side is uint64, what the sign bit marks equals nothing on the other."""
    from tritonkernels import labels as grouping

    x_keys, y_keys = _keys(x), _keys(y)
    found = grouping.single(x_keys, y_keys)
    if (x.dtype == torch.uint64) == (y.dtype == torch.uint64):
        return found
    return replace(found, anchor_class=torch.where(x_keys < 0, -1, found.anchor_class))
