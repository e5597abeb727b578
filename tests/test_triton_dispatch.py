"""The triton backend serves tensors on a GPU, and says why it cannot be used; nothing here runs a kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import minerlib
from minerlib import dispatch
from minerlib.backends import triton
from tests.triton_interpreter import INTERPRETED

X = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
LABELS = np.arange(8) % 3


def test_auto_leaves_it_alone_on_the_host_and_explain_says_how_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "reasons_unusable", lambda: ())
    for operation in ("mine", "count_triplets", "nearest", "pairwise_distance"):
        explanation = minerlib.explain(operation)
        assert explanation.chosen != "triton"
        assert "name backend='triton' for others" in str(explanation)
    assert minerlib.explain("mine", X, LABELS, "hard", backend="triton").reasons["triton"] == (
        triton.reasons_unusable()
    )


@pytest.mark.skipif(INTERPRETED or torch.cuda.is_available(), reason="usable here")
def test_without_a_device_it_says_so_after_bad_input() -> None:
    calls = (
        lambda **options: minerlib.mine(X, LABELS, "hard", backend="triton", **options),
        lambda **options: minerlib.count_triplets(X, LABELS, backend="triton", **options),
        lambda **options: minerlib.nearest(X, X, 2, backend="triton", **options),
        lambda **options: minerlib.pairwise_distance(X, backend="triton", **options),
    )
    for call in calls:
        with pytest.raises(minerlib.BackendUnavailable, match=r"'triton' cannot be used: .*(device|import)"):
            call()
        with pytest.raises(ValueError, match=r"^metric: "):
            call(metric="manhattan")


def test_tensors_elsewhere_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "reasons_unusable", lambda: ())
    monkeypatch.setattr(triton, "interpreted", lambda: False)
    for call in (
        lambda: minerlib.mine(X, LABELS, "hard", backend="triton"),
        lambda: minerlib.count_triplets(torch.from_numpy(X), torch.from_numpy(LABELS), backend="triton"),
    ):
        with pytest.raises(minerlib.BackendUnavailable, match="on cpu; move them to a GPU"):
            call()


def test_inputs_are_checked_before_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "reasons_unusable", lambda: ())
    monkeypatch.setattr(triton, "interpreted", lambda: False)
    assert dispatch.on_device("triton")
    assert not dispatch.on_device("auto")
    with pytest.raises(ValueError, match=r"^labels: expected 8 rows like embeddings, got 7"):
        minerlib.mine(X, LABELS[:7], "hard", backend="triton")
