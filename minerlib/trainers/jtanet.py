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
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from minerlib.losses import triplet_margin
from minerlib.results import Triplets
from minerlib.retrieval import precision_at
from minerlib.trainers import common, data, report
from minerlib.trainers.data import ImageSet, Split
from minerlib.trainers.jtanet_cli import add_arguments, run
from minerlib.trainers.jtanet_config import DECISIVE, JTANetConfig
from minerlib.trainers.networks import JTANet
from minerlib.trainers.validation import MiningRecord, StepMiner

__all__ = [
    "JTANetConfig",
    "JTANetResult",
    "add_arguments",
    "loss_terms",
    "retrieval_precision",
    "run",
    "train",
]

METRIC = "sqeuclidean"
RETRIEVED = tuple(range(5, 101, 5))
COLUMNS = ("epoch", "step", "ae", "siamese", "fr", "total", "triplets", "mining_ms")
_KIND = "minerlib jtanet"

History = dict[str, list[Any]]  # one list of equal length for each of COLUMNS


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


def train(config: JTANetConfig) -> JTANetResult:
    """Train, measure retrieval, and write checkpoint, tables and pictures into `config.output`.

    Files: `checkpoint.pt` (after every epoch), `metrics.csv` (one line a step), `summary.json`,
    `precision.png` (like Fig. 7) and `losses.png` (like Fig. 8). An earlier run in the folder is
    overwritten, unless `resume` goes on from its checkpoint.

    Raises `ValueError` and `OSError` for settings that cannot be met, and `MinerMismatch` where `validate`
    finds a triplet that two miners chose differently. Memory: 12 kB an image of the set, beside what the
    networks take for one batch (about 4 GB at full width and 256 images).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     config = JTANetConfig(epochs=1, width=1 / 64, output=Path(folder), progress=False)
    ...     len(train(config).history["step"])
    6
    """
    device = common.usable_device(config.device)
    split = data.load(config.data, config.held_out, config.seed)
    files = _files(config.output)
    training = _Training(config, device)
    if config.resume:
        training.load(common.load_checkpoint(files["checkpoint"], _KIND, _decisive(config)))
    common.prepare_output(config.output)
    steps = config.epochs * len(_batches(torch.arange(len(split.train)), config.batch_size))
    with tqdm(total=steps, initial=training.steps, unit="step", disable=not config.progress) as bar:
        while training.epochs < config.epochs:
            training.train_epoch(split.train, bar)
            common.save_checkpoint(files["checkpoint"], training.state())
            common.write_csv(files["metrics"], training.history)
    start = time.perf_counter()
    precision = retrieval_precision(training.network, split, config.batch_size, device)
    result = JTANetResult(
        config=config,
        train_images=len(split.train),
        held_out_images=len(split.held_out),
        history=training.history,
        precision=precision,
        mining=training.mining,
        seconds=training.seconds + time.perf_counter() - start,
        files=files,
    )
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
    precision = precision_at(
        queries,
        split.held_out.labels.to(device),
        cutoffs,
        database=database,
        database_labels=split.train.labels.to(device),
        metric="euclidean",
    )
    return {k: 100 * value for k, value in zip(cutoffs, precision, strict=True)}


class _Training:
    """All that changes while training; a checkpoint holds exactly this."""

    def __init__(self, config: JTANetConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        with torch.random.fork_rng(devices=[]):  # the caller's own random numbers go on undisturbed
            torch.manual_seed(config.seed)
            network = JTANet(config.embedding_length, config.width)
        self.network: JTANet = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate)
        self.order = torch.Generator().manual_seed(config.seed)  # of the images: the only chance in training
        self.epochs = 0
        self.seconds = 0.0
        self.history: History = {name: [] for name in COLUMNS}
        self.mining = MiningRecord()
        self.miner = StepMiner(
            config.strategy,
            seed=config.seed,
            backend=config.miner_backend,
            validate=config.validate,
            record=self.mining,
            margin=config.margin,
            metric=METRIC,
            pairs="combinations",
        )

    @property
    def steps(self) -> int:
        return len(self.history["step"])

    def train_epoch(self, images: ImageSet, bar: tqdm[Any]) -> None:
        start = time.perf_counter()
        self.network.train()
        for rows in _batches(torch.randperm(len(images), generator=self.order), self.config.batch_size):
            values = self._train_step(images.rows(rows))
            for name in COLUMNS:
                self.history[name].append(values[name])
            bar.set_postfix(epoch=values["epoch"], loss=f"{values['total']:.1f}", triplets=values["triplets"])
            bar.update()
        self.epochs += 1
        self.seconds += time.perf_counter() - start

    def _train_step(self, batch: ImageSet) -> dict[str, Any]:  # a value for each of COLUMNS
        images, labels = common.network_input(batch.images, self.device), batch.labels.to(self.device)
        features, reconstructions = self.network(images)
        units = functional.normalize(features)
        self._check_finite(units)
        mined_before = self.mining.seconds
        triplets = self.miner(units, labels, self.steps + 1)
        terms = loss_terms(images, reconstructions, features, units, triplets, self.config)
        self.optimizer.zero_grad()
        terms["total"].backward()
        self.optimizer.step()
        return {
            "epoch": self.epochs + 1,
            "step": self.steps + 1,
            **{name: term.item() for name, term in terms.items()},
            "triplets": len(triplets.anchors),
            "mining_ms": 1e3 * (self.mining.seconds - mined_before),
        }

    def _check_finite(self, units: Tensor) -> None:
        if not torch.isfinite(units).all():
            raise ValueError(
                f"learning_rate: expected one small enough to train with, got {self.config.learning_rate}; "
                f"the features are no longer finite at step {self.steps + 1}"
            )

    def state(self) -> dict[str, Any]:
        return {
            "kind": _KIND,
            "config": _decisive(self.config),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.get_state(),
            "epochs": self.epochs,
            "seconds": self.seconds,
            "history": self.history,
            "mining": asdict(self.mining),
        }

    def load(self, state: dict[str, Any]) -> None:
        if state["epochs"] > self.config.epochs:
            raise ValueError(
                f"epochs: expected at least the {state['epochs']} already trained, got {self.config.epochs}"
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.order.set_state(state["order"])
        self.epochs, self.seconds, self.history = state["epochs"], state["seconds"], state["history"]
        for name, value in state["mining"].items():
            setattr(self.mining, name, value)


def _batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """Batches in this order; a last one of a single image is left out, which no BatchNorm could normalise."""
    return [rows for rows in order.split(batch_size) if len(rows) > 1]


def _decisive(config: JTANetConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in DECISIVE}


def _files(output: Path) -> dict[str, Path]:
    names = {
        "checkpoint": "checkpoint.pt",
        "metrics": "metrics.csv",
        "summary": "summary.json",
        "precision": "precision.png",
        "losses": "losses.png",
    }
    return {key: output / name for key, name in names.items()}


def _write_report(result: JTANetResult) -> None:
    config = result.config
    title = f"JTANet, {config.strategy}, EL {config.embedding_length}, width {config.width:g}, {config.data}"
    report.plot_precision(result.files["precision"], {config.strategy: result.precision}, title)
    report.plot_losses(result.files["losses"], result.history["step"], result.history, title)
    common.write_csv(result.files["metrics"], result.history)
    common.write_json(
        result.files["summary"],
        {
            "config": {**asdict(config), "output": str(config.output)},
            "train_images": result.train_images,
            "held_out_images": result.held_out_images,
            "precision_percent": result.precision,
            "mining": asdict(result.mining),
            "seconds": result.seconds,
            "last_step": {name: values[-1] for name, values in result.history.items()},
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
    )
