"""Learn binary codes, keep them in a file, and search them exactly.

    python examples/hash_and_search.py

A linear network learns 32-bit codes of the scanned digits by triplet hashing (DTSH); their signs go into an
index file that could be larger than memory.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import minerlib
from minerlib.losses import dtsh

BITS = 32
HELD_OUT = 297  # digits that query the others


def main() -> None:
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    images = images - images[:-HELD_OUT].mean(dim=0)
    torch.manual_seed(0)
    network = nn.Linear(64, BITS)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(30):
        batch = torch.randint(len(images) - HELD_OUT, (128,))
        outputs = network(images[batch])
        units = nn.functional.normalize(outputs.detach())
        triplets = minerlib.mine(units, labels[batch], "semi-hard", margin=0.5)
        loss = dtsh(outputs, triplets, alpha=BITS / 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        codes = minerlib.pack_bits(network(images))  # uint8 [N, BITS / 8]
    database, queries = codes[:-HELD_OUT], codes[-HELD_OUT:]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.index"
        index = minerlib.HammingIndex(BITS)
        index.add(database)
        index.save(path)
        found = minerlib.HammingIndex.load(path).search(queries, k=5)
        print(f"{len(index)} codes of {BITS} bits in {path.stat().st_size} bytes of file")
    print(f"query 0 is a {labels[-HELD_OUT]}; its five nearest are {labels[found.indices[0]].tolist()}")
    score = minerlib.hamming_map(queries, labels[-HELD_OUT:], database, labels[:-HELD_OUT], ties="expected")
    print(f"mean average precision, ties in expectation: {score:.3f}")


if __name__ == "__main__":
    main()
