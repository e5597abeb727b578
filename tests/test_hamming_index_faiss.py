"""Codes to faiss and back: with faiss where it is installed, and its format byte by byte anywhere."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minerlib import HammingIndex
from minerlib.hamming_index import IndexFileError
from tests.test_hamming_index import filled, random_codes
from tests.test_hamming_index_files import assert_same, some_index

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files are locked and read the POSIX way")


def flat(codes: np.ndarray, **change: Any) -> bytes:
    """The bytes that faiss 1.15 writes for an IndexBinaryFlat."""
    rows, width = codes.shape
    fields = {
        "bits": 8 * width,
        "width": width,
        "rows": rows,
        "trained": 1,
        "metric": 1,
        "length": codes.size,
    }
    return b"IBxF" + struct.pack("<iiqBiQ", *{**fields, **change}.values()) + codes.tobytes()


def with_ids(codes: np.ndarray, ids: np.ndarray, kind: bytes = b"IBMp", **change: Any) -> bytes:
    """The bytes that faiss 1.15 writes for an IndexBinaryIDMap over an IndexBinaryFlat."""
    inner = flat(codes)
    vector = struct.pack("<Q", change.pop("count", len(ids))) + ids.astype("<i8").tobytes()
    return kind + flat(codes, **change)[4:25] + inner + vector


codes = random_codes(np.random.default_rng(3), 6, 24)
ids = np.array([5, -2, 2**40, 0, 7, 8])


# ------------------------------------------------------------------ with faiss itself


def same_answers(
    found: tuple[np.ndarray, np.ndarray], index: HammingIndex, queries: np.ndarray, k: int
) -> None:
    """faiss's distances are ours; its order among ties is arbitrary, and so is its choice at the last one."""
    ours = index.search(queries, k)
    np.testing.assert_array_equal(found[0], ours.distances)
    for row in range(len(queries)):
        inside = ours.distances[row] < ours.distances[row, -1]
        assert set(found[1][row][inside]) == set(ours.indices[row][inside])


