"""Mean average precision of rankings by Hamming distance, under three rules for the many ties there are.

Between codes of b bits there are only b + 1 distances, so most rows of a ranking are tied with others, and
what a ranking scores depends on what is done about it: take ties by index, take the expectation over all
their orders, or do what the scripts behind many published tables do.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np

from minerlib import dispatch, inputs
from minerlib.inputs import Relevance

TIES = ("index", "expected", "script")

_COUNTS = 1 << 18  # distances counted at a time, 2 MB a table of them
_PAIRS = 1 << 26  # pairs ranked at a time, unless a backend says otherwise
_DISTANCES = 1 << 20  # distances held at a time, 4 MB
_WEIGHTS = 1 << 17  # probabilities held at a time, 1 MB


def hamming_map(
    query_codes: Any,  # [Q, bytes] uint8
    query_labels: Any,  # [Q] or [Q, C] bool
    database_codes: Any,  # [M, bytes] uint8
    database_labels: Any,  # [M] or [M, C] bool
    *,
    k: int | None = None,
    ties: str = "index",
    backend: str = "auto",
) -> float:
    """Mean average precision of the queries' rankings of a database by Hamming distance, from 0 to 1.

    The average precision of a query is the mean, over its relevant rows in the ranking cut at k, of the
    precision at each of them; a query without any scores 0 and counts. A row is relevant where its label is
    the query's, or, with multi-labels, where they share one.

    Args:
        query_codes, database_codes: packed codes, see `pack_bits`; those of a GPU are copied to the host.
        query_labels, database_labels: integers or bool `[rows]`, or multi-labels, bool `[rows, labels]`.
        k: where rankings are cut, 1 to M; None: the whole ranking.
        ties: how rows at the same distance are ordered.
            `index`: by the lowest index, as `hamming_search` ranks.
            `expected`: the exact expectation over all orders of tied rows, each as likely as any other, also
            where k cuts through a group of them; no order of the database's rows changes it.
            `script`: what the evaluation script does that deep-hashing repositories share (`CalcTopMap`), for
            comparison with tables made by it. It has flaws: ties fall as NumPy's unstable argsort of float32
            distances leaves them, which depends on NumPy's version, on the processor, and on how the
            database is ordered; and its usual topk = -1, which is k = None here, drops the last row of
            every ranking.
        backend: `auto`, or a name of `explain("hamming_search")`.

    Raises:
        TypeError, ValueError: the message names the argument, what was expected and what came.
        BackendUnavailable: the named backend cannot be used here; the message lists the reasons.

    Memory: below 50 MB beside the inputs for 50,000 rows of 48 bits, however many queries there are. The
    `reference` backend alone holds a value for every pair.

    Source: SPEC section 5; the expectation is derived in SPEC section 8.

    >>> import minerlib, numpy as np
    >>> queries, database = np.array([[0]], dtype=np.uint8), np.array([[1], [2], [7]], dtype=np.uint8)
    >>> minerlib.hamming_map(queries, np.array([1]), database, np.array([0, 1, 0]), ties="expected")
    0.75
    """
    inputs.one_of("ties", ties, TIES)
    queries, database, _ = inputs.code_pair("query_codes", query_codes, "database_codes", database_codes)
    for name, rows in (("query_codes", queries), ("database_codes", database)):
        if len(rows) == 0:
            raise ValueError(f"{name}: expected at least one row, got none")
    if database_labels is None:
        raise TypeError("database_labels: expected the labels of database_codes, got None")
    relevance = inputs.relevance(query_labels, database_labels, len(queries), len(database))
    cutoff = None if k is None else inputs.integer("k", k, 1, len(database))
    adapter = dispatch.choose(backend)
    if ties == "script":
        return _script_map(adapter, queries, database, relevance, cutoff)
    score = expected_average_precision if ties == "expected" else average_precision
    return float(score(adapter, queries, database, relevance, cutoff).mean())


# ------------------------------------------------------------------ chunks of queries


def _chunks(
    queries: np.ndarray,  # [Q, bytes] uint8
    relevance: Relevance,
    step: int,
) -> Iterator[tuple[slice, np.ndarray, Relevance]]:
    """(rows, their queries, what is relevant to them); the rows are not left out of their own rankings."""
    for first in range(0, len(queries), step):
        rows = slice(first, min(first + step, len(queries)))
        part = dataclasses.replace(
            relevance,
            query_classes=None if relevance.query_classes is None else relevance.query_classes[rows],
            query_bits=None if relevance.query_bits is None else relevance.query_bits[rows],
            own=False,
        )
        yield rows, queries[rows], part


def counts(
    adapter: ModuleType,
    queries: np.ndarray,  # [Q, bytes] uint8
    database: np.ndarray,  # [M, bytes] uint8
    relevance: Relevance,
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """(queries, how many rows [q, bits + 1], how many relevant ones) at each distance, chunk by chunk."""
    step = max(1, _COUNTS // (8 * queries.shape[1] + 1))
    for rows, chunk, part in _chunks(queries, relevance, step):
        every, relevant = adapter.hamming_counts(chunk, database, part)
        if relevance.own:  # each met itself at distance 0
            every[:, 0] -= 1
            bits = relevance.query_bits
            relevant[:, 0] -= 1 if bits is None else (bits[rows] != 0).any(axis=1)
        yield rows, every, relevant


def average_precision(
    adapter: ModuleType,
    queries: np.ndarray,  # [Q, bytes] uint8
    database: np.ndarray,  # [M, bytes] uint8
    relevance: Relevance,
    k: int | None,
) -> np.ndarray:  # [Q]
    """Ties by index."""
    cutoff = len(database) if k is None else k
    if relevance.own:  # a chunk of the queries would no longer be the database's first rows
        whole: np.ndarray = adapter.hamming_average_precision(queries, database, relevance, cutoff)
        return whole
    out = np.empty(len(queries))
    pairs = getattr(adapter, "PAIRS_RANKED", _PAIRS)
    for rows, chunk, part in _chunks(queries, relevance, max(256, pairs // len(database))):
        out[rows] = adapter.hamming_average_precision(chunk, database, part, cutoff)
    return out


# ------------------------------------------------------------------ the expectation over tie orders


def expected_average_precision(
    adapter: ModuleType,
    queries: np.ndarray,  # [Q, bytes] uint8
    database: np.ndarray,  # [M, bytes] uint8
    relevance: Relevance,
    k: int | None,
) -> np.ndarray:  # [Q]
    """The expectation over all orders of tied rows, from the counts at each distance."""
    out = np.empty(len(queries))
    for rows, every, relevant in counts(adapter, queries, database, relevance):
        out[rows] = expected_from_counts(every, relevant, k)
    return out


def expected_from_counts(
    every: np.ndarray,  # [Q, D] int64 rows at each distance
    relevant: np.ndarray,  # [Q, D] int64 relevant ones among them
    k: int | None = None,
) -> np.ndarray:  # [Q]
    """Each query's expected average precision when every order of the rows at one distance is as likely.

    A group of n tied rows, r of them relevant, takes the places A + 1 .. A + n, behind R relevant rows. Its
    i-th place holds a relevant row with probability r / n, and then (i - 1)(r - 1)/(n - 1) of the places
    before it in the group are expected to. So the precisions at its relevant rows add up to

        r/n * sum over i of (R + 1 + (i - 1) s) / (A + i)
            = r/n * (s n + (R + 1 - s (A + 1)) (H(A + n) - H(A)))     with s = (r - 1)/(n - 1)

    H being harmonic numbers. The divisor, the relevant rows inside the cut, is random only where the cut
    leaves the first m places of a group: then c of them hold relevant rows with hypergeometric probability,
    and given c the m places are a group of m rows with c relevant ones.
    """
    first = np.cumsum(every, axis=1) - every
    before = np.cumsum(relevant, axis=1) - relevant
    limit = sys.maxsize if k is None else k
    whole = (relevant > 0) & (first + every <= limit)
    sums = np.zeros(every.shape)
    sums[whole] = _precision_sum(first[whole], every[whole], before[whole], relevant[whole])
    total, hits = sums.sum(axis=1), np.where(whole, relevant, 0).sum(axis=1)
    out = total / np.maximum(hits, 1)
    cut, group = np.nonzero((first < limit) & (first + every > limit))  # at most one group a query
    if len(cut):
        place = (cut, group)
        out[cut] = _expected_at_cut(
            first[place], every[place], before[place], relevant[place], limit, total[cut]
        )
    return out


def _precision_sum(
    first: np.ndarray,  # A
    count: np.ndarray,  # n, at least 1
    before: np.ndarray,  # R
    relevant: np.ndarray,  # r
) -> np.ndarray:
    """The expected sum of the precisions at a group's relevant rows."""
    slope = (relevant - 1) / np.maximum(count - 1, 1)
    harmonic = _harmonic_between(first, count)
    sums: np.ndarray = relevant / count * (slope * count + (before + 1 - slope * (first + 1)) * harmonic)
    return sums


