"""Who is of one class with whom, and the anchor-positive pairs that follow, on the device.

Single labels are dense class ids (int32) with the columns listed by class; label sets are bit words, and
two rows are of one class when they share a bit. Self-mining never takes a row as its own positive.
Memory: O(N + M + P). Nothing is read back: the number of pairs is a tensor, and a caller who wants exactly
that many slots reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tritonkernels.launching import Kernel, always, blocks, choices, on_device, padded, power_of_two


@dataclass(frozen=True)
class Labels:
    """Classes of anchors and columns; of `multi` only the bits are read, else only the classes."""

    anchor_class: torch.Tensor  # [N] int32, -1: no column has this class
    column_class: torch.Tensor  # [M] int32
    padded_class: torch.Tensor  # [Mp] int32: the same and -1 for the padding of operands
    packed_class: torch.Tensor  # [Mp] int32: likewise in the order of `members`
    starts: torch.Tensor  # [M + 2] int64: where each class starts in `members`
    members: torch.Tensor  # [M] int64 columns by class, ascending within a class
    places: torch.Tensor  # [M] int32: where each column stands in `members`
    anchor_bits: torch.Tensor  # [N, W] int64
    column_bits: torch.Tensor  # [M, W] int64
    multi: bool
    own: bool  # anchors are the columns

    @property
    def words(self) -> int:
        return self.anchor_bits.shape[1]


@triton.jit
def group_kernel(
    ordered,  # [M] int64, ascending labels
    members,  # [M] int64: whose they are
    padded_class,  # [Mp] int32
    packed_class,  # [Mp] int32
    places,  # [M] int32
    starts,  # [M + 2] int64
    count,
    padded_count,
    BLOCK: tl.constexpr,
):
    """Numbers the classes in one pass of one program: no more than a thousandth of what mining costs."""
    lane = tl.arange(0, BLOCK)
    classes = 0
    for first in range(0, padded_count, BLOCK):
        i = (first + lane).to(tl.int64)
        live = i < count
        label = tl.load(ordered + i, mask=live, other=0)
        begins = live & ((i == 0) | (label != tl.load(ordered + i - 1, mask=live & (i > 0), other=0)))
        one = begins.to(tl.int32)
        number = classes + tl.cumsum(one, axis=0) - 1
        member = tl.load(members + i, mask=live, other=0)
        tl.store(padded_class + tl.where(live, member, i), tl.where(live, number, -1), mask=i < padded_count)
        tl.store(packed_class + i, tl.where(live, number, -1), mask=i < padded_count)
        tl.store(places + member, i.to(tl.int32), mask=live)
        tl.store(starts + number, i, mask=begins)
        classes += tl.sum(one, axis=0)
    for first in range(0, count + 2, BLOCK):
        at = first + lane
        tl.store(starts + at, count + at.to(tl.int64) * 0, mask=(at >= classes) & (at < count + 2))


@triton.jit
def rank_kernel(
    labels,  # [M] int64
    ordered,  # [M] int64: the labels, ascending
    members,  # [M] int64: whose they are, ascending within a label
    count,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A stable sort by counting for each label those that come before it: for few labels the fastest."""
    i, lane = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    own = tl.load(labels + i, mask=i < count, other=0)
    before = tl.full([ROWS, BLOCK], 0, tl.int32)
    for first in range(0, count, BLOCK):
        j = first + lane
        other = tl.load(labels + j, mask=j < count, other=0x7FFFFFFFFFFFFFFF)[None, :]
        earlier = (other == own[:, None]) & (j[None, :] < i[:, None])
        before += ((other < own[:, None]) | earlier).to(tl.int32)
    place = tl.sum(before, axis=1)
    tl.store(ordered + place, own, mask=i < count)
    tl.store(members + place, i.to(tl.int64), mask=i < count)


@dataclass(frozen=True)
class RankConfig:
    """Labels a program ranks, and compares with in a step."""

    rows: int = 16
    block: int = 256
    num_warps: int = 4


RANK = RankConfig()
#: Up to here, labels compared with each other are sorted sooner than by radix.
MOST_RANKED = 4096
RANKING = Kernel(
    rank_kernel, dict.fromkeys(("labels", "ordered", "members"), "*i64"), [{}],
    always(num_warps=RANK.num_warps), always(ROWS=RANK.rows, BLOCK=RANK.block),
)  # fmt: skip


@dataclass(frozen=True)
class GroupConfig:
    """Labels a step of the one program."""

    block: int = 2048
    num_warps: int = 8


GROUP = GroupConfig()
#: Slots a program.
SLOTS = GroupConfig(block=256, num_warps=4)
GROUPING = Kernel(
    group_kernel,
    {**dict.fromkeys(("ordered", "members", "starts"), "*i64"),
     **dict.fromkeys(("padded_class", "packed_class", "places"), "*i32")},
    [{}], always(num_warps=GROUP.num_warps), always(BLOCK=GROUP.block),
    divisible=("padded_class", "packed_class"),
)  # fmt: skip


