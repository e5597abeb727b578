"""The triton backend on a GPU: the host's answers, no synchronisation, in graphs and under torch.compile.

`make gpu` runs this. Once it has passed on a GPU, "auto" may take the backend for CUDA tensors (dispatch.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import minerlib
from minerlib.strategies import STRATEGIES
from tests import datasets

pytestmark = pytest.mark.gpu

PER_ANCHOR = ("batch-hard", "assorted", "epen")
PER_PAIR = ("hard", "semi-hard", "random-hard", "semi-hard-nearest")
EXACT = tuple(name for name in STRATEGIES if name != "distance-weighted")


def batch(data: str, dtype: str, labels: str, n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.from_numpy(datasets.rows(data, n, d, dtype)).to(getattr(torch, dtype))
    return rows, torch.from_numpy(np.asarray(datasets.labels(labels, n)))


def assert_as_on_the_host(rows: torch.Tensor, labels: torch.Tensor, strategy: str, **options: Any) -> None:
    wanted = minerlib.mine(rows, labels, strategy, **options)
    found = minerlib.mine(rows.cuda(), labels.cuda(), strategy, backend="triton", **options)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.is_cuda
        assert torch.equal(ours.cpu(), theirs), (strategy, options)


@pytest.fixture
def no_synchronisation() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("metric", datasets.METRICS)
@pytest.mark.parametrize("dtype", datasets.DTYPES)
@pytest.mark.parametrize("data", datasets.ROWS)
def test_every_kind_of_rows(data: str, dtype: str, metric: str) -> None:
    for labels, n, d in (("eights", 257, 33), ("multi-few", 65, 129), ("few", 129, 257)):
        rows, marks = batch(data, dtype, labels, n, d)
        spread = float(minerlib.pairwise_distance(rows[:64], metric=metric).median())
        for strategy in EXACT:
            if strategy != "all" or n < 100:
                assert_as_on_the_host(rows, marks, strategy, margin=spread / 4, metric=metric, seed=2**63 + 5)
        counts = [
            minerlib.count_triplets(*tensors, margin=spread / 4, metric=metric, backend=backend)
            for tensors, backend in (((rows, marks), "auto"), ((rows.cuda(), marks.cuda()), "triton"))
        ]
        assert counts[0] == counts[1]
        found = minerlib.nearest(rows.cuda(), rows.cuda(), 9, metric=metric, backend="triton")
        wanted = minerlib.nearest(rows, rows, 9, metric=metric)
        assert torch.equal(found.indices.cpu(), wanted.indices)
        assert torch.equal(found.distances.cpu(), wanted.distances)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("n", "d"), [(2048, 128), (20_000, 64), (100_000, 128)])
def test_large_batches(n: int, d: int, dtype: str) -> None:
    rows, labels = batch("clusters", dtype, "eights", n, d)
    for strategy in (*PER_ANCHOR, "semi-hard"):
        assert_as_on_the_host(rows, labels, strategy, margin=0.2)


def test_a_reference_and_strides() -> None:
    rows, labels = batch("off-centre", "float32", "eights", 700, 66)
    x, y = rows[:200, ::2], rows[200:, 1::2]
    options = {"reference_labels": labels[200:], "margin": 50.0}
    for strategy in EXACT:
        if strategy != "all":
            wanted = minerlib.mine(x, labels[:200], strategy, reference=y, **options)
            found = minerlib.mine(
                x.cuda(), labels[:200].cuda(), strategy, reference=y.cuda(), margin=50.0,
                reference_labels=labels[200:].cuda(), backend="triton",
            )  # fmt: skip
            for ours, theirs in zip(found, wanted, strict=True):
                assert torch.equal(ours.cpu(), theirs), strategy


def _padded(rows: torch.Tensor, labels: torch.Tensor, strategy: str, slots: int) -> tuple[torch.Tensor, ...]:
    from minerlib import ops

    options = (0.5, "sqeuclidean", "ordered", "drop", 3, True)
    found: tuple[torch.Tensor, ...] = ops.mine_padded(rows, labels, None, None, strategy, *options, slots)
    return found


@pytest.mark.parametrize("strategy", [*PER_ANCHOR, *PER_PAIR, "distance-weighted"])
def test_padded_results_never_wait_for_the_device(strategy: str, request: pytest.FixtureRequest) -> None:
    rows, labels = (part.cuda() for part in batch("clusters", "float32", "eights", 512, 64))
    slots = 512 * 7
    wanted = _padded(rows, labels, strategy, slots)  # compiles
    request.getfixturevalue("no_synchronisation")
    found = _padded(rows, labels, strategy, slots)
    torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("strategy", [*PER_ANCHOR, *PER_PAIR, "distance-weighted"])
def test_captured_in_a_graph(strategy: str) -> None:
    first, labels = (part.cuda() for part in batch("clusters", "float32", "eights", 512, 64))
    rows, slots = first.clone(), 512 * 7
    _padded(rows, labels, strategy, slots)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _padded(rows, labels, strategy, slots)
    for scale in (1.0, -3.0):
        rows.copy_(first.flip(0) * scale)
        graph.replay()
        for ours, theirs in zip(captured, _padded(rows, labels, strategy, slots), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("strategy", ["batch-hard", "semi-hard"])
def test_compiled_whole(strategy: str) -> None:
    rows, labels = (part.cuda() for part in batch("clusters", "float32", "eights", 256, 64))

    def mined(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = minerlib.mine(rows * 2, labels, strategy, compact=False, backend="triton")
        return found.anchors, found.positives, found.negatives, found.valid

    with torch.autocast("cuda", torch.bfloat16):
        compiled = torch.compile(mined, fullgraph=True)(rows)
    for ours, theirs in zip(compiled, mined(rows), strict=True):
        assert torch.equal(ours, theirs)


def test_on_another_stream() -> None:
    rows, labels = (part.cuda() for part in batch("clusters", "float32", "eights", 2048, 64))
    wanted = minerlib.mine(rows, labels, "batch-hard", backend="triton")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # work launched elsewhere would overtake the copy
        late = torch.zeros_like(rows)
        late.copy_(rows)
        found = minerlib.mine(late, labels, "batch-hard", compact=False, backend="triton")
    stream.synchronize()
    assert torch.equal(found.negatives[found.valid], wanted.negatives)


def test_on_every_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    rows, labels = batch("clusters", "float32", "eights", 512, 64)
    wanted = minerlib.mine(rows, labels, "semi-hard")
    for device in range(torch.cuda.device_count()):
        found = minerlib.mine(rows.to(device), labels.to(device), "semi-hard", backend="triton")
        assert all(column.device.index == device for column in found)
        assert all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(found, wanted, strict=True))


def test_memory_stays_small() -> None:
    """131,072 rows of bfloat16: operands and lists, nothing that grows with the square."""
    rows, labels = (part.cuda() for part in batch("clusters", "bfloat16", "eights", 131_072, 128))
    minerlib.mine(rows[:256], labels[:256], "batch-hard", compact=False, backend="triton")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    minerlib.mine(rows, labels, "batch-hard", compact=False, backend="triton")
    assert torch.cuda.max_memory_allocated() - before < 64 << 20
