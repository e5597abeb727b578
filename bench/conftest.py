"""Options of `pytest bench`, the fixture that holds a contest, and what is written at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from bench import plot
from bench.suite import Row
from minerlib.benchmarks import contest, machine, memory, results, works
from minerlib.benchmarks.results import OURS, Outcome

_TINY = contest.Limits(seconds=0.02, rounds=3, least_rounds=1, gemm_size=256)


@dataclass
class Session:
    """What this run has measured."""

    facts: dict[str, Any]
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)  # by group, in the order of the run


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("minerlib")
    group.addoption("--tiny", action="store_true", help="small sizes: whether it runs, not how fast")
    group.addoption("--require", action="store_true", help="fail a benchmark whose requirement is not met")
    group.addoption("--no-memory", action="store_true", help="leave out the measurements of memory")
    group.addoption("--instruction-set", metavar="NAME", help="pin our kernels, as in generic, avx2, avx512")
    group.addoption(
        "--results", type=Path, default=Path("bench/results"), metavar="DIR", help="where to write"
    )


_SESSION = pytest.StashKey[Session]()


@pytest.fixture(scope="session", autouse=True)
def bench_session(pytestconfig: pytest.Config) -> Iterator[Session]:
    machine.use_all_threads()
    with contest.pinned(pytestconfig.getoption("--instruction-set")):
        session = Session(machine.describe())
        pytestconfig.stash[_SESSION] = session
        yield session


@pytest.fixture
def hold(
    benchmark: Any,
    bench_session: Session,
    pytestconfig: pytest.Config,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str, Row], Outcome]:
    """hold(group, row): check, time, judge and record; pytest-benchmark gets our calls and all figures."""
    tiny = pytestconfig.getoption("--tiny")
    with_memory = not pytestconfig.getoption("--no-memory")
    pin = pytestconfig.getoption("--instruction-set")

    def run(group: str, row: Row) -> Outcome:
        if tiny:
            row = replace(row, spec=works.tiny(row.spec), limits=_TINY)
        held = works.build(row.spec)
        with capsys.disabled():
            print(f"\n{row.spec.title}", flush=True)
            outcome = contest.hold(row.spec, held, row.limits, instruction_set=row.instruction_set or pin)
            if row.memory and with_memory:
                measure_memory(row, outcome, row.instruction_set or pin)
        results.judge(outcome, row.required)
        bench_session.outcomes.setdefault(group, []).append(outcome)

        benchmark.group = group
        benchmark.extra_info.update(results.document([outcome], {}, "")["outcomes"][0])
        rounds = max(1, min(20, int(0.2 / outcome.ours.median_s)))
        with contest.pinned(row.instruction_set):
            benchmark.pedantic(held.ours, rounds=rounds)
        if pytestconfig.getoption("--require"):
            assert not results.missed([outcome])
        return outcome

    return run


def measure_memory(row: Row, outcome: Outcome, instruction_set: str | None) -> None:
    """Peak extra memory of ours and of all who do the whole work."""
    for timing in outcome.timings:
        if timing.role in (OURS, "peer", "own"):
            timing.extra_mb = memory.measure(row.spec, timing.name, instruction_set)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = config.stash.get(_SESSION, None)
    if session is None or not session.outcomes:
        return
    names = sorted(session.outcomes, key=lambda group: group != "required")  # what was promised comes first
    every = [outcome for group in names for outcome in session.outcomes[group]]
    write = terminalreporter.write_line
    write("")
    write(results.headline(session.facts))
    write("")
    write(results.table(every))
    lines = results.missed(every)
    write("")
    write(f"{len(lines)} requirements missed" + (":" if lines else ""))
    for line in lines:
        write(f"  {line}")

    folder: Path = config.getoption("--results")
    folder.mkdir(parents=True, exist_ok=True)
    groups = {group: [outcome.title for outcome in session.outcomes[group]] for group in names}
    written = results.document(every, session.facts, _command(config)) | {"groups": groups}
    (folder / "bench.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    write(f"written: {folder / 'bench.json'}")
    rows = session.outcomes.get("growth with N", [])
    if rows:
        plot.time_against_rows(rows, results.headline(session.facts), folder / "growth.png")
        write(f"written: {folder / 'growth.png'}")


def _command(config: pytest.Config) -> str:
    options = [name for name in ("--tiny", "--no-memory") if config.getoption(name)]
    pin = config.getoption("--instruction-set")
    options += [f"--instruction-set={pin}"] if pin else []
    return "make bench" + (f' BENCH_OPTIONS="{" ".join(options)}"' if options else "")
