"""Hard negatives for text pairs, as sentence-transformers' `mine_hard_negatives` finds them, from embeddings.

    model.encode(...) once, then as many settings as you like:

    found = mine_hard_negatives(query_embeddings, answer_embeddings, corpus_embeddings, relative_margin=0.05)
    documents = corpus + answers
    triplets = [(queries[a], answers[p], documents[n]) for a, p, n in zip(*found[:3])]

The rules are those of sentence-transformers 5 (its documentation of `mine_hard_negatives`); the search is
minerlib's exact one, so ranks do not depend on batch sizes, and ties go to the earlier document. Neither the
package nor a model is needed here.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minerlib import inputs, random
from minerlib.arrays import to_numpy
from minerlib.neighbors import nearest
from minerlib.scan import Scan

OUTPUTS = ("triplet", "n-tuple")
SAMPLING = ("top", "random")
SIMILARITIES = ("cosine", "euclidean")
_KEPT = 1 << 22  # candidates held at a time, 16 bytes each


class HardNegatives(NamedTuple):
    """What was mined; rows of the arrays given, of the caller's kind, grouped by query.

    With `output_format="triplet"` one entry for each negative, `[T]`; with `"n-tuple"` one for each pair of
    which all negatives were found, and `negatives` and `negative_scores` are `[R, num_negatives]`.
    """

    anchors: Any  # int64, rows of `anchors`
    positives: Any  # int64, rows of `positives`
    negatives: Any  # int64, rows of `corpus`, and from len(corpus) on rows of `positives`
    positive_scores: Any  # float64, similarities of anchor and positive
    negative_scores: Any  # float64, similarities of anchor and negative, highest first


@dataclass(frozen=True)
class _Rules:
    """The options of one call, validated."""

    range_min: int
    range_max: int
    max_score: float
    min_score: float
    absolute_margin: float | None
    relative_margin: float | None
    num_negatives: int
    at_random: bool
    seed: int


def mine_hard_negatives(
    anchors: Any,  # [P, D]
    positives: Any,  # [P, D]
    corpus: Any = None,  # [M, D]
    *,
    range_min: int = 0,
    range_max: int | None = None,
    max_score: float | None = None,
    min_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
    num_negatives: int = 3,
    sampling_strategy: str = "top",
    output_format: str = "triplet",
    similarity: str = "cosine",
    anchor_ids: Iterable[Hashable] | None = None,  # [P]
    positive_ids: Iterable[Hashable] | None = None,  # [P]
    corpus_ids: Iterable[Hashable] | None = None,  # [M]
    seed: int = 0,
    backend: str = "auto",
) -> HardNegatives:
    """Mine documents that are near a query but are none of its answers.

    Row i of `anchors` and row i of `positives` are a pair. Candidates are the rows of `corpus` and all
    positives. Equal ids (texts, numbers) mean the same query or document; without ids, rows that are equal
    bit for bit. A query with several positives is searched for once, and none of them is its negative.

    For each query, of the candidates by falling similarity:

    1. the first `range_max`, and as many more as any query has positives, are looked at; by default
       `range_max` is range_min + 10 num_negatives + the most positives of a query where a margin or
       `max_score` is given, and range_min + num_negatives + these where not;
    2. its positives go, and candidates scoring above `max_score`, below `min_score`, above s -
       `absolute_margin`, or above s - |s| `relative_margin`, with s the lowest score of its positives;
    3. of what is left up to `range_max`, the first `range_min` are skipped;
    4. `num_negatives` are taken: the `top` ones, or `random` ones (which depend on the seed, the query and
       the document alone).

    Args:
        output_format: `triplet` gives every negative found with every positive of its query; `n-tuple` only
            the pairs that have all `num_negatives`.
        similarity: `cosine`, or `euclidean`, whose score is the negative distance.

    Returns `HardNegatives`. Raises `TypeError` or `ValueError` that names the argument. Memory: the distinct
    rows once, 64 MB of candidates, the result.

    >>> import numpy as np
    >>> queries, answers = np.array([[1.0, 0.0]]), np.array([[1.0, 0.1]])
    >>> documents = np.array([[1.0, 0.2], [0.0, 1.0], [1.0, 0.0]])
    >>> mine_hard_negatives(queries, answers, documents, num_negatives=2, absolute_margin=0).negatives
    array([0, 1])
    """
    inputs.one_of("output_format", output_format, OUTPUTS)
    inputs.one_of("sampling_strategy", sampling_strategy, SAMPLING)
    inputs.one_of("similarity", similarity, SIMILARITIES)
    inputs.same_device(anchors=anchors, positives=positives, corpus=corpus)
    x, y, documents, origin = _rows(anchors, positives, corpus)
    pairs = _Pairs(x, y, documents, anchor_ids, positive_ids, corpus_ids)
    rules = _rules(
        pairs.most_positives, range_min, range_max, max_score, min_score, absolute_margin, relative_margin,
        num_negatives, sampling_strategy, seed,
    )  # fmt: skip
    scores = pairs.scores(similarity)
    lowest = np.full(len(pairs.queries), np.inf)
    np.minimum.at(lowest, pairs.query, scores)
    chosen, chosen_scores = _search(pairs, rules, lowest, similarity, backend)
    chosen, chosen_scores = chosen[pairs.query], chosen_scores[pairs.query]
    found = chosen >= 0
    negatives = np.where(found, pairs.document_rows[chosen], -1)
    if output_format == "n-tuple":
        full = found.all(axis=1)
        columns = (pairs.row[full], pairs.row[full], negatives[full], scores[full], chosen_scores[full])
    else:
        of = np.nonzero(found)[0]
        columns = (pairs.row[of], pairs.row[of], negatives[found], scores[of], chosen_scores[found])
    return HardNegatives(*(origin.wrap(np.ascontiguousarray(column)) for column in columns))


def _rows(anchors: Any, positives: Any, corpus: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, Any]:
    origin = to_numpy("anchors", anchors)[1]
    x, y = inputs.rows_of("anchors", anchors), inputs.rows_of("positives", positives)
    inputs.same_width("anchors", x, "positives", y)
    if len(x) != len(y):
        raise ValueError(f"positives: expected {len(x)} rows like anchors, got {len(y)}")
    documents = y[:0]
    if corpus is not None:
        documents = inputs.rows_of("corpus", corpus)
        inputs.same_width("anchors", x, "corpus", documents)
    kind = np.result_type(x, y, documents)
    return x.astype(kind, copy=False), y.astype(kind, copy=False), documents.astype(kind, copy=False), origin


class _Pairs:
    """Distinct queries, distinct documents, and the distinct pairs of them, grouped by query."""

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        corpus: np.ndarray,
        anchor_ids: Any,
        positive_ids: Any,
        corpus_ids: Any,
    ) -> None:
        if corpus_ids is not None and positive_ids is None:
            raise ValueError("positive_ids: expected ids, as corpus_ids are given, got None")
        if len(corpus) and positive_ids is not None and corpus_ids is None:
            raise ValueError("corpus_ids: expected ids, as positive_ids are given, got None")
        of_query, query_rows = _distinct(_ids("anchor_ids", anchor_ids, x))
        keys = _ids("corpus_ids", corpus_ids, corpus) + _ids("positive_ids", positive_ids, y)
        of_document, self.document_rows = _distinct(keys)
        self.queries = x[query_rows]
        self.documents = np.concatenate((corpus, y))[self.document_rows]
        document = of_document[len(corpus) :]
        self.most_positives = int(np.bincount(of_query).max(initial=0))
        # the first row of each (query, document), by query, then by row
        _, first = np.unique(np.stack((of_query, document)), axis=1, return_index=True)
        self.row = first[np.lexsort((first, of_query[first]))]
        self.query, self.document = of_query[self.row], document[self.row]

    def scores(self, similarity: str) -> np.ndarray:  # [pairs]
        """How similar each query is to each of its positives."""
        classes = np.zeros(max(len(self.queries), len(self.documents)), dtype=np.int64)
        scan = Scan(
            self.queries, self.documents, classes[: len(self.queries)], classes[: len(self.documents)], None,
            inputs.METRICS.index(similarity),
        )  # fmt: skip
        return _score(scan.values(self.query, self.document), similarity)


def _score(distances: np.ndarray, similarity: str) -> np.ndarray:
    return 1 - distances if similarity == "cosine" else -distances


def _ids(name: str, ids: Any, rows: np.ndarray) -> list[Hashable]:
    if ids is None:
        return [row.tobytes() for row in rows + 0.0]  # which makes -0.0 equal to 0.0
    if hasattr(ids, "tolist"):
        ids = ids.tolist()
    found = list(ids)
    if len(found) != len(rows):
        raise ValueError(f"{name}: expected {len(rows)} ids, got {len(found)}")
    try:
        hash(tuple(found))
    except TypeError as error:
        raise TypeError(f"{name}: expected texts or numbers ({error})") from error
    return found


def _distinct(keys: list[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """(which of the distinct keys each one is, where each is found first)."""
    seen: dict[Hashable, int] = {}
    which = np.fromiter((seen.setdefault(key, len(seen)) for key in keys), dtype=np.int64, count=len(keys))
    return which, np.unique(which, return_index=True)[1]


def _rules(
    most_positives: int,
    range_min: Any,
    range_max: Any,
    max_score: Any,
    min_score: Any,
    absolute_margin: Any,
    relative_margin: Any,
    num_negatives: Any,
    sampling_strategy: str,
    seed: Any,
) -> _Rules:
    range_min = inputs.integer("range_min", range_min, 0, 2**40)
    num_negatives = inputs.integer("num_negatives", num_negatives, 1, 2**40)
    absolute, relative = (
        _number("absolute_margin", absolute_margin),
        _number("relative_margin", relative_margin),
    )
    most, least = _number("max_score", max_score), _number("min_score", min_score)
    if range_max is None:
        spare = 1 if absolute is None and relative is None and most is None else 10
        range_max = range_min + num_negatives * spare + most_positives
    range_max = inputs.integer("range_max", range_max, 1, 2**41)
    if range_max - range_min < num_negatives:
        raise ValueError(
            f"range_max: expected at least range_min + num_negatives = {range_min + num_negatives}, "
            f"got {range_max}"
        )
    return _Rules(
        range_min, range_max, math.inf if most is None else most, -math.inf if least is None else least,
        absolute, relative, num_negatives, sampling_strategy == "random", inputs.seed_value(seed),
    )  # fmt: skip


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    sign = -1 if isinstance(value, (int, float)) and value < 0 else 1
    return sign * inputs.finite_non_negative(name, sign * value if sign < 0 else value)


def _search(
    pairs: _Pairs,
    rules: _Rules,
    lowest: np.ndarray,  # [Q] the lowest score of each query's positives
    similarity: str,
    backend: str,
) -> tuple[np.ndarray, np.ndarray]:  # documents [Q, num_negatives], -1 for none; their scores
    chosen = np.full((len(pairs.queries), rules.num_negatives), -1, dtype=np.int64)
    scores = np.full(chosen.shape, -np.inf)
    if not len(pairs.queries):
        return chosen, scores
    k = min(rules.range_max + pairs.most_positives, len(pairs.documents))
    own = pairs.query * len(pairs.documents) + pairs.document  # what is no query's negative
    step = max(1, _KEPT // k)
    for first in range(0, len(pairs.queries), step):
        rows = np.arange(first, min(first + step, len(pairs.queries)))
        near = nearest(pairs.queries[rows], pairs.documents, k, metric=similarity, backend=backend)
        score = _score(near.distances, similarity)
        keep = ~np.isin(rows[:, None] * len(pairs.documents) + near.indices, own)
        keep &= (score <= rules.max_score) & (score >= rules.min_score)
        least = lowest[rows, None]
        if rules.absolute_margin is not None:
            keep &= score + rules.absolute_margin <= least
        if rules.relative_margin is not None:
            keep &= score <= least - np.abs(least) * rules.relative_margin
        rank = np.cumsum(keep, axis=1)  # of those kept, from 1
        keep &= (rank > rules.range_min) & (rank <= rules.range_max)
        if rules.at_random:
            keep &= _drawn(keep, rows, near.indices, rules)
        place = np.cumsum(keep, axis=1) - 1
        keep &= place < rules.num_negatives
        row, column = np.nonzero(keep)
        chosen[rows[row], place[row, column]] = near.indices[row, column]
        scores[rows[row], place[row, column]] = score[row, column]
    return chosen, scores


def _drawn(keep: np.ndarray, rows: np.ndarray, documents: np.ndarray, rules: _Rules) -> np.ndarray:
    """As many of each row's candidates as are wanted: those with the smallest random numbers."""
    words = random.words(rules.seed, np.broadcast_to(rows[:, None], documents.shape), documents)
    number = words[0] | (words[1] << np.uint64(32))
    number = np.where(keep, number >> np.uint64(1), np.uint64(2**64 - 1))  # candidates come before the others
    order = np.argsort(number, axis=1, kind="stable")[:, : rules.num_negatives]
    drawn = np.zeros_like(keep)
    np.put_along_axis(drawn, order, True, axis=1)
    return drawn
