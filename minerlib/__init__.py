"""minerlib: triplet mining and exact search for PyTorch, with the same answers on every backend."""

from __future__ import annotations

from minerlib.average_precision import hamming_map
from minerlib.dispatch import BackendUnavailable, explain
from minerlib.hamming import hamming_distance, hamming_range, hamming_search, pack_bits, unpack_bits
from minerlib.hamming_index import HammingIndex
from minerlib.mining import count_triplets, mine
from minerlib.neighbors import nearest, pairwise_distance
from minerlib.results import Neighbors, PaddedTriplets, RangeNeighbors, TripletCounts, Triplets
from minerlib.threads import get_num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
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
    "nearest",
    "pack_bits",
    "pairwise_distance",
    "set_num_threads",
    "unpack_bits",
]
