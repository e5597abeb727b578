"""SPEC section 6: bad input is refused by name, and valid input with nothing to mine is no error."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import minerlib
from minerlib.strategies import STRATEGIES
from tests.conftest import Running

X = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
LABELS = np.array([0, 0, 1, 1, 2, 2])
MULTI = np.eye(6, 4, dtype=bool)
VALID: dict[str, dict[str, Any]] = {
    "mine": {"embeddings": X, "labels": LABELS, "strategy": "hard"},
    "count_triplets": {"embeddings": X, "labels": LABELS},
    "nearest": {"queries": X, "database": X, "k": 2},
    "pairwise_distance": {"x": X},
}
METRICS = ["sqeuclidean", "euclidean", "cosine"]


def with_row(row: int, value: float) -> np.ndarray:
    x = X.copy()
    x[row, 1] = value
    return x


class Exporter:
    """Speaks as much of DLPack as the constructor says."""

    def __init__(self, array: Any, error: Exception | None = None) -> None:
        self.array, self.error = array, error

    def __dlpack__(self, **options: Any) -> Any:
        if self.error is not None:
            raise self.error
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


def unusual_tensor(kind: str) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls both of them prototypes or deprecated
        if kind == "nested":
            return torch.nested.nested_tensor([torch.rand(3, 3), torch.rand(2, 3)])
        return torch.quantize_per_tensor(torch.from_numpy(X), 0.1, 0, torch.qint8)


def refused(operation: str, error: type[Exception], argument: str, **changes: Any) -> str:
    """The message with which the call is refused: `argument: expected ..., got ...`."""
    with pytest.raises((TypeError, ValueError)) as caught:
        getattr(minerlib, operation)(**VALID[operation] | changes)
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert re.match(rf"{argument}: expected .*(got|holds) ", message), message
    return message


# ------------------------------------------------------------------ arrays

ROW_ARGUMENTS = [
    ("mine", "embeddings"),
    ("count_triplets", "embeddings"),
    ("nearest", "queries"),
    ("nearest", "database"),
    ("pairwise_distance", "x"),
    ("pairwise_distance", "y"),
]
NOT_ROWS: dict[str, tuple[Any, type[Exception]]] = {
    "list": (X.tolist(), TypeError),
    "none": (None, TypeError),
    "string": ("rows", TypeError),
    "number": (1.0, TypeError),
    "a class": (Exporter, TypeError),
    "no axes": (np.array(1.0, dtype=np.float32), ValueError),
    "one axis": (X[0], ValueError),
    "four axes": (X[None, None], ValueError),
    "no dimensions": (X[:, :0], ValueError),
    "no dimensions in a batch": (np.zeros((2, 3, 0)), ValueError),
    "integers": (X.astype(np.int64), TypeError),
    "bool": (X > 0, TypeError),
    "complex": (X.astype(np.complex64), TypeError),
    "strings": (X.astype(str), TypeError),
    "objects": (X.astype(object), TypeError),
    "long double": (X.astype(np.longdouble), TypeError),
    "dates": (X.astype("M8[s]"), TypeError),
    "fields": (np.zeros(6, dtype=[("a", "f4"), ("b", "f4")]), TypeError),
    "masked": (np.ma.array(X), TypeError),
    "complex tensor": (torch.from_numpy(X).to(torch.complex64), TypeError),
    "integer tensor": (torch.from_numpy(X).long(), TypeError),
    "float8 tensor": (torch.from_numpy(X).to(torch.float8_e4m3fn), TypeError),
    "sparse tensor": (torch.from_numpy(X).to_sparse(), TypeError),
    "nested tensor": (unusual_tensor("nested"), TypeError),
    "quantized tensor": (unusual_tensor("quantized"), TypeError),
    "exporter that fails": (Exporter(X, KeyError("lost")), TypeError),
    "exporter without memory": (Exporter(X, BufferError("elsewhere")), TypeError),
    "NaN": (with_row(4, np.nan), ValueError),
    "infinity": (with_row(4, np.inf), ValueError),
    "beyond float64": (X.astype(np.float64) * 1e160, ValueError),
}


@pytest.mark.parametrize("kind", NOT_ROWS)
@pytest.mark.parametrize(("operation", "argument"), ROW_ARGUMENTS)
def test_rows_of_another_kind(operation: str, argument: str, kind: str) -> None:
    value, error = NOT_ROWS[kind]
    if argument == "y" and value is None:
        return  # which means x
    if operation != "pairwise_distance" and kind == "no dimensions in a batch":
        kind = "three axes"
    message = refused(operation, error, argument, **{argument: value})
    if kind in ("one axis", "four axes", "three axes"):
        assert str(list(value.shape)) in message


@pytest.mark.parametrize("kind", ["list", "one axis", "three axes", "complex", "NaN", "strings", "masked"])
@pytest.mark.parametrize("operation", ["mine", "count_triplets"])
def test_a_reference_of_another_kind(operation: str, kind: str) -> None:
    value, error = NOT_ROWS[kind] if kind != "three axes" else (X[None], ValueError)
    refused(operation, error, "reference", reference=value, reference_labels=LABELS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_first_bad_row_is_named(dtype: str, value: float) -> None:
    x = torch.randn(5000, 17, dtype=torch.float64).to(getattr(torch, dtype))
    x[3141, 16] = value
    x[3142, 0] = value
    labels = torch.zeros(5000, dtype=torch.int64)
    assert "row 3141 " in refused("mine", ValueError, "embeddings", embeddings=x, labels=labels)
    assert "row 3141 " in refused("nearest", ValueError, "queries", queries=x, database=x[:10])
    finite = x[:2].repeat(1, 1)
    refused("nearest", ValueError, "database", queries=finite, database=x)
    refused("mine", ValueError, "reference", embeddings=finite, labels=labels[:2],
            reference=x, reference_labels=labels)  # fmt: skip


def test_infinities_that_cancel_are_found() -> None:
    x = X.copy()
    x[2] = [np.inf, -np.inf, 0]
    assert "row 2 " in refused("mine", ValueError, "embeddings", embeddings=x)


def test_largest_values_are_accepted() -> None:
    for x in (X.astype(np.float64) * 1e149, np.sign(X) * np.finfo(np.float32).max):
        assert np.isfinite(minerlib.pairwise_distance(x, backend="reference")).all()


def test_tensors_without_data_or_on_another_device() -> None:
    meta = torch.empty(6, 3, device="meta")
    x, labels = torch.from_numpy(X), torch.from_numpy(LABELS)
    message = refused("mine", ValueError, "labels", embeddings=x, labels=labels.to("meta"))
    assert "meta" in message
    assert "cpu" in message
    refused(
        "mine", ValueError, "reference", embeddings=x, labels=labels, reference=meta, reference_labels=labels
    )
    refused("nearest", ValueError, "database", queries=x, database=meta)
    refused("pairwise_distance", ValueError, "y", x=x, y=meta)
    refused("mine", ValueError, "embeddings", embeddings=meta, labels=labels.to("meta"))
    refused("nearest", ValueError, "queries", queries=meta, database=meta)


def test_dimensions_that_differ() -> None:
    other = X[:, :2]
    message = refused("mine", ValueError, "reference", reference=other, reference_labels=LABELS)
    assert "3" in message
    assert "2" in message
    refused("count_triplets", ValueError, "reference", reference=other, reference_labels=LABELS)
    refused("nearest", ValueError, "database", database=other)
    refused("pairwise_distance", ValueError, "y", y=other)
    refused("pairwise_distance", ValueError, "y", x=X[None], y=X)
    refused("pairwise_distance", ValueError, "y", x=np.zeros((2, 3, 4)), y=np.zeros((3, 3, 4)))


# ------------------------------------------------------------------ labels


@pytest.mark.parametrize("operation", ["mine", "count_triplets"])
@pytest.mark.parametrize("argument", ["labels", "reference_labels"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (LABELS.tolist(), TypeError),
        (None, TypeError),
        (LABELS.astype(np.float32), TypeError),
        (LABELS.astype(np.complex64), TypeError),
        (LABELS.astype(str), TypeError),
        (LABELS.astype(object), TypeError),
        (torch.from_numpy(LABELS).double(), TypeError),
        (LABELS[:, None], TypeError),  # two axes are multi-label, which must be bool
        (LABELS[:5], ValueError),
        (np.append(LABELS, 0), ValueError),
        (np.array(3), ValueError),
        (MULTI[None], ValueError),
        (MULTI[:4], ValueError),
    ],
    ids=lambda value: "",
)
def test_labels_of_another_kind(operation: str, argument: str, value: Any, error: type[Exception]) -> None:
    if argument == "labels":
        refused(operation, error, "labels", labels=value)
        return
    if value is None:
        error = ValueError
    refused(operation, error, "reference_labels", reference=X, reference_labels=value)


def test_labels_of_two_forms() -> None:
    refused("mine", ValueError, "reference_labels", reference=X, reference_labels=MULTI)
    refused("mine", ValueError, "reference_labels", labels=MULTI, reference=X, reference_labels=LABELS)
    refused("mine", ValueError, "reference_labels", labels=MULTI, reference=X, reference_labels=MULTI[:, :3])


@pytest.mark.parametrize("operation", ["mine", "count_triplets"])
def test_half_a_reference(operation: str) -> None:
    refused(operation, ValueError, "reference_labels", reference=X)
    refused(operation, ValueError, "reference", reference_labels=LABELS)


# ------------------------------------------------------------------ options

OPTIONS_BY_NAME = [
    ("mine", "strategy", tuple(STRATEGIES)),
    ("mine", "metric", METRICS),
    ("count_triplets", "metric", METRICS),
    ("nearest", "metric", METRICS),
    ("pairwise_distance", "metric", METRICS),
    ("mine", "pairs", ("ordered", "combinations")),
    ("count_triplets", "pairs", ("ordered", "combinations")),
    ("mine", "fallback", ("drop", "hardest", "farthest")),
    *((operation, "backend", ("auto", "native", "numba", "reference")) for operation in VALID),
]


@pytest.mark.parametrize(("operation", "argument", "valid"), OPTIONS_BY_NAME)
def test_unknown_names_are_answered_with_the_known_ones(
    operation: str, argument: str, valid: tuple[str, ...]
) -> None:
    message = refused(operation, ValueError, argument, **{argument: "no-such-thing"})
    assert "no-such-thing" in message
    assert all(re.search(rf"\b{name}\b", message) for name in valid)
    for value in ("", valid[0].upper(), f" {valid[0]}"):
        refused(operation, ValueError, argument, **{argument: value})
    for value in (None, 1, True, b"hard", [valid[0]]):
        refused(operation, TypeError, argument, **{argument: value})


@pytest.mark.parametrize("operation", ["mine", "count_triplets"])
def test_margins(operation: str) -> None:
    for value in (-0.1, -1, float("nan"), float("inf"), float("-inf"), -1e-300, 10**400, np.float32("nan")):
        refused(operation, ValueError, "margin", margin=value)
    for value in (None, "0.2", b"0.2", 1j, [0.2], np.ones(2), torch.ones(2), True, object()):
        refused(operation, TypeError, "margin", margin=value)
    for value in (0, 1, -0.0, np.float32(0.5), np.int8(2), torch.tensor(0.5), np.array(0.5)):
        getattr(minerlib, operation)(**VALID[operation], margin=value, backend="reference")


def test_k() -> None:
    for value in (0, -1, 7, 2**63, -(2**70)):
        message = refused("nearest", ValueError, "k", k=value)
        assert "from 1 to 6" in message
        assert str(value) in message
    for value in (None, "2", 2.0, np.float64(2), True, np.bool_(True), [2], torch.tensor(2.0)):
        refused("nearest", TypeError, "k", k=value)
    for value in (np.uint8(6), torch.tensor(6), 6):
        assert minerlib.nearest(X, X, value, backend="reference").indices.shape == (6, 6)


def test_seeds() -> None:
    for value in (-1, 2**64, -(2**63)):
        refused("mine", ValueError, "seed", seed=value)
    for value in (None, 1.0, "1", True, [1], np.float32(1)):
        refused("mine", TypeError, "seed", seed=value)
    for value in (0, 2**64 - 1, np.uint64(2**64 - 1), np.int8(1)):
        minerlib.mine(**VALID["mine"], seed=value, backend="reference")


def test_switches() -> None:
    for operation, argument in (
        ("mine", "exact"), ("mine", "compact"), ("count_triplets", "exact"), ("nearest", "exact")
    ):  # fmt: skip
        for value in (None, 0, 1, "True", 1.0):
            refused(operation, TypeError, argument, **{argument: value})
    refused_call = {"strategy": "all", "compact": False}
    with pytest.raises(ValueError, match="compact: expected True with strategy 'all'"):
        minerlib.mine(X, LABELS, **refused_call)


@pytest.mark.parametrize("operation", ["mine", "count_triplets"])
def test_combinations_need_self_mining(operation: str) -> None:
    with pytest.raises(ValueError, match="pairs: expected 'ordered' with a reference"):
        getattr(minerlib, operation)(
            **VALID[operation], reference=X, reference_labels=LABELS, pairs="combinations"
        )


def test_an_empty_database() -> None:
    refused("nearest", ValueError, "database", database=X[:0])


def test_threads() -> None:
    for value in (0, -1, 1025):
        with pytest.raises(ValueError, match=r"count: expected an integer from 1 to 1024, got"):
            minerlib.set_num_threads(value)
    for value in (None, 1.0, "2", True):
        with pytest.raises(TypeError, match=r"count: expected an integer, got"):
            minerlib.set_num_threads(value)


def test_bad_input_is_found_before_any_kernel_runs(backend: Running) -> None:
    for operation, (argument, value) in (
        ("mine", ("margin", -1.0)), ("count_triplets", ("labels", LABELS[:2])), ("nearest", ("k", 99)),
        ("pairwise_distance", ("y", with_row(0, np.nan))),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=argument):
            getattr(minerlib, operation)(**VALID[operation] | {argument: value, "backend": backend.name})
    assert backend.families() == []


# ------------------------------------------------------------------ nothing to mine

NOTHING: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "no rows": (X[:0], LABELS[:0]),
    "no rows, multi-label": (X[:0], MULTI[:0]),
    "one row": (X[:1], LABELS[:1]),
    "one class": (X, np.zeros(6, dtype=int)),
    "distinct": (X, np.arange(6)),
    "distinct, one dimension": (X[:, :1], np.arange(6)),
    "labels of no class": (X, MULTI[:, :0]),
    "rows without a label": (X, np.zeros((6, 3), dtype=bool)),
    "all share one label": (X, np.ones((6, 70), dtype=bool)),
}


@pytest.mark.parametrize("kind", NOTHING)
def test_nothing_to_mine(kind: str, backend: Running) -> None:
    x, labels = NOTHING[kind]
    for strategy in STRATEGIES:
        for fallback in ("drop", "farthest"):
            found = minerlib.mine(x, labels, strategy, fallback=fallback, backend=backend.name)
            assert isinstance(found, minerlib.Triplets)
            for column in found:
                assert isinstance(column, np.ndarray)
                assert column.shape == (0,)
                assert column.dtype == np.int64
        tensors = minerlib.mine(torch.from_numpy(x), torch.from_numpy(labels), strategy, backend=backend.name)
        for column in tensors:
            assert isinstance(column, torch.Tensor)
            assert column.shape == (0,)
            assert column.dtype == torch.int64
        if strategy != "all":
            padded = minerlib.mine(x, labels, strategy, compact=False, backend=backend.name)
            assert not padded.valid.any()
            assert {len(column) for column in padded} == {len(padded.valid)}
    assert minerlib.count_triplets(x, labels, backend=backend.name) == (0, 0, 0, 0)


def test_one_dimension_is_enough(backend: Running) -> None:
    found = minerlib.mine(np.array([[0.0], [1.0], [5.0]]), np.array([0, 0, 1]), "hphn", backend=backend.name)
    assert [column.tolist() for column in found] == [[0, 1], [1, 0], [2, 2]]


def test_no_eligible_negative(backend: Running) -> None:
    """Classes far apart: no negative comes near a positive."""
    x = np.array([[0.0], [1.0], [100.0], [101.0]], dtype=np.float32)
    for strategy in ("hard", "semi-hard", "random-hard", "all"):
        found = minerlib.mine(x, np.array([0, 0, 1, 1]), strategy, backend=backend.name)
        assert len(found.anchors) == 0, strategy
    counts = minerlib.count_triplets(x, np.array([0, 0, 1, 1]), backend=backend.name)
    assert counts == (8, 0, 0, 8)


def test_a_reference_without_rows_or_without_the_classes(backend: Running) -> None:
    for y, labels in ((X[:0], LABELS[:0]), (X, LABELS + 10)):
        for strategy in STRATEGIES:
            found = minerlib.mine(
                X, LABELS, strategy, reference=y, reference_labels=labels, backend=backend.name
            )
            assert len(found.anchors) == 0
        counts = minerlib.count_triplets(
            X, LABELS, reference=y, reference_labels=labels, backend=backend.name
        )
        assert counts.total == 0


@pytest.mark.parametrize("metric", METRICS)
def test_searches_without_queries(metric: str, backend: Running) -> None:
    found = minerlib.nearest(X[:0], X, 4, metric=metric, backend=backend.name)
    assert found.indices.shape == found.distances.shape == (0, 4)
    assert found.indices.dtype == np.int64
    assert found.distances.dtype == np.float64
    for x, y, shape in ((X[:0], X, (0, 6)), (X, X[:0], (6, 0)), (X[None][:0], X[None][:0], (0, 6, 6))):
        assert minerlib.pairwise_distance(x, y, metric=metric, backend=backend.name).shape == shape


def test_dlpack_holds_types_that_numpy_lacks() -> None:
    class Exporter:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

        def __dlpack__(self, **options: object) -> object:
            return self.tensor.__dlpack__(**options)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.tensor.__dlpack_device__()

    rows, labels = (
        torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).bfloat16(),
        torch.arange(20) % 3,
    )
    found = minerlib.mine(Exporter(rows), labels.numpy(), "hard", backend="reference")
    expected = minerlib.mine(rows, labels, "hard", backend="reference")
    assert isinstance(found.negatives, np.ndarray)
    assert found.negatives.tolist() == expected.negatives.tolist()


def test_a_bad_row_of_a_batch_is_named_with_its_batch() -> None:
    rows = np.ones((3, 2, 4))
    rows[2, 1, 0] = np.inf
    with pytest.raises(ValueError, match="x: expected finite values, batch 2, row 1 "):
        minerlib.pairwise_distance(rows)
