"""offline.mine against the definition: chunks, backends, kinds of rows, the outlier rule, hard negatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import minerlib
from minerlib import offline, reference
from minerlib.offline import HardNegatives, OfflineSampler, OfflineTriplets, _moments
from minerlib.offline._bests import Chunk, Updater, no_records

SIDES = {"epen": (0, 3), "ephn": (0, 2), "hpen": (1, 3), "hphn": (1, 2)}
RULES = HardNegatives(count=2, skip=1, window=6, margin=0.0)


def data(kind: str, rows: int = 90) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(3)
    x = draw.standard_normal((rows, 19)).astype(np.float32)
    y = draw.integers(-2, 5, rows)
    match kind:
        case "far from the origin":
            x += np.float32(1000)
        case "float64":
            x = x.astype(np.float64) * 1e5
        case "duplicates":
            x = x[draw.integers(0, rows // 9, rows)]
        case "all equal":
            x[:] = 1
        case "grid":
            x = draw.integers(0, 3, (rows, 2)).astype(np.float32)
        case "label sets":
            y = draw.random((rows, 4)) < 0.3
        case "zero rows":
            x[::6] = 0
        case "one far away":
            x[5] *= 1e6
        case "of many scales":
            x *= np.exp(8 * draw.standard_normal((rows, 1))).astype(np.float32)
        case "tiny":
            x *= np.float32(1e-30)
        case "all classes apart":
            y = np.arange(rows)
    return x, y


KINDS = (
    "plain", "far from the origin", "float64", "duplicates", "all equal", "grid", "label sets", "zero rows",
    "one far away", "of many scales", "tiny", "all classes apart",
)  # fmt: skip


def limits_of(x: np.ndarray, metric: str, percentile: float | None) -> np.ndarray:
    if percentile is None:
        return np.full(len(x), np.inf)
    read = lambda first, last: x[first:last]  # noqa: E731
    return _moments.Limits(read, len(x), x.shape[1], metric, percentile, _moments.add_up_here).of(x)


def expected(x, y, metric: str, percentile: float | None) -> dict[str, list[tuple]]:
    """The rules of SPEC section 9, anchor by anchor."""
    d = reference.selection_values(x, x, "cosine" if metric == "cosine" else "sqeuclidean")
    unit = reference.metric_values(d, metric)
    same = y[:, None] == y[None, :] if y.ndim == 1 else (y[:, None] & y[None, :]).any(axis=2)
    limits = limits_of(x, metric, percentile)
    found: dict[str, list[tuple]] = {case: [] for case in (*SIDES, "hard-negatives")}
    for a in range(len(x)):
        others = np.delete(np.arange(len(x)), a)
        others = others[d[a, others] <= limits[a]]
        sides = [others[same[a, others]], others[~same[a, others]]]
        if not len(sides[0]):
            continue
        order = [side[np.argsort(d[a, side], kind="stable")] for side in sides]
        best = [
            order[0][0],
            sides[0][d[a, sides[0]].argmax()],
            *([order[1][0], sides[1][d[a, sides[1]].argmax()]] if len(sides[1]) else []),
        ]
        if len(best) == 4:
            for case, (p, n) in SIDES.items():
                found[case].append((a, best[p], best[n], unit[a, best[p]], unit[a, best[n]], -1))
        p = best[0]
        kept = [
            (a, p, n, unit[a, p], unit[a, n], rank)
            for rank, n in enumerate(order[1][: RULES.ranked])
            if rank >= RULES.skip and unit[a, n] >= unit[a, p] + RULES.margin
        ]
        found["hard-negatives"] += kept[: RULES.count]
    return found


def check(x, y, metric: str = "sqeuclidean", percentile: float | None = 99, **options) -> None:
    cases = [*SIDES, "hard-negatives"]
    found = offline.mine(
        x, y, cases, metric=metric, outlier_percentile=percentile, hard_negatives=RULES, progress=False,
        **options,
    )  # fmt: skip
    for case, triplets in expected(x, y, metric, percentile).items():
        got = list(zip(*(column.tolist() for column in found[case]), strict=True))
        assert got == [tuple(each) for each in triplets], case


@pytest.mark.parametrize("kind", KINDS)
def test_extremes_and_hard_negatives_are_the_definitions(kind):
    x, y = data(kind)
    for metric in minerlib.inputs.METRICS:
        for percentile, chunk in ((None, None), (99, 37), (80, 128), (60, 5)):
            check(x, y, metric, percentile, chunk_rows=chunk)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_other_backends(backend):
    x, y = data("grid", 70)
    check(x, y, chunk_rows=30, backend=backend)
    x, y = data("label sets", 70)
    check(x, y, "cosine", 80, chunk_rows=30, backend=backend)


def test_every_instruction_set_and_thread_count():
    native = pytest.importorskip("minerlib.backends.native")
    if native.reasons_unusable():
        pytest.skip("; ".join(native.reasons_unusable()))
    x, y = data("plain", 700)
    found = set()
    for name in (*native.instruction_sets(), *native.emulated_instruction_sets()):
        for threads in (1, 3):
            minerlib.set_num_threads(threads)
            with native.use_instruction_set(name):
                mined = offline.mine(x, y, offline.EXTREME_CASES, chunk_rows=300, progress=False)
                found.add(b"".join(column.tobytes() for case in mined.values() for column in case))
    assert len(found) == 1


def wide_classes(kind: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Rows of few classes, whose positives fill whole tiles; rows, labels, metric."""
    draw = np.random.default_rng(5)
    y = draw.integers(0, 3, 1300)
    x = draw.standard_normal((1300, 24)).astype(np.float32)
    metric = "sqeuclidean"
    match kind:
        case "tight classes":
            x = x * np.float32(0.02) + draw.standard_normal((3, 24)).astype(np.float32)[y]
        case "unit rows, some zero":
            x /= np.linalg.norm(x, axis=1, keepdims=True)
            x[::50] = 0
            metric = "cosine"
        case "unit rows":
            x, metric = x + 1, "cosine"
        case "one value a row":
            x *= draw.integers(0, 24, 1300)[:, None] == np.arange(24)
        case "a long row":
            x[700] *= 40
        case "float64":
            x = 1e3 + x.astype(np.float64)
        case "duplicates":
            x = x[draw.integers(0, 300, 1300)]
        case "many dimensions":
            x = np.tile(x, (1, 13)) + draw.standard_normal((1300, 312)).astype(np.float32)
        case "an odd number":
            x = x[:, :17]
        case "along a line":
            x = x * np.float32(0.01) + draw.standard_normal((1300, 1)).astype(np.float32)
        case "two scales":
            x[::2] *= np.float32(0.01)
    return np.ascontiguousarray(x), y, metric


