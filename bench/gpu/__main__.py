"""python -m bench.gpu: check, time and judge every row on a GPU; one table, and JSON with all figures.

python -m bench.gpu                                # on a machine with a GPU; no network is needed
TRITON_INTERPRET=1 python -m bench.gpu --tiny      # anywhere: whether it runs, not how fast
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import triton

from bench.gpu import loss_works, measure, works
from bench.gpu.table import Result, table
from minerlib.benchmarks import machine


def suite(device: torch.device, tiny: bool) -> list[Callable[[], works.Work]]:
    """Every row, built when its turn comes so that inputs of one row are held at a time."""
    return [*works.suite(device, tiny), *loss_works.suite(device, tiny)]


def run(work: works.Work, device: torch.device, seconds: float) -> Result:
    work.check()
    timed = {"ours": measure.time_calls(work.ours, work.inputs, device, seconds)}
    left_out = list(work.left_out)
    if work.graph is not None and device.type != "cpu":
        replays = measure.captured(work.graph, work.inputs[:4])
        timed["graph"] = measure.time_calls(lambda replay: replay(), replays, device, seconds)
        for name, call in work.graph_peers.items():
            replays = measure.captured(call, work.inputs[:4])
            timed[name] = measure.time_calls(lambda replay: replay(), replays, device, seconds)
    extra = measure.extra_bytes(work.ours, work.inputs[0], device)
    for name, call in work.peers.items():
        try:
            timed[name] = measure.time_calls(call, work.inputs, device, seconds)
        except torch.cuda.OutOfMemoryError:
            left_out.append(f"{name}: out of memory")
            torch.cuda.empty_cache()
    medians = {name: times.median for name, times in timed.items()}
    own = min(medians["ours"], medians.get("graph", medians["ours"])) / 1e3
    goals = {goal.text: goal.met(medians, work.pairs / own, extra) for goal in work.goals}
    return Result(
        work.title, {name: asdict(times) for name, times in timed.items()}, work.pairs / own,
        work.operations / own, extra, goals, left_out,
    )  # fmt: skip


def facts(device: torch.device) -> dict[str, Any]:
    """What a reader needs to judge a figure."""
    found: dict[str, Any] = {
        "gpu": None, "driver": None, "cuda": torch.version.cuda, "python": platform.python_version(),
        "torch": torch.__version__, "triton": triton.__version__, "commit": machine.commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()), "command": "python -m bench.gpu",
    }  # fmt: skip
    if device.type != "cpu":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name, "memory": properties.total_memory,
            "multiprocessors": properties.multi_processor_count, "driver": _driver(),
        }  # fmt: skip
    return found


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write(path: Path, measured_on: dict[str, Any], results: list[Result], failed: list[str]) -> None:
    document = {"facts": measured_on, "rows": [asdict(result) for result in results], "failed": failed}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="small sizes: whether it runs, not how fast")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose title holds this")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each contender of a row")
    parser.add_argument("--results", type=Path, default=Path("bench/results/gpu.json"), metavar="FILE")
    options = parser.parse_args(arguments)
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    if device.type == "cpu" and not options.tiny:
        print(
            "bench.gpu: no GPU here; --tiny with TRITON_INTERPRET=1 tries the script on the host",
            file=sys.stderr,
        )
        return 1
    results, failed, measured_on = [], [], facts(device)
    for build in suite(device, options.tiny):
        work = build()
        if options.only not in work.title:
            continue
        print(work.title, flush=True)
        try:
            results.append(run(work, device, 0.0 if options.tiny else options.seconds))
        except Exception as error:  # a wrong answer is never timed, and the others still are
            traceback.print_exc()
            failed.append(f"{work.title}: {type(error).__name__}: {error}")
        write(options.results, measured_on, results, failed)  # a run that is cut off leaves what it has
    print(table(results), *failed, f"written: {options.results}", sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
