"""Write the figures of a benchmark's JSON into docs/performance.md: `python -m bench.report [JSON] [PAGE]`.

Everything between the two marks of the page is replaced; nothing else is touched.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minerlib.benchmarks import results
from minerlib.benchmarks.results import HEADER, Outcome, milliseconds

BEGIN, END = "<!-- figures: written by bench/report.py -->", "<!-- end of figures -->"
_FAMILIES = {
    "batch-hard, N=8192": "extremes, shared tiles",
    "four extremes, 50K x 50K": "extremes, all four",
    "semi-hard, N=2048": "window",
    "distance-weighted, N=2048": "sample",
    "nearest 10, 10K in 50K": "topk",
    "distances, N=4096": "pairwise",
}


def render(document: dict[str, Any]) -> str:
    """The figures as Markdown."""
    outcomes = results.outcomes_of(document)
    by_title = {outcome.title: outcome for outcome in reversed(outcomes)}  # of two with one title the first
    in_order = iter(outcomes)  # the groups one after the other; a title may stand in two of them
    groups = {name: [next(in_order) for _ in titles] for name, titles in document["groups"].items()}
    machine = document["machine"]
    parts = [_provenance(document["command"], machine)]
    achieved = [by_title[title] for title in _FAMILIES if title in by_title]
    if achieved:
        parts += ["### Achieved, by family", _achieved(achieved)]
    for name, members in groups.items():
        parts.append(f"### {name[0].upper()}{name[1:]}")
        parts.append(_growth(members) if name.startswith("growth") else _comparison(members))
    return "\n\n".join(parts)


def insert(page: str, figures: str) -> str:
    """The page with its figures replaced; ValueError where the marks are missing."""
    before, begun, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"expected the marks {BEGIN!r} and {END!r} in the page")
    return f"{before}{BEGIN}\n\n{figures}\n\n{END}{after}"


def _provenance(command: str, machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    return (
        f"Command: `{command}` at commit `{machine['commit']}`, {machine['date']}. "
        f"{results.headline(machine).splitlines()[0]}. Python {machine['python']}, {versions}."
    )


def _achieved(outcomes: Sequence[Outcome]) -> str:
    rows = [
        [
            _FAMILIES[outcome.title],
            outcome.title,
            f"{outcome.operations_per_second / 1e9:.0f}",
            f"{outcome.gemm_rate / 1e9:.0f}",
            f"{outcome.percent_of_gemm:.0f} %",
            f"{outcome.pairs_per_second / 1e9:.2f}",
        ]
        for outcome in outcomes
    ]
    header = ["family", "work", "G operations/s", "float32 product, G operations/s", "share", "G pairs/s"]
    return _markdown(header, rows)


def _comparison(outcomes: Sequence[Outcome]) -> str:
    rows = results.table_rows(outcomes)
    return _markdown(list(HEADER), rows)


def _growth(outcomes: Sequence[Outcome]) -> str:
    """A line for each size, a column for each contender."""
    names = list(dict.fromkeys(timing.name for outcome in outcomes for timing in outcome.timings))
    rows = []
    for outcome in outcomes:
        found = {timing.name: milliseconds(timing.median_s) for timing in outcome.timings}
        rows.append([outcome.title, *(found.get(name, "-") for name in names)])
    return _markdown(["milliseconds", *names], rows)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def main(arguments: Sequence[str]) -> int:
    figures = Path(arguments[0] if arguments else "bench/results/bench.json")
    page = Path(arguments[1] if len(arguments) > 1 else "docs/performance.md")
    try:
        document = json.loads(figures.read_text(encoding="utf-8"))
        page.write_text(insert(page.read_text(encoding="utf-8"), render(document)), encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
