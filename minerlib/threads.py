"""How many threads the CPU backends use; answers do not depend on it."""

from __future__ import annotations

import os

from minerlib import inputs

_threads = 0  # 0: every processor this process may run on


def set_num_threads(count: int) -> None:
    """Use `count` threads (1 to 1024) in the CPU backends from now on.

    >>> import minerlib
    >>> minerlib.set_num_threads(minerlib.get_num_threads())
    """
    global _threads
    _threads = inputs.integer("count", count, 1, 1024)


def get_num_threads() -> int:
    """The number of threads the CPU backends use; unless set, one for each processor available here.

    >>> import minerlib
    >>> minerlib.get_num_threads() >= 1
    True
    """
    return _threads or available_processors()


def available_processors() -> int:
    """Processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
