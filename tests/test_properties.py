"""What must hold for any data, asserted exactly: each property follows from the definitions, ties and all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minerlib
from minerlib.strategies import STRATEGIES
from tests.conftest import Running

#: Decided by distances alone; the others also by the index of who chooses.
EXTREMES = ("epen", "ephn", "hpen", "hphn", "batch-hard", "easy-positive")
BY_DISTANCE = (*EXTREMES, "hard", "semi-hard-nearest", "all")
RANDOM = ("semi-hard", "random-hard")
PER_PAIR = ("hard", "semi-hard-nearest", *RANDOM)
EXACT = (*BY_DISTANCE, *RANDOM, "assorted")

# `backend` is set up once for all examples of a test, which is as good.
shared_backend = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@dataclass(frozen=True)
class Batch:
    x: np.ndarray  # [N, D]
    labels: np.ndarray  # [N]
    metric: str
    margin: float
    fallback: str
    seed: int

    def mine(self, strategy: str, backend: Running, **changes: Any) -> minerlib.Triplets:
        options = {"margin": self.margin, "metric": self.metric, "fallback": self.fallback, "seed": self.seed}
        return minerlib.mine(self.x, self.labels, strategy, backend=backend.name, **options | changes)

    def count(self, backend: Running, **changes: Any) -> minerlib.TripletCounts:
        options = {"margin": self.margin, "metric": self.metric} | changes
        return minerlib.count_triplets(self.x, self.labels, backend=backend.name, **options)


def small_integers() -> st.SearchStrategy[float]:
    return st.integers(-4, 4).map(float)


def any_floats() -> st.SearchStrategy[float]:
    return st.floats(-1e6, 1e6, width=32)


@st.composite
def batches(
    draw: st.DrawFn,
    elements: st.SearchStrategy[float] | None = None,
    metrics: tuple[str, ...] = ("sqeuclidean", "euclidean", "cosine"),
) -> Batch:
    """Small integers are full of ties and small; other floats reach corners of rounding."""
    n, d = draw(st.integers(1, 26)), draw(st.integers(1, 18))
    if elements is None:
        elements = draw(st.sampled_from([small_integers(), any_floats()]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    x = draw(hnp.arrays(dtype, (n, d), elements=elements, fill=st.nothing() if d < 4 else elements))
    labels = draw(hnp.arrays(np.int64, n, elements=st.integers(-1, draw(st.integers(0, 5)))))
    return Batch(
        x,
        labels,
        metric=draw(st.sampled_from(metrics)),
        margin=draw(st.sampled_from([0.0, 0.2, 1.0, 3.0, 1e3])),
        fallback=draw(st.sampled_from(["drop", "hardest", "farthest"])),
        seed=draw(st.integers(0, 2**64 - 1)),
    )


@st.composite
def permuted_batches(draw: st.DrawFn) -> tuple[Batch, np.ndarray]:
    """Rows no two of which are at the same distance from a third, and another order of them."""
    n, d = draw(st.integers(2, 40)), draw(st.integers(2, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.standard_normal((n, d)).astype(draw(st.sampled_from([np.float32, np.float64])))
    metric = draw(st.sampled_from(["sqeuclidean", "euclidean", "cosine"]))
    distances = minerlib.pairwise_distance(x, metric=metric, backend="reference")
    assume(all(len(set(row)) == n for row in distances.tolist()))
    batch = Batch(x, rng.integers(draw(st.integers(1, 6)), size=n), metric, 1.0, "hardest", 0)
    return batch, rng.permutation(n)


def rows_of(triplets: Any) -> list[tuple[int, int, int]]:
    return list(zip(*(column.tolist() for column in triplets), strict=True))


# ------------------------------------------------------------------ rows: order, place, scale, width


@shared_backend
@given(case=permuted_batches())
def test_permuting_rows_permutes_the_answer(backend: Running, case: tuple[Batch, np.ndarray]) -> None:
    batch, order = case
    other = replace(batch, x=batch.x[order], labels=batch.labels[order])
    for strategy in BY_DISTANCE:
        there = rows_of(batch.mine(strategy, backend))
        here = rows_of(other.mine(strategy, backend))
        assert sorted(tuple(int(order[i]) for i in row) for row in here) == there, strategy
    assert other.count(backend) == batch.count(backend)
    found = minerlib.nearest(batch.x, other.x, len(order), metric=batch.metric, backend=backend.name)
    same = minerlib.nearest(batch.x, batch.x, len(order), metric=batch.metric, backend=backend.name)
    assert np.array_equal(order[found.indices], same.indices)
    assert np.array_equal(found.distances, same.distances)


@shared_backend
@given(batch=batches(small_integers(), ("sqeuclidean", "euclidean")), shift=st.integers(-(2**20), 2**20))
def test_translation_changes_nothing(backend: Running, batch: Batch, shift: int) -> None:
    """By whole numbers, whose sums with whole numbers float32 holds exactly."""
    moved = replace(batch, x=batch.x + np.arange(batch.x.shape[1], dtype=batch.x.dtype) + shift)
    for strategy in EXACT:
        assert rows_of(moved.mine(strategy, backend)) == rows_of(batch.mine(strategy, backend)), strategy
    assert moved.count(backend) == batch.count(backend)


@shared_backend
@given(batch=batches(), zeros=st.integers(1, 70))
def test_zero_padding_changes_nothing(backend: Running, batch: Batch, zeros: int) -> None:
    """At the end, where the other dimensions stay in their lanes."""
    padded = replace(batch, x=np.pad(batch.x, ((0, 0), (0, zeros))))
    for strategy in EXACT:
        assert rows_of(padded.mine(strategy, backend)) == rows_of(batch.mine(strategy, backend)), strategy
    assert padded.count(backend) == batch.count(backend)
    distances = [
        minerlib.pairwise_distance(b.x, metric=b.metric, backend=backend.name) for b in (batch, padded)
    ]
    assert np.array_equal(*distances)


@shared_backend
@given(batch=batches(small_integers()), exponent=st.integers(-60, 40))
def test_scaling_by_powers_of_two(backend: Running, batch: Batch, exponent: int) -> None:
    """Squared distances grow by 4^e, distances by 2^e, and so must the margin; cosine does not care."""
    factor = {"sqeuclidean": 4.0, "euclidean": 2.0, "cosine": 1.0}[batch.metric] ** exponent
    scaled = replace(batch, x=np.ldexp(batch.x, exponent), margin=batch.margin * factor)
    for strategy in EXACT:
        assert rows_of(scaled.mine(strategy, backend)) == rows_of(batch.mine(strategy, backend)), strategy
    assert scaled.count(backend) == batch.count(backend)


# ------------------------------------------------------------------ classes and candidates


@shared_backend
@given(batch=batches(), names=st.permutations([-(2**63), -7, 0, 3, 2**40, 2**63 - 1, 2**53, 2**53 + 1]))
def test_names_of_classes_do_not_matter(backend: Running, batch: Batch, names: list[int]) -> None:
    renamed = replace(batch, labels=np.array(names, dtype=np.int64)[batch.labels + 1])
    for strategy in (*EXACT, "distance-weighted"):
        assert rows_of(renamed.mine(strategy, backend)) == rows_of(batch.mine(strategy, backend)), strategy
    assert renamed.count(backend) == batch.count(backend)


@shared_backend
@given(batch=batches(small_integers(), ("sqeuclidean", "euclidean")))
def test_a_far_row_of_its_own_class(backend: Running, batch: Batch) -> None:
    """It changes no positive, and is a negative of none but those who ask for the farthest."""
    far = np.full((1, batch.x.shape[1]), 2.0**20, dtype=batch.x.dtype)
    more = replace(
        batch, x=np.concatenate([batch.x, far]), labels=np.append(batch.labels, 99), fallback="drop"
    )
    batch = replace(batch, fallback="drop")
    if len(set(batch.labels.tolist())) > 1:
        for strategy in (
            "hphn",
            "batch-hard",
            "ephn",
            "easy-positive",
            "hard",
            "semi-hard",
            "random-hard",
            "all",
        ):
            assert rows_of(more.mine(strategy, backend)) == rows_of(batch.mine(strategy, backend)), strategy
    for strategy in ("hphn", "hpen", "epen", "ephn"):
        with_it, without = more.mine(strategy, backend), batch.mine(strategy, backend)
        positives = dict(zip(with_it.anchors.tolist(), with_it.positives.tolist(), strict=True))
        for a, p, _ in rows_of(without):
            assert positives[a] == p, strategy
        if strategy in ("hpen", "epen"):
            assert set(with_it.negatives.tolist()) <= {len(batch.x)}
    before, after = batch.count(backend), more.count(backend)
    assert (after.hard, after.semi_hard) == (before.hard, before.semi_hard)
    assert after.easy - before.easy == after.total - before.total


@shared_backend
@given(batch=batches(), copies=st.data())
def test_copies_at_the_end_win_no_tie(backend: Running, batch: Batch, copies: st.DataObject) -> None:
    n = len(batch.x)
    chosen = copies.draw(st.lists(st.integers(0, n - 1), max_size=8))
    order = [*range(n), *chosen]
    for strategy in (*EXTREMES, "hard", "semi-hard-nearest"):
        plain = batch.mine(strategy, backend, reference=batch.x, reference_labels=batch.labels)
        longer = batch.mine(strategy, backend, reference=batch.x[order], reference_labels=batch.labels[order])
        assert [row for row in rows_of(longer) if row[1] < n] == rows_of(plain), strategy
        assert all(n_ < n for _, _, n_ in rows_of(longer)), strategy


# ------------------------------------------------------------------ splitting


@shared_backend
@given(batch=batches(), cut=st.integers(0, 26), threads=st.integers(1, 9))
def test_splitting_the_anchors_changes_nothing(
    backend: Running, batch: Batch, cut: int, threads: int
) -> None:
    reference = {"reference": batch.x, "reference_labels": batch.labels}
    parts = [
        replace(batch, x=batch.x[part], labels=batch.labels[part])
        for part in (slice(0, cut), slice(cut, None))
    ]
    offset = len(parts[0].x)
    for strategy in BY_DISTANCE:
        whole = rows_of(batch.mine(strategy, backend, **reference))
        minerlib.set_num_threads(threads)
        first, second = (rows_of(part.mine(strategy, backend, **reference)) for part in parts)
        assert first + [(a + offset, p, n) for a, p, n in second] == whole, strategy
    counts = [part.count(backend, **reference) for part in parts]
    assert tuple(map(sum, zip(*counts, strict=True))) == batch.count(backend, **reference)


@shared_backend
@given(batch=batches(), threads=st.integers(2, 16))
def test_threads_change_nothing(backend: Running, batch: Batch, threads: int) -> None:
    for strategy in STRATEGIES:
        minerlib.set_num_threads(1)
        alone = rows_of(batch.mine(strategy, backend))
        minerlib.set_num_threads(threads)
        assert rows_of(batch.mine(strategy, backend)) == alone, strategy


@shared_backend
@given(batch=batches(), k=st.integers(1, 26), cut=st.integers(0, 26))
def test_neighbours_are_a_prefix_of_more_neighbours(backend: Running, batch: Batch, k: int, cut: int) -> None:
    n, options = len(batch.x), {"metric": batch.metric, "backend": backend.name}
    everyone = minerlib.nearest(batch.x, batch.x, n, **options)
    few = minerlib.nearest(batch.x, batch.x, min(k, n), **options)
    assert np.array_equal(few.indices, everyone.indices[:, :k])
    assert np.array_equal(few.distances, everyone.distances[:, :k])
    late = minerlib.nearest(batch.x[cut:], batch.x, min(k, n), **options)
    assert np.array_equal(late.indices, few.indices[cut:])
    distances = minerlib.pairwise_distance(batch.x, **options)
    assert np.array_equal(np.take_along_axis(distances, everyone.indices, axis=1), everyone.distances)
    assert np.array_equal(np.sort(everyone.indices, axis=1), np.broadcast_to(np.arange(n), (n, n)))


@shared_backend
@given(batch=batches())
def test_distances_are_symmetric(backend: Running, batch: Batch) -> None:
    options = {"metric": batch.metric, "backend": backend.name}
    distances = minerlib.pairwise_distance(batch.x, **options)
    assert np.array_equal(distances, distances.T)
    assert np.array_equal(minerlib.pairwise_distance(batch.x, batch.x.copy(), **options), distances)
    assert np.array_equal(minerlib.pairwise_distance(batch.x[None], **options)[0], distances)
    if batch.metric != "cosine":
        assert (distances >= 0).all()
        assert (np.diagonal(distances) == 0).all()


# ------------------------------------------------------------------ strategies among themselves


@shared_backend
@given(batch=batches())
def test_combinations_are_the_ordered_pairs_with_a_before_p(backend: Running, batch: Batch) -> None:
    for strategy in (*PER_PAIR, "all"):
        ordered = rows_of(batch.mine(strategy, backend))
        halved = rows_of(batch.mine(strategy, backend, pairs="combinations"))
        assert halved == [row for row in ordered if row[0] < row[1]], strategy


@shared_backend
@given(batch=batches())
def test_every_triplet_obeys_its_definition(backend: Running, batch: Batch) -> None:
    batch = replace(batch, fallback="drop")
    d = minerlib.pairwise_distance(batch.x, metric=batch.metric, backend=backend.name)
    everything = set(rows_of(batch.mine("all", backend)))
    counts = batch.count(backend)
    assert counts.hard + counts.semi_hard == len(everything)
    different = batch.labels[:, None] != batch.labels[None, :]
    for strategy in STRATEGIES:
        triplets = rows_of(batch.mine(strategy, backend))
        assert triplets == sorted(set(triplets)), strategy
        for a, p, n in triplets:
            assert a != p
            assert not different[a, p]
            assert different[a, n]
            s = (d[a, p] - d[a, n]) + batch.margin
            assert ((a, p, n) in everything) == (s > 0)
            if strategy in ("hard", "random-hard", "all"):
                assert s > 0
            if strategy == "semi-hard":
                assert 0 < s < batch.margin
            if strategy == "semi-hard-nearest":
                assert d[a, n] > d[a, p]
    pairs = {(a, p) for a, p, _ in everything}
    for strategy in ("hard", "random-hard"):
        assert {(a, p) for a, p, _ in rows_of(batch.mine(strategy, backend))} == pairs, strategy


@shared_backend
@given(batch=batches())
def test_one_of_four_at_random(backend: Running, batch: Batch) -> None:
    """`assorted` takes each anchor from one of the extreme strategies, and another seed from another."""
    tables = [rows_of(batch.mine(strategy, backend)) for strategy in ("epen", "ephn", "hpen", "hphn")]
    cases = minerlib.random.cases(batch.seed, np.arange(len(batch.x)))
    assert rows_of(batch.mine("assorted", backend)) == [
        table[i] for i in range(len(tables[0])) for table in [tables[int(cases[tables[0][i][0]])]]
    ]


@pytest.mark.parametrize("strategy", RANDOM)
@shared_backend
@given(batch=batches(), other=st.integers(0, 2**64 - 1))
def test_seeds_choose_among_the_same_pairs(backend: Running, strategy: str, batch: Batch, other: int) -> None:
    one, two = (rows_of(batch.mine(strategy, backend, seed=seed)) for seed in (batch.seed, other))
    assert [row[:2] for row in one] == [row[:2] for row in two]
    assert rows_of(batch.mine(strategy, backend, seed=batch.seed)) == one
