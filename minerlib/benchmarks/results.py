"""Outcomes of contests, what was required of them, and the table and JSON that show both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

OURS = "minerlib"
SCHEMA = 1


@dataclass
class Timing:
    """How one contender did."""

    name: str
    role: str
    median_s: float
    fastest_s: float
    calls: int
    extra_mb: float | None = None  # peak memory beyond what was there before the call; None: not measured


@dataclass
class Outcome:
    """A contest that was held. `timings[0]` is ours."""

    title: str
    kind: str
    options: dict[str, Any]
    instruction_set: str
    pairs: int
    dims: int
    timings: list[Timing]
    skipped: dict[str, str]
    gemm_rate: float  # operations a second of the machine's float32 matrix product, timed in turn
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def ours(self) -> Timing:
        return self.timings[0]

    def timing(self, name: str) -> Timing | None:
        """The contender of that name, or of that tool where only one of its forms took part."""
        exact = [timing for timing in self.timings if timing.name == name]
        begun = [timing for timing in self.timings[1:] if timing.name.startswith(name)]
        found = exact or begun
        return found[0] if found else None

    def ratio(self, timing: Timing) -> float:
        """How many times as fast as a contender ours is."""
        return timing.median_s / self.ours.median_s

    def peers(self) -> list[Timing]:
        return [timing for timing in self.timings if timing.role == "peer"]

    def best_peer(self) -> Timing | None:
        """The fastest that does the whole work; where none does, the fastest at a part of it."""
        parts = [timing for timing in self.timings if timing.role == "part"]
        return min(self.peers() or parts, key=lambda timing: timing.median_s, default=None)

    @property
    def pairs_per_second(self) -> float:
        return self.pairs / self.ours.median_s

    @property
    def operations_per_second(self) -> float:
        return 2 * self.dims * self.pairs_per_second

    @property
    def percent_of_gemm(self) -> float:
        """Our operations against the machine's float32 product; shared tiles can take it past 100."""
        return 100 * self.operations_per_second / self.gemm_rate


# ------------------------------------------------------------------ requirements


@dataclass(frozen=True)
class Verdict:
    """Whether a requirement was met; `met` is None where it could not be judged, and `got` says why."""

    against: str
    needed: str
    got: str
    met: bool | None


@dataclass(frozen=True)
class Faster:
    """At least `times` as fast as a contender; below 1 it allows a slowdown."""

    than: str
    times: float

    def judge(self, outcome: Outcome) -> Verdict:
        # A ratio below one reads better as "within 3x", and its inverse as what came.
        needed = f"{self.times:g}x" if self.times >= 1 else f"within {1 / self.times:g}x"
        timing = outcome.timing(self.than)
        if timing is None:
            return Verdict(self.than, needed, outcome.skipped.get(self.than, "did not take part"), None)
        ratio = outcome.ratio(timing)
        got = _times(ratio if self.times >= 1 else 1 / ratio)
        return Verdict(self.than, needed, got, ratio >= self.times)


@dataclass(frozen=True)
class AheadOfEveryPeer:
    """Faster than every contender that does the whole work."""

    label: str = "every peer"

    def judge(self, outcome: Outcome) -> Verdict:
        peers = outcome.peers()
        if not peers:
            return Verdict(self.label, "ahead", "no peer took part", None)
        ratio = min(outcome.ratio(peer) for peer in peers)
        return Verdict(self.label, "ahead", _times(ratio), ratio > 1)


@dataclass(frozen=True)
class ShareOfGemm:
    """At least this percentage of the machine's float32 product."""

    percent: float
    label: str = "float32 product"

    def judge(self, outcome: Outcome) -> Verdict:
        got = outcome.percent_of_gemm
        return Verdict(self.label, f"{self.percent:g} %", f"{got:.0f} %", got >= self.percent)


@dataclass(frozen=True)
class ShareOf:
    """At least this percentage of the rate of a part of the work that reads the same memory."""

    part: str
    percent: float

    def judge(self, outcome: Outcome) -> Verdict:
        needed = f"{self.percent:g} % of"
        timing = outcome.timing(self.part)
        if timing is None:
            return Verdict(self.part, needed, outcome.skipped.get(self.part, "did not take part"), None)
        got = 100 * outcome.ratio(timing)
        return Verdict(self.part, needed, f"{got:.0f} %", got >= self.percent)


@dataclass(frozen=True)
class TimeBelow:
    """Less than so many seconds."""

    seconds: float
    label: str = "time"

    def judge(self, outcome: Outcome) -> Verdict:
        got = outcome.ours.median_s
        needed = f"< {milliseconds(self.seconds)} ms"
        return Verdict(self.label, needed, f"{milliseconds(got)} ms", got < self.seconds)


@dataclass(frozen=True)
class MemoryBelow:
    """Peak extra memory below `mb`, or no more than `mb` beyond that of another contender."""

    mb: float
    beyond: str | None = None

    def judge(self, outcome: Outcome) -> Verdict:
        label = "extra memory" if self.beyond is None else f"memory beyond {self.beyond}"
        needed, other = f"< {self.mb:g} MB", 0.0
        if self.beyond is not None:
            timing = outcome.timing(self.beyond)
            if timing is None or timing.extra_mb is None:
                return Verdict(label, needed, f"{self.beyond} was not measured", None)
            other = timing.extra_mb
        if outcome.ours.extra_mb is None:
            return Verdict(label, needed, "not measured", None)
        got = outcome.ours.extra_mb - other
        return Verdict(label, needed, f"{got:.1f} MB", got < self.mb)


