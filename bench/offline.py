"""Offline mining at scale: `python -m bench.offline`, on a quiet machine.

For each number of rows: the time of all four extremes and `assorted` with the outlier rule, from a
memory-mapped file to a Parquet file, in a process of its own; its peak memory beyond the libraries and the
pages of the input; the time that faiss-cpu's FlatL2 needs for the nearest neighbour (k = 1) of a slice of
the rows among all of them, scaled to all. Twenty anchors are held to the plain definition. With --ranks also
the time of that many ranks of one thread each, and whether the file is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

DIMS, CLASSES = 128, 9
SLICE = 5000  # faiss's queries


def write_rows(folder: Path, rows: int) -> None:
    """Normal rows around nine class centres, a piece at a time."""
    draw = np.random.default_rng(1)
    centres = draw.standard_normal((CLASSES, DIMS)).astype(np.float32)
    labels = draw.integers(0, CLASSES, rows)
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (rows, DIMS))
    for first in range(0, rows, 1 << 16):
        some = slice(first, min(first + (1 << 16), rows))
        x[some] = draw.standard_normal((some.stop - first, DIMS), dtype=np.float32) + centres[labels[some]]
    x.flush()
    np.save(folder / "y.npy", labels)


def anonymous_memory() -> int:
    """Bytes of this process that are no pages of files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not say what memory is anonymous")


def mine(folder: Path, output: str, percentile: float | None) -> dict[str, Any]:
    """Seconds and memory of one run in this process."""
    from minerlib import offline

    draw = np.random.default_rng(0)
    warm = draw.standard_normal((512, DIMS), dtype=np.float32), draw.integers(0, CLASSES, 512)
    offline.mine(*warm, offline.EXTREME_CASES, output=folder / "warm.parquet", progress=False)
    before, peak, done = anonymous_memory(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, worked = time.perf_counter(), time.process_time()
    offline.mine(
        folder / "x.npy", folder / "y.npy", offline.EXTREME_CASES, outlier_percentile=percentile,
        output=folder / output, progress=False,
    )  # fmt: skip
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    done.set()
    watcher.join()
    return {"seconds": seconds, "processor_seconds": worked, "megabytes": (peak[0] - before) / 1e6}


def nearest_by_faiss(folder: Path) -> tuple[float, float]:
    """Seconds and processor seconds of as many nearest neighbours as there are rows, from a slice of them."""
    import faiss

    x = np.load(folder / "x.npy", mmap_mode="r")
    index = faiss.IndexFlatL2(DIMS)
    index.add(np.ascontiguousarray(x))
    queries = np.ascontiguousarray(x[: min(SLICE, len(x))])
    index.search(queries[:256], 1)
    start, worked = time.perf_counter(), time.process_time()
    index.search(queries, 1)
    scale = len(x) / len(queries)
    return (time.perf_counter() - start) * scale, (time.process_time() - worked) * scale


def check(folder: Path) -> None:
    """A few anchors by the plain definition."""
    from minerlib import offline, reference
    from minerlib.offline import _moments

    x, y = np.load(folder / "x.npy", mmap_mode="r"), np.load(folder / "y.npy")
    anchors = np.linspace(0, len(x) - 1, 20).astype(np.int64)
    read = lambda first, last: np.asarray(x[first:last])  # noqa: E731
    limits = _moments.Limits(read, len(x), DIMS, "sqeuclidean", 99, _moments.add_up_here).of(x[anchors])
    found = offline.OfflineTriplets(folder / "mined.parquet", cases=["hphn", "epen"])
    hphn, epen = (
        slice(start, start + count) for start, count in zip((0, found.counts[0]), found.counts, strict=True)
    )
    for a, limit in zip(anchors, limits, strict=True):
        d = reference.squared_distances(x[a : a + 1], np.asarray(x))[0]
        eligible = (d <= limit) & (np.arange(len(x)) != a)
        same, other = eligible & (y == y[a]), eligible & (y != y[a])
        best = [np.where(same, d, -np.inf).argmax(), np.where(other, d, np.inf).argmin()]
        easy = [np.where(same, d, np.inf).argmin(), np.where(other, d, -np.inf).argmax()]
        for some, expected in ((hphn, best), (epen, easy)):
            place = np.flatnonzero(found.anchors[some] == a)[0] + some.start
            assert [found.positives[place], found.negatives[place]] == expected, (a, expected)


def run_ranks(folder: Path, ranks: int) -> dict[str, Any]:
    """Wall time of a run under torchrun, starting up included and apart."""
    one_thread = "import minerlib\nminerlib.set_num_threads(1)\n"
    (folder / "rank.py").write_text(one_thread + "from minerlib.cli import main\nraise SystemExit(main())\n")

    def launch(*arguments: str) -> float:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
            str(folder / "rank.py"), "mine", *arguments, "--quiet", "--output", str(folder / "ranks.parquet"),
        ]  # fmt: skip
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return time.perf_counter() - start

    cases = ["--cases", "epen", "ephn", "hpen", "hphn", "assorted"]
    np.save(folder / "xs.npy", np.load(folder / "x.npy", mmap_mode="r")[:600])
    np.save(folder / "ys.npy", np.load(folder / "y.npy")[:600])
    start_up = launch(str(folder / "xs.npy"), str(folder / "ys.npy"), *cases)
    seconds = launch(str(folder / "x.npy"), str(folder / "y.npy"), *cases) - start_up
    same = (folder / "ranks.parquet").read_bytes() == (folder / "mined.parquet").read_bytes()
    return {"ranks": ranks, "seconds": seconds, "start_up": start_up, "same_bytes": same}


def measure(folder: Path, with_faiss: bool) -> dict[str, dict[str, float]]:
    """One run of each, in turn."""
    found = {}
    for label, percentile in (("mine", "99"), ("mine_without_outlier_rule", "none")):
        output = "mined.parquet" if percentile == "99" else "plain.parquet"
        command = [sys.executable, "-m", "bench.offline", "--one", str(folder), output, percentile]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[label] = json.loads(done.stdout.splitlines()[-1])
    if with_faiss:
        seconds, worked = nearest_by_faiss(folder)
        found["faiss"] = {"seconds": seconds, "processor_seconds": worked}
        for label in ("mine", "mine_without_outlier_rule"):
            found[label]["times_as_fast_as_faiss"] = seconds / found[label]["seconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.offline", description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--ranks", type=int, nargs="*", default=[])
    parser.add_argument("--repeats", type=int, default=1, help="of which medians are taken, in turn")
    parser.add_argument("--no-faiss", action="store_true", help="measure mining alone")
    parser.add_argument(
        "--one", nargs=3, help=argparse.SUPPRESS
    )  # folder, output, percentile: the process of one run
    arguments = parser.parse_args()
    if arguments.one:
        folder, output, percentile = arguments.one
        print(json.dumps(mine(Path(folder), output, None if percentile == "none" else float(percentile))))
        return
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_rows(folder, rows)
            runs = [measure(folder, not arguments.no_faiss) for _ in range(arguments.repeats)]
            result: dict[str, Any] = {"rows": rows, "repeats": len(runs)}
            for name in runs[0]:
                result[name] = {key: median(run[name][key] for run in runs) for key in runs[0][name]}
            check(folder)
            result["ranks"] = [run_ranks(folder, ranks) for ranks in arguments.ranks]
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
