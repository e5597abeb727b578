"""The usual public way to mine online triplets: a Python loop over anchor-positive pairs.

For each label and each pair (i, j), i < j, of its rows: take row i of a torch matrix of squared distances at
the rows of other labels, turn `d(i, j) - d(i, n) + margin` into a NumPy array, and let a selector pick one.
This is the form of the widely copied selectors, and their cost: tensor indexing and a few NumPy calls a pair.
Choices per anchor are written the same way, in a loop over anchors.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch

Selector = Callable[[np.ndarray, float], int | None]


def hardest(
    losses: np.ndarray,  # [negatives]
    margin: float,
) -> int | None:
    """The negative of the largest loss, if that is positive."""
    place = int(np.argmax(losses))
    return place if losses[place] > 0 else None


def random_hard(
    losses: np.ndarray,  # [negatives]
    margin: float,
) -> int | None:
    """Any negative of positive loss."""
    eligible = np.where(losses > 0)[0]
    return int(np.random.choice(eligible)) if len(eligible) > 0 else None  # noqa: NPY002 (as it is written)


def semi_hard(
    losses: np.ndarray,  # [negatives]
    margin: float,
) -> int | None:
    """Any negative of a loss between 0 and the margin: farther than the positive, by less than the margin."""
    eligible = np.where(np.logical_and(losses > 0, losses < margin))[0]
    return int(np.random.choice(eligible)) if len(eligible) > 0 else None  # noqa: NPY002 (as it is written)


def semi_hard_nearest(
    losses: np.ndarray,  # [negatives]
    margin: float,
) -> int | None:
    """The negative of the largest loss below the margin: the nearest that is farther than the positive."""
    farther = np.where(losses < margin, losses, -np.inf)
    place = int(np.argmax(farther))
    return place if farther[place] > -np.inf else None


SELECTORS: dict[str, Selector] = {
    "hard": hardest,
    "random-hard": random_hard,
    "semi-hard": semi_hard,
    "semi-hard-nearest": semi_hard_nearest,
}

#: Of the positive and the negative of each choice per anchor: is it the farthest one?
EXTREMES = {
    "epen": (False, True),
    "ephn": (False, False),
    "hpen": (True, True),
    "hphn": (True, False),
    "batch-hard": (True, False),
    "easy-positive": (False, False),
}


def usual(strategy: str) -> Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor] | None:
    """The Python loop that is usual for a strategy, if there is one: of embeddings, labels and margin.

    >>> usual("hard")(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 0, 1]), 0.5).tolist()
    []
    """
    if strategy in SELECTORS:
        return lambda embeddings, labels, margin: mine(embeddings, labels, SELECTORS[strategy], margin)
    if strategy in EXTREMES or strategy == "assorted":
        return lambda embeddings, labels, margin: mine_extremes(embeddings, labels, strategy)
    if strategy == "distance-weighted":
        return lambda embeddings, labels, margin: mine_weighted(embeddings, labels)
    return mine_every if strategy == "all" else None


def squared_distances(
    embeddings: torch.Tensor,  # [N, D]
) -> torch.Tensor:  # [N, N]
    squares = embeddings.pow(2).sum(dim=1)
    return squares[:, None] + squares[None, :] - 2 * embeddings @ embeddings.t()


def mine(
    embeddings: torch.Tensor,  # [N, D]
    labels: torch.Tensor,  # [N]
    select: Selector,
    margin: float,
) -> torch.Tensor:  # [T, 3] int64
    distances = squared_distances(embeddings.detach().cpu())
    classes = labels.cpu().numpy()
    triplets = []
    for label in sorted(set(classes.tolist())):
        of_label = classes == label
        members = np.where(of_label)[0]
        others = np.where(~of_label)[0]
        if len(members) < 2 or len(others) == 0:
            continue
        pairs = np.array(list(combinations(members, 2)))
        positive_distances = distances[pairs[:, 0], pairs[:, 1]]
        for (anchor, positive), distance in zip(pairs, positive_distances, strict=True):
            losses = distance - distances[torch.LongTensor([anchor]), torch.LongTensor(others)] + margin
            place = select(losses.numpy(), margin)
            if place is not None:
                triplets.append([anchor, positive, others[place]])
    return torch.LongTensor(np.array(triplets, dtype=np.int64).reshape(-1, 3))


def mine_extremes(
    embeddings: torch.Tensor,  # [N, D]
    labels: torch.Tensor,  # [N]
    strategy: str,
) -> torch.Tensor:  # [T, 3] int64
    distances = squared_distances(embeddings.detach().cpu())
    classes = labels.cpu().numpy()
    triplets = []
    for anchor in range(len(classes)):
        of_label = classes == classes[anchor]
        of_label[anchor] = False
        members, others = np.where(of_label)[0], np.where(classes != classes[anchor])[0]
        if len(members) == 0 or len(others) == 0:
            continue
        case = strategy
        if strategy == "assorted":
            case = str(np.random.choice(["epen", "ephn", "hpen", "hphn"]))  # noqa: NPY002 (as it is written)
        chosen = [anchor]
        for rows, farthest in zip((members, others), EXTREMES[case], strict=True):
            apart = distances[torch.LongTensor([anchor]), torch.LongTensor(rows)].numpy()
            chosen.append(rows[int(np.argmax(apart) if farthest else np.argmin(apart))])
        triplets.append(chosen)
    return torch.LongTensor(np.array(triplets, dtype=np.int64).reshape(-1, 3))


def mine_weighted(
    embeddings: torch.Tensor,  # [N, D] of unit length
    labels: torch.Tensor,  # [N]
    nearest: float = 0.5,
    cutoff: float = 1.4,
) -> torch.Tensor:  # [T, 3] int64
    """Distance-weighted sampling: weights of an anchor's negatives by NumPy, one draw for each positive."""
    dimensions = embeddings.shape[1]
    distances = squared_distances(embeddings.detach().cpu()).clamp(min=nearest**2).sqrt().numpy()
    classes = labels.cpu().numpy()
    triplets = []
    for anchor in range(len(classes)):
        others = np.where((classes != classes[anchor]) & (distances[anchor] < cutoff))[0]
        if len(others) == 0:
            continue
        apart = distances[anchor, others].astype(np.float64)
        logs = (2.0 - dimensions) * np.log(apart) - (dimensions - 3) / 2 * np.log(1.0 - 0.25 * apart**2)
        weights = np.exp(logs - logs.max())
        for positive in np.where(classes == classes[anchor])[0]:
            if positive != anchor:
                drawn = np.random.choice(others, p=weights / weights.sum())  # noqa: NPY002 (as it is written)
                triplets.append([anchor, positive, drawn])
    return torch.LongTensor(np.array(triplets, dtype=np.int64).reshape(-1, 3))


def mine_every(
    embeddings: torch.Tensor,  # [N, D]
    labels: torch.Tensor,  # [N]
    margin: float,
) -> torch.Tensor:  # [T, 3] int64
    """Every triplet of positive loss, a pair at a time; pairs in both orders."""
    distances = squared_distances(embeddings.detach().cpu()).numpy()
    classes = labels.cpu().numpy()
    triplets = [np.zeros((0, 3), dtype=np.int64)]
    for anchor in range(len(classes)):
        others = np.where(classes != classes[anchor])[0]
        for positive in np.where(classes == classes[anchor])[0]:
            losses = distances[anchor, positive] - distances[anchor, others] + margin
            chosen = others[losses > 0]
            if positive != anchor and len(chosen) > 0:
                triplets.append(
                    np.stack([np.full_like(chosen, anchor), np.full_like(chosen, positive), chosen], axis=1)
                )
    return torch.LongTensor(np.concatenate(triplets))
