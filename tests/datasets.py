"""Rows and labels that are hard to get right, and a covering choice of cases made of them.

`rows` gives float64 arrays whose values the wanted type holds exactly, so that what a test passes in that
type and what it computes with in float64 are the same numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

DTYPES = ("float16", "bfloat16", "float32", "float64")
METRICS = ("sqeuclidean", "euclidean", "cosine")
FALLBACKS = ("drop", "hardest", "farthest")
SIZES = (1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 65, 127, 129)
DIMENSIONS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 127, 129, 257, 512, 1031)

_MANTISSA_BITS = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}
#: Scales whose squares leave the type (or float32), and whose squares float64 still holds at the large end.
_TINY = {"float16": 1e-6, "bfloat16": 1e-20, "float32": 1e-20, "float64": 1e-200}
_HUGE = {"float16": 1e4, "bfloat16": 1e18, "float32": 1e18, "float64": 1e140}
#: Values of the first three are subnormal themselves; the squares are subnormal in float64.
_SUBNORMAL = {"float16": 3e-7, "bfloat16": 1e-39, "float32": 1e-42, "float64": 1e-160}


# ------------------------------------------------------------------ types


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """`values` rounded to the type, as float64."""
    if dtype == "bfloat16":
        return torch.from_numpy(values).to(torch.bfloat16).double().numpy()
    if dtype == "float16":
        values = np.clip(values, -60000, 60000)
    return values.astype(dtype).astype(np.float64)


def as_dtype(values: np.ndarray, dtype: str) -> Any:
    """Representable values as a NumPy array of the type; bfloat16, which NumPy lacks, as a torch tensor."""
    if dtype == "bfloat16":
        return torch.from_numpy(values).to(torch.bfloat16)
    return values.astype(dtype)


# ------------------------------------------------------------------ rows


def _gaussian(rng: np.random.Generator, n: int, d: int, dtype: str) -> np.ndarray:
    return rng.standard_normal((n, d))


def _clusters(rng: np.random.Generator, n: int, d: int, dtype: str) -> np.ndarray:
    """Tight clusters of unit vectors: what a trained network gives."""
    centres = rng.standard_normal((max(1, n // 8), d))
    x = centres[rng.integers(len(centres), size=n)] + 0.03 * rng.standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def _duplicates(rng: np.random.Generator, n: int, d: int, dtype: str) -> np.ndarray:
    return np.repeat(rng.standard_normal((1, d)), n, axis=0)


def _grid(rng: np.random.Generator, n: int, d: int, dtype: str) -> np.ndarray:
    """Small integers: full of exact ties."""
    return rng.integers(-2, 3, size=(n, d)).astype(np.float64)


def _off_centre(rng: np.random.Generator, n: int, d: int, dtype: str) -> np.ndarray:
    spread = 1.0 if dtype in ("float32", "float64") else 100.0  # half types hold few values near 1e4
    return 1e4 + spread * rng.standard_normal((n, d))


def _tiny(rng: np.random.Generator, n: int, d: int, dtype: str) -> np.ndarray:
    return _TINY[dtype] * rng.standard_normal((n, d))


def _huge(rng: np.random.Generator, n: int, d: int, dtype: str) -> np.ndarray:
    return _HUGE[dtype] * rng.standard_normal((n, d))


def _subnormal(rng: np.random.Generator, n: int, d: int, dtype: str) -> np.ndarray:
    return _SUBNORMAL[dtype] * rng.standard_normal((n, d))


def _outlier(rng: np.random.Generator, n: int, d: int, dtype: str) -> np.ndarray:
    """One row of huge norm, which loosens any bound made from the largest norm."""
    x = rng.standard_normal((n, d))
    x[n // 2] *= 1e4 if dtype == "float16" else 1e7
    return x


def _zeros(rng: np.random.Generator, n: int, d: int, dtype: str) -> np.ndarray:
    """Zero rows among others: at cosine distance 1 from everything, each other included."""
    x = rng.standard_normal((n, d))
    x[::3] = 0.0
    return x


def _last_bit(rng: np.random.Generator, n: int, d: int, dtype: str) -> np.ndarray:
    """Near-duplicates: copies of one row whose values differ by a unit in the last place."""
    base = rounded(rng.standard_normal((1, d)), dtype)
    unit = np.ldexp(1.0, np.frexp(base)[1] - 1 - _MANTISSA_BITS[dtype])
    return base + rng.integers(-1, 2, size=(n, d)) * unit


def _spikes(rng: np.random.Generator, n: int, d: int, dtype: str) -> np.ndarray:
    """One large value in every row, which leaves the others few steps where a row is rounded to integers."""
    x = rng.standard_normal((n, d))
    x[np.arange(n), rng.integers(d, size=n)] *= 1e3
    return x


def _mixed_scales(rng: np.random.Generator, n: int, d: int, dtype: str) -> np.ndarray:
    return rng.standard_normal((n, d)) * 10.0 ** rng.uniform(-4, 4, size=(n, 1))


ROWS: dict[str, Callable[[np.random.Generator, int, int, str], np.ndarray]] = {
    "gaussian": _gaussian,
    "spikes": _spikes,
    "clusters": _clusters,
    "duplicates": _duplicates,
    "grid": _grid,
    "off-centre": _off_centre,
    "tiny": _tiny,
    "huge": _huge,
    "subnormal": _subnormal,
    "outlier": _outlier,
    "zeros": _zeros,
    "last-bit": _last_bit,
    "mixed-scales": _mixed_scales,
}


def rows(kind: str, n: int, d: int, dtype: str = "float64", seed: int = 0) -> np.ndarray:  # float64 [n, d]
    """Rows of the kind, every value exact in the type."""
    rng = np.random.default_rng([seed, n, d, *kind.encode()])
    return rounded(np.ascontiguousarray(ROWS[kind](rng, n, d, dtype)), dtype)


# ------------------------------------------------------------------ labels


def _extreme(rng: np.random.Generator, n: int) -> np.ndarray:
    """Negative, sparse and far beyond 2^31; neighbours that float64 cannot tell apart."""
    values = np.array([-(2**63), -5, 0, 2**31, 2**31 + 1, 2**53, 2**53 + 1, 2**63 - 2, 2**63 - 1], np.int64)
    return values[rng.integers(len(values), size=n)]


def _multi(classes: int, density: float) -> Callable[[np.random.Generator, int], np.ndarray]:
    def generate(rng: np.random.Generator, n: int) -> np.ndarray:
        labels = rng.random((n, classes)) < density
        labels[rng.integers(classes, size=n) == 0] = False  # some rows carry no label at all
        return labels

    return generate


LABELS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "few": lambda rng, n: rng.integers(4, size=n),
    "eights": lambda rng, n: rng.permutation(n) // 8,
    "skewed": lambda rng, n: np.where(rng.random(n) < 0.3, 0, rng.integers(1, 2 + n // 2, size=n)),
    "distinct": lambda rng, n: rng.permutation(n),
    "one": lambda rng, n: np.zeros(n, dtype=np.int32),
    "extreme": _extreme,
    "bool": lambda rng, n: rng.random(n) < 0.2,
    "multi-few": _multi(5, 0.2),
    "multi-many": _multi(70, 0.01),
}


def labels(kind: str, n: int, seed: int = 0) -> np.ndarray:  # [n] or bool [n, C]
    return LABELS[kind](np.random.default_rng([seed, n, *kind.encode()]), n)


def same_class(a: np.ndarray, b: np.ndarray) -> np.ndarray:  # bool [N, M]
    """Class membership from the labels themselves, without the package's own grouping."""
    if a.ndim == 2:
        return (a[:, None, :] & b[None, :, :]).any(axis=2)
    return a.astype(object)[:, None] == b.astype(object)[None, :]


