"""The two networks of the extreme-distance study, a backbone in each, and the space the first one learns.

    Embedder     images [B, 3, H, W] -> embeddings [B, D] of unit length: the triplet network
    Supervised   images [B, 3, H, W] -> class scores [B, C], through features [B, D]: the feature space

Source: EXT, Fig. 1 and section II.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from minerlib import offline
from minerlib.offline import CaseTriplets
from minerlib.trainers import common, ranks, report
from minerlib.trainers.backbones import backbone
from minerlib.trainers.extremes_config import ExtremesConfig, FeatureSpaceConfig
from minerlib.trainers.extremes_pictures import negative_flow, plot_flows
from minerlib.trainers.images import ImageSet, Split, stratified_split
from minerlib.trainers.loop import Batch, Loop, seeded, shuffled
from minerlib.trainers.validation import NAIVE, MinerMismatch, MiningRecord


class Embedder(nn.Module):
    """The triplet network: a backbone whose last layer gives the embedding, L2-normalised."""

    def __init__(self, config: ExtremesConfig | FeatureSpaceConfig) -> None:
        super().__init__()
        made = backbone(
            config.backbone, outputs=config.embedding_length, width=config.width, weights=config.weights
        )
        self.backbone, self.origin = made.network, made.origin

    def forward(
        self,
        images: Tensor,  # [B, 3, H, W]
    ) -> Tensor:  # [B, D]
        return functional.normalize(self.backbone(images).float())


class Supervised(nn.Module):
    """A classifier; its one-to-last layer is the feature space."""

    def __init__(self, config: FeatureSpaceConfig, classes: int) -> None:
        super().__init__()
        made = backbone(
            config.backbone, outputs=config.embedding_length, width=config.width, weights=config.weights
        )
        self.features, self.origin = made.network, made.origin
        self.classifier = nn.Linear(config.embedding_length, classes)

    def forward(
        self,
        images: Tensor,  # [B, 3, H, W]
    ) -> Tensor:  # [B, C]
        scores: Tensor = self.classifier(self.features(images))
        return scores


@dataclass(frozen=True, eq=False)
class FeatureSpace:
    """X2 in the feature space, with the triplets of all five cases from one pass over its distances."""

    x2: ImageSet
    features: Tensor  # [X2, D] float32
    triplets: dict[str, CaseTriplets]  # by case; rows of X2
    record: MiningRecord  # of the mining
    accuracy: float  # of the supervised network on X2, in per cent
    seconds: float  # of training


def parts_of_training(train: ImageSet, config: ExtremesConfig) -> Split:
    """X1 (`train`) and X2 (`held_out`), drawn by the seed."""
    assert config.held_out is not None
    return stratified_split(train, config.mined_share / (1 - config.held_out), config.seed)


def has_feature_space(folder: Path) -> bool:
    """Whether a supervised network was begun there."""
    there: bool = ranks.current().agree((folder / "checkpoint.pt").exists())
    return there


def feature_space(
    train: ImageSet,
    config: ExtremesConfig,
    folder: Path,
) -> FeatureSpace:
    """Train the supervised network on X1, embed X2, and mine all five cases there, in one pass.

    The network's checkpoint lies in `folder`, and under `config.resume` what lies there is gone on with.
    Under `config.validate` the naive miner mines X2 too: `MinerMismatch` where one triplet differs.
    """
    x = parts_of_training(train, config)
    shared = {field.name: getattr(config, field.name) for field in fields(FeatureSpaceConfig)}
    own = replace(
        FeatureSpaceConfig(**shared | {"strategy": "supervised"}),
        output=folder,
        epochs=config.feature_epochs,
        margin=0.0,
        resume=config.resume and has_feature_space(folder),
        validate=False,
    )

    def step(loop: Loop, batch: Batch) -> dict[str, Tensor]:
        scores = loop.forward(batch.images).float()
        return {"total": functional.cross_entropy(scores, batch.labels, reduction="sum") / own.batch_size}

    network = seeded(lambda: Supervised(own, len(train.classes)), config.seed)
    batches = shuffled(len(x.train), own.batch_size, config.seed)
    loop = Loop("minerlib extremes feature space", own, network, x.train, batches, step)
    loop.run()
    supervised = cast(Supervised, loop.network)
    features = common.extract_features(supervised.features, x.held_out, own.batch_size, loop.device)
    with torch.no_grad():
        predicted = supervised.classifier(features).argmax(1).cpu()
    features = loop.ranks.agree(features.cpu())  # the same bits on every rank
    record = MiningRecord()
    triplets = mine_cases(features, x.held_out.labels, config, record)
    return FeatureSpace(
        x.held_out,
        features,
        triplets,
        record,
        100 * (predicted == x.held_out.labels).double().mean().item(),
        loop.seconds,
    )


def mine_cases(
    features: Tensor,  # [N, D] float32
    labels: Tensor,  # [N]
    config: ExtremesConfig,
    record: MiningRecord,
) -> dict[str, CaseTriplets]:
    """The triplets of the five cases, by the backend that the settings name."""

    def mined(backend: str) -> tuple[dict[str, CaseTriplets], float]:
        start = time.perf_counter()
        found = offline.mine(
            features, labels, offline.EXTREME_CASES, outlier_percentile=config.outlier_percentile,
            seed=config.seed, backend=backend, progress=False,
        )  # fmt: skip
        return dict(found), time.perf_counter() - start

    chosen, seconds = mined(config.miner_backend)
    record.triplets = sum(len(found.anchors) for found in chosen.values())
    record.seconds = seconds
    if config.validate:
        naive_chose = config.miner_backend == NAIVE
        expected, other_seconds = mined("auto" if naive_chose else NAIVE)
        record.validated_steps, record.validated_triplets = 1, record.triplets
        record.fast_seconds, record.naive_seconds = (
            (other_seconds, seconds) if naive_chose else (seconds, other_seconds)
        )
        for case, found in chosen.items():
            pairs = zip(found[:3], expected[case][:3], strict=True)
            if not all(torch.equal(ours, theirs) for ours, theirs in pairs):
                record.mismatches += 1
                raise MinerMismatch(f"offline case {case}: the triplets of X2 differ", record)
    return chosen


#: The panels of Fig. 4: the cases whose negatives they show.
FLOWS = {
    "nearest negatives (EPHN, HPHN)": "ephn",
    "farthest negatives (EPEN, HPEN)": "epen",
    "assorted": "assorted",
}


def flows(space: FeatureSpace) -> dict[str, list[list[int]]]:  # [classes][classes]
    """How many anchors of each class of X2 take their negative from each other class."""
    labels, classes = space.x2.labels, len(space.x2.classes)
    return {
        title: negative_flow(space.triplets[case].anchors, space.triplets[case].negatives, labels, classes)
        for title, case in FLOWS.items()
    }


def flow_picture(path: Path, space: FeatureSpace, data: str) -> report.Picture:
    """Draw Fig. 4 for this feature space."""
    plot_flows(path, flows(space), space.x2.classes, f"Whose negatives are whose, offline, on {data}")
    return report.Picture(
        "Negatives between classes, as in Fig. 4",
        path,
        "Row i, column j: anchors of class i whose negative is of class j.",
    )


def space_facts(space: FeatureSpace) -> dict[str, Any]:
    """The feature space in a few numbers."""
    record = space.record
    return {
        "images of X2": len(space.x2),
        "triplets of all five cases": record.triplets,
        "accuracy of the supervised network on X2 (%)": round(space.accuracy, 2),
        "seconds of training": round(space.seconds, 1),
        "milliseconds of mining": round(1e3 * record.seconds, 1),
        "validated triplets": record.validated_triplets,
        "mismatches": record.mismatches,
    }
