"""Every other operation against the peers that offer it."""

from __future__ import annotations

import pytest

from bench import suite


@pytest.mark.bench
@pytest.mark.parametrize("row", suite.operations(), ids=suite.name)
def test_operation(row: suite.Row, hold) -> None:
    hold("operations", row)
