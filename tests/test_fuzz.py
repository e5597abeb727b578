"""1,000 malformed calls from a seeded fuzzer: each ends in TypeError or ValueError that names the argument.

A call starts valid, with random shapes, types, kinds and options, and then one thing is spoiled in it. None
may crash, hang, return, or raise anything else.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import minerlib
from minerlib.strategies import STRATEGIES

CALLS, BATCHES = 1000, 20

Arguments = dict[str, Any]


# ------------------------------------------------------------------ valid calls


def _rows(rng: np.random.Generator, n: int, d: int, *batch: int) -> Any:
    x = rng.standard_normal((*batch, n, d)).astype(rng.choice(["float16", "float32", "float64"]))
    if rng.random() < 0.4:
        x = torch.from_numpy(x)
        return x.to(torch.bfloat16) if rng.random() < 0.3 else x.requires_grad_(rng.random() < 0.3)
    return np.asfortranarray(x) if rng.random() < 0.3 else x


def _labels(rng: np.random.Generator, n: int, form: str) -> Any:
    labels = rng.random((n, 5)) < 0.3 if form == "multi" else rng.integers(3, size=n).astype(form)
    return torch.from_numpy(labels) if rng.random() < 0.4 else labels


def _mining(rng: np.random.Generator) -> Arguments:
    n, d, form = (
        int(rng.integers(2, 30)),
        int(rng.integers(1, 20)),
        str(rng.choice(["int64", "int8", "multi"])),
    )
    arguments: Arguments = {"embeddings": _rows(rng, n, d), "labels": _labels(rng, n, form)}
    arguments |= {"margin": float(rng.random()), "metric": _any(rng, "sqeuclidean", "euclidean", "cosine")}
    if rng.random() < 0.4:
        m = int(rng.integers(1, 30))
        arguments |= {"reference": _rows(rng, m, d), "reference_labels": _labels(rng, m, form)}
    else:
        arguments["pairs"] = _any(rng, "ordered", "combinations")
    return arguments


def _mine(rng: np.random.Generator) -> Arguments:
    return _mining(rng) | {
        "strategy": _any(rng, *STRATEGIES),
        "fallback": _any(rng, "drop", "hardest", "farthest"),
        "seed": int(rng.integers(2**63)),
        "exact": bool(rng.random() < 0.7),
    }


def _nearest(rng: np.random.Generator) -> Arguments:
    d, m = int(rng.integers(1, 20)), int(rng.integers(1, 30))
    return {
        "queries": _rows(rng, int(rng.integers(1, 30)), d),
        "database": _rows(rng, m, d),
        "k": int(rng.integers(1, m + 1)),
        "metric": _any(rng, "sqeuclidean", "euclidean", "cosine"),
    }


def _pairwise_distance(rng: np.random.Generator) -> Arguments:
    d, batch = int(rng.integers(1, 20)), (3,) if rng.random() < 0.4 else ()
    arguments: Arguments = {"x": _rows(rng, int(rng.integers(1, 20)), d, *batch)}
    if rng.random() < 0.6:
        arguments["y"] = _rows(rng, int(rng.integers(1, 20)), d, *batch)
    return arguments | {"metric": _any(rng, "sqeuclidean", "euclidean", "cosine")}


def _any(rng: np.random.Generator, *values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


VALID: dict[str, Callable[[np.random.Generator], Arguments]] = {
    "mine": _mine,
    "count_triplets": _mining,
    "nearest": _nearest,
    "pairwise_distance": _pairwise_distance,
}

# ------------------------------------------------------------------ what spoils them


class Exporter:
    """An object that promises DLPack and breaks its promise."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def __dlpack__(self, **options: Any) -> Any:
        if self.error is not None:
            raise self.error
        return object()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def _numpy(value: Any) -> np.ndarray:
    return value.detach().double().numpy() if isinstance(value, torch.Tensor) else np.array(value)


def _not_finite(rng: np.random.Generator, value: Any) -> Any:
    x = _numpy(value).astype(np.float64)
    x[tuple(int(rng.integers(size)) for size in x.shape)] = _any(rng, np.nan, np.inf, -np.inf, 1e200)
    return torch.from_numpy(x) if rng.random() < 0.5 else x