def single(
    x: torch.Tensor,  # [N] int64
    y: torch.Tensor,  # [M] int64; x itself in self-mining
) -> Labels:
    """Dense ids for equal labels, by sorting."""
    ordered, members = _sorted(y)
    count, wide = len(y), padded(len(y))
    padded_class, packed_class = torch.empty(2, wide, dtype=torch.int32, device=y.device)
    places = torch.empty(count, dtype=torch.int32, device=y.device)
    starts = torch.empty(count + 2, dtype=torch.int64, device=y.device)
    with on_device(y):
        GROUPING((1,), ordered, members, padded_class, packed_class, places, starts, count, wide)
    column_class = anchor_class = padded_class[:count]
    if x is not y and count:
        place = torch.searchsorted(ordered, x).clamp(max=count - 1)
        anchor_class = torch.where(ordered[place] == x, packed_class[place], -1)
    elif x is not y:
        anchor_class = torch.full_like(x, -1, dtype=torch.int32)
    unread = members[:1, None]
    return Labels(
        anchor_class, column_class, padded_class, packed_class, starts, members, places, unread, unread,
        multi=False, own=x is y,
    )  # fmt: skip


def _sorted(
    labels: torch.Tensor,  # [M] int64
) -> tuple[torch.Tensor, torch.Tensor]:  # [M] int64 each: the labels ascending, whose they are
    if not 0 < len(labels) <= MOST_RANKED:
        ordered, members = torch.sort(labels, stable=True)
        return ordered, members
    labels = labels.contiguous()
    ordered, members = torch.empty(2, len(labels), dtype=torch.int64, device=labels.device)
    with on_device(labels):
        RANKING((blocks(len(labels), RANK.rows),), labels, ordered, members, len(labels))
    return ordered, members


