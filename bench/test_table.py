"""The rows that minerlib is required to reach: each a benchmark, and a line of the table."""

from __future__ import annotations

import pytest

from bench import suite


@pytest.mark.bench
@pytest.mark.parametrize("row", suite.required_rows(), ids=suite.name)
def test_required(row: suite.Row, hold) -> None:
    hold("required", row)