def _another_array(rng: np.random.Generator, value: Any) -> Any:
    x = _numpy(value).astype(np.float32)
    spoil = _any(
        rng,
        lambda: x.astype(np.int64), lambda: x > 0, lambda: x.astype(np.complex128), lambda: x.astype(str),
        lambda: x.astype(object), lambda: x.astype(np.longdouble), lambda: x.astype("S3"),
        lambda: x.astype("M8[s]"), lambda: x.astype("m8[s]"), lambda: np.ma.array(x), lambda: x.tolist(),
        lambda: np.zeros(len(x), dtype=[("a", "f4")]), lambda: torch.from_numpy(x).to(torch.complex64),
        lambda: torch.from_numpy(x).long(), lambda: torch.from_numpy(x).bool(),
        lambda: torch.from_numpy(x).to(torch.float8_e5m2), lambda: torch.from_numpy(x).to_sparse(),
        lambda: torch.from_numpy(x).to("meta"), lambda: memoryview(x), lambda: bytes(x.tobytes()),
        lambda: torch.quantize_per_tensor(torch.from_numpy(x), 0.1, 0, torch.quint8),
        lambda: torch.nested.nested_tensor([torch.rand(2, 3), torch.rand(1, 3)]),
        lambda: torch._efficientzerotensor(x.shape),
    )  # fmt: skip
    return spoil()


def _no_array(rng: np.random.Generator, value: Any) -> Any:
    return _any(
        rng, "rows", b"rows", 3, 2.5, True, (), {}, {1: 2}, set(), range(5), object(), type, len, Ellipsis,
        np.ndarray, torch.Tensor, np.float32(1), float("nan"), Exporter(KeyError("x")), Exporter(None),
        Exporter, Exporter(BufferError("no")), Exporter(ZeroDivisionError("no")), iter([1, 2]),
    )  # fmt: skip


def _another_rank(rng: np.random.Generator, value: Any) -> Any:
    x = _numpy(value).astype(np.float64)
    ranks = [x[..., :0], x.reshape(-1), x[None, None, None], x.sum().reshape(())]
    return _any(rng, *ranks, *map(torch.from_numpy, map(np.ascontiguousarray, ranks)))


def _another_width(rng: np.random.Generator, value: Any) -> Any:
    x = _numpy(value).astype(np.float32)
    return np.concatenate([x, x[..., :1]], axis=-1)


def _another_length(rng: np.random.Generator, value: Any) -> Any:
    x = np.array(value)
    return _any(rng, x[:-1], np.concatenate([x, x[:1]]), np.concatenate([x, x]), x[:0])


def _bad_labels(rng: np.random.Generator, value: Any) -> Any:
    x = np.array(value)
    spoil = _any(
        rng,
        lambda: x.astype(np.float64), lambda: x.astype(np.complex64), lambda: x.astype(str),
        lambda: x.tolist(), lambda: x.astype(object), lambda: x.astype("M8[s]"), lambda: x[None, None],
        lambda: x.sum().reshape(()), lambda: x.reshape(len(x), -1).astype(np.int64),
        lambda: torch.from_numpy(x).float(), lambda: np.ma.array(x),
        lambda: torch.from_numpy(x).to("meta"), lambda: torch.from_numpy(x).to_sparse(),
        lambda: torch.from_numpy(x).to(torch.bfloat16), lambda: Exporter(RuntimeError("no")),
    )  # fmt: skip
    return spoil()


def _bad_margin(rng: np.random.Generator, value: Any) -> Any:
    return _any(
        rng, -1.0, -1e-300, float("nan"), float("inf"), -np.inf, 10**400, -(10**400), None, "0.2", b"1", 1j,
        True, [], [0.2], np.ones(2), np.ones((1, 1)), torch.ones(3), np.bool_(False), np.float16("nan"),
        torch.tensor(float("nan")), torch.tensor(-1.0), torch.ones((), device="meta"), np.array("a"), {},
    )  # fmt: skip


def _bad_k(rng: np.random.Generator, value: Any) -> Any:
    return _any(
        rng, 0, -1, 31, 10**6, 2**63, -(2**64), 1.0, "1", None, True, False, [1], np.ones(1), np.float32(1),
        np.bool_(True), torch.tensor(1.5), torch.ones(2, dtype=torch.int64), 1j, float("nan"), object(),
    )  # fmt: skip


def _bad_seed(rng: np.random.Generator, value: Any) -> Any:
    return _any(
        rng, -1, 2**64, 2**100, 1.5, "7", None, True, [7], np.float64(3), np.int64(-5), float("nan"), b""
    )


def _bad_name(rng: np.random.Generator, value: Any) -> Any:
    return _any(
        rng,
        "",
        "HARD",
        "l2",
        "hard ",
        "\0",
        "é" * 50,
        "%s{}",
        None,
        3,
        1.0,
        True,
        b"hard",
        ["hard"],
        object(),
    )


