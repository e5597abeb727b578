"""What every trainer can be told, checked before any work is done. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from minerlib import inputs

#: What may differ between a run and the one that goes on with it: it changes no number, or none yet trained.
NOT_DECISIVE = (
    "data_folder", "cache", "epochs", "validate", "miner_backend", "device", "output", "resume", "progress",
    "preset",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """The settings that all trainers share; each trainer adds its own and its paper's defaults."""

    data: str = "digits"
    data_folder: Path | None = None  # where the set lies; the digits need none
    cache: Path | None = None  # folder for decoded images; by default the user's cache folder
    held_out: float | None = None  # share of every class that training never sees; by default the set's own
    side: int | None = None  # pixels of an image's side; by default the trainer's own, or the set's
    epochs: int = 50
    batch_size: int = 256
    learning_rate: float = 1e-3
    strategy: str = "semi-hard"
    margin: float = 0.5
    seed: int = 0
    validate: bool = False  # run the naive miner beside the fast one on every step
    miner_backend: str = "auto"  # who chooses the triplets
    device: str = "cpu"
    amp: bool = False  # networks in bfloat16 where torch thinks it safe; mining and losses stay in float32
    output: Path = Path("runs")
    resume: bool = False
    progress: bool = True
    preset: str = "paper"  # the name under which the settings were chosen

    def check_common(self, strategies: tuple[str, ...]) -> None:
        """Refuse what no run could use; `strategies` are the trainer's."""
        inputs.one_of("strategy", self.strategy, strategies)
        inputs.integer("epochs", self.epochs, 1, 10**6)
        inputs.integer("batch_size", self.batch_size, 2, 2**20)
        inputs.seed_value(self.seed)
        inputs.finite_non_negative("margin", self.margin)
        positive("learning_rate", self.learning_rate)
        if self.side is not None:
            inputs.integer("side", self.side, 1, 2**12)
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise ValueError(f"held_out: expected a share between 0 and 1, got {self.held_out}")


def positive(name: str, value: float) -> None:
    """Refuse a number that is not above zero."""
    if not inputs.finite_non_negative(name, value) > 0:
        raise ValueError(f"{name}: expected a number above 0, got {value}")


def decisive(settings: Settings) -> dict[str, Any]:
    """What decides the numbers of a run: a checkpoint is continued only under the same values.

    >>> sorted(decisive(Settings()))[:4]
    ['amp', 'batch_size', 'data', 'held_out']
    """
    return {
        field.name: getattr(settings, field.name)
        for field in fields(settings)
        if field.name not in NOT_DECISIVE
    }


def plain(settings: Settings) -> dict[str, Any]:
    """All settings as JSON can hold them."""
    return {
        field.name: str(value) if isinstance(value := getattr(settings, field.name), Path) else value
        for field in fields(settings)
    }


Presets = Mapping[str, Mapping[str, Any]]  # settings by name for `--preset`; what is given beside it wins
