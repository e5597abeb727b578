"""The 17 methods of the extreme-distance study, and what a run can be told. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from minerlib import inputs
from minerlib.trainers.settings import Presets, Settings, positive


@dataclass(frozen=True)
class Method:
    """A row of the paper's tables: what is mined, and the loss that learns from it."""

    title: str  # the row's name in the paper
    strategy: str | None  # of `minerlib.mine`, or the case of `minerlib.offline.mine`; None: nothing is mined
    loss: str = "triplet_margin"  # of `minerlib.losses`: over the mined triplets, or over all rows of a batch
    offline: bool = False

    @property
    def learns_from_triplets(self) -> bool:
        """Whether the mined triplets are what the loss sees; otherwise it looks at the whole batch."""
        return self.loss == "triplet_margin"


#: Table II: triplets of each batch.
ONLINE: dict[str, Method] = {
    "ba": Method("BA", "all"),  # eq. 1
    "bsh": Method("BSH", "semi-hard-nearest"),  # eq. 2
    "hphn": Method("HPHN", "hphn"),  # eq. 3
    "nca": Method("NCA", None, "nca"),  # eq. 4
    "pnca": Method("PNCA", None, "proxy_nca"),  # eq. 5, the proxies are the centres of the batch's classes
    "ep": Method("EP", "easy-positive", "easy_positive"),  # eq. 6
    "ep-d": Method("EP-D", "easy-positive", "easy_positive_distance"),  # eq. 7
    "dws": Method("DWS", "distance-weighted"),  # eq. 8
    "epen": Method("EPEN", "epen"),  # eq. 9
    "ephn": Method("EPHN", "ephn"),  # eq. 10
    "hpen": Method("HPEN", "hpen"),  # eq. 11
    "assorted": Method("assorted", "assorted"),  # eq. 12
}
#: Table I: triplets of the whole of X2, mined once in a supervised feature space.
OFFLINE: dict[str, Method] = {
    f"offline-{case}": Method(ONLINE[case].title, case, offline=True)
    for case in ("epen", "ephn", "hpen", "hphn", "assorted")
}
METHODS: dict[str, Method] = {**OFFLINE, **ONLINE}
SWEEPS: dict[str, tuple[str, ...]] = {
    "methods": tuple(METHODS), "offline": tuple(OFFLINE), "online": tuple(ONLINE),
}  # fmt: skip


@dataclass(frozen=True)
class ExtremesConfig(Settings):
    """The settings of one run. The defaults are the paper's section IV, on the embedded digits.

    A batch has at most `batch_size` images: as many classes as fit with `per_class` images each (45 of the
    paper's nine classes), or, offline, as many triplets as fit (16, which are 48 images). What the paper does
    not say is Adam, as for the other papers, and embeddings of unit length, which EP and DWS presume.

    >>> ExtremesConfig(strategy="ephn").margin
    0.25
    """

    held_out: float | None = 0.15
    learning_rate: float = 1e-5
    batch_size: int = 50
    strategy: str = "assorted"  # a key of METHODS
    margin: float = 0.25  # squared Euclidean distance between L2-normalised embeddings
    output: Path = Path("runs/extremes")
    mined_share: float = 0.15  # of all images: X2, where the offline methods mine; X1 is the rest of training
    embedding_length: int = 128  # of the feature space too
    per_class: int = 5
    backbone: str = "resnet18"
    width: float = 1.0  # factor on the backbone's channels
    weights: str | None = None  # "torchvision", or a file of pretrained weights; None: from scratch
    feature_epochs: int = 50  # of the supervised network
    outlier_percentile: float = 99.0  # distances beyond are no neighbours offline

    def __post_init__(self) -> None:
        self.check_common(tuple(METHODS))
        inputs.integer("embedding_length", self.embedding_length, 1, 2**16)
        inputs.integer("per_class", self.per_class, 2, 2**16)
        positive("width", self.width)
        inputs.integer("feature_epochs", self.feature_epochs, 1, 10**6)
        if self.batch_size < 2 * self.per_class:
            raise ValueError(
                f"batch_size: expected room for two classes of {self.per_class} images, got {self.batch_size}"
            )
        if self.held_out is None or not 0 < self.mined_share < 1 - self.held_out:
            raise ValueError(
                f"mined_share: expected a share between 0 and what held_out = {self.held_out} leaves, "
                f"got {self.mined_share}"
            )


@dataclass(frozen=True)
class FeatureSpaceConfig(Settings):
    """The supervised network of the offline methods: what all of them share."""

    strategy: str = "supervised"
    mined_share: float = 0.15
    embedding_length: int = 128
    backbone: str = "resnet18"
    width: float = 1.0
    weights: str | None = None


#: The paper's data set.
PAPERS_DATA = "nct-crc-he-100k"
MEASURES = ("R@1", "R@4", "R@8", "R@16", "Acc.")  # in per cent, on training and on test data

PRESETS: Presets = {
    "paper": {},
    "quick": {  # for sweeps on two cores
        "width": 1 / 4,
        "side": 32,
        "epochs": 8,
        "feature_epochs": 8,
        "learning_rate": 1e-3,
    },
}
