"""What `mine` and its like do where everything stays on the tensors' device."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from minerlib import device_inputs, dispatch
from minerlib.device_inputs import DeviceProblem
from minerlib.results import PaddedTriplets, Triplets
from minerlib.strategies import Every, Request, Slots


def adapter(problem: DeviceProblem) -> ModuleType:
    """The triton backend, if it serves tensors on this device."""
    module = dispatch.choose("triton")
    reasons = module.reasons_for(problem.anchors.device)
    if reasons:
        raise dispatch.BackendUnavailable(f"backend 'triton' cannot be used: {'; '.join(reasons)}")
    return module


def finish(problem: DeviceProblem, slots: Slots, compact: bool) -> Triplets | PaddedTriplets:
    """The triplets as the caller's kind of array. A compact result reads back how many there are."""
    anchors, positives, negatives = slots.anchors, slots.positives, slots.negatives
    valid = negatives >= 0
    if not compact:
        positives = torch.where(valid, positives, anchors)
        negatives = torch.where(valid, negatives, anchors)
        return PaddedTriplets(
            *(device_inputs.back(problem.origin, column) for column in (anchors, positives, negatives, valid))
        )
    ends = valid.cumsum(0)
    count = problem.read(ends[-1] if len(ends) else ends.sum())[0]
    kept = torch.empty(count + 1, dtype=torch.int64, device=valid.device)
    places = torch.arange(len(valid), device=valid.device)
    kept.scatter_(0, torch.where(valid, ends - 1, count), places)  # what is not mined shares the last place
    kept = kept[:count]
    return Triplets(
        *(device_inputs.back(problem.origin, column[kept]) for column in (anchors, positives, negatives))
    )


def pairwise_distance(x: Any, y: Any, metric: str) -> Any:
    """[N, M], or [B, N, M] of batches; see `neighbors.pairwise_distance`."""
    from minerlib import inputs

    inputs.one_of("metric", metric, inputs.METRICS)
    inputs.same_device(x=x, y=y)
    x_rows, origin = device_inputs.to_tensor("x", x)
    y_rows = x_rows if y is None else device_inputs.to_tensor("y", y)[0].to(x_rows.device)
    if x_rows.ndim != 3 or y_rows.ndim != 3:
        problem = device_inputs.search_problem(x, x if y is None else y, metric, ("x", "y"))
        found = adapter(problem).pairwise(problem)
        problem.read()
        return device_inputs.back(origin, found)
    if len(x_rows) != len(y_rows):
        raise ValueError(f"y: expected the batch of x [{len(x_rows)}], got [{len(y_rows)}]")
    out = torch.empty(
        len(x_rows), x_rows.shape[1], y_rows.shape[1], dtype=torch.float64, device=x_rows.device
    )
    for batch in range(len(out)):
        out[batch] = pairwise_distance(x_rows[batch], None if y is None else y_rows[batch], metric)
    return device_inputs.back(origin, out)


def run(plan: Any, problem: DeviceProblem, request: Request, compact: bool) -> Triplets | PaddedTriplets:
    """A strategy's plan over the families of this backend."""
    found = plan.run(adapter(problem), problem, request)
    if isinstance(plan, Every):  # every slot holds a triplet, and how many was read on the way
        columns = (found.anchors, found.positives, found.negatives)
        return Triplets(*(device_inputs.back(problem.origin, column) for column in columns))
    return finish(problem, found, compact)
