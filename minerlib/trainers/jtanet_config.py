"""What a JTANet run can be told, checked before any work is done. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from minerlib import inputs
from minerlib.trainers.settings import Presets, Settings, positive

STRATEGIES = ("hard", "random-hard", "semi-hard")
REDUCTIONS = ("sum", "mean", "mean-nonzero", "hinge-of-sums")
SIDE = 64  # the networks of Table 1 halve it six times


@dataclass(frozen=True)
class JTANetConfig(Settings):
    """The settings of one run. The defaults are the paper's section 4.4, on the embedded digits.

    `reduction="sum"` adds up the hinges of the batch's triplets, as the paper adds up its other two losses
    over the batch. `"hinge-of-sums"` is equation 4 to the letter, which is zero for semi-hard triplets, and
    under `"mean"` the feature regularisation, a sum over the batch, drowns the triplets.

    >>> JTANetConfig(embedding_length=128).margin
    0.5
    """

    margin: float = 0.5  # squared Euclidean distance between L2-normalised features
    side: int | None = SIDE
    output: Path = Path("runs/jtanet")
    embedding_length: int = 64
    width: float = 1.0  # factor on the channels of the inner layers
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0)  # autoencoder : Siamese : feature regularisation
    reduction: str = "sum"

    def __post_init__(self) -> None:
        self.check_common(STRATEGIES)
        inputs.one_of("reduction", self.reduction, REDUCTIONS)
        inputs.integer("embedding_length", self.embedding_length, 1, 2**16)
        positive("width", self.width)
        if self.side != SIDE:
            raise ValueError(f"side: expected {SIDE}, which the networks of Table 1 take, got {self.side}")
        if len(self.weights) != 3:
            raise ValueError(f"weights: expected three numbers AE:SM:FR, got {self.weights}")
        for weight in self.weights:
            inputs.finite_non_negative("weights", weight)


PRESETS: Presets = {
    "paper": {},
    "demo": {
        "width": 0.5,
        "epochs": 6,
        "validate": True,
    },  # minutes on two cores; full width takes four times that
    "quick": {
        "width": 1 / 16,
        "epochs": 5,
        "batch_size": 128,
    },  # a run of seconds, for whole sweeps on two cores
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
