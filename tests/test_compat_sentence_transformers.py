"""Hard negatives for pairs, against the rules written out query by query."""

from __future__ import annotations

import collections

import numpy as np
import pytest
import torch

import minerlib
from minerlib.compat import sentence_transformers
from minerlib.compat.sentence_transformers import HardNegatives, mine_hard_negatives

SETTINGS = [
    {},
    {"num_negatives": 5},
    {"range_min": 3},
    {"range_min": 2, "range_max": 9, "num_negatives": 4},
    {"max_score": 0.3},
    {"min_score": 0.2, "range_max": 30},
    {"absolute_margin": 0.0},
    {"absolute_margin": 0.15, "range_min": 1},
    {"relative_margin": 0.05},
    {"relative_margin": 0.3, "max_score": 0.5, "min_score": -0.1, "range_max": 25},
    {"absolute_margin": -0.2, "num_negatives": 2},
    {"range_max": 10_000, "num_negatives": 1},
    {"similarity": "euclidean", "absolute_margin": 0.5},
    {"similarity": "euclidean", "relative_margin": 0.05, "max_score": -1.0},
]


def texts(seed: int, pairs: int = 40, documents: int = 90):
    """Ids and embeddings: queries with several answers, answers of several queries, answers in the corpus."""
    draw = np.random.default_rng(seed)
    vectors = collections.defaultdict(lambda: draw.normal(size=6).astype(np.float32))
    queries = [f"q{i}" for i in draw.integers(0, 25, pairs)]
    answers = [f"d{i}" for i in draw.integers(0, 60, pairs)]
    corpus = [f"d{i}" for i in draw.integers(30, 200, documents)]
    rows = [np.stack([vectors[key] for key in keys]) for keys in (queries, answers, corpus)]
    near = 0.6 * rows[0] + rows[1]  # an answer resembles its query
    for key, row in zip(answers, near, strict=True):
        vectors[key] = row.astype(np.float32)
    rows[1:] = [np.stack([vectors[key] for key in keys]) for keys in (answers, corpus)]
    return (queries, answers, corpus), rows


def written_out(
    ids, rows, similarity="cosine", range_min=0, range_max=None, max_score=None, min_score=None,
    absolute_margin=None, relative_margin=None, num_negatives=3,
):  # fmt: skip
    """The rules of the documentation with loops and texts: [(query, answer, negatives)]."""
    (queries, answers, corpus), (x, y, z) = ids, rows
    vectors = dict(zip(corpus + answers, np.concatenate((z, y)), strict=False))
    documents = list(dict.fromkeys(corpus + answers))
    matrix = np.stack([vectors[key] for key in documents])
    most = max(collections.Counter(queries).values())
    if range_max is None:
        margin = absolute_margin is not None or relative_margin is not None or max_score is not None
        range_max = range_min + num_negatives * (10 if margin else 1) + most
    out = []
    for query in dict.fromkeys(queries):
        row = x[queries.index(query)][None]
        d = minerlib.pairwise_distance(row, matrix, metric=similarity)[0]
        score = dict(zip(documents, 1 - d if similarity == "cosine" else -d, strict=True))
        own = list(dict.fromkeys(a for q, a in zip(queries, answers, strict=True) if q == query))
        least = min(score[a] for a in own)
        ranked = sorted(documents, key=lambda key: (-score[key], documents.index(key)))[: range_max + most]
        left = []
        for key in ranked:
            s = score[key]
            if (
                key in own
                or (max_score is not None and s > max_score)
                or (min_score is not None and s < min_score)
            ):
                continue
            if absolute_margin is not None and s + absolute_margin > least:
                continue
            if relative_margin is not None and s > least - abs(least) * relative_margin:
                continue
            left.append(key)
        left = left[:range_max][range_min:]
        out += [(query, answer, left, score) for answer in own]
    return out


def as_texts(found: HardNegatives, ids) -> list[tuple[str, str, str]]:
    queries, answers, corpus = ids
    documents = corpus + answers
    return [
        (queries[a], answers[p], documents[n])
        for a, p, n in zip(*(c.tolist() for c in found[:3]), strict=True)
    ]


def mined(ids, rows, **settings):
    names = dict(zip(("anchor_ids", "positive_ids", "corpus_ids"), ids, strict=True))
    return mine_hard_negatives(*rows, **names, **settings)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_top_negatives_by_the_rules(settings):
    total = 0
    for seed in range(8):
        ids, rows = texts(seed)
        count = settings.get("num_negatives", 3)
        expected = written_out(ids, rows, **settings)
        found = mined(ids, rows, **settings)
        assert as_texts(found, ids) == [(q, a, n) for q, a, left, _ in expected for n in left[:count]]
        total += len(found.anchors)
        scores = [(s[a], s[n]) for _, a, left, s in expected for n in left[:count]]
        assert (
            list(zip(found.positive_scores.tolist(), found.negative_scores.tolist(), strict=True)) == scores
        )
        tuples = mined(ids, rows, output_format="n-tuple", **settings)
        full = [(q, a, left[:count]) for q, a, left, _ in expected if len(left) >= count]
        queries, answers, corpus = ids
        got = [(queries[i], answers[j], [(corpus + answers)[n] for n in negatives])
               for i, j, negatives in zip(*(c.tolist() for c in tuples[:3]), strict=True)]  # fmt: skip
        assert got == full
        assert tuples.negatives.shape == tuples.negative_scores.shape == (len(full), count)
    assert total > 50


