"""Which backend runs, why not another, and that importing the package costs nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import pytest

import minerlib
from minerlib import dispatch
from minerlib.backends import triton
from tests.conftest import BACKENDS, IN_CI, Running

X = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
LABELS = np.arange(8) % 3
CALLS = {
    "mine": ((X, LABELS, "hard"), "window"),
    "count_triplets": ((X, LABELS), "counts"),
    "nearest": ((X, X, 2), "topk"),
    "pairwise_distance": ((X,), "pairwise"),
}
REASONS = ("the extension is not built", "no compiler was found")


@pytest.fixture
def unusable(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Backends named in the set give REASONS; and nothing has been warned about yet."""
    names: set[str] = set()
    ask = dispatch.Backend.reasons_unusable

    def reasons(backend: dispatch.Backend) -> tuple[str, ...]:
        return REASONS if backend.name in names else ask(backend)

    monkeypatch.setattr(dispatch.Backend, "reasons_unusable", reasons)
    monkeypatch.setattr(dispatch, "_said", set())
    return names


@pytest.mark.skipif(not IN_CI, reason="demanded in CI; elsewhere a missing compiler is no failure")
@pytest.mark.parametrize("name", ["native", "numba", "reference"])
def test_every_backend_is_there_in_ci(name: str) -> None:
    backend = next(backend for backend in dispatch.BACKENDS if backend.name == name)
    assert backend.reasons_unusable() == ()


@pytest.mark.skipif(not IN_CI, reason="demanded in CI; elsewhere the processor decides")
def test_the_portable_kernels_are_there_in_ci() -> None:
    assert "native:generic" in BACKENDS


@pytest.mark.parametrize("operation", CALLS)
def test_the_backend_named_is_the_one_that_runs(operation: str, backend: Running) -> None:
    arguments, family = CALLS[operation]
    getattr(minerlib, operation)(*arguments, backend=backend.name)
    assert backend.families() == [family]


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize("name", ["native", "numba"])
def test_a_named_backend_never_falls_back(name: str, operation: str, unusable: set[str]) -> None:
    unusable.add(name)
    with pytest.raises(minerlib.BackendUnavailable) as caught:
        getattr(minerlib, operation)(*CALLS[operation][0], backend=name)
    message = str(caught.value)
    assert name in message
    assert all(reason in message for reason in REASONS)
    assert isinstance(caught.value, RuntimeError)


def test_bad_input_comes_before_a_missing_backend(unusable: set[str]) -> None:
    unusable.add("native")
    with pytest.raises(ValueError, match=r"^margin: "):
        minerlib.mine(X, LABELS, "hard", margin=-1.0, backend="native")


