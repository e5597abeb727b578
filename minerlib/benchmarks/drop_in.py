"""The miners of `minerlib.compat.pytorch_metric_learning` against the originals that they stand in for."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from minerlib.benchmarks import agreement, data, peers
from minerlib.benchmarks.contest import Contender, Contest

_PART = 256  # rows at most on which ours must equal the original in float64
_SHARE = 1e-5  # of float32's entries may lie so close to an edge that the two differ

#: The originals' time and memory a call, roughly: per pair of rows, and where triplets are listed per N^3.
_PAIR_SECONDS, _PAIR_BYTES, _TRIPLET_BYTES = 2e-7, 60.0, 0.6


def compat_miner(miner: str, options: dict[str, Any], rows: int, dims: int, classes: int) -> Contest:
    """One call of a miner, with its own distance object, on a whole batch."""
    ours_in = importlib.import_module("minerlib.compat.pytorch_metric_learning.miners")
    theirs_in = importlib.import_module("pytorch_metric_learning.miners")
    b = data.batch(rows, dims, classes)
    mine, original = getattr(ours_in, miner)(**options), getattr(theirs_in, miner)(**options)
    drawn = miner == "DistanceWeightedMiner"

    def judge(result: Any) -> None:
        agreement.demand(not mine.fallback_reason, f"the original answered: {mine.fallback_reason}")
        if drawn:
            agreement.demand(len(set(map(len, result))) == 1 and len(result[0]), "no triplets")
            return
        x, labels = b.x[:_PART].double(), b.labels[:_PART]
        found, defined = _keys(mine(x, labels), _PART), _keys(original(x, labels), _PART)
        agreement.demand(np.array_equal(found, defined), "not the original's set in float64")

    def check(result: Any, other: Any) -> None:
        if drawn:
            agreement.same_count(len(result[0]), len(other[0]), "draws")
            _same_draws(b, result, other)
            return
        found, theirs = (_keys(output, rows) for output in (result, other))
        differ = len(np.setxor1d(found, theirs, assume_unique=True))
        agreement.demand(differ <= max(2, _SHARE * len(theirs)), f"{differ} entries of {len(theirs)} differ")

    peer = Contender(
        f"{peers.PML} {miner}",
        lambda: original(b.x, b.labels),
        check,
        bytes_needed=_PAIR_BYTES * rows**2 + (_TRIPLET_BYTES * rows**3 if "Triplet" in miner else 0.0),
        seconds_needed=_PAIR_SECONDS * rows**2 * (10 if drawn or "Triplet" in miner else 1),
    )
    return Contest(rows * (rows - 1), 0, lambda: mine(b.x, b.labels), judge, (peer,))


def _keys(output: Any, rows: int) -> np.ndarray:
    """One sorted number for each triplet, or for each positive and each negative pair."""
    columns = [np.asarray(column, dtype=np.int64) for column in output]
    if len(columns) == 3:
        return np.sort((columns[0] * rows + columns[1]) * rows + columns[2])
    positives, negatives = columns[0] * rows + columns[1], columns[2] * rows + columns[3]
    return np.sort(np.concatenate((positives, negatives + rows**2)))


def _same_draws(b: data.Batch, result: Any, other: Any) -> None:
    """Negatives of one distribution: on average as far from their anchors, within five standard errors."""
    ours, theirs = (
        agreement.squared(b.rows, np.asarray(output[0]), np.asarray(output[2])) for output in (result, other)
    )
    error = np.sqrt(ours.var() / len(ours) + theirs.var() / len(theirs))
    gap = abs(ours.mean() - theirs.mean())
    agreement.demand(gap <= 5 * error + agreement.NEAR, f"mean squared distances are {gap} apart")
