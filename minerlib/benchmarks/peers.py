"""The tools people use today, each as a contender with its check against our result."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from minerlib.benchmarks import agreement, per_pair_loop
from minerlib.benchmarks.contest import Contender
from minerlib.benchmarks.data import Batch

PML = "pytorch-metric-learning"
FAISS = "faiss-cpu FlatL2"
SKLEARN = "scikit-learn"
MASKED = "masked torch.cdist"
CDIST = "torch.cdist alone"
PRODUCT = "x @ x.T alone"
LOOP = "per-pair loop"
BROADCAST = "torch, an anchor at a time"

_MODULES = {PML: "pytorch_metric_learning", "faiss-cpu": "faiss", SKLEARN: "sklearn"}


@functools.cache
def missing(name: str) -> str:
    """Why a peer cannot take part, or an empty string."""
    module = next(module for tool, module in _MODULES.items() if name.startswith(tool))
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a broken installation raises
        return f"not installed ({error})"
    return ""


def _pml() -> tuple[Any, Any]:
    """Its modules of distances and of miners."""
    package = _MODULES[PML]
    return importlib.import_module(f"{package}.distances"), importlib.import_module(f"{package}.miners")


# ------------------------------------------------------------------ parts of the work


def cdist_alone(b: Batch) -> Contender:
    """The distances, nothing chosen."""

    def check(ours: Any, theirs: Any) -> None:
        rows = agreement.sampled(len(b.rows))
        squares = np.square(theirs[rows].double().numpy())
        agreement.same_matrix(agreement.canonical(b.rows[rows], b.rows), squares, 1e-4)

    def run() -> torch.Tensor:
        return torch.cdist(b.x, b.x)

    return Contender(
        CDIST, run, check, role="part", bytes_needed=_matrix(b) * 2, seconds_needed=_pairs(b) * 2.5e-9
    )


def product_alone(b: Batch) -> Contender:
    """The products, which a fast product of matrices makes the least that can be had from one."""

    def check(ours: Any, theirs: Any) -> None:
        rows = agreement.sampled(len(b.rows))
        exact = b.rows[rows].astype(np.float64) @ b.rows.astype(np.float64).T
        agreement.same_matrix(exact, theirs[rows].numpy())

    def run() -> torch.Tensor:
        return b.x @ b.x.T

    return Contender(
        PRODUCT, run, check, role="part", bytes_needed=_matrix(b), seconds_needed=_pairs(b) * 2e-9
    )


def _matrix(b: Batch) -> float:
    return 4.0 * len(b.rows) ** 2


def _pairs(b: Batch) -> float:
    return float(len(b.rows)) ** 2


# ------------------------------------------------------------------ miners


def masked_cdist(b: Batch) -> Contender:
    """Batch-hard as it is usually written: distances, two masks, two reductions."""

    def run() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        distances = torch.cdist(b.x, b.x)
        same = b.labels[:, None] == b.labels[None, :]
        negatives = distances.masked_fill(same, float("inf")).argmin(dim=1)
        same.fill_diagonal_(False)
        positives = distances.masked_fill(~same, -float("inf")).argmax(dim=1)
        return torch.arange(len(b.x)), positives, negatives

    check = functools.partial(agreement.same_extremes, b.rows)
    return Contender(MASKED, run, check, bytes_needed=_matrix(b) * 4, seconds_needed=_pairs(b) * 4e-9)


def pml_extremes(b: Batch, easy_positive: bool = False) -> Contender:
    """pytorch-metric-learning's BatchHardMiner, or BatchEasyHardMiner with easy positives."""
    name = f"{PML} {'BatchEasyHardMiner' if easy_positive else 'BatchHardMiner'}"
    reason = missing(PML)
    if reason:
        return absent(name, reason)
    distances, miners = _pml()
    distance = distances.LpDistance(normalize_embeddings=False)
    if easy_positive:
        easy_hard = miners.BatchEasyHardMiner("easy", "hard", distance=distance)

        def run() -> Any:
            a, p, _, n = easy_hard(b.x, b.labels)
            return a, p, n
    else:
        hard = miners.BatchHardMiner(distance=distance)

        def run() -> Any:
            return hard(b.x, b.labels)

    check = functools.partial(agreement.same_extremes, b.rows)
    return Contender(name, run, check, bytes_needed=_matrix(b) * 12, seconds_needed=_pairs(b) * 27e-9)


