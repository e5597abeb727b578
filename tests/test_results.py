"""What goes in decides what comes out: kinds of arrays, types of rows and of labels."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import minerlib
from minerlib import reference
from tests import datasets
from tests.conftest import Running

N, D = 33, 9
VALUES = datasets.rows("clusters", N, D, "float16")  # exact in every type but bfloat16
LABELS = datasets.labels("few", N)
SAME = datasets.same_class(LABELS, LABELS)
STRATEGIES = ("batch-hard", "semi-hard", "hard", "all")


@functools.cache
def expected(strategy: str) -> list[list[int]]:
    return [column.tolist() for column in reference.mine(VALUES, VALUES, SAME, True, strategy)]


@functools.cache
def expected_against_itself(strategy: str) -> list[list[int]]:
    return [column.tolist() for column in reference.mine(VALUES, VALUES, SAME, False, strategy)]


def lists(found: Any) -> list[list[int]]:
    return [column.tolist() for column in found]


class Exporter:
    """The least that speaks DLPack."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class Tagged(np.ndarray):
    """What `Namespaced.from_dlpack` gives, to be told from a plain array."""


class Namespaced(Exporter):
    """An array of a library that follows the array interface standard."""

    def __array_namespace__(self) -> Any:
        return self

    @staticmethod
    def from_dlpack(array: Any) -> Any:
        return np.from_dlpack(array).view(Tagged)


def in_a_file(x: np.ndarray, folder: Path) -> np.ndarray:
    np.save(folder / "rows.npy", x)
    return np.load(folder / "rows.npy", mmap_mode="r")


def read_only(x: np.ndarray, folder: Path) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