@pytest.mark.parametrize(
    "kind",
    [
        "plain", "tight classes", "unit rows, some zero", "unit rows", "one value a row", "a long row",
        "float64", "duplicates", "many dimensions", "an odd number", "along a line", "two scales",
    ],
)  # fmt: skip
def test_wide_classes(kind):
    """Large enough for tiles that only tell which values are computed."""
    native = pytest.importorskip("minerlib.backends.native")
    if native.reasons_unusable():
        pytest.skip("; ".join(native.reasons_unusable()))
    x, y, metric = wide_classes(kind)
    for percentile, cases in ((None, offline.EXTREME_CASES), (75, offline.EXTREME_CASES), (None, ["hphn"])):
        options = {"outlier_percentile": percentile, "metric": metric, "chunk_rows": 330, "progress": False}
        mined = offline.mine(x, y, cases, **options)
        plain = offline.mine(x, y, cases, backend="reference", **options)
        for case, triplets in plain.items():
            for got, wanted in zip(mined[case], triplets, strict=True):
                np.testing.assert_array_equal(got, wanted, err_msg=f"{case}, {percentile}")


def test_cases_are_the_strategies_of_the_same_names():
    x, y = data("plain", 300)
    names = [case for case in offline.CASES if case != "hard-negatives"]
    found = offline.mine(x, y, names, outlier_percentile=None, seed=9, chunk_rows=77, progress=False)
    for case in names:
        together = zip(found[case][:3], minerlib.mine(x, y, case, seed=9), strict=True)
        assert all(np.array_equal(a, b) for a, b in together), case
    as_tensors = offline.mine(torch.from_numpy(x), torch.from_numpy(y), "hphn", progress=False)
    assert isinstance(as_tensors["hphn"].anchors, torch.Tensor)


