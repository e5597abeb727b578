"""The kinds of work that are measured, each a function from options to a contest."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import minerlib
from minerlib.benchmarks import agreement, codes, data, drop_in, losses, peers
from minerlib.benchmarks.contest import Contender, Contest, Spec

MARGIN = 0.2

#: Contenders that are minerlib itself at other work.
OWN_BATCH_HARD = "our own batch-hard"
OWN_DISTINCT = "our own distinct rows"


def build(spec: Spec) -> Contest:
    """The contest of a spec, with its data."""
    return KINDS[spec.kind](**spec.options)


def tiny(spec: Spec) -> Spec:
    """The same kind of work at a size that takes no time."""
    most = {"rows": 96, "queries": 32, "database": 200, "dims": 24, "classes": 8, "k": 20, "scripted": 8}
    small = {name: min(value, most[name]) if name in most else value for name, value in spec.options.items()}
    return Spec(f"{spec.title} (tiny)", spec.kind, small)


def _all_pairs(b: data.Batch) -> int:
    return len(b.rows) * (len(b.rows) - 1)


def per_pair(strategy: str, rows: int, dims: int, classes: int, margin: float) -> Contest:
    """A paper's batch, pairs i < j, against the per-pair Python loop."""
    b = data.batch(rows, dims, classes)
    judge = functools.partial(
        agreement.judge_pairs, strategy, b.rows, b.classes, margin=margin, ordered=False
    )

    def ours() -> Any:
        return minerlib.mine(b.x, b.labels, strategy, margin=margin, pairs="combinations")

    return Contest(_all_pairs(b), dims, ours, judge, (peers.loop(b, strategy, margin),))


def batch_hard(rows: int, dims: int, classes: int, strategy: str = "batch-hard") -> Contest:
    """The farthest (easy-positive: the nearest) positive and the nearest negative of every anchor."""
    b = data.batch(rows, dims, classes)
    farthest = strategy == "batch-hard"
    judge = functools.partial(agreement.judge_extremes, b.rows, b.classes, farthest_positive=farthest)
    others = [peers.pml_extremes(b, easy_positive=not farthest)]
    others += [peers.masked_cdist(b)] if farthest else []
    others += [peers.cdist_alone(b), peers.product_alone(b)]
    return Contest(_all_pairs(b), dims, lambda: minerlib.mine(b.x, b.labels, strategy), judge, tuple(others))


def window(strategy: str, rows: int, dims: int, classes: int) -> Contest:
    """One negative for every ordered pair."""
    b = data.batch(rows, dims, classes)
    judge = functools.partial(agreement.judge_pairs, strategy, b.rows, b.classes, margin=MARGIN)
    others = [_own_batch_hard(b)]
    if strategy in ("semi-hard", "random-hard"):

        def check(ours: Any, theirs: Any) -> None:
            agreement.within_listing(b.rows, ours, theirs, MARGIN, MARGIN)

        others.insert(0, peers.pml_listing(b, "semihard", MARGIN, check))
    else:
        others.insert(0, peers.broadcast_pairs(b, strategy, MARGIN))

    def ours() -> Any:
        return minerlib.mine(b.x, b.labels, strategy, margin=MARGIN)

    return Contest(_all_pairs(b), dims, ours, judge, tuple(others))


def _own_batch_hard(b: data.Batch) -> Contender:
    def check(ours: Any, theirs: Any) -> None:
        agreement.judge_extremes(b.rows, b.classes, theirs, farthest_positive=True)

    return Contender(OWN_BATCH_HARD, lambda: minerlib.mine(b.x, b.labels, "batch-hard"), check, role="own")


def every(rows: int, dims: int, classes: int) -> Contest:
    """A list of all triplets of positive score."""
    b = data.batch(rows, dims, classes)

    def judge(result: Any) -> None:
        counts = minerlib.count_triplets(b.x, b.labels, margin=MARGIN)
        listed = len(result.anchors)
        agreement.demand(listed == counts.hard + counts.semi_hard, f"{listed} listed, but counted {counts}")

    def check(ours: Any, theirs: Any) -> None:
        agreement.same_listing(b.rows, ours, theirs, MARGIN)

    peer = peers.pml_listing(b, "all", MARGIN, check)
    return Contest(
        _all_pairs(b), dims, lambda: minerlib.mine(b.x, b.labels, "all", margin=MARGIN), judge, (peer,)
    )


