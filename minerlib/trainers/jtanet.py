"""JTANet: one encoder trained as an autoencoder and as a Siamese network on online-mined triplets.

    loss = wAE * sum_i MSE(I_i, R_i) + wSM * triplet margin(F / |F|) + wFR * sum_i |F_i|^2

over the images I_i of a batch, their reconstructions R_i and their features F_i. Triplets are mined among
the L2-normalised features of the batch, one negative for every pair of images of one class; the
regularisation holds the raw ones. Retrieval ranks the training features by Euclidean distance to the feature
of each held-out image, both raw.

Source: JTANet, equations 1-14 and section 4. On a CPU a run is the same to the last bit every time, resumed
or not, for one number of torch threads.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from minerlib.losses import triplet_margin
from minerlib.results import Triplets
from minerlib.retrieval import precision_at
from minerlib.trainers import common, data, report
from minerlib.trainers.images import Split
from minerlib.trainers.jtanet_config import JTANetConfig
from minerlib.trainers.loop import Batch, History, Loop, seeded, shuffled
from minerlib.trainers.networks import JTANet
from minerlib.trainers.settings import plain
from minerlib.trainers.validation import MiningRecord, StepMiner

__all__ = ["JTANetConfig", "JTANetResult", "loss_terms", "retrieval_precision", "train"]

METRIC = "sqeuclidean"
FULL_BATCHES = "Batches that the end of an epoch cut short are left out, as the losses are sums over a batch."
RETRIEVED = tuple(range(5, 101, 5))
LOSS_NAMES = {"ae": "AE loss", "siamese": "SE loss", "fr": "RE loss", "total": "TOTAL loss"}  # as in Fig. 8


@dataclass(frozen=True)
class JTANetResult:
    """What a run found, and where it was written."""

    config: JTANetConfig
    train_images: int
    held_out_images: int
    history: History
    precision: dict[int, float]  # images retrieved: mean precision in per cent
    mining: MiningRecord
    seconds: float  # training and evaluation, all parts of a resumed run
    files: dict[str, Path]


def train(config: JTANetConfig, *, pictures: bool = True) -> JTANetResult:
    """Train, measure retrieval, and write checkpoint, tables and pictures into `config.output`.

    Files: `checkpoint.pt` (after every epoch), `metrics.csv` (one line a step), `summary.json`,
    `precision.png` (like Fig. 7), `losses.png` (like Fig. 8) and `report.html`, which holds them all. An
    earlier run in the folder is overwritten, unless `resume` goes on from its checkpoint. Without `pictures`
    it leaves the first three, as the runs of a sweep do.

    Raises `ValueError` and `OSError` for settings that cannot be met, `FileError` for a data set that is not
    as published, and `MinerMismatch` where `validate` finds a triplet that two miners chose differently.
    Memory: 12 kB an image of the set, beside what the networks take for one batch (about 4 GB at full width
    and 256 images).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     config = JTANetConfig(epochs=1, width=1 / 64, output=Path(folder), progress=False)
    ...     len(train(config).history["step"])
    6
    """
    split = data.load(config)
    record = MiningRecord()
    miner = StepMiner(
        config.strategy,
        seed=config.seed,
        backend=config.miner_backend,
        validate=config.validate,
        record=record,
        margin=config.margin,
        metric=METRIC,
        pairs="combinations",
    )

    def step(loop: Loop, batch: Batch) -> dict[str, Tensor]:
        features, reconstructions = loop.forward(batch.images)
        units, labels, anchors = loop.gather(functional.normalize(features.float()), batch.labels)
        triplets = miner(units, labels, batch.step, anchors)
        return loss_terms(batch.images, reconstructions, features, units, triplets, config)

    network = seeded(lambda: JTANet(config.embedding_length, config.width), config.seed)
    batches = shuffled(len(split.train), config.batch_size, config.seed)
    loop = Loop("minerlib jtanet", config, network, split.train, batches, step, record=record)
    loop.run()
    start = time.perf_counter()
    trained = cast(JTANet, loop.network)
    result = JTANetResult(
        config=config,
        train_images=len(split.train),
        held_out_images=len(split.held_out),
        history=loop.history,
        precision=retrieval_precision(trained, split, config.batch_size, loop.device),
        mining=record,
        seconds=loop.seconds + time.perf_counter() - start,
        files=loop.files | {name: config.output / file for name, file in _FILES.items()},
    )
    if loop.ranks.main:
        _write_summary(result)
        if pictures:
            _write_report(result)
    return result


def loss_terms(
    images: Tensor,  # [B, 3, 64, 64]
    reconstructions: Tensor,  # [B, 3, 64, 64]
    features: Tensor,  # [B, EL] raw
    units: Tensor,  # [B, EL] L2-normalised
    triplets: Triplets,
    config: JTANetConfig,
) -> dict[str, Tensor]:  # ae, siamese, fr, total: scalars
    """The three losses of a batch, unweighted, and their weighted total (equation 1).

    `ae` adds up the mean squared errors of the images (equations 2 and 3), `siamese` is the triplet margin
    loss (equations 4-7 under `reduction="hinge-of-sums"`), `fr` adds up the squared norms of the features
    (8 and 9).
    """
    ae = (images - reconstructions).square().mean(dim=(1, 2, 3)).sum()
    siamese = triplet_margin(units, triplets, config.margin, METRIC, config.reduction)
    fr = features.square().sum()
    by_ae, by_siamese, by_fr = config.weights
    return {"ae": ae, "siamese": siamese, "fr": fr, "total": by_ae * ae + by_siamese * siamese + by_fr * fr}


def retrieval_precision(
    network: JTANet,
    split: Split,
    batch_size: int,
    device: torch.device,
) -> dict[int, float]:
    """Mean precision in per cent at 5, 10 ... 100 retrieved: held-out images query the training images.

    Source: JTANet, equations 10-14. Cut-offs beyond the number of training images are left out.
    """
    database = common.extract_features(network.siamcoder, split.train, batch_size, device)
    queries = common.extract_features(network.siamcoder, split.held_out, batch_size, device)
    cutoffs = [k for k in RETRIEVED if k <= len(database)]
    if not cutoffs or not len(queries):
        raise ValueError(
            f"held_out: expected a split with {RETRIEVED[0]} images to retrieve from and one to query with, "
            f"got {len(database)} and {len(queries)}"
        )
    precision = precision_at(
        queries,
        split.held_out.labels.to(device),
        cutoffs,
        database=database,
        database_labels=split.train.labels.to(device),
        metric="euclidean",
    )
    return {k: 100 * value for k, value in zip(cutoffs, precision, strict=True)}


def loss_curves(history: History) -> tuple[list[int], dict[str, list[float]]]:
    """The steps of whole batches, and each loss in them under the name that Fig. 8 gives it."""
    whole = [place for place, count in enumerate(history["images"]) if count == max(history["images"])]
    losses = {name: [history[key][place] for place in whole] for key, name in LOSS_NAMES.items()}
    return [history["step"][place] for place in whole], losses


_FILES = {
    "summary": "summary.json",
    "precision": "precision.png",
    "losses": "losses.png",
    "report": "report.html",
}


def _facts(result: JTANetResult) -> dict[str, Any]:
    return {
        "train_images": result.train_images,
        "held_out_images": result.held_out_images,
        "seconds": result.seconds,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _write_summary(result: JTANetResult) -> None:
    common.write_json(
        result.files["summary"],
        {
            "config": plain(result.config),
            **_facts(result),
            "precision_percent": result.precision,
            "mining": asdict(result.mining),
            "last_step": {name: values[-1] for name, values in result.history.items()},
        },
    )


def _write_report(result: JTANetResult) -> None:
    config, files, history = result.config, result.files, result.history
    title = f"JTANet, {config.strategy}, EL {config.embedding_length}, width {config.width:g}, {config.data}"
    report.plot_curves(
        files["precision"],
        {config.strategy: result.precision},
        title,
        "images retrieved",
        "mean precision (%)",
    )
    report.plot_losses(files["losses"], *loss_curves(history), title, "loss, summed over the batch")
    rows = [(str(k), value) for k, value in result.precision.items()]
    report.write_html(
        files["report"],
        title,
        f"One run of minerlib train jtanet, preset {config.preset}.",
        [
            report.Table(
                "Mean precision of held-out images (%)", ("images retrieved", config.strategy), rows
            ),
            report.Picture("Precision against images retrieved, as in Fig. 7", files["precision"]),
            report.Picture("Losses, as in Fig. 8", files["losses"], FULL_BATCHES),
            report.mining_table({config.strategy: result.mining}),
            report.Facts("Settings", plain(config)),
            report.Facts("This run", _facts(result)),
        ],
    )
