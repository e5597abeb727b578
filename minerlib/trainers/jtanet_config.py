"""What a JTANet run can be told, checked before any work is done. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minerlib import inputs

STRATEGIES = ("hard", "random-hard", "semi-hard")
REDUCTIONS = ("sum", "mean", "mean-nonzero", "hinge-of-sums")


@dataclass(frozen=True)
class JTANetConfig:
    """The settings of one run. The defaults are the paper's section 4.4, on the embedded digits.

    `reduction="sum"` adds up the hinges of the batch's triplets, as the paper adds up its other two losses
    over the batch. `"hinge-of-sums"` is equation 4 to the letter, which is zero for semi-hard triplets, and
    under `"mean"` the feature regularisation, a sum over the batch, drowns the triplets.

    >>> JTANetConfig(embedding_length=128).margin
    0.5
    """

    data: str = "digits"
    held_out: float = 0.2  # share of every class that training never sees
    embedding_length: int = 64
    width: float = 1.0  # factor on the channels of the inner layers
    epochs: int = 50
    batch_size: int = 256
    learning_rate: float = 1e-3
    strategy: str = "semi-hard"
    margin: float = 0.5  # squared Euclidean distance between L2-normalised features
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)  # autoencoder : Siamese : feature regularisation
    reduction: str = "sum"
    seed: int = 0
    validate: bool = False  # run the naive miner beside the fast one on every step
    miner_backend: str = "auto"  # who chooses the triplets
    device: str = "cpu"
    output: Path = Path("runs/jtanet")
    resume: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        inputs.one_of("strategy", self.strategy, STRATEGIES)
        inputs.one_of("reduction", self.reduction, REDUCTIONS)
        inputs.integer("embedding_length", self.embedding_length, 1, 2**16)
        inputs.integer("epochs", self.epochs, 1, 10**6)
        inputs.integer("batch_size", self.batch_size, 2, 2**20)
        inputs.seed_value(self.seed)
        inputs.finite_non_negative("margin", self.margin)
        _positive("learning_rate", self.learning_rate)
        _positive("width", self.width)
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out: expected a share between 0 and 1, got {self.held_out}")
        if len(self.weights) != 3:
            raise ValueError(f"weights: expected three numbers AE:SM:FR, got {self.weights}")
        for weight in self.weights:
            inputs.finite_non_negative("weights", weight)


#: What decides the numbers of a run: a checkpoint is continued only under the same values.
DECISIVE = (
    "data",
    "held_out",
    "embedding_length",
    "width",
    "batch_size",
    "learning_rate",
    "strategy",
    "margin",
    "weights",
    "reduction",
    "seed",
)

#: Settings by name for `--preset`; what is given beside it wins.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "demo": {
        "width": 0.5,
        "epochs": 6,
        "validate": True,
    },  # minutes on two cores; full width takes four times that
}


def parse_weights(text: str) -> tuple[float, float, float]:
    """The weights of the three losses, written as in the paper's Table 3.

    >>> parse_weights("1:5:1")
    (1.0, 5.0, 1.0)
    """
    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError(f"weights: expected three numbers of at least 0 like 1:5:1 (AE:SM:FR), got {text!r}")
    return (numbers[0], numbers[1], numbers[2])


def _positive(name: str, value: float) -> None:
    if not inputs.finite_non_negative(name, value) > 0:
        raise ValueError(f"{name}: expected a number above 0, got {value}")
