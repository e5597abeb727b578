"""Runs of offline.mine that end early, fail or take several ranks: the same bytes, or a clear error.

Ranks and runs to be killed are forked, so that torch is imported once; they use one thread.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

import minerlib
from minerlib import offline
from minerlib.offline import _run

CASES = [*offline.EXTREME_CASES, "hard-negatives"]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")


@pytest.fixture(autouse=True)
def _one_thread():
    minerlib.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    draw = np.random.default_rng(5)
    x = draw.standard_normal((1500, 12)).astype(np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", draw.integers(0, 7, len(x)))
    minerlib.set_num_threads(1)
    offline.mine(folder / "x.npy", folder / "y.npy", CASES, output=folder / "whole.parquet", progress=False)
    return folder


def mine(folder: Path, name: str, **options) -> offline.Mined:
    options = {"chunk_rows": 100, "progress": False} | options
    return offline.mine(folder / "x.npy", folder / "y.npy", CASES, output=folder / name, **options)


def forked(body: Callable[[], object]) -> int:
    """The process that runs the body; its exit code is 0 if it returns."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        body()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def in_ranks(folder: Path, size: int, body: Callable[[int], object]) -> list[int]:
    """The exit codes of `size` forked ranks that meet over gloo; a rank that is killed has a negative one."""
    meeting = folder / f"meeting-{size}-{time.monotonic_ns()}"

    def rank(number: int) -> None:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", f"file://{meeting}", rank=number, world_size=size, timeout=timedelta(seconds=60)
        )
        body(number)
        dist.destroy_process_group()

    children = [forked(lambda number=number: rank(number)) for number in range(size)]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def same_bytes(folder: Path, name: str) -> bool:
    return (folder / name).read_bytes() == (folder / "whole.parquet").read_bytes()


def leftovers(folder: Path, name: str) -> list[str]:
    return sorted(path.name for path in folder.glob(f"{name}.unfinished*"))


