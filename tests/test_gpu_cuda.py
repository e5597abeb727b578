"""The CUDA kernels on a GPU: the CPU backends' answers over grids of sizes, at sizes that fill it; streams.

`make gpu` runs these, and `-k smallest` again under compute-sanitizer's memcheck, racecheck and initcheck.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import minerlib
from minerlib import _cuda_library, inputs
from minerlib.backends import _cuda_hamming as kernels
from minerlib.backends import cuda, native
from tests.cuda_mirror import recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(torch.version.hip is not None, reason="this torch is built for ROCm"),
    pytest.mark.skipif(
        recipe().find_nvcc() is None, reason="nvcc was not found, so there are no CUDA kernels"
    ),
]

#: Ways to compare: as is chosen, by popcounts, and by 1-bit matrix products where the device has them.
BIT_PRODUCTS = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] in (8, 9)
PRODUCTS = (None, False, True) if BIT_PRODUCTS else (None, False)

AWKWARD = (1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 65, 127, 129)
WIDTHS = (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 129)  # bytes


def test_the_library_is_built_and_usable() -> None:
    assert cuda.reasons_unusable() == ()


def codes(queries: int, rows: int, width: int, distinct: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """distinct: so many different codes in the database; 0: all random."""
    generator = torch.Generator().manual_seed(rows * 1000 + width)
    x, y = (
        torch.randint(0, 256, (n, width), generator=generator, dtype=torch.uint8) for n in (queries, rows)
    )
    if distinct:
        y = y[:distinct][torch.arange(rows) * 7 % min(rows, distinct)].contiguous()
    x[::2] = y[torch.arange(len(x[::2])) % rows]
    return x, y


def same(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours.cpu(), theirs.cpu())


def equal(x: torch.Tensor, y: torch.Tensor, ks: Sequence[int], radius: int) -> None:
    """Distances, searches, ranges and rankings are the host's."""
    on_gpu = x.cuda(), y.cuda()
    same([minerlib.hamming_distance(*on_gpu, backend="cuda")], [minerlib.hamming_distance(x, y)])
    for k in ks:
        wanted = minerlib.hamming_search(x, y, k)
        same(minerlib.hamming_search(*on_gpu, k, backend="cuda"), wanted)
        for products in PRODUCTS:
            same(kernels.search(*on_gpu, k, products), wanted)
    same(minerlib.hamming_range(*on_gpu, radius, backend="cuda"), minerlib.hamming_range(x, y, radius))
    ranked(x, y, ks)


def ranked(x: torch.Tensor, y: torch.Tensor, ks: Sequence[int]) -> None:
    classes = torch.arange(len(x)) % 5, torch.arange(len(y)) % 4
    sets = [torch.arange(len(side))[:, None] % torch.arange(2, 72) == 0 for side in (x, y)]
    for x_labels, y_labels in (classes, sets):
        relevance = inputs.relevance(x_labels, y_labels, len(x), len(y))
        arguments = x.numpy(), y.numpy(), relevance
        for ours, theirs in zip(
            cuda.hamming_counts(*arguments), native.hamming_counts(*arguments), strict=True
        ):
            assert (ours == theirs).all()
        for k in ks:
            found = cuda.hamming_average_precision(*arguments, k)
            assert (found == native.hamming_average_precision(*arguments, k)).all()


# ------------------------------------------------------------------ equality


@pytest.fixture(autouse=True)
def plans_of_today() -> None:
    """Not of what another test asked for with other constants."""
    kernels.plan_for.cache_clear()


@pytest.mark.parametrize(("queries", "width"), [(1, 3), (2, 8), (9, 16), (33, 32), (3, 40)])
def test_smallest(queries: int, width: int) -> None:
    equal(*codes(queries, 140, width, 20), (3, 140), 4 * width)


def test_smallest_that_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    """First rows far from all queries: segments are made again to measure."""
    monkeypatch.setattr(kernels, "LEAST_SAMPLE", 64)
    x, y = codes(9, 9000, 4, 50)
    y[:600] ^= 255
    same(minerlib.hamming_search(x.cuda(), y.cuda(), 7, backend="cuda"), minerlib.hamming_search(x, y, 7))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("distinct", [0, 5])
