"""The arguments of losses, checked once at the public function, in what torch can trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minerlib import inputs
from minerlib.backends import native, triton
from minerlib.dispatch import BackendUnavailable
from minerlib.results import PaddedTriplets

REDUCTIONS = ("mean", "sum", "mean-nonzero", "hinge-of-sums")
BACKENDS = ("auto", "native", "triton", "torch")


def rows(name: str, value: Any) -> Tensor:  # [rows, D] float32 or float64
    """Floating rows; half precision is widened to float32, through which its gradient passes."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name}: expected a floating type, got {value.dtype}")
    if value.ndim != 2:
        raise ValueError(f"{name}: expected shape [rows, dimensions], got {list(value.shape)}")
    return value if value.dtype in (torch.float32, torch.float64) else value.float()


def rows_like(name: str, value: Any, embeddings: Tensor) -> Tensor:
    """Rows that are compared with embeddings."""
    given = rows(name, value)
    if value.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"{name}: expected {embeddings.shape[1]} dimensions like embeddings, got {value.shape[1]}"
        )
    if value.dtype != embeddings.dtype:
        raise TypeError(f"{name}: expected {embeddings.dtype} like embeddings, got {value.dtype}")
    inputs.same_device(**{"embeddings": embeddings, name: value})
    return given


def label_vector(name: str, value: Any, embeddings: Tensor, of: str = "embeddings") -> Tensor:
    """[rows] int64, or [rows, C] bool, on the embeddings' device."""
    labels = torch.as_tensor(value, device=embeddings.device).detach()
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{name}: expected integers or bool, got {labels.dtype}")
    if labels.ndim not in (1, 2):
        raise ValueError(f"{name}: expected shape [rows] or [rows, labels], got {list(labels.shape)}")
    if labels.ndim == 2 and labels.dtype != torch.bool:
        raise TypeError(f"{name}: expected bool for multi-label rows, got {labels.dtype}")
    if len(labels) != len(embeddings):
        raise ValueError(f"{name}: expected {len(embeddings)} rows like {of}, got {len(labels)}")
    return labels if labels.ndim == 2 else labels.long()


def labels_and_reference(
    embeddings: Tensor, labels: Any, reference: Any, reference_labels: Any
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # labels, reference, reference_labels
    inputs.both_or_neither(reference, reference_labels)
    own = label_vector("labels", labels, embeddings)
    if reference is None:
        return own, None, None
    other = rows_like("reference", reference, embeddings)
    theirs = label_vector("reference_labels", reference_labels, other, "reference")
    inputs.same_form(own, theirs)
    return own, other, theirs


def triplet_vectors(
    triplets: Any, embeddings: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, bool]:  # three int64 [T] on the embeddings' device; whether all count
    """Three index vectors of one length, padding left out; whether they are in range is asked later.

    `triton` keeps what is padded, as the anchor -1: to leave it out would wait for the device.
    """
    valid = None
    if isinstance(triplets, PaddedTriplets):
        valid = torch.as_tensor(triplets.valid, device=embeddings.device)
        triplets = triplets[:3]
    if isinstance(triplets, Tensor) or not isinstance(triplets, Sequence) or len(triplets) != 3:
        raise TypeError(
            "triplets: expected (anchors, positives, negatives), three index vectors of one length"
        )
    anchors, positives, negatives = (
        _indices(name, values, embeddings)
        for name, values in zip(("anchors", "positives", "negatives"), triplets, strict=True)
    )
    if not len(anchors) == len(positives) == len(negatives):
        lengths = f"{len(anchors)}, {len(positives)} and {len(negatives)}"
        raise ValueError(f"triplets: expected vectors of one length, got {lengths}")
    if valid is None:
        return anchors, positives, negatives, True
    if backend == "triton":
        return torch.where(valid, anchors, -1), positives, negatives, False
    return anchors[valid], positives[valid], negatives[valid], True


def _indices(name: str, values: Any, embeddings: Tensor) -> Tensor:  # int64 [T]
    vector = torch.as_tensor(values, device=embeddings.device)
    if vector.ndim != 1:
        raise ValueError(f"triplets: {name}: expected shape [triplets], got {list(vector.shape)}")
    if not vector.numel():
        return vector.long()
    if vector.is_floating_point() or vector.is_complex() or vector.dtype == torch.bool:
        raise TypeError(f"triplets: {name}: expected integers, got {vector.dtype}")
    return vector.long()


def within(name: str, vector: Tensor, count: int) -> None:
    """All of the triplets' indices are those of rows."""
    if not len(vector):
        return
    low, high = (int(value) for value in torch.aminmax(vector))
    if low < 0 or high >= count:
        raise ValueError(f"triplets: {name}: expected rows 0 to {count - 1}, got {low} to {high}")


def backend_for(name: str, embeddings: Tensor, natively: bool = True) -> str:
    """`native`, `triton` or `torch`; a backend that is named is the one used, or an error.

    natively: whether the loss has a native kernel.
    """
    inputs.one_of("backend", name, BACKENDS)
    if name == "torch" or torch.compiler.is_compiling():  # the operator asks again when it runs
        return name
    if name == "triton":  # "auto" leaves it alone: it has not been timed beside torch
        reasons = triton.reasons_unusable() or triton.reasons_for(embeddings.device)
    else:
        reasons = native.reasons_unusable()
        if not natively:
            reasons = ("it has no kernel of this loss", *reasons)
        if embeddings.device.type != "cpu":
            reasons = (f"the embeddings are on {embeddings.device}, and it works on the host", *reasons)
    if name != "auto" and reasons:
        raise BackendUnavailable(f"backend {name!r} cannot be used: {'; '.join(reasons)}")
    return name if name == "triton" else "torch" if reasons else "native"
