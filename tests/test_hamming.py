"""Codes on every backend against the reference, by exact equality; the reference against plain integers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import minerlib
from minerlib import inputs, reference
from minerlib.backends import _numba_codes
from minerlib.inputs import Relevance
from tests.conftest import FAST_BACKENDS, Running, load_backend

BITS = (1, 7, 8, 9, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 512, 520, 1000, 1024, 1025)
FAST = pytest.mark.parametrize("backend", FAST_BACKENDS, indirect=True)


def random_codes(rng: np.random.Generator, rows: int, bits: int) -> np.ndarray:
    return minerlib.pack_bits(rng.random((rows, bits)) < 0.5)


# ------------------------------------------------------------------ codes that are hard to get right


def _random(rng: np.random.Generator, rows: int, bits: int) -> np.ndarray:
    return random_codes(rng, rows, bits)


def _few_distinct(rng: np.random.Generator, rows: int, bits: int) -> np.ndarray:
    """Ties everywhere."""
    return random_codes(rng, 5, bits)[rng.integers(5, size=rows)]


def _duplicates(rng: np.random.Generator, rows: int, bits: int) -> np.ndarray:
    return np.repeat(random_codes(rng, 1, bits), rows, axis=0)


def _ends(rng: np.random.Generator, rows: int, bits: int) -> np.ndarray:
    """All bits set, or none: distance 0 or the greatest there is."""
    return minerlib.pack_bits(np.repeat(rng.random((rows, 1)) < 0.5, bits, axis=1))


def _descending(rng: np.random.Generator, rows: int, bits: int) -> np.ndarray:
    """By falling distance to the first query, so that every row is better than all before it."""
    codes = random_codes(rng, rows, bits)
    return codes[np.argsort(-reference.hamming_distance(codes[:1], codes)[0], kind="stable")]


def _ascending(rng: np.random.Generator, rows: int, bits: int) -> np.ndarray:
    return _descending(rng, rows, bits)[::-1].copy()


def _padded(rng: np.random.Generator, rows: int, bits: int) -> np.ndarray:
    """Bits beyond `bits` are compared too, whatever is in them."""
    return rng.integers(0, 256, (rows, -(-bits // 8)), dtype=np.uint8)


CODES: dict[str, Callable[[np.random.Generator, int, int], np.ndarray]] = {
    "random": _random,
    "few distinct": _few_distinct,
    "duplicates": _duplicates,
    "ends": _ends,
    "descending": _descending,
    "ascending": _ascending,
    "padded": _padded,
}
#: Queries and rows: one of each, both sides of a batch and of the blocks of 64 to 512 codes in the kernels.
SIZES = ((1, 1), (2, 63), (3, 65), (1, 257), (11, 512), (12, 513), (33, 130))


@dataclass(frozen=True)
class Expected:
    queries: np.ndarray
    database: np.ndarray
    distances: np.ndarray  # [Q, M]
    ranked: tuple[np.ndarray, np.ndarray]  # all M of them


@functools.lru_cache(maxsize=2)  # the backends of a case follow each other
def expected(kind: str, bits: int, queries: int, rows: int) -> Expected:
    rng = np.random.default_rng([bits, queries, rows])
    database = CODES[kind](rng, max(rows, queries), bits)
    some = np.arange(queries) if "scending" in kind else rng.permutation(len(database))[:queries]
    x = database[some].copy()
    x[1::2] ^= minerlib.pack_bits(rng.random((len(x[1::2]), bits)) < 0.1)  # near a row, but not on it
    y = database[:rows]
    return Expected(x, y, reference.hamming_distance(x, y), reference.hamming_search(x, y, rows))


def cases() -> list[tuple[str, int, int, int]]:
    """Every kind of codes at every length, the sizes in turn."""
    return [
        (kind, bits, *SIZES[(place + turn) % len(SIZES)])
        for turn, bits in enumerate(BITS)
        for place, kind in enumerate(CODES)
    ]


def assert_equal(found: Any, wanted: Any, types: tuple[type, ...]) -> None:
    assert len(found) == len(wanted) == len(types)
    for array, other, dtype in zip(found, wanted, types, strict=True):
        assert array.dtype == dtype
        assert array.shape == other.shape
        assert np.array_equal(array, other)


def assert_search(found: Any, e: Expected, k: int) -> None:
    assert_equal(found, [array[:, :k] for array in e.ranked], (np.int32, np.int64))


def assert_range(found: Any, e: Expected, radius: int) -> None:
    distances, indices = e.ranked
    inside = distances <= radius
    offsets = [0, *np.cumsum(inside.sum(axis=1))]
    types = (np.int64, np.int64, np.int32)
    assert_equal(found, (np.array(offsets), indices[inside], distances[inside]), types)


# ------------------------------------------------------------------ equality


@pytest.mark.parametrize(("kind", "bits", "queries", "rows"), cases())
def test_distances_searches_and_ranges(
    kind: str, bits: int, queries: int, rows: int, backend: Running
) -> None:
    e = expected(kind, bits, queries, rows)
    found = minerlib.hamming_distance(e.queries, e.database, backend=backend.name)
    assert_equal([found], [e.distances], (np.int32,))
    assert backend.families() == ["hamming_distance"]
    ks = sorted({1, min(2, rows), -(-rows // 3), max(1, rows - 1), rows})
    for k in ks:
        assert_search(minerlib.hamming_search(e.queries, e.database, k, backend=backend.name), e, k)
    assert backend.families() == ["hamming_search"] * len(ks)
    median, most = int(np.median(e.distances)), 8 * e.queries.shape[1]
    radii = sorted({0, max(0, median - 1), median, int(e.distances.max()) - 1, most - 1, most, 2**62} - {-1})
    for radius in radii:
        assert_range(minerlib.hamming_range(e.queries, e.database, radius, backend=backend.name), e, radius)
    assert backend.families() == ["hamming_range"] * len(radii)


@FAST
@pytest.mark.parametrize("bits", [8000, 8191, 8193, 20000])
def test_very_long_codes(bits: int, backend: Running) -> None:
    e = expected("random", bits, 13, 70)
    assert_search(minerlib.hamming_search(e.queries, e.database, 9, backend=backend.name), e, 9)
    radius = int(np.median(e.distances))
    assert_range(minerlib.hamming_range(e.queries, e.database, radius, backend=backend.name), e, radius)


@FAST
@pytest.mark.parametrize("bits", [5, 96, 97, 1020, 2100, 8184])
def test_queries_that_agree_or_differ_in_all_bits(bits: int, backend: Running) -> None:
    """Kernels that share sums among queries sort the bits by where these differ: here all go to one place."""
    rng = np.random.default_rng(bits)
    database = random_codes(rng, 300, bits)
    queries = np.where(rng.random((29, 1)) < 0.5, database[:1], ~database[:1])
    e = Expected(
        queries,
        database,
        reference.hamming_distance(queries, database),
        reference.hamming_search(queries, database, len(database)),
    )
    for k in (1, 10, 300):
        assert_search(minerlib.hamming_search(queries, database, k, backend=backend.name), e, k)
    for radius in (0, bits // 2, bits):
        assert_range(minerlib.hamming_range(queries, database, radius, backend=backend.name), e, radius)


@FAST
@pytest.mark.parametrize("queries", [1, 13])
@pytest.mark.parametrize("kind", ["random", "duplicates", "few distinct", "descending", "ends"])
def test_many_rows(kind: str, queries: int, backend: Running) -> None:
    """More rows at one distance than 16 bits count, in several parts of the database and threads."""
    rows = 70_001
    e = expected(kind, 40, queries, rows)
    for threads, k in ((1, 10), (3, 1), (3, 1000), (2, 40_000), (2, rows)):
        minerlib.set_num_threads(threads)
        assert_search(minerlib.hamming_search(e.queries, e.database, k, backend=backend.name), e, k)
    for radius in (0, 11, 40):
        assert_range(minerlib.hamming_range(e.queries, e.database, radius, backend=backend.name), e, radius)


@pytest.mark.parametrize("rows", [0, 1, 9])
def test_nothing_to_find(rows: int, backend: Running) -> None:
    some, none = np.full((rows, 3), 7, np.uint8), np.empty((0, 3), np.uint8)
    for a, b in ((none, some), (some, none)):
        assert minerlib.hamming_distance(a, b, backend=backend.name).shape == (len(a), len(b))
        found = minerlib.hamming_range(a, b, 5, backend=backend.name)
        wanted = np.zeros(len(a) + 1, np.int64), np.empty(0, np.int64), np.empty(0, np.int32)
        assert_equal(found, wanted, (np.int64, np.int64, np.int32))
    if rows:
        found = minerlib.hamming_search(none, some, rows, backend=backend.name)
        assert_equal(found, (np.empty((0, rows)), np.empty((0, rows))), (np.int32, np.int64))


def test_every_place_of_a_result_is_written(poison: Callable[[], None], backend: Running) -> None:
    e = expected("few distinct", 129, 33, 130)
    for poisoned in (False, True):
        if poisoned:
            poison()
        distances = minerlib.hamming_distance(e.queries, e.database, backend=backend.name)
        assert np.array_equal(distances, e.distances)
        assert_search(minerlib.hamming_search(e.queries, e.database, 50, backend=backend.name), e, 50)
        assert_range(minerlib.hamming_range(e.queries, e.database, 60, backend=backend.name), e, 60)
        relevance = inputs.relevance(np.arange(33) % 4, np.arange(130) % 5, 33, 130)
        assert_ranking(backend, e, relevance, (1, 60))


def test_a_set_of_codes_against_itself(backend: Running) -> None:
    codes = expected("few distinct", 65, 33, 130).database
    found = minerlib.hamming_search(codes, codes, 130, backend=backend.name)
    assert_equal(found, reference.hamming_search(codes, codes, 130), (np.int32, np.int64))
    assert (found.distances[:, 0] == 0).all()


@FAST
def test_calls_from_several_threads(backend: Running) -> None:
    minerlib.set_num_threads(2)
    work = [expected(kind, 64, 33, 130) for kind in ("random", "descending")] * 3

    def call(e: Expected) -> Iterator[list[int]]:
        found = (
            *minerlib.hamming_search(e.queries, e.database, 20, backend=backend.name),
            *minerlib.hamming_range(e.queries, e.database, 25, backend=backend.name),
        )
        return (array.tolist() for array in found)

    alone = [list(call(e)) for e in work]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda e: list(call(e)), work * 3)) == alone * 3


# ------------------------------------------------------------------ counts and average precision


def assert_ranking(backend: Running, e: Expected, relevance: Relevance, ks: tuple[int, ...]) -> None:
    judge = load_backend("reference")
    counts = backend.module.hamming_counts(e.queries, e.database, relevance)
    wanted = judge.hamming_counts(e.queries, e.database, relevance)
    assert_equal(counts, wanted, (np.int64, np.int64))
    for k in ks:
        found = backend.module.hamming_average_precision(e.queries, e.database, relevance, k)
        wanted = judge.hamming_average_precision(e.queries, e.database, relevance, k)
        assert_equal([found], [wanted], (np.float64,))  # the same bits: summed in the order of ranks


def single(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.integers(-2, 3, rows)


def multi(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.random((rows, 70)) < 0.01


@FAST
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("labels", [single, multi])
@pytest.mark.parametrize("kind", CODES)
def test_counts_and_average_precision(
    kind: str, labels: Callable[..., np.ndarray], own: bool, backend: Running
) -> None:
    for bits, queries, rows in (
        (1, 1, 1),
        (9, 3, 65),
        (64, 12, 700),
        (129, 33, 130),
        (9, 5, 2500),
        (248, 5, 70),
        (1025, 2, 63),
        (8200, 1, 66),
    ):
        e = expected(kind, bits, queries, rows)
        rng = np.random.default_rng(bits)
        if own:
            e = Expected(e.database[:200], e.database[:200], e.distances, e.ranked)
        x_labels = labels(rng, len(e.queries))
        x_labels[0] = 0  # multi-label: without any
        y_labels = None if own else labels(rng, len(e.database)) + (labels is single)  # -2 is not among them
        relevance = inputs.relevance(x_labels, y_labels, len(e.queries), len(e.database))
        assert_ranking(backend, e, relevance, (1, max(1, rows // 2), rows))
    assert set(backend.families()) == {"hamming_counts", "hamming_average_precision"}


@FAST
def test_counts_and_average_precision_of_many_rows(backend: Running) -> None:
    """Thousands of relevant rows at one distance, over several slabs and threads."""
    minerlib.set_num_threads(3)
    rows = 40_000
    for kind in ("few distinct", "random"):
        e = expected(kind, 12, 3, rows)
        relevance = inputs.relevance(np.arange(3), np.arange(rows) % 4, 3, rows)
        assert_ranking(backend, e, relevance, (100, rows))
    for bits in (12, 264):
        own = random_codes(np.random.default_rng(bits), 530, bits)
        e = Expected(own, own, own, (own, own))
        assert_ranking(backend, e, inputs.relevance(np.arange(530) % 5, None, 530, 530), (200,))


# ------------------------------------------------------------------ the numba backend's grid


@pytest.mark.parametrize("seed", range(12))
def test_blocks_parts_and_slabs_change_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = minerlib.explain("hamming_search").reasons["numba"]
    if reasons:
        pytest.skip("numba: " + "; ".join(reasons))
    rng = np.random.default_rng(seed)
    sizes = {"LEAST_WORK": [1], "LEAST_PART": [3, 50], "SPARE": [0, 7], "SLAB_BYTES": [64, 4096]}
    sizes |= {"LEAST_SLAB": [1, 100], "MOST_QUERIES": [1, 2, 32], "HELD": [1, 4000], "MARKED_ROWS": [5, 999]}
    for name, values in sizes.items():
        monkeypatch.setattr(_numba_codes, name, int(rng.choice(values)))
    minerlib.set_num_threads(2 + seed % 3)
    kind = list(CODES)[seed % len(CODES)]
    bits = (
        int(rng.choice(BITS)) if seed % 2 else 64 * int(rng.integers(1, 4))
    )  # whole words are read in place
    e = expected(kind, bits, int(rng.integers(1, 6)), int(rng.integers(9, 2000)))
    rows = len(e.database)
    found = minerlib.hamming_distance(e.queries, e.database, backend="numba")
    assert np.array_equal(found, e.distances)
    for k in (1, rows // 64 + 1, rows // 7 + 1, rows):
        assert_search(minerlib.hamming_search(e.queries, e.database, k, backend="numba"), e, k)
    for radius in (0, int(np.median(e.distances)), 10_000):
        assert_range(minerlib.hamming_range(e.queries, e.database, radius, backend="numba"), e, radius)
    running = Running("numba", "", load_backend("numba"))
    relevance = inputs.relevance(np.arange(len(e.queries)), np.arange(rows) % 3, len(e.queries), rows)
    assert_ranking(running, e, relevance, (3, rows))


# ------------------------------------------------------------------ the reference and faiss


def as_integers(codes: np.ndarray) -> list[int]:
    return [int.from_bytes(code.tobytes(), "little") for code in codes]


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("bits", [1, 8, 65, 1025])
def test_the_reference_is_the_definition(bits: int, kind: str) -> None:
    e = expected(kind, bits, 11, 130)
    relevance = inputs.relevance(np.arange(11) % 3, np.arange(130) % 2, 11, 130)
    judge = load_backend("reference")
    everything, relevant = judge.hamming_counts(e.queries, e.database, relevance)
    precision = judge.hamming_average_precision(e.queries, e.database, relevance, 60)
    for i, query in enumerate(as_integers(e.queries)):
        distances = [(query ^ code).bit_count() for code in as_integers(e.database)]
        assert e.distances[i].tolist() == distances
        ranking = sorted(range(130), key=lambda j: (distances[j], j))
        assert e.ranked[1][i].tolist() == ranking
        assert e.ranked[0][i].tolist() == sorted(distances)
        radius = sorted(distances)[40]
        offsets, indices, within = reference.hamming_range(e.queries, e.database, radius)
        hits = slice(offsets[i], offsets[i + 1])
        assert indices[hits].tolist() == [j for j in ranking if distances[j] <= radius]
        assert within[hits].tolist() == [distances[j] for j in ranking if distances[j] <= radius]
        same = [i % 3 == j % 2 for j in range(130)]
        for d in range(8 * e.queries.shape[1] + 1):
            assert everything[i, d] == distances.count(d)
            assert relevant[i, d] == sum(same[j] for j in range(130) if distances[j] == d)
        ranks = [rank for rank, j in enumerate(ranking[:60], start=1) if same[j]]
        wanted = 0.0  # one addition after the other, which sum() of floats is not from Python 3.12 on
        for hit, rank in enumerate(ranks, start=1):
            wanted += hit / rank
        assert precision[i] == wanted / max(1, len(ranks))


@FAST
@pytest.mark.parametrize("kind", ["random", "few distinct", "descending", "ends"])
@pytest.mark.parametrize("bits", [8, 64, 128, 520])
def test_equal_to_faiss_but_for_its_ties(bits: int, kind: str, backend: Running) -> None:
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    e = expected(kind, bits, 12, 513)
    index = faiss.IndexBinaryFlat(bits)
    index.add(e.database)
    for k in (1, 10, 100, 513):
        theirs, labels = index.search(e.queries, k)
        ours = minerlib.hamming_search(e.queries, e.database, k, backend=backend.name)
        assert np.array_equal(ours.distances, theirs)
        for i in range(12):
            inside = ours.distances[i] < ours.distances[i, -1]  # any of the rows at the last distance will do
            assert set(ours.indices[i][inside]) == set(labels[i][theirs[i] < theirs[i, -1]])
            assert (e.distances[i, labels[i]] == theirs[i]).all()
    radius = int(np.median(e.distances))
    limits, distances, labels = index.range_search(e.queries, radius + 1)  # theirs is exclusive
    ours = minerlib.hamming_range(e.queries, e.database, radius, backend=backend.name)
    assert np.array_equal(ours.offsets, limits.astype(np.int64))
    for i in range(12):
        hits = slice(ours.offsets[i], ours.offsets[i + 1])
        pairs = sorted(zip(distances[hits].astype(int), labels[hits], strict=True))
        assert pairs == list(zip(ours.distances[hits], ours.indices[hits], strict=True))
