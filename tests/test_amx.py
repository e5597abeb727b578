"""AMX: chosen only where its self-check passed; the code that runs is a product of tiles.

Its answers are the business of test_equality.py and test_offline.py, which run its kernels on emulated tiles.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from minerlib import cli
from tests.conftest import load_backend


@pytest.fixture
def native() -> Iterator[ModuleType]:
    module = load_backend("native")
    if module.reasons_unusable():
        pytest.skip("; ".join(module.reasons_unusable()))
    if not module.emulated_instruction_sets():
        pytest.skip("no AVX2 here to emulate AMX with")
    yield module
    module.instruction_sets.cache_clear()


def pretended(without_amx: str) -> SimpleNamespace:
    return SimpleNamespace(
        instruction_sets=lambda: ["generic", "avx512vpopcntdq", *([] if without_amx else ["amxbf16"])],
        without_amx=lambda: without_amx,
        self_check_failed="its self-check failed",
        compiler="a compiler",
    )


def test_emulated_tiles_are_named_and_never_chosen(native: ModuleType) -> None:
    assert native.emulated_instruction_sets() == ("amxemulated",)
    assert "amxemulated" not in native.instruction_sets()
    before = native.instruction_set()
    with native.use_instruction_set("amxemulated"):
        assert native.instruction_set() == "amxemulated"
    assert native.instruction_set() == before != "amxemulated"


def test_the_self_check_passes_where_there_are_tiles(native: ModuleType) -> None:
    assert native._native.passes_self_check("amxemulated")
    if not native._native.without_amx():
        assert native._native.passes_self_check("amxbf16")
    with pytest.raises(ValueError, match="instruction set 'avx2' has no self-check"):
        native._native.passes_self_check("avx2")


def test_amx_is_used_or_there_is_a_reason(native: ModuleType) -> None:
    assert ("amxbf16" in native.instruction_sets()) == (native.info()["without_amx"] == "")


@pytest.mark.parametrize(
    ("without_amx", "best", "said"),
    [
        ("", "amxbf16", "used, its self-check passed"),
        ("the processor has no AMX for bfloat16", "avx512vpopcntdq", "not used: the processor has no AMX"),
    ],
)
def test_info_tells(
    native: ModuleType, monkeypatch: pytest.MonkeyPatch, without_amx: str, best: str, said: str
) -> None:
    monkeypatch.setattr(native, "_native", pretended(without_amx))
    native.instruction_sets.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.instruction_set() == best
        assert cli._native_facts()["amx"].startswith(said)


def test_a_failed_self_check_is_said_once(native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_native", pretended("its self-check failed"))
    native.instruction_sets.cache_clear()
    with pytest.warns(
        RuntimeWarning, match="AMX did not pass the self-check.*avx512vpopcntdq is used"
    ) as all_of_them:
        assert native.instruction_set() == native.instruction_set() == "avx512vpopcntdq"
    assert len(all_of_them) == 1


def test_what_was_compiled_multiplies_tiles(native: ModuleType) -> None:
    """TDPBF16PS on the registers that amx_panel.h names: C 0 to 3, A 4 and 5, B 6 and 7."""
    code = Path(native._native.__file__).read_bytes()
    for c, a, b in [(0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7)]:
        product = bytes([0xC4, 0xE2, (~b & 15) << 3 | 2, 0x5C, 0xC0 | c << 3 | a])
        assert product in code, (c, a, b)
