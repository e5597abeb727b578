"""Mining over the batches of all ranks of torch.distributed, each rank its own anchors.

Rows get the positions they have in the concatenated batch, rank after rank. Random choices belong to those
positions, so the triplets of all ranks together are the same for any number of ranks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from minerlib.against import mine_rows
from minerlib.results import Triplets

_DTYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8, torch.int8,
    torch.int16, torch.int32, torch.int64,
)  # fmt: skip


class GatheredTriplets(NamedTuple):
    """Every rank's rows and this rank's triplets among them."""

    embeddings: Tensor  # [N, D] of all ranks, rank after rank; gradients flow back to the rank of each row
    labels: Tensor  # [N] or [N, C] bool, of all ranks
    triplets: Triplets  # rows of `embeddings`; anchors are this rank's rows
    first: int  # where this rank's rows begin
    total: int  # triplets of all ranks


def gather(
    embeddings: Tensor,  # [n, D]
    labels: Tensor,  # [n] or [n, C] bool
    group: Any = None,
) -> tuple[Tensor, Tensor, int]:  # [N, D], [N] or [N, C], where this rank's rows begin
    """The rows and labels of all ranks, rank after rank; ranks may bring different numbers of rows, or none.

    The gradient of a row is the sum of what all ranks have computed for it, so that the losses of the ranks
    add up. Its backward pass is a collective: every rank has to take part in it, as each does whose loss was
    computed from the rows gathered, even with no triplet. Where no process group runs, and with one rank, the
    rows come back as they are.

    Raises `TypeError` or `ValueError`, on every rank, where ranks disagree on types, dimensions or the form
    of labels. Memory: all rows, and once more while they are joined.

    >>> rows, labels, first = gather(torch.ones(2, 3), torch.tensor([0, 1]))
    >>> rows.shape, first
    (torch.Size([2, 3]), 0)
    """
    if not (dist.is_available() and dist.is_initialized()):
        _check(embeddings, labels)
        return embeddings, labels, 0
    error: Exception | None = None
    try:
        _check(embeddings, labels)
    except (TypeError, ValueError) as wrong:
        error = wrong  # raised after the others have heard of it: one rank alone must not leave a collective
    forms = _forms(embeddings, labels, error, group)
    if error is not None:
        raise error
    _agree(forms)
    sizes = forms[:, 1].tolist()
    rank = dist.get_rank(group)
    if len(sizes) == 1:
        return embeddings, labels, 0
    rows: Tensor = _Gather.apply(embeddings, sizes, rank, group)
    return rows, _joined(labels, sizes, group), sum(sizes[:rank])


def gather_and_mine(
    embeddings: Tensor,  # [n, D]
    labels: Tensor,  # [n] or [n, C] bool
    strategy: str,
    *,
    group: Any = None,
    **options: Any,
) -> GatheredTriplets:
    """Mine this rank's rows as anchors against the rows of all ranks.

    `options` are the keywords of `minerlib.mine` but `reference`, `reference_labels` and `compact`; all ranks
    have to pass the same. Taken together, rank after rank, the triplets are those of `mine` on the
    concatenated batch, for every number of ranks. Ranks may bring different numbers of rows, or none.

        found = gather_and_mine(embeddings, labels, "semi-hard", seed=step)
        loss = triplet_margin(found.embeddings, found.triplets, reduction="sum") / max(found.total, 1)
        (loss * dist.get_world_size()).backward()       # DistributedDataParallel averages over ranks

    then is the mean over the triplets of all ranks, with the gradient that one process would have. See
    `gather` for what every rank owes the others, and for errors; those of `mine` are raised on every rank.

    Memory: all rows of all ranks; `mine` adds what it adds. Communication: every rank receives all rows, and
    in the backward pass the ranks add up their gradients of all rows.

    >>> found = gather_and_mine(torch.eye(3), torch.tensor([0, 0, 1]), "batch-hard")
    >>> found.triplets.negatives.tolist(), found.total
    ([2, 2], 2)
    """
    rows, all_labels, first = gather(embeddings, labels, group)
    found = mine_rows(rows.detach(), all_labels, strategy, first, first + len(embeddings), **options)
    return GatheredTriplets(rows, all_labels, found, first, add_up(len(found.anchors), rows, group))


def _check(embeddings: Any, labels: Any) -> None:
    for name, value in (("embeddings", embeddings), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a torch tensor, got {type(value).__name__}")
        if value.dtype not in _DTYPES:
            raise TypeError(f"{name}: expected a type that ranks can exchange, got {value.dtype}")
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"embeddings: expected floats of shape [rows, dimensions], got {embeddings.dtype} "
            f"{list(embeddings.shape)}"
        )
    if labels.ndim not in (1, 2) or len(labels) != len(embeddings):
        raise ValueError(
            f"labels: expected {len(embeddings)} rows like embeddings, got shape {list(labels.shape)}"
        )
    if labels.device != embeddings.device:
        raise ValueError(f"labels: expected a tensor on {embeddings.device}, got one on {labels.device}")


def _forms(embeddings: Any, labels: Any, error: Exception | None, group: Any) -> Tensor:  # [ranks, 6] int64
    """What each rank brings: fit or not, rows, dimensions, types, label sets' width (-1: single labels)."""
    form = [0] * 6
    if error is None:
        width = labels.shape[1] if labels.ndim == 2 else -1
        types = _DTYPES.index(embeddings.dtype), _DTYPES.index(labels.dtype)
        form = [1, len(embeddings), embeddings.shape[1], *types, width]
    device = _device(embeddings, group)
    own = torch.tensor(form, device=device)
    out = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(out, own, group=group)
    return torch.stack(out).cpu()