def _bad_switch(rng: np.random.Generator, value: Any) -> Any:
    return _any(rng, None, 0, 1, "True", "", [], 1.0, np.array([True]), object(), torch.tensor(True))


@dataclass(frozen=True)
class Spoiler:
    """Spoils one argument of a call; the message may name any of `named` (the argument itself by default)."""

    argument: str
    change: Callable[[np.random.Generator, Any], Any]
    named: tuple[str, ...] = ()


ROWS, LABELS = (
    (_not_finite, _another_array, _no_array, _another_rank),
    (_bad_labels, _no_array, _another_length),
)


def _spoilers(operation: str, call: Arguments) -> list[Spoiler]:
    """Everything that can be done to this call."""
    mining = operation in ("mine", "count_triplets")
    out = [Spoiler("backend", _bad_name), Spoiler("metric", _bad_name)]
    other_side = {"embeddings": "reference", "x": "y", "queries": "database", "labels": "reference_labels"}
    for argument in ("embeddings", "reference", "queries", "database", "x", "y"):
        if argument in call:
            out += [Spoiler(argument, change, (argument, *_partners(argument, call))) for change in ROWS]
        partner = other_side.get(argument)
        if argument in call and partner in call:
            out += [Spoiler(argument, _another_width, (partner,)), Spoiler(partner, _another_width)]
    if mining:
        for argument in ("labels", "reference_labels"):
            if argument in call:
                out += [
                    Spoiler(argument, change, (argument, *_partners(argument, call))) for change in LABELS
                ]
        out += [Spoiler("margin", _bad_margin), Spoiler("pairs", _bad_name), Spoiler("exact", _bad_switch)]
        if "reference" in call:
            out += [Spoiler("pairs", lambda rng, value: "combinations")]
            out += [Spoiler("reference", _nothing), Spoiler("reference_labels", _nothing)]
        else:
            out += [
                Spoiler("reference", lambda rng, value: call["embeddings"], ("reference_labels", "pairs"))
            ]
            out += [Spoiler("reference_labels", lambda rng, value: call["labels"], ("reference",))]
    if operation == "mine":
        out += [Spoiler("strategy", _bad_name), Spoiler("fallback", _bad_name), Spoiler("seed", _bad_seed)]
        out += [Spoiler("compact", _bad_switch)]
    if operation == "nearest":
        out += [Spoiler("k", _bad_k), Spoiler("exact", _bad_switch)]
        out += [Spoiler("database", lambda rng, value: _numpy(value)[:0])]
    return out


def _nothing(rng: np.random.Generator, value: Any) -> Any:
    return None


def _partners(argument: str, call: Arguments) -> tuple[str, ...]:
    """Arguments that must agree with this one in device, width or form, and may be named instead."""
    groups = [("embeddings", "labels", "reference", "reference_labels"), ("queries", "database"), ("x", "y")]
    (group,) = [group for group in groups if argument in group]
    return tuple(name for name in group if name != argument and name in call)


def _told(value: Any) -> str:
    if isinstance(value, np.ndarray) or (isinstance(value, torch.Tensor) and not value.is_nested):
        return f"{type(value).__name__}{list(value.shape)} of {value.dtype}"
    return repr(value)[:60]


@pytest.mark.parametrize("batch", range(BATCHES))
def test_malformed_calls(batch: int) -> None:
    rng = np.random.default_rng([20261123, batch])
    for _ in range(CALLS // BATCHES):
        operation = _any(rng, *VALID)
        call = VALID[operation](rng)
        spoiler = _any(rng, *_spoilers(operation, call))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries that make the strange arrays
            call[spoiler.argument] = spoiler.change(rng, call.get(spoiler.argument))
        told = f"{operation}({', '.join(f'{name}={_told(value)}' for name, value in call.items())})"
        names = "|".join(spoiler.named or (spoiler.argument,))
        outcome = _outcome(operation, call)
        assert re.match(rf"(TypeError|ValueError) ({names}): expected .*(got|holds) ", outcome, re.DOTALL), (
            f"{spoiler.argument} spoiled in {told}: {outcome}"
        )


def _outcome(operation: str, call: Arguments) -> str:
    try:
        result = getattr(minerlib, operation)(**call)
    except Exception as error:
        return f"{type(error).__name__} {error}"
    return f"returned {type(result).__name__}"


def test_unspoiled_calls_are_valid() -> None:
    """Otherwise the test above would prove little."""
    rng = np.random.default_rng(20261123)
    for _ in range(60):
        operation = _any(rng, *VALID)
        getattr(minerlib, operation)(**VALID[operation](rng), backend="reference")
