"""The Triton kernels on a GPU: the CPU backends' answers at sizes that fill it, graphs, torch.compile.

`make gpu` runs these, and `-k smallest` once more under compute-sanitizer. The smallest cases also run on the
host under the interpreter, which is how they are tried where there is no GPU:

    TRITON_INTERPRET=1 python -m pytest -m gpu tests/test_gpu_triton.py -k smallest
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import minerlib
from minerlib.strategies import STRATEGIES
from tests import datasets
from tests.triton_interpreter import INTERPRETED

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="no CUDA or ROCm device"),
]

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
on_gpu = pytest.mark.skipif(INTERPRETED, reason="graphs and streams need a device, not the interpreter")
PER_ANCHOR = ("batch-hard", "easy-positive", "assorted")
PER_PAIR = ("hard", "semi-hard", "random-hard", "semi-hard-nearest", "distance-weighted")


def batch(
    rows: int, dims: int, classes: int, dtype: str = "float32", seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(rows, dims, generator=generator))
    return x.to(getattr(torch, dtype)), torch.arange(rows) % classes


def to(device: torch.device, *tensors: torch.Tensor) -> list[torch.Tensor]:
    return [tensor.to(device) for tensor in tensors]


def same(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.device.type == DEVICE.type
        assert torch.equal(ours.cpu(), theirs.cpu())


def mined(x: torch.Tensor, labels: torch.Tensor, strategy: str, **options: Any) -> None:
    """The GPU's triplets are the host's."""
    wanted = minerlib.mine(x, labels, strategy, **options)
    same(minerlib.mine(*to(DEVICE, x, labels), strategy, **options, backend="triton"), wanted)


# ------------------------------------------------------------------ equality


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "distance-weighted"])
def test_smallest_strategies(strategy: str) -> None:
    mined(*batch(9, 3, 3), strategy)


def test_smallest_draws_repeat_themselves() -> None:
    """distance-weighted promises the distribution and the same draw for the same seed on one backend."""
    x, labels = to(DEVICE, *batch(9, 3, 3))
    first, again = (minerlib.mine(x, labels, "distance-weighted", seed=3, backend="triton") for _ in range(2))
    same(first, again)
    assert len(first.anchors)
    assert (labels[first.anchors] == labels[first.positives]).all()
    assert (labels[first.anchors] != labels[first.negatives]).all()


@pytest.mark.parametrize("metric", datasets.METRICS)
def test_smallest_searches(metric: str) -> None:
    x, _ = batch(40, 5, 1)
    queries = x[:3]
    for k in (1, 40):
        wanted = minerlib.nearest(queries, x, k, metric=metric)
        same(minerlib.nearest(*to(DEVICE, queries, x), k, metric=metric, backend="triton"), wanted)
    wanted = minerlib.pairwise_distance(queries, x, metric=metric)
    same([minerlib.pairwise_distance(*to(DEVICE, queries, x), metric=metric, backend="triton")], [wanted])


def test_smallest_certified_search() -> None:
    x, _ = batch(1030, 5, 1)
    x[500:] = x[0]  # more candidates than a list holds
    wanted = minerlib.nearest(x[:2], x, 3)
    same(minerlib.nearest(*to(DEVICE, x[:2], x), 3, backend="triton"), wanted)


@pytest.mark.parametrize("queries", [1, 17])
def test_smallest_codes(queries: int) -> None:
    codes(queries, 140, 5, (3, 140), 14)


def codes(queries: int, rows: int, width: int, ks: Sequence[int], radius: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, y = (
        torch.randint(0, 256, (n, width), generator=generator, dtype=torch.uint8) for n in (queries, rows)
    )
    device = to(DEVICE, x, y)
    same([minerlib.hamming_distance(*device, backend="triton")], [minerlib.hamming_distance(x, y)])
    for k in ks:
        same(minerlib.hamming_search(*device, k, backend="triton"), minerlib.hamming_search(x, y, k))
    found = minerlib.hamming_range(*device, radius, backend="triton")
    same(found, minerlib.hamming_range(x, y, radius))
    labels = torch.arange(queries) % 5, torch.arange(rows) % 5
    for ties in ("index", "expected"):
        wanted = minerlib.hamming_map(x, labels[0], y, labels[1], ties=ties)
        on_device = to(DEVICE, x, labels[0], y, labels[1])
        assert minerlib.hamming_map(*on_device, ties=ties, backend="triton") == wanted


@on_gpu
@pytest.mark.parametrize("dtype", datasets.DTYPES)
@pytest.mark.parametrize(
    "strategy", [name for name in STRATEGIES if name not in ("distance-weighted", "all")]
)
def test_thousands_of_rows(strategy: str, dtype: str) -> None:
    mined(*batch(4099, 129, 512, dtype), strategy, metric="euclidean")


@on_gpu
@pytest.mark.parametrize("data", sorted(datasets.ROWS))
@pytest.mark.parametrize("metric", datasets.METRICS)
def test_rows_that_are_hard_to_get_right(data: str, metric: str) -> None:
    x = torch.from_numpy(datasets.rows(data, 1031, 33, "float32")).float()
    for strategy in ("batch-hard", "epen", "semi-hard", "semi-hard-nearest"):
        mined(x, torch.arange(1031) % 100, strategy, metric=metric)
    wanted = minerlib.nearest(x[:50], x, 7, metric=metric)
    same(minerlib.nearest(*to(DEVICE, x[:50], x), 7, metric=metric, backend="triton"), wanted)


@on_gpu
def test_nothing_but_duplicates() -> None:
    x = torch.ones(4096, 128)
    mined(x, torch.arange(4096) % 512, "batch-hard")
    wanted = minerlib.nearest(x[:100], x, 10)
    same(minerlib.nearest(*to(DEVICE, x[:100], x), 10, backend="triton"), wanted)


@on_gpu
@pytest.mark.parametrize("strategy", ["batch-hard", "assorted", "semi-hard"])
def test_a_hundred_thousand_rows(strategy: str) -> None:
    mined(*batch(100_000, 64, 25_000), strategy)


@on_gpu
@pytest.mark.parametrize("k", [1, 10, 500])
def test_search_among_a_hundred_thousand_rows(k: int) -> None:
    x, _ = batch(100_000, 128, 1)
    wanted = minerlib.nearest(x[:2000], x, k)
    same(minerlib.nearest(*to(DEVICE, x[:2000], x), k, backend="triton"), wanted)


@on_gpu
@pytest.mark.parametrize("width", [2, 8, 16, 33, 129])
def test_a_hundred_thousand_codes(width: int) -> None:
    codes(100, 100_000, width, (1, 100, 50_000), 8 * width // 3)


# ------------------------------------------------------------------ graphs, compilation, streams


def capture(call: Callable[[], Any]) -> tuple[Any, torch.cuda.CUDAGraph]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    return found, graph


@on_gpu
@pytest.mark.parametrize("strategy", PER_ANCHOR)
def test_padded_triplets_in_a_graph(strategy: str) -> None:
    x, labels = to(DEVICE, *batch(1000, 64, 100))
    found, graph = capture(lambda: minerlib.mine(x, labels, strategy, compact=False, backend="triton"))
    for seed in (1, 2):
        x.copy_(batch(1000, 64, 100, seed=seed)[0])
        graph.replay()
        same(found, minerlib.mine(x, labels, strategy, compact=False, backend="triton"))


@on_gpu
@pytest.mark.parametrize("strategy", PER_PAIR)
def test_padded_pairs_in_a_graph(strategy: str) -> None:
    x, labels = to(DEVICE, *batch(256, 64, 32))

    def call() -> Any:
        return minerlib.mine(x, labels, strategy, margin=0.5, compact=False, slots=256 * 7, backend="triton")

    found, graph = capture(call)
    x.copy_(batch(256, 64, 32, seed=1)[0])
    graph.replay()
    same(found, call())


@on_gpu
@pytest.mark.parametrize("strategy", [*PER_ANCHOR, *PER_PAIR])
def test_padded_forms_wait_for_nothing(strategy: str) -> None:
    x, labels = to(DEVICE, *batch(256, 64, 32))
    options = {"compact": False, "backend": "triton"} | ({"slots": 2000} if strategy in PER_PAIR else {})
    minerlib.mine(x, labels, strategy, **options)
    torch.cuda.set_sync_debug_mode("error")
    try:
        minerlib.mine(x, labels, strategy, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_extra_memory_stays_below_64_mb(dtype: str) -> None:
    x, labels = to(DEVICE, *batch(131072, 128, 16384, dtype))
    minerlib.mine(x, labels, "batch-hard", backend="triton")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    minerlib.mine(x, labels, "batch-hard", backend="triton")
    assert torch.cuda.max_memory_allocated() - before < 64 << 20


@on_gpu
def test_searches_in_a_graph() -> None:
    from tritonkernels import hamming_search, topk

    x, _ = to(DEVICE, *batch(5000, 64, 1))
    y = torch.randint(0, 256, (5000, 8), dtype=torch.uint8, device=DEVICE)
    for call in (lambda: topk.topk(x[:100], x, 5, "cosine"), lambda: hamming_search.search(y[:100], y, 50)):
        found, graph = capture(call)
        x.copy_(batch(5000, 64, 1, seed=1)[0])
        y.copy_(y.flip(0) ^ 5)
        graph.replay()
        same(found, call())


@on_gpu
@pytest.mark.parametrize(("strategy", "backend"), [("batch-hard", "auto"), ("semi-hard", "triton")])
def test_compiled_whole(strategy: str, backend: str) -> None:
    def call(x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = minerlib.mine(x * 2, labels, strategy, margin=1.0, compact=False, backend=backend)
        return found.anchors, found.positives, found.negatives, found.valid

    arguments = to(DEVICE, *batch(512, 64, 64))
    same(torch.compile(call, fullgraph=True)(*arguments), call(*arguments))


@on_gpu
def test_the_current_stream_is_used() -> None:
    x, labels = batch(2048, 128, 256)
    wanted = minerlib.mine(x, labels, "batch-hard")
    late = torch.empty_like(x, device=DEVICE)
    labels = labels.to(DEVICE)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # the rows arrive after a kernel on another stream would have read them
        late.copy_(x)
        found = minerlib.mine(late, labels, "batch-hard", backend="triton")
    stream.synchronize()
    same(found, wanted)


@on_gpu
def test_autocast_changes_nothing() -> None:
    x, labels = batch(512, 64, 64)
    wanted = minerlib.mine(x, labels, "semi-hard")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        same(minerlib.mine(*to(DEVICE, x, labels), "semi-hard", backend="triton"), wanted)


@on_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU or none")
def test_a_second_gpu() -> None:
    x, labels = batch(512, 64, 64)
    wanted = minerlib.mine(x, labels, "batch-hard")
    found = minerlib.mine(x.to("cuda:1"), labels.to("cuda:1"), "batch-hard", backend="triton")
    assert all(column.device.index == 1 for column in found)
    same(found, wanted)