def _device(embeddings: Any, group: Any) -> torch.device:
    if dist.get_backend(group) != "nccl":
        return torch.device("cpu")
    on_gpu = isinstance(embeddings, Tensor) and embeddings.is_cuda
    return embeddings.device if on_gpu else torch.device("cuda", torch.cuda.current_device())


def _agree(forms: Tensor) -> None:
    """All ranks bring rows of one form; the same error everywhere where they do not."""
    for rank, form in enumerate(forms.tolist()):
        if not form[0]:
            raise ValueError(f"embeddings or labels: rank {rank} could not take part, see its own error")
    rules = {
        2: "embeddings: expected one number of dimensions",
        3: "embeddings: expected one type",
        4: "labels: expected one type",
        5: "labels: expected one form",
    }
    for column, rule in rules.items():
        found = forms[:, column].tolist()
        if len(set(found)) > 1:
            shown = ", ".join(str(_DTYPES[each]) if column in (3, 4) else str(each) for each in found)
            raise ValueError(f"{rule} on all ranks, got {shown}")


class _Gather(torch.autograd.Function):
    """Rows of all ranks; the gradient of a row is the sum over ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], rank: int, group: Any) -> Tensor:
        ctx.sizes, ctx.rank, ctx.group = sizes, rank, group
        return _joined(rows, sizes, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        # a copy that may be summed in place, and half precision in float32 until all ranks are in
        half = gradient.dtype in (torch.float16, torch.bfloat16)
        total = gradient.to(torch.float32 if half else gradient.dtype, copy=True).contiguous()
        dist.all_reduce(total, group=ctx.group)
        first = sum(ctx.sizes[: ctx.rank])
        return total[first : first + ctx.sizes[ctx.rank]].to(gradient.dtype), None, None, None


def _joined(rows: Tensor, sizes: list[int], group: Any) -> Tensor:
    """Rows of all ranks. They travel as bytes, which every backend takes, and filled up to one length."""
    most = max(sizes)
    padded = rows.detach().new_zeros((most, *rows.shape[1:]))
    padded[: len(rows)] = rows.detach()
    if not padded.numel():
        return padded
    own = padded.reshape(-1).view(torch.uint8)
    out = [torch.empty_like(own) for _ in sizes]
    dist.all_gather(out, own, group=group)
    parts = [
        part.view(rows.dtype).reshape(padded.shape)[:size] for part, size in zip(out, sizes, strict=True)
    ]
    return torch.cat(parts)


def add_up(count: int, like: Tensor, group: Any = None) -> int:
    """The sum of a number over the ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return count
    total = torch.tensor([count], device=_device(like, group))
    dist.all_reduce(total, group=group)
    return int(total.item())
