"""What these miners promise besides their sets: empty results, statistics, types, and who answers when."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from pytorch_metric_learning import distances, losses
from pytorch_metric_learning import miners as originals

from minerlib.compat import pytorch_metric_learning as compat
from minerlib.compat.pytorch_metric_learning import _batch, miners
from tests.test_compat_pml import CASES, DISTANCES, batch, build, pair_sets, served


@pytest.mark.parametrize("case", CASES)
def test_nothing_to_mine_gives_empty_indices(case):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    miner = build(miners, case, "normalised euclidean")
    everything = miner.__class__.__name__ == "BatchEasyHardMiner" and "all" in (
        miner.pos_strategy, miner.neg_strategy
    )  # fmt: skip
    one_class, distinct = torch.zeros(6, dtype=torch.long), torch.arange(6)
    for labels in (one_class, distinct):
        output = miner(x, labels)
        assert all(index.dtype == torch.long for index in output)
        if not everything and "pairs" not in case:
            assert all(len(index) == 0 for index in output), labels
    output = miner(x[:0], distinct[:0])
    assert len(output) == len(miner(x, distinct))
    assert all(len(index) == 0 for index in output)


@pytest.mark.parametrize(
    "case", ["batch hard", "easy semihard", "hard all", "triplets all 0.2", "pairs", "similarity"]
)
@pytest.mark.parametrize("distance", DISTANCES)
def test_statistics_are_the_originals(case, distance):
    x, y = batch(11, rows=40)
    theirs = build(originals, case, distance, collect_stats=True)
    ours = build(miners, case, distance, collect_stats=True)
    theirs.distance.collect_stats = ours.distance.collect_stats = True
    expected = theirs(x, y)
    got = ours(x, y)
    assert pair_sets(got) == pair_sets(expected)
    assert ours._record_these_stats == theirs._record_these_stats
    assert ours._record_these_stats
    for name in theirs._record_these_stats:
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-7), name


def test_norms_that_distances_record():
    x, y = batch(12, rows=30)
    theirs, ours = build(originals, "pairs", "cosine"), build(miners, "pairs", "cosine")
    names = ["initial_avg_query_norm", "initial_avg_ref_norm", "final_avg_query_norm", "final_avg_ref_norm"]
    for miner in (theirs, ours):
        miner.distance = distances.CosineSimilarity(collect_stats=True)
        miner(x, y, 2 * x, y.clone())
    for name in names:
        assert getattr(ours.distance, name) == pytest.approx(getattr(theirs.distance, name)), name


@pytest.mark.parametrize(
    ("distance", "reason"),
    [
        (distances.LpDistance(p=1), "p=1"),
        (distances.LpDistance(power=3), "power=3"),
        (distances.SNRDistance(), "SNRDistance"),
        (distances.DotProductSimilarity(normalize_embeddings=False), "DotProductSimilarity"),
    ],
)
def test_other_distances_are_answered_by_the_original(distance, reason):
    x, y = batch(4, rows=30)
    for case in ("batch hard", "triplets semihard 0.2", "pairs", "similarity", "easy semihard"):
        name, options = CASES[case]
        ours = getattr(miners, name)(**options, distance=distance)
        expected = getattr(originals, name)(**options, distance=distance)(x, y)
        got = ours(x, y)
        assert all(one.equal(other) for one, other in zip(got, expected, strict=True))
        assert reason in ours.fallback_reason
    ours.distance = distances.LpDistance()
    served(ours, x, y)  # the reason does not outlive the call


def test_a_distance_of_ones_own_is_never_taken_for_its_base():
    class Halved(distances.LpDistance):
        def compute_mat(self, query_emb, ref_emb):
            return super().compute_mat(query_emb, ref_emb) / 2

    x, y = batch(6, rows=30)
    ours = miners.PairMarginMiner(distance=Halved())
    expected = originals.PairMarginMiner(distance=Halved())(x, y)
    assert pair_sets(ours(x, y)) == pair_sets(expected)
    assert "Halved" in ours.fallback_reason


def test_rows_that_are_not_finite_do_not_stop_a_training_run():
    x, y = batch(7, torch.float32, rows=20)
    x[3, 0] = float("nan")
    ours, theirs = miners.BatchHardMiner(), originals.BatchHardMiner()
    assert all(one.equal(other) for one, other in zip(ours(x, y), theirs(x, y), strict=True))
    assert "finite" in ours.fallback_reason


def test_labels_shared_with_a_reference_of_other_rows():
    """The originals then leave out (i, i), though the rows differ."""
    x, y = batch(8, rows=30)
    z = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    for case in ("batch hard", "triplets all 0.2", "pairs", "similarity"):
        ours = build(miners, case, "cosine")
        assert pair_sets(ours(x, y, z, y)) == pair_sets(build(originals, case, "cosine")(x, y, z, y))
        assert "shared" in ours.fallback_reason


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_rows_are_compared_exactly(dtype):
    """As the original does in float64 on the same rows, once they are normalised in their own type."""
    x, y = batch(9, torch.float32, rows=50)
    x = x.to(dtype)
    for case in ("batch hard", "triplets semihard 0.2", "similarity"):
        ours = build(miners, case, "normalised euclidean")
        theirs = build(originals, case, "euclidean")
        rows = ours.distance.maybe_normalize(x).double()
        assert pair_sets(served(ours, x.requires_grad_(), y)) == pair_sets(theirs(rows, y)), case


def test_labels_of_every_kind():
    x, y = batch(10, rows=40)
    expected = pair_sets(miners.BatchHardMiner()(x, y))
    for labels in (y.int(), y.to(torch.uint8), y.float(), y.double() * 0.5, y * 2**40 - 2**50, -y):
        assert pair_sets(served(miners.BatchHardMiner(), x, labels)) == expected
    assert pair_sets(served(miners.BatchHardMiner(), x, y == 0)) == pair_sets(
        originals.BatchHardMiner()(x, y == 0)
    )


def test_bad_shapes_are_refused_as_before():
    with pytest.raises(ValueError, match="Number of embeddings"):
        miners.BatchHardMiner()(torch.randn(4, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="semihard"):
        miners.BatchEasyHardMiner("semihard", "semihard")
    with pytest.raises(AssertionError, match="LpDistance"):
        miners.DistanceWeightedMiner(distance=distances.CosineSimilarity())


@pytest.mark.parametrize("case", ["batch hard", "ranges", "triplets all 0.2", "pairs", "similarity"])
def test_modules_copy_and_pickle(case):
    x, y = batch(13, rows=30)
    ours = build(miners, case, "cosine")
    assert isinstance(ours, originals.BaseMiner)
    assert isinstance(ours, getattr(originals, CASES[case][0]))
    expected = ours(x, y)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert all(one.equal(other) for one, other in zip(twin(x, y), expected, strict=True))


def test_named_tuples_of_version_3(monkeypatch):
    """There a reference that is given is always a set of its own, and results have names."""
    fake = SimpleNamespace(
        TripletIndices=namedtuple("TripletIndices", "anchors positives negatives"),
        PairIndices=namedtuple("PairIndices", "pos_anchors positives neg_anchors negatives"),
    )
    monkeypatch.setattr(_batch, "_types", fake)
    x, y = batch(14, rows=30)
    triplets = miners.BatchHardMiner().mine(x, y, None, None)
    assert isinstance(triplets, fake.TripletIndices)
    pairs = miners.PairMarginMiner().mine(x, y, None, None)
    assert isinstance(pairs, fake.PairIndices)
    monkeypatch.undo()
    assert pair_sets(triplets) == pair_sets(originals.BatchHardMiner()(x, y))
    assert pair_sets(pairs) == pair_sets(originals.PairMarginMiner()(x, y))


def test_the_package_stands_in_for_the_original():
    assert compat.miners.AngularMiner is originals.AngularMiner
    assert compat.losses is losses
    assert compat.distances.LpDistance is distances.LpDistance
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = compat.nonsense
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = compat.miners.Nonsense