def pml_listing(
    b: Batch,
    kind: str,
    margin: float,
    check: Callable[[Any, Any], None],
) -> Contender:
    """pytorch-metric-learning's TripletMarginMiner: a list of every triplet of a kind."""
    name = f"{PML} TripletMarginMiner({kind})"
    reason = missing(PML)
    if reason:
        return absent(name, reason)
    distances, miners = _pml()
    squares = distances.LpDistance(normalize_embeddings=False, power=2)
    miner = miners.TripletMarginMiner(margin=margin, type_of_triplets=kind, distance=squares)
    count, members = len(b.rows), np.bincount(b.classes)
    triplets = float(np.sum(members * (members - 1) * (count - members)))
    needed = max(0.5 * float(count) ** 3, 64 * triplets)
    return Contender(
        name, lambda: miner(b.x, b.labels), check, bytes_needed=needed, seconds_needed=needed * 4e-10
    )


def pml_distance_weighted(b: Batch) -> Contender:
    """pytorch-metric-learning's DistanceWeightedMiner: as many draws as an anchor's class has members."""
    name = f"{PML} DistanceWeightedMiner"
    reason = missing(PML)
    if reason:
        return absent(name, reason)
    miner = _pml()[1].DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4)

    def check(ours: Any, theirs: Any) -> None:
        agreement.judge_draws(b.rows, b.classes, theirs)

    return Contender(
        name,
        lambda: miner(b.x, b.labels),
        check,
        bytes_needed=_matrix(b) * 12,
        seconds_needed=_pairs(b) * 7e-7,
    )


def loop(b: Batch, strategy: str, margin: float) -> Contender:
    """The per-pair Python loop, pairs i < j."""
    select = per_pair_loop.SELECTORS[strategy]

    def check(ours: Any, theirs: Any) -> None:
        agreement.same_pairs(b.rows, b.classes, ours, theirs, strategy, margin, ordered=False)

    def run() -> list[torch.Tensor]:
        return list(per_pair_loop.mine(b.x, b.labels, select, margin).T)

    members = np.bincount(b.classes)
    return Contender(LOOP, run, check, seconds_needed=float(np.sum(members * (members - 1)) / 2) * 4e-5)


def broadcast_pairs(b: Batch, strategy: str, margin: float) -> Contender:
    """Window strategies in plain torch: for each anchor a [positives, negatives] table of scores."""

    def check(ours: Any, theirs: Any) -> None:
        agreement.same_pairs(b.rows, b.classes, ours, theirs, strategy, margin)

    def run() -> list[torch.Tensor]:
        distances = torch.cdist(b.x, b.x).square_()
        found = []
        for anchor, row in enumerate(distances):
            same = b.labels == b.labels[anchor]
            negatives = torch.nonzero(~same).flatten()
            same[anchor] = False
            positives = torch.nonzero(same).flatten()
            table = row[positives, None] - row[None, negatives] + margin
            if strategy == "semi-hard-nearest":
                best, place = table.masked_fill(table >= margin, -float("inf")).max(dim=1)
                kept = best > -float("inf")
            else:  # hard
                best, place = table.max(dim=1)
                kept = best > 0
            anchors = torch.full_like(positives, anchor)
            found.append(torch.stack((anchors, positives, negatives[place]))[:, kept])
        return list(torch.cat(found, dim=1))

    return Contender(
        BROADCAST,
        run,
        check,
        bytes_needed=_matrix(b) * 3,
        seconds_needed=len(b.rows) * 1e-4 + _pairs(b) * 4e-8,
    )


