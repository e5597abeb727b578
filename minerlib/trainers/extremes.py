"""The extreme-distance study: 12 ways to mine triplets online, 5 to mine them offline, one triplet network.

Online, each batch holds a few images of every class; its triplets are mined among the embeddings, or the loss
looks at all rows of the batch (NCA and its kin). Offline, a supervised network is trained on a part X1 of the
training data, the other part X2 is embedded in its feature space, and each image of X2 becomes the anchor
of one triplet of extreme distances; the triplet network then learns from these triplets alone.

    online    max(d(a, p) - d(a, n) + margin, 0), summed over the triplets mined: eq. 1-3, 8-12
              or the softmax forms of eq. 4-7
    offline   the same hinge, over triplets mined before training

over squared Euclidean distances of L2-normalised embeddings. Source: EXT ("Offline versus online triplet
mining based on extreme distances of histopathology patches"). On a CPU a run is the same to the last bit
every time, resumed or not, for one number of torch threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from minerlib import losses, nearest
from minerlib.results import Triplets
from minerlib.retrieval import knn_accuracy, recall_at
from minerlib.trainers import common, data, extremes_pictures, ranks, report
from minerlib.trainers.extremes_config import METHODS, ExtremesConfig, Method
from minerlib.trainers.extremes_space import (
    Embedder,
    FeatureSpace,
    feature_space,
    flow_picture,
    has_feature_space,
    space_facts,
)
from minerlib.trainers.extremes_tables import Measured, method_table
from minerlib.trainers.images import ImageSet, Split
from minerlib.trainers.loop import Batch, Batches, History, Loop, balanced, seeded, shuffled
from minerlib.trainers.settings import plain
from minerlib.trainers.validation import MiningRecord, StepMiner

__all__ = ["ExtremesConfig", "ExtremesResult", "measures", "train"]

METRIC = "sqeuclidean"
KIND = "minerlib extremes"
RETRIEVED = (1, 4, 8, 16)
SHOWN = 10  # images retrieved for a sheet
SHEETS = 10  # classes that have one
_FILES = {
    "summary": "summary.json",
    "losses": "losses.png",
    "retrievals": "retrievals.png",
    "report": "report.html",
}


@dataclass(frozen=True)
class ExtremesResult:
    """What a run found, and where it was written."""

    config: ExtremesConfig
    train_images: int  # X1 and X2
    held_out_images: int
    history: History
    measured: Measured  # train, test: {R@1, ..., Acc.: per cent}
    retrieved: dict[int, list[int]]  # a held-out image of each class: the ten others nearest to it
    mining: MiningRecord
    origin: str  # of the network's first weights
    seconds: float  # training and evaluation, all parts of a resumed run
    files: dict[str, Path]

    @property
    def method(self) -> Method:
        return METHODS[self.config.strategy]


def train(config: ExtremesConfig, space: FeatureSpace | None = None) -> ExtremesResult:
    """Train one method, measure retrieval, and write checkpoint, tables and pictures into `config.output`.

    An offline method trains the supervised network first, below `config.output`, unless a feature space is
    given (a sweep has one for all). Files: `checkpoint.pt` (after every epoch), `metrics.csv` (one line a
    step), `summary.json`, `losses.png`, `retrievals.png` (like Fig. 5), for offline methods
    `negatives.png` (like Fig. 4), and `report.html`, which holds them all. An earlier run in the folder is
    overwritten, unless `resume` goes on from its checkpoint.

    Raises `ValueError` and `OSError` for settings that cannot be met, `FileError` for a data set that is not
    as published, and `MinerMismatch` where `validate` finds a triplet that two miners chose differently.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     config = ExtremesConfig(epochs=1, width=1 / 16, side=16, output=Path(folder), progress=False)
    ...     list(train(config).measured["test"])
    ['R@1', 'R@4', 'R@8', 'R@16', 'Acc.']
    """
    split = data.load(config)
    if not METHODS[config.strategy].offline:
        loop = _online(config, split)
    else:
        if space is None:
            space, config = _own_feature_space(config, split)
        loop = _offline(config, space)
    loop.run()
    start = time.perf_counter()
    embedder = cast(Embedder, loop.network)
    of_train, of_held_out = (
        common.extract_features(embedder, part, config.batch_size, loop.device)
        for part in (split.train, split.held_out)
    )
    result = ExtremesResult(
        config=config,
        train_images=len(split.train),
        held_out_images=len(split.held_out),
        history=loop.history,
        measured=measures(of_train, split.train.labels, of_held_out, split.held_out.labels),
        retrieved=_retrieved(of_held_out, split.held_out),
        mining=loop.record,
        origin=embedder.origin,
        seconds=loop.seconds + time.perf_counter() - start,
        files=loop.files | {name: config.output / file for name, file in _FILES.items()},
    )
    if loop.ranks.main:
        _write_report(result, split, space)
    return result


def batch_loss(
    method: Method,
    rows: Tensor,  # [B, D]
    labels: Tensor,  # [B]
) -> Tensor:
    """The loss of a method that looks at all rows of a batch, summed as in equations 4-7."""
    loss: Tensor = getattr(losses, method.loss)(rows, labels, reduction="sum")
    return loss


def triplet_loss(
    rows: Tensor,  # [B, D]
    triplets: Triplets,
    margin: float,
) -> Tensor:
    """The hinges of the triplets, summed as in equations 1-3 and 8-12."""
    return losses.triplet_margin(rows, triplets, margin, METRIC, "sum")


def measures(
    train: Tensor,  # [N, D]
    train_labels: Tensor,  # [N]
    test: Tensor,  # [M, D]
    test_labels: Tensor,  # [M]
) -> dict[str, dict[str, float]]:  # train, test: {measure: per cent}
    """R@k within each set, every row a query once, and how often the closest training row is of the class.

    A training row is not its own neighbour, so that its accuracy is R@1. Ranks beyond a set are left out.
    """
    found = {}
    for name, rows, labels in (("train", train, train_labels), ("test", test, test_labels)):
        labels = labels.to(rows.device)
        cutoffs = [k for k in RETRIEVED if k < len(rows)]
        recalls = recall_at(rows, labels, cutoffs, metric=METRIC) if cutoffs else []
        found[name] = {f"R@{k}": 100 * value for k, value in zip(cutoffs, recalls, strict=True)}
    found["train"]["Acc."] = found["train"].get("R@1", 0.0)
    found["test"]["Acc."] = 100 * knn_accuracy(
        test,
        test_labels.to(test.device),
        database=train,
        database_labels=train_labels.to(test.device),
        metric=METRIC,
    )
    return found


def _online(config: ExtremesConfig, split: Split) -> Loop:
    method = METHODS[config.strategy]
    record = MiningRecord()
    miner = None
    if method.strategy is not None and (method.learns_from_triplets or config.validate):
        miner = StepMiner(
            method.strategy,
            seed=config.seed,
            backend=config.miner_backend,
            validate=config.validate,
            record=record,
            margin=config.margin,
            metric=METRIC,
        )

    def step(loop: Loop, batch: Batch) -> dict[str, Tensor]:
        rows, labels, anchors = loop.gather(loop.forward(batch.images), batch.labels)
        if miner is None:
            record.steps += 1  # mined nothing
        else:
            triplets = miner(rows, labels, batch.step, anchors)
            if method.learns_from_triplets:
                return {"total": triplet_loss(rows, triplets, config.margin)}
        whole = batch_loss(method, rows, labels)
        return {"total": whole / loop.ranks.world}  # every rank has the whole batch's

    labels = split.train.labels
    classes = min(config.batch_size // config.per_class, len(labels.unique()))
    batches = balanced(labels, config.per_class, classes * config.per_class, config.seed)
    return _loop(config, split.train, batches, step, record)


def _offline(config: ExtremesConfig, space: FeatureSpace) -> Loop:
    mined = space.triplets[str(METHODS[config.strategy].strategy)]
    triplets = torch.stack(mined[:3], dim=1)  # [T, 3]
    order = shuffled(len(triplets), config.batch_size // 3, config.seed)

    def batches(epoch: int) -> list[Tensor]:
        return [triplets[chosen].flatten() for chosen in order(epoch)]

    def step(loop: Loop, batch: Batch) -> dict[str, Tensor]:
        rows, _, own = loop.gather(loop.forward(batch.images), batch.labels)
        of_batch = torch.arange(own.start, own.stop, device=rows.device).view(-1, 3)
        record.steps += 1
        record.triplets += len(of_batch)
        return {"total": triplet_loss(rows, Triplets(*of_batch.T), config.margin)}

    record = MiningRecord(
        validated_steps=space.record.validated_steps,  # one: all of X2 at once
        validated_triplets=space.record.validated_steps * len(triplets),
    )
    return _loop(config, space.x2, batches, step, record, together=3)


def _loop(
    config: ExtremesConfig,
    images: ImageSet,
    batches: Batches,
    step: Callable[[Loop, Batch], dict[str, Tensor]],
    record: MiningRecord,
    together: int = 1,
) -> Loop:
    network = seeded(lambda: Embedder(config), config.seed)
    return Loop(KIND, config, network, images, batches, step, record=record, together=together)


def _own_feature_space(config: ExtremesConfig, split: Split) -> tuple[FeatureSpace, ExtremesConfig]:
    """The feature space of one run. A run that was stopped while it was trained has no checkpoint yet."""
    folder, checkpoint = config.output / "feature-space", config.output / "checkpoint.pt"
    begun, far = ranks.current().agree((has_feature_space(folder), checkpoint.exists()))
    if config.resume and not (begun or far):
        raise FileNotFoundError(f"{checkpoint}: no checkpoint to resume from")
    return feature_space(split.train, config, folder), replace(config, resume=config.resume and far)


def _retrieved(
    embeddings: Tensor,  # [N, D]
    images: ImageSet,
) -> dict[int, list[int]]:
    """For the first image of each class (of at most `SHEETS`) the others nearest to it."""
    if len(images) < 2:
        return {}
    queries = [int((images.labels == label).nonzero()[0]) for label in images.labels.unique()[:SHEETS]]
    hits = nearest(
        embeddings[queries], embeddings, min(SHOWN + 1, len(images)), metric=METRIC
    ).indices.tolist()
    return {
        query: [row for row in found if row != query][:SHOWN]
        for query, found in zip(queries, hits, strict=True)
    }


# ------------------------------------------------------------------ what a run leaves


def _write_report(result: ExtremesResult, split: Split, space: FeatureSpace | None) -> None:
    config, files, history = result.config, result.files, result.history
    kind = "offline" if result.method.offline else "online"
    title = f"Extreme distances: {result.method.title} {kind} on {config.data}"
    report.plot_losses(files["losses"], history["step"], {"total loss": history["total"]}, title)
    classes = split.held_out.classes
    sheet = [
        (classes[int(split.held_out.labels[query])], query, hits) for query, hits in result.retrieved.items()
    ]
    extremes_pictures.plot_retrievals(
        files["retrievals"], split.held_out, sheet, f"{title}: nearest held-out images"
    )
    facts = {
        "train_images": result.train_images,
        "held_out_images": result.held_out_images,
        "backbone": f"{config.backbone}, width {config.width:g}, {result.origin}",
        "seconds": result.seconds,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    parts: list[report.Part] = [
        method_table(result.method.offline, {config.strategy: result.measured}, config.data),
        report.Picture(
            "Retrieved for an image of each class, wrong hits framed, as in Fig. 5", files["retrievals"]
        ),
        report.Picture("Loss, summed over the triplets of a batch", files["losses"]),
    ]
    of_space = {} if space is None else space_facts(space)
    if space is not None:
        parts.insert(1, flow_picture(config.output / "negatives.png", space, config.data))
        parts.append(report.Facts("Feature space", of_space))
    parts += [
        report.mining_table({result.method.title: result.mining}),
        report.Facts("Settings", plain(config)),
        report.Facts("This run", facts),
    ]
    report.write_html(
        files["report"], title, f"One run of minerlib train extremes, preset {config.preset}.", parts
    )
    common.write_json(
        files["summary"],
        {
            "config": plain(config),
            **facts,
            "feature_space": of_space,
            "measures_percent": result.measured,
            "retrieved": result.retrieved,
            "mining": asdict(result.mining),
            "last_step": {name: values[-1] for name, values in history.items()},
        },
    )
