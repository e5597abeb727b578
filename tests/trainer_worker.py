"""What each rank of tests/test_trainers_shared.py does: torchrun tests/trainer_worker.py DIRECTORY."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from minerlib.losses import triplet_margin
from minerlib.trainers import data, jtanet, ranks
from minerlib.trainers.images import ImageSet
from minerlib.trainers.jtanet_config import JTANetConfig
from minerlib.trainers.loop import Loop, seeded, shuffled
from minerlib.trainers.settings import Settings
from minerlib.trainers.validation import MiningRecord, StepMiner


class Flat(nn.Module):
    """No BatchNorm, which every rank would compute from its own images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 4 * 4, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1))


def linear_run(folder: Path, strategy: str = "semi-hard") -> Loop:
    """Two epochs of a linear network on random images."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (42, 3, 4, 4), dtype=torch.uint8, generator=generator)
    images = ImageSet(pixels, torch.arange(42) % 4, tuple("abcd"))
    config = Settings(epochs=2, output=folder, progress=False, learning_rate=0.01)
    record = MiningRecord()
    miner = StepMiner(strategy, seed=0, backend="auto", validate=True, record=record, pairs="combinations")

    def step(loop, batch):
        rows, labels, anchors = loop.gather(loop.forward(batch.images), batch.labels)
        triplets = miner(rows, labels, batch.step, anchors)
        return {"total": triplet_margin(rows, triplets, 0.2, "sqeuclidean", "sum")}

    network = seeded(Flat, 0)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    batches = shuffled(42, 21, seed=0)
    loop = Loop("test", config, network, images, batches, step, record=record, optimizer=optimizer)
    loop.run()
    return loop


def jtanet_run(folder: Path, **settings) -> jtanet.JTANetResult:
    few = data.read_digits(64).rows(torch.arange(120))
    data.read_digits = lambda side: few
    defaults = {"epochs": 2, "batch_size": 48, "embedding_length": 4, "width": 1 / 64, "progress": False}
    return jtanet.train(JTANetConfig(output=folder, **{**defaults, **settings}), pictures=False)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with ranks.process_group("cpu"):
        here = ranks.current()
        linear = linear_run(folder / "linear")
        whole = jtanet_run(folder / "whole", validate=True)
        jtanet_run(folder / "parts", epochs=1)
        parts = jtanet_run(folder / "parts", resume=True)
        torch.save(
            {
                "world": here.world,
                "linear": linear.network.state_dict(),
                "linear history": linear.history["total"],
                "histories": [whole.history["total"], parts.history["total"]],
                "precisions": [whole.precision, parts.precision],
                "validated": whole.mining.validated_triplets,
                "mismatches": whole.mining.mismatches,
                "triplets": sum(whole.history["triplets"]),
            },
            folder / f"{here.rank}.pt",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