# ------------------------------------------------------------------ cases


@dataclass(frozen=True)
class Case:
    """One choice of everything that `mine` is given."""

    data: str
    labels: str
    dtype: str
    metric: str
    rows: int
    dimensions: int
    columns: int  # rows of the reference; 0: the embeddings are mined against themselves
    pairs: str
    fallback: str
    margin: str
    threads: int

    def __str__(self) -> str:
        against = f"x{self.columns}" if self.columns else ""
        shape = f"{self.rows}{against}-D{self.dimensions}"
        options = f"{self.pairs}-{self.fallback}-{self.margin}-{self.threads}t"
        return f"{self.data}-{self.labels}-{self.dtype}-{self.metric}-{shape}-{options}"


_FACTORS: dict[str, tuple[Any, ...]] = {
    "data": tuple(ROWS),
    "labels": tuple(LABELS),
    "dtype": DTYPES,
    "metric": METRICS,
    "rows": SIZES,
    "dimensions": DIMENSIONS,
    "columns": (0, 1, 33, 130),
    "pairs": ("ordered", "combinations"),
    "fallback": FALLBACKS,
    "margin": ("zero", "usual", "median", "tie", "wide"),
    "threads": (1, 2, 5),
}
#: Pairs of factors whose full product would cost more than it tells, or is not allowed.
_FREE = {("rows", "dimensions"), ("dimensions", "columns"), ("columns", "pairs")}
_MOST_PRODUCTS = 130 * 130 * 130  # of the slow reference