@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine"])
@pytest.mark.parametrize("kind", ["plain", "far from the origin", "zero rows", "one far away", "float64"])
def test_limits_are_those_of_the_distances_themselves(kind, metric):
    x, _ = data(kind, 400)
    d = reference.selection_values(x, x, metric)
    others = d[~np.eye(len(x), dtype=bool)].reshape(len(x), -1)
    direct = others.mean(axis=1) + 2.3263478740408408 * others.std(axis=1)
    direct[others.std(axis=1) == 0] = np.inf  # zero rows, at cosine distance 1 from all
    assert np.allclose(limits_of(x, metric, 99), direct, rtol=1e-9)


def test_limits_have_the_same_bits_however_they_are_added_up():
    x, _ = data("plain", 10_000)
    read = lambda first, last: x[first:last]  # noqa: E731

    def one_by_one(segments, compute):
        total = compute(0)
        for segment in range(1, segments):
            total = total + compute(segment)
        return total

    bits = set()
    for threads, add_up in ((1, _moments.add_up_here), (3, _moments.add_up_here), (1, one_by_one)):
        minerlib.set_num_threads(threads)
        limits = _moments.Limits(read, len(x), 19, "sqeuclidean", 99, add_up)
        bits.add(np.concatenate([limits.of(x[:777]), limits.of(x[777:])]).tobytes())
    assert len(bits) == 1


def test_where_all_distances_are_equal_nobody_is_an_outlier():
    x = np.eye(6, dtype=np.float32)
    assert np.isinf(limits_of(x, "sqeuclidean", 99)).all()
    assert len(offline.mine(x, np.arange(6) // 3, "hphn", progress=False)["hphn"].anchors) == 6


def test_an_outlier_is_nobodys_farthest_negative():
    x, y = data("one far away", 300)
    y[5] = 99
    with_rule = offline.mine(x, y, "epen", progress=False)["epen"]
    without = offline.mine(x, y, "epen", outlier_percentile=None, progress=False)["epen"]
    assert (without.negatives == 5).all()
    assert not (with_rule.negatives == 5).any()


def test_zero_rows_are_the_farthest_by_cosine():
    """Their distance is 1 from all, which no squared distance of theirs tells."""
    draw = np.random.default_rng(4)
    x = (draw.standard_normal((1500, 64)) + 1).astype(np.float32)
    x[::97] = 0
    check(x, draw.integers(0, 3, len(x)), "cosine", None, chunk_rows=750)


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
def test_hardly_any_rows(rows):
    x, _ = data("plain", 3)
    found = offline.mine(x[:rows], np.arange(rows), offline.CASES, progress=False)
    assert all(len(case.anchors) == 0 for case in found.values())
    assert set(found.counts) == set(offline.CASES)


def test_records_already_good_are_left_alone():
    """What is known bounds what is looked for; a tie with a lower row number still wins."""
    native = pytest.importorskip("minerlib.backends.native")
    if native.reasons_unusable():
        pytest.skip("; ".join(native.reasons_unusable()))
    x, y = data("duplicates", 260)
    updater = Updater(native, "sqeuclidean", (0, 1, 2, 3))
    chunks = [
        Chunk(first, x[first : first + 130], y[first : first + 130], None, no_records(130))
        for first in (0, 130)
    ]
    pairs = [(0, 0), (0, 1), (1, 1)]
    for i, j in pairs:
        updater.update(chunks[i], chunks[j])
    forwards = [chunk.records.copy() for chunk in chunks]
    for chunk in chunks:
        chunk.records[:] = no_records(130)
    for i, j in [*reversed(pairs), *pairs]:
        updater.update(chunks[i], chunks[j])
    assert all(np.array_equal(a, chunk.records) for a, chunk in zip(forwards, chunks, strict=True))


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cases": "hardest"}, "cases: expected one of epen, "),
        ({"cases": []}, "cases: expected at least one of "),
        ({"cases": ["epen", "epen"]}, "cases: expected each name once, got epen, epen"),
        ({"cases": 3}, "cases: expected names among "),
        ({"metric": "manhattan"}, "metric: expected one of "),
        ({"outlier_percentile": 100}, "outlier_percentile: expected a number from 50 to below 100, or None"),
        ({"outlier_percentile": float("nan")}, "outlier_percentile: expected a finite number"),
        ({"chunk_rows": 0}, "chunk_rows: expected an integer from 1"),
        ({"seed": -1}, "seed: expected an integer from 0"),
        ({"backend": "fast"}, "backend: expected one of "),
        ({"labels": np.zeros(9, int)}, "labels: expected 90 rows like embeddings, got 9"),
        ({"labels": None}, "labels: expected an array or a file"),
        ({"embeddings": np.zeros((90, 3), int)}, "embeddings: expected float16, "),
        ({"embeddings": np.zeros(90)}, "embeddings: expected shape "),
        ({"hard_negatives": RULES}, "hard_negatives: expected 'hard-negatives' among the cases"),
        ({"hard_negatives": 3, "cases": "hard-negatives"}, "hard_negatives: expected HardNegatives, got int"),
        ({"output": "triplets.txt"}, "expected an output that ends in .npz or .parquet"),
        ({"output": "/nowhere/triplets.npz"}, "expected its folder /nowhere to exist"),
    ],
)
def test_errors_name_the_argument(change, message):
    x, y = data("plain")
    arguments = {"embeddings": x, "labels": y, "cases": "hphn", "progress": False} | change
    with pytest.raises((TypeError, ValueError, offline.FileError)) as caught:
        offline.mine(**arguments)
    assert message in str(caught.value)


