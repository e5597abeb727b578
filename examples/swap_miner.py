"""Swap a slow miner in a training loop that you already have: one line changes, the triplets stay.

    python examples/swap_miner.py

A small network learns to tell scanned digits apart by triplets. `train` is the loop as many write it; the
miner is a function of embeddings and labels. The first one is the usual Python loop over pairs, the second is
minerlib's. They choose the same negatives, so the losses agree; look at the seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import minerlib
from minerlib.benchmarks import per_pair_loop
from minerlib.losses import triplet_margin
from minerlib.results import Triplets

MARGIN = 0.5


def by_python_loop(embeddings: Tensor, labels: Tensor) -> Triplets:
    """What you may have now: for every pair, NumPy looks for the hardest negative."""
    triplets = per_pair_loop.mine(embeddings, labels, per_pair_loop.hardest, MARGIN)
    return Triplets(*triplets.unbind(dim=1))


def by_minerlib(embeddings: Tensor, labels: Tensor) -> Triplets:
    """What you may have instead."""
    return minerlib.mine(embeddings, labels, "hard", margin=MARGIN, pairs="combinations")


def train(mine: Callable[[Tensor, Tensor], Triplets], steps: int = 10) -> tuple[list[float], float]:
    """The losses of all steps, and the seconds spent mining."""
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses, mining = [], 0.0
    for _ in range(steps):
        batch = torch.randint(len(images), (128,))
        embeddings = nn.functional.normalize(network(images[batch]))
        start = time.perf_counter()
        triplets = mine(embeddings.detach(), labels[batch])
        mining += time.perf_counter() - start
        loss = triplet_margin(embeddings, triplets, MARGIN)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, mining


def main() -> None:
    by_minerlib(torch.eye(4), torch.tensor([0, 0, 1, 1]))  # loads the backend
    slow, slow_seconds = train(by_python_loop)
    fast, fast_seconds = train(by_minerlib)
    apart = max(abs(one - other) for one, other in zip(slow, fast, strict=True))
    print(f"loss            {fast[0]:.4f} at first, {fast[-1]:.4f} after {len(fast)} steps")
    print(f"largest gap     {apart:.1e} between the two runs' losses")
    print(f"mining a batch  {1e3 * slow_seconds / len(slow):.1f} ms by the Python loop, ", end="")
    print(
        f"{1e3 * fast_seconds / len(fast):.2f} ms by minerlib: {slow_seconds / fast_seconds:.0f} times faster"
    )


if __name__ == "__main__":
    main()
