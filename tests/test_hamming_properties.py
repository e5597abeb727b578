"""What must hold for any codes, asserted exactly, ties and all."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minerlib
from minerlib import inputs
from tests.conftest import Running

# `backend` is set up once for all examples of a test, which is as good.
shared_backend = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@st.composite
def two_sets(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A few queries, or a batch of them, and a database, from few or many different bytes."""
    width = draw(st.integers(1, 20) | st.just(64))
    queries = draw(st.integers(1, 4) | st.integers(12, 14))
    rows = draw(st.integers(1, 12) | st.integers(250, 260))
    largest = draw(st.sampled_from([1, 3, 255]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x, y = (rng.integers(0, largest, (n, width), np.uint8, endpoint=True) for n in (queries, rows))
    if draw(st.booleans()):
        y[rng.integers(rows, size=rows // 2 + 1)] = x[0]
    return x, y


def lists(found: Any) -> list[list[Any]]:
    return [array.tolist() for array in found]


@shared_backend
@given(sets=two_sets(), data=st.data())
def test_a_distance_between_codes(
    sets: tuple[np.ndarray, ...], data: st.DataObject, backend: Running
) -> None:
    """Zero for the same code alone, the same both ways, and never longer by a third code."""
    x, y = sets
    between = minerlib.hamming_distance(x, y, backend=backend.name)
    assert np.array_equal(between, minerlib.hamming_distance(y, x, backend=backend.name).T)
    assert np.array_equal(between == 0, (x[:, None] == y[None]).all(axis=2))
    within = minerlib.hamming_distance(x, x, backend=backend.name)
    assert (within[:, :, None] <= between[:, None, :] + between[None, :, :]).all()
    mask = data.draw(hnp.arrays(np.uint8, x.shape[1]))
    assert np.array_equal(minerlib.hamming_distance(x ^ mask, y ^ mask, backend=backend.name), between)
    assert np.array_equal(minerlib.hamming_distance(~x, y, backend=backend.name), 8 * x.shape[1] - between)


@shared_backend
@given(sets=two_sets(), data=st.data())
def test_a_search_is_the_start_of_the_whole_ranking(
    sets: tuple[np.ndarray, ...], data: st.DataObject, backend: Running
) -> None:
    x, y = sets
    whole = minerlib.hamming_search(x, y, len(y), backend=backend.name)
    between = minerlib.hamming_distance(x, y, backend=backend.name)
    for i in range(len(x)):
        assert whole.indices[i].tolist() == sorted(range(len(y)), key=lambda j: (between[i, j], j))
    assert np.array_equal(whole.distances, np.take_along_axis(between, whole.indices, axis=1))
    k = data.draw(st.integers(1, len(y)))
    found = minerlib.hamming_search(x, y, k, backend=backend.name)
    assert lists(found) == lists([whole.distances[:, :k], whole.indices[:, :k]])


@shared_backend
@given(sets=two_sets(), data=st.data())
def test_a_range_is_a_filtered_search(
    sets: tuple[np.ndarray, ...], data: st.DataObject, backend: Running
) -> None:
    x, y = sets
    radius = data.draw(st.integers(0, 8 * x.shape[1] + 1))
    whole = minerlib.hamming_search(x, y, len(y), backend=backend.name)
    found = minerlib.hamming_range(x, y, radius, backend=backend.name)
    inside = whole.distances <= radius
    assert np.diff(found.offsets).tolist() == inside.sum(axis=1).tolist()
    assert lists(found[1:]) == lists([whole.indices[inside], whole.distances[inside]])


@shared_backend
@given(sets=two_sets(), data=st.data())
def test_the_order_of_the_rows_is_only_a_name(
    sets: tuple[np.ndarray, ...], data: st.DataObject, backend: Running
) -> None:
    """Shuffled, every query finds the same distances; and rows at one distance by their new indices."""
    x, y = sets
    order = np.array(data.draw(st.permutations(range(len(y)))))
    place = np.argsort(order)
    k = data.draw(st.integers(1, len(y)))
    plain = minerlib.hamming_search(x, y, len(y), backend=backend.name)
    found = minerlib.hamming_search(x[::-1], y[order], k, backend=backend.name)
    for i, (distances, indices) in enumerate(zip(found.distances[::-1], found.indices[::-1], strict=True)):
        ranked = sorted(zip(plain.distances[i], place[plain.indices[i]], strict=True))[:k]
        assert list(zip(distances, indices, strict=True)) == ranked


@shared_backend
@given(sets=two_sets(), data=st.data())
def test_a_database_in_chunks_gives_the_same(
    sets: tuple[np.ndarray, ...], data: st.DataObject, backend: Running
) -> None:
    """The k nearest of each chunk and the hits of each chunk, merged by (distance, index)."""
    x, y = sets
    k = data.draw(st.integers(1, len(y)))
    radius = data.draw(st.integers(0, 8 * x.shape[1]))
    cuts = sorted({0, len(y), *data.draw(st.lists(st.integers(0, len(y)), max_size=4))})
    nearest: list[list[tuple[int, int]]] = [[] for _ in x]
    hits: list[list[tuple[int, int]]] = [[] for _ in x]
    for first, last in itertools.pairwise(cuts):
        chunk = y[first:last]
        part = minerlib.hamming_search(x, chunk, min(k, len(chunk)), backend=backend.name)
        inside = minerlib.hamming_range(x, chunk, radius, backend=backend.name)
        for i in range(len(x)):
            nearest[i] += zip(part.distances[i], part.indices[i] + first, strict=True)
            own = slice(*inside.offsets[i : i + 2])
            hits[i] += zip(inside.distances[own], inside.indices[own] + first, strict=True)
    whole = minerlib.hamming_search(x, y, k, backend=backend.name)
    around = minerlib.hamming_range(x, y, radius, backend=backend.name)
    for i in range(len(x)):
        assert sorted(nearest[i])[:k] == list(zip(whole.distances[i], whole.indices[i], strict=True))
        own = slice(*around.offsets[i : i + 2])
        assert sorted(hits[i]) == list(zip(around.distances[own], around.indices[own], strict=True))


@shared_backend
@given(sets=two_sets(), data=st.data())
def test_counts_and_precision_follow_from_the_ranking(
    sets: tuple[np.ndarray, ...], data: st.DataObject, backend: Running
) -> None:
    x, y = sets
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    own = data.draw(st.booleans())
    x = y if own else x
    labels = rng.integers(0, 3, len(x)), None if own else rng.integers(0, 3, len(y))
    k = data.draw(st.integers(1, len(y)))
    relevance = inputs.relevance(*labels, len(x), len(y))
    everything, relevant = backend.module.hamming_counts(x, y, relevance)
    precision = backend.module.hamming_average_precision(x, y, relevance, k)
    ranking = minerlib.hamming_search(x, y, len(y), backend=backend.name)
    values = 8 * x.shape[1] + 1
    for i in range(len(x)):
        there = ranking.indices[i] != i if own else slice(None)
        rows, distances = ranking.indices[i][there], ranking.distances[i][there]
        same = labels[0][i] == (labels[0] if own else labels[1])[rows]
        assert np.array_equal(everything[i], np.bincount(distances, minlength=values))
        assert np.array_equal(relevant[i], np.bincount(distances[same], minlength=values))
        ranks = np.flatnonzero(same[:k]) + 1
        shares = np.arange(1, len(ranks) + 1) / ranks
        assert precision[i] == (np.cumsum(shares)[-1] / len(ranks) if len(ranks) else 0.0)


@given(ones=hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=70)))
def test_packing_there_and_back(ones: np.ndarray) -> None:
    codes = minerlib.pack_bits(ones)
    bits = ones.shape[1]
    assert np.array_equal(minerlib.unpack_bits(codes, bits), ones)
    assert not minerlib.unpack_bits(codes, 8 * codes.shape[1])[:, bits:].any()
    assert np.array_equal(minerlib.pack_bits(np.where(ones, 1, -1)), codes)
    differing = (ones[:, None] != ones[None]).sum(axis=2)
    assert np.array_equal(minerlib.hamming_distance(codes, codes, backend="reference"), differing)


@pytest.mark.parametrize("width", [1, 8, 31])
def test_each_bit_counts_once(width: int, backend: Running) -> None:
    """One bit set in turn, against none and against all."""
    single = np.packbits(np.eye(8 * width, dtype=bool), axis=1, bitorder="little")
    ends = np.repeat(np.array([[0], [255]], dtype=np.uint8), width, axis=1)
    found = minerlib.hamming_distance(ends, single, backend=backend.name)
    assert found.tolist() == [[1] * 8 * width, [8 * width - 1] * 8 * width]
    for i, code in enumerate(single):
        hits = minerlib.hamming_range(code[None], single, 1, backend=backend.name)
        assert hits.indices.tolist() == [i]
