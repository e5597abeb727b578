"""Whether results agree: ours with the definition exactly, others' with ours up to float32's error.

Whoever decides on float32 distances may choose otherwise where two of them lie closer than float32 can tell.
`NEAR` is far above what float32 distances of unit rows are off by, and far below what separates strangers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import minerlib

NEAR = 1e-5

Triples = tuple[np.ndarray, np.ndarray, np.ndarray]


class Disagreement(AssertionError):
    """Two results differ by more than rounding: nothing is timed."""


def demand(condition: Any, complaint: str) -> None:
    """Raise `Disagreement` unless the condition holds."""
    if not bool(condition):
        raise Disagreement(complaint)


def triples(result: Any) -> Triples:
    """Three int64 arrays of any kind of triplets."""
    a, p, n = (np.asarray(column, dtype=np.int64) for column in result)
    return a, p, n


def sampled(rows: int) -> np.ndarray:  # [S]
    """A few rows spread over all, fewer where checking one takes long."""
    count = min(rows, max(4, min(16, 65536 // max(rows, 1))))
    return np.unique(np.linspace(0, rows - 1, count).astype(np.int64))


def canonical(
    x: Any,  # [S, D]
    y: Any,  # [M, D]
) -> np.ndarray:  # [S, M] float64
    """Squared distances as the specification defines them, by the backend that judges the others."""
    return np.asarray(minerlib.pairwise_distance(np.asarray(x), np.asarray(y), backend="reference"))


def squared(
    x: np.ndarray,  # [N, D]
    i: np.ndarray,  # [T]
    j: np.ndarray,  # [T]
) -> np.ndarray:  # [T] float64
    """Squared distances of pairs of rows, in chunks."""
    out = np.empty(len(i))
    for first in range(0, len(i), 1 << 16):
        part = slice(first, first + (1 << 16))
        out[part] = np.square(x[i[part]].astype(np.float64) - x[j[part]].astype(np.float64)).sum(axis=1)
    return out


# ------------------------------------------------------------------ one triplet an anchor


def judge_extremes(
    x: np.ndarray,  # [N, D]
    labels: np.ndarray,  # [N]
    result: Any,
    farthest_positive: bool,
) -> None:
    """Sampled anchors hold exactly the extreme positive and the nearest negative, lowest index first."""
    a, p, n = triples(result)
    demand(np.array_equal(a, np.arange(len(x))), "expected one triplet for every anchor")
    rows = sampled(len(x))
    for anchor, distances in zip(rows, canonical(x[rows], x), strict=True):
        same = labels == labels[anchor]
        others = np.where(same, np.inf, distances)
        same[anchor] = False
        sign = -1 if farthest_positive else 1
        positive = np.argmin(np.where(same, sign * distances, np.inf))
        demand(p[anchor] == positive, f"anchor {anchor}: positive {p[anchor]}, by definition {positive}")
        demand(n[anchor] == np.argmin(others), f"anchor {anchor}: negative {n[anchor]} is not the nearest")


def same_extremes(
    x: np.ndarray,  # [N, D]
    ours: Any,
    theirs: Any,
) -> None:
    """The same anchors, and equal distances up to `NEAR` where the rows chosen differ."""
    (a, p, n), (other_a, other_p, other_n) = triples(ours), triples(theirs)
    order = np.argsort(other_a, kind="stable")
    demand(np.array_equal(a, other_a[order]), "other anchors")
    for mine, other, what in ((p, other_p[order], "positives"), (n, other_n[order], "negatives")):
        differ = mine != other
        gap = np.abs(squared(x, a[differ], mine[differ]) - squared(x, a[differ], other[differ]))
        demand(
            not differ.any() or gap.max() < NEAR, f"{differ.sum()} other {what}, up to {gap.max(initial=0)}"
        )


# ------------------------------------------------------------------ one triplet a pair


def eligible(
    strategy: str,
    to_positive: float,
    to_negatives: np.ndarray,  # [negatives]
    margin: float,
    slack: float = 0.0,
) -> np.ndarray:  # bool [negatives]
    """Which negatives the pair may choose; slack above 0 takes in those near an edge, below 0 drops them."""
    s = (to_positive - to_negatives) + margin
    if strategy == "semi-hard":
        return (s > -slack) & (s < margin + slack)
    if strategy == "semi-hard-nearest":
        beyond = to_negatives > to_positive - slack
        return beyond & (to_negatives <= np.min(to_negatives, where=beyond, initial=np.inf) + max(slack, 0.0))
    scored = s > -slack
    if strategy == "hard":
        scored &= to_negatives <= to_negatives.min(initial=np.inf) + max(slack, 0.0)
    return scored


def judge_pairs(
    strategy: str,
    x: np.ndarray,  # [N, D]
    labels: np.ndarray,  # [N]
    result: Any,
    margin: float,
    slack: float = 0.0,
    ordered: bool = True,
) -> None:
    """Each pair of sampled anchors has an eligible negative, or none where none is.

    With slack 0 by canonical distances exactly; results of float32 are given `NEAR`.
    """
    a, p, n = triples(result)
    demand(len(a) > 0, "nothing was mined")
    rows = sampled(len(x))
    for anchor, distances in zip(rows, canonical(x[rows], x), strict=True):
        negatives = np.flatnonzero(labels != labels[anchor])
        mine = a == anchor
        chosen = dict(zip(p[mine].tolist(), n[mine].tolist(), strict=True))
        for positive in np.flatnonzero(labels == labels[anchor]).tolist():
            if positive == anchor or (not ordered and positive < anchor):
                continue
            edges = (strategy, distances[positive], distances[negatives], margin)
            pair = f"pair ({anchor}, {positive})"
            if positive not in chosen:
                demand(not eligible(*edges, -slack).any(), f"{pair}: no negative, though some are eligible")
                continue
            allowed = negatives[eligible(*edges, slack)]
            demand(chosen[positive] in allowed, f"{pair}: negative {chosen[positive]} is not eligible")


def same_pairs(
    x: np.ndarray,  # [N, D]
    labels: np.ndarray,  # [N]
    ours: Any,
    theirs: Any,
    strategy: str,
    margin: float,
    ordered: bool = True,
) -> None:
    """Both held to the definition, theirs up to `NEAR`; and about as many pairs with a negative."""
    judge_pairs(strategy, x, labels, theirs, margin, NEAR, ordered)
    count, other = len(ours[0]), len(theirs[0])
    demand(abs(count - other) <= 2 + count / 100, f"{count} pairs have a negative, theirs {other}")


def within_listing(
    x: np.ndarray,  # [N, D]
    ours: Any,
    listing: Any,
    margin: float,
    upper: float,
) -> None:
    """Our one triplet a pair against a list of all with 0 < s < upper.

    Every pair of the list has one of ours; ours are in the list, unless near an edge or at s >= upper (which
    random-hard may take and a semi-hard list does not hold).
    """
    (a, p, n), (la, lp, ln) = triples(ours), triples(listing)
    rows = len(x)
    mine, theirs = a * rows + p, np.unique(la * rows + lp)
    strangers = theirs[~np.isin(theirs, mine)]
    demand(
        len(strangers) <= len(theirs) / 1000,
        f"{len(strangers)} of {len(theirs)} listed pairs have none of ours",
    )
    keys = np.sort((la * rows + lp) * rows + ln)
    missing = ~np.isin(mine * rows + n, keys)
    s = (squared(x, a[missing], p[missing]) - squared(x, a[missing], n[missing])) + margin
    wrong = (s > NEAR) & (s < upper - NEAR)
    demand(not wrong.any(), f"{wrong.sum()} of our triplets are not in their list")


def same_listing(
    x: np.ndarray,  # [N, D]
    ours: Any,
    listing: Any,
    margin: float,
) -> None:
    """The same list of triplets of positive score, but for those whose score is near 0."""
    rows = len(x)
    keys = [(a * rows + p) * rows + n for a, p, n in (triples(ours), triples(listing))]
    differing = np.setxor1d(keys[0], keys[1], assume_unique=True)
    a, p, n = differing // rows**2, differing // rows % rows, differing % rows
    s = (squared(x, a, p) - squared(x, a, n)) + margin
    demand(not len(s) or np.abs(s).max() < NEAR, f"{len(s)} triplets are in one list only")


def same_count(ours: float, theirs: float, what: str) -> None:
    """Counts that differ by less than a thousandth: float32 moves a few across an edge."""
    demand(abs(ours - theirs) <= 2 + max(ours, theirs) / 1000, f"{ours} {what}, theirs {theirs}")


# ------------------------------------------------------------------ neighbours, matrices, draws


def judge_neighbors(
    queries: np.ndarray,  # [Q, D]
    database: np.ndarray,  # [M, D]
    result: Any,
    k: int,
) -> None:
    """Sampled queries hold exactly the first k of the canonical order, ties by the lowest index."""
    distances, indices = (np.asarray(array) for array in result)
    rows = sampled(len(queries))[:: max(1, len(database) // 16384)]
    for query, row in zip(rows, canonical(queries[rows], database), strict=True):
        order = np.argsort(row, kind="stable")[:k]
        demand(np.array_equal(indices[query], order), f"query {query}: not the {k} nearest in order")
        demand(np.array_equal(distances[query], row[order]), f"query {query}: other distances")


def same_neighbors(
    queries: np.ndarray,  # [Q, D]
    database: np.ndarray,  # [M, D]
    ours: Any,
    indices: Any,  # [Q, k]
) -> None:
    """At every rank the same distance up to `NEAR`."""
    theirs, ranked = np.asarray(indices), np.asarray(ours[0])
    demand(theirs.shape == ranked.shape, f"shape {theirs.shape}, ours {ranked.shape}")
    rows = np.unique(np.linspace(0, len(queries) - 1, min(len(queries), 512)).astype(np.int64))
    found = database[theirs[rows]].astype(np.float64)  # [S, k, D]
    gap = np.abs(np.square(queries[rows][:, None, :] - found).sum(axis=2) - ranked[rows]).max()
    demand(gap < NEAR, f"distances at the same rank differ by {gap}")


def same_matrix(
    ours: np.ndarray,  # [N, M]
    theirs: np.ndarray,  # [N, M]
    near: float = NEAR,
) -> None:
    """Equal up to `near`, at sampled rows."""
    demand(ours.shape == theirs.shape, f"shape {theirs.shape}, ours {ours.shape}")
    rows = sampled(len(ours))
    gap = np.abs(ours[rows].astype(np.float64) - theirs[rows].astype(np.float64)).max(initial=0)
    demand(gap < near, f"entries differ by {gap}")


def judge_draws(
    x: np.ndarray,  # [N, D] unit rows
    labels: np.ndarray,  # [N]
    result: Any,
) -> None:
    """Legal negatives, and their mean distance as the distribution has it, within five standard errors."""
    a, p, n = triples(result)
    demand(len(a) > 0, "nothing was drawn")
    demand(
        np.all((labels[a] == labels[p]) & (labels[a] != labels[n])),
        "a positive or negative of the wrong class",
    )
    demand(squared(x, a, n).max() <= (1.4 + NEAR) ** 2, "a negative beyond the cutoff was drawn")
    rows = np.unique(a)[:: max(1, len(np.unique(a)) // 256)]
    expected, variance, drawn = 0.0, 0.0, 0.0
    dims, wide = x.shape[1], x.astype(np.float64)
    for anchor in rows:
        d = np.sqrt(np.square(wide[anchor] - wide).sum(axis=1))
        clamped = np.maximum(d, 0.5)
        with np.errstate(divide="ignore", invalid="ignore"):
            log = (2 - dims) * np.log(clamped) - (dims - 3) / 2 * np.log(1 - clamped**2 / 4)
        open_to = (labels != labels[anchor]) & (d <= 1.4)
        log = np.where(open_to, log, -np.inf)
        weights = np.exp(log - log.max())
        weights /= weights.sum()
        mean = float(np.dot(weights, d))
        draws = d[n[a == anchor]]
        expected += mean * len(draws)
        variance += float(np.dot(weights, (d - mean) ** 2)) * len(draws)
        drawn += float(draws.sum())
    gap, error = abs(drawn - expected), np.sqrt(variance)
    demand(
        gap <= 5 * error + 1e-9,
        f"the sum of the drawn distances is off by {gap / max(error, 1e-12):.1f} sigma",
    )
