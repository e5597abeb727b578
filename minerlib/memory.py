"""A memory of past batches to mine against (Wang et al., "Cross-batch memory for embedding learning")."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minerlib import inputs
from minerlib.against import mine_rows
from minerlib.distributed import GatheredTriplets, add_up, gather
from minerlib.miners import BatchHard, Miner


class CrossBatchMemory(torch.nn.Module):
    """Mines each batch against itself and the rows of past batches, then remembers it.

        memory = CrossBatchMemory(8192, 128, SemiHard(margin=0.2))
        found = memory(embeddings, labels)
        loss = triplet_margin(found.embeddings, found.triplets, margin=0.2)

    The rows mined are the batch, with its gradients, and after it what is remembered, oldest first. Anchors
    are the rows of the batch. A row is never its own positive: the batch is remembered after it was mined,
    and within it a row is left out by its index, so duplicates stay legal. The newest `size` rows are kept.

    With torch.distributed running, the batch is that of all ranks, rank after rank, and every rank remembers
    the same rows; `found.first` is where this rank's rows begin, and what `minerlib.distributed.gather` says
    of backward passes holds. `distributed=False` keeps the ranks apart.

    Args:
        size: rows to remember, at least 1.
        dimension: D.
        miner: one of `minerlib.miners`; `BatchHard()` by default.
        label_width: C for label sets `[N, C]` bool; None for one integer label a row.
        dtype: what rows are remembered in. They are mined in the type of the batch.

    `state_dict` holds the rows, their labels, where the ring stands and how often its miner was called, so a
    run goes on exactly. Rows that are not finite are refused by mining and never remembered.

    Raises `TypeError` or `ValueError` that names the argument. Memory: size * D, the batch and the remembered
    rows once more while they are mined, and what `mine` needs.

    >>> memory = CrossBatchMemory(4, 1, BatchHard())
    >>> _ = memory(torch.tensor([[0.0], [5.0]]), torch.tensor([0, 1]))
    >>> memory(torch.tensor([[1.0]]), torch.tensor([0])).triplets
    Triplets(anchors=tensor([0]), positives=tensor([1]), negatives=tensor([2]))
    """

    rows: Tensor  # [size, D]
    labels: Tensor  # [size] int64 or [size, C] bool
    written: Tensor  # [] int64: rows written since the start

    def __init__(
        self,
        size: int,
        dimension: int,
        miner: Miner | None = None,
        *,
        label_width: int | None = None,
        dtype: torch.dtype = torch.float32,
        distributed: bool = True,
    ) -> None:
        super().__init__()
        self.size = inputs.integer("size", size, 1, 2**62)
        self.dimension = inputs.integer("dimension", dimension, 1, 2**62)
        self.miner = BatchHard() if miner is None else miner
        if not isinstance(self.miner, Miner):
            raise TypeError(f"miner: expected one of minerlib.miners, got {type(miner).__name__}")
        if not getattr(self.miner, "compact", True):
            raise ValueError("miner: expected compact=True, got compact=False")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise TypeError(f"dtype: expected a floating type, got {dtype}")
        self.distributed = inputs.boolean("distributed", distributed)
        shape: tuple[int, ...] = (self.size,)
        if label_width is not None:
            shape = (self.size, inputs.integer("label_width", label_width, 1, 2**62))
        self.register_buffer("rows", torch.zeros(self.size, self.dimension, dtype=dtype))
        self.register_buffer(
            "labels", torch.zeros(shape, dtype=torch.int64 if label_width is None else torch.bool)
        )
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """Rows remembered."""
        return min(int(self.written), self.size)

    def forward(
        self,
        embeddings: Tensor,  # [n, D]
        labels: Tensor,  # [n] or [n, C] bool
        remember: bool = True,
    ) -> GatheredTriplets:
        """Mine the batch, then remember it unless told otherwise."""
        self._check(embeddings, labels)
        labels = labels.to(self.labels.dtype)
        batch, batch_labels, first = (
            gather(embeddings, labels) if self.distributed else (embeddings, labels, 0)
        )
        past, past_labels = self.past()
        rows = torch.cat((batch, past.to(batch)))
        row_labels = torch.cat((batch_labels, past_labels.to(batch_labels)))
        options = self.miner.options()
        options.pop("compact", None)
        found = mine_rows(
            rows.detach(), row_labels, self.miner.strategy, first, first + len(embeddings), **options
        )
        self.miner.calls += 1
        count = len(found.anchors)
        total = add_up(count, rows) if self.distributed else count
        if remember:
            self._write(batch.detach(), batch_labels)
        return GatheredTriplets(rows, row_labels, found, first, total)

    def past(self) -> tuple[Tensor, Tensor]:  # [M, D], [M] or [M, C]
        """What is remembered, oldest first."""
        count = len(self)
        start = int(self.written) - count
        order = (torch.arange(count, device=self.rows.device) + start) % self.size
        return self.rows[order], self.labels[order]

    def reset(self) -> None:
        """Forget everything."""
        self.rows.zero_()
        self.labels.zero_()
        self.written.zero_()

    @torch.no_grad()
    def _write(self, rows: Tensor, labels: Tensor) -> None:
        skipped = max(0, len(rows) - self.size)  # of a batch larger than the ring its end is kept
        place = (torch.arange(skipped, len(rows), device=self.rows.device) + self.written) % self.size
        self.rows[place] = rows[skipped:].to(self.rows)
        self.labels[place] = labels[skipped:].to(self.labels)
        self.written += len(rows)

    def _check(self, embeddings: Any, labels: Any) -> None:
        for name, value in (("embeddings", embeddings), ("labels", labels)):
            if not isinstance(value, Tensor):
                raise TypeError(f"{name}: expected a torch tensor, got {type(value).__name__}")
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dimension:
            raise ValueError(
                f"embeddings: expected shape [rows, {self.dimension}], got {list(embeddings.shape)}"
            )
        single = self.labels.ndim == 1
        if labels.is_floating_point() or labels.is_complex() or (not single and labels.dtype != torch.bool):
            raise TypeError(
                f"labels: expected {'integers or bool' if single else 'bool'}, got {labels.dtype}"
            )
        if labels.shape != (len(embeddings), *self.labels.shape[1:]):
            form = [len(embeddings), *self.labels.shape[1:]]
            raise ValueError(f"labels: expected shape {form}, got {list(labels.shape)}")

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": self.miner.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.miner.calls = state["calls"]

    def extra_repr(self) -> str:
        return f"{self.size}, {self.dimension}, {self.miner}"
