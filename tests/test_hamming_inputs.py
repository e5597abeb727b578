"""Packing codes, and what goes into the functions on codes: kinds of arrays, and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import minerlib
from minerlib import dispatch, hamming, inputs, reference
from tests.conftest import Running
from tests.test_hamming import BITS
from tests.test_results import FORMS, Exporter

# ------------------------------------------------------------------ packing

DTYPES = (
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "float32", "float64", ">f2", ">f4", ">f8", ">i4"),
)


def packed(ones: np.ndarray) -> np.ndarray:
    """By the definition: bit j of byte i is code bit 8 i + j."""
    out = np.zeros((len(ones), -(-ones.shape[1] // 8)), dtype=np.uint8)
    for row, column in np.argwhere(ones):
        out[row, column // 8] |= 1 << column % 8
    return out


@pytest.mark.parametrize("bits", BITS)
def test_packing_is_the_definition(bits: int) -> None:
    values = np.random.default_rng(bits).standard_normal((7, bits)).astype(np.float32)
    codes = minerlib.pack_bits(values)
    assert codes.dtype == np.uint8
    assert np.array_equal(codes, packed(values > 0))
    assert np.array_equal(minerlib.unpack_bits(codes, bits), values > 0)


@pytest.mark.parametrize("low", [0, -1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_types_of_values(dtype: str, low: int) -> None:
    ones = np.random.default_rng(0).random((9, 21)) < 0.5
    if low < 0 and np.dtype(dtype).kind in "bu":
        low = 0
    values = np.where(ones, 1, low).astype(dtype)
    assert np.array_equal(minerlib.pack_bits(values), packed(ones))
    if np.dtype(dtype).isnative:
        codes = minerlib.pack_bits(torch.from_numpy(values))
        assert isinstance(codes, torch.Tensor)
        assert codes.dtype == torch.uint8
        assert np.array_equal(codes, packed(ones))


def test_signs_of_the_smallest_and_the_largest_values() -> None:
    """Subnormal numbers have a sign too; neither zero is positive."""
    for dtype in (np.float16, np.float32, np.float64):
        kind = np.finfo(dtype)
        row = [0.0, -0.0, kind.smallest_subnormal, -kind.smallest_subnormal, kind.tiny, kind.max, -kind.max]
        assert minerlib.pack_bits(np.array([row], dtype=dtype)).tolist() == [[0b0110100]]
    smallest = torch.tensor([[1e-40, -1e-40, 3e38]], dtype=torch.bfloat16)
    assert minerlib.pack_bits(smallest).tolist() == [[0b101]]
    whole = np.array([[np.iinfo(np.int64).min, np.iinfo(np.int64).max, 0]])
    assert minerlib.pack_bits(whole).tolist() == [[0b010]]
    assert minerlib.pack_bits(np.array([[2**64 - 1, 0, 2**63]], dtype=np.uint64)).tolist() == [[0b101]]


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_values(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, kind = FORMS[form]
    values = np.random.default_rng(1).standard_normal((50, 13)).astype(np.float32)
    for chunk in (1 << 19, 100, 1):
        monkeypatch.setattr(hamming, "_CHUNK", chunk)
        codes = minerlib.pack_bits(make(values, tmp_path))
        assert type(codes) is kind
        assert np.array_equal(codes, packed(values > 0))


@pytest.mark.parametrize("values", [np.zeros((0, 9)), torch.zeros(0, 9, dtype=torch.bfloat16)])
def test_no_rows_to_pack(values: Any) -> None:
    codes = minerlib.pack_bits(values)
    assert type(codes) is type(values)
    assert tuple(codes.shape) == (0, 2)
    assert tuple(minerlib.unpack_bits(codes, 9).shape) == (0, 9)


def test_unpacking_stops_where_it_is_told() -> None:
    codes = np.array([[0b10110001, 0xFF]], dtype=np.uint8)
    assert minerlib.unpack_bits(codes, 5).tolist() == [[1, 0, 0, 0, 1]]
    assert minerlib.unpack_bits(torch.from_numpy(codes), 9).tolist() == [[1, 0, 0, 0, 1, 1, 0, 1, 1]]
    assert minerlib.unpack_bits(codes, np.int32(16)).dtype == np.uint8


# ------------------------------------------------------------------ forms of codes

CODES = np.random.default_rng(2).integers(0, 256, (23, 16), dtype=np.uint8)
NEEDS_FLOATS = ("parameter", "tensor of a graph")  # integers have no gradient


@pytest.mark.parametrize("width", [16, 11])
@pytest.mark.parametrize("form", [form for form in FORMS if form not in NEEDS_FLOATS])
def test_forms_of_codes(form: str, width: int, tmp_path: Path, backend: Running) -> None:
    make, kind = FORMS[form]
    plain = np.ascontiguousarray(CODES[:, :width])
    codes = make(plain, tmp_path)
    torch_types = {np.int32: torch.int32, np.int64: torch.int64}

    def check(found: Any, wanted: Any, dtypes: tuple[type, ...]) -> None:
        for array, other, dtype in zip(found, wanted, dtypes, strict=True):
            assert type(array) is kind
            assert array.dtype == (torch_types[dtype] if kind is torch.Tensor else dtype)
            assert np.array_equal(array, other)

    found = minerlib.hamming_distance(codes, codes, backend=backend.name)
    check([found], [reference.hamming_distance(plain, plain)], (np.int32,))
    for k in (1, 23):
        neighbours = minerlib.hamming_search(codes, codes, k, backend=backend.name)
        check(neighbours, reference.hamming_search(plain, plain, k), (np.int32, np.int64))
    hits = minerlib.hamming_range(codes, codes, 40, backend=backend.name)
    check(hits, reference.hamming_range(plain, plain, 40), (np.int64, np.int64, np.int32))
    assert np.array_equal(
        minerlib.unpack_bits(codes, 11), np.unpackbits(plain, axis=1, bitorder="little")[:, :11]
    )


def test_kinds_may_mix_and_the_queries_decide(backend: Running) -> None:
    found = minerlib.hamming_search(torch.from_numpy(CODES), CODES, 2, backend=backend.name)
    assert all(isinstance(array, torch.Tensor) for array in found)
    found = minerlib.hamming_range(CODES, torch.from_numpy(CODES), 2, backend=backend.name)
    assert all(type(array) is np.ndarray for array in found)


def test_results_own_their_memory(backend: Running) -> None:
    first = minerlib.hamming_search(CODES, CODES, 5, backend=backend.name)
    kept = [array.copy() for array in first]
    second = minerlib.hamming_search(CODES[::-1].copy(), CODES, 5, backend=backend.name)
    for array in second:
        array += 1
    assert all(np.array_equal(array, other) for array, other in zip(first, kept, strict=True))


# ------------------------------------------------------------------ what is refused

VALID: dict[str, dict[str, Any]] = {
    "pack_bits": {"x": np.ones((4, 9), dtype=np.float32)},
    "unpack_bits": {"codes": CODES, "bits": 9},
    "hamming_distance": {"a": CODES, "b": CODES},
    "hamming_search": {"queries": CODES, "database": CODES, "k": 3},
    "hamming_range": {"queries": CODES, "database": CODES, "radius": 3},
}
CODE_ARGUMENTS = [
    ("unpack_bits", "codes"),
    ("hamming_distance", "a"),
    ("hamming_distance", "b"),
    ("hamming_search", "queries"),
    ("hamming_search", "database"),
    ("hamming_range", "queries"),
    ("hamming_range", "database"),
]

SECOND_ARGUMENTS = [pair for pair in CODE_ARGUMENTS if pair[1] in ("b", "database")]


def refused(operation: str, error: type[Exception], argument: str, **changes: Any) -> str:
    """The message with which the call is refused: `argument: expected ..., got ...`."""
    with pytest.raises((TypeError, ValueError)) as caught:
        getattr(minerlib, operation)(**VALID[operation] | changes)
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert re.match(rf"{argument}: expected .*(got|holds) ", message), message
    return message


def test_what_is_valid_is_taken() -> None:
    for operation, arguments in VALID.items():
        getattr(minerlib, operation)(**arguments)


NOT_CODES: dict[str, tuple[Any, type[Exception]]] = {
    "list": (CODES.tolist(), TypeError),
    "none": (None, TypeError),
    "bytes": (CODES.tobytes(), TypeError),
    "no axes": (np.array(1, dtype=np.uint8), ValueError),
    "one axis": (CODES[0], ValueError),
    "three axes": (CODES[None], ValueError),
    "no bytes": (CODES[:, :0], ValueError),
    "bits": (CODES > 9, TypeError),
    "signed bytes": (CODES.astype(np.int8), TypeError),
    "words": (CODES.view(np.uint64), TypeError),
    "floats": (CODES.astype(np.float32), TypeError),
    "complex": (CODES.astype(np.complex64), TypeError),
    "strings": (CODES.astype(str), TypeError),
    "masked": (np.ma.array(CODES), TypeError),
    "signed tensor": (torch.from_numpy(CODES.astype(np.int8)), TypeError),
    "sparse tensor": (torch.from_numpy(CODES).to_sparse(), TypeError),
    "tensor without data": (torch.empty(4, 16, dtype=torch.uint8, device="meta"), ValueError),
    "exporter that fails": (Exporter(None), TypeError),
}


@pytest.mark.parametrize("kind", NOT_CODES)
@pytest.mark.parametrize(("operation", "argument"), CODE_ARGUMENTS)
def test_codes_of_another_kind(operation: str, argument: str, kind: str) -> None:
    value, error = NOT_CODES[kind]
    message = refused(operation, error, argument, **{argument: value})
    if kind in ("bits", "signed bytes", "floats"):
        assert "pack_bits" in message


@pytest.mark.parametrize(("operation", "argument"), SECOND_ARGUMENTS)
def test_bytes_that_differ(operation: str, argument: str) -> None:
    other = CODES[:, :15]
    assert re.search("16 bytes.* got 15", refused(operation, ValueError, argument, **{argument: other}))


@pytest.mark.parametrize(("operation", "argument"), SECOND_ARGUMENTS)
def test_tensors_on_two_devices(operation: str, argument: str) -> None:
    first = "a" if argument == "b" else "queries"
    elsewhere = torch.empty(4, 16, dtype=torch.uint8, device="meta")
    message = refused(
        operation, ValueError, argument, **{first: torch.from_numpy(CODES), argument: elsewhere}
    )
    assert "on cpu" in message
    assert "on meta" in message


@pytest.mark.parametrize(
    ("operation", "argument", "low", "high"),
    [("hamming_search", "k", 1, 23), ("unpack_bits", "bits", 1, 128), ("hamming_range", "radius", 0, None)],
)
def test_numbers_out_of_range(operation: str, argument: str, low: int, high: int | None) -> None:
    for value in (low - 1, -(10**30), *([] if high is None else [high + 1, 2**64])):
        refused(operation, ValueError, argument, **{argument: value})
    for value in (None, 2.0, "2", True, np.array([1, 2]), np.bool_(True)):
        refused(operation, TypeError, argument, **{argument: value})
    for value in (low, np.int64(low), torch.tensor(low), *([2**40] if high is None else [high])):
        getattr(minerlib, operation)(**VALID[operation] | {argument: value})


def test_a_database_without_rows() -> None:
    assert "at least one row" in refused("hamming_search", ValueError, "database", database=CODES[:0])


@pytest.mark.parametrize("operation", ["hamming_distance", "hamming_search", "hamming_range"])
def test_unknown_backends(operation: str) -> None:
    message = refused(operation, ValueError, "backend", backend="fpga")
    assert ", ".join(dispatch.NAMES) in message
    refused(operation, TypeError, "backend", backend=None)


NOT_VALUES: dict[str, tuple[Any, type[Exception]]] = {
    "list": ([[1.0]], TypeError),
    "none": (None, TypeError),
    "one axis": (np.ones(4), ValueError),
    "one axis of a tensor": (torch.ones(4), ValueError),
    "three axes": (np.ones((2, 3, 4)), ValueError),
    "no axes": (torch.tensor(1.0), ValueError),
    "no bits": (np.ones((4, 0)), ValueError),
    "no bits of a tensor": (torch.ones(4, 0), ValueError),
    "complex": (np.ones((4, 9), dtype=np.complex64), TypeError),
    "complex tensor": (torch.ones(4, 9, dtype=torch.complex64), TypeError),
    "strings": (np.full((4, 9), "1"), TypeError),
    "objects": (np.ones((4, 9), dtype=object), TypeError),
    "long double": (np.ones((4, 9), dtype=np.longdouble), TypeError),
    "masked": (np.ma.array(np.ones((4, 9))), TypeError),
    "sparse tensor": (torch.ones(4, 9).to_sparse(), TypeError),
    "tensor without data": (torch.ones(4, 9, device="meta"), ValueError),
    "float8 tensor": (torch.ones(4, 9).to(torch.float8_e4m3fn), TypeError),
}


@pytest.mark.parametrize("kind", NOT_VALUES)
def test_values_of_another_kind(kind: str) -> None:
    value, error = NOT_VALUES[kind]
    refused("pack_bits", error, "x", x=value)


@pytest.mark.parametrize("chunk", [1 << 19, 20])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_the_first_row_that_is_not_finite_is_named(
    dtype: str, bad: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hamming, "_CHUNK", chunk)
    values = torch.ones(30, 9, dtype=getattr(torch, dtype))
    values[17, 8] = values[21, 0] = bad
    for x in (values, *([] if dtype == "bfloat16" else [values.numpy()])):
        assert "row 17 holds NaN or infinity" in refused("pack_bits", ValueError, "x", x=x)


def test_a_sum_beyond_the_type_is_no_infinity() -> None:
    values = np.full((3, 9), np.finfo(np.float32).max)
    assert minerlib.pack_bits(values).tolist() == [[255, 1]] * 3


# ------------------------------------------------------------------ labels

LABELS = np.array([3, 1, 3, 2**62])


def test_relevance_of_classes() -> None:
    found = inputs.relevance(LABELS, np.array([1, 3, 3, 7, 2**62]), 4, 5)
    same = found.query_classes[:, None] == found.database_classes[None, :]
    assert same.tolist() == [[a == b for b in (1, 3, 3, 7, 2**62)] for a in LABELS]
    assert sorted(set(found.database_classes)) == [0, 1, 2, 3]
    assert inputs.relevance(np.array([9]), LABELS, 1, 4).query_classes.tolist() == [-1]
    assert (found.query_bits, found.database_bits, found.own) == (None, None, False)


def test_relevance_among_the_queries_themselves() -> None:
    found = inputs.relevance(LABELS, None, 4, 4)
    assert found.own
    assert np.array_equal(found.query_classes, found.database_classes)


def test_labels_that_do_not_fit() -> None:
    for arguments, message in (
        ((LABELS, LABELS, 3, 4), r"query_labels: expected 3 rows like query_codes, got 4"),
        ((LABELS, LABELS, 4, 5), r"database_labels: expected 5 rows like database_codes, got 4"),
        ((LABELS, np.ones((5, 2), bool), 4, 5), r"database_labels: expected the form of query_labels"),
        ((np.ones((4, 3), bool), np.ones((5, 2), bool), 4, 5), r"database_labels: expected the form"),
    ):
        with pytest.raises(ValueError, match=message):
            inputs.relevance(*arguments)


# ------------------------------------------------------------------ explain, memory


@pytest.mark.parametrize("operation", ["hamming_distance", "hamming_search", "hamming_range"])
def test_explain(operation: str, backend: Running) -> None:
    arguments = VALID[operation]
    assert minerlib.explain(operation).reasons[backend.name] == ()
    assert minerlib.explain(operation, **arguments, backend=backend.name).reasons[backend.name] == ()
    assert backend.families() == []
    name = next(iter(arguments))
    with pytest.raises(TypeError, match=rf"^{name}: expected packed codes"):
        minerlib.explain(operation, **arguments | {name: CODES.astype(np.int16)})
    with pytest.raises(TypeError, match=rf"^explain: {operation} "):
        minerlib.explain(operation, **arguments, metric="hamming")


def rise(script: str) -> float:
    """The rise of peak memory, in MiB, from the call of `before()` to the end of the script."""
    peak = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024"
    start = f"import resource\n\ndef before():\n    global peak\n    peak = {peak}\n\n"
    script = start + script + f"\nprint({peak} - peak)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.skipif(sys.platform == "win32", reason="the peak of memory is read the POSIX way")
@pytest.mark.parametrize("name", ["native", "numba"])
def test_memory_does_not_grow_with_the_database(name: str) -> None:
    """300,000 codes: a byte for each pair would be 18 MB, a copy of the codes 4.8 MB."""
    reasons = minerlib.explain("hamming_search").reasons[name]
    if reasons:
        pytest.skip(f"{name}: {'; '.join(reasons)}")
    script = f"""
import numpy as np, minerlib

codes = np.random.default_rng(0).integers(0, 256, (300_000, 16), dtype=np.uint8)
minerlib.set_num_threads(2)

def search(rows):
    minerlib.hamming_search(codes[:60], codes[:rows], 10, backend="{name}")
    minerlib.hamming_range(codes[:60], codes[:rows], 30, backend="{name}")

search(1000)
before()
search(300_000)
"""
    assert rise(script) < 14


@pytest.mark.skipif(sys.platform == "win32", reason="the peak of memory is read the POSIX way")
def test_packing_needs_little_beside_the_codes() -> None:
    """77 MB of bfloat16 values, which are 154 MB as the float32 that they are packed from."""
    script = """
import torch, minerlib

values = torch.full((300_000, 128), -0.5, dtype=torch.bfloat16)
minerlib.pack_bits(values[:10])
before()
minerlib.pack_bits(values)
"""
    assert rise(script) < 4.8 + 20
