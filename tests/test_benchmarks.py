"""The benchmarks' own machinery: checks that fail when they should, ratios, verdicts, table and JSON."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import minerlib
from bench import plot, report, suite
from minerlib.benchmarks import (
    agreement,
    codes,
    contest,
    data,
    drop_in,
    losses,
    machine,
    memory,
    quick,
    results,
    works,
)
from minerlib.benchmarks.agreement import Disagreement
from minerlib.benchmarks.contest import Contender, Contest, Limits, Spec
from minerlib.benchmarks.results import (
    OURS,
    AheadOfEveryPeer,
    Faster,
    MemoryBelow,
    Outcome,
    ShareOf,
    ShareOfGemm,
    TimeBelow,
    Timing,
)
from minerlib.cli import main

FAST = Limits(seconds=0.001, rounds=2, least_rounds=1, gemm_size=32)
MARGIN = works.MARGIN


@pytest.fixture(scope="module")
def batch() -> data.Batch:
    return data.batch(64, 16, 8)


def outcome(**changes: Any) -> Outcome:
    """minerlib 10 ms, a peer 50 ms, another peer 200 ms, a part of the work 4 ms, ours at other work 5 ms."""
    timings = [
        Timing(OURS, OURS, 0.010, 0.009, 10, extra_mb=3.0),
        Timing("slow tool", "peer", 0.200, 0.190, 3, extra_mb=500.0),
        Timing("fast tool Miner", "peer", 0.050, 0.049, 3),
        Timing("product alone", "part", 0.004, 0.003, 3),
        Timing("our own other", "own", 0.005, 0.004, 3, extra_mb=2.5),
    ]
    base = Outcome(
        "work", "batch_hard", {"rows": 100}, "avx2", 10_000, 50, timings, {"third tool": "not here"}, 1e8
    )
    return replace(base, **changes)


# ------------------------------------------------------------------ ratios and verdicts


def test_rates_and_ratios() -> None:
    held = outcome()
    assert held.best_peer() is held.timings[2]
    assert held.ratio(held.timings[1]) == pytest.approx(20)
    assert held.pairs_per_second == pytest.approx(1e6)
    assert held.operations_per_second == pytest.approx(1e8)
    assert held.percent_of_gemm == pytest.approx(100)


def test_a_part_of_the_work_is_the_mark_only_where_no_peer_does_the_whole() -> None:
    held = outcome()
    held.timings = [timing for timing in held.timings if timing.role != "peer"]
    assert held.best_peer() is held.timings[1]
    assert AheadOfEveryPeer().judge(held).met is None


@pytest.mark.parametrize(
    ("requirement", "met"),
    [
        (Faster("slow tool", 20), True),
        (Faster("slow tool", 20.1), False),
        (Faster("fast tool", 5), True),  # named without the form that took part
        (Faster("product alone", 1), False),
        (Faster("our own other", 1 / 2), True),
        (Faster("our own other", 1 / 1.9), False),
        (Faster("third tool", 2), None),
        (AheadOfEveryPeer(), True),
        (ShareOfGemm(99), True),
        (ShareOfGemm(101), False),
        (ShareOf("product alone", 40), True),  # 4 ms of our 10
        (ShareOf("product alone", 41), False),
        (ShareOf("third tool", 1), None),
        (TimeBelow(0.0101), True),
        (TimeBelow(0.0100), False),
        (MemoryBelow(3.5), True),
        (MemoryBelow(2.9), False),
        (MemoryBelow(1, beyond="our own other"), True),
        (MemoryBelow(0.4, beyond="our own other"), False),
        (MemoryBelow(1, beyond="fast tool Miner"), None),
    ],
)
def test_verdicts(requirement: results.Requirement, met: bool | None) -> None:
    assert requirement.judge(outcome()).met is met


def test_a_peer_that_wins_is_a_requirement_missed() -> None:
    held = outcome()
    held.timings[1].median_s = 0.001
    results.judge(held, (AheadOfEveryPeer(), Faster("fast tool", 2)))
    assert results.missed([held]) == ["work: every peer needs ahead, got 0.10x"]


def test_a_peer_left_out_is_no_success() -> None:
    verdict = Faster("third tool", 2).judge(outcome())
    assert (verdict.met, verdict.got) == (None, "not here")


# ------------------------------------------------------------------ table and JSON


def test_table_has_a_line_for_every_requirement() -> None:
    held = outcome()
    results.judge(held, (Faster("slow tool", 20), Faster("product alone", 1), Faster("third tool", 2)))
    header, _, *lines = results.table([held]).splitlines()
    assert re.split(r"  +", header)[:5] == ["work", "ours ms", "best peer", "its ms", "ratio"]
    assert re.split(r"  +", lines[0]) == [
        "work", "10.0", "fast tool Miner", "50.0", "5.00x", "20x slow tool", "20x", "yes", "100", "1", "3.0",
    ]  # fmt: skip
    assert [re.split(r"  +", line.strip())[-1] for line in lines[1:]] == ["NO", "?"]


def test_work_without_multiplications_has_no_share_of_the_product() -> None:
    column = results.HEADER.index("% of GEMM")
    assert [results.table_rows([outcome(dims=dims)])[0][column] for dims in (50, 0)] == ["100", "-"]


def test_json_round_trip() -> None:
    held = outcome()
    results.judge(held, (Faster("slow tool", 20),))
    document = json.loads(json.dumps(results.document([held], machine.describe(), "make bench")))
    assert results.outcomes_of(document) == [held]
    assert document["outcomes"][0]["percent_of_gemm"] == pytest.approx(100)
    facts = document["machine"]
    assert {"cpu", "threads", "instruction_set", "amx", "commit", "packages", "load"} <= set(facts)
    assert facts["packages"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.pop("schema"),
        lambda d: d.update(outcomes={}),
        lambda d: d["outcomes"][0].pop("gemm_rate"),
        lambda d: d["outcomes"][0].update(timings=[]),
        lambda d: d["outcomes"][0]["timings"][0].update(name="someone else"),
        lambda d: d["outcomes"][0]["timings"][0].update(unheard_of=1),
    ],
)
def test_a_spoilt_document_is_refused(spoil: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(json.dumps(results.document([outcome()], {}, "make bench")))
    spoil(document)
    with pytest.raises(ValueError, match=r"schema|outcomes"):
        results.outcomes_of(document)


def test_the_report_replaces_only_what_lies_between_its_marks(tmp_path: Path) -> None:
    grown = [outcome(title=f"N={n}", options={"rows": n}) for n in (100, 200)]
    written = results.document([outcome(), *grown], machine.describe(), "make bench")
    written["groups"] = {"required": ["work"], "growth with N": ["N=100", "N=200"]}
    figures, page = tmp_path / "bench.json", tmp_path / "page.md"
    figures.write_text(json.dumps(written))
    begin = report.begin("bench.json")
    page.write_text(f"above\n{begin}\nold\n{report.END}\nbelow\n")
    for _ in range(2):
        assert report.main([str(tmp_path), str(page)]) == 0
        text = page.read_text()
        assert text.startswith(f"above\n{begin}\n")
        assert text.endswith(f"{report.END}\nbelow\n")
        assert "old" not in text
        assert "| N=200 | 10.0 | 200 | 50.0 | 4.00 | 5.00 |" in text
    page.write_text("no marks")
    assert report.main([str(tmp_path), str(page)]) == 2
    assert page.read_text() == "no marks"
    assert report.main([str(tmp_path / "empty"), str(page)]) == 2


def test_the_report_of_a_gpu(tmp_path: Path) -> None:
    facts = dict.fromkeys(
        ("command", "commit", "date", "gpu", "driver", "cuda", "python", "torch", "triton"), "7"
    )
    times = {
        name: {"median": ms, "least": ms, "most": ms, "calls": 5}
        for name, ms in (("ours", 2.0), ("peer", 9.0))
    }
    row = {"title": "work", "times": times, "pairs_per_second": 3e9, "operations_per_second": 4e12,
           "extra_bytes": 1 << 20, "goals": {"4x peer": True}, "left_out": []}  # fmt: skip
    document = {"facts": facts, "rows": [row], "failed": ["other: wrong"]}
    (tmp_path / "gpu.json").write_text(json.dumps(document))
    page = tmp_path / "page.md"
    page.write_text(f"{report.begin('gpu.json')}\nold\n{report.END}\n")
    assert report.main([str(tmp_path), str(page)]) == 0
    assert "| work | 2 | - | 3 | 4 | 1.0 | peer 9 (4.5x) | 4x peer: yes |" in page.read_text()
    assert "Failed: other: wrong" in page.read_text()


def test_the_page_of_the_repository_has_the_marks() -> None:
    page = Path(report.__file__).parent.parent / "docs" / "performance.md"
    for name in report.FILES:
        assert "figures" in report.insert(page.read_text(encoding="utf-8"), name, "figures")


def test_the_plot_has_no_point_where_a_contender_was_left_out(tmp_path: Path) -> None:
    large = outcome(options={"rows": 400})
    large.timings = large.timings[:1]
    assert plot.series([large, outcome()]) == {
        OURS: [(100, 10.0), (400, 10.0)],
        "slow tool": [(100, 200.0)],
        "fast tool Miner": [(100, 50.0)],
        "product alone": [(100, 4.0)],
        "our own other": [(100, 5.0)],
    }
    plot.time_against_rows([outcome(), large], "a machine\nand a note", tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


# ------------------------------------------------------------------ holding a contest


def contest_of(*others: Contender, ours: Callable[[], Any] = lambda: 1) -> Contest:
    def judge(result: Any) -> None:
        agreement.demand(result == 1, "ours is wrong")

    return Contest(100, 8, ours, judge, others)


def same(ours: Any, theirs: Any) -> None:
    agreement.demand(ours == theirs, "they differ")


def test_contenders_are_checked_before_anything_is_timed() -> None:
    calls: list[str] = []
    other = Contender("tool", lambda: calls.append("tool") or 2, same)
    with pytest.raises(Disagreement, match="they differ"):
        contest.hold(Spec("work", "none"), contest_of(other), FAST)
    assert calls == ["tool"]
    with pytest.raises(Disagreement, match="ours is wrong"):
        contest.hold(Spec("work", "none"), contest_of(ours=lambda: 2), FAST)


def test_who_cannot_take_part_is_left_out_with_a_reason() -> None:
    def unreachable() -> None:
        raise AssertionError("it was to be left out")

    others = (
        Contender("absent", unreachable, same, unavailable="not installed"),
        Contender("large", unreachable, same, bytes_needed=1e18),
        Contender("slow", unreachable, same, seconds_needed=1e6),
        Contender("tool", lambda: 1, same),
    )
    said: list[str] = []
    held = contest.hold(Spec("work", "none"), contest_of(*others), FAST, say=said.append)
    assert [timing.name for timing in held.timings] == [OURS, "tool"]
    assert list(held.skipped) == ["absent", "large", "slow"]
    assert len(said) == 3
    assert "1000000000.0 GB" in held.skipped["large"]
    assert all(timing.median_s >= timing.fastest_s > 0 for timing in held.timings)


def test_who_does_a_share_of_the_work_is_charged_for_all_of_it() -> None:
    def slowly() -> int:
        time.sleep(0.004)
        return 1

    others = (Contender("all", slowly, same), Contender("a tenth", slowly, same, share=0.1))
    held = contest.hold(Spec("work", "none"), contest_of(*others), FAST)
    whole, tenth = held.timings[1:]
    assert 4 < tenth.fastest_s / whole.fastest_s < 25  # 10, but for what else the machine does
    assert tenth.fastest_s >= 0.04


def test_an_instruction_set_is_pinned_while_ours_runs_and_no_longer() -> None:
    native = pytest.importorskip("minerlib.backends.native")
    if native.reasons_unusable():
        pytest.skip("; ".join(native.reasons_unusable()))
    before, seen = native.instruction_set(), set()
    work = contest_of(ours=lambda: seen.add(native.instruction_set()) or 1)
    assert (
        contest.hold(Spec("work", "none"), work, FAST, instruction_set="generic").instruction_set == "generic"
    )
    assert seen == {"generic"}
    assert native.instruction_set() == before


# ------------------------------------------------------------------ agreement


def mined(batch: data.Batch, strategy: str) -> agreement.Triples:
    return agreement.triples(minerlib.mine(batch.x, batch.labels, strategy, margin=MARGIN))


def test_extremes_are_held_to_the_definition(batch: data.Batch) -> None:
    a, p, n = mined(batch, "batch-hard")
    agreement.judge_extremes(batch.rows, batch.classes, (a, p, n), farthest_positive=True)
    for wrong in ((a, np.roll(p, 1), n), (a, p, np.roll(n, 1)), (a[1:], p[1:], n[1:])):
        with pytest.raises(Disagreement):
            agreement.judge_extremes(batch.rows, batch.classes, wrong, farthest_positive=True)
        with pytest.raises(Disagreement):
            agreement.same_extremes(batch.rows, (a, p, n), wrong)


@pytest.mark.parametrize("strategy", ["hard", "semi-hard", "random-hard", "semi-hard-nearest"])
def test_pairs_are_held_to_the_definition(batch: data.Batch, strategy: str) -> None:
    a, p, n = mined(batch, strategy)
    agreement.judge_pairs(strategy, batch.rows, batch.classes, (a, p, n), MARGIN)
    with pytest.raises(Disagreement, match="no negative"):
        agreement.judge_pairs(strategy, batch.rows, batch.classes, (a[5:], p[5:], n[5:]), MARGIN)
    with pytest.raises(Disagreement, match="not eligible"):
        agreement.judge_pairs(strategy, batch.rows, batch.classes, (a, p, a), MARGIN)


def test_a_listing_must_hold_what_we_chose(batch: data.Batch) -> None:
    listing = np.stack(mined(batch, "all"))
    ours = mined(batch, "random-hard")
    agreement.within_listing(batch.rows, ours, listing, MARGIN, np.inf)
    agreement.same_listing(batch.rows, listing, listing, MARGIN)
    chosen = np.flatnonzero(np.all(listing == np.stack(ours)[:, :1], axis=0))
    without = np.delete(listing, chosen, axis=1)
    with pytest.raises(Disagreement):
        agreement.within_listing(batch.rows, ours, without, MARGIN, np.inf)
    with pytest.raises(Disagreement):
        agreement.same_listing(batch.rows, listing, without, MARGIN)


def test_neighbors_are_held_to_exact_order(batch: data.Batch) -> None:
    distances, indices = minerlib.nearest(batch.rows, batch.rows, 4)
    agreement.judge_neighbors(batch.rows, batch.rows, (distances, indices), 4)
    agreement.same_neighbors(batch.rows, batch.rows, (distances, indices), indices)
    swapped = indices[:, [0, 2, 1, 3]]
    with pytest.raises(Disagreement):
        agreement.judge_neighbors(batch.rows, batch.rows, (distances, swapped), 4)
    with pytest.raises(Disagreement):
        agreement.same_neighbors(batch.rows, batch.rows, (distances, indices), swapped)


def test_draws_are_held_to_the_distribution() -> None:
    b = data.batch(256, 16, 32)
    a, p, n = mined(b, "distance-weighted")
    agreement.judge_draws(b.rows, b.classes, (a, p, n))
    nearest = np.where(b.classes[:, None] == b.classes, np.inf, agreement.canonical(b.rows, b.rows)).argmin(
        axis=1
    )
    with pytest.raises(Disagreement, match="sigma"):
        agreement.judge_draws(b.rows, b.classes, (a, p, nearest[a]))
    with pytest.raises(Disagreement, match="wrong class"):
        agreement.judge_draws(b.rows, b.classes, (a, p, p))


def disagrees(check: Callable[..., None], *arguments: Any) -> bool:
    try:
        check(*arguments)
    except Disagreement:
        return True
    return False


def test_neighbors_of_codes_are_held_to_exact_order() -> None:
    q, rows = data.codes(3, 12, seed=1), data.codes(500, 12)
    found = minerlib.hamming_search(q, rows, 9)
    codes.judge_neighbors(q, rows, found, 9)
    tied = np.flatnonzero(found.distances[0, :-1] == found.distances[0, 1:])[0]
    swapped = found.indices.copy()
    swapped[0, [tied, tied + 1]] = swapped[0, [tied + 1, tied]]
    assert disagrees(codes.judge_neighbors, q, rows, found._replace(indices=swapped), 9)
    assert disagrees(codes.judge_neighbors, q, rows, found._replace(distances=found.distances + 1), 9)
    assert disagrees(codes.judge_neighbors, q, rows, found, 8)
    # another tool may order ties as it likes, and choose among those at the last distance
    theirs = (found.distances, swapped)
    codes.same_neighbors(q, rows, found, theirs)
    every = minerlib.hamming_distance(q, rows)
    last = int(found.distances[0, -1])
    (spare, *_) = sorted(set(np.flatnonzero(every[0] == last)) - set(found.indices[0]))
    (stranger, *_) = np.flatnonzero(every[0] > last)
    for place, row, allowed in ((-1, spare, True), (-1, stranger, False), (0, spare, False)):
        changed = found.indices.copy()
        changed[0, place] = row
        assert disagrees(codes.same_neighbors, q, rows, found, (found.distances, changed)) != allowed
    doubled = found.indices.copy()
    doubled[0, -1] = doubled[0, -2]
    assert disagrees(codes.same_neighbors, q, rows, found, (found.distances, doubled))
    assert disagrees(codes.same_neighbors, q, rows, found, (found.distances + 1, found.indices))


def test_ranges_of_codes_are_held_to_exact_order() -> None:
    q, rows = data.codes(3, 12, seed=1), data.codes(500, 12)
    found = minerlib.hamming_range(q, rows, 3)
    codes.judge_range(q, rows, found, 3)
    assert disagrees(codes.judge_range, q, rows, found, 2)
    assert disagrees(codes.judge_range, q, rows, found._replace(indices=found.indices[::-1]), 3)
    theirs = [found.offsets, found.distances.astype(np.float32), found.indices]
    codes.same_range(found, theirs)
    first = slice(*found.offsets[:2])
    backwards = [array.copy() for array in theirs]
    for array in backwards[1:]:
        array[first] = array[first][::-1]
    codes.same_range(found, backwards)
    backwards[2][first] = found.indices[first]
    assert disagrees(codes.same_range, found, backwards)
    assert disagrees(codes.same_range, found, [found.offsets + 1, *theirs[1:]])
    assert disagrees(codes.same_range, found, [*theirs[:2], found.indices + 1])


def test_the_map_of_codes_is_held_to_its_parts() -> None:
    q, labels = data.labelled_codes(40, 20, 3, seed=1)
    work = (q, labels, *data.labelled_codes(300, 20, 3))
    result = minerlib.hamming_map(*work)
    assert 0.4 < result < 0.99
    codes.judge_map(*work, result)
    assert disagrees(codes.judge_map, *work, result + 1e-9)
    held = codes.code_map(40, 300, 20, 3, scripted=10)
    script = held.others[0]
    assert script.share == 0.25
    script.check(held.ours(), script.run())
    assert disagrees(script.check, held.ours(), script.run() + 1e-9)


@pytest.mark.parametrize(
    "held",
    [
        lambda: losses.batch_all_loss(48, 8, 6),
        lambda: losses.triplet_loss("semi-hard", 48, 8, 6, 0.5),
    ],
)
def test_losses_are_held_to_value_and_gradient(held) -> None:
    work = held()
    value, gradient = work.ours()
    work.judge((value, gradient))
    peer = work.others[0]
    peer.check((value, gradient), peer.run())
    assert float(value) > 0
    for wrong in ((value * (1 + 1e-5), gradient), (value, gradient * (1 + 1e-5))):
        assert disagrees(work.judge, wrong)
    assert disagrees(peer.check, (value, gradient * 1.001), peer.run())


@pytest.mark.parametrize("miner", ["TripletMarginMiner", "PairMarginMiner", "DistanceWeightedMiner"])
def test_drop_in_miners_are_held_to_the_originals_set(miner: str) -> None:
    work = drop_in.compat_miner(miner, {}, 64, 8, 8)
    found = work.ours()
    work.judge(found)
    peer = work.others[0]
    peer.check(found, peer.run())
    fewer = tuple(index[: len(index) // 2] for index in found)
    assert disagrees(peer.check, fewer, peer.run())


# ------------------------------------------------------------------ the works


def test_every_work_of_the_suite_can_be_built_and_is_named_once() -> None:
    rows = [*suite.required_rows(), *suite.operations(), *suite.growth_with_rows(), *suite.growth_with_dims()]
    assert {row.spec.kind for row in rows} == set(works.KINDS)
    for group in (suite.required_rows(), suite.operations(), suite.growth_with_rows()):
        assert len({row.spec.title for row in group}) == len(group)
    for spec in {row.spec.kind: works.tiny(row.spec) for row in rows}.values():
        work = works.build(spec)
        work.judge(work.ours())


@pytest.mark.parametrize("row", suite.required_rows(), ids=suite.name)
def test_what_is_required_names_contenders_that_there_are(row: suite.Row) -> None:
    names = [contender.name for contender in works.build(works.tiny(row.spec)).others]
    for requirement in row.required:
        if isinstance(requirement, Faster):
            assert any(name.startswith(requirement.than) for name in names)
        if isinstance(requirement, ShareOf):
            assert requirement.part in names
        if isinstance(requirement, MemoryBelow) and requirement.beyond is not None:
            assert requirement.beyond in names


def test_memory_of_a_call_is_measured_beyond_its_data() -> None:
    if not memory._STATUS.exists():
        pytest.skip("the system keeps no mark of peak memory")
    spec = Spec("distances", "pairwise", {"rows": 2048, "dims": 8})
    extra = memory.measure(spec, OURS)
    assert extra is not None
    assert 33 < extra < 60  # the result alone takes 2048 * 2048 * 8 bytes = 33.6 MB


def test_command_writes_what_it_prints(tmp_path: Path, capsys, monkeypatch) -> None:
    spec = Spec("batch-hard", "batch_hard", {"rows": 64, "dims": 8, "classes": 8})
    monkeypatch.setattr(quick, "choice", lambda quick: ([spec], FAST))
    assert main(["bench", "--quick", "--json", str(tmp_path / "out.json")]) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert results.table(results.outcomes_of(written)) in capsys.readouterr().out
    assert main(["bench", "--json", str(tmp_path / "no such folder" / "out.json")]) == 2
    assert "no such folder" in capsys.readouterr().err