Requirement = Faster | AheadOfEveryPeer | ShareOfGemm | ShareOf | TimeBelow | MemoryBelow


def judge(outcome: Outcome, requirements: Iterable[Requirement]) -> None:
    """Write the verdicts into the outcome."""
    outcome.verdicts = [requirement.judge(outcome) for requirement in requirements]


def missed(outcomes: Iterable[Outcome]) -> list[str]:
    """A line for every requirement that was judged and not met."""
    return [
        f"{outcome.title}: {verdict.against} needs {verdict.needed}, got {verdict.got}"
        for outcome in outcomes
        for verdict in outcome.verdicts
        if verdict.met is False
    ]


def _times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 20 else f"{ratio:.2g}x" if ratio >= 10 else f"{ratio:.2f}x"


# ------------------------------------------------------------------ the table

HEADER = (
    "work", "ours ms", "best peer", "its ms", "ratio", "required", "got", "met",
    "% of GEMM", "Mpairs/s", "extra MB",
)  # fmt: skip
_LEFT = (0, 2, 5, 7)


def table_rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """Cells under `HEADER`: a line for each outcome, and one more for each further requirement."""
    lines = []
    for outcome in outcomes:
        best = outcome.best_peer()
        cells = [outcome.title, milliseconds(outcome.ours.median_s), "-", "-", "-"]
        if best is not None:
            cells[2:] = [best.name, milliseconds(best.median_s), _times(outcome.ratio(best))]
        verdicts = [_verdict_cells(verdict) for verdict in outcome.verdicts] or [["", "", ""]]
        extra = "-" if outcome.ours.extra_mb is None else f"{outcome.ours.extra_mb:.1f}"
        share = f"{outcome.percent_of_gemm:.0f}" if outcome.dims else "-"
        rates = [share, f"{outcome.pairs_per_second / 1e6:.0f}", extra]
        lines.append([*cells, *verdicts[0], *rates])
        lines += [["", "", "", "", "", *verdict, "", "", ""] for verdict in verdicts[1:]]
    return lines


def _verdict_cells(verdict: Verdict) -> list[str]:
    met = {True: "yes", False: "NO", None: "?"}[verdict.met]
    return [f"{verdict.needed} {verdict.against}", verdict.got, met]


def milliseconds(seconds: float) -> str:
    """Three digits or more.

    >>> milliseconds(0.0001234), milliseconds(1.5)
    ('0.123', '1500')
    """
    ms = seconds * 1e3
    return f"{ms:.3f}" if ms < 1 else f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def table(outcomes: Sequence[Outcome]) -> str:
    """The table as text, without the columns in which nothing was measured or required."""
    body = table_rows(outcomes)
    shown = [column for column in range(len(HEADER)) if any(row[column] not in ("", "-") for row in body)]
    rows = [list(HEADER), *body]
    widths = {column: max(len(row[column]) for row in rows) for column in shown}
    lines = [
        "  ".join(_aligned(row[column], column, widths[column]) for column in shown).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def headline(machine: dict[str, Any]) -> str:
    """Where the figures come from, in a line or two."""
    amx = "AMX" if machine["amx"] else "no AMX"
    lines = [
        f"{machine['cpu']}, {machine['threads']} threads, {machine['backend']} backend, "
        f"{machine['instruction_set']} ({amx} in our kernels here); medians, everyone in turn"
    ]
    load = machine.get("load")
    if load is not None and load > 0.5 * machine["threads"]:
        lines.append(
            f"note: other work was running (load {load}); such figures, the peers' above all, say little"
        )
    return "\n".join(lines)


def _aligned(cell: str, column: int, width: int) -> str:
    return cell.ljust(width) if column in _LEFT else cell.rjust(width)


# ------------------------------------------------------------------ JSON


def document(outcomes: Sequence[Outcome], machine: dict[str, Any], command: str) -> dict[str, Any]:
    """What is written to the JSON file."""
    return {
        "schema": SCHEMA,
        "command": command,
        "machine": machine,
        "outcomes": [_outcome_facts(outcome) for outcome in outcomes],
    }


def _outcome_facts(outcome: Outcome) -> dict[str, Any]:
    derived = {
        "pairs_per_second": outcome.pairs_per_second,
        "operations_per_second": outcome.operations_per_second,
        "percent_of_gemm": outcome.percent_of_gemm,
    }
    return asdict(outcome) | derived


def outcomes_of(document: Any) -> list[Outcome]:
    """The outcomes of a JSON document; ValueError says what is wrong with it."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ValueError(f"expected a benchmark document of schema {SCHEMA}")
    for name, kind in (("command", str), ("machine", dict), ("outcomes", list)):
        if not isinstance(document.get(name), kind):
            raise ValueError(f"{name}: expected {kind.__name__}, got {document.get(name)!r}")
    return [_outcome(place, facts) for place, facts in enumerate(document["outcomes"])]


def _outcome(place: int, facts: Any) -> Outcome:
    try:
        kept = {name: facts[name] for name in Outcome.__dataclass_fields__}
        kept["timings"] = [Timing(**timing) for timing in kept["timings"]]
        kept["verdicts"] = [Verdict(**verdict) for verdict in kept["verdicts"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"outcomes[{place}]: {error!r}") from None
    outcome = Outcome(**kept)
    if not outcome.timings or outcome.ours.name != OURS:
        raise ValueError(f"outcomes[{place}]: expected {OURS} as the first of its timings")
    return outcome
