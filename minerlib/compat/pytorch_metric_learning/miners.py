"""Miners that subclass pytorch-metric-learning's and answer the same, from minerlib's kernels.

Each class takes the original's arguments and keeps its attributes, its recorded statistics and its index
conventions: `(a, p, n)` or `(a1, p, a2, n)`, anchors into `embeddings`, the rest into `ref_emb` when there is
one. What is chosen is decided on float64 distances of the very rows that the original would compare (after
the distance object's normalisation), ties by the lowest index; the original decides on distances rounded to
the embeddings' type, so the two may differ where a choice is closer than that rounding.

Served: `LpDistance(p=2)` with power 1 or 2 and `CosineSimilarity` (or a normalised `DotProductSimilarity`),
normalised or not. Anything else, rows that are not finite among it, is answered by the original
implementation, and `fallback_reason` says why; it is empty after a call that minerlib answered.

Memory is that of the native kernels; numba's, which stand in where those are not built, hold up to 20 MiB of
products and marks, and the result once more. Up to 128 MiB that large results leave are kept for the next.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from pytorch_metric_learning import miners as _originals
from torch import Tensor

from minerlib.backends import native, numba
from minerlib.compat.pytorch_metric_learning._batch import METRICS, Batch, Fallback, named, prepare
from minerlib.scan import Scan

Indices = tuple[Tensor, ...]


class _Served:
    """`mine` answered by `_answer`, or by the original class where that cannot be."""

    distance: Any
    #: Why the last call was answered by the original implementation; empty when minerlib answered it.
    fallback_reason = ""

    def mine(
        self,
        embeddings: Tensor,  # [N, D]
        labels: Tensor,  # [N]
        ref_emb: Tensor | None = None,  # [M, D]
        ref_labels: Tensor | None = None,  # [M]
        **options: Any,
    ) -> Indices:
        """Indices of the chosen rows; called by the miner itself, which has checked shapes."""
        if torch.compiler.is_compiling():  # one break of the graph, and none of what follows is traced
            untraced = torch.compiler.disable(self._mine)
            found: Indices = untraced(embeddings, labels, ref_emb, ref_labels, **options)
            return found
        return self._mine(embeddings, labels, ref_emb, ref_labels, **options)

    def _mine(
        self,
        embeddings: Tensor,  # [N, D]
        labels: Tensor,  # [N]
        ref_emb: Tensor | None,  # [M, D]
        ref_labels: Tensor | None,  # [M]
        **options: Any,
    ) -> Indices:
        self.fallback_reason = ""
        try:
            if any(option is not None for option in options.values()):
                raise Fallback(f"option {', '.join(options)} is the original's own")
            batch = prepare(self.distance, embeddings, labels, ref_emb, ref_labels)
            if batch.empty:
                return self._nothing(batch.device)
            return self._answer(batch)
        except Fallback as reason:
            self.fallback_reason = str(reason)
        answer: Indices = super().mine(embeddings, labels, ref_emb, ref_labels, **options)  # type: ignore[misc]
        return answer

    def _answer(self, batch: Batch) -> Indices:
        raise NotImplementedError

    def _nothing(self, device: torch.device) -> Indices:
        return named(*(torch.empty(0, dtype=torch.long, device=device) for _ in range(4)))

    @property
    def _collects(self) -> bool:
        return bool(getattr(self, "collect_stats", False))  # version 3 collects none


def _scan(batch: Batch, exactly: bool = False) -> Scan:
    return Scan(
        batch.x,
        batch.y,
        batch.x_class,
        batch.y_class,
        0 if batch.own else None,
        METRICS.index(batch.metric),
        exactly,
    )


def _theirs(batch: Batch, values: Any) -> Any:
    """Distances as the original's distance object gives them: similarities where it is inverted."""
    return 1 - values if batch.metric == "cosine" else values


