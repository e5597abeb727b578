"""DeepHashing using triplet loss: features of networks, trained on triplets, and codes that are their signs.

    triplets:  mean over them of [ |f_a - f_p|^2 - |f_a - f_n|^2 + margin ]_+          (experiments 2 and 3)
    hashing:   mean over them of -ln sigmoid(t(a,p) - t(a,n) - alpha)  +  weight * mean |sign(u) - u|^2
               with t(i,j) = u_i . u_j / 2                                              (experiment 4)

Triplets are drawn from the whole set (experiment 2), or mined in batches with images of every class by one of
the three selectors, a negative for every pair of a class (experiment 3). The weight of the quantisation error
is 0 for 15 epochs, then 10; alpha is 16, or rises from 1 every three epochs.

For hashing the report names no selector. Here it is the random one, with a margin of 4 alpha between squared
distances: as |u_i - u_j|^2 = 2 bits - 4 t(i,j) between codes of -1 and 1, it picks among exactly those
triplets that fall short of alpha.

Source: the DeepHashing report, sections 3 and 4, Table 1, Figs. 1 and 2; Wang, Shi and Kitani 2016 for the
loss. On a CPU a run is the same to the last bit every time, resumed or not, for one number of torch threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from minerlib.losses import dtsh, triplet_margin
from minerlib.trainers import common, data, deephash_report, ranks
from minerlib.trainers.backbones import Backbone, NoWeights, backbone
from minerlib.trainers.deephash_config import DeepHashConfig
from minerlib.trainers.deephash_measures import Features, Measures, measure
from minerlib.trainers.images import ImageSet, Split
from minerlib.trainers.loop import Batch, Batches, History, Loop, balanced
from minerlib.trainers.validation import MiningRecord, StepMiner

__all__ = ["DeepHashConfig", "DeepHashResult", "drawn_triplets", "network", "train"]

METRIC = "sqeuclidean"
_KIND = "minerlib deephash"

Step = Callable[[Loop, Batch], dict[str, Tensor]]


@dataclass(frozen=True)
class DeepHashResult:
    """What a row found, and where it was written."""

    config: DeepHashConfig
    origin: str  # where the network's first weights came from
    train_images: int
    held_out_images: int
    history: History
    measures: Measures  # at the end
    unquantized: Measures | None  # before the quantisation weight came on, which is Table 1's point in time
    mining: MiningRecord
    seconds: float  # training and evaluation, all parts of a resumed run
    files: dict[str, Path]


def train(config: DeepHashConfig) -> DeepHashResult:
    """Train a row of Table 1, or take its network as pretrained, and measure what its features retrieve.

    Files in `config.output`: `checkpoint.pt` (after every epoch), `metrics.csv` (one line a step),
    `summary.json`, `tsne.png` (like Fig. 1; before and after sign, like Fig. 2, for codes), `losses.png` and
    `report.html`, which holds them all. An earlier run in the folder is overwritten, unless `resume` goes on
    from its checkpoint.

    Raises `ValueError` and `OSError` for settings that cannot be met, `NoWeights` where a row needs
    pretrained weights that cannot be had, `FileError` for a data set that is not as published, and
    `MinerMismatch` where `validate` finds a triplet that two miners chose differently. Memory: what the
    network takes for one batch, and the features of all images.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     config = DeepHashConfig(epochs=1, width=1 / 64, side=8, output=Path(folder), progress=False)
    ...     sorted(train(config).measures)
    ['code_knn', 'code_map', 'code_map_script', 'knn', 'map']
    """
    start = network(config)
    split = data.load(config)
    record = MiningRecord()
    drawn = config.strategy == "drawn"
    labels = split.train.labels

    def after_epoch(loop: Loop) -> None:
        if config.hashes and loop.epoch == config.quantization_after < config.epochs:
            loop.kept["unquantized"] = measure(_features(loop.network, split, config, loop.device), config)

    loop = Loop(
        _KIND,
        config,
        start.network,
        split.train,
        drawn_triplets(labels, config.batch_size, config.seed) if drawn else _balanced(labels, config),
        _step(config, record),
        record=record,
        together=3 if drawn else 1,
        after_epoch=after_epoch,
    )
    if config.trains:
        loop.run()
    elif loop.ranks.main:
        common.prepare_output(config.output)
    began = time.perf_counter()
    features = _features(loop.network, split, config, loop.device)
    result = DeepHashResult(
        config=config,
        origin=start.origin,
        train_images=len(split.train),
        held_out_images=len(split.held_out),
        history=loop.history,
        measures=measure(features, config),
        unquantized=loop.kept.get("unquantized"),
        mining=record,
        seconds=loop.seconds + time.perf_counter() - began,
        files=loop.files | {name: config.output / file for name, file in deephash_report.ROW_FILES.items()},
    )
    if loop.ranks.main:
        deephash_report.write_row(result, features, split.train.classes)
    return result


def network(config: DeepHashConfig) -> Backbone:
    """The row's backbone, with a fresh layer for an embedding or for codes behind its features.

    Rows that train start from pretrained weights where those can be had (`weights="auto"`), and otherwise
    from scratch, saying so in `origin`; rows that do not train need them, or raise `NoWeights`.
    """
    outputs = config.bits if config.hashes else config.embedding

    def built(weights: str | Path | None, width: float = 1.0) -> Backbone:
        with torch.random.fork_rng(devices=[]):  # the caller's own random numbers go on undisturbed
            torch.manual_seed(config.seed)
            return backbone(config.backbone, outputs=outputs, width=width, weights=weights)

    if config.weights not in ("auto", "none"):
        file = _weights_file(Path(config.weights), config.backbone)
        return built(file, config.width if config.trains else 1.0)
    if not config.trains:
        if config.weights == "none":
            raise NoWeights(f"{config.backbone} is measured as it was pretrained, and weights are none")
        return built("torchvision")
    if config.weights == "auto" and config.width == 1:
        try:
            return built("torchvision")
        except NoWeights:
            pass
    return built(None, config.width)


def _weights_file(path: Path, backbone: str) -> Path:
    """The file itself, or in a folder the one with torchvision's name for it, like resnet18-f37072fd.pth."""
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"{backbone}-*.pth")) + sorted(path.glob(f"{backbone}.pth"))
    if not found:
        raise NoWeights(f"{path / backbone}.pth: expected the weights of {backbone}, no such file")
    return found[0]


