"""`HammingIndex`: the answers of `hamming_search`, whatever was added, removed and cut into chunks."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import minerlib
from minerlib import HammingIndex
from tests.conftest import Running

#: (bits, codes, distinct codes): awkward lengths, few distinct codes for many ties, one code alone.
CASES = (
    (1, 50, 2),
    (7, 200, 9),
    (8, 33, 256),
    (63, 129, 20),
    (64, 1000, 1000),
    (129, 300, 1),
    (1025, 65, 40),
)


def random_codes(rng: np.random.Generator, rows: int, bits: int, distinct: int | None = None) -> np.ndarray:
    """Packed codes, drawn from `distinct` different ones if so said."""
    codes = minerlib.pack_bits(rng.random((min(rows, distinct or rows), bits)) < 0.5)
    return codes[rng.integers(len(codes), size=rows)] if distinct else codes


def filled(codes: np.ndarray, bits: int, ids: np.ndarray | None = None, batches: int = 1) -> HammingIndex:
    index = HammingIndex(bits)
    for some in np.array_split(np.arange(len(codes)), batches):
        index.add(codes[some], None if ids is None else ids[some])
    return index


def in_memory(index: HammingIndex, folder: Path) -> HammingIndex:
    return index


def mapped(index: HammingIndex, folder: Path) -> HammingIndex:
    index.save(folder / "mapped.index")
    return HammingIndex.load(folder / "mapped.index")


# ------------------------------------------------------------------ searching


@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("where", [in_memory, mapped])
@pytest.mark.parametrize(("bits", "rows", "distinct"), CASES)
def test_search_is_that_of_the_codes_in_one_array(
    backend: Running,
    bits: int,
    rows: int,
    distinct: int,
    where: Callable[[HammingIndex, Path], HammingIndex],
    with_ids: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = set()
    for family in ("hamming_search", "hamming_range"):
        kernel = getattr(backend.module, family)

        def counted(*arguments: Any, family: str = family, kernel: Any = kernel) -> Any:
            ran.add((family, backend.instruction_set and backend.module.instruction_set()))
            return kernel(*arguments)

        if backend.name != "reference":  # which is also what is compared with
            monkeypatch.setattr(backend.module, family, counted)
    rng = np.random.default_rng([bits, rows])
    codes, queries = random_codes(rng, rows, bits, distinct), random_codes(rng, 5, bits)
    queries[0] = codes[rows // 2]
    ids = rng.permutation(np.arange(-rows, 5 * rows))[:rows] if with_ids else None
    names = np.arange(rows) if ids is None else ids
    index = where(filled(codes, bits, ids, batches=7), tmp_path)
    for k in {1, min(10, rows), rows - 1, rows}:
        expected = minerlib.hamming_search(queries, codes, k, backend="reference")
        for chunk_rows in (None, 7, rows - 1, rows + 1):
            found = index.search(queries, k, chunk_rows=chunk_rows, backend=backend.name)
            assert found.distances.dtype == np.int32
            assert found.indices.dtype == np.int64
            np.testing.assert_array_equal(found.distances, expected.distances)
            np.testing.assert_array_equal(found.indices, names[expected.indices])
    for radius in {0, bits // 3, bits // 2, bits, bits + 100}:
        within = minerlib.hamming_range(queries, codes, radius, backend="reference")
        for chunk_rows in (None, 11, rows + 1):
            hits = index.range_search(queries, radius, chunk_rows=chunk_rows, backend=backend.name)
            assert [array.dtype for array in hits] == [np.int64, np.int64, np.int32]
            np.testing.assert_array_equal(hits.offsets, within.offsets)
            np.testing.assert_array_equal(hits.distances, within.distances)
            np.testing.assert_array_equal(hits.indices, names[within.indices])
    if backend.name != "reference":
        assert ran == {(family, backend.instruction_set) for family in ("hamming_search", "hamming_range")}


def test_ties_go_to_the_first_position_and_not_to_the_lowest_id() -> None:
    index = filled(np.zeros((4, 2), np.uint8), 16, np.array([9, -4, 7, 1]))
    for chunk_rows in (None, 1, 3):
        found = index.search(np.zeros((1, 2), np.uint8), 3, chunk_rows=chunk_rows)
        assert found.indices.tolist() == [[9, -4, 7]]
        hits = index.range_search(np.zeros((1, 2), np.uint8), 0, chunk_rows=chunk_rows)
        assert hits.indices.tolist() == [9, -4, 7, 1]


def test_no_queries_and_no_codes() -> None:
    index = HammingIndex(12)
    none = np.empty((0, 2), np.uint8)
    hits = index.range_search(np.zeros((2, 2), np.uint8), 3)
    assert hits.offsets.tolist() == [0, 0, 0]
    assert len(hits.indices) == len(hits.distances) == 0
    index.add(np.zeros((3, 2), np.uint8))
    for chunk_rows in (None, 2):
        assert index.search(none, 2, chunk_rows=chunk_rows).indices.shape == (0, 2)
        assert index.range_search(none, 2, chunk_rows=chunk_rows).offsets.tolist() == [0]


def test_results_are_of_the_kind_of_the_queries() -> None:
    codes = np.arange(40, dtype=np.uint8).reshape(20, 2)
    index = HammingIndex(16)
    index.add(torch.from_numpy(codes), torch.arange(100, 120, dtype=torch.int32))
    found = index.search(torch.from_numpy(codes), 2)
    assert isinstance(found.distances, torch.Tensor)
    assert found.indices.dtype == torch.int64
    assert found.indices[:, 0].tolist() == list(range(100, 120))
    assert isinstance(index.range_search(torch.from_numpy(codes), 1).offsets, torch.Tensor)
    assert isinstance(index.search(codes, 2).indices, np.ndarray)


def test_searches_from_several_threads(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    codes, ids = random_codes(rng, 4000, 100), rng.permutation(4000)
    queries = [random_codes(rng, 3, 100) for _ in range(24)]
    for index in (filled(codes, 100, ids), mapped(filled(codes, 100, ids), tmp_path)):

        def answer(query: np.ndarray, index: HammingIndex = index) -> list[Any]:
            found = index.search(query, 30, chunk_rows=500)
            return [found.distances.tolist(), index.range_search(query, 40, chunk_rows=700).indices.tolist()]

        alone = [answer(query) for query in queries]
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(answer, queries)) == alone


def test_the_progress_bar_counts_codes(capsys: pytest.CaptureFixture[str]) -> None:
    index = filled(random_codes(np.random.default_rng(0), 3000, 16), 16)
    index.search(np.zeros((1, 2), np.uint8), 1)
    index.range_search(np.zeros((1, 2), np.uint8), 1)
    assert capsys.readouterr().err == ""
    for search in (index.search, index.range_search):
        search(np.zeros((1, 2), np.uint8), 1, progress=True, chunk_rows=500)
        assert "3.00k/3.00k" in capsys.readouterr().err


# ------------------------------------------------------------------ adding and removing


@given(st.data())
def test_any_sequence_of_changes(data: st.DataObject) -> None:
    """Against a plain list of (id, code)."""
    bits = data.draw(st.sampled_from([3, 8, 20]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    with_ids = data.draw(st.booleans())
    index, rows = HammingIndex(bits), list[tuple[int, list[int]]]()
    query = random_codes(rng, 1, bits)
    used = 0
    for operation in data.draw(st.lists(st.sampled_from("aaars"), min_size=1, max_size=12)):
        names = [name for name, _ in rows] if with_ids else list(range(len(rows)))
        if operation == "a":
            codes = random_codes(rng, int(rng.integers(0, 30)), bits, distinct=4)
            new = rng.permutation(len(codes)) * 7 + used
            used += 7 * len(codes)
            index.add(codes, new if with_ids else None)
            rows += list(zip(new.tolist(), codes.tolist(), strict=True))
        elif operation == "r":
            gone = rng.permutation(names)[: rng.integers(0, len(names) + 1)].astype(np.int64)
            assert index.remove(gone) == len(gone)
            rows = [row for name, row in zip(names, rows, strict=True) if name not in set(gone.tolist())]
        elif rows:
            names = names if with_ids else list(range(len(rows)))
            k = int(rng.integers(1, len(rows) + 1))
            plain = np.array([code for _, code in rows], dtype=np.uint8)
            expected = minerlib.hamming_search(query, plain, k, backend="reference").indices[0]
            assert index.search(query, k).indices[0].tolist() == [names[row] for row in expected]
        assert len(index) == len(rows)
        assert index.codes.tolist() == [code for _, code in rows]
        if with_ids and used:
            assert index.ids is not None
            assert index.ids.tolist() == [name for name, _ in rows]


def test_adding_row_by_row_copies_little() -> None:
    """5,000 batches: the codes move to a longer array 20 times or so, not 5,000 times."""
    index, places = HammingIndex(64), set()
    codes = random_codes(np.random.default_rng(1), 5_000, 64)
    for row in range(5_000):
        index.add(codes[row : row + 1], [row])
        places.add(index.codes.ctypes.data)
    assert len(places) < 40
    assert index._known_ids is not None
    assert len(index._known_ids._runs) < 20
    np.testing.assert_array_equal(index.codes, codes)
    np.testing.assert_array_equal(index.ids, np.arange(5_000))


def test_remove_keeps_the_order_of_the_rest() -> None:
    codes = np.arange(10, dtype=np.uint8)[:, None]
    index = filled(codes, 8, np.arange(10)[::-1] * 10)
    assert index.remove(np.array([50, 90, 90, 0])) == 3
    assert index.ids is not None
    assert index.ids.tolist() == [80, 70, 60, 40, 30, 20, 10]
    assert index.codes[:, 0].tolist() == [1, 2, 3, 5, 6, 7, 8]
    index.add(codes[:1], [50])  # free again
    with pytest.raises(ValueError, match="ids: expected each id once in the index, got 80 a second time"):
        index.add(codes[:2], [51, 80])
    plain = filled(codes, 8)
    assert plain.remove([9, 0]) == 2
    assert plain.codes[:, 0].tolist() == list(range(1, 9))
    assert plain.search(np.array([[1]], np.uint8), 1).indices.tolist() == [[0]]
    assert plain.remove([]) == 0


def test_views_are_read_only_and_stay_as_they_were() -> None:
    codes = np.arange(60, dtype=np.uint8).reshape(30, 2)
    index = filled(codes[:20], 16, np.arange(20))
    view, ids = index.codes, index.ids
    assert ids is not None
    for array in (view, ids):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    for start in range(20, 30):
        index.add(codes[start : start + 1], [start])
    index.remove([0, 1, 2])
    index.add(codes[:3], [0, 1, 2])
    np.testing.assert_array_equal(view, codes[:20])
    np.testing.assert_array_equal(ids, np.arange(20))
    index.add(index.codes, np.asarray(index.ids) + 100)  # itself
    assert len(index) == 60
    np.testing.assert_array_equal(index.codes[:30], index.codes[30:])


def test_the_callers_arrays_are_copied() -> None:
    codes, ids = np.zeros((5, 1), np.uint8), np.arange(5)
    index = filled(codes, 8, ids)
    codes[:], ids[:] = 255, -1
    assert index.codes.tolist() == [[0]] * 5
    assert np.asarray(index.ids).tolist() == list(range(5))


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda index: pickle.loads(pickle.dumps(index))]
)
@pytest.mark.parametrize("where", [in_memory, mapped])
@pytest.mark.parametrize("with_ids", [False, True])
def test_copies_and_pickles(
    copied: Callable[[HammingIndex], HammingIndex],
    where: Callable[[HammingIndex, Path], HammingIndex],
    with_ids: bool,
    tmp_path: Path,
) -> None:
    codes = random_codes(np.random.default_rng(2), 50, 20)
    index = where(filled(codes, 20, np.arange(50) if with_ids else None, batches=9), tmp_path)
    twin = copied(index)
    assert twin.bits == 20
    np.testing.assert_array_equal(twin.codes, codes)
    twin.add(codes[:1], [77] if with_ids else None)
    twin.remove([3])
    assert len(twin) == len(index) == 50
    np.testing.assert_array_equal(index.codes, codes)
    assert twin.search(codes[3:4], 50).indices.shape == (1, 50)
    if with_ids:
        assert np.asarray(index.ids).tolist() == list(range(50))
        with pytest.raises(ValueError, match="got 77 a second time"):
            twin.add(codes[:1], [77])


def test_repr() -> None:
    index = HammingIndex(48)
    assert repr(index) == "HammingIndex(bits=48: 0 codes)"
    index.add(np.zeros((2, 6), np.uint8), [5, 6])
    assert repr(index) == "HammingIndex(bits=48: 2 codes, with ids)"


# ------------------------------------------------------------------ refusals


def plain_index() -> HammingIndex:
    return filled(np.zeros((3, 2), np.uint8), 12)


def index_with_ids() -> HammingIndex:
    return filled(np.zeros((3, 2), np.uint8), 12, np.array([5, 6, 7]))


one = np.zeros((1, 2), np.uint8)

REFUSED: tuple[tuple[Callable[[], object], type[Exception], str], ...] = (
    (lambda: HammingIndex(0), ValueError, "bits: expected an integer from 1 to"),
    (lambda: HammingIndex(8.0), TypeError, "bits: expected an integer, got float"),  # type: ignore[arg-type]
    (lambda: plain_index().add(one[0]), ValueError, "codes: expected shape"),
    (
        lambda: plain_index().add(one.astype(np.int8)),
        TypeError,
        r"codes: .*uint8 \(see pack_bits\), got int8",
    ),
    (
        lambda: plain_index().add(np.ones((1, 12))),
        TypeError,
        r"codes: .*uint8 \(see pack_bits\), got float64",
    ),
    (lambda: plain_index().add(np.ones((1, 12), bool)), TypeError, r"codes: .*\(see pack_bits\), got bool"),
    (lambda: plain_index().add([[0, 0]]), TypeError, "codes: expected a torch tensor, a NumPy array"),
    (
        lambda: plain_index().add(np.zeros((1, 3), np.uint8)),
        ValueError,
        "codes: expected 2 bytes a row for 12",
    ),
    (
        lambda: plain_index().add(np.array([[255, 15], [0, 16]], np.uint8)),
        ValueError,
        "codes: expected zeros beyond bit 12 .*row 1",
    ),
    (
        lambda: plain_index().add(one, [1]),
        ValueError,
        "ids: expected None, as the 3 codes so far have no ids",
    ),
    (lambda: index_with_ids().add(one), ValueError, "ids: expected 1 ids, as the codes so far have ids"),
    (lambda: index_with_ids().add(one, [1, 2]), ValueError, "ids: expected 1 ids, one for each code, got 2"),
    (lambda: index_with_ids().add(one, [6]), ValueError, "ids: expected each id once .* got 6 a second time"),
    (
        lambda: index_with_ids().add(np.zeros((2, 2), np.uint8), [1, 1]),
        ValueError,
        "ids: expected each id once .* got 1 a second time",
    ),
    (lambda: index_with_ids().add(one, [1.5]), TypeError, "ids: expected integers, got float64"),
    (lambda: index_with_ids().add(one, [True]), TypeError, "ids: expected integers, got bool"),
    (lambda: index_with_ids().add(one, 3), TypeError, "ids: expected a torch tensor"),
    (lambda: index_with_ids().add(one, [[3]]), ValueError, r"ids: expected shape \[rows\], got \[1, 1\]"),
    (lambda: index_with_ids().add(one, [[3], 4]), ValueError, r"ids: expected shape \[rows\], got a list"),
    (lambda: index_with_ids().add(one, [2**63]), ValueError, "ids: expected integers within int64, got 9223"),
    (lambda: index_with_ids().add(one, [2**64]), TypeError, "ids: expected"),
    (lambda: index_with_ids().remove([5, 8]), ValueError, "ids: expected ids in the index, it has no 8"),
    (lambda: plain_index().remove([3]), ValueError, "ids: expected positions in the index, it has no 3"),
    (lambda: plain_index().remove([-1]), ValueError, "ids: expected positions in the index, it has no -1"),
    (lambda: plain_index().remove([1.0]), TypeError, "ids: expected integers, got float64"),
    (lambda: plain_index().search(one, 0), ValueError, "k: expected an integer from 1 to 3, got 0"),
    (lambda: plain_index().search(one, 4), ValueError, "k: expected an integer from 1 to 3, got 4"),
    (lambda: HammingIndex(12).search(one, 1), ValueError, "k: expected an index with at least k codes"),
    (lambda: plain_index().search(one[:, :1], 1), ValueError, "queries: expected 2 bytes a row for 12 bits"),
    (lambda: plain_index().search(one + 16, 1), ValueError, "queries: expected zeros beyond bit 12"),
    (lambda: plain_index().search(one, 1, backend="cpu"), ValueError, "backend: expected one of auto"),
    (
        lambda: plain_index().search(one, 1, chunk_rows=0),
        ValueError,
        "chunk_rows: expected an integer from 1",
    ),
    (lambda: plain_index().search(one, 1, progress=1), TypeError, "progress: expected True or False"),  # type: ignore[arg-type]
    (lambda: plain_index().range_search(one, -1), ValueError, "radius: expected an integer from 0"),
    (lambda: plain_index().range_search(one, 1.0), TypeError, "radius: expected an integer"),  # type: ignore[arg-type]
    (lambda: plain_index().save(7), TypeError, "path: expected a string or a path, got int"),  # type: ignore[arg-type]
)


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refusals(number: int) -> None:
    call, error, message = REFUSED[number]
    with pytest.raises(error, match=message):
        call()


def test_what_was_refused_changed_nothing() -> None:
    codes = np.arange(6, dtype=np.uint8).reshape(3, 2) & 7
    index = filled(codes, 12, np.array([5, 6, 7]))
    for bad_codes, bad_ids in ((codes, [1, 2, 6]), (codes + 16, [1, 2, 3]), (codes, [1, 2]), (codes, None)):
        with pytest.raises(ValueError, match=r"codes|ids"):
            index.add(bad_codes, bad_ids)
    with pytest.raises(ValueError, match="it has no 1"):
        index.remove([5, 1])
    assert np.asarray(index.ids).tolist() == [5, 6, 7]
    np.testing.assert_array_equal(index.codes, codes)
    index.add(codes, [1, 2, 3])  # no trace of the refused ones


def test_an_index_without_codes_takes_ids_or_none() -> None:
    index = HammingIndex(8)
    index.add(np.empty((0, 1), np.uint8))
    index.add(np.zeros((1, 1), np.uint8), [3])
    index.remove([3])
    with pytest.raises(ValueError, match="as the codes so far have ids"):
        index.add(np.zeros((1, 1), np.uint8))