def test_the_first_bad_row_is_named():
    x, y = data("plain")
    x[77, 3] = np.nan
    for chunk in (None, 20):
        with pytest.raises(ValueError, match="embeddings: expected finite values, row 77 holds NaN"):
            offline.mine(x, y, "hphn", chunk_rows=chunk, progress=False)


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"skip": -1}, {"skip": 3, "window": 3}, {"margin": -1}, {"positive": "any"}]
)
def test_rules_that_make_no_sense(wrong):
    with pytest.raises(ValueError, match=f"{list(wrong)[-1]}: expected"):
        HardNegatives(**wrong)


# ------------------------------------------------------------------ data set and sampler


def test_the_data_set_gives_triplets_of_rows():
    x, y = data("plain")
    found = offline.mine(x, y, ["hphn", "epen"], progress=False)
    triplets = OfflineTriplets(found, rows=x)
    assert len(triplets) == sum(found.counts.values())
    a, p, n = triplets[3]
    assert np.array_equal(a, x[found["hphn"].anchors[3]])
    assert np.array_equal(p, x[found["hphn"].positives[3]])
    assert np.array_equal(n, x[found["hphn"].negatives[3]])
    loader = torch.utils.data.DataLoader(triplets, batch_size=16, sampler=OfflineSampler(triplets, seed=1))
    batches = list(loader)
    assert [len(batch) for batch in batches] == [3] * -(-len(triplets) // 16)
    only = OfflineTriplets(found, cases="epen")
    assert only[0] == tuple(int(column[0]) for column in found["epen"][:3])
    with pytest.raises(ValueError, match="rows: expected all rows that the triplets name"):
        OfflineTriplets(found, rows=x[:9])
    with pytest.raises(ValueError, match="cases: expected one of hphn, epen"):
        OfflineTriplets(found, cases="hpen")
    with pytest.raises(TypeError, match="result: expected what"):
        OfflineTriplets(3)


def test_the_sampler_deals_every_triplet_once_an_epoch():
    sampler = OfflineSampler(range(23), seed=4)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(23))
    assert first != second
    sampler.set_epoch(0)
    assert list(sampler) == first
    shares = [list(OfflineSampler(range(23), seed=4, rank=rank, world_size=3)) for rank in range(3)]
    assert [len(share) for share in shares] == [7] * 3
    assert {each for share in shares for each in share} == set(first[:21])
    with pytest.raises(ValueError, match="world_size: expected rank and world_size together"):
        OfflineSampler(range(3), rank=0)
