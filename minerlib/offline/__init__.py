"""Triplets mined offline: over a whole data set before training (EXT section II; SPEC section 9).

found = offline.mine("embeddings.npy", "labels.npy", offline.EXTREME_CASES, output="triplets.parquet")
"""

from minerlib.offline._cases import CASES, EXTREME_CASES, CaseTriplets
from minerlib.offline.mining import Mined, mine

__all__ = ["CASES", "EXTREME_CASES", "CaseTriplets", "Mined", "mine"]
