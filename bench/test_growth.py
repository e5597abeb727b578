"""How time grows with the number of rows, of dimensions and of rows in a class."""

from __future__ import annotations

import pytest

from bench import suite


@pytest.mark.bench
@pytest.mark.parametrize("row", suite.growth_with_rows(), ids=suite.name)
def test_rows(row: suite.Row, hold) -> None:
    hold("growth with N", row)


@pytest.mark.bench
@pytest.mark.parametrize("row", suite.growth_with_dims(), ids=suite.name)
def test_dims(row: suite.Row, hold) -> None:
    hold("growth with D", row)


@pytest.mark.bench
@pytest.mark.parametrize("row", suite.growth_with_classes(), ids=suite.name)
def test_classes(row: suite.Row, hold) -> None:
    hold("growth with rows a class", row)
