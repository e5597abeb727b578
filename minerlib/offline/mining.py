"""`offline.mine`: the extremes of a whole data set, a pair of chunks at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from minerlib import dispatch, inputs
from minerlib.arrays import Origin
from minerlib.offline import _bests, _cases, _moments
from minerlib.offline._cases import CaseTriplets
from minerlib.offline._sources import ArrayRows, open_labels, open_rows

_CHUNK_BYTES = 1 << 23
_CHUNK_ROWS = 1024, 16384


class Mined(Mapping[str, CaseTriplets]):
    """The triplets of each case."""

    def __init__(self, cases: dict[str, CaseTriplets]) -> None:
        self._cases = cases

    def __getitem__(self, case: str) -> CaseTriplets:
        return self._cases[case]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cases)

    def __len__(self) -> int:
        return len(self._cases)


def mine(
    embeddings: Any,  # [N, D]
    labels: Any,  # [N] or [N, C] bool
    cases: Sequence[str] | str,
    *,
    outlier_percentile: float | None = 99,
    chunk_rows: int | None = None,
    seed: int = 0,
    output: Any = None,
    progress: bool = True,
    metric: str = "sqeuclidean",
    backend: str = "auto",
) -> Mined:
    """Mine the extremes of a whole data set: one pass over the distances serves all cases.

    >>> import numpy as np
    >>> x = np.array([[0.0], [1.0], [3.0], [9.0]], dtype=np.float32)
    >>> found = mine(x, np.array([0, 0, 1, 1]), ["hphn", "epen"], outlier_percentile=None, progress=False)
    >>> found["hphn"].negatives.tolist()
    [2, 2, 1, 1]
    """
    names = _cases.check_cases(cases)
    inputs.one_of("metric", metric, inputs.METRICS)
    seed = inputs.seed_value(seed)
    percentile = _percentile(outlier_percentile)
    rows, origin = open_rows("embeddings", embeddings)
    y = open_labels("labels", labels, "embeddings", rows.count)
    size = _chunk_rows(chunk_rows, rows)
    if output is not None:
        raise NotImplementedError("output")
    kernels = dispatch.choose(backend)

    for first in range(0, rows.count, size):
        rows.checked(first, min(first + size, rows.count))
    limits = None
    if percentile is not None and rows.count:
        limits = _moments.Limits(rows.read, rows.count, rows.dims, metric, percentile, _moments.add_up_here)
    chunks = []
    for first in range(0, rows.count, size):
        last = min(first + size, rows.count)
        part = rows.read(first, last)
        limit = None if limits is None else limits.of(part)
        chunks.append(_bests.Chunk(first, part, y[first:last], limit, _bests.no_records(last - first)))
    pairs = [(i, j) for i in range(len(chunks)) for j in range(i, len(chunks))]
    for i, j in tqdm(pairs, disable=not progress, unit="pair of chunks", file=sys.stderr):
        _bests.update(kernels, chunks[i], chunks[j], metric)
    return Mined({name: _joined(name, chunks, seed, metric, origin) for name in names})


def _joined(name: str, chunks: list[_bests.Chunk], seed: int, metric: str, origin: Origin) -> CaseTriplets:
    parts = [_cases.triplets_of(name, chunk.first, chunk.records, seed, metric) for chunk in chunks]
    if not parts:
        parts = [_cases.triplets_of(name, 0, _bests.no_records(0), seed, metric)]
    return CaseTriplets(*(origin.wrap(np.concatenate(part)) for part in zip(*parts, strict=True)))


def _percentile(value: Any) -> float | None:
    if value is None:
        return None
    number = inputs.finite_non_negative("outlier_percentile", value)
    if not 50 <= number < 100:
        raise ValueError(f"outlier_percentile: expected a number from 50 to below 100, or None, got {number}")
    return number


def _chunk_rows(value: Any, rows: ArrayRows) -> int:
    if value is not None:
        return inputs.integer("chunk_rows", value, 1, 1 << 30)
    low, high = _CHUNK_ROWS
    return max(low, min(high, _CHUNK_BYTES // (4 * rows.dims)))
