"""pytorch-metric-learning's miners and ours: the same sets, by the original and by canonical distances."""

from __future__ import annotations

import copy
import pickle
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_metric_learning import distances, losses
from pytorch_metric_learning import miners as originals

import minerlib
from minerlib import scan
from minerlib.compat import pytorch_metric_learning as compat
from minerlib.compat.pytorch_metric_learning import _batch, miners

EUCLIDEAN = {"normalize_embeddings": False}
DISTANCES = {
    "normalised euclidean": lambda: distances.LpDistance(),
    "euclidean": lambda: distances.LpDistance(**EUCLIDEAN),
    "squared": lambda: distances.LpDistance(power=2, **EUCLIDEAN),
    "cosine": lambda: distances.CosineSimilarity(),
}
STRATEGIES = [
    (p, n)
    for p in ("hard", "semihard", "easy", "all")
    for n in ("hard", "semihard", "easy", "all")
    if (p, n) not in (("semihard", "semihard"), ("all", "semihard"), ("semihard", "all"))
]
CASES = {
    "batch hard": ("BatchHardMiner", {}),
    **{
        f"{p} {n}": ("BatchEasyHardMiner", {"pos_strategy": p, "neg_strategy": n}) for p, n in STRATEGIES
    },
    "ranges": ("BatchEasyHardMiner", {"allowed_pos_range": [0.2, 1.1], "allowed_neg_range": [0.5, 1.3]}),
    "hard ranges": (
        "BatchEasyHardMiner",
        {"pos_strategy": "hard", "neg_strategy": "hard",
         "allowed_pos_range": (0, 1), "allowed_neg_range": (1, 2)},
    ),
    "all, ranged": (
        "BatchEasyHardMiner",
        {"pos_strategy": "all", "neg_strategy": "easy", "allowed_neg_range": [0.1, 1.2]},
    ),
    **{
        f"triplets {kind} {margin}": ("TripletMarginMiner", {"type_of_triplets": kind, "margin": margin})
        for kind in ("all", "hard", "semihard", "easy")
        for margin in (0.2, 0.0, -0.1)
        if margin > 0 or kind != "semihard"
    },
    "pairs": ("PairMarginMiner", {}),
    "pairs, many": ("PairMarginMiner", {"pos_margin": 0.9, "neg_margin": 1.4}),
    "similarity": ("MultiSimilarityMiner", {}),
    "similarity 0": ("MultiSimilarityMiner", {"epsilon": 0.0}),
}  # fmt: skip


def build(module, case: str, distance: str, **more):
    name, options = CASES[case]
    return getattr(module, name)(**options, **more, distance=DISTANCES[distance]())


def pair_sets(output) -> list[set]:
    """The output as sets, whatever its order: of triplets, or of positive and of negative pairs."""
    lists = [index.tolist() for index in output]
    groups = [lists] if len(lists) == 3 else [lists[:2], lists[2:]]
    sets = [set(zip(*group, strict=True)) for group in groups]
    assert [len(group[0]) for group in groups] == [len(found) for found in sets], "no entry comes twice"
    return sets


