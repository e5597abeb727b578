"""The scripts in examples/ run, and say what they promise."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SAID = {  # in this order
    "swap_miner": [r"largest gap +(0\.0e\+00|\d\.\de-0[4-9])", r"mining a batch .* times faster"],
    "offline_mining": [
        r"ephn: 1\d{3} triplets",
        r"hphn: 1\d{3}",
        r"epoch 3: mean loss 0\.0",
        r"R@1 .* 9\d\.\d %",
    ],
    "hash_and_search": [r"1500 codes of 32 bits", r"query 0 is a \d", r"mean average precision.* 0\.[5-9]"],
}


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SAID)


@pytest.mark.parametrize("name", SAID)
def test_example(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert re.search(".*".join(SAID[name]), capsys.readouterr().out, re.DOTALL)
    assert list(tmp_path.iterdir()) == []
