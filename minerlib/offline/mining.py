"""`offline.mine`: the triplets of a whole data set."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

import minerlib
from minerlib import dispatch, files, inputs
from minerlib.offline import _cases, _results
from minerlib.offline._cases import CaseTriplets, HardNegatives
from minerlib.offline._ring import Ring
from minerlib.offline._run import Options, Run
from minerlib.offline._sources import ArrayRows, Rows, open_labels, open_rows

_CHUNK_BYTES = 17 << 20  # of float32
_CHUNK_ROWS = 1024, 34816
_SLICE_ROWS = 4096


class Mined(Mapping[str, CaseTriplets]):
    """The triplets of each case; those of a file are read when they are asked for."""

    def __init__(
        self, counts: dict[str, int], path: Path | None, cases: dict[str, CaseTriplets] | None
    ) -> None:
        self.counts, self.path = counts, path
        self._cases = cases

    def __getitem__(self, case: str) -> CaseTriplets:
        if case not in self.counts:
            raise KeyError(case)
        if self._cases is not None:
            return self._cases[case]
        assert self.path is not None
        return _results.read(self.path, case)

    def __iter__(self) -> Iterator[str]:
        return iter(self.counts)

    def __len__(self) -> int:
        return len(self.counts)

    def __repr__(self) -> str:
        return f"Mined({self.counts}, {'in memory' if self.path is None else self.path})"


def mine(
    embeddings: Any,  # [N, D]
    labels: Any,  # [N] or [N, C] bool
    cases: Sequence[str] | str,
    *,
    outlier_percentile: float | None = 99,
    chunk_rows: int | None = None,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
    metric: str = "sqeuclidean",
    hard_negatives: HardNegatives | None = None,
    backend: str = "auto",
) -> Mined:
    """Mine triplets from a whole data set: one pass over the distances serves all cases of extremes.

    Args:
        embeddings: `[N, D]` float16, bfloat16, float32 or float64: an array or tensor, a memory-mapped one or
            the name of a `.npy` file, a `pyarrow.Table` or the name of a `.parquet`, `.arrow` or `.feather`
            file whose column `embedding` holds lists of floats.
        labels: `[N]` integers or bool, or `[N, C]` bool: an array, the name of a `.npy` file, or a table
        with a
            column `label`; None takes that column of the embeddings' table.
        cases: names among `offline.CASES`: `epen`, `ephn`, `hpen`, `hphn` = `batch-hard`, `assorted`,
            `easy-positive` choose one positive and one negative for each anchor among the nearest and the
            farthest, and `hard-negatives` several of the nearest negatives by the rules of `hard_negatives`.
        outlier_percentile: rows farther from an anchor than this percentile of the normal distribution with
        the
            mean and deviation of its distances are neither its positives nor its negatives (EXT's rule);
            50 to below 100, or None.
        chunk_rows: rows compared at a time with as many others; results do not depend on it.
        seed: 0 <= seed < 2^64, for `assorted`.
        output: a `.parquet` or `.npz` file, which appears whole or not at all. A run that ends early leaves
            `<output>.unfinished`, and the same call continues from its last finished pair of chunks. Without
            an output the triplets are returned in memory.
        progress: show a bar with rate and time left on stderr.
        metric: `sqeuclidean`, `euclidean` or `cosine`.
        hard_negatives: count, window of ranks and margin of that case.
        backend: `auto`, or a name of `explain("mine")`; `native` is by far the fastest.

    Under `torch.distributed` every rank makes the same call with the same arguments; anchors are split over
    the ranks and the rest of the rows comes round a ring. The file, written by rank 0, is the same for every
    number of ranks; without an output each rank gets the triplets of its own anchors.

    Returns:
        `Mined`: for each case `anchors`, `positives`, `negatives` (int64), `positive_distances`,
        `negative_distances` (float64, in the metric's unit) and `ranks`, `[T]` each, sorted by anchor. An
        anchor without a positive or without a negative yields nothing.

    Raises:
        TypeError, ValueError: bad input; the message names the argument, what was expected and what came.
        FileError: a file that cannot be read or written, or the state of another run in the way.
        RankLost: another rank has ended; what is finished is kept.

    Memory beside the inputs: about `chunk_rows` * (32 D + 1500) bytes on two threads, and without an output
    the results; with ranks each also holds the rows of one other.

    Source: SPEC section 9; EXT section II.

    >>> import numpy as np
    >>> x = np.array([[0.0], [1.0], [3.0], [9.0]], dtype=np.float32)
    >>> found = mine(x, np.array([0, 0, 1, 1]), "hphn", outlier_percentile=None, progress=False)
    >>> found["hphn"].negatives.tolist()
    [2, 2, 1, 1]
    """
    ring = Ring()
    path = None if output is None else Path(output)
    with ring.together():
        if path is not None:
            files.check_output(path)
        rows, labels_, options, origin = prepare(
            embeddings, labels, cases, outlier_percentile, chunk_rows, seed, metric, hard_negatives, ring.size
        )
        kernels = dispatch.choose(backend)
    ring.agree(options.facts | {"output": None if path is None else str(path)})
    run = Run(rows, labels_, options, kernels, ring)
    run.start(path)
    try:
        # Distances as they count towards the result: a tile that serves both of its sides counts twice.
        with tqdm(
            total=run.total_cost(), initial=run.total_cost(done=True), desc="mining", unit=" distances",
            unit_scale=True, dynamic_ncols=True, file=sys.stderr, disable=not (progress and ring.rank == 0),
        ) as bar:  # fmt: skip
            run.work(bar)
        if path is None:
            found = {case: run.own_triplets(case) for case in options.cases}
            counts = {case: len(each.anchors) for case, each in found.items()}
            wrapped = {
                case: CaseTriplets(*(origin.wrap(array) for array in each)) for case, each in found.items()
            }
            return Mined(counts, None, wrapped)
        counts = run.write(path, result_facts(rows, options))
        ring.barrier()
    except BaseException:
        run.state.close()
        raise
    run.state.close(remove=True)
    return Mined(counts, path, None)


class Estimate(NamedTuple):
    """What a run would take, from its sizes and a slice of it that was measured."""

    seconds: float  # of each rank, writing the result not included
    distances: int  # to be compared, of all ranks
    distances_per_second: float  # measured, of one rank
    memory: int  # bytes of each rank beside libraries and the pages of its inputs
    state: int  # bytes of the file that each rank keeps until the result is written
    result: int  # bytes of the result before compression, at most
    ranks: int


def estimate(
    embeddings: Any,
    labels: Any,
    cases: Sequence[str] | str,
    *,
    outlier_percentile: float | None = 99,
    chunk_rows: int | None = None,
    metric: str = "sqeuclidean",
    hard_negatives: HardNegatives | None = None,
    backend: str = "auto",
    ranks: int | None = None,
) -> Estimate:
    """What `mine` with these arguments would take on this machine: a slice of the work is done and measured.

    ranks: how many, if not those of torch.distributed. Takes about a second, and the memory of two chunks.

    >>> import numpy as np
    >>> estimate(np.zeros((9, 2)), np.zeros(9, int), "hphn").distances
    81
    """
    ring = Ring()
    size = ring.size if ranks is None else inputs.integer("ranks", ranks, 1, 1 << 20)
    rows, labels, options, _ = prepare(
        embeddings, labels, cases, outlier_percentile, chunk_rows, 0, metric, hard_negatives, size
    )
    kernels = dispatch.choose(backend)
    n, own = rows.count, -(-rows.count // size)
    extremes = n * n
    ranked = n * n if options.ranked else 0
    slice_rows = min(n, 2 * _SLICE_ROWS, 2 * options.chunk_rows)
    sliced = replace(options, chunk_rows=max(1, -(-slice_rows // 2)), percentile=None)
    sample = ArrayRows("embeddings", np.array(rows.read(0, slice_rows)), np.empty(0, rows.dtype))
    idle = tqdm(disable=True)
    run = Run(sample, labels[:slice_rows], sliced, kernels, Ring(alone=True))
    run.start(None)
    run.work(idle)  # compiles and warms up
    run = Run(sample, labels[:slice_rows], sliced, kernels, Ring(alone=True))
    run.start(None)
    start = time.perf_counter()
    run.work(idle)
    rate = max(run.total_cost(), 1) / max(time.perf_counter() - start, 1e-9)
    threads = minerlib.get_num_threads()
    chunk = min(options.chunk_rows, own)
    wide = rows.dtype.itemsize
    # two chunks as they are and joined, packed for both stages of the filter, and the lists of their rows on
    # every thread
    memory = 2 * chunk * (rows.dims * (2 * wide + 8) + 168 + threads * 4 * 72 + 16 * options.ranked)
    memory += (2 * own * rows.dims * wide if size > 1 else 0) + 8 * rows.dims * rows.dims * (threads + 1)
    state = 8192 + own * (8 + 64 * (2 if size > 1 else 1) + 32 * options.ranked)
    per_anchor = sum(options.rules.count if case == _cases.HARD else 1 for case in options.cases)
    return Estimate(
        (extremes + ranked) / size / rate, extremes + ranked, rate, memory, state, 45 * per_anchor * n, size
    )


def prepare(
    embeddings: Any,
    labels: Any,
    cases: Any,
    outlier_percentile: Any,
    chunk_rows: Any,
    seed: Any,
    metric: Any,
    hard_negatives: Any,
    ranks: int,
) -> tuple[Rows, Any, Options, Any]:
    """The arguments of `mine`, validated: rows, labels, options, and where the embeddings came from."""
    names = _cases.check_cases(cases)
    inputs.one_of("metric", metric, inputs.METRICS)
    if hard_negatives is not None and not isinstance(hard_negatives, HardNegatives):
        raise TypeError(f"hard_negatives: expected HardNegatives, got {type(hard_negatives).__name__}")
    if hard_negatives is not None and _cases.HARD not in names:
        raise ValueError(f"hard_negatives: expected {_cases.HARD!r} among the cases, got {', '.join(names)}")
    percentile, seed = _percentile(outlier_percentile), inputs.seed_value(seed)
    rows, origin = open_rows("embeddings", embeddings)
    labels = open_labels("labels", labels, "embeddings", embeddings, rows.count)
    rules = hard_negatives or HardNegatives()
    size = _chunk_rows(chunk_rows, rows, ranks)
    facts: dict[str, Any] = {
        "format": 1,
        "rows": rows.count,
        "dims": rows.dims,
        "dtype": str(rows.dtype),
        "cases": ",".join(names),
        "metric": metric,
        "outlier_percentile": percentile,
        "seed": seed,
        "chunk_rows": size,
        "hard_negatives": str(rules) if _cases.HARD in names else None,
    }
    return rows, labels, Options(names, rules, metric, percentile, seed, size, facts), origin


def result_facts(rows: Rows, options: Options) -> dict[str, Any]:
    """What a result says of its run: nothing of how the work was cut."""
    skipped = ("format", "chunk_rows", "dtype")
    facts = {name: value for name, value in options.facts.items() if name not in skipped}
    return {name: "" if value is None else value for name, value in facts.items()} | {
        "minerlib_version": minerlib.__version__
    }


def _percentile(value: Any) -> float | None:
    if value is None:
        return None
    number = inputs.finite_non_negative("outlier_percentile", value)
    if not 50 <= number < 100:
        raise ValueError(f"outlier_percentile: expected a number from 50 to below 100, or None, got {number}")
    return number


def _chunk_rows(value: Any, rows: Rows, ranks: int) -> int:
    if value is not None:
        return inputs.integer("chunk_rows", value, 1, 1 << 24)
    low, high = _CHUNK_ROWS
    size = max(low, min(high, _CHUNK_BYTES // (4 * rows.dims)))
    if ranks > 1:  # enough of them to share the pairs of two ranks' chunks evenly
        size = min(size, max(low, -(-rows.count // (4 * ranks))))
    return size
