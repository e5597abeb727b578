"""Hamming search over ranks: each answers its share of the queries, shards of the database come round a
ring.
"""

from __future__ import annotations

import os
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tqdm import tqdm

import minerlib
from minerlib import dispatch, files, inputs
from minerlib.offline import _ranked
from minerlib.offline._ring import Ring
from minerlib.offline._run import check_strangers, state_path
from minerlib.offline._state import Memory, StateFile, no_ranked
from minerlib.results import Neighbors

_QUERIES = 4096  # answered at a time, unless asked otherwise
_GATHERED = 1 << 16  # queries whose answers travel at a time


def hamming_search(
    queries: Any,  # [Q, bytes] uint8
    database: Any,  # [M, bytes] uint8
    k: int,
    *,
    chunk_rows: int | None = None,
    output: str | os.PathLike[str] | None = None,
    progress: bool = True,
    backend: str = "auto",
) -> Neighbors:
    """`minerlib.hamming_search` split over the ranks of torch.distributed, in pieces that can be resumed.

    Every rank makes the same call with the same arguments, arrays or names of `.npy` files of packed codes,
    and reads its own share of both. The answers are those of one process, for every number of ranks.

    Args:
        queries, database: `[Q, bytes]` and `[M, bytes]` packed codes, see `minerlib.pack_bits`.
        k: 1 to M.
        chunk_rows: queries answered at a time; answers do not depend on it.
        output: a `.npz` or `.parquet` file as `minerlib search` writes it, by rank 0; a run that ends early
            leaves `<output>.unfinished`, and the same call continues it.
        progress: show a bar with rate and time left on stderr.
        backend: `auto`, or a name of `explain("hamming_search")`.

    Returns:
        `Neighbors` of this rank's share of the queries, rank after rank; of all of them on rank 0 where
        there is an output.

    Raises:
        TypeError, ValueError: bad input; the message names the argument, what was expected and what came.
        FileError, RankLost: as `offline.mine`.

    Memory: the answers, twice, and with ranks one shard of the database.

    >>> import numpy as np
    >>> codes = np.array([[7], [1], [0], [2]], dtype=np.uint8)
    >>> hamming_search(np.zeros((1, 1), np.uint8), codes, 2, progress=False).indices.tolist()
    [[2, 1]]
    """
    ring = Ring()
    path = None if output is None else Path(output)
    with ring.together():
        if path is not None:
            files.check_output(path)
        x, y = (
            files.read_array(Path(each)) if isinstance(each, (str, os.PathLike)) else each
            for each in (queries, database)
        )
        x, y, _ = inputs.code_pair("queries", x, "database", y)
        k = inputs.integer("k", k, 1, len(y))
        size = _QUERIES if chunk_rows is None else inputs.integer("chunk_rows", chunk_rows, 1, 1 << 24)
        kernels = dispatch.choose(backend)
    facts = {"queries": len(x), "database": len(y), "bytes": x.shape[1], "k": k, "chunk_rows": size}
    ring.agree(facts | {"output": None if path is None else str(path)})
    search = _Search(x, y, k, size, kernels, ring)
    search.start(path, facts)
    try:
        search.work(progress)
        found = search.own() if path is None else search.gathered()
        if path is not None and ring.rank == 0:
            facts = {"k": k, "bits": 8 * x.shape[1], "minerlib_version": minerlib.__version__}
            files.write_hits(path, found, facts)
        ring.barrier()
    except BaseException:
        search.state.close()
        raise
    search.state.close(remove=True)
    return found


