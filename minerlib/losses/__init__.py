"""Losses with gradients, in memory that does not grow with triplets times dimensions.

Functions here, and classes of the same names for those who configure objects (`TripletMargin`, `BatchAll`,
...). On the host the triplet and batch-all losses run in the native extension, forward and backward in one
pass; elsewhere, and for the others, in plain torch, a tile of anchors at a time. All work under autocast (in
float32 or better) and under `torch.compile(fullgraph=True)`, where each is one operator.
"""

from __future__ import annotations

from minerlib.inputs import METRICS
from minerlib.losses._checks import REDUCTIONS
from minerlib.losses.batch import batch_all, easy_positive, easy_positive_distance, nca, proxy_nca
from minerlib.losses.modules import (
    DTSH,
    EPEN,
    EPHN,
    HPEN,
    HPHN,
    NCA,
    Assorted,
    BatchAll,
    DistanceWeighted,
    EasyPositive,
    EasyPositiveDistance,
    Mined,
    ProxyNCA,
    TripletMargin,
)
from minerlib.losses.triplet import (
    assorted,
    distance_weighted,
    dtsh,
    epen,
    ephn,
    hpen,
    hphn,
    mined,
    triplet_margin,
)

__all__ = [
    "DTSH",
    "EPEN",
    "EPHN",
    "HPEN",
    "HPHN",
    "METRICS",
    "NCA",
    "REDUCTIONS",
    "Assorted",
    "BatchAll",
    "DistanceWeighted",
    "EasyPositive",
    "EasyPositiveDistance",
    "Mined",
    "ProxyNCA",
    "TripletMargin",
    "assorted",
    "batch_all",
    "distance_weighted",
    "dtsh",
    "easy_positive",
    "easy_positive_distance",
    "epen",
    "ephn",
    "hpen",
    "hphn",
    "mined",
    "nca",
    "proxy_nca",
    "triplet_margin",
]