def test_auto_takes_the_first_usable(unusable: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = minerlib.mine(X, LABELS, "hard", backend="reference")
    for missing, taken in ((set(), None), ({"native"}, "numba"), ({"native", "numba"}, "reference")):
        unusable.clear()
        unusable.update(missing)
        explanation = minerlib.explain("mine")
        usable = [name for name, reasons in explanation.reasons.items() if not reasons]
        assert explanation.chosen == usable[0]
        if taken in usable:
            assert explanation.chosen == taken
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            found = minerlib.mine(X, LABELS, "hard")
        for column, other in zip(found, wanted, strict=True):
            assert np.array_equal(column, other)


def test_a_missing_backend_is_told_once(unusable: set[str]) -> None:
    unusable.update(("native", "numba"))
    with pytest.warns(RuntimeWarning, match="runs on its reference backend") as caught:
        minerlib.mine(X, LABELS, "hard")
    (warning,) = caught
    assert warning.filename == __file__  # it points at the call, not into the package
    message = str(warning.message)
    assert all(part in message for part in ("native", "numba", *REASONS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minerlib.mine(X, LABELS, "hard")
        minerlib.count_triplets(X, LABELS)


@pytest.mark.parametrize("operation", CALLS)
def test_the_warning_points_at_the_call(operation: str, unusable: set[str]) -> None:
    unusable.update(("native", "numba"))
    with pytest.warns(RuntimeWarning) as caught:
        getattr(minerlib, operation)(*CALLS[operation][0])
    assert [warning.filename for warning in caught] == [__file__]


def test_an_explicit_choice_warns_of_nothing(unusable: set[str]) -> None:
    unusable.update(("native", "numba"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minerlib.mine(X, LABELS, "hard", backend="reference")


def test_explain(unusable: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    unusable.add("native")
    monkeypatch.setattr(triton, "reasons_unusable", lambda: ())
    explanation = minerlib.explain("mine")
    assert list(explanation.reasons) == ["native", "numba", "reference", "cuda", "triton"]
    assert any("for tensors on a GPU" in reason for reason in explanation.reasons["triton"])
    assert explanation.reasons["native"] == REASONS
    assert explanation.reasons["reference"] == ()
    text = str(explanation)
    assert f"auto takes {explanation.chosen}" in text
    assert all(reason in text for reason in REASONS)
    for line in text.splitlines()[1:]:
        name, said = line.split(maxsplit=1)
        assert (said == "usable") == (explanation.reasons[name] == ())


@pytest.mark.parametrize("operation", CALLS)
def test_explain_computes_nothing_and_checks_the_call(operation: str, backend: Running) -> None:
    arguments, _ = CALLS[operation]
    assert minerlib.explain(operation, *arguments, backend=backend.name).reasons[backend.name] == ()
    assert backend.families() == []
    with pytest.raises(ValueError, match=r"^metric: expected one of"):
        minerlib.explain(operation, *arguments, metric="manhattan")
    with pytest.raises(ValueError, match=r"^backend: expected one of"):
        minerlib.explain(operation, *arguments, backend="fpga")


def test_explain_of_something_else() -> None:
    with pytest.raises(ValueError, match=r"^operation: expected one of mine, .*got 'sort'"):
        minerlib.explain("sort")
    with pytest.raises(TypeError, match=r"^operation: expected a string"):
        minerlib.explain(minerlib.mine)


def test_describe_backends(unusable: set[str]) -> None:
    unusable.add("numba")
    rows = {name: (usable, reasons, text) for name, usable, reasons, text in dispatch.describe_backends()}
    assert list(rows) == ["native", "numba", "reference", "cuda", "triton"]
    assert rows["numba"][:2] == (False, REASONS)
    assert rows["reference"][:2] == (True, ())
    assert all(text for _, _, text in rows.values())


# ------------------------------------------------------------------ imports


def modules_after(statements: str) -> set[str]:
    """Top-level names (and minerlib's own modules) loaded by a fresh interpreter."""
    script = f"import json, sys\n{statements}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


HEAVY = {"torch", "numba", "llvmlite", "matplotlib", "sklearn", "scipy", "pyarrow", "tqdm", "pandas"}


def test_importing_is_cheap() -> None:
    loaded = modules_after("import minerlib")
    assert not loaded & HEAVY
    assert "minerlib._native" not in loaded


def test_arrays_are_mined_without_torch() -> None:
    loaded = modules_after(
        "import minerlib, numpy as np\n"
        "x = np.random.default_rng(0).standard_normal((20, 4))\n"
        "minerlib.mine(x, np.arange(20) % 3, 'semi-hard', backend='reference')\n"
        "minerlib.nearest(x, x, 2, backend='reference')"
    )
    assert not loaded & HEAVY


def test_the_native_backend_needs_neither_torch_nor_numba() -> None:
    if minerlib.explain("mine").chosen != "native":
        pytest.skip("native: " + "; ".join(minerlib.explain("mine").reasons["native"]))
    loaded = modules_after(
        "import minerlib, numpy as np\n"
        "x = np.random.default_rng(0).standard_normal((20, 4))\n"
        "minerlib.mine(x, np.arange(20) % 3, 'semi-hard')"
    )
    assert not loaded & HEAVY


def test_public_names() -> None:
    for name in minerlib.__all__:
        assert getattr(minerlib, name).__doc__
    assert sorted(minerlib.__all__) == minerlib.__all__
