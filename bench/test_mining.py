"""`minerlib.mine` against the per-pair Python loop on JTANet's batch: 256 rows of 4 classes, D = 512."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

import minerlib
from bench import per_pair_loop

MARGIN = 0.5
ROUNDS = 7
#: Far above what float32 distances of unit rows are off by; what lies closer to an edge may fall either way.
NEAR = 1e-5


def jtanet_batch() -> tuple[torch.Tensor, torch.Tensor]:  # [256, 512] unit rows, [256]
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(256) % 4
    centres = torch.randn(4, 512, generator=generator)
    rows = 0.6 * centres[labels] + torch.randn(256, 512, generator=generator)
    return torch.nn.functional.normalize(rows), labels


def pairs_of(labels: np.ndarray) -> list[tuple[int, int]]:  # [N]
    count = len(labels)
    return [(i, j) for i in range(count) for j in range(i + 1, count) if labels[i] == labels[j]]


def chosen(triplets: np.ndarray) -> dict[tuple[int, int], int]:  # [T, 3]
    return {(anchor, positive): negative for anchor, positive, negative in triplets.tolist()}


def check_agreement(
    strategy: str,
    embeddings: torch.Tensor,  # [N, D]
    labels: torch.Tensor,  # [N]
    ours: np.ndarray,  # [T, 3]
    theirs: np.ndarray,  # [T, 3]
) -> None:
    """Judge both by float64 distances; the two may differ only within float32's error of an edge or a tie."""
    rows, classes = embeddings.double().numpy(), labels.numpy()
    distances = np.square(rows[:, None, :] - rows[None, :, :]).sum(axis=2)
    by_pair, loop_by_pair = chosen(ours), chosen(theirs)
    assert len(by_pair) == len(ours) > 1000, "too little was mined for a comparison"
    for anchor, positive in pairs_of(classes):
        negatives = np.flatnonzero(classes != classes[anchor])
        losses = distances[anchor, positive] - distances[anchor, negatives] + MARGIN
        mined, loop_mined = by_pair.get((anchor, positive)), loop_by_pair.get((anchor, positive))
        if strategy == "hard":
            if mined != loop_mined:
                assert np.ptp(np.sort(losses)[-2:]) < NEAR or abs(losses.max()) < NEAR
            continue
        upper = MARGIN if strategy == "semi-hard" else np.inf
        for negative, slack in ((mined, 0.0), (loop_mined, NEAR)):
            if negative is None:
                assert not np.any((losses > NEAR) & (losses < upper - NEAR))
            else:
                loss = distances[anchor, positive] - distances[anchor, negative] + MARGIN
                assert classes[negative] != classes[anchor]
                assert -slack - 1e-12 < loss < upper + slack + 1e-12


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.mark.bench
@pytest.mark.parametrize("strategy", per_pair_loop.SELECTORS)
def test_jtanet_batch(strategy: str, benchmark, capsys) -> None:
    embeddings, labels = jtanet_batch()
    select = per_pair_loop.SELECTORS[strategy]

    def ours() -> minerlib.Triplets:
        return minerlib.mine(embeddings, labels, strategy, margin=MARGIN, pairs="combinations")

    def theirs() -> torch.Tensor:
        return per_pair_loop.mine(embeddings, labels, select, MARGIN)

    check_agreement(strategy, embeddings, labels, torch.stack(ours(), dim=1).numpy(), theirs().numpy())
    our_seconds, their_seconds = [], []
    for _ in range(ROUNDS):  # alternating, so that both meet the same state of the machine
        their_seconds.append(seconds(theirs))
        our_seconds.append(statistics.median(seconds(ours) for _ in range(20)))
    our_median, their_median = statistics.median(our_seconds), statistics.median(their_seconds)
    ratio = their_median / our_median

    benchmark.extra_info.update(pairs=len(pairs_of(labels.numpy())), loop_ms=their_median * 1e3, ratio=ratio)
    benchmark.pedantic(ours, rounds=50, warmup_rounds=5)
    with capsys.disabled():
        print(
            f"\n{strategy}: minerlib ({minerlib.explain('mine').chosen}) {our_median * 1e3:.3f} ms, "
            f"per-pair loop {their_median * 1e3:.1f} ms, ratio {ratio:.0f}"
        )
    assert ratio >= 100
