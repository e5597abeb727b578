"""Contests over binary codes: search, ranges, mean average precision, and the tools people use for them."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np
import torch

import minerlib
from minerlib.benchmarks import data
from minerlib.benchmarks.agreement import demand
from minerlib.benchmarks.contest import Contender, Contest
from minerlib.benchmarks.peers import absent, missing

FAISS = "faiss-cpu IndexBinaryFlat"
COUNTING = f"{FAISS}, counting"
SUM = "torch sum of the codes"
SCRIPT = "argsort a query"
OWN_EXPECTED = "our own, ties expected"

_FEW = 3  # queries that are judged against the whole database
_SOME = 64  # queries whose neighbours are compared


def code_search(queries: int, database: int, bits: int, k: int) -> Contest:
    """The k nearest codes of every query, by (distance, index)."""
    q, rows = data.codes(queries, bits, seed=1), data.codes(database, bits)
    others = [_faiss_search(q, rows, k), _faiss_search(q, rows, k, counting=True)]
    if queries == 1 and bits % 64 == 0:  # bound by memory, whose rate the sum of all words shows
        others.append(_sum(rows))
    return Contest(
        queries * database,
        0,
        lambda: minerlib.hamming_search(q, rows, k),
        functools.partial(judge_neighbors, q, rows, k=k),
        tuple(others),
    )


def code_range(queries: int, database: int, bits: int, radius: int) -> Contest:
    """All codes within a radius of every query, by (distance, index)."""
    q, rows = data.codes(queries, bits, seed=1), data.codes(database, bits)
    return Contest(
        queries * database,
        0,
        lambda: minerlib.hamming_range(q, rows, radius),
        functools.partial(judge_range, q, rows, radius=radius),
        (_faiss_range(q, rows, radius),),
    )


def code_map(queries: int, database: int, bits: int, classes: int, scripted: int) -> Contest:
    """Mean average precision of whole rankings; the script is timed on the first `scripted` queries."""
    q, labels = data.labelled_codes(queries, bits, classes, seed=1)
    rows, row_labels = data.labelled_codes(database, bits, classes)
    work = (q, labels, rows, row_labels)
    expected = Contender(
        OWN_EXPECTED,
        lambda: minerlib.hamming_map(*work, ties="expected"),
        functools.partial(_near, 0.01),
        role="own",
    )
    return Contest(
        queries * database,
        0,
        lambda: minerlib.hamming_map(*work),
        functools.partial(judge_map, *work),
        (_script(q, labels, rows, row_labels, bits, scripted), expected),
    )


# ------------------------------------------------------------------ the peers


def _faiss(rows: np.ndarray) -> Any:
    index = importlib.import_module("faiss").IndexBinaryFlat(8 * rows.shape[1])
    index.add(rows)
    return index


def _seconds(queries: np.ndarray, rows: np.ndarray) -> float:
    """About what faiss takes on two cores."""
    return len(queries) * len(rows) * (0.2e-9 + 0.02e-9 * rows.shape[1])


def _faiss_search(queries: np.ndarray, rows: np.ndarray, k: int, counting: bool = False) -> Contender:
    """faiss's exact index, which keeps heaps unless it is told to count; building it is not timed."""
    name = COUNTING if counting else FAISS
    reason = missing(FAISS)
    if reason:
        return absent(name, reason)
    index = _faiss(rows)
    index.use_heap = not counting
    return Contender(
        name,
        lambda: index.search(queries, k),
        functools.partial(same_neighbors, queries, rows),
        seconds_needed=_seconds(queries, rows),
    )


def _faiss_range(queries: np.ndarray, rows: np.ndarray, radius: int) -> Contender:
    """faiss's range search, whose radius is the first distance that is left out."""
    reason = missing(FAISS)
    if reason:
        return absent(FAISS, reason)
    index = _faiss(rows)
    return Contender(
        FAISS,
        lambda: index.range_search(queries, radius + 1),
        same_range,
        seconds_needed=_seconds(queries, rows),
    )


def _sum(rows: np.ndarray) -> Contender:
    """What reading all codes takes: their sum as 64-bit words, on all threads."""
    words = torch.from_numpy(rows.view(np.int64))

    def check(ours: Any, theirs: Any) -> None:
        exact = int(rows.view(np.int64).sum())
        demand(int(theirs) == exact, f"the sum is {int(theirs)}, by NumPy {exact}")

    return Contender(SUM, words.sum, check, role="part")


def _script(
    queries: np.ndarray,  # [Q, bytes] uint8
    labels: np.ndarray,  # [Q]
    rows: np.ndarray,  # [M, bytes] uint8
    row_labels: np.ndarray,  # [M]
    bits: int,
    count: int,
) -> Contender:
    """The usual script on the first queries; a query takes it as long as any other."""
    count = min(count, len(queries))
    targets = np.eye(int(max(labels.max(), row_labels.max())) + 1, dtype=np.float32)
    sides = [(signs(codes, bits), targets[which]) for codes, which in ((queries, labels), (rows, row_labels))]
    work = (sides[0][0][:count], sides[0][1][:count], *sides[1])

    def check(ours: Any, theirs: Any) -> None:
        mine = minerlib.hamming_map(queries[:count], labels[:count], rows, row_labels, ties="script")
        demand(mine == theirs, f"the script's mAP is {theirs}, ours of it {mine}")
        by_index = minerlib.hamming_map(queries[:count], labels[:count], rows, row_labels)
        _near(0.01, by_index, theirs)

    share = count / len(queries)
    name = SCRIPT if share == 1 else f"{SCRIPT} ({count} of {len(queries)}, scaled)"
    return Contender(name, lambda: script_map(*work, -1), check, share=share)