def _expected_at_cut(
    first: np.ndarray,  # [P]
    count: np.ndarray,  # [P]
    before: np.ndarray,  # [P]
    relevant: np.ndarray,  # [P]
    k: int,
    total: np.ndarray,  # [P] expected sums of the precisions before the group
) -> np.ndarray:  # [P]
    """The expected average precision where only the first k - first places of a group are in the cut.

    Only those c are summed that lie within 5 sqrt(v) + 2 of the most likely one, v being the least of r, m,
    n - r and n - m: by Hoeffding's bound for draws without replacement all others together have a
    probability below 1e-21.
    """
    kept = k - first
    out = np.empty(len(first))
    least = np.minimum(np.minimum(relevant, kept), np.minimum(count - relevant, count - kept))
    reach = int(5 * np.sqrt(least.max())) + 2
    step = max(1, _WEIGHTS // (2 * reach + 1))
    for begin in range(0, len(first), step):
        part = slice(begin, begin + step)
        a, n, b, r, m = (x[part, None] for x in (first, count, before, relevant, kept))
        mode = (m + 1) * (r + 1) // (n + 2)
        c = mode + np.arange(-reach, reach + 1)
        weights = np.ones(c.shape)
        # Ratios of neighbours, from the most likely value outwards; they reach 0 where the support ends.
        here = c[:, reach:-1]
        weights[:, reach + 1 :] = np.cumprod(
            (r - here) * (m - here) / ((here + 1) * (n - r - m + here + 1)), axis=1
        )
        here = c[:, reach:0:-1]
        weights[:, reach - 1 :: -1] = np.cumprod(
            here * (n - r - m + here) / ((r - here + 1) * (m - here + 1)), axis=1
        )
        sums = total[part, None] + _precision_sum(a, m, b, c)
        values = np.where(weights > 0, sums / np.maximum(b + c, 1), 0.0)
        out[part] = (weights * values).sum(axis=1) / weights.sum(axis=1)
    return out


_EXACT = 64  # harmonic numbers up to here are summed; beyond, what the series leaves out is below 1e-16
_HARMONIC = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, _EXACT + 1))])


