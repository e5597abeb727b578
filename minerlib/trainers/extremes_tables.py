"""Tables I and II of the extreme-distance study: ours, and the published ones to set beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minerlib.trainers.extremes_config import MEASURES, METHODS, PAPERS_DATA
from minerlib.trainers.report import Table, with_published

#: Per cent: R@1, R@4, R@8, R@16 and accuracy on training data, then on test data.
TABLE_1: dict[str, tuple[float, ...]] = {
    "EPEN": (92.60, 97.66, 98.85, 99.48, 95.87, 89.86, 96.78, 98.20, 99.11, 94.58),
    "EPHN": (94.82, 98.46, 99.27, 99.70, 97.10, 94.50, 98.41, 99.25, 99.67, 97.21),
    "HPEN": (93.22, 96.93, 97.71, 98.35, 96.16, 87.11, 97.01, 98.83, 99.59, 94.10),
    "HPHN": (81.62, 89.73, 93.15, 95.78, 91.19, 42.71, 71.07, 86.13, 95.32, 71.25),
    "assorted": (86.40, 93.65, 95.93, 97.66, 92.53, 88.56, 97.31, 98.95, 99.52, 94.60),
}
TABLE_2: dict[str, tuple[float, ...]] = {
    "BA": (95.13, 98.45, 99.20, 99.60, 97.73, 82.42, 93.94, 96.93, 98.58, 90.85),
    "BSH": (95.83, 98.77, 99.42, 99.65, 98.00, 84.70, 94.78, 97.34, 98.75, 91.74),
    "HPHN": (91.52, 97.14, 98.60, 99.34, 96.09, 86.65, 95.80, 97.81, 99.04, 93.20),
    "NCA": (96.45, 98.92, 99.40, 99.69, 98.40, 78.93, 92.58, 96.39, 98.47, 89.65),
    "PNCA": (93.59, 98.06, 99.04, 99.53, 97.08, 80.45, 93.02, 96.34, 98.42, 88.72),
    "EP": (84.30, 94.30, 96.94, 98.38, 92.78, 74.00, 90.35, 95.00, 97.93, 85.88),
    "EP-D": (86.11, 95.90, 97.86, 99.00, 93.30, 77.23, 92.14, 96.18, 98.49, 87.95),
    "DWS": (84.43, 94.78, 97.27, 98.59, 92.25, 83.74, 94.36, 96.72, 98.33, 92.20),
    "EPEN": (87.44, 95.89, 97.84, 98.90, 94.03, 85.48, 95.40, 97.65, 98.92, 92.57),
    "EPHN": (95.44, 98.68, 99.22, 99.57, 97.90, 85.34, 94.80, 97.49, 98.81, 91.77),
    "HPEN": (89.53, 96.67, 98.21, 99.15, 95.04, 85.38, 95.30, 97.55, 98.82, 92.56),
    "assorted": (93.73, 97.98, 99.02, 99.57, 97.12, 86.57, 96.18, 98.25, 99.30, 93.44),
}

COLUMNS = tuple(f"{part} {measure}" for part in ("train", "test") for measure in MEASURES)
PROTOCOL = (
    "Per cent. R@k ranks each set against itself, every image a query once; Acc. is the share of images\n"
    "whose closest training image is of their class (of training data, R@1). Training data is X1 and X2."
)

Measured = Mapping[str, Mapping[str, float]]  # train, test: {measure: per cent}


def method_table(
    offline: bool,
    measured: Mapping[str, Measured],  # by key of METHODS
    data: str,
    note: str = "",
) -> Table:
    """Table I (offline) or II (online) with the rows that were measured, in the paper's order.

    Beside every figure stands the published one, if the data set is the paper's.
    """
    rows: list[tuple[Any, ...]] = []
    for name, method in METHODS.items():
        if method.offline == offline and name in measured:
            found = measured[name]
            rows.append((
                method.title,
                *(found[part].get(measure) for part in ("train", "test") for measure in MEASURES),
            ))  # fmt: skip
    number, kind, published = ("I", "offline", TABLE_1) if offline else ("II", "online", TABLE_2)
    table = Table(
        f"Table {number}: {kind} triplet mining on {data}",
        ("method", *COLUMNS),
        rows,
        "\n".join(filter(None, (PROTOCOL, note))),
    )
    return with_published(table, published, data, PAPERS_DATA)
