"""Validation: the one place that raises for bad input, and the frozen problem that every backend takes."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from minerlib import random
from minerlib.arrays import Origin, to_numpy

METRICS = ("sqeuclidean", "euclidean", "cosine")
PAIRS = ("ordered", "combinations")
FALLBACKS = ("drop", "hardest", "farthest")

#: Beyond this a squared distance may leave float64, and nothing could be compared any more.
LARGEST_VALUE = 1e150


@dataclass(frozen=True, eq=False)
class SingleLabels:
    """Classes of single-label rows: for every anchor the class of its positives among the columns."""

    anchor_class: np.ndarray  # [N] int64, -1: no column has this class
    starts: np.ndarray  # [C + 1] int64
    members: np.ndarray  # [M] int64 columns by class, ascending within a class

    def column_class(self) -> np.ndarray:  # [M] int64
        column_class = np.empty(len(self.members), dtype=np.int64)
        column_class[self.members] = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        return column_class

    def same_class(self) -> np.ndarray:  # [N, M] bool
        return self.anchor_class[:, None] == self.column_class()[None, :]


@dataclass(frozen=True, eq=False)
class MultiLabels:
    """Label sets as bits: two rows are of the same class when they share a label."""

    anchor_bits: np.ndarray  # [N, W] uint64
    column_bits: np.ndarray  # [M, W] uint64

    def same_class(self) -> np.ndarray:  # [N, M] bool
        shared = np.zeros((len(self.anchor_bits), len(self.column_bits)), dtype=bool)
        for word in range(self.anchor_bits.shape[1]):
            shared |= (self.anchor_bits[:, None, word] & self.column_bits[None, :, word]) != 0
        return shared


Labels = SingleLabels | MultiLabels


@dataclass(frozen=True, eq=False)
class Relevance:
    """Which database rows are relevant to which queries: by one class a row, or by sets of labels as bits.

    Either the two arrays of classes or the two of bits are there, the others are None.
    """

    query_classes: np.ndarray | None  # [Q] int64, -1: no database row has this class
    database_classes: np.ndarray | None  # [M] int64, dense from 0
    query_bits: np.ndarray | None  # [Q, W] uint64: relevant where a bit is shared
    database_bits: np.ndarray | None  # [M, W] uint64
    own: bool  # leave-one-out: database row i is query i and is left out of its ranking


@dataclass(frozen=True, eq=False)
class Problem:
    """Validated rows: anchors (or queries) against columns (the reference, the database, or the anchors)."""

    anchors: np.ndarray  # [N, D] float32 or float64, C-contiguous
    columns: np.ndarray  # [M, D] of the same type; the very array `anchors` in self-mining
    labels: Labels | None
    own: bool  # self-mining: row i is never its own positive
    metric: str
    origin: Origin

    where: ClassVar[Any] = staticmethod(np.where)

    def indices(self) -> np.ndarray:  # [N] int64
        return np.arange(len(self.anchors))

    def cases(self, seed: int) -> np.ndarray:  # [N] int64
        """The case of each anchor under `assorted`."""
        return random.cases(seed, self.indices())

    @cached_property
    def same_class(self) -> np.ndarray:  # [N, M] bool, for the reference alone
        assert self.labels is not None
        return self.labels.same_class()


def mining_problem(
    embeddings: Any,  # [N, D]
    labels: Any,  # [N] or [N, C] bool
    reference: Any,  # [M, D] or None
    reference_labels: Any,  # [M], [M, C] bool or None
    metric: str,
) -> Problem:
    """Check the arguments that `mine` and `count_triplets` share."""
    one_of("metric", metric, METRICS)
    both_or_neither(reference, reference_labels)
    same_device(embeddings=embeddings, labels=labels, reference=reference, reference_labels=reference_labels)
    x, origin = _rows("embeddings", embeddings)
    x_labels = labels_of("labels", labels, "embeddings", len(x))
    if reference is None:
        return Problem(x, x, group(x_labels, None), True, metric, origin)
    y, _ = _rows("reference", reference)
    same_width("embeddings", x, "reference", y)
    y_labels = labels_of("reference_labels", reference_labels, "reference", len(y))
    same_form(x_labels, y_labels)
    x, y = common_type(x, y)
    return Problem(x, y, group(x_labels, y_labels), False, metric, origin)


def search_problem(
    queries: Any,  # [Q, D]
    database: Any,  # [M, D]
    metric: str,
    names: tuple[str, str] = ("queries", "database"),
) -> Problem:
    """Check two sets of rows that are compared without labels."""
    one_of("metric", metric, METRICS)
    same_device(**{names[0]: queries, names[1]: database})
    x, origin = _rows(names[0], queries)
    y, _ = (x, origin) if database is queries else _rows(names[1], database)
    same_width(names[0], x, names[1], y)
    x, y = common_type(x, y)
    return Problem(x, y, None, False, metric, origin)


def relevance(
    query_labels: Any,  # [Q] or [Q, C] bool
    database_labels: Any,  # [M], [M, C] bool, or None: leave-one-out
    queries: int,
    database: int,
    names: tuple[str, str, str, str] = ("query_labels", "database_labels", "query_codes", "database_codes"),
) -> Relevance:
    """Check the labels of a ranking's two sides, of which there are `queries` and `database` rows."""
    x = labels_of(names[0], query_labels, names[2], queries)
    own = database_labels is None
    y = x if own else labels_of(names[1], database_labels, names[3], database)
    if x.ndim != y.ndim or x.shape[1:] != y.shape[1:]:
        raise ValueError(f"{names[1]}: expected the form of {names[0]} {list(x.shape)}, got {list(y.shape)}")
    labels = group(x, None if own else y)
    if isinstance(labels, SingleLabels):
        return Relevance(labels.anchor_class, labels.column_class(), None, None, own)
    return Relevance(None, None, labels.anchor_bits, labels.column_bits, own)