def test_random_ones_are_drawn_evenly_from_what_is_left():
    settings = {"range_min": 1, "range_max": 12, "absolute_margin": 0.0, "num_negatives": 2}
    ids, rows = texts(3)
    expected = {(q, a): left for q, a, left, _ in written_out(ids, rows, **settings)}
    counts: dict = collections.Counter()
    for seed in range(600):
        found = mined(ids, rows, sampling_strategy="random", seed=seed, **settings)
        drawn = collections.defaultdict(list)
        for q, a, n in as_texts(found, ids):
            drawn[q, a].append(n)
        for pair, left in expected.items():
            chosen = drawn.get(pair, [])
            assert len(chosen) == len(set(chosen)) == min(2, len(left))
            assert [left.index(n) for n in chosen] == sorted(left.index(n) for n in chosen)  # highest first
            counts.update((*pair, n) for n in chosen)
    pair = max(expected, key=lambda each: len(expected[each]))
    left = expected[pair]
    assert len(left) >= 8
    mean = 600 * 2 / len(left)
    chi = sum((counts[*pair, n] - mean) ** 2 / mean for n in left)
    assert chi < 45  # at most 11 degrees of freedom, fewer than one in 100,000
    again = mined(ids, rows, sampling_strategy="random", seed=5, **settings)
    twice = mined(ids, rows, sampling_strategy="random", seed=5, **settings)
    assert all(np.array_equal(a, b) for a, b in zip(again, twice, strict=True))


def test_without_ids_equal_rows_are_the_same_text():
    ids, rows = texts(6)
    expected, found = mined(ids, rows), mine_hard_negatives(*rows)
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


def test_without_a_corpus_the_answers_of_others_are_the_candidates():
    (queries, answers, _), (x, y, _) = texts(7)
    found = mine_hard_negatives(x, y, num_negatives=4)
    ids, rows = (queries, answers, []), (x, y, y[:0])
    expected = [(q, a, n) for q, a, left, _ in written_out(ids, rows, num_negatives=4) for n in left[:4]]
    assert as_texts(found, ids) == expected


def test_chunks_kinds_and_backends_change_nothing(monkeypatch):
    ids, rows = texts(8)
    settings = {"relative_margin": 0.1, "sampling_strategy": "random", "seed": 2}
    expected = mined(ids, rows, **settings)
    tensors = mined(ids, [torch.from_numpy(row) for row in rows], **settings)
    assert all(isinstance(column, torch.Tensor) for column in tensors)
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(expected, tensors, strict=True))
    other = mined(ids, rows, backend="reference", **settings)
    assert all(np.array_equal(a, b) for a, b in zip(expected, other, strict=True))
    monkeypatch.setattr(sentence_transformers, "_KEPT", 100)
    chunked = mined(ids, rows, **settings)
    assert all(np.array_equal(a, b) for a, b in zip(expected, chunked, strict=True))


def test_nothing_to_find_gives_empty_results():
    x = np.eye(3, dtype=np.float32)
    for settings in ({"max_score": -2.0}, {"absolute_margin": 5.0}, {"range_min": 90}):
        found = mine_hard_negatives(x, x, **settings)
        assert [len(column) for column in found] == [0] * 5
        assert mine_hard_negatives(x, x, output_format="n-tuple", **settings).negatives.shape == (0, 3)
    empty = mine_hard_negatives(x[:0], x[:0], x)
    assert [len(column) for column in empty] == [0] * 5
    assert empty.anchors.dtype == np.int64


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"range_min": -1}, ValueError, "^range_min: "),
        ({"range_min": 5, "range_max": 7}, ValueError, r"^range_max: expected at least .* = 8, got 7"),
        ({"num_negatives": 0}, ValueError, "^num_negatives: "),
        ({"num_negatives": 1.5}, TypeError, "^num_negatives: "),
        ({"max_score": float("nan")}, ValueError, "^max_score: "),
        ({"absolute_margin": "wide"}, TypeError, "^absolute_margin: "),
        ({"sampling_strategy": "best"}, ValueError, "^sampling_strategy: expected one of top, random"),
        ({"output_format": "labels"}, ValueError, "^output_format: expected one of triplet, n-tuple"),
        ({"similarity": "dot"}, ValueError, "^similarity: "),
        ({"seed": -1}, ValueError, "^seed: "),
        ({"anchor_ids": ["a"]}, ValueError, "^anchor_ids: expected 4 ids, got 1"),
        ({"anchor_ids": [["a"]] * 4}, TypeError, "^anchor_ids: expected texts or numbers"),
        ({"positive_ids": "abcd"}, ValueError, "^corpus_ids: expected ids"),
        ({"corpus_ids": "abcde"}, ValueError, "^positive_ids: expected ids"),
        ({"corpus": np.zeros((5, 2))}, ValueError, "^corpus: expected 3 dimensions"),
        ({"corpus": np.full((5, 3), np.inf)}, ValueError, "^corpus: .* row 0"),
        ({"positives": np.zeros((5, 3))}, ValueError, "^positives: expected 4 rows"),
    ],
)
def test_wrong_arguments_are_named(settings, error, message):
    arrays = {"anchors": np.zeros((4, 3)), "positives": np.ones((4, 3)), "corpus": np.ones((5, 3))}
    with pytest.raises(error, match=message):
        mine_hard_negatives(**{**arrays, **settings})