def drawn_triplets(
    labels: Tensor,  # [N]
    batch_size: int,
    seed: int,
) -> Batches:
    """Batches of triplets drawn from the whole set: anchor, positive, negative, anchor, positive, ...

    An epoch has as many images as the set, so every third image is an anchor once; the positive is any other
    image of its class and the negative any image of another. A last batch without a triplet for every rank is
    left out.

    >>> labels = torch.arange(60) % 3
    >>> triplets = drawn_triplets(labels, batch_size=30, seed=0)(1)[0].view(-1, 3)
    >>> bool((labels[triplets[:, 0]] == labels[triplets[:, 1]]).all()), len(triplets)
    (True, 10)
    """
    order = labels.numpy().argsort(kind="stable")  # class by class
    _, first, counts = np.unique(labels.numpy()[order], return_index=True, return_counts=True)
    anchors = np.flatnonzero(np.repeat(counts, counts) > 1)  # places in `order`
    if len(first) < 2 or not len(anchors):
        raise ValueError("data: expected two classes, and two images of one of them, to draw triplets from")
    first, counts = np.repeat(first, counts), np.repeat(counts, counts)  # of each place's class

    def batches(epoch: int) -> list[Tensor]:
        chance = np.random.default_rng((seed, epoch))
        anchor = chance.permutation(anchors)[: max(1, len(labels) // 3)]
        start, size = first[anchor], counts[anchor]
        positive = start + (anchor - start + chance.integers(1, size)) % size
        negative = chance.integers(0, len(labels) - size)
        negative += np.where(negative >= start, size, 0)
        rows = torch.from_numpy(order[np.stack([anchor, positive, negative], axis=1)])
        parts = rows.split(max(1, batch_size // 3))
        return [part.reshape(-1) for part in parts if len(part) >= ranks.current().world]

    return batches


def _balanced(
    labels: Tensor,  # [N]
    config: DeepHashConfig,
) -> Batches:
    """Batches with images of every class, or of as many classes as a batch has room for."""
    classes = min(max(1, config.batch_size // config.per_class), len(labels.unique()))
    return balanced(labels, config.per_class, config.per_class * classes, config.seed)


def _step(config: DeepHashConfig, record: MiningRecord) -> Step:
    if config.strategy == "none":
        return lambda loop, batch: {}
    if config.strategy == "drawn":
        return _drawn(config)
    return _hashing(config, record) if config.hashes else _mined(config, record)


def _drawn(config: DeepHashConfig) -> Step:
    """Experiment 2: every batch is a list of triplets."""

    def step(loop: Loop, batch: Batch) -> dict[str, Tensor]:
        features, _, own = loop.gather(loop.forward(batch.images), batch.labels)
        triplets = torch.arange(own.start, own.stop, device=features.device).view(-1, 3).unbind(dim=1)
        total = triplet_margin(features, triplets, config.margin, METRIC, "sum")
        return {"total": total / (len(features) // 3)}

    return step


def _mined(config: DeepHashConfig, record: MiningRecord) -> Step:
    """Experiment 3: a selector finds the triplets among the features of a batch."""
    miner = _miner(config, config.margin, record)

    def step(loop: Loop, batch: Batch) -> dict[str, Tensor]:
        features, labels, own = loop.gather(loop.forward(batch.images), batch.labels)
        triplets = miner(features, labels, batch.step, own)
        count = loop.ranks.add_up({"triplets": len(triplets.anchors)})["triplets"]
        return {"total": triplet_margin(features, triplets, config.margin, METRIC, "sum") / max(1, count)}

    return step


def _hashing(config: DeepHashConfig, record: MiningRecord) -> Step:
    """Experiment 4: the features are codes to be; their signs are the codes."""
    miners = {alpha: _miner(config, 4 * alpha, record) for alpha in config.alphas}

    def step(loop: Loop, batch: Batch) -> dict[str, Tensor]:
        alpha, weight = config.alpha(batch.epoch), config.quantization(batch.epoch)
        codes, labels, own = loop.gather(loop.forward(batch.images), batch.labels)
        triplets = miners[alpha](codes, labels, batch.step, own)
        count = loop.ranks.add_up({"triplets": len(triplets.anchors)})["triplets"]
        triplet = dtsh(codes, triplets, alpha, 0.0, "sum") / max(1, count)
        mine = codes[own.start : own.stop]
        quantization = (mine - mine.detach().sign()).square().sum() / len(codes)
        return {"triplet": triplet, "quantization": quantization, "total": triplet + weight * quantization}

    return step


def _miner(config: DeepHashConfig, margin: float, record: MiningRecord) -> StepMiner:
    return StepMiner(
        config.strategy,
        seed=config.seed,
        backend=config.miner_backend,
        validate=config.validate,
        record=record,
        margin=margin,
        metric=METRIC,
        pairs="combinations",
    )


def _features(network: nn.Module, split: Split, config: DeepHashConfig, device: torch.device) -> Features:
    queries = _queries(split.held_out, config)
    return Features(
        database=common.extract_features(network, split.train, config.batch_size, device),
        database_labels=split.train.labels.to(device),
        queries=common.extract_features(network, queries, config.batch_size, device),
        query_labels=queries.labels.to(device),
        are_codes=config.hashes,
    )


def _queries(held_out: ImageSet, config: DeepHashConfig) -> ImageSet:
    """As many held-out images as the settings ask for, drawn by the seed."""
    if config.queries is None or config.queries >= len(held_out):
        return held_out
    order = np.random.default_rng(config.seed).permutation(len(held_out))
    return held_out.rows(torch.from_numpy(np.sort(order[: config.queries])))
