"""What the Triton backend's host code does on a GPU, shown without one: see pretend_gpu.py."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Any

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed (make build installs it)", allow_module_level=True)

MB = 1 << 20


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """Every case ran: no kernel was launched on another device than its tensors' own."""
    command = [sys.executable, "-m", "tests.pretend_gpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert all(case["launches"] for case in found.values())
    return found


def test_padded_triplets_and_losses_read_nothing_back(report: dict[str, Any]) -> None:
    quiet = [name for name in report if name.startswith(("padded", "loss"))]
    assert len(quiet) > 20
    assert {name: report[name]["reads"] for name in quiet} == dict.fromkeys(quiet, 0)


def test_compact_answers_read_what_sizes_them(report: dict[str, Any]) -> None:
    """One number per anchor; per pair how many pairs there are, and how many triplets."""
    reads = {
        name.removeprefix("compact "): case["reads"] for name, case in report.items() if "compact" in name
    }
    per_anchor = ("epen", "ephn", "hpen", "hphn", "batch-hard", "assorted", "easy-positive")
    assert {name for name, number in reads.items() if number == 1} == set(per_anchor)
    assert all(reads[name] == 2 for name in reads.keys() - per_anchor)
    assert report["nearest"]["reads"] == report["pairwise_distance"]["reads"] == 1
    assert report["count_triplets"]["reads"] == 2
    assert report["range of codes"]["reads"] == 1
    assert report["distances of codes"]["reads"] == 0


def test_extra_memory(report: dict[str, Any]) -> None:
    """Beside inputs of 128 values a row and a label: below 64 MB at N = 131,072; batch-all at 8,192."""
    for name, value_bytes in (("padded large torch.bfloat16", 2), ("padded large torch.float32", 4)):
        assert report[name]["bytes"] - 131072 * (128 * value_bytes + 8) < 64 * MB
    assert report["loss large"]["bytes"] - 8192 * (128 * 4 + 8) < 64 * MB