def signs(codes: np.ndarray, bits: int) -> np.ndarray:  # [N, bits] float32
    """Packed codes as the -1 and +1 that such scripts take."""
    out: np.ndarray = 2 * np.asarray(minerlib.unpack_bits(codes, bits), dtype=np.float32) - 1
    return out


def script_map(
    query_signs: np.ndarray,  # [Q, bits] float32, -1 and +1
    query_targets: np.ndarray,  # [Q, C] float32, 0 and 1
    database_signs: np.ndarray,  # [M, bits]
    database_targets: np.ndarray,  # [M, C]
    topk: int,  # -1 drops the last row, which its users take for "all"
) -> float:
    """The evaluation that deep-hashing repositories share, step by step, flaws included."""
    bits, total = database_signs.shape[1], 0.0
    for code, target in zip(query_signs, query_targets, strict=True):
        wanted = (np.dot(target, database_targets.T) > 0).astype(np.float32)
        distances = 0.5 * (bits - np.dot(code, database_signs.T))
        top = wanted[np.argsort(distances)][0:topk]
        count = int(np.sum(top))
        if count == 0:
            continue
        places = np.asarray(np.where(top == 1)) + 1.0
        total = total + float(np.mean(np.linspace(1, count, count) / places))
    return total / len(query_signs)


# ------------------------------------------------------------------ agreement


def distances_to(query: np.ndarray, rows: np.ndarray) -> np.ndarray:  # [M] int64
    """One query's distances, as plainly as NumPy has them."""
    return np.bitwise_count(rows ^ query).sum(axis=1, dtype=np.int64)


def _sampled(queries: np.ndarray, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, len(queries) - 1, min(count, len(queries))).astype(np.int64))


def judge_neighbors(
    queries: np.ndarray,  # [Q, bytes] uint8
    rows: np.ndarray,  # [M, bytes] uint8
    result: Any,
    k: int,
) -> None:
    """Sampled queries hold exactly the first k by (distance, index)."""
    shape = (len(queries), k)
    demand(result.indices.shape == result.distances.shape == shape, f"expected the shape {shape}")
    for query in _sampled(queries, _FEW):
        row = distances_to(queries[query], rows)
        order = np.argsort(row, kind="stable")[:k]
        demand(np.array_equal(result.indices[query], order), f"query {query}: not the {k} nearest in order")
        demand(np.array_equal(result.distances[query], row[order]), f"query {query}: other distances")


def same_neighbors(
    queries: np.ndarray,  # [Q, bytes] uint8
    rows: np.ndarray,  # [M, bytes] uint8
    ours: Any,
    theirs: Any,  # distances [Q, k], indices [Q, k]
) -> None:
    """Equal distances at every rank; rows of those distances; the same rows nearer than the last of them."""
    distances, indices = (np.asarray(array) for array in theirs)
    demand(np.array_equal(distances, ours.distances), "distances at the same rank differ")
    for query in _sampled(queries, _SOME):
        found = indices[query]
        demand(len(np.unique(found)) == len(found), f"query {query}: a row is listed twice")
        true = distances_to(queries[query], rows[found])
        demand(np.array_equal(true, distances[query]), f"query {query}: rows at other distances")
        nearer = distances[query] < distances[query][-1]
        same = np.array_equal(np.sort(found[nearer]), np.sort(ours.indices[query][nearer]))
        demand(same, f"query {query}: other rows")


def judge_range(
    queries: np.ndarray,  # [Q, bytes] uint8
    rows: np.ndarray,  # [M, bytes] uint8
    result: Any,
    radius: int,
) -> None:
    """Sampled queries hold exactly the rows within the radius, by (distance, index)."""
    demand(len(result.offsets) == len(queries) + 1, "expected one offset more than queries")
    demand(result.offsets[-1] == len(result.indices) == len(result.distances), "the offsets do not add up")
    for query in _sampled(queries, _FEW):
        row = distances_to(queries[query], rows)
        order = np.argsort(row, kind="stable")
        order = order[row[order] <= radius]
        hits = slice(result.offsets[query], result.offsets[query + 1])
        demand(np.array_equal(result.indices[hits], order), f"query {query}: other rows or another order")
        demand(np.array_equal(result.distances[hits], row[order]), f"query {query}: other distances")


def same_range(ours: Any, theirs: Any) -> None:
    """The same rows at the same distances for every query, in whatever order."""
    offsets, distances, indices = (np.asarray(array).astype(np.int64) for array in theirs)
    demand(np.array_equal(offsets, ours.offsets), "other numbers of hits")
    query = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order, other = np.lexsort((ours.indices, query)), np.lexsort((indices, query))
    demand(np.array_equal(ours.indices[order], indices[other]), "other rows")
    demand(np.array_equal(ours.distances[order], distances[other]), "other distances")


def judge_map(
    queries: np.ndarray,  # [Q, bytes] uint8
    labels: np.ndarray,  # [Q]
    rows: np.ndarray,  # [M, bytes] uint8
    row_labels: np.ndarray,  # [M]
    result: float,
) -> None:
    """Sampled queries score what the reference says, and all of them what their parts do."""
    part = _sampled(queries, _FEW)
    mine = minerlib.hamming_map(queries[part], labels[part], rows, row_labels)
    judged = minerlib.hamming_map(queries[part], labels[part], rows, row_labels, backend="reference")
    demand(mine == judged, f"the mAP of sampled queries is {mine}, by definition {judged}")
    parts = np.array_split(np.arange(len(queries)), 7)
    scores = [minerlib.hamming_map(queries[p], labels[p], rows, row_labels) * len(p) for p in parts if len(p)]
    _near(1e-12, sum(scores) / len(queries), result)


def _near(most: float, ours: float, theirs: float) -> None:
    demand(abs(ours - theirs) <= most, f"{ours} and {theirs} differ by more than {most}")
