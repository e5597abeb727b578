"""One rank's part of a run: its rows against themselves, then against the rows of the other ranks as they
visit.

Step 0 compares a rank's chunks with each other. In step t the rows of rank + t are there, having come round
the ring, and each of the two ranks that meet in steps t and size - t takes half of the pairs of their
chunks; what is found for the visiting rows goes home at the end of the step. No rank ever holds more than
its own rows and those of one visitor.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from minerlib import files, inputs
from minerlib.offline import _bests, _cases, _ranked, _results
from minerlib.offline._bests import Chunk
from minerlib.offline._cases import CaseTriplets, HardNegatives
from minerlib.offline._ring import Ring
from minerlib.offline._sources import LocalRows, Rows
from minerlib.offline._state import Memory, StateFile, no_ranked

_VISIT = 1 << 20  # rows of records sent home at a time


@dataclass(frozen=True)
class Options:
    """The options of one run, validated."""

    cases: tuple[str, ...]
    rules: HardNegatives
    metric: str
    percentile: float | None
    seed: int
    chunk_rows: int
    facts: dict[str, Any]

    @property
    def wanted(self) -> tuple[int, ...]:
        return _cases.wanted_extremes(self.cases, self.rules)

    @property
    def ranked(self) -> int:
        """How many of each row's nearest negatives are kept."""
        return self.rules.ranked if _cases.HARD in self.cases else 0