@pytest.mark.parametrize("ids_given", [False, True])
@pytest.mark.parametrize(("rows", "bits"), [(1, 8), (300, 64), (300, 61), (500, 1025), (70, 3)])
def test_faiss_reads_ours(rows: int, bits: int, ids_given: bool, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss is installed for the benchmarks alone")
    index, path = some_index(rows, bits, ids_given), str(tmp_path / "a.faiss")
    index.to_faiss(path)
    theirs = faiss.read_index_binary(path)
    assert theirs.d == -(-bits // 8) * 8
    assert theirs.ntotal == rows
    queries, k = random_codes(np.random.default_rng(1), 20, bits), min(rows, 30)
    same_answers(theirs.search(queries, k), index, queries, k)
    index.save(tmp_path / "a.index")
    HammingIndex.load(tmp_path / "a.index").to_faiss(tmp_path / "b.faiss")
    assert (tmp_path / "b.faiss").read_bytes() == (tmp_path / "a.faiss").read_bytes()


@pytest.mark.parametrize("kind", ["", "IndexBinaryIDMap", "IndexBinaryIDMap2"])
@pytest.mark.parametrize(("rows", "bits"), [(0, 8), (1, 8), (300, 64), (500, 1024)])
def test_we_read_faisss(rows: int, bits: int, kind: str, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss is installed for the benchmarks alone")
    index, path = some_index(rows, bits, bool(kind)), tmp_path / "a.faiss"
    theirs = base = faiss.IndexBinaryFlat(bits)
    if kind:
        theirs = getattr(faiss, kind)(base)
        theirs.add_with_ids(index.codes, index.ids)
    elif rows:
        theirs.add(index.codes)
    faiss.write_index_binary(theirs, str(path))
    assert_same(HammingIndex.from_faiss(path), index)
    read = path.read_bytes()
    assert read == (
        with_ids(index.codes, index.ids, read[:4]) if index.ids is not None else flat(index.codes)
    )
    if kind != "IndexBinaryIDMap2":  # which we read and do not write
        index.to_faiss(path)
        assert path.read_bytes() == read


def test_other_indexes_of_faiss_are_refused(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss is installed for the benchmarks alone")
    path = tmp_path / "a.faiss"
    graph = faiss.IndexBinaryHNSW(24, 4)
    graph.add(codes)
    floats = faiss.IndexFlatL2(3)
    floats.add(np.zeros((2, 3), np.float32))
    over_graph = faiss.IndexBinaryIDMap(faiss.IndexBinaryHNSW(24, 4))
    over_graph.add_with_ids(codes, ids)
    for write, index, kind in (
        (faiss.write_index_binary, graph, "IBHf"),
        (faiss.write_index, floats, "IxF2"),
        (faiss.write_index_binary, over_graph, "IBHf"),
    ):
        write(index, str(path))
        with pytest.raises(IndexFileError, match=rf"{path}: expected a faiss index of binary codes .*{kind}"):
            HammingIndex.from_faiss(path)


# ------------------------------------------------------------------ without it


def test_the_bytes_are_faisss(tmp_path: Path) -> None:
    filled(codes, 24).to_faiss(tmp_path / "flat")
    filled(codes, 24, ids).to_faiss(tmp_path / "map")
    assert (tmp_path / "flat").read_bytes() == flat(codes)
    assert (tmp_path / "map").read_bytes() == with_ids(codes, ids)
    for kind in (b"IBMp", b"IBM2"):
        (tmp_path / "map").write_bytes(with_ids(codes, ids, kind))
        assert_same(HammingIndex.from_faiss(tmp_path / "map"), filled(codes, 24, ids))


def test_lengths_that_are_no_whole_bytes(tmp_path: Path) -> None:
    path, index = tmp_path / "a.faiss", some_index(40, 13, True)
    index.to_faiss(path)
    assert_same(HammingIndex.from_faiss(path, bits=13), index)
    assert HammingIndex.from_faiss(path).bits == 16
    with pytest.raises(ValueError, match=r"bits: expected codes of 12 bits in .*, row \d+ has others set"):
        HammingIndex.from_faiss(path, bits=12)
    for bits in (8, 17):
        with pytest.raises(ValueError, match=f"bits: expected an integer from 9 to 16, got {bits}"):
            HammingIndex.from_faiss(path, bits=bits)


def test_an_index_from_faiss_can_change(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(with_ids(codes, ids))
    index = HammingIndex.from_faiss(tmp_path / "a")
    index.add(codes[:1], [77])
    index.remove([2**40])
    assert np.asarray(index.ids).tolist() == [5, -2, 0, 7, 8, 77]
    with pytest.raises(ValueError, match="got 8 a second time"):
        index.add(codes[:1], [8])
    assert index.search(codes[:1], 1).indices.tolist() == [[5]]
    query = np.ascontiguousarray(codes[3:4])
    assert index.search(query, 1).indices.tolist() == [[0]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (flat(codes, bits=23), "a header is damaged: 23 bits in 3 bytes"),
        (flat(codes, width=4), "a header is damaged"),
        (flat(codes, bits=0, width=0), "a header is damaged"),
        (flat(codes, bits=-8, width=-1), "a header is damaged"),
        (flat(codes, rows=-6), "a header is damaged"),
        (flat(codes, trained=2), "a header is damaged"),
        (flat(codes, metric=0), "a header is damaged"),
        (flat(codes, rows=7), "expected 21 elements of its codes, got 18"),
        (flat(codes, length=17), "expected 18 elements of its codes, got 17"),
        (
            flat(codes, rows=2**40, length=3 * 2**40),
            "cut short: its codes of 3298534883328 bytes, 18 are left",
        ),
        (flat(codes, rows=2**62, length=3 * 2**62), "cut short"),
        (flat(codes) + b"\0", "expected the file to end behind its index, got 1 bytes more"),
        (with_ids(codes, ids, rows=5), "the headers of the ids and of the codes contradict each other"),
        (with_ids(codes, ids, bits=16, width=2), "contradict each other"),
        (with_ids(codes, ids, count=5), "expected 6 elements of its ids, got 5"),
        (with_ids(codes, ids[[0, 1, 2, 3, 4, 4]]), "expected each id once, got 7 a second time"),
        (b"IBMp" + flat(codes)[4:25] + with_ids(codes, ids), "contradict each other"),
        (b"IBxG" + flat(codes)[4:], "got kind b'IBxG'"),
        (b"IBx", "cut short"),
    ],
)
def test_malformed_files(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.faiss"
    path.write_bytes(data)
    with pytest.raises(IndexFileError, match=message) as refusal:
        HammingIndex.from_faiss(path)
    assert str(refusal.value).startswith(f"{path}: ")


@pytest.mark.parametrize("data", [flat(codes), with_ids(codes, ids)])
def test_truncated_and_flipped_files(data: bytes, tmp_path: Path) -> None:
    """Every length, and every bit of headers and lengths. There is no checksum that tells codes and ids."""
    path, inner = tmp_path / "a.faiss", data.index(b"IBxF")
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(IndexFileError, match=r"cut short|empty"):
            HammingIndex.from_faiss(path)
    codes_end = inner + 33 + codes.size
    for place in [*range(inner + 33), *range(codes_end, min(codes_end + 8, len(data)))]:
        for bit in range(8):
            path.write_bytes(data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :])
            if place in (20, inner + 20) and bit == 0:  # is_trained: no and yes are the same to a flat index
                assert len(HammingIndex.from_faiss(path)) == len(codes)
                continue
            with pytest.raises(IndexFileError):
                HammingIndex.from_faiss(path)
