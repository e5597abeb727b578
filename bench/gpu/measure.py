"""Device time of a call: events around it, over rotating inputs; graphs where launches would hide it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

#: Inputs rotate through more bytes than any GPU's second-level cache holds.
ROTATED_BYTES = 256 << 20
MOST_SETS = 32


@dataclass(frozen=True)
class Times:
    """Milliseconds of each call."""

    median: float
    least: float
    most: float
    calls: int


def sets_needed(size: int) -> int:
    """How many input sets of so many bytes rotate."""
    return max(2, min(MOST_SETS, -(-ROTATED_BYTES // max(1, size))))


def time_calls(
    call: Callable[[Any], Any], inputs: Sequence[Any], device: torch.device, seconds: float
) -> Times:
    """Calls over the inputs in turn until the time is up: at least five, after a warm-up over three."""
    if device.type == "cpu":
        return _host_times(call, inputs, seconds)
    for warm in range(3):
        call(inputs[warm % len(inputs)])
    torch.cuda.synchronize(device)
    events = []
    stop = time.perf_counter() + seconds
    while len(events) < 5 or (time.perf_counter() < stop and len(events) < 2000):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call(inputs[len(events) % len(inputs)])
        end.record()
        events.append((start, end))
        if len(events) % 16 == 0:  # so that the queue, and with it the time, stays bounded
            end.synchronize()
    torch.cuda.synchronize(device)
    return _times([start.elapsed_time(end) for start, end in events])


def _host_times(call: Callable[[Any], Any], inputs: Sequence[Any], seconds: float) -> Times:
    """Without a GPU: whether the script runs, not how fast."""
    found = []
    stop = time.perf_counter() + seconds
    while not found or time.perf_counter() < stop:
        start = time.perf_counter()
        call(inputs[len(found) % len(inputs)])
        found.append((time.perf_counter() - start) * 1e3)
    return _times(found)


def _times(found: list[float]) -> Times:
    return Times(statistics.median(found), min(found), max(found), len(found))


def captured(call: Callable[[Any], Any], inputs: Sequence[Any]) -> list[Callable[[], None]]:
    """The call as a CUDA graph over each input; a call that waits for the device cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for one in inputs:
            call(one)
    torch.cuda.current_stream().wait_stream(stream)
    replays = []
    for one in inputs:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call(one)
        replays.append(graph.replay)
    return replays


def extra_bytes(call: Callable[[Any], Any], one: Any, device: torch.device) -> int | None:
    """The most that torch's allocator held during a call beyond what it held before, results included."""
    if device.type == "cpu":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call(one)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