def _allowed(choice: dict[str, Any]) -> bool:
    if choice["columns"] and choice["pairs"] == "combinations":
        return False
    return choice["rows"] * (choice["columns"] or choice["rows"]) * choice["dimensions"] <= _MOST_PRODUCTS


def covering_cases(seed: int = 0, tries: int = 12) -> list[Case]:
    """Cases in which any two levels of any two factors (but the free ones) meet at least once."""
    rng = np.random.default_rng(seed)
    names = list(_FACTORS)
    factor_pairs = [pair for pair in itertools.combinations(names, 2) if pair not in _FREE]
    missing = {(f, a, g, b) for f, g in factor_pairs for a, b in itertools.product(_FACTORS[f], _FACTORS[g])}
    order = sorted(missing, key=str)
    rng.shuffle(order)
    chosen = []
    for f, a, g, b in order:
        if (f, a, g, b) not in missing:
            continue
        best: tuple[set[Any], dict[str, Any]] | None = None
        for attempt in itertools.count():
            if attempt >= tries and best is not None:
                break
            choice = {name: levels[rng.integers(len(levels))] for name, levels in _FACTORS.items()}
            choice |= {f: a, g: b}
            if not _allowed(choice):
                continue
            covered = {(p, choice[p], q, choice[q]) for p, q in factor_pairs} & missing
            if best is None or len(covered) > len(best[0]):
                best = covered, choice
        missing -= best[0]
        chosen.append(Case(**best[1]))
    return chosen


def crossed_cases() -> list[Case]:
    """Every data set x type x metric mined against itself, with classes that leave plenty to choose."""
    rng = np.random.default_rng(1)
    sizes, dimensions = (31, 33, 63, 65, 127, 129), (2, 3, 7, 9, 15, 17, 31, 33, 64, 127, 129)
    cases = []
    for data, dtype, metric in itertools.product(ROWS, DTYPES, METRICS):
        classes, fallback = rng.choice(("eights", "few")), rng.choice(FALLBACKS)
        margin = rng.choice(("usual", "median", "tie"))
        case = Case(
            data, str(classes), dtype, metric, int(rng.choice(sizes)), int(rng.choice(dimensions)), columns=0,
            pairs="ordered", fallback=str(fallback), margin=str(margin), threads=int(rng.integers(1, 4)),
        )  # fmt: skip
        cases.append(case)
    return cases
