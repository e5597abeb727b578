"""Whether Triton's kernels run as NumPy code in this process. It is decided when Triton is imported."""

from __future__ import annotations

import importlib.util
import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None

NOT_INTERPRETED = (
    "Triton's interpreter is off: make test runs these with TRITON_INTERPRET=1 in a process of their own"
    if importlib.util.find_spec("triton") is not None
    else "Triton is not installed (make build installs it from requirements-dev.txt)"
)