#: How rows may lie in memory, and what the results are.
FORMS: dict[str, tuple[Any, type]] = {
    "plain": (lambda x, folder: x, np.ndarray),
    "mapped": (in_a_file, np.ndarray),
    "read-only": (read_only, np.ndarray),
    "columns first": (lambda x, folder: np.asfortranarray(x), np.ndarray),
    "backwards": (lambda x, folder: x[::-1, ::-1].copy()[::-1, ::-1], np.ndarray),
    "every other": (lambda x, folder: np.repeat(np.repeat(x, 2, 0), 3, 1)[::2, ::3], np.ndarray),
    "big-endian": (lambda x, folder: x.astype(x.dtype.newbyteorder(">")), np.ndarray),
    "little-endian": (lambda x, folder: x.astype(x.dtype.newbyteorder("<")), np.ndarray),
    "unaligned": (
        lambda x, folder: np.frombuffer(b"?" + x.tobytes(), x.dtype, offset=1).reshape(x.shape), np.ndarray
    ),
    "matrix": (lambda x, folder: x.view(np.matrix), np.ndarray),
    "DLPack": (lambda x, folder: Exporter(x), np.ndarray),
    "DLPack of a library": (lambda x, folder: Namespaced(x), Tagged),
    "tensor": (lambda x, folder: torch.from_numpy(x), torch.Tensor),
    "transposed tensor": (lambda x, folder: torch.from_numpy(x.T.copy()).T, torch.Tensor),
    "strided tensor": (lambda x, folder: torch.from_numpy(np.repeat(x, 2, 1))[:, ::2], torch.Tensor),
    "parameter": (lambda x, folder: torch.nn.Parameter(torch.from_numpy(x)), torch.Tensor),
    "tensor of a graph": (lambda x, folder: torch.from_numpy(x).requires_grad_() * 1, torch.Tensor),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_rows(form: str, dtype: type, tmp_path: Path, backend: Running) -> None:
    make, kind = FORMS[form]
    plain = VALUES.astype(dtype)
    x = make(plain, tmp_path)
    labels = torch.from_numpy(LABELS) if kind is torch.Tensor else LABELS
    for strategy in STRATEGIES:
        found = minerlib.mine(x, labels, strategy, backend=backend.name)
        assert lists(found) == expected(strategy)
        for column in found:
            assert type(column) is kind
            assert column.dtype == (torch.int64 if kind is torch.Tensor else np.int64)
    neighbours = minerlib.nearest(x, x, 3, backend=backend.name)
    distances, indices = reference.nearest(VALUES, VALUES, 3, "sqeuclidean")
    assert neighbours.indices.tolist() == indices.tolist()
    assert neighbours.distances.tolist() == distances.tolist()
    everything = minerlib.pairwise_distance(x, backend=backend.name)
    for array in (*neighbours, everything):
        assert type(array) is kind
    assert everything.dtype == (torch.float64 if kind is torch.Tensor else np.float64)
    assert np.array_equal(plain, VALUES)  # the input is left as it was


def test_bfloat16_keeps_its_values(backend: Running) -> None:
    values = datasets.rows("gaussian", N, D, "bfloat16")
    x = datasets.as_dtype(values, "bfloat16")
    for strategy in STRATEGIES:
        wanted = reference.mine(values, values, SAME, True, strategy)
        found = minerlib.mine(x, torch.from_numpy(LABELS), strategy, backend=backend.name)
        assert lists(found) == lists(wanted)
        assert all(isinstance(column, torch.Tensor) for column in found)


def test_kinds_may_mix_and_the_embeddings_decide(backend: Running) -> None:
    array, tensor = VALUES.astype(np.float32), torch.from_numpy(VALUES.astype(np.float32))
    for x, labels, kind in ((array, torch.from_numpy(LABELS), np.ndarray), (tensor, LABELS, torch.Tensor)):
        found = minerlib.mine(x, labels, "hard", backend=backend.name)
        assert lists(found) == expected("hard")
        assert all(type(column) is kind for column in found)
    found = minerlib.nearest(array, tensor, 2, backend=backend.name)
    assert all(type(column) is np.ndarray for column in found)


def test_types_may_mix(backend: Running) -> None:
    """The narrower rows are widened, which changes no value."""
    x, y = datasets.rows("gaussian", 9, 5, "float32"), datasets.rows("gaussian", 17, 5, "float64", seed=1)
    found = minerlib.pairwise_distance(x.astype(np.float32), y, backend=backend.name)
    assert np.array_equal(found, reference.pairwise_distance(x, y, "sqeuclidean"))
    labels = np.arange(9) % 3, np.arange(17) % 3
    mined = minerlib.mine(
        y, labels[1], "hphn", reference=x.astype(np.float32), reference_labels=labels[0], backend=backend.name
    )
    wanted = reference.mine(y, x, datasets.same_class(labels[1], labels[0]), False, "hphn")
    assert lists(mined) == lists(wanted)


def test_padded_tensors(backend: Running) -> None:
    padded = minerlib.mine(
        torch.from_numpy(VALUES), torch.from_numpy(LABELS), "semi-hard", compact=False, backend=backend.name
    )
    assert isinstance(padded, minerlib.PaddedTriplets)
    assert [column.dtype for column in padded] == [torch.int64] * 3 + [torch.bool]
    assert [column[padded.valid].tolist() for column in padded[:3]] == expected("semi-hard")


def test_padded_arrays_of_a_given_number_of_slots(backend: Running) -> None:
    options = {"compact": False, "backend": backend.name}
    exact = minerlib.mine(VALUES, LABELS, "semi-hard", **options)
    pairs = len(exact.anchors)
    for slots in (0, 3, pairs, pairs + 4):
        found = minerlib.mine(VALUES, LABELS, "semi-hard", slots=slots, **options)
        for column, wanted in zip(found, exact, strict=True):
            assert len(column) == slots
            assert np.array_equal(column[:pairs], wanted[:slots])
        assert not found.valid[pairs:].any()
    nothing = minerlib.mine(VALUES, np.arange(len(VALUES)), "hard", slots=2, **options)
    assert nothing.valid.tolist() == [False, False]
    assert nothing.anchors.tolist() == nothing.negatives.tolist() == [len(VALUES) - 1] * 2
    for strategy, wrong in (("hphn", options), ("hard", options | {"compact": True})):
        with pytest.raises(ValueError, match=r"^slots: expected None unless compact is False"):
            minerlib.mine(VALUES, LABELS, strategy, slots=2, **wrong)


def test_mining_leaves_no_graph(backend: Running) -> None:
    x = torch.from_numpy(VALUES).requires_grad_()
    results = [
        *minerlib.mine(x, torch.from_numpy(LABELS), "semi-hard", backend=backend.name),
        *minerlib.nearest(x, x, 2, backend=backend.name),
        minerlib.pairwise_distance(x, backend=backend.name),
    ]
    for result in results:
        assert not result.requires_grad
        assert result.grad_fn is None
    assert x.grad is None
    (x * 2).sum().backward()  # x itself is as usable as before
    assert torch.equal(x.grad, torch.full_like(x, 2.0))


def test_results_own_their_memory(backend: Running) -> None:
    """A second call must not change what the first one returned."""
    x = VALUES.astype(np.float32)
    first = minerlib.mine(x, LABELS, "batch-hard", backend=backend.name)
    kept = lists(first)
    minerlib.mine(x[::-1].copy(), LABELS, "batch-hard", backend=backend.name)
    assert lists(first) == kept
    for column in first:
        column += 1  # and they may be written to
    assert np.array_equal(x, VALUES)


# ------------------------------------------------------------------ labels

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("dtype", INTEGERS)
def test_labels_of_every_integer_type(dtype: str, kind: Any, backend: Running) -> None:
    """Classes at both ends of the type; compared with small numbers of the same partition."""
    limits = np.iinfo(dtype)
    table = np.array([limits.min, limits.max, 1, limits.max - 1], dtype=dtype)
    for strategy in STRATEGIES:
        found = minerlib.mine(VALUES, kind(table[LABELS]), strategy, backend=backend.name)
        assert lists(found) == expected(strategy)
        found = minerlib.mine(
            VALUES, kind(table[LABELS]), strategy, reference=VALUES, reference_labels=kind(table[LABELS]),
            backend=backend.name,
        )  # fmt: skip
        assert lists(found) == expected_against_itself(strategy)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_bool_labels(kind: Any, backend: Running) -> None:
    labels = LABELS > 1
    wanted = reference.mine(VALUES, VALUES, datasets.same_class(labels, labels), True, "hphn")
    found = minerlib.mine(VALUES, kind(labels), "hphn", backend=backend.name)
    assert lists(found) == lists(wanted)


def test_big_endian_and_strided_labels(backend: Running) -> None:
    for labels in (
        LABELS.astype(">i4"),
        np.repeat(LABELS, 3)[::3],
        LABELS[::-1].copy()[::-1],
        Exporter(LABELS),
    ):
        assert lists(minerlib.mine(VALUES, labels, "hard", backend=backend.name)) == expected("hard")


X4 = np.array([[0.0], [1.0], [2.0], [3.0]])


@pytest.mark.parametrize("base", [2**24, 2**53, 2**63 - 4, -(2**63)])
def test_neighbouring_large_labels_stay_apart(base: int, backend: Running) -> None:
    """Cast to float32 or float64 they would all be one class."""
    labels = np.array([base, base + 1, base, base + 1], dtype=np.int64)
    found = minerlib.mine(X4, labels, "hphn", backend=backend.name)
    assert lists(found) == [[0, 1, 2, 3], [2, 3, 0, 1], [1, 0, 1, 2]]


@pytest.mark.parametrize(
    ("dtype", "other"), [("int64", "uint64"), ("uint64", "int64"), ("int8", "uint64"), ("uint8", "int8")]
)
def test_labels_of_two_integer_types(dtype: str, other: str, backend: Running) -> None:
    """Equal numbers are equal classes; -1 and 2^64 - 1 have the same bits and are not."""
    same_number = min(np.iinfo(dtype).max, np.iinfo(other).max)
    mine_labels = np.array([same_number, np.iinfo(dtype).min, 5], dtype=dtype)
    their_labels = np.array([np.iinfo(other).min, same_number, np.iinfo(other).max, 5], dtype=other)
    same = [[int(a) == int(b) for b in their_labels] for a in mine_labels]
    x = np.array([[0.0], [1.0], [2.0]])
    found = minerlib.mine(
        x, mine_labels, "all", margin=100.0, reference=X4, reference_labels=their_labels, backend=backend.name
    )
    wanted = [
        (a, p, n) for a in range(3) for p in range(4) for n in range(4) if same[a][p] and not same[a][n]
    ]
    assert list(zip(*lists(found), strict=True)) == wanted


def test_bits_alike_but_numbers_apart(backend: Running) -> None:
    found = minerlib.mine(
        X4[:2], np.array([-1, -2]), "all", margin=100.0, reference=X4[:2],
        reference_labels=np.array([2**64 - 1, 2**64 - 2], dtype=np.uint64), backend=backend.name,
    )  # fmt: skip
    assert len(found.anchors) == 0


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("classes", [1, 8, 63, 64, 65, 130])
def test_multi_label(classes: int, kind: Any, backend: Running) -> None:
    """Two rows are of a class when they share a label, wherever in the words of bits it lies."""
    rng = np.random.default_rng(classes)
    labels = np.zeros((N, classes), dtype=bool)
    for _ in range(2):
        labels[np.arange(N), rng.choice([0, classes // 2, classes - 1], size=N)] = rng.random(N) < 0.7
    wanted = reference.mine(VALUES, VALUES, datasets.same_class(labels, labels), True, "semi-hard")
    found = minerlib.mine(VALUES, kind(labels), "semi-hard", backend=backend.name)
    assert lists(found) == lists(wanted)


def test_one_label_each_is_the_single_label_problem(backend: Running) -> None:
    one_hot = LABELS[:, None] == np.arange(4)
    for strategy in STRATEGIES:
        assert lists(minerlib.mine(VALUES, one_hot, strategy, backend=backend.name)) == expected(strategy)