def broadcast_counts(b: Batch, margin: float) -> Contender:
    """The number of triplets of each kind in plain torch, an anchor at a time."""

    def check(ours: Any, theirs: Any) -> None:
        for mine, other, what in zip(ours, theirs, ("all", "hard", "semi-hard", "easy"), strict=True):
            agreement.same_count(mine, other, what)

    def run() -> tuple[int, int, int, int]:
        distances = torch.cdist(b.x, b.x).square_()
        total = hard = semi_hard = 0
        for anchor, row in enumerate(distances):
            same = b.labels == b.labels[anchor]
            others = row[~same]
            same[anchor] = False
            table = row[same][:, None] - others[None, :] + margin
            total += table.numel()
            hard += int((table >= margin).sum())
            semi_hard += int(((table > 0) & (table < margin)).sum())
        return total, hard, semi_hard, total - hard - semi_hard

    return Contender(
        BROADCAST,
        run,
        check,
        bytes_needed=_matrix(b) * 3,
        seconds_needed=len(b.rows) * 1e-4 + _pairs(b) * 4e-8,
    )


# ------------------------------------------------------------------ search


def faiss_flat(queries: np.ndarray, database: np.ndarray, k: int, role: str = "peer") -> Contender:
    """faiss's exact index; building it is not timed."""
    reason = missing(FAISS)
    if reason:
        return absent(FAISS, reason)
    index = importlib.import_module("faiss").IndexFlatL2(database.shape[1])
    index.add(database)

    def check(ours: Any, indices: Any) -> None:
        if role == "peer":
            agreement.same_neighbors(queries, database, ours, indices)
        else:  # a search of every row among all: it finds itself, or a row at its own place
            place = np.arange(len(queries))
            gap = agreement.squared(queries, place, indices[:, 0]).max()
            agreement.demand(gap < agreement.NEAR, f"a row's nearest row lies {gap} away from it")

    pairs = len(queries) * len(database)
    return Contender(
        FAISS, lambda: index.search(queries, k)[1], check, role=role, seconds_needed=pairs * 1.6e-9
    )


def sklearn_neighbors(queries: np.ndarray, database: np.ndarray, k: int) -> Contender:
    """scikit-learn's brute-force search, which works in float64 tiles."""
    reason = missing(SKLEARN)
    if reason:
        return absent(SKLEARN, reason)
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(database)
    check = functools.partial(agreement.same_neighbors, queries, database)
    seconds = len(queries) * len(database) * 3e-9
    return Contender(
        SKLEARN, lambda: search.kneighbors(queries, return_distance=False), check, seconds_needed=seconds
    )


# ------------------------------------------------------------------ matrices


def matrices(b: Batch) -> tuple[Contender, ...]:
    """The whole matrix of distances: torch in float64 and float32, and scikit-learn."""

    def near(tolerance: float) -> Callable[[Any, Any], None]:
        def check(ours: Any, theirs: Any) -> None:
            agreement.same_matrix(np.asarray(ours), np.asarray(theirs), tolerance)

        return check

    wide = b.x.double()
    needed, seconds = 3 * 8 * _pairs(b), 1e-8 * _pairs(b)
    exact = "donot_use_mm_for_euclid_dist"
    contenders = [
        Contender(
            "torch.cdist float64",
            lambda: torch.cdist(wide, wide, compute_mode=exact),
            near(1e-9),
            "peer",
            needed,
            seconds,
        ),
        Contender(
            f"{CDIST} float32",
            lambda: torch.cdist(b.x, b.x, compute_mode=exact),
            near(1e-4),
            "part",
            needed,
            seconds,
        ),
    ]
    reason = missing(SKLEARN)
    if reason:
        return (*contenders, absent(SKLEARN, reason))
    from sklearn.metrics.pairwise import euclidean_distances

    # Squares of the diagonal cancel to about 1e-16, whose root is 1e-8.
    check, columns = near(1e-6), wide.numpy()
    contenders.append(
        Contender(SKLEARN, lambda: euclidean_distances(columns), check, "peer", needed, seconds)
    )
    return tuple(contenders)


def absent(name: str, reason: str) -> Contender:
    """One who cannot take part."""

    def nothing() -> None:
        raise AssertionError("left out before it is run")

    return Contender(name, nothing, lambda ours, theirs: None, unavailable=reason)