def multiple(
    x: torch.Tensor,  # [N, C] bool
    y: torch.Tensor,  # [M, C] bool; x itself in self-mining
) -> Labels:
    """Label sets as words of 64 bits."""
    y_bits = _bits(y)
    x_bits = y_bits if x is y else _bits(x)
    unread = torch.zeros(1, dtype=torch.int32, device=y.device)
    return Labels(
        unread, unread, unread, unread, unread.long(), unread.long(), unread, x_bits, y_bits, multi=True,
        own=x is y,
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
    slots: tl.int64,
    own,  # 1 in self-mining
    combinations,  # 1: only positives behind their anchor
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
        positive = positive & (tl.where(own != 0, i, -1)[:, None] != j[None, :])
        positive = positive & (tl.where(combinations != 0, i, -1)[:, None] < j[None, :])
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
_BITS = ("anchor_bits", "column_bits", "counts", "offsets", "positives")
MULTI_PAIRS = Kernel(
    multi_pairs_kernel, {**dict.fromkeys(_BITS, "*i64"), "slots": "i64"}, choices(LIST=(False, True)),
    always(num_warps=PAIRS.num_warps), always(ROWS=PAIRS.rows, COLUMNS=PAIRS.columns),
)  # fmt: skip


@dataclass(frozen=True)
class Pairs:
    """A slot per anchor-positive pair, by (anchor, positive); slots beyond the last pair repeat the last."""

    offsets: torch.Tensor  # [N + 1] int64: where each anchor's pairs start
    anchors: torch.Tensor  # [slots] int64
    positives: torch.Tensor  # [slots] int64

    @property
    def slots(self) -> int:
        return len(self.anchors)


@triton.jit
def offsets_kernel(
    anchor_class,  # [N] int32
    starts,  # [classes + 1] int64
    places,  # [M] int32, read for combinations alone
    offsets,  # [N + 1] int64
    anchors,
    own,  # 1 in self-mining
    combinations,  # 1: only positives behind their anchor
    BLOCK: tl.constexpr,
):
    """Where each anchor's pairs start, in one program: sums over the sizes of the classes."""
    lane = tl.arange(0, BLOCK)
    pairs = tl.full([1], 0, tl.int64)
    tl.store(offsets + tl.arange(0, 1), pairs)
    for first in range(0, anchors, BLOCK):
        i = first + lane
        number = tl.load(anchor_class + i, mask=i < anchors, other=-1)
        live = number >= 0
        begin = tl.load(starts + number, mask=live, other=0)
        count = tl.load(starts + number + 1, mask=live, other=0) - begin
        count -= own
        if combinations != 0:
            count -= tl.load(places + i, mask=live, other=0) - begin
        count = tl.where(live, count, 0)
        tl.store(offsets + 1 + i, pairs + tl.cumsum(count, axis=0), mask=i < anchors)
        pairs += tl.sum(count, axis=0)


@triton.jit
def pairs_kernel(
    anchor_class,  # [N] int32
    starts,  # [classes + 1] int64
    members,  # [M] int64
    places,  # [M] int32, read in self-mining alone
    offsets,  # [N + 1] int64
    pair_anchors,  # [slots] int64
    positives,  # [slots] int64
    anchors,
    columns,
    slots: tl.int64,
    steps,  # a power of two from N + 1 on
    own,  # 1 in self-mining
    combinations,  # 1: only positives behind their anchor
    BLOCK: tl.constexpr,
):
    """The pair of each slot: its anchor by binary search, its positive by its place in the class."""
    slot = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    pair = tl.minimum(slot, tl.maximum(tl.load(offsets + anchors) - 1, 0))
    i = tl.full([BLOCK], 0, tl.int64)  # how many anchors' pairs all come before
    step = steps
    while step > 0:
        inside = i + step <= anchors
        before = inside & (tl.load(offsets + i + step, mask=inside, other=0) <= pair)
        i = tl.where(before, i + step, i)
        step = step // 2
    i = tl.minimum(i, anchors - 1)
    begin = tl.load(starts + tl.maximum(tl.load(anchor_class + i), 0))
    place = pair - tl.load(offsets + i)
    if own != 0:
        rank = tl.load(places + i) - begin
        place += tl.where(combinations != 0, 1 + rank, (place >= rank).to(tl.int64))
    positive = tl.load(members + tl.minimum(begin + place, columns - 1))
    tl.store(pair_anchors + slot, i, mask=slot < slots)
    tl.store(positives + slot, positive, mask=slot < slots)


_PAIR_TYPES = dict.fromkeys(("starts", "members", "offsets", "pair_anchors", "positives"), "*i64")
_PAIR_TYPES |= {**dict.fromkeys(("anchor_class", "places"), "*i32"), "slots": "i64"}
OFFSETS = Kernel(
    offsets_kernel, {name: _PAIR_TYPES[name] for name in ("anchor_class", "starts", "places", "offsets")},
    [{}], always(num_warps=GROUP.num_warps), always(BLOCK=GROUP.block),
)  # fmt: skip
PAIRING = Kernel(
    pairs_kernel, _PAIR_TYPES, [{}], always(num_warps=SLOTS.num_warps), always(BLOCK=SLOTS.block)
)  # fmt: skip


def pair_offsets(labels: Labels, anchors: int, columns: int, combinations: bool) -> torch.Tensor:  # [N + 1]
    """Where each anchor's pairs start; the last entry is how many pairs there are."""
    if labels.multi:
        counts = torch.zeros(anchors, dtype=torch.int64, device=labels.anchor_bits.device)
        _multi_pairs(labels, anchors, columns, combinations, counts, None, None)
        offsets = torch.zeros(anchors + 1, dtype=torch.int64, device=counts.device)
        torch.cumsum(counts, 0, out=offsets[1:])
        return offsets
    offsets = torch.empty(anchors + 1, dtype=torch.int64, device=labels.starts.device)
    with on_device(offsets):
        OFFSETS(
            (1,), labels.anchor_class, labels.starts, labels.places, offsets, anchors, int(labels.own),
            int(combinations),
        )  # fmt: skip
    return offsets


def list_pairs(labels: Labels, offsets: torch.Tensor, slots: int, columns: int, combinations: bool) -> Pairs:
    """The first `slots` pairs."""
    anchors, device = len(offsets) - 1, offsets.device
    if slots == 0 or anchors == 0 or columns == 0:
        nothing = torch.zeros(slots, dtype=torch.int64, device=device)
        return Pairs(offsets, nothing, nothing)
    if labels.multi:
        slot = torch.minimum(torch.arange(slots, device=device), (offsets[-1] - 1).clamp(min=0))
        anchor = torch.searchsorted(offsets[1:], slot, right=True).clamp(max=anchors - 1)
        positives = torch.zeros_like(slot)
        _multi_pairs(labels, anchors, columns, combinations, None, offsets, positives)
        return Pairs(offsets, anchor, positives)
    found = torch.empty(2, slots, dtype=torch.int64, device=device)
    with on_device(found):
        PAIRING(
            (blocks(slots, SLOTS.block),), labels.anchor_class, labels.starts, labels.members, labels.places,
            offsets, found[0], found[1], anchors, columns, slots, power_of_two(anchors + 1), int(labels.own),
            int(combinations),
        )  # fmt: skip
    return Pairs(offsets, found[0], found[1])


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
        MULTI_PAIRS(
            (blocks(anchors, PAIRS.rows),), labels.anchor_bits, labels.column_bits,
            unread if counts is None else counts, unread if offsets is None else offsets,
            unread if positives is None else positives, anchors, columns, labels.words,
            0 if positives is None else len(positives), int(labels.own), int(combinations), LIST=listing,
        )  # fmt: skip