class Run:
    """What `offline.mine` does, once its arguments are known to be right."""

    def __init__(
        self, rows: Rows, labels: np.ndarray, options: Options, backend: ModuleType, ring: Ring
    ) -> None:
        self.rows, self.labels, self.options, self.ring = rows, labels, options, ring
        self._backend = backend
        self._updater = _bests.Updater(backend, options.metric, options.wanted)
        self.first, self.last = ring.share(rows.count, ring.rank)
        self._local: LocalRows
        self.state: Memory | StateFile
        self._visitor: tuple[int, np.ndarray, np.ndarray] | None = None  # first row, rows, limits

    def start(self, path: Path | None) -> None:
        """Look at every row, and take up the state of an earlier run or a new one."""
        folder = None if path is None else path.resolve().parent
        with self.ring.together():
            self._local = self.rows.local(self.first, self.last, folder)
            most = max(b - a for a, b in (self.ring.share(self.rows.count, r) for r in range(self.ring.size)))
            visitors = most if self.ring.size > 1 else 0
            size = self.last - self.first, visitors, self.options.ranked
            contents = self._inspect()
            if path is None:
                self.state = Memory(*size)
            else:
                check_strangers(path, self.ring)
                state = state_path(path, self.ring.rank, self.ring.size)
                self.state = StateFile(state, {**self.options.facts, **contents}, *size)
        step = max(self.ring.all(self.state.step))
        if step > self.state.step:  # the others have heard of the end of this rank's step
            self.state.forget_visitors()
            self.state.advance(step, 0)

    def _inspect(self) -> dict[str, str]:
        """Every row is finite; checksums of the rows and labels of this rank."""
        sums = [0, 0]
        with ThreadPoolExecutor(1) as beside:
            for first, last in self._chunks(self.ring.rank):
                rows = self._local.read(first, last)
                checked = beside.submit(inputs.check_values, self.rows.name, rows, first)
                sums[0] = zlib.crc32(rows.data, sums[0])
                sums[1] = zlib.crc32(np.ascontiguousarray(self.labels[first:last]).data, sums[1])
                checked.result()
        return {"embeddings": f"{sums[0]:08x}", "labels": f"{sums[1]:08x}"}

    # -------------------------------------------------------------- the work

    def work(self, bar: Any) -> None:
        """Every step; what is done is recorded as it is done."""
        try:
            if self.state.step == self.ring.size:  # only the result was not written yet
                return
            self._find_limits()
            for step in range(self.ring.size):
                self._receive_visitor(step)
                if step < self.state.step:
                    continue
                self._compare(step, bar)
                if step:
                    self._send_home(step)
                self.state.sync()
                self.ring.barrier()
                self.state.forget_visitors()
                self.state.advance(step + 1, 0)
        except BaseException:
            self.state.sync()
            raise

    def _find_limits(self) -> None:
        percentile, count = self.options.percentile, self.rows.count
        fresh = min(self.ring.all(self.state.step * 2 + min(self.state.done, 1))) == 0
        if not fresh:
            return
        if percentile is not None and count:
            from minerlib.offline import _moments  # which compiles with numba

            add_up = _moments.add_up_here if self.ring.size == 1 else self.ring.add_up
            read = self._local.read if self.ring.size == 1 else self.rows.read
            metric = self.options.metric
            limits = _moments.Limits(read, count, self.rows.dims, metric, percentile, add_up)
            for first, last in self._chunks(self.ring.rank):
                self.state.set_limits(first - self.first, limits.of(self._local.read(first, last)))
        if self.state.step == 0 and self.state.done == 0:
            self.state.advance(0, 1)

    def _chunks(self, rank: int) -> list[tuple[int, int]]:
        """The chunks of a rank's rows, all of about one size."""
        first, last = self.ring.share(self.rows.count, rank)
        count = -(-(last - first) // self.options.chunk_rows)
        edges = [first + (last - first) * c // max(count, 1) for c in range(count + 1)]
        return list(itertools.pairwise(edges))

    def tasks(self, step: int) -> list[tuple[int, int]]:
        """Pairs of chunks to compare in a step; (i, -1): rank the negatives of chunk i among those there."""
        own, other = self.ring.rank, (self.ring.rank + step) % self.ring.size
        mine, theirs = len(self._chunks(own)), len(self._chunks(other))
        ranked = [(i, -1) for i in range(mine)] if self.options.ranked else []
        if step == 0:
            return [(i, j) for i in range(mine) for j in range(i, mine)] + ranked
        odd = 0 if own < other else 1
        return [(i, j) for i in range(mine) for j in range(theirs) if (i + j) % 2 == odd] + ranked

    def cost(self, step: int, task: tuple[int, int]) -> int:
        """Distances of a task; a pair of rows counts once for each of its two sides that it serves."""
        own, other = self._chunks(self.ring.rank), self._chunks((self.ring.rank + step) % self.ring.size)
        first, last = own[task[0]]
        if task[1] < 0:
            return (last - first) * (other[-1][1] - other[0][0] if other else 0)
        low, high = other[task[1]]
        return (last - first) * (high - low) * (1 if step == 0 and task[0] == task[1] else 2)

    def total_cost(self, done: bool = False) -> int:
        """Of all tasks, or of those that the state counts as done."""
        total = 0
        for step in range(self.ring.size):
            tasks = self.tasks(step)
            if done:
                tasks = tasks if step < self.state.step else tasks[: max(self.state.done - 1, 0)]
            if not done or step <= self.state.step:
                total += sum(self.cost(step, task) for task in tasks)
        return total

    def _compare(self, step: int, bar: Any) -> None:
        begun = max(self.state.done, 1)  # where limits are the first thing done
        for number, task in enumerate(self.tasks(step), start=1):
            if number < begun:
                continue
            if task[1] < 0:
                self._rank(step, task[0])
            else:
                self._update(step, *task)
            self.state.advance(step, number + 1)
            bar.update(self.cost(step, task))

    def _update(self, step: int, i: int, j: int) -> None:
        x = self._own(i)
        y = self._visiting(step, j) if step else x if i == j else self._own(j)
        self._updater.update(x, y)
        self.state.set_records("home", x.first - self.first, x.records)
        if step == 0 and i != j:
            self.state.set_records("home", y.first - self.first, y.records)
        elif step:
            assert self._visitor is not None
            self.state.set_records("away", y.first - self._visitor[0], y.records)

    def _rank(self, step: int, i: int) -> None:
        x = self._own(i)
        if step == 0:
            ranked = no_ranked(len(x.rows), self.options.ranked)
        else:
            ranked = self.state.ranked(step - 1, x.first - self.first, x.first - self.first + len(x.rows))
        others = len(self._chunks((self.ring.rank + step) % self.ring.size))
        for j in range(others):
            y = self._visiting(step, j) if step else x if i == j else self._own(j)
            _ranked.offer(self._backend, x, y, self.options.metric, ranked)
        self.state.set_ranked(step, x.first - self.first, ranked)

    def _own(self, i: int) -> Chunk:
        first, last = self._chunks(self.ring.rank)[i]
        low, high = first - self.first, last - self.first
        limits = self.state.limits(low, high) if self.options.percentile is not None else None
        records = self.state.records("home", low, high)
        return Chunk(first, self._local.read(first, last), self.labels[first:last], limits, records)

    def _visiting(self, step: int, j: int) -> Chunk:
        assert self._visitor is not None
        start, rows, limits = self._visitor
        first, last = self._chunks((self.ring.rank + step) % self.ring.size)[j]
        low, high = first - start, last - start
        some = limits[low:high] if self.options.percentile is not None else None
        records = self.state.records("away", low, high)
        return Chunk(first, rows[low:high], self.labels[first:last], some, records)

    # -------------------------------------------------------------- the ring

    def _receive_visitor(self, step: int) -> None:
        """Pass the rows that are here to the rank before, and take those of the rank behind."""
        if step == 0:
            return
        rank, size = self.ring.rank, self.ring.size
        first, last = self.ring.share(self.rows.count, (rank + step) % size)
        rows = np.empty((last - first, self.rows.dims), self.rows.dtype)
        limits = np.empty(last - first)
        if self._visitor is None:
            own = self.last - self.first
            self._visitor = self.first, self._local.read(self.first, self.last), self.state.limits(0, own)
        self.ring.shift(self._visitor[1], (rank - 1) % size, rows, (rank + 1) % size)
        self.ring.shift(self._visitor[2], (rank - 1) % size, limits, (rank + 1) % size)
        self._visitor = first, rows, limits

    def _send_home(self, step: int) -> None:
        """Exchange what was found for rows on a visit."""
        rank, size = self.ring.rank, self.ring.size
        host, guest = (rank - step) % size, (rank + step) % size  # where own rows are, whose rows are here
        first, last = self.ring.share(self.rows.count, guest)
        rows = max(last - first, self.last - self.first)
        for low in range(0, rows, _VISIT):
            sent = self.state.records("away", min(low, last - first), min(low + _VISIT, last - first))
            own = min(low, self.last - self.first), min(low + _VISIT, self.last - self.first)
            found = _bests.no_records(own[1] - own[0])
            self.ring.shift(sent, guest, found, host)
            records = self.state.records("home", *own)
            _bests.merge(records, found)
            self.state.set_records("home", own[0], records)

    # -------------------------------------------------------------- the results

    def own_triplets(self, case: str) -> CaseTriplets:
        """Those of this rank's anchors."""
        return self._triplets(case, self.first, *self._found(case, self.first, self.last))

    def write(self, path: Path, facts: dict[str, Any]) -> dict[str, int]:
        """Rank 0 writes what all have found; how many triplets there are of each case."""
        counts = dict.fromkeys(self.options.cases, 0)
        if self.ring.rank == 0:
            counts = _results.write(path, facts, self.options.cases, self._blocks)
        else:
            for case in self.options.cases:
                for _ in self._blocks(case):
                    pass
        return dict(zip(counts, (max(self.ring.all(count)) for count in counts.values()), strict=True))

    def _blocks(self, case: str) -> Iterator[CaseTriplets]:
        """The triplets of a case, a block of anchors at a time; rank 0 gets them, the others send their
        share.
        """
        for start in range(0, max(self.rows.count, 1), _results.BLOCK):
            end = min(start + _results.BLOCK, self.rows.count)
            parts = []
            for rank in range(self.ring.size):
                low, high = self.ring.share(self.rows.count, rank)
                low, high = max(low, start), min(high, end)
                if low < high or (start == end and rank == 0):
                    parts.append(self._fetched(case, rank, low, max(low, high)))
            if self.ring.rank == 0:
                arrays = [np.concatenate(each) for each in zip(*parts, strict=True)]
                yield self._triplets(case, start, *arrays)

    def _fetched(self, case: str, rank: int, first: int, last: int) -> tuple[np.ndarray, ...]:
        if self.ring.rank == rank:
            found = self._found(case, first, last)
            if rank:
                for each in found:
                    self.ring.send(each, 0)
            return found
        count, k = last - first, self.options.ranked if case == _cases.HARD else 0
        found = _bests.no_records(count), no_ranked(count, k), np.empty(count)
        if self.ring.rank == 0:
            for each in found:
                self.ring.receive(each, rank)
        return found

    def _found(self, case: str, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Records, ranked negatives and limits of some of this rank's rows."""
        low, high = first - self.first, last - self.first
        if case == _cases.HARD:
            ranked = self.state.ranked(self.ring.size - 1, low, high)
        else:
            ranked = no_ranked(high - low, 0)
        return self.state.records("home", low, high), ranked, np.array(self.state.limits(low, high))

    def _triplets(
        self, case: str, first: int, records: np.ndarray, ranked: np.ndarray, limits: np.ndarray
    ) -> CaseTriplets:
        options = self.options
        if case == _cases.HARD:
            return _cases.hard_negatives_of(options.rules, first, records, ranked, limits, options.metric)
        return _cases.triplets_of(case, first, records, options.seed, options.metric)


def state_path(output: Path, rank: int, size: int) -> Path:
    """Where a rank keeps the state of an unfinished run."""
    return output.with_name(f"{output.name}.unfinished" + (f"-{rank}-of-{size}" if size > 1 else ""))


def check_strangers(output: Path, ring: Ring) -> None:
    """A run is continued by as many ranks as began it."""
    own = state_path(output, ring.rank, ring.size).name.removesuffix(f"-{ring.rank}-of-{ring.size}")
    for path in sorted(output.parent.glob(f"{output.name}.unfinished*")):
        size = path.name.rpartition("-of-")[2] if "-of-" in path.name else "1"
        if size != str(ring.size):
            raise files.FileError(
                f"{path}: left by an unfinished run of {size} ranks, this one has {ring.size}; run it with "
                f"{size} to finish it, or remove {own}* to mine anew"
            )
