"""What is particular to the numba backend; that its answers are right is tested for all backends at once."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import minerlib
from minerlib import random as philox
from minerlib.backends import _numba_chunks as chunks
from minerlib.backends import numba as adapter


@pytest.fixture
def needs_numba() -> None:
    if adapter.reasons_unusable():
        pytest.skip("; ".join(adapter.reasons_unusable()))


@pytest.fixture
def fresh_reasons() -> Iterator[None]:
    """The reason of a failure is kept; forget it before and after."""
    adapter.reasons_unusable.cache_clear()
    yield
    adapter.reasons_unusable.cache_clear()


def _batch(rows: int = 64, dimension: int = 16) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(5).standard_normal((rows, dimension)).astype(np.float32)
    return x, np.arange(rows) % 4


def _run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ------------------------------------------------------------------ where numba is missing


def test_missing_numba_is_a_reason(monkeypatch: pytest.MonkeyPatch, fresh_reasons: None) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    (reason,) = adapter.reasons_unusable()
    assert "numba cannot be imported" in reason
    assert minerlib.explain("mine").reasons["numba"] == (reason,)
    with pytest.raises(minerlib.BackendUnavailable, match="numba cannot be imported"):
        minerlib.mine(*_batch(), "hard", backend="numba")


def test_broken_numba_is_a_reason_too(
    monkeypatch: pytest.MonkeyPatch, fresh_reasons: None, tmp_path: Path
) -> None:
    """A numba that does not suit the NumPy or the LLVM installed raises other errors than ImportError."""
    (tmp_path / "numba.py").write_text("raise SystemError('initialization of _internal failed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    assert adapter.reasons_unusable() == ("numba cannot be imported: initialization of _internal failed",)


def test_importing_the_adapter_imports_no_numba() -> None:
    out = _run(
        "import sys, minerlib.backends.numba; print('numba' in sys.modules, 'llvmlite' in sys.modules)"
    )
    assert out.split() == ["False", "False"]


def test_kernels_compile_where_no_cache_folder_can_be_written(
    monkeypatch: pytest.MonkeyPatch, needs_numba: None
) -> None:
    from minerlib.backends import _numba_jit

    asked: list[bool] = []

    def njit(cache: bool = False, **options: bool) -> Callable[[Callable[..., int]], Callable[..., int]]:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(_numba_jit, "njit", njit)
    assert _numba_jit.kernel(lambda: 7)() == 7
    assert asked == [True, False]


# ------------------------------------------------------------------ threads


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_thread_count_is_honoured(count: int) -> None:
    """That many threads meet inside the work; one fewer would never pass the barrier, one more be noted."""
    minerlib.set_num_threads(count)
    barrier = threading.Barrier(count, timeout=30)
    met: set[int] = set()

    def work(first: int, last: int) -> None:
        if threading.get_ident() not in met:
            met.add(threading.get_ident())
            barrier.wait()

    before = threading.active_count()
    chunks.over_chunks(1000, 1000, 64, work)
    assert len(met) == count
    assert threading.get_ident() in met  # the calling thread works too
    assert threading.active_count() == before


def test_small_work_stays_on_the_calling_thread() -> None:
    minerlib.set_num_threads(8)
    met: set[int] = set()
    chunks.over_chunks(64, 64, 16, lambda first, last: met.add(threading.get_ident()))
    assert met == {threading.get_ident()}


@pytest.mark.parametrize("anchors", [0, 1, 2, 3, 7, 64, 65, 1001])
@pytest.mark.parametrize("columns", [0, 1, 300, 70000])
@pytest.mark.parametrize("count", [1, 3])
def test_each_anchor_is_worked_on_once(anchors: int, columns: int, count: int) -> None:
    minerlib.set_num_threads(count)
    seen: list[int] = []
    chunks.over_chunks(anchors, columns, 128, lambda first, last: seen.extend(range(first, last)))
    assert sorted(seen) == (list(range(anchors)) if columns else [])


@pytest.mark.parametrize("count", [1, 3])
def test_an_error_in_a_thread_is_raised_and_ends_the_work(count: int) -> None:
    minerlib.set_num_threads(count)
    calls: list[int] = []

    def work(first: int, last: int) -> None:
        calls.append(first)
        raise MemoryError("no room for a row")

    with pytest.raises(MemoryError, match="no room"):
        chunks.over_chunks(10000, 10000, 8, work)
    assert len(calls) <= count


@pytest.mark.parametrize("strategy", ["semi-hard", "semi-hard-nearest", "batch-hard", "all"])
def test_threads_and_chunks_change_nothing(
    strategy: str, monkeypatch: pytest.MonkeyPatch, needs_numba: None
) -> None:
    x, labels = _batch()
    minerlib.set_num_threads(1)
    expected = minerlib.mine(x, labels, strategy, backend="numba")
    monkeypatch.setattr(chunks, "LEAST_WORK", 1)
    monkeypatch.setattr(chunks, "LEAST_ROWS", 3)
    monkeypatch.setattr(chunks, "ELEMENTS", 1)
    monkeypatch.setattr(chunks, "PANEL", 24)
    minerlib.set_num_threads(4)
    answer = minerlib.mine(x, labels, strategy, backend="numba")
    for one, other in zip(expected, answer, strict=True):
        np.testing.assert_array_equal(one, other)


def test_several_callers_at_once(needs_numba: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "LEAST_WORK", 1)
    minerlib.set_num_threads(2)
    x, labels = _batch()
    expected = minerlib.mine(x, labels, "semi-hard", backend="numba").negatives
    answers: list[np.ndarray] = []

    def call() -> None:
        for _ in range(10):
            answers.append(minerlib.mine(x, labels, "semi-hard", backend="numba").negatives)  # noqa: PERF401

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(answers) == 40
    assert all(np.array_equal(answer, expected) for answer in answers)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="data loaders fork on Linux alone")
def test_a_forked_child_mines(needs_numba: None) -> None:
    """As a data loader's worker does after its parent has mined."""
    out = _run(
        """
        import os, numpy as np, minerlib
        from minerlib.backends import _numba_chunks as chunks
        chunks.LEAST_WORK = 1
        minerlib.set_num_threads(2)
        x, labels = np.random.default_rng(0).standard_normal((64, 8)), np.arange(64) % 4
        mined = minerlib.mine(x, labels, "hard", backend="numba").negatives
        child = os.fork()
        if child == 0:
            same = np.array_equal(minerlib.mine(x, labels, "hard", backend="numba").negatives, mined)
            os._exit(0 if same and len(mined) else 1)
        print(os.waitpid(child, 0)[1])
        """
    )
    assert out.split() == ["0"]


