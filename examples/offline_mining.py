"""Mine a whole data set before training: every image finds its extreme partners among all others.

    python examples/offline_mining.py

The embeddings are the scanned digits themselves; in practice they come from a network trained with class
labels, and may be a memory-mapped .npy file larger than memory. One pass finds all cases asked for.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from minerlib import offline
from minerlib.losses import triplet_margin
from minerlib.results import Triplets
from minerlib.retrieval import recall_at

MARGIN = 0.25


def main() -> None:
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    found = offline.mine(images, labels, ("ephn", "hphn"), outlier_percentile=99, progress=False)
    for case, mined in found.items():
        nearest = mined.negative_distances < mined.positive_distances
        hard = 100 * nearest.double().mean()
        print(
            f"{case}: {len(mined.anchors)} triplets; the negative is nearer than the positive in {hard:.0f} %"
        )

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    mined = found["ephn"]
    triplets = DataLoader(TensorDataset(*mined[:3]), batch_size=128, shuffle=True)
    for epoch in range(3):
        total = 0.0
        for anchors, positives, negatives in triplets:
            rows = torch.cat([anchors, positives, negatives])
            embeddings = nn.functional.normalize(network(images[rows]))
            places = torch.arange(len(rows)).chunk(3)  # of anchors, positives and negatives in this batch
            loss = triplet_margin(embeddings, Triplets(*places), MARGIN, reduction="sum")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: mean loss {total / len(mined.anchors):.4f}")
    with torch.no_grad():
        embeddings = nn.functional.normalize(network(images))
    print(f"R@1 over the data set: {100 * recall_at(embeddings, labels, [1])[0]:.1f} %")


if __name__ == "__main__":
    main()