def code_rows(name: str, value: Any) -> tuple[np.ndarray, Origin]:
    """Packed codes, uint8 [rows, bytes], C-contiguous: a view wherever that can be."""
    array, origin = to_numpy(name, value)
    code_form(name, array.shape, "uint8" if array.dtype == np.uint8 else str(array.dtype))
    return np.ascontiguousarray(array), origin


def code_form(name: str, shape: Sequence[int], dtype: str) -> None:
    """Packed codes are uint8 [rows, bytes]."""
    if len(shape) != 2:
        raise ValueError(f"{name}: expected shape [rows, bytes], got {len(shape)} axes {list(shape)}")
    if dtype != "uint8":
        raise TypeError(f"{name}: expected packed codes of uint8 (see pack_bits), got {dtype}")
    if shape[1] == 0:
        raise ValueError(f"{name}: expected at least one byte a row, got shape {list(shape)}")


def same_bytes(x_name: str, x: Any, y_name: str, y: Any) -> None:
    """Two sets of packed codes are of one length."""
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{y_name}: expected {x.shape[1]} bytes a row like {x_name}, got {y.shape[1]}")


def code_pair(x_name: str, x: Any, y_name: str, y: Any) -> tuple[np.ndarray, np.ndarray, Origin]:
    """Two sets of packed codes of one length, and the origin of the first."""
    same_device(**{x_name: x, y_name: y})
    x_codes, origin = code_rows(x_name, x)
    y_codes = x_codes if y is x else code_rows(y_name, y)[0]
    same_bytes(x_name, x_codes, y_name, y_codes)
    return x_codes, y_codes, origin


# ------------------------------------------------------------------ scalars and choices


def one_of(name: str, value: Any, valid: tuple[str, ...]) -> str:
    """`value` if it is one of the valid strings."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, one of {', '.join(valid)}; got {type(value).__name__}")
    if value not in valid:
        raise ValueError(f"{name}: expected one of {', '.join(valid)}; got {value!r}")
    return value


def finite_non_negative(name: str, value: Any) -> float:
    """A margin as a float."""
    if isinstance(value, (bool, np.bool_, str, bytes)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from error
    except OverflowError as error:
        raise ValueError(f"{name}: expected a finite number, got {value!r}") from error
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name}: expected a finite number of at least 0, got {number}")
    return number


def integer(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an int within low..high."""
    if isinstance(value, (bool, np.bool_)) or str(getattr(value, "dtype", "")).endswith("bool"):
        raise TypeError(f"{name}: expected an integer, got bool")
    try:
        number = operator.index(value)
    except (TypeError, RuntimeError, ValueError) as error:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from error
    if not low <= number <= high:
        raise ValueError(f"{name}: expected an integer from {low} to {high}, got {number}")
    return number


