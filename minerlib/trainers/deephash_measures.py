"""What DeepHash features are worth: KNN accuracy and mAP, as floats and as codes; and how they lie, by t-SNE.

Held-out images query the training images. Codes are the signs of the features: of those that were trained to
be codes as they are, of all others after subtracting the training images' mean, without which features that
end in a ReLU would all have one sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from minerlib import hamming_map, pack_bits
from minerlib.retrieval import knn_accuracy, mean_average_precision
from minerlib.trainers import report
from minerlib.trainers.deephash_config import DeepHashConfig

#: Names of the measures, with their words; all are per cent.
MEASURES = {
    "knn": "KNN accuracy",
    "map": "mAP",
    "code_knn": "KNN, codes",
    "code_map": "mAP, codes",
    "code_map_script": "mAP, codes, script",
}
Measures = dict[str, float]  # by key of MEASURES

_PLOTTED = 1000  # images; t-SNE takes time that grows with their number
_PERPLEXITY = 30.0


@dataclass(frozen=True, eq=False)
class Features:
    """Features of the training images and of those that query them, and of what classes they are."""

    database: Tensor  # [M, D]
    database_labels: Tensor  # [M]
    queries: Tensor  # [Q, D]
    query_labels: Tensor  # [Q]
    are_codes: bool  # whether their signs were trained to be codes

    def signed(self) -> tuple[Tensor, Tensor]:  # [M, D], [Q, D]
        """Database and queries, moved so that their signs are their codes."""
        origin = 0.0 if self.are_codes else self.database.mean(dim=0)
        return self.database - origin, self.queries - origin


def measure(features: Features, config: DeepHashConfig) -> Measures:
    """KNN accuracy and mAP over whole rankings in per cent, by Euclidean and by Hamming distance.

    `code_map` is the exact expectation over the orders of tied codes; `code_map_script` is what the
    evaluation script of deep-hashing repositories would print, flaws included (see `minerlib.hamming_map`).
    """
    database_labels, query_labels = features.database_labels, features.query_labels
    k = min(config.neighbours, len(features.database))
    floats: dict[str, Any] = {"database": features.database, "database_labels": database_labels}
    database, queries = (pack_bits(rows) for rows in features.signed())
    codes: dict[str, Any] = {"database": database, "database_labels": database_labels, "metric": "hamming"}
    ranked = (queries, query_labels, database, database_labels)
    shares = {
        "knn": knn_accuracy(features.queries, query_labels, k, **floats),
        "map": mean_average_precision(features.queries, query_labels, **floats),
        "code_knn": knn_accuracy(queries, query_labels, k, **codes),
        "code_map": hamming_map(*ranked, ties="expected"),
        "code_map_script": hamming_map(*ranked, ties="script"),
    }
    return {name: 100 * share for name, share in shares.items()}


def plot_tsne(
    path: Path,
    features: Features,
    classes: Sequence[str],
    seed: int,
    title: str,
) -> None:
    """The queries by t-SNE, coloured by class, as in Fig. 1; codes before and after sign, as in Fig. 2."""
    labels = features.query_labels[:_PLOTTED].cpu().numpy()
    rows = features.queries[:_PLOTTED]
    panels = {"features": rows}
    if features.are_codes:
        panels = {"before sign": rows, "after sign": rows.sign()}
    _draw(path, {name: tsne(part, seed) for name, part in panels.items()}, labels, classes, title)


def tsne(
    rows: Tensor,  # [N, D]
    seed: int,
) -> np.ndarray:  # [N, 2]
    """scikit-learn's t-SNE, at a perplexity that few rows allow too; fewer than four lie in one point."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(rows) < 4:
        return np.zeros((len(rows), 2))
    # init by chance: principal components are not defined where all rows are one, as collapsed features are
    perplexity = min(_PERPLEXITY, (len(rows) - 1) / 3)
    layout = TSNE(perplexity=perplexity, init="random", random_state=seed % 2**32)
    with threadpool_limits(1):  # threads would wait for one another in each of its thousand small steps
        places: np.ndarray = layout.fit_transform(rows.cpu().double().numpy())
    return places


def _draw(
    path: Path,
    panels: Mapping[str, np.ndarray],  # by name: [N, 2]
    labels: np.ndarray,  # [N]
    classes: Sequence[str],
    title: str,
) -> None:
    figure = report.figure(1 + 5 * len(panels), 5)
    figure.suptitle(title)
    colours = _colours(len(classes))
    for number, (name, places) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), number)
        for label, shown in enumerate(classes):
            here = places[labels == label]
            axes.scatter(here[:, 0], here[:, 1], s=9, color=colours[label], label=shown)
        axes.set(title=name, xticks=[], yticks=[])
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles[:20], names[:20], loc="outside right center", fontsize="small", markerscale=2)
    report.save(figure, path)


def _colours(count: int) -> list[tuple[float, ...]]:
    from matplotlib import colormaps

    few, many = colormaps["tab10"], colormaps["hsv"]
    return [tuple(few(label)) if count <= 10 else tuple(many(label / count)) for label in range(count)]
