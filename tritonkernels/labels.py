"""Who is of one class with whom, and the anchor-positive pairs that follow, on the device.

Single labels are dense class ids (int32) with the columns listed by class; label sets are bit words, and
two rows are of one class when they share a bit. Self-mining never takes a row as its own positive.
Memory: O(N + M + P). Nothing is read back: the number of pairs is a tensor, and a caller who wants exactly
that many slots reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tritonkernels.launching import Compilation, blocks, on_device


@dataclass(frozen=True)
class Labels:
    """Classes of anchors and columns; of `multi` only the bits are read, else only the classes."""

    anchor_class: torch.Tensor  # [N] int32, -1: no column has this class
    column_class: torch.Tensor  # [M] int32
    starts: torch.Tensor  # [M + 2] int64: where each class starts in `members`
    members: torch.Tensor  # [M] int64 columns by class, ascending within a class
    anchor_bits: torch.Tensor  # [N, W] int64
    column_bits: torch.Tensor  # [M, W] int64
    multi: bool
    own: bool  # anchors are the columns

    @property
    def words(self) -> int:
        return self.anchor_bits.shape[1]


def single(
    x: torch.Tensor,  # [N] int64
    y: torch.Tensor,  # [M] int64; x itself in self-mining
) -> Labels:
    """Dense ids for equal labels, by sorting."""
    ordered, members = torch.sort(y, stable=True)
    ids = torch.zeros(len(y), dtype=torch.int64, device=y.device)
    if len(y):
        ids[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    column_class = torch.empty_like(ids)
    column_class[members] = ids
    starts = torch.searchsorted(ids, torch.arange(len(y) + 2, device=y.device))
    anchor_class = column_class
    if x is not y and len(y):
        place = torch.searchsorted(ordered, x).clamp(max=len(y) - 1)
        anchor_class = torch.where(ordered[place] == x, ids[place], -1)
    elif x is not y:
        anchor_class = torch.full_like(x, -1)
    unread = torch.zeros(1, 1, dtype=torch.int64, device=y.device)
    classes = column_class.int()
    anchors = classes if x is y else anchor_class.int()
    return Labels(anchors, classes, starts, members, unread, unread, multi=False, own=x is y)


def multiple(
    x: torch.Tensor,  # [N, C] bool
    y: torch.Tensor,  # [M, C] bool; x itself in self-mining
) -> Labels:
    """Label sets as words of 64 bits."""
    y_bits = _bits(y)
    x_bits = y_bits if x is y else _bits(x)
    unread = torch.zeros(1, dtype=torch.int32, device=y.device)
    return Labels(
        unread, unread, unread.long(), unread.long(), x_bits, y_bits, multi=True, own=x is y
    )  # fmt: skip


def _bits(
    labels: torch.Tensor,  # [N, C] bool
) -> torch.Tensor:  # [N, W] int64
    words = max(1, blocks(labels.shape[1], 64))
    wide = torch.zeros(len(labels), words * 64, dtype=torch.uint8, device=labels.device)
    wide[:, : labels.shape[1]] = labels
    shifts = torch.arange(8, dtype=torch.uint8, device=labels.device)
    packed = (wide.view(len(labels), words * 8, 8) << shifts).sum(dim=2, dtype=torch.uint8)
    return packed.view(torch.int64)


@triton.jit
def shared(
    anchor_bits,  # [N, W] int64
    column_bits,  # [M, W] int64
    i,  # [R] int64
    j,  # [C] int64
    live_i,  # [R] bool
    live_j,  # [C] bool
    words,
):  # [R, C] bool
    """Whether rows share a label."""
    common = tl.full([i.shape[0], j.shape[0]], 0, tl.int64)
    for word in range(words):
        left = tl.load(anchor_bits + i * words + word, mask=live_i, other=0)
        right = tl.load(column_bits + j * words + word, mask=live_j, other=0)
        common |= left[:, None] & right[None, :]
    return common != 0


# ------------------------------------------------------------------ pairs


@triton.jit
def multi_pairs_kernel(
    anchor_bits,  # [N, W] int64
    column_bits,  # [M, W] int64
    counts,  # [N] int64, written where not LIST
    offsets,  # [N + 1] int64, read where LIST
    positives,  # [slots] int64, written where LIST
    anchors,
    columns,
    words,
    slots,
    OWN: tl.constexpr,
    COMBINATIONS: tl.constexpr,
    LIST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The positives of each anchor in ascending order: how many, or which."""
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = i < anchors
    found = tl.full([ROWS], 0, tl.int64)
    if LIST:
        found += tl.load(offsets + i, mask=live, other=0)
    for first in range(0, columns, COLUMNS):
        j = (first + tl.arange(0, COLUMNS)).to(tl.int64)
        positive = shared(anchor_bits, column_bits, i, j, live, j < columns, words)
        if OWN:
            positive = positive & (i[:, None] != j[None, :])
        if COMBINATIONS:
            positive = positive & (i[:, None] < j[None, :])
        one = tl.where(positive, 1, 0).to(tl.int64)
        if LIST:
            slot = found[:, None] + tl.cumsum(one, axis=1) - one
            tl.store(positives + slot, j[None, :] + slot * 0, mask=positive & (slot < slots))
        found += tl.sum(one, axis=1)
    if not LIST:
        tl.store(counts + i, found, mask=live)