def seed_value(value: Any) -> int:
    """A seed of 64 bits."""
    return integer("seed", value, 0, 2**64 - 1)


def boolean(name: str, value: Any) -> bool:
    """`value` if it is a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {type(value).__name__}")
    return bool(value)


def same_device(**values: Any) -> None:
    """All tensors among the values live on one device."""
    first: tuple[str, Any] | None = None
    for name, value in values.items():
        device = getattr(value, "device", None)
        if device is None or not hasattr(device, "type"):  # NumPy's device is a string, always the host
            continue
        if first is not None and device != first[1]:
            raise ValueError(f"{name}: expected a tensor on {first[1]} like {first[0]}, got one on {device}")
        first = first or (name, device)


def both_or_neither(reference: Any, reference_labels: Any) -> None:
    """A reference comes with its labels."""
    if (reference is None) != (reference_labels is None):
        missing, given = "reference_labels", "reference"
        if reference is None:
            missing, given = given, missing
        raise ValueError(f"{missing}: expected an array, as {given} was given, got None")


def same_form(x_labels: Any, y_labels: Any) -> None:
    """Labels and reference labels are both single, or both sets over as many labels."""
    if x_labels.ndim != y_labels.ndim or x_labels.shape[1:] != y_labels.shape[1:]:
        raise ValueError(
            f"reference_labels: expected the form of labels {list(x_labels.shape)}, "
            f"got {list(y_labels.shape)}"
        )


# ------------------------------------------------------------------ rows


def rows_of(name: str, value: Any) -> np.ndarray:
    """Rows on the host, checked."""
    return _rows(name, value)[0]


def _rows(name: str, value: Any) -> tuple[np.ndarray, Origin]:
    array, origin = to_numpy(name, value)
    if array.ndim != 2:
        raise ValueError(
            f"{name}: expected shape [rows, dimensions], got {array.ndim} axes {list(array.shape)}"
        )
    return _checked(name, array), origin


def sliceable(name: str, value: Any) -> tuple[Any, np.ndarray, Origin]:
    """The value if its rows can be converted a few at a time, else all of it converted; a sample of it."""
    torch = sys.modules.get("torch")
    if isinstance(value, np.ndarray) and value.ndim == 2:
        return value, *to_numpy(name, value[:0])
    if torch is not None and isinstance(value, torch.Tensor) and value.layout == torch.strided:
        plain = not (value.is_quantized or value.is_nested or value.device.type == "meta")
        if plain and value.ndim == 2:
            return value, *to_numpy(name, value[:0])
    array, origin = to_numpy(name, value)
    return array, array, origin


def batched_rows(name: str, value: Any) -> tuple[np.ndarray, Origin]:
    """[N, D] or [B, N, D] rows, for `pairwise_distance`."""
    array, origin = to_numpy(name, value)
    if array.ndim not in (2, 3):
        raise ValueError(
            f"{name}: expected shape [rows, dimensions] or [batch, rows, dimensions], got {list(array.shape)}"
        )
    batch = array.shape[-2] if array.ndim == 3 else None
    flat = _checked(name, array.reshape(math.prod(array.shape[:-1]), array.shape[-1]), batch)
    return flat.reshape(array.shape), origin


def _checked(name: str, array: np.ndarray, batch: int | None = None) -> np.ndarray:
    if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {array.dtype}")
    if array.shape[1] == 0:
        raise ValueError(f"{name}: expected at least one dimension, got shape {list(array.shape)}")
    array = np.ascontiguousarray(array, dtype=array.dtype.type)  # kernels ask for NumPy's own dtype objects
    check_values(name, array, 0, batch)
    return array


def check_values(name: str, array: np.ndarray, start: int, batch: int | None = None) -> None:
    """Every row is finite and small enough to be squared.

    start: what the first row is called. batch: the rows of one batch, if batched.
    """

    def place(row: int) -> str:
        row += start
        return f"row {row}" if batch is None else f"batch {row // batch}, row {row % batch}"

    for first, block in _blocks(array):
        # A finite sum proves the block finite for the price of one addition a value.
        with np.errstate(over="ignore", invalid="ignore"):
            if math.isfinite(block.sum()) and (
                array.dtype == np.float32 or np.abs(block).max() <= LARGEST_VALUE
            ):
                continue
        bad = ~np.isfinite(block).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{name}: expected finite values, {place(first + int(bad.argmax()))} holds NaN or infinity"
            )
        if array.dtype == np.float32:
            continue
        large = (np.abs(block) > LARGEST_VALUE).any(axis=1)
        if large.any():
            raise ValueError(
                f"{name}: expected values within ±{LARGEST_VALUE:g}, whose squares float64 can hold; "
                f"{place(first + int(large.argmax()))} holds larger ones"
            )


def finite_rows(name: str, rows: np.ndarray, first: int) -> None:
    """No row holds NaN or infinity; they are the rows from `first` on of the argument."""
    with np.errstate(over="ignore", invalid="ignore"):
        if rows.dtype.kind != "f" or math.isfinite(rows.sum()):
            return
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise ValueError(f"{name}: expected finite values, row {first + bad.argmax()} holds NaN or infinity")


def _blocks(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    step = max(1, (1 << 22) // array.shape[1])
    for first in range(0, len(array), step):
        yield first, array[first : first + step]


def same_width(x_name: str, x: Any, y_name: str, y: Any) -> None:
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"{y_name}: expected {x.shape[-1]} dimensions like {x_name}, got {y.shape[-1]}")


def common_type(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if x.dtype == y.dtype:
        return x, y
    return x.astype(np.float64, copy=False), y.astype(np.float64, copy=False)


# ------------------------------------------------------------------ labels


def labels_of(name: str, value: Any, rows_name: str, rows: int) -> np.ndarray:
    array, _ = to_numpy(name, value)
    if array.ndim not in (1, 2):
        raise ValueError(f"{name}: expected shape [rows] or [rows, labels], got {list(array.shape)}")
    if array.ndim == 2 and array.dtype.kind != "b":
        raise TypeError(f"{name}: expected bool for multi-label rows {list(array.shape)}, got {array.dtype}")
    if array.dtype.kind not in "biu":
        raise TypeError(f"{name}: expected integers or bool, got {array.dtype}")
    if len(array) != rows:
        raise ValueError(f"{name}: expected {rows} rows like {rows_name}, got {len(array)}")
    return array


def group(x_labels: np.ndarray, y_labels: np.ndarray | None) -> Labels:
    if x_labels.ndim == 2:
        x_bits = label_bits(x_labels)
        return MultiLabels(x_bits, x_bits if y_labels is None else label_bits(y_labels))
    if y_labels is None:
        classes, starts, members = _sorted_classes(x_labels)
        anchor_class = np.empty(len(x_labels), dtype=np.int64)
        anchor_class[members] = np.repeat(np.arange(len(classes)), np.diff(starts))
        return SingleLabels(anchor_class, starts, members)
    x_labels, y_labels = _comparable(x_labels, y_labels)
    classes, starts, members = _sorted_classes(y_labels)
    if len(classes) == 0:
        return SingleLabels(np.full(len(x_labels), -1, dtype=np.int64), starts, members)
    place = np.minimum(np.searchsorted(classes, x_labels), len(classes) - 1)
    found = classes[place] == x_labels
    return SingleLabels(np.where(found, place, -1).astype(np.int64), starts, members)


def _sorted_classes(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(distinct labels, where each one's members start, the rows by label)."""
    members = np.argsort(labels, kind="stable").astype(np.int64, copy=False)
    ordered = labels[members]
    first = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    starts = np.concatenate([[0], first, [len(labels)]] if len(labels) else [[0]]).astype(np.int64)
    return ordered[starts[:-1]], starts, members


def _comparable(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of two integer types in one that holds both; NumPy would take float64 for uint64 and int64."""
    if x.dtype == y.dtype or np.promote_types(x.dtype, y.dtype).kind != "f":
        return x, y
    return x.astype(object), y.astype(object)


def label_bits(labels: np.ndarray) -> np.ndarray:  # [N, C] bool -> [N, W] uint64
    words = max(1, -(-labels.shape[1] // 64))
    packed = np.zeros((len(labels), words * 8), dtype=np.uint8)
    as_bytes = np.packbits(labels, axis=1, bitorder="little")
    packed[:, : as_bytes.shape[1]] = as_bytes
    return packed.view(np.uint64)