class BatchEasyHardMiner(_Served, _originals.BatchEasyHardMiner):
    """One positive and one negative for each anchor, easy, hard or semihard, or all of them.

    Arguments and results are those of `pytorch_metric_learning.miners.BatchEasyHardMiner`:
    `(a1, p, a2, n)`. Peak memory beyond the result: 4 MiB of products and O(M) a thread.

    >>> import torch
    >>> miner = BatchEasyHardMiner("easy", "hard")
    >>> [index.tolist() for index in miner(torch.eye(3), torch.tensor([0, 0, 1]))]
    [[0, 1], [1, 0], [0, 1], [2, 2]]
    """

    def _answer(self, batch: Batch) -> Indices:
        return batch.give(*self._choose(batch))

    def _choose(self, batch: Batch) -> tuple[np.ndarray, ...]:
        every_positive, every_negative = self.pos_strategy == self.ALL, self.neg_strategy == self.ALL
        if self._collects and (every_positive or every_negative):
            raise Fallback("statistics of all pairs are collected from the matrix of distances")
        index, value = self._extremes(batch)
        have_p, have_n = index[:, 0] >= 0, index[:, 1] >= 0
        if not every_positive and not every_negative:
            have_p = have_n = have_p & have_n
            if self._collects:
                kept = _theirs(batch, torch.from_numpy(value[have_p]))
                self.set_stats(kept[:, 0], kept[:, 1])
        anchors = np.arange(len(batch.x))
        positives = _all_pairs(batch, True) if every_positive else (anchors[have_p], index[have_p, 0])
        negatives = _all_pairs(batch, False) if every_negative else (anchors[have_n], index[have_n, 1])
        return *positives, *negatives

    def _extremes(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Chosen columns [N, 2], -1 for none, and their distances; not filled in where all are asked for."""
        strategies = self.pos_strategy, self.neg_strategy
        wanted = set(strategies) - {self.ALL}
        ranged = self.allowed_pos_range is not None or self.allowed_neg_range is not None
        index = np.full((len(batch.x), 2), -1, dtype=np.int64)
        if not wanted:
            return index, np.empty(index.shape)
        # a semihard positive is the farthest nearer than the negative, a semihard negative the nearest beyond
        farthest = (self.pos_strategy != self.EASY, self.neg_strategy == self.EASY)
        if not ranged and not self._collects and self.SEMIHARD not in wanted and strategies[1] != self.ALL:
            wanted_sides = [side for side in (0, 1) if strategies[side] != self.ALL]
            which = [2 * side + farthest[side] for side in wanted_sides]
            extremes = (native if _native() else numba).extremes(batch.problem, which, True)
            index[:, wanted_sides] = extremes[which].T
            return index, np.empty(index.shape)
        second = [*strategies, self.SEMIHARD].index(self.SEMIHARD)
        ranges = _range(batch, self.allowed_pos_range) + _range(batch, self.allowed_neg_range)
        if _native():
            sides = strategies[0] != self.ALL, strategies[1] != self.ALL
            return native.scan_choose(batch.problem, sides, farthest, ranges, second if second < 2 else -1)
        from minerlib import _scan_kernels as _kernels

        semihard = (_kernels.POSITIVE, _kernels.NEGATIVE, _kernels.NEITHER)[second]
        return _scan(batch).choose(farthest, ranges, semihard)


class BatchHardMiner(_Served, _originals.BatchHardMiner):
    """The farthest positive and the nearest negative of each anchor: `(a, p, n)`.

    Arguments and results are those of `pytorch_metric_learning.miners.BatchHardMiner`. Peak memory as `mine`.

    >>> import torch
    >>> [index.tolist() for index in BatchHardMiner()(torch.eye(3), torch.tensor([0, 0, 1]))]
    [[0, 1], [1, 0], [2, 2]]
    """

    _choose = BatchEasyHardMiner._choose
    _extremes = BatchEasyHardMiner._extremes

    def _answer(self, batch: Batch) -> Indices:
        a, p, _, n = self._choose(batch)
        return batch.give(a, p, n)

    def _nothing(self, device: torch.device) -> Indices:
        return named(*super()._nothing(device)[:3])


class TripletMarginMiner(_Served, _originals.TripletMarginMiner):
    """Every triplet that violates the margin (`all`, `hard`, `semihard`), or does not (`easy`): `(a, p, n)`.

    Arguments and results are those of `pytorch_metric_learning.miners.TripletMarginMiner`. Peak memory beyond
    the result: 4 MiB of products and O(M) a thread.

    >>> import torch
    >>> miner = TripletMarginMiner(margin=0.2, type_of_triplets="all")
    >>> [index.tolist() for index in miner(torch.eye(3), torch.tensor([0, 0, 1]))]
    [[0, 1], [1, 0], [2, 2]]
    """

    def _answer(self, batch: Batch) -> Indices:
        margin = float(self.margin)
        if not np.isfinite(margin):
            raise Fallback(f"margin {margin} is not finite")
        if self._collects:
            self._average(batch)
        window = {
            "easy": (margin, np.inf),
            "hard": (-np.inf, min(margin, 0.0)),
            "semihard": (0.0, margin),
        }.get(self.type_of_triplets, (-np.inf, margin))
        if _native():
            return batch.give(*native.scan_triplets(batch.problem, *window))
        return batch.give(*_scan(batch).triplets(*window))

    def _average(self, batch: Batch) -> None:
        """The means over all triplets, mined or not, that the original records."""
        positives, to_p, negatives, to_n = _scan(batch, exactly=True).side_sums().T
        total = (positives * negatives).sum()
        with np.errstate(invalid="ignore"):  # no triplets: not a number, as the original has it
            ap, an = (to_p * negatives).sum() / total, (to_n * positives).sum() / total
        self.pos_pair_dist, self.neg_pair_dist = float(_theirs(batch, ap)), float(_theirs(batch, an))
        self.avg_triplet_margin = float(an - ap)

    def _nothing(self, device: torch.device) -> Indices:
        return named(*super()._nothing(device)[:3])


class PairMarginMiner(_Served, _originals.PairMarginMiner):
    """Positive pairs farther apart than one margin, negative pairs closer than another: `(a1, p, a2, n)`.

    Arguments and results are those of `pytorch_metric_learning.miners.PairMarginMiner`. Peak memory beyond
    the result: half of it once more until it is written, 4 MiB of products and O(M) a thread.

    >>> import torch
    >>> miner = PairMarginMiner(pos_margin=0.2, neg_margin=0.8)
    >>> [index.tolist() for index in miner(torch.eye(3), torch.tensor([0, 0, 1]))]
    [[0, 1], [1, 0], [], []]
    """

    def _answer(self, batch: Batch) -> Indices:
        if self._collects:
            positives, to_p, negatives, to_n = _scan(batch, exactly=True).side_sums().sum(axis=0)
            self.pos_pair_dist = float(_theirs(batch, to_p / positives)) if positives else 0
            self.neg_pair_dist = float(_theirs(batch, to_n / negatives)) if negatives else 0
        edges = float(_theirs(batch, self.pos_margin)), float(_theirs(batch, self.neg_margin))
        return batch.give(*_pairs(batch, 0.0, edges))


class MultiSimilarityMiner(_Served, _originals.MultiSimilarityMiner):
    """Positives not clearly nearer than the nearest negative, and negatives likewise: `(a1, p, a2, n)`.

    Arguments and results are those of `pytorch_metric_learning.miners.MultiSimilarityMiner`; pairs come
    sorted by anchor, then index, where the original sorts them by anchor, then distance. Peak memory beyond
    the result: half of it once more until it is written, 4 MiB of products and O(M) a thread.

    >>> import torch
    >>> [index.tolist() for index in MultiSimilarityMiner()(torch.eye(3), torch.tensor([0, 0, 1]))]
    [[0, 1], [1, 0], [0, 1], [2, 2]]
    """

    def _answer(self, batch: Batch) -> Indices:
        return batch.give(*_pairs(batch, float(self.epsilon), None))


class DistanceWeightedMiner(_Served, _originals.DistanceWeightedMiner):
    """As many triplets for each anchor as its class has rows, negatives drawn by distance: `(a, p, n)`.

    Arguments and distribution are those of `pytorch_metric_learning.miners.DistanceWeightedMiner`, with one
    difference: weights are scaled per anchor, so an anchor whose weights are small beside another anchor's
    keeps its triplets; the original scales them by one maximum and loses such anchors to underflow in high
    dimensions. Random numbers come from torch's global generator. Peak memory beyond the result: a float64
    copy of the rows, 8 MiB of products and O(M) a thread.

    >>> import torch
    >>> a, p, n = DistanceWeightedMiner(nonzero_loss_cutoff=1.5)(torch.eye(3), torch.tensor([0, 0, 1]))
    >>> a.tolist(), p.tolist(), n.tolist()
    ([0, 0, 1, 1], [1, 1, 0, 0], [2, 2, 2, 2])
    """

    def _answer(self, batch: Batch) -> Indices:
        anchors, positives = _random_positives(batch)
        starts = np.searchsorted(anchors, np.arange(len(batch.x) + 1))
        uniform = torch.rand(len(anchors), dtype=torch.float64).numpy()
        cutoffs = (self.cutoff, self.nonzero_loss_cutoff)
        negatives = _scan(batch, exactly=True).draw_weighted(cutoffs, starts, uniform)
        kept = negatives >= 0
        return batch.give(anchors[kept], positives[kept], negatives[kept])

    def _nothing(self, device: torch.device) -> Indices:
        return named(*super()._nothing(device)[:3])


def _range(batch: Batch, allowed: Any) -> tuple[float, float]:
    """An allowed range in minerlib's unit."""
    if allowed is None:
        return -np.inf, np.inf
    low, high = float(allowed[0]), float(allowed[1])
    return (1 - high, 1 - low) if batch.metric == "cosine" else (low, high)


def _native() -> bool:
    """Whether the native kernels answer; numba's do elsewhere."""
    return not native.reasons_unusable()


def _pairs(batch: Batch, epsilon: float, edges: tuple[float, float] | None) -> tuple[np.ndarray, ...]:
    """Positives with d + epsilon > edge, negatives with d - epsilon < edge; no edges: each anchor's own."""
    if _native():
        return native.scan_pairs(batch.problem, epsilon, edges)
    return _scan(batch).pairs(epsilon, edges)


def _all_pairs(batch: Batch, same: bool) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of one class, or of two, by anchor, then column."""
    if _native():
        return native.every_pair(batch.problem, same)
    parts = []
    step = max(1, (1 << 22) // len(batch.y))
    for first in range(0, len(batch.x), step):
        chosen = (batch.x_class[first : first + step, None] == batch.y_class[None, :]) == same
        if same and batch.own:
            rows = np.arange(len(chosen))
            chosen[rows, first + rows] = False
        anchors, columns = np.nonzero(chosen)
        parts.append((anchors + first, columns))
    return np.concatenate([a for a, _ in parts]), np.concatenate([c for _, c in parts])


def _random_positives(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Each anchor as often as its class has columns, each time with a positive at random: by anchor."""
    order = np.argsort(batch.y_class, kind="stable")
    grouped = batch.y_class[order]
    starts = np.searchsorted(grouped, batch.x_class, side="left")
    draws = np.searchsorted(grouped, batch.x_class, side="right") - starts
    others = draws - int(batch.own)
    draws = np.where((others > 0) & (draws < len(batch.y)), draws, 0)
    anchors = np.repeat(np.arange(len(batch.x)), draws)
    choice = (torch.rand(len(anchors), dtype=torch.float64).numpy() * others[anchors]).astype(np.int64)
    if batch.own:  # the anchor's own place among its class is left out
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        choice += choice >= (place - starts)[anchors]
    return anchors, order[starts[anchors] + choice]


def __getattr__(name: str) -> Any:
    """Miners that minerlib does not serve are the original's own."""
    if not name.startswith("_"):
        try:
            return getattr(importlib.import_module("pytorch_metric_learning.miners"), name)
        except AttributeError:
            pass
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
