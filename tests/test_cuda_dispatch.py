"""The cuda backend is taken for codes alone, on a GPU or by name; its answers, through a mirror."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import minerlib
from minerlib import _cuda_library, cli, dispatch
from minerlib.backends import cuda, triton
from tests.cuda_mirror import mirror

CODES = np.random.default_rng(0).integers(0, 256, (90, 9), dtype=np.uint8)
ROWS = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
LABELS = np.arange(8) % 3


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend with the mirror for a library and the host for a device."""
    monkeypatch.setattr(cuda, "reasons_unusable", lambda: ())
    monkeypatch.setattr(cuda, "device", lambda: "cpu")
    library = mirror()
    monkeypatch.setattr(_cuda_library, "library", lambda: library)


@pytest.fixture
def fresh_reasons() -> Iterator[None]:
    """The reason of a failure is kept; forget it before and after."""
    cuda.reasons_unusable.cache_clear()
    yield
    cuda.reasons_unusable.cache_clear()


def test_auto_leaves_it_alone_on_the_host_and_explain_says_how_to(on_host: None) -> None:
    for operation in ("hamming_distance", "hamming_search", "hamming_range"):
        explanation = minerlib.explain(operation)
        assert explanation.chosen != "cuda"
        assert explanation.reasons["cuda"] == (dispatch.ON_HOST.format("cuda"),)
        assert "name backend='cuda' for others" in str(explanation)
    assert minerlib.explain("hamming_search", CODES, CODES, 3, backend="cuda").reasons["cuda"] == ()


def test_it_stands_ahead_of_triton() -> None:
    names = list(minerlib.explain("hamming_search").reasons)
    assert names.index("cuda") < names.index("triton")


def test_it_has_no_kernels_for_embeddings(on_host: None) -> None:
    calls = (
        lambda: minerlib.mine(ROWS, LABELS, "hard", backend="cuda"),
        lambda: minerlib.count_triplets(ROWS, LABELS, backend="cuda"),
        lambda: minerlib.nearest(ROWS, ROWS, 2, backend="cuda"),
        lambda: minerlib.pairwise_distance(ROWS, backend="cuda"),
    )
    for call in calls:
        with pytest.raises(
            minerlib.BackendUnavailable, match="'cuda' cannot be used: it has kernels for pack"
        ):
            call()
    assert "packed codes alone" in minerlib.explain("mine").reasons["cuda"][0]


def test_codes_are_answered_as_by_the_definition(on_host: None) -> None:
    read_only = CODES.copy()
    read_only.flags.writeable = False
    labels = np.arange(90) % 4
    for queries, database in (
        (CODES[:5], read_only),
        (torch.from_numpy(CODES[:40]), torch.from_numpy(CODES)),
    ):
        for call, argument in ((minerlib.hamming_search, 9), (minerlib.hamming_range, 30)):
            found = call(queries, database, argument, backend="cuda")
            for ours, theirs in zip(
                found, call(queries, database, argument, backend="reference"), strict=True
            ):
                assert type(ours) is type(theirs)
                assert np.array_equal(ours, theirs)
        distances = minerlib.hamming_distance(queries, database, backend="cuda")
        assert np.array_equal(distances, minerlib.hamming_distance(queries, database, backend="reference"))
        for ties in ("index", "expected"):
            arguments = queries, labels[: len(queries)], database, labels
            wanted = minerlib.hamming_map(*arguments, ties=ties, backend="reference")
            assert minerlib.hamming_map(*arguments, ties=ties, backend="cuda") == wanted
    index = minerlib.HammingIndex(bits=72)
    index.add(CODES)
    found = index.search(CODES[:3], k=90, backend="cuda")
    assert np.array_equal(found.indices, minerlib.hamming_search(CODES[:3], CODES, 90).indices)


def test_reasons(monkeypatch: pytest.MonkeyPatch, fresh_reasons: None) -> None:
    def reasons() -> tuple[str, ...]:
        cuda.reasons_unusable.cache_clear()
        return cuda.reasons_unusable()

    monkeypatch.setattr(_cuda_library, "missing", lambda: "the CUDA kernels are not built")
    assert reasons() == ("the CUDA kernels are not built",)
    with pytest.raises(
        minerlib.BackendUnavailable, match="'cuda' cannot be used: the CUDA kernels are not built"
    ):
        minerlib.hamming_search(CODES, CODES, 1, backend="cuda")
    monkeypatch.setattr(_cuda_library, "missing", lambda: "")
    device = SimpleNamespace(is_available=lambda: False, get_device_capability=lambda: (7, 5))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(version=SimpleNamespace(hip=None), cuda=device))
    assert reasons() == ("torch sees no CUDA device",)
    device.is_available = lambda: True
    assert reasons() == ("the GPU has compute capability 7.5; there is code for 8.0 and later",)
    device.get_device_capability = lambda: (12, 0)
    assert reasons() == ()
    monkeypatch.setitem(
        sys.modules, "torch", SimpleNamespace(version=SimpleNamespace(hip="6.4"), cuda=device)
    )
    assert reasons() == ("this torch is built for ROCm",)


def test_info_says_what_was_built(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    built = {"built": True, "path": tmp_path, "build": "nvcc 13.0.88 for sm_80 and PTX of compute_80"}
    monkeypatch.setattr(_cuda_library, "info", lambda: built)
    assert cli._cuda_facts()["cuda"].endswith("by nvcc 13.0.88 for sm_80 and PTX of compute_80")
    monkeypatch.setattr(_cuda_library, "info", lambda: {"built": False, "reason": "nvcc was not found"})
    assert cli._cuda_facts() == {"cuda": "nvcc was not found"}


def test_info_says_whether_it_serves_tensors_on_a_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "reasons_unusable", lambda: ())
    assert cli.main(["info"]) == 0
    assert "  cuda         usable: CUDA kernels for packed codes" in capsys.readouterr().out
    monkeypatch.setattr(cuda, "reasons_unusable", lambda: ("no GPU",))
    assert cli.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "  cuda         not usable: CUDA kernels for packed codes" in printed
    assert "because no GPU" in printed


@pytest.mark.parametrize("amd", [False, True])
def test_auto_on_a_gpu(on_host: None, monkeypatch: pytest.MonkeyPatch, amd: bool) -> None:
    """Codes go to the CUDA kernels and rows to Triton's; an AMD GPU has not proven Triton's yet."""
    tensor = torch.from_numpy(CODES)
    monkeypatch.setattr(dispatch, "on_gpu", lambda array: array is tensor)
    monkeypatch.setattr(triton, "reasons_unusable", lambda: ())
    if amd:
        monkeypatch.setattr(torch.version, "hip", "6.4")
        monkeypatch.setattr(cuda, "reasons_unusable", lambda: ("this torch is built for ROCm",))
    assert dispatch.resolve("auto", tensor) == ("auto" if amd else "cuda")
    assert dispatch.resolve("auto", tensor, rows=True) == ("auto" if amd else "triton")
    assert dispatch.resolve("native", tensor) == "native"
    assert dispatch.resolve("auto", CODES) == "auto"
    explanation = minerlib.explain("hamming_search", tensor, tensor, 3)
    assert explanation.chosen == ("native" if amd else "cuda")
    if not amd:
        found = minerlib.hamming_search(tensor, tensor, 3)
        assert torch.equal(
            found.indices, minerlib.hamming_search(tensor, tensor, 3, backend="reference").indices
        )
    monkeypatch.setattr(cuda, "reasons_unusable", lambda: ("not built",))
    assert dispatch.resolve("auto", tensor) == ("auto" if amd else "triton")
