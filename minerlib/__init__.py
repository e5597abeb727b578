"""minerlib: triplet mining and exact search for PyTorch, with the same answers on every backend."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from minerlib import miners
from minerlib.average_precision import hamming_map
from minerlib.dispatch import BackendUnavailable, explain
from minerlib.hamming import hamming_distance, hamming_range, hamming_search, pack_bits, unpack_bits
from minerlib.hamming_index import HammingIndex
from minerlib.mining import count_triplets, mine
from minerlib.neighbors import nearest, pairwise_distance
from minerlib.results import Neighbors, PaddedTriplets, RangeNeighbors, TripletCounts, Triplets
from minerlib.threads import get_num_threads, set_num_threads

if TYPE_CHECKING:
    from minerlib.memory import CrossBatchMemory

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "CrossBatchMemory",
    "HammingIndex",
    "Neighbors",
    "PaddedTriplets",
    "RangeNeighbors",
    "TripletCounts",
    "Triplets",
    "count_triplets",
    "explain",
    "get_num_threads",
    "hamming_distance",
    "hamming_map",
    "hamming_range",
    "hamming_search",
    "mine",
    "miners",
    "nearest",
    "pack_bits",
    "pairwise_distance",
    "set_num_threads",
    "unpack_bits",
]


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for."""
    if name == "CrossBatchMemory":
        return importlib.import_module("minerlib.memory").CrossBatchMemory
    if name in ("distributed", "losses", "memory", "offline", "samplers"):
        return importlib.import_module(f"minerlib.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
