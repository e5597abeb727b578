"""Write the figures of benchmarks' JSON into docs/performance.md: `python -m bench.report [FOLDER] [PAGE]`.

What lies between the two marks of each file is replaced; nothing else is touched.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu.table import Result, table
from minerlib.benchmarks import results
from minerlib.benchmarks.results import HEADER, Outcome, milliseconds

END = "<!-- end of figures -->"

#: The files that are looked for; one that is not there leaves its part of the page alone.
FILES = ("bench.json", "bench_amx.json", "gpu.json")


def begin(name: str) -> str:
    """The mark before the figures of a file."""
    return f"<!-- figures of {name}: written by bench/report.py -->"


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


def render_gpu(document: dict[str, Any]) -> str:
    """What `python -m bench.gpu` found, as Markdown."""
    facts = document["facts"]
    provenance = (
        f"Command: `{facts['command']}` at commit `{facts['commit']}`, {facts['date']}. {facts['gpu']}, "
        f"driver {facts['driver']}, CUDA {facts['cuda']}, Python {facts['python']}, torch {facts['torch']}, "
        f"triton {facts['triton']}; medians."
    )
    failed = [f"Failed: {line}" for line in document["failed"]]
    return "\n\n".join([provenance, table([Result(**row) for row in document["rows"]]), *failed])


def insert(page: str, name: str, figures: str) -> str:
    """The page with a file's figures replaced; ValueError where the marks are missing."""
    before, begun, rest = page.partition(begin(name))
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"expected the marks {begin(name)!r} and {END!r} in the page")
    return f"{before}{begun}\n\n{figures}\n\n{END}{after}"


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
    folder = Path(arguments[0] if arguments else "bench/results")
    page = Path(arguments[1] if len(arguments) > 1 else "docs/performance.md")
    try:
        text = page.read_text(encoding="utf-8")
        found = [name for name in FILES if (folder / name).exists()]
        if not found:
            raise ValueError(f"expected {', '.join(FILES)}, or some of them, in {folder}")
        for name in found:
            document = json.loads((folder / name).read_text(encoding="utf-8"))
            text = insert(text, name, (render_gpu if name == "gpu.json" else render)(document))
        page.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
