"""minerlib: triplet mining and exact search for PyTorch, with the same answers on every backend."""

from __future__ import annotations

from minerlib.dispatch import BackendUnavailable, explain
from minerlib.mining import count_triplets, mine
from minerlib.neighbors import nearest, pairwise_distance
from minerlib.results import Neighbors, PaddedTriplets, TripletCounts, Triplets
from minerlib.threads import get_num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "Neighbors",
    "PaddedTriplets",
    "TripletCounts",
    "Triplets",
    "count_triplets",
    "explain",
    "get_num_threads",
    "mine",
    "nearest",
    "pairwise_distance",
    "set_num_threads",
]