def test_the_grid_of_awkward_sizes(width: int, distinct: int) -> None:
    for queries, rows in itertools.product(AWKWARD, AWKWARD):
        x, y = codes(queries, rows, width, distinct)
        for k in {1, max(1, rows // 2), rows}:
            wanted = minerlib.hamming_search(x, y, k)
            for products in PRODUCTS:
                same(kernels.search(x.cuda(), y.cuda(), k, products), wanted)
        same(
            minerlib.hamming_range(x.cuda(), y.cuda(), 3 * width, backend="cuda"),
            minerlib.hamming_range(x, y, 3 * width),
        )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("queries", "rows"), [(1, 8193), (33, 1025), (129, 4099)])
def test_more_than_a_tile(queries: int, rows: int, width: int) -> None:
    equal(*codes(queries, rows, width, 300), (1, 10, rows), 2 * width)


@pytest.mark.parametrize("width", [2, 8, 16, 33, 129])
@pytest.mark.parametrize("queries", [1, 100])
def test_a_hundred_thousand_codes(queries: int, width: int) -> None:
    equal(*codes(queries, 100_000, width), (1, 100, 50_000), 8 * width // 3)


@pytest.mark.parametrize("queries", [1, 9, 65, 700])
@pytest.mark.parametrize("width", [4, 8, 16, 20, 32, 64])
def test_rows_in_stages(width: int, queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each stage finds lowers the limits of the next; splits and stages end anywhere."""
    monkeypatch.setattr(kernels, "LEAST_SAMPLE", 64)
    monkeypatch.setattr(kernels, "STAGE_SMALL", 3)
    for distinct, ks in ((0, (1, 13, 512)), (3000, (13, 513))):
        x, y = codes(queries, 60_013, width, distinct)
        for k in ks:
            wanted = minerlib.hamming_search(x, y, k)
            for products in PRODUCTS:
                same(kernels.search(x.cuda(), y.cuda(), k, products), wanted)


def test_nothing_but_duplicates() -> None:
    y = torch.full((1_000_000, 8), 7, dtype=torch.uint8)
    for products in PRODUCTS:
        same(
            kernels.search(y[:20].cuda(), y.cuda(), 50, products)[1:],
            [torch.arange(50).expand(20, 50)],
        )


def test_ten_million_codes() -> None:
    x, y = codes(50, 10_000_000, 8)
    same(minerlib.hamming_search(x.cuda(), y.cuda(), 100, backend="cuda"), minerlib.hamming_search(x, y, 100))


# ------------------------------------------------------------------ streams, devices, errors


def test_the_current_stream_is_used() -> None:
    x, y = codes(40, 50_000, 8)
    wanted = minerlib.hamming_search(x, y, 9)
    late, rows = torch.empty_like(y, device="cuda"), y.cuda()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # the rows arrive after a kernel on another stream would have read them
        late.copy_(rows)
        found = kernels.search(x.cuda(), late, 9)
    stream.synchronize()
    same(found, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU or none")
def test_a_second_gpu() -> None:
    x, y = codes(40, 5000, 8)
    found = kernels.search(x.to("cuda:1"), y.to("cuda:1"), 9)
    assert all(column.device.index == 1 for column in found)
    same(found, minerlib.hamming_search(x, y, 9))


def test_a_refused_launch_names_its_kernel_and_leaves_no_error_behind() -> None:
    place: Any = torch.zeros(64, dtype=torch.int64, device="cuda")
    with pytest.raises(
        _cuda_library.CudaError, match=r"^CUDA kernel hamming_histogram\[words=2\]: .*\(cudaErrorInvalid"
    ):
        _cuda_library.library().launch(
            "hamming_histogram", place.data_ptr(), 1, 0, place.data_ptr(), 1, 1, 2, 0, 0, 0, 0, 0, 0, 1, 1, 1,
            9, 2048, 9, place.data_ptr(), 0, 0, 0, 0, 0,
        )  # fmt: skip
    assert (place + 1).sum().item() == 64