def batch(seed: int, dtype=torch.float64, rows: int | None = None):
    draw = np.random.default_rng(seed)
    rows = int(draw.integers(2, 60)) if rows is None else rows
    classes = int(draw.integers(1, max(2, rows // 2)))
    x = torch.from_numpy(draw.normal(size=(rows, int(draw.integers(2, 20)))) * draw.uniform(0.3, 2))
    return x.to(dtype), torch.from_numpy(draw.integers(0, classes, rows))


def served(miner, *arguments):
    output = miner(*arguments)
    assert miner.fallback_reason == ""
    return output


# ------------------------------------------------------------------ the originals' answers


@pytest.mark.parametrize("case", CASES)
def test_the_same_sets_on_200_random_batches(case):
    """In float64 the original's rounding is far from every edge of these batches."""
    kinds = list(DISTANCES)
    pairs = {kind: (build(originals, case, kind), build(miners, case, kind)) for kind in kinds}
    found = 0
    for seed in range(200):
        theirs, ours = pairs[kinds[seed % len(kinds)]]
        x, y = batch(seed)
        if seed % 3 == 2:  # a reference of another size, which lacks a class and has one of its own
            z, w = batch(seed + 1000, rows=1 + seed % 40)
            z = torch.randn(len(z), x.shape[1], dtype=z.dtype, generator=torch.Generator().manual_seed(seed))
            expected, got = theirs(x, y, z, w), served(ours, x, y, z, w)
        else:
            expected, got = theirs(x, y), served(ours, x, y)
        assert len(got) == len(expected)
        assert pair_sets(got) == pair_sets(expected), seed
        assert all(index.dtype == torch.long and index.ndim == 1 for index in got)
        found += sum(map(len, got))
    assert found > 200  # the batches are not idle


@pytest.mark.parametrize(
    "case",
    [
        "batch hard", "easy semihard", "ranges", "triplets all 0.2", "triplets hard 0.2",
        "triplets semihard 0.2", "pairs, many", "similarity",
    ],
)  # fmt: skip
@pytest.mark.parametrize("distance", DISTANCES)
def test_float32_differs_only_within_rounding(case, distance):
    """Each entry that only one of the two has lies within float32 rounding of the edge that decides it."""
    theirs, ours = build(originals, case, distance), build(miners, case, distance)
    entries = differing = 0
    for seed in range(12):
        x, y = batch(seed, torch.float32, rows=64)
        expected, got = pair_sets(theirs(x, y)), pair_sets(served(ours, x, y))
        entries += sum(map(len, expected))
        d = DISTANCES[distance]()(x.double()).numpy()
        if theirs.distance.is_inverted:
            d = 1 - d
        reach = 2e-5 * max(1.0, float(d.max()))
        for one, other in zip(got, expected, strict=True):
            for entry in one ^ other:
                differing += 1
                assert edge_distance(case, theirs, d, y.numpy(), entry) < reach, (seed, entry)
    assert entries > 0
    assert differing <= max(2, entries // 1000)


def edge_distance(case: str, miner, d: np.ndarray, y: np.ndarray, entry) -> float:
    """How far an entry is from the nearest edge that could decide it."""
    a, *rest = entry
    same = y == y[a]
    same[a] = False
    if "triplets" in case:
        p, n = rest
        return min(abs(d[a, n] - d[a, p] - edge) for edge in (miner.margin, 0.0))
    j = rest[0]
    if case == "similarity":
        near, far = d[a, y != y[a]].min(initial=np.inf), d[a, same].max(initial=-np.inf)
        return min(abs(d[a, j] + miner.epsilon - near), abs(d[a, j] - miner.epsilon - far))
    if case == "pairs, many":
        edges = [miner.pos_margin, miner.neg_margin]
        return min(abs(d[a, j] - (1 - e if miner.distance.is_inverted else e)) for e in edges)
    # a choice among neighbours: another row of the anchor is as near, or an allowed range ends here
    ranges = [*(miner.allowed_pos_range or ()), *(miner.allowed_neg_range or ())]
    edges = [1 - e if miner.distance.is_inverted else e for e in ranges]
    gaps = np.abs(np.subtract.outer(d[a], np.concatenate([d[a], edges])))
    np.fill_diagonal(gaps, np.inf)
    return float(gaps.min())


def test_exact_edges_and_ties_are_the_originals():
    """Whole numbers: values sit on the margins exactly, and both libraries compute them without rounding."""
    draw = np.random.default_rng(5)
    for seed in range(30):
        x = torch.from_numpy(draw.integers(0, 6, (24, 1))).double()
        y = torch.from_numpy(draw.integers(0, 4, 24))
        kinds = ("all", "hard", "semihard", "easy")
        options_of = [
            *(("TripletMarginMiner", {"margin": m, "type_of_triplets": k}) for m in (0, 1, 2) for k in kinds),
            ("PairMarginMiner", {"pos_margin": 1, "neg_margin": 3}),
            ("MultiSimilarityMiner", {"epsilon": 1}),
        ]
        for name, options in options_of:
            distance = distances.LpDistance(**EUCLIDEAN)
            theirs = getattr(originals, name)(**options, distance=distance)
            ours = getattr(miners, name)(**options, distance=distance)
            assert pair_sets(served(ours, x, y)) == pair_sets(theirs(x, y)), (seed, name, options)


# ------------------------------------------------------------------ canonical distances decide


def adversarial(kind: str, dtype):
    draw = np.random.default_rng(sum(map(ord, kind)))
    x = draw.normal(size=(70, 9))
    y = draw.integers(0, 6, 70)
    if kind == "duplicates":
        x = x[draw.integers(0, 5, 70)]
    elif kind == "off centre":
        x = x * 0.3 + 3000
    elif kind == "grid":
        x = np.round(x)
    elif kind == "huge":
        x = x * 1e25  # products leave float32
    elif kind == "tiny":
        x = x * 1e-22
    elif kind == "zeros":
        x[::4] = 0
    return torch.from_numpy(x).to(dtype), torch.from_numpy(y)


def by_definition(case: str, miner, d: np.ndarray, y: np.ndarray) -> list[set]:
    """Triplets and pairs straight from a matrix of canonical distances."""
    same = y[:, None] == y[None, :]
    positive, negative = same & ~np.eye(len(y), dtype=bool), ~same
    if "triplets" in case:
        margin = miner.margin
        found = set()
        for a, p in np.argwhere(positive):
            v = d[a] - d[a, p]
            keep = {"all": v <= margin, "hard": (v <= margin) & (v <= 0), "easy": v > margin,
                    "semihard": (v <= margin) & (v > 0)}[miner.type_of_triplets]  # fmt: skip
            found |= {(int(a), int(p), int(n)) for n in np.flatnonzero(keep & negative[a])}
        return [found]
    if "similarity" in case:
        near = np.where(negative, d, np.inf).min(1, keepdims=True)
        far = np.where(positive, d, -np.inf).max(1, keepdims=True)
        keep_p, keep_n = positive & (d + miner.epsilon > near), negative & (d - miner.epsilon < far)
    else:
        keep_p, keep_n = positive & (d > miner.pos_margin), negative & (d < miner.neg_margin)
    return [{(int(a), int(j)) for a, j in np.argwhere(keep)} for keep in (keep_p, keep_n)]


@pytest.mark.parametrize("kind", ["plain", "duplicates", "off centre", "grid", "huge", "tiny", "zeros"])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_a_product_leaves_open_is_decided_by_canonical_distances(kind, power, dtype):
    x, y = adversarial(kind, dtype)
    metric = "euclidean" if power == 1 else "sqeuclidean"
    d = minerlib.pairwise_distance(x, metric=metric).numpy()
    middle = float(np.median(d))
    cases = {
        "triplets all": miners.TripletMarginMiner(middle / 3, "all"),
        "triplets hard": miners.TripletMarginMiner(middle / 3, "hard"),
        "triplets semihard": miners.TripletMarginMiner(middle / 3, "semihard"),
        "triplets easy": miners.TripletMarginMiner(middle / 3, "easy"),
        "pairs": miners.PairMarginMiner(
            middle, middle
        ),  # the median is a distance of the batch: an exact edge
        "similarity": miners.MultiSimilarityMiner(middle / 10),
    }
    for case, miner in cases.items():
        miner.distance = distances.LpDistance(power=power, **EUCLIDEAN)
        assert pair_sets(served(miner, x, y)) == by_definition(case, miner, d, y.numpy()), case


@pytest.mark.parametrize("kind", ["plain", "duplicates", "off centre", "huge"])
def test_choices_are_those_of_mine(kind):
    x, y = adversarial(kind, torch.float32)
    distance = distances.LpDistance(**EUCLIDEAN)
    wide = [0, float("inf")]  # a range that changes nothing takes the path of ranges
    for p, n, strategy in (("hard", "hard", "hphn"), ("easy", "hard", "ephn"), ("hard", "easy", "hpen"),
                           ("easy", "easy", "epen")):  # fmt: skip
        expected = minerlib.mine(x, y, strategy, metric="euclidean")
        for options in ({}, {"allowed_pos_range": wide, "allowed_neg_range": wide}):
            miner = miners.BatchEasyHardMiner(p, n, distance=distance, **options)
            a1, positives, a2, negatives = served(miner, x, y)
            assert a1.equal(expected.anchors)
            assert a2.equal(expected.anchors)
            assert positives.equal(expected.positives), (p, n, options)
            assert negatives.equal(expected.negatives), (p, n, options)
    # the semihard negative of a pair is what FaceNet's rule takes for it
    pairs = minerlib.mine(x, y, "semi-hard-nearest", metric="euclidean")
    nearest = {(a, p): n for a, p, n in zip(*(index.tolist() for index in pairs), strict=True)}
    a, p, _, n = served(miners.BatchEasyHardMiner("easy", "semihard", distance=distance), x, y)
    chosen = list(zip(a.tolist(), p.tolist(), n.tolist(), strict=True))
    assert [nearest[a, p] for a, p, _ in chosen] == [n for _, _, n in chosen]


def test_answers_depend_neither_on_chunks_nor_on_threads(monkeypatch):
    x, y = adversarial("off centre", torch.float32)
    cases = ["easy semihard", "triplets semihard 0.2", "pairs, many", "similarity", "hard ranges"]
    expected = {case: served(build(miners, case, "euclidean"), x, y) for case in cases}
    monkeypatch.setattr(scan, "_LISTED", 200)
    monkeypatch.setattr(scan.Scan._chunks, "__defaults__", (200, None))
    minerlib.set_num_threads(3)
    for case in cases:
        again = served(build(miners, case, "euclidean"), x, y)
        assert all(one.equal(other) for one, other in zip(expected[case], again, strict=True)), case


def test_torch_precision_settings_change_nothing():
    x, y = batch(3, torch.float32, rows=60)
    before = torch.get_float32_matmul_precision()
    expected = served(build(miners, "triplets semihard 0.2", "cosine"), x, y)
    try:
        torch.set_float32_matmul_precision("medium")
        again = served(build(miners, "triplets semihard 0.2", "cosine"), x, y)
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(one.equal(other) for one, other in zip(expected, again, strict=True))


# ------------------------------------------------------------------ contract


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


# ------------------------------------------------------------------ random choices
