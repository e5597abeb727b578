"""What a DeepHash run can be told, and the 13 rows of the paper's Table 1. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minerlib import inputs
from minerlib.trainers.settings import Presets, Settings, positive

#: How triplets come about: not at all, drawn from the whole set, or mined in the batch by a selector.
STRATEGIES = ("none", "drawn", "semi-hard", "hard", "random-hard")
LOSSES = ("triplet", "dtsh")
PAPERS_DATA = "cifar-10"
SIDE = 32  # pixels, those of CIFAR-10

ALPHA = (16.0,)
RISING_ALPHA = (1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class DeepHashConfig(Settings):
    """The settings of one row of Table 1; `row_config` knows what each row asks for.

    The report leaves open the batch, the optimiser, the length of its embeddings and codes and what is
    retrieved; those here are the usual ones of the public selectors that it names (25 images of each of 10
    classes, Adam, squared distances between raw features, margin 1) and of deep hashing (48 bits).

    >>> DeepHashConfig(epochs=15, quantization_after=15).quantization(epoch=15)
    0.0
    """

    epochs: int = 15
    batch_size: int = 250
    margin: float = 1.0  # squared Euclidean distance between raw features; with dtsh it follows alpha
    side: int | None = SIDE
    output: Path = Path("runs/deephash")
    row: str = "semi-hard"  # of ROWS
    backbone: str = "resnet18"
    weights: str = "auto"  # auto: pretrained where they can be had; none; or a file or a folder of them
    width: float = 1.0  # factor on the backbone's channels; pretrained weights need 1
    embedding: int | None = None  # length of a layer behind the backbone's features; by default none
    loss: str = "triplet"
    bits: int = 48  # of the codes that dtsh learns
    per_class: int = 25  # images of a class in a batch
    alphas: tuple[float, ...] = ALPHA  # one after the other
    epochs_per_alpha: int = 3
    quantization_after: int = 15  # epochs without it
    quantization_weight: float = 10.0  # from then on
    neighbours: int = 5  # that vote for an image's class
    queries: int | None = None  # held-out images that are looked up; by default all

    def __post_init__(self) -> None:
        self.check_common(STRATEGIES)
        inputs.one_of("row", self.row, tuple(ROWS))
        inputs.one_of("loss", self.loss, LOSSES)
        positive("width", self.width)
        for name in ("per_class", "epochs_per_alpha", "neighbours", "bits"):
            inputs.integer(name, getattr(self, name), 1, 2**20)
        for name in ("embedding", "queries"):
            if getattr(self, name) is not None:
                inputs.integer(name, getattr(self, name), 1, 2**20)
        inputs.integer("quantization_after", self.quantization_after, 0, 10**6)
        inputs.finite_non_negative("quantization_weight", self.quantization_weight)
        if self.hashes and self.strategy in ("none", "drawn"):
            raise ValueError(f"strategy: expected a selector to train codes with, got {self.strategy!r}")
        if not self.alphas:
            raise ValueError("alphas: expected at least one number, got none")
        for alpha in self.alphas:
            inputs.finite_non_negative("alphas", alpha)

    def alpha(self, epoch: int) -> float:
        """The margin of `dtsh` in this epoch, counted from 1.

        >>> [DeepHashConfig(alphas=RISING_ALPHA).alpha(epoch) for epoch in (1, 3, 4, 13, 20)]
        [1.0, 1.0, 2.0, 16.0, 16.0]
        """
        stage = (epoch - 1) // self.epochs_per_alpha
        return self.alphas[min(stage, len(self.alphas) - 1)]

    def quantization(self, epoch: int) -> float:
        """The weight of the quantisation error in this epoch, counted from 1."""
        return self.quantization_weight if epoch > self.quantization_after else 0.0

    @property
    def hashes(self) -> bool:
        """Whether the network learns codes."""
        return self.loss == "dtsh"

    @property
    def trains(self) -> bool:
        """Whether there is anything to learn; the first five rows measure what pretrained networks know."""
        return self.strategy != "none"


@dataclass(frozen=True)
class Row:
    """A row of Table 1: its words, what it asks for, and its published values."""

    title: str
    settings: Mapping[str, Any]
    knn_percent: float  # KNN accuracy on CIFAR-10
    map_percent: float  # mean average precision

    @property
    def hashes(self) -> bool:
        return bool(self.settings.get("loss") == "dtsh")


def _pretrained(backbone: str) -> dict[str, Any]:
    return {"backbone": backbone, "strategy": "none"}


def _hashing(alphas: tuple[float, ...]) -> dict[str, Any]:
    return {"strategy": "random-hard", "loss": "dtsh", "alphas": alphas}


#: Table 1, top to bottom. Its figures are shares; here they are per cent.
ROWS: dict[str, Row] = {
    "vgg16": Row("VGG16", _pretrained("vgg16"), 57.26, 47.95),
    "vgg19": Row("VGG19", _pretrained("vgg19"), 59.26, 51.55),
    "resnet18": Row("Resnet18", _pretrained("resnet18"), 57.19, 46.19),
    "resnet50": Row("Resnet50", _pretrained("resnet50"), 53.06, 45.86),
    "resnet101": Row("Resnet101", _pretrained("resnet101"), 55.40, 51.71),
    "margin-1": Row("triplet loss, margin 1", {"strategy": "drawn", "margin": 1.0}, 71.60, 61.21),
    "margin-2": Row("triplet loss, margin 2", {"strategy": "drawn", "margin": 2.0}, 70.06, 61.15),
    "embedding-layer": Row(
        "triplet loss, additional embedding layer",
        {"strategy": "drawn", "margin": 1.0, "embedding": 128},
        63.73,
        61.68,
    ),
    "semi-hard": Row("SemiHardNegative selector", {"strategy": "semi-hard"}, 85.06, 86.80),
    "hard": Row("HardestNegative selector", {"strategy": "hard"}, 36.53, 29.44),
    "random-hard": Row("RandomNegative selector", {"strategy": "random-hard"}, 84.26, 86.76),
    "hash-alpha-16": Row("hashing, alpha 16", _hashing(ALPHA), 79.20, 84.83),
    "hash-alpha-1-16": Row("hashing, alpha 1 to 16", _hashing(RISING_ALPHA), 81.90, 79.55),
}

PRESETS: Presets = {
    "paper": {},
    "quick": {"width": 0.25, "epochs": 5},  # all 13 rows in minutes on two cores
}

#: Beside the preset of the same name, for rows that hash: Table 1's 15 epochs, and the quantised ones after.
_HASHING_PRESETS: Presets = {
    "paper": {"epochs": 20},
    "quick": {"epochs": 7, "epochs_per_alpha": 1, "quantization_after": 5},
}


def row_config(name: str, preset: str = "paper", **given: Any) -> DeepHashConfig:
    """The settings of a row of Table 1 under a preset; what is given wins.

    >>> config = row_config("hash-alpha-1-16", epochs=18)
    >>> config.loss, config.bits, config.epochs, config.alphas[-1], config.quantization(16)
    ('dtsh', 48, 18, 16.0, 10.0)
    """
    inputs.one_of("row", name, tuple(ROWS))
    inputs.one_of("preset", preset, tuple(PRESETS))
    row = ROWS[name]
    schedule = _HASHING_PRESETS[preset] if row.hashes else {}
    settings = {**PRESETS[preset], **schedule, **row.settings, **given}
    return DeepHashConfig(**settings, row=name, preset=preset)
