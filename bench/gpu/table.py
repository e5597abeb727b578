"""A row of what `python -m bench.gpu` found, and all of them as Markdown; needs neither torch nor Triton."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """A row as it is written; times in milliseconds."""

    title: str
    times: dict[str, dict[str, float]]  # ours, graph (ours, replayed) and the peers
    pairs_per_second: float  # of ours, by its graph where there is one
    operations_per_second: float
    extra_bytes: int | None
    goals: dict[str, bool]
    left_out: list[str]


def table(results: list[Result]) -> str:
    lines = [
        "| work | ours ms | graph ms | G pairs/s | T operations/s | extra MB | beside | goals |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        medians = {name: times["median"] for name, times in result.times.items()}
        graph = f"{medians['graph']:.3g}" if "graph" in medians else "-"
        extra = "-" if result.extra_bytes is None else f"{result.extra_bytes / 2**20:.1f}"
        beside = "; ".join(
            f"{name} {median:.3g} ({median / medians['ours']:.3g}x)"
            for name, median in medians.items()
            if name not in ("ours", "graph")
        )
        goals = "; ".join(f"{text}: {'yes' if met else 'NO'}" for text, met in result.goals.items())
        lines.append(
            f"| {result.title} | {medians['ours']:.3g} | {graph} | {result.pairs_per_second / 1e9:.4g} "
            f"| {result.operations_per_second / 1e12:.3g} | {extra} | {beside} | {goals} |"
        )
    return "\n".join(lines)