def count(rows: int, dims: int, classes: int) -> Contest:
    """How many triplets there are of each kind."""
    b = data.batch(rows, dims, classes)
    part = agreement.sampled(rows)

    def judge(result: Any) -> None:
        mine = minerlib.count_triplets(b.rows[part], b.classes[part], margin=MARGIN)
        judged = minerlib.count_triplets(b.rows[part], b.classes[part], margin=MARGIN, backend="reference")
        agreement.demand(mine == judged, f"{mine}, by definition {judged}")
        agreement.demand(
            result.total == result.hard + result.semi_hard + result.easy, f"{result} does not add up"
        )

    def check(ours: Any, theirs: Any) -> None:
        agreement.same_count(ours.semi_hard, len(theirs[0]), "semi-hard triplets")

    others = (peers.broadcast_counts(b, MARGIN), peers.pml_listing(b, "semihard", MARGIN, check))
    return Contest(
        _all_pairs(b), dims, lambda: minerlib.count_triplets(b.x, b.labels, margin=MARGIN), judge, others
    )


def distance_weighted(rows: int, dims: int, classes: int) -> Contest:
    """One negative for every ordered pair, drawn by its distance."""
    b = data.batch(rows, dims, classes)
    judge = functools.partial(agreement.judge_draws, b.rows, b.classes)
    return Contest(
        _all_pairs(b),
        dims,
        lambda: minerlib.mine(b.x, b.labels, "distance-weighted"),
        judge,
        (peers.pml_distance_weighted(b), _own_batch_hard(b)),
    )


def nearest(queries: int, database: int, dims: int, k: int) -> Contest:
    """The k nearest rows of a database for every query, in exact float64 order."""
    q = data.batch(queries, dims, max(1, queries // 8), seed=1).rows
    rows = data.batch(database, dims, max(1, database // 8)).rows
    judge = functools.partial(agreement.judge_neighbors, q, rows, k=k)
    others = (peers.faiss_flat(q, rows, k), peers.sklearn_neighbors(q, rows, k))
    return Contest(queries * database, dims, lambda: minerlib.nearest(q, rows, k), judge, others)


def four_extremes(rows: int, dims: int, classes: int) -> Contest:
    """All four extremes in one pass (`assorted`, which picks two of them), against a search for k = 1."""
    b = data.batch(rows, dims, classes)

    def judge(result: Any) -> None:
        part = agreement.sampled(rows)
        found = agreement.triples(result)
        distances = agreement.canonical(b.rows[part], b.rows)
        for anchor, row in zip(part, distances, strict=True):
            same = b.classes == b.classes[anchor]
            negatives = row[~same]
            same[anchor] = False
            for side, rows_of in ((found[1], row[same]), (found[2], negatives)):
                chosen = row[side[anchor]]
                agreement.demand(
                    chosen in (rows_of.min(), rows_of.max()), f"anchor {anchor}: no extreme was chosen"
                )

    peer = peers.faiss_flat(b.rows, b.rows, 1, role="part")
    return Contest(_all_pairs(b), dims, lambda: minerlib.mine(b.x, b.labels, "assorted"), judge, (peer,))


def pairwise(rows: int, dims: int) -> Contest:
    """The whole matrix of canonical float64 distances."""
    b = data.batch(rows, dims, max(1, rows // 8))

    def ours() -> Any:
        return minerlib.pairwise_distance(b.rows, metric="euclidean")

    def judge(result: Any) -> None:
        part = agreement.sampled(rows)
        exact = minerlib.pairwise_distance(b.rows[part], b.rows, metric="euclidean", backend="reference")
        agreement.demand((result[part] == exact).all(), "not the canonical distances")

    return Contest(rows * rows, dims, ours, judge, peers.matrices(b))


def duplicates(rows: int, dims: int, classes: int) -> Contest:
    """Batch-hard where all rows are the same: nothing is certified, everything a tie."""
    b, distinct = data.duplicates(rows, dims, classes), data.batch(rows, dims, classes)
    judge = functools.partial(agreement.judge_extremes, b.rows, b.classes, farthest_positive=True)

    def check(ours: Any, theirs: Any) -> None:
        agreement.judge_extremes(distinct.rows, distinct.classes, theirs, farthest_positive=True)

    def on_distinct() -> Any:
        return minerlib.mine(distinct.x, distinct.labels, "batch-hard")

    other = Contender(OWN_DISTINCT, on_distinct, check, role="own")
    others = (other, peers.masked_cdist(b))
    return Contest(_all_pairs(b), dims, lambda: minerlib.mine(b.x, b.labels, "batch-hard"), judge, others)


KINDS: dict[str, Callable[..., Contest]] = {
    function.__name__: function
    for function in (
        per_pair, batch_hard, window, every, count, distance_weighted, nearest, four_extremes, pairwise,
        duplicates, codes.code_search, codes.code_range, codes.code_map, losses.batch_all_loss,
        losses.triplet_loss, drop_in.compat_miner,
    )
}  # fmt: skip
