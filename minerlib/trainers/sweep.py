"""Many configurations by one command: each in a folder of its own, each done once.

A case that is done leaves `outcome.json` beside its other files: its settings and its numbers. A sweep that
is started again under `resume` reads those, goes on with the case that was interrupted from its checkpoint,
and runs the rest.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from tqdm import tqdm

from minerlib.trainers import common, ranks
from minerlib.trainers.settings import Settings, decisive

Config = TypeVar("Config", bound=Settings)
Result = TypeVar("Result")
Outcome = dict[str, Any]  # what JSON can hold


def run_cases(
    cases: Mapping[str, Config],
    train: Callable[[Config], Result],
    outcome: Callable[[Result], Outcome],
    skip: tuple[type[Exception], ...] = (),
) -> dict[str, Outcome]:
    """The outcome of every case, by name, in the order given.

    Each case writes into its own `output`. Its `resume` says whether what lies there is used, and its
    `progress` whether there is a bar over the cases; there is none within one. An exception of a type in
    `skip` makes the outcome `{"skipped": reason}`, which is not kept: the next sweep tries again.
    """
    outcomes: dict[str, Outcome] = {}
    quiet = not (all(case.progress for case in cases.values()) and ranks.current().main)
    with tqdm(cases.items(), unit="run", disable=quiet) as bar:
        for name, case in bar:
            bar.set_postfix_str(name)
            outcomes[name] = _run_case(case, train, outcome, skip)
    return outcomes


def _run_case(
    case: Config,
    train: Callable[[Config], Result],
    outcome: Callable[[Result], Outcome],
    skip: tuple[type[Exception], ...],
) -> Outcome:
    path = case.output / "outcome.json"
    settings = json.loads(json.dumps({**decisive(case), "epochs": case.epochs, "validate": case.validate}))
    kept, has_checkpoint = None, False
    if case.resume and ranks.current().main:
        kept = _kept(path, settings)
        has_checkpoint = (case.output / "checkpoint.pt").exists()
    kept, has_checkpoint = ranks.current().agree((kept, has_checkpoint))
    if kept is not None:
        return dict(kept)
    try:
        found = outcome(train(replace(case, progress=False, resume=has_checkpoint)))
    except skip as reason:
        return {"skipped": str(reason)}
    if ranks.current().main:
        common.prepare_output(case.output)
        common.write_json(path, {"settings": settings, "outcome": found})
    as_read: Outcome = json.loads(json.dumps(found))  # what the next sweep will find
    return as_read


def _kept(path: Any, settings: dict[str, Any]) -> Outcome | None:
    try:
        record = json.loads(path.read_text())
        return record["outcome"] if record["settings"] == settings else None
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path}: expected the outcome of a run, it cannot be read; remove it") from None


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over several seeds, or the value of one.

    >>> spread([71.0, 73.0, 72.0]), spread([71.0])
    ('72.00 ± 1.00', '71.00')
    """
    mean = statistics.mean(values)
    return f"{mean:.2f}" if len(values) == 1 else f"{mean:.2f} ± {statistics.stdev(values):.2f}"
