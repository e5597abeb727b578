"""Triplets mined offline: over a whole data set before training (EXT section II; SPEC section 9).

found = offline.mine("embeddings.npy", "labels.npy", offline.EXTREME_CASES, output="triplets.parquet")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from minerlib.files import FileError
from minerlib.offline._cases import CASES, EXTREME_CASES, CaseTriplets, HardNegatives
from minerlib.offline._ring import RankLost
from minerlib.offline.hamming import hamming_search
from minerlib.offline.mining import Estimate, Mined, estimate, mine

if TYPE_CHECKING:
    from minerlib.offline.datasets import OfflineSampler, OfflineTriplets

__all__ = [
    "CASES",
    "EXTREME_CASES",
    "CaseTriplets",
    "Estimate",
    "FileError",
    "HardNegatives",
    "Mined",
    "OfflineSampler",
    "OfflineTriplets",
    "RankLost",
    "estimate",
    "hamming_search",
    "mine",
]


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for."""
    if name in ("OfflineSampler", "OfflineTriplets"):
        return getattr(importlib.import_module("minerlib.offline.datasets"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
