"""pytorch-metric-learning's miners and ours: the same sets, by the original and by canonical distances."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from pytorch_metric_learning import distances
from pytorch_metric_learning import miners as originals

import minerlib
from minerlib import scan
from minerlib.backends import native
from minerlib.compat.pytorch_metric_learning import miners

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


KERNELS = (*native.instruction_sets(), "numba")


@contextlib.contextmanager
def using(kernels: str) -> Iterator[None]:
    """The miners on one instruction set of the native kernels, or on numba's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(miners, "_native", lambda: kernels != "numba")
        with contextlib.nullcontext() if kernels == "numba" else native.use_instruction_set(kernels):
            yield


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
def test_the_same_sets_on_200_random_batches(case, pytestconfig):
    """In float64 the original's rounding is far from every edge of these batches.

    Each case takes a fifth of them, most of which others leave out; with --thorough it takes all.
    """
    step = 1 if pytestconfig.getoption("thorough") else 5
    kinds = list(DISTANCES)
    pairs = {kind: (build(originals, case, kind), build(miners, case, kind)) for kind in kinds}
    found = 0
    for seed in range(list(CASES).index(case) % step, 200, step):
        theirs, ours = pairs[kinds[seed % len(kinds)]]
        x, y = batch(seed)
        if seed % 3 == 2:  # a reference of another size, which lacks a class and has one of its own
            z, w = batch(seed + 1000, rows=1 + seed % 40)
            z = torch.randn(len(z), x.shape[1], dtype=z.dtype, generator=torch.Generator().manual_seed(seed))
            arguments = (x, y, z, w)
        else:
            arguments = (x, y)
        expected = theirs(*arguments)
        sets = pair_sets(expected)
        for kernels in KERNELS:
            with using(kernels):
                got = served(ours, *arguments)
            assert len(got) == len(expected)
            assert pair_sets(got) == sets, (seed, kernels)
            assert all(index.dtype == torch.long and index.ndim == 1 for index in got)
        found += sum(map(len, got))
    assert found > 200 / step  # the batches are not idle


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


def adversarial(kind: str, dtype, rows: int = 70):
    draw = np.random.default_rng(sum(map(ord, kind)))
    x = draw.normal(size=(rows, 9))
    y = draw.integers(0, max(6, rows // 8), rows)
    if kind == "duplicates":
        x = x[draw.integers(0, 5, rows)]
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
        expected = by_definition(case, miner, d, y.numpy())
        for kernels in KERNELS:
            with using(kernels):
                assert pair_sets(served(miner, x, y)) == expected, (case, kernels)


@pytest.mark.skipif(len(KERNELS) < 2, reason="the native extension is not built")
@pytest.mark.parametrize("kind", ["plain", "duplicates", "off centre", "grid", "zeros"])
@pytest.mark.parametrize("distance", ["squared", "euclidean", "cosine"])
def test_large_batches_are_one_answer_on_all_kernels(kind, distance):
    """Beyond 1024 rows pairs are looked at once for both of their rows, or in blocks of anchors."""
    x, y = adversarial(kind, torch.float32, 1031)
    metric = {"squared": "sqeuclidean"}.get(distance, distance)
    d = minerlib.pairwise_distance(x[:200], x, metric=metric).numpy()
    edge = float(np.median(d))  # a distance of the batch: an exact edge
    theirs = 1 - edge if distance == "cosine" else edge
    for name, options in (
        ("PairMarginMiner", {"pos_margin": theirs, "neg_margin": theirs}),
        ("MultiSimilarityMiner", {"epsilon": edge / 20}),
        ("BatchEasyHardMiner", {"pos_strategy": "easy", "neg_strategy": "semihard"}),
        ("BatchEasyHardMiner", {"pos_strategy": "semihard", "neg_strategy": "easy"}),
        ("BatchEasyHardMiner", {"pos_strategy": "all", "neg_strategy": "all"}),
        ("BatchEasyHardMiner", {"pos_strategy": "hard", "neg_strategy": "all"}),
        ("TripletMarginMiner", {"margin": -edge / 2, "type_of_triplets": "hard"}),
    ):
        miner = getattr(miners, name)(**options, distance=DISTANCES[distance]())
        answers = []
        for kernels in KERNELS:
            with using(kernels):
                answers.append(served(miner, x, y))
        for kernels, other in zip(KERNELS[:-1], answers[:-1], strict=True):
            for one, two in zip(answers[-1], other, strict=True):
                assert one.equal(two), (name, kernels)
        assert len(answers[0][0]) > 0


@pytest.mark.parametrize("distance", ["squared", "euclidean", "cosine"])
def test_pairs_under_edges_that_few_reach(distance):
    """Beside edges that are distances of the batch, which coarse tiles leave; and where many are near."""
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(1100, 40, generator=generator) + 5
    y = torch.randint(130, (1100,), generator=generator)
    metric = {"squared": "sqeuclidean"}.get(distance, distance)
    for crowd in (0, 60):
        x[500 : 500 + crowd] = x[500] + 0.01 * torch.randn(crowd, 40, generator=generator)
        d = minerlib.pairwise_distance(x, metric=metric).numpy()
        far, near = (float(np.quantile(d, q, method="lower")) for q in (0.01, 0.004))
        far, near = (1 - far, 1 - near) if distance == "cosine" else (far, near)
        miner = miners.PairMarginMiner(far, near, distance=DISTANCES[distance]())
        answers = []
        for kernels in KERNELS:
            with using(kernels):
                answers.append(pair_sets(served(miner, x, y)))
        if distance != "cosine":  # which the miner takes of rows that it has made units
            answers.append(by_definition("pairs", miner, d, y.numpy()))
        assert min(map(len, answers[-1])) > 1000
        for answer in answers[:-1]:
            assert answer == answers[-1], crowd


@pytest.mark.parametrize("kind", ["plain", "duplicates", "off centre", "huge"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_choices_are_those_of_mine(kind, kernels):
    x, y = adversarial(kind, torch.float32)
    distance = distances.LpDistance(**EUCLIDEAN)
    with using(kernels):
        check_choices_are_those_of_mine(x, y, distance)


def check_choices_are_those_of_mine(x, y, distance):
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
    monkeypatch.setattr(scan.Scan._chunks, "__defaults__", (200,))
    minerlib.set_num_threads(3)
    for kernels in KERNELS:
        for case in cases:
            with using(kernels):
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