def kill_and_resume(folder: Path, name: str, kills: int, longest: float, seed: int) -> int:
    """Start a run again and again and kill it at random moments; how many kills met a run at work."""
    draw = random.Random(seed)
    met = 0
    for _ in range(kills):
        child = forked(lambda: mine(folder, name))
        time.sleep(draw.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        met += not (folder / name).exists()
        if (folder / name).exists():  # it had finished: begin anew
            assert same_bytes(folder, name)
            (folder / name).unlink()
    mine(folder, name)
    return met


def test_killed_runs_resume_to_the_same_bytes(folder):
    assert kill_and_resume(folder, "killed.parquet", kills=5, longest=0.3, seed=1) >= 1
    assert same_bytes(folder, "killed.parquet")
    assert leftovers(folder, "killed.parquet") == []
    assert not list(folder.glob(".minerlib-*"))


def test_an_interrupted_run_goes_on_where_it_was(folder, monkeypatch):
    update, ran = _run.Run._update, []

    def interrupted(self, *task):
        if len(ran) == 100:
            raise KeyboardInterrupt
        ran.append(task)
        update(self, *task)

    monkeypatch.setattr(_run.Run, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mine(folder, "stopped.parquet")
    assert leftovers(folder, "stopped.parquet") == ["stopped.parquet.unfinished"]
    assert not (folder / "stopped.parquet").exists()
    with pytest.raises(offline.FileError, match="left by an unfinished run with chunk_rows 100, not 70"):
        mine(folder, "stopped.parquet", chunk_rows=70)
    with pytest.raises(offline.FileError, match="left by an unfinished run with seed 0, not 1"):
        mine(folder, "stopped.parquet", seed=1)
    monkeypatch.setattr(_run.Run, "_update", lambda self, *task: (ran.append(task), update(self, *task)))
    mine(folder, "stopped.parquet")
    assert ran == [(0, i, j) for i in range(15) for j in range(i, 15)]
    assert same_bytes(folder, "stopped.parquet")


def test_a_changed_input_is_not_continued(folder, monkeypatch, tmp_path):
    def stop(self, *task):
        raise KeyboardInterrupt

    x = np.load(folder / "x.npy")[:300]
    y = np.load(folder / "y.npy")[:300]
    monkeypatch.setattr(_run.Run, "_update", stop)
    with pytest.raises(KeyboardInterrupt):
        offline.mine(x, y, "hphn", output=tmp_path / "t.npz", progress=False)
    x[7, 7] += 1
    with pytest.raises(offline.FileError, match="left by an unfinished run with embeddings"):
        offline.mine(x, y, "hphn", output=tmp_path / "t.npz", progress=False)
    (tmp_path / "t.npz.unfinished").write_bytes(b"something else")
    with pytest.raises(offline.FileError, match="expected the state of an unfinished run"):
        offline.mine(x, y, "hphn", output=tmp_path / "t.npz", progress=False)


@pytest.mark.parametrize("blocks", [100, 300])
def test_a_full_disk_ends_in_an_error_and_no_result(folder, blocks, capfd):
    """A limit on the size of files stands for the disk: the state meets it, or the result does."""
    resource = pytest.importorskip("resource")
    name = f"full-{blocks}.npz"

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        most = blocks * 1024 if blocks == 100 else 1500 * (8 + 64 + 96) + 3 * 4096
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        with pytest.raises(offline.FileError, match=r"cannot be written \(File too large\)"):
            mine(folder, name)

    assert os.waitstatus_to_exitcode(os.waitpid(forked(limited), 0)[1]) == 0
    assert not (folder / name).exists()
    assert not list(folder.glob(".minerlib-*"))
    mine(folder, name)  # with room again, it is finished
    assert leftovers(folder, name) == []


def test_files_that_are_no_data_set(folder, tmp_path):
    x = (folder / "x.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(x[: len(x) // 2])
    np.save(tmp_path / "integers.npy", np.zeros((1500, 4), np.int32))
    (tmp_path / "cut.parquet").write_bytes((folder / "whole.parquet").read_bytes()[:-9])
    for name, message in {
        "cut.npy": "the file is cut short",
        "integers.npy": "expected float16, bfloat16, float32 or float64, got int32",
        "none.npy": "no such file",
        "none.parquet": "no such file",
        "cut.parquet": "cannot be read as a table",
    }.items():
        with pytest.raises((TypeError, offline.FileError), match=message):
            offline.mine(tmp_path / name, folder / "y.npy", "hphn", progress=False)
    with pytest.raises(ValueError, match="embeddings: expected a column 'embedding', got case, anchor"):
        offline.mine(folder / "whole.parquet", None, "hphn", progress=False)
    with pytest.raises(offline.FileError, match="cannot be read as Parquet"):
        offline.OfflineTriplets(tmp_path / "cut.parquet")


def test_tables_give_the_bytes_of_arrays(folder, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    rows = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(x.reshape(-1)), x.shape[1])
    table = pyarrow.table({"embedding": rows, "label": y})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=777)
    lists = pyarrow.table({"embedding": pyarrow.array(x.tolist(), pyarrow.list_(pyarrow.float32()))})
    with pyarrow.ipc.new_file(str(tmp_path / "t.arrow"), lists.schema) as writer:
        writer.write_table(lists, max_chunksize=500)
    sources = [
        (table, None),
        (tmp_path / "t.parquet", None),
        (tmp_path / "t.arrow", folder / "y.npy"),
        (torch.from_numpy(x), y),
    ]
    for embeddings, labels in sources:
        offline.mine(embeddings, labels, CASES, output=folder / "table.parquet", progress=False)
        assert same_bytes(folder, "table.parquet")
    ragged = pyarrow.table({"embedding": [[1.0, 2.0], [3.0]], "label": [0, 1]})
    with pytest.raises(ValueError, match=r"expected 1 values in every row, row 0 has 2"):
        offline.mine(ragged, None, "hphn", progress=False)


def test_npz_and_parquet_hold_the_same(folder):
    mine(folder, "again.npz")
    found = mine(folder, "again.parquet")
    with np.load(folder / "again.npz") as archive:
        for case, triplets in found.items():
            for name, column in zip(offline._results.COLUMNS, triplets, strict=True):
                assert np.array_equal(archive[f"{case}.{name}"], column), (case, name)
    both = [offline.OfflineTriplets(folder / f"again.{suffix}") for suffix in ("npz", "parquet")]
    assert both[0].cases == both[1].cases == tuple(CASES)
    assert both[0][2500] == both[1][2500]


# ------------------------------------------------------------------ ranks

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="this torch is built without gloo"
)


@needs_gloo
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_number_of_ranks_writes_the_same_bytes(folder, size):
    name = f"ranks-{size}.parquet"
    assert in_ranks(folder, size, lambda rank: mine(folder, name, chunk_rows=200)) == [0] * size
    assert same_bytes(folder, name)
    assert leftovers(folder, name) == []


@needs_gloo
def test_a_rank_that_dies_ends_the_run_and_the_next_continues_it(folder, capfd):
    update = _run.Run._update

    def dying(rank: int) -> None:
        ran = []

        def step(self, *task):
            if rank == 1 and task[0] == 1 and len(ran) > 20:
                os.kill(os.getpid(), signal.SIGKILL)
            ran.append(task)
            update(self, *task)

        _run.Run._update = step
        with pytest.raises(offline.RankLost, match=r"rank [02] of 3 lost touch with another rank"):
            mine(folder, "dead.parquet")

    assert in_ranks(folder, 3, dying) == [0, -signal.SIGKILL, 0]
    assert not (folder / "dead.parquet").exists()
    assert leftovers(folder, "dead.parquet") == [f"dead.parquet.unfinished-{rank}-of-3" for rank in range(3)]
    with pytest.raises(offline.FileError, match="left by an unfinished run of 3 ranks, this one has 1"):
        mine(folder, "dead.parquet")
    assert in_ranks(folder, 3, lambda rank: mine(folder, "dead.parquet")) == [0, 0, 0]
    assert same_bytes(folder, "dead.parquet")
    assert leftovers(folder, "dead.parquet") == []


@needs_gloo
def test_a_mistake_on_one_rank_ends_all(folder, capfd):
    def wrong(rank: int) -> None:
        expected = ValueError if rank else offline.RankLost
        with pytest.raises(expected, match="seed" if rank else "rank 1 could not take part"):
            mine(folder, "wrong.parquet", seed=-rank)

    assert in_ranks(folder, 2, wrong) == [0, 0]

    def different(rank: int) -> None:
        with pytest.raises(
            ValueError, match="expected the same arguments on all ranks, got others on rank 1"
        ):
            mine(folder, "wrong.parquet", seed=rank)

    assert in_ranks(folder, 2, different) == [0, 0]


@needs_gloo
def test_hamming_search_over_ranks(tmp_path, monkeypatch):
    draw = np.random.default_rng(2)
    codes = draw.integers(0, 4, (501, 3), dtype=np.uint8)
    np.save(tmp_path / "queries.npy", codes[:77])
    np.save(tmp_path / "codes.npy", codes)

    def search(name: str) -> minerlib.Neighbors:
        files = tmp_path / "queries.npy", tmp_path / "codes.npy"
        return offline.hamming_search(*files, 170, chunk_rows=10, output=tmp_path / name, progress=False)

    found, expected = search("1.npz"), minerlib.hamming_search(codes[:77], codes, 170)
    assert np.array_equal(found.indices, expected.indices)
    assert np.array_equal(found.distances, expected.distances)
    whole = (tmp_path / "1.npz").read_bytes()
    for size in (2, 3, 4):
        assert in_ranks(tmp_path, size, lambda rank, size=size: search(f"{size}.npz")) == [0] * size
        assert (tmp_path / f"{size}.npz").read_bytes() == whole

    _search = sys.modules["minerlib.offline.hamming"]._Search
    step, ran = _search._answer, []

    def interrupted(self, *arguments):
        if len(ran) == 5:
            raise KeyboardInterrupt
        ran.append(arguments[:2])
        step(self, *arguments)

    monkeypatch.setattr(_search, "_answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search("stopped.npz")
    monkeypatch.setattr(_search, "_answer", lambda self, *a: (ran.append(a[:2]), step(self, *a)))
    search("stopped.npz")
    assert ran == [(0, (at, min(at + 10, 77))) for at in range(0, 77, 10)]
    assert (tmp_path / "stopped.npz").read_bytes() == whole
