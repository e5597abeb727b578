"""Whether Triton's kernels run as NumPy code in this process. It is decided when Triton is imported."""

from __future__ import annotations

import copy
import importlib.util
import os
from types import SimpleNamespace
from typing import Any

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None

NOT_INTERPRETED = (
    "Triton's interpreter is off: make test runs these with TRITON_INTERPRET=1 in a process of their own"
    if importlib.util.find_spec("triton") is not None
    else "Triton is not installed (make build installs it from requirements-dev.txt)"
)


def _spare_the_interpreter() -> None:
    """It looks through all of Triton's language at every call between kernel functions, though the launch has
    replaced it already: a third of these tests' time."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch = getattr(interpreter, "_patch_lang", None)
    if patch is None:
        return

    def once(function: Any) -> Any:
        seen = [
            part for part in (tl, tl.core) if any(value is part for value in function.__globals__.values())
        ]
        if any(tl.core.is_builtin(part.load) for part in seen):
            return patch(function)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = once


def with_constants(kernel: Any, **constants: Any) -> Any:
    """A `launching.Kernel` with other constants than any form has: smaller tiles, say."""
    changed = copy.copy(kernel)
    changed._ready = {
        form: ({**options, **constants}, checks) for form, (options, checks) in kernel._ready.items()
    }
    return changed


if INTERPRETED:
    _spare_the_interpreter()
