"""What is measured, as data: the required table, every operation, and how time grows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from minerlib.benchmarks import codes, losses, machine, peers, works
from minerlib.benchmarks.contest import Limits, Spec
from minerlib.benchmarks.results import (
    AheadOfEveryPeer,
    Faster,
    MemoryBelow,
    Requirement,
    ShareOf,
    ShareOfGemm,
    TimeBelow,
)


@dataclass(frozen=True)
class Row:
    """A contest and what it must show."""

    spec: Spec
    required: tuple[Requirement, ...] = ()
    limits: Limits = field(default_factory=Limits)
    memory: bool = True  # measured for all who do the whole work, in processes of their own
    instruction_set: str | None = None  # None: the best there is


def name(row: Row) -> str:
    """The row's title as pytest's -k can ask for it: `batch-hard-N8192`."""
    words = row.spec.title.split()
    return "-".join("".join(letter for letter in word if letter.isalnum() or letter == "-") for word in words)


# ------------------------------------------------------------------ the required table

_JTANET = {"rows": 256, "dims": 512, "classes": 4, "margin": 0.5}
_N2048 = {"rows": 2048, "dims": 128, "classes": 256}
_N8192 = {"rows": 8192, "dims": 128, "classes": 1024}
_N50K = {"rows": 50_000, "dims": 128, "classes": 6250}


def _jtanet(strategy: str) -> Row:
    spec = Spec(f"JTANet batch, {strategy}", "per_pair", {"strategy": strategy, **_JTANET})
    return Row(spec, (Faster(peers.LOOP, 300),), memory=False)


def _window(strategy: str) -> Row:
    spec = Spec(f"{strategy}, N=2048", "window", {"strategy": strategy, **_N2048})
    return Row(spec, (Faster(peers.PML, 200), Faster(works.OWN_BATCH_HARD, 1 / 3)))


def _nearest(k: int, times: float) -> Row:
    options = {"queries": 10_000, "database": 50_000, "dims": 128, "k": k}
    return Row(Spec(f"nearest {k}, 10K in 50K", "nearest", options), (Faster(peers.FAISS, times),))


_MILLION = 1_000_000
_SLOW_PEERS = Limits(rounds=9, least_rounds=2, call_seconds=30)  # faiss takes seconds


def _codes(
    bits: int, k: int, *required: Requirement, queries: int = 200, limits: Limits = _SLOW_PEERS
) -> Row:
    title = f"codes, {bits} bits, {k} of 1M, {queries} {'query' if queries == 1 else 'queries'}"
    options = {"queries": queries, "database": _MILLION, "bits": bits, "k": k}
    return Row(Spec(title, "code_search", options), required, limits, memory=False)


def _range(bits: int, radius: int) -> Row:
    options = {"queries": 200, "database": _MILLION, "bits": bits, "radius": radius}
    spec = Spec(f"codes, {bits} bits, within {radius} of 1M, 200 queries", "code_range", options)
    return Row(spec, (Faster(codes.FAISS, 4),), _SLOW_PEERS, memory=False)


CODES = (
    _codes(64, 10, Faster(codes.FAISS, 5)),
    *(_codes(bits, 10, Faster(codes.FAISS, 6)) for bits in (128, 256, 512)),
    _codes(64, 1000, Faster(codes.FAISS, 8)),
    _codes(64, 10, Faster(codes.FAISS, 5), queries=10_000,
           limits=Limits(rounds=5, least_rounds=2, call_seconds=60, wall_seconds=90)),
    _codes(64, 100_000, AheadOfEveryPeer(), queries=8),
    _range(64, 16),
    _range(256, 96),
    *(_codes(bits, 10, ShareOf(codes.SUM, 80), queries=1, limits=Limits()) for bits in (64, 512)),
    Row(
        Spec(
            "mAP, 10K queries, 50K codes, 48 bits",
            "code_map",
            {"queries": 10_000, "database": 50_000, "bits": 48, "classes": 10, "scripted": 400},
        ),
        (TimeBelow(0.5), MemoryBelow(50), Faster(codes.SCRIPT, 50)),
        _SLOW_PEERS,
    ),
)  # fmt: skip

# Who lists triplets takes seconds.
_LISTING = Limits(rounds=9, least_rounds=2, call_seconds=60, wall_seconds=60)

LOSSES = (
    Row(
        Spec("batch-all loss and gradient, N=2048", "batch_all_loss", _N2048),
        (Faster(losses.PML_LOSS, 30), MemoryBelow(64)),
        _LISTING,
    ),
    Row(
        Spec("batch-all loss and gradient, N=8192", "batch_all_loss", _N8192),
        (MemoryBelow(64),),
        Limits(least_rounds=2),
    ),
    Row(
        Spec(
            "triplet loss and gradient, JTANet batch",
            "triplet_loss",
            {"strategy": "semi-hard", **_JTANET},
        ),
        (Faster(losses.INDEXING, 5),),
        memory=False,
    ),
)


def _drop_in(miner: str, **options: object) -> Row:
    title = " ".join([miner, *(f"{value}" for value in options.values())])
    spec = Spec(f"{title}, N=2048", "compat_miner", {"miner": miner, "options": options, **_N2048})
    return Row(spec, (Faster(peers.PML, 10),), _LISTING, memory=False)


#: Those of pytorch-metric-learning, called as its users call them.
DROP_IN = (
    _drop_in("BatchHardMiner"),
    _drop_in("BatchEasyHardMiner", pos_strategy="easy", neg_strategy="semihard"),
    _drop_in("BatchEasyHardMiner", pos_strategy="semihard", neg_strategy="hard"),
    _drop_in("BatchEasyHardMiner", pos_strategy="easy", neg_strategy="easy"),
    _drop_in("BatchEasyHardMiner", pos_strategy="hard", neg_strategy="all"),
    *(_drop_in("TripletMarginMiner", type_of_triplets=kind) for kind in ("all", "hard", "semihard", "easy")),
    _drop_in("PairMarginMiner"),
    _drop_in("MultiSimilarityMiner"),
    _drop_in("DistanceWeightedMiner"),
)

REQUIRED = (
    *(_jtanet(strategy) for strategy in ("hard", "random-hard", "semi-hard")),
    Row(
        Spec("batch-hard, N=2048", "batch_hard", _N2048),
        (Faster(peers.PML, 50), Faster(peers.PRODUCT, 1)),
    ),
    Row(
        Spec("batch-hard, N=8192", "batch_hard", _N8192),
        (Faster(peers.PML, 120), Faster(peers.PRODUCT, 5), MemoryBelow(16)),
    ),
    _window("semi-hard"),
    _window("random-hard"),
    Row(
        Spec("distance-weighted, N=2048", "distance_weighted", _N2048),
        (Faster(peers.PML, 100),),
    ),
    _nearest(1, 8),
    _nearest(10, 6),
    _nearest(100, 4),
    Row(
        Spec("four extremes, 50K x 50K", "four_extremes", _N50K),
        (Faster(peers.FAISS, 4),),
        Limits(least_rounds=2),  # faiss takes seconds
    ),
    Row(
        Spec("duplicates, N=4096", "duplicates", {"rows": 4096, "dims": 128, "classes": 512}),
        (Faster(works.OWN_DISTINCT, 1 / 25), MemoryBelow(1, beyond=works.OWN_DISTINCT)),
    ),
    *CODES,
    *LOSSES,
    *DROP_IN,
)

#: Where the multiplications decide, the kernels without AMX must reach this share of the float32 product.
_SHARE = ShareOfGemm(70)
_BOUND_BY_PRODUCTS = ("batch_hard", "nearest", "four_extremes")


def required_rows() -> list[Row]:
    """The table, with the rows for AMX switched off.

    Where the processor has AMX they are measured again on the best other instruction set; where it has none,
    every row runs without it anyway and is held to both.
    """
    plain = machine.without_amx()
    if plain is None or plain == machine.instruction_set():
        return [replace(row, required=(*row.required, *_without_amx(row))) for row in REQUIRED]
    again = [
        replace(
            row,
            spec=replace(row.spec, title=f"{row.spec.title}, no AMX"),
            required=_without_amx(row),
            instruction_set=plain,
            memory=False,
        )
        for row in REQUIRED
        if _without_amx(row)
    ]
    return [*REQUIRED, *again]


def _without_amx(row: Row) -> tuple[Requirement, ...]:
    if row.spec.kind == "duplicates" or row in (*CODES, *LOSSES, *DROP_IN):  # bounds of their own
        return ()
    ahead = (AheadOfEveryPeer(),) if row.spec.kind != "four_extremes" else ()
    return (*ahead, _SHARE) if row.spec.kind in _BOUND_BY_PRODUCTS else ahead


# ------------------------------------------------------------------ every operation

_DEEPHASH = {"rows": 250, "dims": 128, "classes": 10, "margin": 0.5}
_SHORT = Limits(seconds=1.5, rounds=9, call_seconds=4)


def operations() -> list[Row]:
    """What the table leaves out."""
    specs = [
        *(
            Spec(f"DeepHash batch, {strategy}", "per_pair", {"strategy": strategy, **_DEEPHASH})
            for strategy in ("hard", "random-hard", "semi-hard")
        ),
        Spec("easy-positive, N=2048", "batch_hard", {**_N2048, "strategy": "easy-positive"}),
        Spec("hard, N=2048", "window", {"strategy": "hard", **_N2048}),
        Spec("semi-hard-nearest, N=2048", "window", {"strategy": "semi-hard-nearest", **_N2048}),
        Spec("all triplets, N=1024", "every", {"rows": 1024, "dims": 128, "classes": 128}),
        Spec("count of triplets, N=2048", "count", _N2048),
        Spec("distances, N=2048", "pairwise", {"rows": 2048, "dims": 128}),
        Spec("distances, N=4096", "pairwise", {"rows": 4096, "dims": 128}),
    ]
    return [Row(spec, limits=_SHORT, memory=False) for spec in specs]


# ------------------------------------------------------------------ growth

_GROWTH = Limits(seconds=0.7, rounds=7, call_seconds=3)


def growth_with_rows() -> list[Row]:
    """Batch-hard, 8 rows a class: the plot of time against N."""
    sizes = [256 << step for step in range(9)]
    return [
        _grown(f"batch-hard, N={n}", "batch_hard", {"rows": n, "dims": 128, "classes": n // 8}) for n in sizes
    ]


def growth_with_dims() -> list[Row]:
    """Batch-hard at N = 2048."""
    dims = (16, 64, 256, 512, 1024)
    return [_grown(f"batch-hard, N=2048, D={d}", "batch_hard", {**_N2048, "dims": d}) for d in dims]


def growth_with_classes() -> list[Row]:
    """Semi-hard at N = 2048: an anchor with m positives asks m questions of its row."""
    members = (2, 8, 32, 128)
    return [
        _grown(
            f"semi-hard, N=2048, {m} a class",
            "window",
            {"strategy": "semi-hard", **_N2048, "classes": 2048 // m},
        )
        for m in members
    ]


def _grown(title: str, kind: str, options: dict[str, object]) -> Row:
    return Row(Spec(title, kind, options), limits=_GROWTH, memory=False)