@dataclass(frozen=True)
class PairsConfig:
    """Anchors a program, columns a step."""

    rows: int = 16
    columns: int = 64
    num_warps: int = 4


PAIRS = PairsConfig()


@dataclass(frozen=True)
class Pairs:
    """A slot per anchor-positive pair, by (anchor, positive); slots beyond the last pair repeat the last."""

    offsets: torch.Tensor  # [N + 1] int64: where each anchor's pairs start
    anchors: torch.Tensor  # [slots] int64
    positives: torch.Tensor  # [slots] int64

    @property
    def slots(self) -> int:
        return len(self.anchors)


def pair_offsets(labels: Labels, anchors: int, columns: int, combinations: bool) -> torch.Tensor:  # [N + 1]
    """Where each anchor's pairs start; the last entry is how many pairs there are."""
    if labels.multi:
        counts = torch.zeros(anchors, dtype=torch.int64, device=labels.anchor_bits.device)
        _multi_pairs(labels, anchors, columns, combinations, counts, None, None)
    else:
        classes = labels.anchor_class.long()
        counts = torch.where(classes < 0, 0, labels.starts[classes + 1] - labels.starts[classes.clamp(min=0)])
        if combinations:
            counts = counts - 1 - _ranks(labels)
        elif labels.own:
            counts = counts - 1
    offsets = torch.zeros(anchors + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    return offsets


def list_pairs(labels: Labels, offsets: torch.Tensor, slots: int, columns: int, combinations: bool) -> Pairs:
    """The first `slots` pairs."""
    anchors = len(offsets) - 1
    slot = torch.arange(slots, device=offsets.device)
    if slots == 0 or anchors == 0 or columns == 0:
        return Pairs(offsets, torch.zeros_like(slot), torch.zeros_like(slot))
    slot = torch.minimum(slot, (offsets[-1] - 1).clamp(min=0))
    anchor = torch.searchsorted(offsets[1:], slot, right=True).clamp(max=anchors - 1)
    if labels.multi:
        positives = torch.zeros_like(slot)
        _multi_pairs(labels, anchors, columns, combinations, None, offsets, positives)
        return Pairs(offsets, anchor, positives)
    place = slot - offsets[anchor]
    if labels.own:
        rank = _ranks(labels)[anchor]
        place = place + 1 + rank if combinations else place + (place >= rank).long()
    first = labels.starts[labels.anchor_class[anchor].long().clamp(min=0)]
    return Pairs(offsets, anchor, labels.members[(first + place).clamp(max=columns - 1)])


def _ranks(labels: Labels) -> torch.Tensor:  # [N] int64
    """Each row's place among the members of its class."""
    place = torch.empty_like(labels.members)
    place[labels.members] = torch.arange(len(place), device=place.device)
    return place - labels.starts[labels.column_class.long()]


def _multi_pairs(
    labels: Labels,
    anchors: int,
    columns: int,
    combinations: bool,
    counts: torch.Tensor | None,  # [N], to be filled
    offsets: torch.Tensor | None,  # [N + 1], to list
    positives: torch.Tensor | None,  # [slots], to be filled
) -> None:
    listing = positives is not None
    unread = labels.anchor_bits
    if anchors == 0:
        return
    with on_device(unread):
        multi_pairs_kernel[(blocks(anchors, PAIRS.rows),)](
            labels.anchor_bits, labels.column_bits, unread if counts is None else counts,
            unread if offsets is None else offsets, unread if positives is None else positives,
            anchors, columns, labels.words, 0 if positives is None else len(positives),
            OWN=labels.own, COMBINATIONS=combinations, LIST=listing,
            ROWS=PAIRS.rows, COLUMNS=PAIRS.columns, num_warps=PAIRS.num_warps,
        )  # fmt: skip


def compilations() -> Iterator[Compilation]:
    for own, combinations in ((True, False), (True, True), (False, False)):
        for listing in (False, True):
            yield Compilation(
                f"labels.multi_pairs[own={own},combinations={combinations},list={listing}]",
                multi_pairs_kernel,
                {**dict.fromkeys(("anchor_bits", "column_bits", "counts", "offsets", "positives"), "*i64"),
                 **dict.fromkeys(("anchors", "columns", "words", "slots"), "i32")},
                {"OWN": own, "COMBINATIONS": combinations, "LIST": listing,
                 "ROWS": PAIRS.rows, "COLUMNS": PAIRS.columns},
                {"num_warps": PAIRS.num_warps},
            )  # fmt: skip