class _Search:
    """One rank's part of a search."""

    def __init__(
        self,
        queries: np.ndarray,  # [Q, bytes]
        database: np.ndarray,  # [M, bytes]
        k: int,
        size: int,
        backend: ModuleType,
        ring: Ring,
    ) -> None:
        self._queries, self._database, self._k, self._size = queries, database, k, size
        self._backend, self._ring = backend, ring
        self._first, self._last = ring.share(len(queries), ring.rank)
        self.state: Memory | StateFile

    def start(self, path: Path | None, facts: dict[str, Any]) -> None:
        ring, rows = self._ring, self._last - self._first
        with ring.together():
            if path is None:
                self.state = Memory(rows, 0, self._k)
            else:
                check_strangers(path, ring)
                low, high = ring.share(len(self._database), ring.rank)
                sums = {
                    "query codes": zlib.crc32(self._queries[self._first : self._last].data),
                    "database codes": zlib.crc32(self._database[low:high].data),
                }
                name = state_path(path, ring.rank, ring.size)
                self.state = StateFile(name, {**facts, **sums}, rows, 0, self._k)
        step = max(ring.all(self.state.step))
        if step > self.state.step:
            self.state.advance(step, 0)

    def work(self, progress: bool) -> None:
        ring, m = self._ring, len(self._database)
        low, high = ring.share(m, ring.rank)
        shard = self._database[low:high]
        begun = self.state.step
        chunks = [(at, min(at + self._size, self._last)) for at in range(self._first, self._last, self._size)]
        with tqdm(
            total=(self._last - self._first) * m, unit=" distances", unit_scale=True, desc="searching",
            dynamic_ncols=True, file=sys.stderr, disable=not (progress and ring.rank == 0),
        ) as bar:  # fmt: skip
            try:
                for step in range(ring.size if begun < ring.size else 0):
                    low, high = ring.share(m, (ring.rank + step) % ring.size)
                    if step:
                        rows = np.empty((high - low, self._database.shape[1]), np.uint8)
                        ring.shift(shard, (ring.rank - 1) % ring.size, rows, (ring.rank + 1) % ring.size)
                        shard = rows
                    for number, chunk in enumerate(chunks):
                        if step > begun or (step == begun and number >= self.state.done):
                            self._answer(step, chunk, shard, low)
                            self.state.advance(step, number + 1)
                        bar.update((chunk[1] - chunk[0]) * (high - low))
                    if step >= begun:
                        self.state.sync()
                        ring.barrier()
                        self.state.advance(step + 1, 0)
            except BaseException:
                self.state.sync()
                raise

    def _answer(self, step: int, chunk: tuple[int, int], shard: np.ndarray, low: int) -> None:
        first, last = chunk[0] - self._first, chunk[1] - self._first
        ranked = no_ranked(last - first, self._k) if step == 0 else self.state.ranked(step - 1, first, last)
        if len(shard):
            k = min(self._k, len(shard))
            distances, rows = self._backend.hamming_search(self._queries[chunk[0] : chunk[1]], shard, k)
            _ranked.merge(ranked, distances, rows, low)
        self.state.set_ranked(step, first, ranked)

    def own(self) -> Neighbors:
        """The answers to this rank's queries."""
        return _neighbors(self._found(self._first, self._last))

    def gathered(self) -> Neighbors:
        """On rank 0 the answers to all queries, on the others their own."""
        ring, parts = self._ring, []
        for rank in range(ring.size):
            first, last = ring.share(len(self._queries), rank)
            for low in range(first, last, _GATHERED):
                high = min(low + _GATHERED, last)
                if rank == ring.rank:
                    found = self._found(low, high)
                    if rank:
                        ring.send(found, 0)
                elif ring.rank == 0:
                    found = no_ranked(high - low, self._k)
                    ring.receive(found, rank)
                else:
                    continue
                parts.append(found)
        return _neighbors(np.concatenate(parts) if parts else no_ranked(0, self._k))

    def _found(self, first: int, last: int) -> np.ndarray:  # [n, k] RANKED
        return self.state.ranked(self._ring.size - 1, first - self._first, last - self._first)


def _neighbors(ranked: np.ndarray) -> Neighbors:
    return Neighbors(ranked["value"].astype(np.int32), np.ascontiguousarray(ranked["id"]))
