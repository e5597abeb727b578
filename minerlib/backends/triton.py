"""Triton kernels on the GPU that holds the tensors (or under Triton's interpreter, on host tensors).

The families take a `device_inputs.DeviceProblem` and answer with tensors on its device, on the stream that is
current there. Beyond that the adapter is like the others. Importing this module imports neither Triton nor
torch's GPU runtime.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from minerlib.backends._device_codes import answer
from minerlib.strategies import FARTHEST_NEGATIVE, NEAREST_NEGATIVE, Request

if TYPE_CHECKING:
    import numpy as np
    import torch

    from minerlib.device_inputs import DeviceProblem
    from minerlib.inputs import Relevance
    from tritonkernels.labels import Pairs

    Codes = np.ndarray | torch.Tensor  # [rows, bytes] uint8; tensors of the GPU stay there
    Columns = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # loss [], gradients of x and y (or empty)

#: Until an AMD GPU has run the tests of these kernels, "auto" works on tensors of one on the host.
UNPROVEN_ON_AMD = "unproven on AMD GPUs: no run of its tests is recorded; name backend='triton' to try it"


@functools.cache
def reasons_unusable() -> tuple[str, ...]:
    try:
        import triton  # noqa: F401
    except Exception as error:  # a Triton of another Python or torch raises more than ImportError
        return (f"triton cannot be imported: {error or type(error).__name__}",)
    import torch

    if not interpreted() and not torch.cuda.is_available():  # ROCm devices are "cuda" to torch
        return ("no CUDA or ROCm device (TRITON_INTERPRET=1 runs the kernels as NumPy code)",)
    return ()


def reasons_for_auto() -> tuple[str, ...]:
    """Why "auto" does not take it for tensors on a GPU, though it can be used."""
    import torch

    return () if torch.version.hip is None else (UNPROVEN_ON_AMD,)


def interpreted() -> bool:
    """Whether kernels run on host tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def reasons_for(device: torch.device) -> tuple[str, ...]:
    """Why tensors on this device cannot be served."""
    if interpreted() == (device.type == "cpu"):
        return ()
    if interpreted():
        return (f"TRITON_INTERPRET=1 runs the kernels on host tensors, and these are on {device}",)
    return (f"the tensors are on {device}; move them to a GPU",)


def extremes(problem: DeviceProblem, wanted: Iterable[int], exact: bool) -> torch.Tensor:  # [4, N] int64
    from tritonkernels import extremes as kernels

    assert problem.labels is not None
    return kernels.extremes(problem.rows, problem.labels, wanted, exact)


def window(problem: DeviceProblem, rule: str, request: Request) -> Columns:
    """Windows are decided in float64 with `exact=False` too."""
    from tritonkernels import window as kernels

    assert problem.labels is not None
    pairs = problem.pairs(request.pairs == "combinations")
    if rule == "hard":
        nearest = extremes(problem, (NEAREST_NEGATIVE,), True)[NEAREST_NEGATIVE]
        negatives = kernels.hard(problem.rows, pairs, nearest, request.margin)
    else:
        negatives = kernels.window(problem.rows, problem.labels, pairs, rule, request.margin, request.seed)
    return pairs.anchors, pairs.positives, _fall_back(problem, request, pairs, negatives)


def sample(problem: DeviceProblem, request: Request) -> Columns:
    from tritonkernels import sample as kernels

    assert problem.labels is not None
    pairs = problem.pairs(request.pairs == "combinations")
    negatives = kernels.sample(problem.rows, problem.labels, pairs, request.seed)
    return pairs.anchors, pairs.positives, _fall_back(problem, request, pairs, negatives)


def every_triplet(problem: DeviceProblem, request: Request) -> Columns:
    from tritonkernels import window as kernels

    assert problem.labels is not None
    pairs = problem.pairs(request.pairs == "combinations")
    return kernels.every_triplet(problem.rows, problem.labels, pairs, request.margin, problem.read)


def counts(problem: DeviceProblem, request: Request) -> tuple[int, int, int]:
    from tritonkernels import window as kernels

    assert problem.labels is not None
    pairs = problem.pairs(request.pairs == "combinations")
    found = kernels.count(problem.rows, problem.labels, pairs, request.margin)
    total, scored, semi_hard = problem.read(*(column.sum() for column in found))
    return total, scored - semi_hard, semi_hard