# ------------------------------------------------------------------ kernels


def test_read_only_and_unaligned_rows_need_no_further_compilation(needs_numba: None, tmp_path: Path) -> None:
    from minerlib.backends._numba_rows import fill_rows

    x, labels = _batch()
    expected = minerlib.mine(x, labels, "batch-hard", backend="numba")
    compiled = len(fill_rows.signatures)
    np.save(tmp_path / "x.npy", x)
    unaligned = np.frombuffer(b"-" + x.tobytes(), dtype=np.uint8)[1:].view(np.float32).reshape(x.shape)
    assert not unaligned.flags.aligned
    for rows in (np.load(tmp_path / "x.npy", mmap_mode="r"), unaligned, x[:, ::-1].copy()[:, ::-1]):
        answer = minerlib.mine(rows, labels, "batch-hard", backend="numba")
        np.testing.assert_array_equal(answer.negatives, expected.negatives)
    assert len(fill_rows.signatures) == compiled


def test_random_choice_of_large_numbers(needs_numba: None) -> None:
    """Seeds, indices and counts beyond 32 bits, which no batch that fits a test reaches."""
    from minerlib.backends import _numba_families as families

    numbers = random.Random(1)
    for _ in range(200):
        seed, anchor, positive = numbers.getrandbits(64), numbers.getrandbits(40), numbers.getrandbits(40)
        bits = families.random_bits(np.uint64(seed), np.uint64(anchor), np.uint64(positive))
        assert int(bits) == philox.uniform_bits(seed, anchor, positive)
        u, count = numbers.getrandbits(64), numbers.getrandbits(numbers.randrange(1, 65))
        assert int(families.scaled(np.uint64(u), np.uint64(count))) == (u * count) >> 64


@pytest.mark.parametrize("labels_kind", ["single", "multi"])
def test_a_choice_among_many_blocks_of_negatives(labels_kind: str, needs_numba: None) -> None:
    """More negatives than are counted at a time, so that the chosen one lies in any of many blocks."""
    rng = np.random.default_rng(3)
    x, labels = rng.standard_normal((500, 2)), rng.integers(0, 150, 500)
    if labels_kind == "multi":
        labels = labels[:, None] == np.arange(150)
    for strategy in ("semi-hard", "random-hard"):
        expected, answer = (
            minerlib.mine(x, labels, strategy, margin=3.0, seed=9, backend=backend)
            for backend in ("reference", "numba")
        )
        assert expected.negatives.max() > 400
        for one, other in zip(expected, answer, strict=True):
            np.testing.assert_array_equal(one, other)