def _harmonic_between(
    first: np.ndarray,  # integers from 0
    count: np.ndarray,  # integers from 1
) -> np.ndarray:
    """1/(first + 1) + ... + 1/(first + count), in a time that does not grow with count."""
    last = first + count
    low, high = np.maximum(first, _EXACT), np.maximum(last, _EXACT)
    beyond = np.log1p((high - low) / low) + _harmonic_rest(high) - _harmonic_rest(low)
    up_to = _HARMONIC[np.minimum(last, _EXACT)] - _HARMONIC[np.minimum(first, _EXACT)]
    between: np.ndarray = beyond + up_to
    return between


def _harmonic_rest(n: np.ndarray) -> np.ndarray:
    """H(n) less log(n) and Euler's constant, by the series of Euler and Maclaurin."""
    square = 1.0 / np.square(n, dtype=np.float64)
    rest: np.ndarray = 0.5 / n - square * (1 / 12 - square * (1 / 120 - square / 252))
    return rest


# ------------------------------------------------------------------ the script


def _script_map(
    adapter: ModuleType,
    queries: np.ndarray,  # [Q, bytes] uint8
    database: np.ndarray,  # [M, bytes] uint8
    relevance: Relevance,
    k: int | None,
) -> float:
    """Step by step what the script does, whose distances, as float32, are the same numbers.

    A script takes them as half the bits less the product of codes of -1 and +1, which is exact.
    """
    kept = -1 if k is None else k
    total = 0.0
    for _, chunk, part in _chunks(queries, relevance, max(1, _DISTANCES // len(database))):
        distances = adapter.hamming_distance(chunk, database)
        for query, row in enumerate(distances):
            order = np.argsort(row.astype(np.float32))
            found = _relevant_row(part, query)[order][:kept]
            hits = int(found.sum())
            if hits == 0:
                continue
            ranks = np.flatnonzero(found) + 1.0
            total += float(np.mean(np.linspace(1, hits, hits) / ranks))
    return total / len(queries)


def _relevant_row(relevance: Relevance, query: int) -> np.ndarray:  # [M] bool
    if relevance.query_classes is not None and relevance.database_classes is not None:
        same: np.ndarray = relevance.database_classes == relevance.query_classes[query]
        return same
    assert relevance.query_bits is not None
    assert relevance.database_bits is not None
    shared: np.ndarray = (relevance.database_bits & relevance.query_bits[query]).any(axis=1)
    return shared
