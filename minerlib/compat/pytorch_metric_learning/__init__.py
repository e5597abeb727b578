"""pytorch-metric-learning's miners, answered by minerlib: change the import line and nothing else.

    from pytorch_metric_learning import distances, losses, miners                          # before
    from minerlib.compat.pytorch_metric_learning import distances, losses, miners          # after

`miners` here has BatchHardMiner, BatchEasyHardMiner, TripletMarginMiner, DistanceWeightedMiner,
MultiSimilarityMiner and PairMarginMiner as subclasses of the originals, and everything else that the
original module has. Other names (`losses`, `distances`, `reducers` ...) are the original package's own.
See docs/migration.md for what is served, what falls back, and where answers may differ.
"""

from __future__ import annotations

import importlib
from typing import Any

try:
    import pytorch_metric_learning as _original
except ImportError as error:
    raise ImportError(
        "minerlib.compat.pytorch_metric_learning needs the package it stands in for: "
        f"pip install 'pytorch-metric-learning>=2.9' ({error})"
    ) from error

from minerlib.compat.pytorch_metric_learning import miners
from minerlib.compat.pytorch_metric_learning.miners import (
    BatchEasyHardMiner,
    BatchHardMiner,
    DistanceWeightedMiner,
    MultiSimilarityMiner,
    PairMarginMiner,
    TripletMarginMiner,
)

__all__ = [
    "BatchEasyHardMiner",
    "BatchHardMiner",
    "DistanceWeightedMiner",
    "MultiSimilarityMiner",
    "PairMarginMiner",
    "TripletMarginMiner",
    "miners",
]


def __getattr__(name: str) -> Any:
    """What this package does not replace is the original's own."""
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"pytorch_metric_learning.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"pytorch_metric_learning.{name}":
                raise
        if hasattr(_original, name):
            return getattr(_original, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
