"""Beside right answers: calls from several threads, forked children, the interpreter lock, memory."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import minerlib
from tests import datasets
from tests.conftest import FAST_BACKENDS, Running

on_fast_backends = pytest.mark.parametrize("backend", FAST_BACKENDS, indirect=True)


def run_script(script: str, timeout: float = 120) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


@on_fast_backends
def test_calls_from_several_threads(backend: Running) -> None:
    """Each caller's answers are those it gets alone."""
    minerlib.set_num_threads(3)
    batches = [datasets.rows("gaussian", 150 + 10 * i, 9 + i, "float32").astype(np.float32) for i in range(6)]

    def mine(x: np.ndarray) -> list[list[int]]:
        labels = np.arange(len(x)) % 7
        triplets = [minerlib.mine(x, labels, s, backend=backend.name) for s in ("batch-hard", "random-hard")]
        neighbours = minerlib.nearest(x, x, 5, backend=backend.name)
        return [column.tolist() for found in (*triplets, neighbours) for column in found]

    alone = [mine(x) for x in batches]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            assert list(pool.map(mine, batches)) == alone


def longest_pause(call: Callable[[], object]) -> float:
    """The longest time that another thread stood still during the call, as a share of the call."""
    ticks: list[float] = []
    done = threading.Event()

    def count() -> None:
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    counter = threading.Thread(target=count)
    counter.start()
    start = time.perf_counter()
    call()
    end = time.perf_counter()
    done.set()
    counter.join()
    inside = [tick for tick in ticks if start < tick < end]
    return float(np.diff([start, *inside, end]).max() / (end - start))


@on_fast_backends
def test_the_interpreter_lock_is_released(backend: Running) -> None:
    """Another Python thread goes on during a call; on a busy machine it may take a few attempts to see."""
    x = datasets.rows("gaussian", 3000, 256, "float32").astype(np.float32)
    labels = np.arange(3000) % 300
    minerlib.set_num_threads(1)
    minerlib.mine(x[:50], labels[:50], "batch-hard", backend=backend.name)  # numba compiles here
    for _ in range(10):
        if longest_pause(lambda: minerlib.mine(x, labels, "batch-hard", backend=backend.name)) < 0.6:
            return
    pytest.fail("no other thread ran in any of ten calls")


@pytest.mark.skipif(sys.platform == "win32", reason="libc is found the POSIX way")
def test_a_held_lock_would_show() -> None:
    libc = ctypes.PyDLL(None)  # unlike CDLL it keeps the lock
    assert longest_pause(lambda: libc.usleep(100_000)) > 0.9


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")
@pytest.mark.parametrize("name", ["native", "numba"])
def test_forked_children_mine(name: str) -> None:
    """As workers of a data loader do; a pool of threads does not survive a fork."""
    reasons = minerlib.explain("mine").reasons[name]
    if reasons:
        pytest.skip(f"{name}: {'; '.join(reasons)}")
    script = f"""
import multiprocessing, numpy as np, minerlib

x = np.random.default_rng(0).standard_normal((600, 16)).astype(np.float32)

def mine(number):
    return [column.tolist() for column in minerlib.mine(x, np.arange(600) % 9, "semi-hard", backend="{name}")]

minerlib.set_num_threads(4)
here = mine(0)
with multiprocessing.get_context("fork").Pool(2) as pool:
    there = pool.map_async(mine, range(4)).get(timeout=60)
assert all(answer == here for answer in there)
assert mine(0) == here
"""
    run_script(script)


@pytest.mark.skipif(sys.platform == "win32", reason="the peak of memory is read the POSIX way")
@pytest.mark.parametrize("strategy", ["batch-hard", "semi-hard", "distance-weighted"])
@pytest.mark.parametrize("name", ["native", "numba"])
def test_no_square_array(name: str, strategy: str) -> None:
    """12,000 rows against themselves: a byte for each pair would be 144 MB, a float32 576 MB."""
    reasons = minerlib.explain("mine").reasons[name]
    if reasons:
        pytest.skip(f"{name}: {'; '.join(reasons)}")
    script = f"""
import resource, numpy as np, minerlib

x = np.random.default_rng(0).standard_normal((12000, 8)).astype(np.float32)
labels = np.arange(12000) // 4

def mine(n):
    minerlib.mine(x[:n], labels[:n], "{strategy}", backend="{name}")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

minerlib.set_num_threads(2)
before = mine(500)
print(mine(12000) - before)
"""
    assert float(run_script(script)) < 100