def topk(problem: DeviceProblem, k: int, exact: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact with `exact=False` too."""
    from tritonkernels import topk as kernels

    return kernels.topk(problem.anchors, problem.columns, k, problem.metric)


def pairwise(problem: DeviceProblem) -> torch.Tensor:  # [N, M] float64
    from tritonkernels import pairwise as kernels

    return kernels.pairwise(problem.anchors, problem.columns, problem.metric)


def hamming_distance(a: Codes, b: Codes) -> Any:  # [N, M] int32
    from tritonkernels import hamming as kernels

    return answer(kernels.distance, device(), a, b)


def hamming_search(queries: Codes, database: Codes, k: int) -> tuple[Any, ...]:
    from tritonkernels import hamming_search as kernels

    return answer(kernels.search, device(), queries, database, k)


def hamming_range(queries: Codes, database: Codes, radius: int) -> tuple[Any, ...]:
    from tritonkernels import hamming_search as kernels

    return answer(kernels.range_search, device(), queries, database, radius)


def hamming_counts(queries: Codes, database: Codes, relevance: Relevance) -> tuple[Any, ...]:
    from tritonkernels import hamming as kernels

    return answer(kernels.counts, device(), queries, database, relevance)


def hamming_average_precision(queries: Codes, database: Codes, relevance: Relevance, k: int) -> Any:
    from tritonkernels import hamming_ranking as kernels

    return answer(kernels.average_precision, device(), queries, database, relevance, k)


def device() -> str:
    """Where codes of host arrays go."""
    return "cpu" if interpreted() else "cuda"


# Losses: nothing is read back, but for whether every class has a proxy.


def losses_triplet(
    x: torch.Tensor,  # [N, D]
    y: torch.Tensor | None,  # [M, D]
    triplets: Columns,  # [T] each; one with a negative index takes no part
    margin: float,
    comparison: str,
    reduction: str,
    soft: bool,
    differentiate: bool,
) -> Parts:
    from tritonkernels import losses_triplet as kernels

    return kernels.triplet_loss(
        x, y, triplets, margin, comparison, reduction, soft=soft, differentiate=differentiate
    )


def losses_batch(
    x: torch.Tensor,  # [N, D]
    y: torch.Tensor | None,  # [M, D]
    labels: torch.Tensor,  # [N] or [N, C] bool
    y_labels: torch.Tensor | None,  # [M] or [M, C] bool
    kind: str,
    margin: float,
    metric: str,
    reduction: str,
    differentiate: bool,
) -> Parts:
    from tritonkernels import labels as grouping
    from tritonkernels import losses_batch as kernels
    from tritonkernels import losses_ratios

    group: Any = grouping.multiple if labels.ndim == 2 else grouping.single
    other_labels = labels if y_labels is None or kind == "proxies" else y_labels
    assigned = None
    if kind == "proxies":
        assert y is not None
        known = None if y_labels is None else group(labels, y_labels)
        assigned = losses_ratios.assign(x, y, known, metric)
        if known is not None and bool((assigned < 0).any()):
            row = int((assigned < 0).int().argmax())
            raise ValueError(
                f"proxy_labels: expected a proxy for the class of every row, got none for row {row}"
            )
    return kernels.batch_loss(
        x, y, group(labels, other_labels), kind, margin, metric, reduction, differentiate=differentiate,
        assigned=assigned,
    )  # fmt: skip


def _fall_back(
    problem: DeviceProblem, request: Request, pairs: Pairs, negatives: Any
) -> torch.Tensor:  # [slots]
    """Pairs without an eligible negative take an extreme one, by the metric; pairs beyond the last, none."""
    import torch

    slot = torch.arange(pairs.slots, device=negatives.device)
    live = slot < pairs.offsets[-1]
    if request.fallback != "drop" and pairs.slots:
        which = NEAREST_NEGATIVE if request.fallback == "hardest" else FARTHEST_NEGATIVE
        extreme = extremes(problem, (which,), True)[which][pairs.anchors]
        finite = problem.rows.y_largest[pairs.positives] >= 0
        negatives = torch.where((negatives < 0) & finite, extreme, negatives)
    return torch.where(live, negatives, -1)
