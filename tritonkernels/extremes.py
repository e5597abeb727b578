"""extremes: per anchor the nearest and the farthest positive, the nearest and the farthest negative.

anchors [N, D], columns [M, D], labels -> found [4, N] int64, -1 for none. Decided on canonical float64
selection values, ties by the lowest index.

`filter_kernel` multiplies tiles in float16 with both sides in the order of their classes, so that positives
lie in a narrow range of columns. Each lane of a tile (two neighbouring columns of it) keeps its best
value, where it was, and its second best. At the end the best lanes become a short list, and `rests` bound
from below what is not listed: in the two lanes where the least of it lies, and elsewhere. Values are signed
so that smaller is better: near - a.b is a lower bound for the nearest column, a.b - far for the farthest
(filter.py). `decide_kernel` keeps the listed columns whose lower bound does not exceed the least upper
bound; one is certified, a few are compared in float64, and where a rest does not exceed the bound either
those lanes' columns, or all, are computed in float64.
Memory: N * splits * 52 bytes beside the operands. Limits: M < 2^31. Source: EXT eq. 3, 9-12; DESIGN of
csrc/cpu.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from tritonkernels import filter as filters
from tritonkernels.canonical import metric_norms, pair_selections
from tritonkernels.filter import USABLE, Filter, load_anchors, load_columns, tile_dots
from tritonkernels.labels import Labels, shared
from tritonkernels.launching import (
    ALL_REGISTERS,
    CANONICAL,
    KINDS,
    Kernel,
    always,
    blocks,
    choices,
    on_device,
    power_of_two,
)

NEAREST_POSITIVE, FARTHEST_POSITIVE, NEAREST_NEGATIVE, FARTHEST_NEGATIVE = range(4)

#: A value that nothing exceeds: what is no candidate.
NEVER = tl.constexpr(float("inf"))


# ------------------------------------------------------------------ tiles


@triton.jit
def _keep(best, second, place, value, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Offers a tile's values to the lanes, each of two neighbouring columns: a thread holds both."""
    even, odd = tl.split(tl.reshape(value, [ROWS, COLUMNS // 2, 2]))
    lower, higher = tl.minimum(even, odd), tl.maximum(even, odd)
    second = tl.minimum(tl.minimum(second, higher), tl.maximum(lower, best))
    place = tl.where(lower < best, tl.where(odd < even, column + 1, column), place)
    return tl.minimum(best, lower), second, place


@triton.jit
def _wanted(value, far_value, same, own_place, at, POSITIVE: tl.constexpr):
    """A tile's values without those that are not asked for."""
    wanted = same if POSITIVE else ~same
    wanted = wanted & (own_place[:, None] != at[None, :])
    return tl.where(wanted, value, NEVER), tl.where(wanted, far_value, NEVER)


@triton.jit
def _store_list(
    best, second, place, row, split, splits, values, found, rests, rest_lanes,
    ROWS: tl.constexpr, LANES: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """The best columns of the KEPT best lanes, and lower bounds of all else: in the two lanes where the least
    of it lies, and elsewhere."""
    rows = row + tl.arange(0, ROWS)
    lane = tl.arange(0, LANES)
    for c in tl.static_range(KEPT):
        least, at = tl.min(best, axis=1), tl.argmin(best, axis=1)
        chosen = lane[None, :] == at[:, None]
        column = tl.sum(tl.where(chosen, place, 0), axis=1) + 2 * at
        slot = (rows * splits + split) * KEPT + c
        tl.store(values + slot, least)
        tl.store(found + slot, tl.where(least < NEVER, column, -1))
        best = tl.where(chosen, NEVER, best)
    rest = tl.minimum(best, second)
    slot = rows * splits + split
    for c in tl.static_range(2):
        at = tl.argmin(rest, axis=1)
        tl.store(rests + 3 * slot + c, tl.min(rest, axis=1))
        tl.store(rest_lanes + 2 * slot + c, at)
        rest = tl.where(lane[None, :] == at[:, None], NEVER, rest)
    tl.store(rests + 3 * slot + 2, tl.min(rest, axis=1))


@triton.jit
def filter_kernel(
    a,  # [Np, Dp] float16
    b,  # [Mp, Dp] float16
    edges,  # [Mp] float32: where not BOTH near, or far
    far,  # [Mp] float32
    anchor_class,  # [Np] int32, ascending
    column_class,  # [Mp] int32, ascending
    starts,  # [classes + 1] int64
    anchor_bits,  # [Np, W] int64
    column_bits,  # [Mp, W] int64
    values,  # [Np, splits, KEPT] float32
    places,  # [Np, splits, KEPT] int32, packed positions
    rests,  # [Np, splits, 3] float32
    rest_lanes,  # [Np, splits, 2] int32
    far_values,  # of the farthest, where BOTH
    far_places,
    far_rests,
    far_rest_lanes,
    anchors,
    columns,
    dims,
    words,
    splits,
    own,  # 1 in self-mining
    sign,  # where not BOTH: 1 for the nearest, -1 for the farthest
    POSITIVE: tl.constexpr,
    BOTH: tl.constexpr,
    MULTI: tl.constexpr,
    WHOLE: tl.constexpr,  # one step holds the whole row
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    KEPT: tl.constexpr,
):
    row, split = tl.program_id(0).to(tl.int64) * ROWS, tl.program_id(1)
    rows, lane = row + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    LANES: tl.constexpr = COLUMNS // 2
    best = tl.full([ROWS, LANES], NEVER, tl.float32)
    second, place = best, tl.full([ROWS, LANES], 0, tl.int32)
    far_best, far_second, far_place = best, best, place
    factor = sign.to(tl.float32)
    own_place = tl.where(own != 0, rows, -1).to(tl.int32)
    first, last = 0, columns
    if MULTI:
        own_class = rows * 0
    else:
        own_class = tl.load(anchor_class + rows)
        lowest = tl.load(anchor_class + row)
        highest = tl.load(anchor_class + tl.minimum(row + ROWS, anchors) - 1)
        begin = tl.load(starts + tl.maximum(lowest, 0)).to(tl.int32)
        end = tl.load(starts + highest + 1).to(tl.int32)
        if POSITIVE:
            first, last = begin // COLUMNS * COLUMNS, end
    if WHOLE:
        left = load_anchors(a, row, dims, 0, ROWS, DEPTH)
    for column in range(first + split * COLUMNS, last, splits * COLUMNS):
        at = column + lane
        if WHOLE:
            right = load_columns(b, column, dims, 0, COLUMNS, DEPTH)
            dots = tl.dot(left, right, input_precision="ieee")
        else:
            dots = tile_dots(a, b, row, column, dims, ROWS, COLUMNS, DEPTH, "ieee")
        edge = tl.load(edges + at)[None, :]
        if BOTH:
            value, far_value = edge - dots, dots - tl.load(far + at)[None, :]
        else:  # one multiply-add: products with 1 or -1 are exact
            value = factor * edge - factor * dots
            far_value = value
        if MULTI:
            j = at.to(tl.int64)
            everyone = rows >= 0
            same = shared(anchor_bits, column_bits, rows, j, everyone, j >= 0, words)
            value, far_value = _wanted(value, far_value, same, own_place, at, POSITIVE)
        elif (column < end) & (column + COLUMNS > begin):  # other tiles hold no positive
            same = own_class[:, None] == tl.load(column_class + at)[None, :]
            value, far_value = _wanted(value, far_value, same, own_place, at, POSITIVE)
        best, second, place = _keep(best, second, place, value, column, ROWS, COLUMNS)
        if BOTH:
            far_best, far_second, far_place = _keep(
                far_best, far_second, far_place, far_value, column, ROWS, COLUMNS
            )
    _store_list(best, second, place, row, split, splits, values, places, rests, rest_lanes,
                ROWS, LANES, KEPT)  # fmt: skip
    if BOTH:
        _store_list(far_best, far_second, far_place, row, split, splits, far_values, far_places, far_rests,
                    far_rest_lanes, ROWS, LANES, KEPT)  # fmt: skip


# ------------------------------------------------------------------ float64


@triton.jit
def decide_kernel(
    x,  # [N, D]
    y,  # [M, D]
    x_largest,  # [N] float64, negative for rows that take no part
    y_largest,  # [M] float64
    x_norms,  # [N] float64, for the cosine
    y_norms,  # [M] float64
    parameters,  # [4] float64 of the filter
    x_errors,  # [Np] float32, packed order
    y_errors,  # [Mp] float32, packed order
    x_order,  # [N] int64: packed row -> row, where not MULTI
    y_order,  # [M] int64
    anchor_class,  # [Np] int32, packed order
    column_class,  # [Mp] int32, packed order
    starts,  # [classes + 1] int64
    anchor_bits,  # [Np, W] int64, packed order
    column_bits,  # [Mp, W] int64, packed order
    values,  # [Np, splits, KEPT] float32
    listed,  # [Np, splits, KEPT] int32
    rests,  # [Np, splits, 3] float32
    rest_lanes,  # [Np, splits, 2] int32
    found,  # [N] int64
    columns,
    dims,
    words,
    splits,
    tile,  # columns of the filter's tile
    own,  # 1 in self-mining
    positive,  # 1: among the positives
    exact,
    sign,  # 1 for the nearest, -1 for the farthest
    MULTI: tl.constexpr,
    COSINE: tl.constexpr,
    SPLITS: tl.constexpr,  # at most so many
    KEPT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    packed_row = tl.program_id(0).to(tl.int64)
    row = packed_row
    if not MULTI:
        row = tl.load(x_order + packed_row)
    lane, split = tl.arange(0, SPLITS * KEPT), tl.arange(0, SPLITS)
    slot, there = packed_row * splits * KEPT + lane, lane < splits * KEPT
    value = tl.load(values + slot, mask=there, other=NEVER).to(tl.float64)
    place = tl.load(listed + slot, mask=there, other=-1).to(tl.int64)
    bounds, bounded = 3 * (packed_row * splits + split), split < splits
    rest = tl.load(rests + bounds, mask=bounded, other=NEVER).to(tl.float64)
    later = tl.load(rests + bounds + 1, mask=bounded, other=NEVER).to(tl.float64)
    last_rest = tl.load(rests + bounds + 2, mask=bounded, other=NEVER).to(tl.float64)
    # The least two of all splits' rests, and the least of the others.
    nearest_rest, split_of_nearest = tl.min(rest, axis=0), tl.argmin(rest, axis=0)
    taken = split == split_of_nearest
    rest, later = tl.where(taken, later, rest), tl.where(taken, last_rest, later)
    second_rest, split_of_second = tl.min(rest, axis=0), tl.argmin(rest, axis=0)
    beyond = tl.min(tl.where(split == split_of_second, later, rest), axis=0)
    live = place >= 0
    place = tl.maximum(place, 0)
    column = place
    if not MULTI:
        column = tl.load(y_order + place, mask=live, other=0)
    error = tl.load(x_errors + packed_row) + tl.load(y_errors + place, mask=live, other=0.0)
    error = tl.where(exact != 0, error.to(tl.float64), 0.0)
    bound = tl.min(tl.where(live, value + 2.0 * error, NEVER), axis=0)
    live = live & (value <= bound)
    open_ = tl.load(parameters + USABLE) == 0.0
    whole = ((beyond < NEVER) & (beyond <= bound) & (exact != 0)) | open_
    hidden = ((nearest_rest < NEVER) & (nearest_rest <= bound) & (exact != 0)) | open_
    takes_part = tl.load(x_largest + row) >= 0
    count = tl.sum(tl.where(live, 1, 0), axis=0)
    best = tl.min(tl.where(live, column, columns), axis=0).to(tl.int64)
    if takes_part & (hidden | ((count > 1) & (exact != 0))):
        i = row + column * 0
        selection = sign * pair_selections(x, y, x_norms, y_norms, i, column, live, dims, COSINE)
        selection = tl.where(live, selection, NEVER)
        least = tl.min(selection, axis=0)
        best = tl.min(tl.where(live & (selection == least), column, columns), axis=0).to(tl.int64)
        if hidden:
            first, stride, last, shift = 0, 1, columns, 0
            if MULTI:
                lane_alone = not whole
            else:
                lane_alone = (not whole) & (positive == 0)  # the positives of a class are few
                if positive != 0:
                    own_class = tl.load(anchor_class + packed_row)
                    first = tl.load(starts + tl.maximum(own_class, 0)).to(tl.int32)
                    last = tl.load(starts + own_class + 1).to(tl.int32)
            turns = 1
            if lane_alone & (second_rest < NEVER) & (second_rest <= bound):
                turns = 2
            for turn in range(turns):
                if lane_alone:
                    in_split = tl.where(turn == 0, split_of_nearest, split_of_second)
                    number = tl.where((turn == 1) & (split_of_second == split_of_nearest), 1, 0)
                    rest_lane = tl.load(rest_lanes + 2 * (packed_row * splits + in_split) + number)
                    first, stride, shift = in_split * tile + 2 * rest_lane, splits * tile, 1
                other, where = _among(
                    x, y, y_largest, x_norms, y_norms, y_order, anchor_class, column_class, anchor_bits,
                    column_bits, row, packed_row, first, stride, shift, last, columns, dims, words, own,
                    positive, sign, MULTI, COSINE, COLUMNS,
                )  # fmt: skip
                best = tl.where((other < least) | ((other == least) & (where < best)), where, best)
                least = tl.minimum(least, other)
    tl.store(found + row, tl.where(takes_part & (best < columns), best, -1))


@triton.jit
def _among(
    x, y, y_largest, x_norms, y_norms, y_order, anchor_class, column_class, anchor_bits, column_bits,
    row, packed_row, first, stride, shift, last, columns, dims, words, own, positive, sign,
    MULTI: tl.constexpr, COSINE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The best of some columns by canonical values, and its value; `columns` where there is none.

    They stand in runs of 2^shift, every `stride` packed places from `first` on, before `last`.
    """
    lane = tl.arange(0, COLUMNS)
    best = tl.full([COLUMNS], NEVER, tl.float64)
    where = tl.full([COLUMNS], 0, tl.int64) + columns
    own_class = 0
    if not MULTI:
        own_class = tl.load(anchor_class + packed_row)
    count = ((last - first + stride - 1) // stride) << shift
    for start in range(0, count, COLUMNS):
        at = start + lane
        place = (first + (at >> shift) * stride + (at & ((1 << shift) - 1))).to(tl.int64)
        live = (at < count) & (place < last)
        if MULTI:
            common = tl.full([COLUMNS], 0, tl.int64)
            for word in range(words):
                bits = tl.load(column_bits + place * words + word, mask=live, other=0)
                common |= bits & tl.load(anchor_bits + packed_row * words + word)
            same = common != 0
        else:
            same = tl.load(column_class + place, mask=live, other=-1) == own_class
        live = live & tl.where(positive != 0, same, ~same) & (place != tl.where(own != 0, packed_row, -1))
        column = place
        if not MULTI:
            column = tl.load(y_order + place, mask=live, other=0)
        live = live & (tl.load(y_largest + column, mask=live, other=-1.0) >= 0)
        i = row + column * 0
        selection = sign * pair_selections(x, y, x_norms, y_norms, i, column, live, dims, COSINE)
        better = live & ((selection < best) | ((selection == best) & (column < where)))
        best, where = tl.where(better, selection, best), tl.where(better, column, where)
    least = tl.min(best, axis=0)
    return least, tl.min(tl.where(best == least, where, columns), axis=0).to(tl.int64)


# ------------------------------------------------------------------ launcher


@dataclass(frozen=True)
class ExtremesConfig:
    """Tile of the filter, candidates kept of a split, columns a step of a whole row."""

    rows: int = 64
    columns: int = 64
    kept: int = 4
    num_warps: int = 8
    num_stages: int = 3
    row_columns: int = 128
    decide_warps: int = 4

    def filter_warps(self, hip: bool) -> int:
        """AMD's warps hold twice as many threads."""
        return self.num_warps // 2 if hip else self.num_warps


#: Three programs fit a multiprocessor of sm_90, and one multiplies while the others compare. On an H200 twice
#: the rows and warps were 4 % faster with 128 registers a thread, which are too few on sm_80 and sm_100.
ONE_SIDE = ExtremesConfig(num_warps=4)
#: Two lists, or the words of label sets, take more registers.
BOTH_SIDES = LABEL_SETS = ExtremesConfig()
LABEL_SETS_BOTH = ExtremesConfig(columns=32)
#: Programs that fill a large GPU twice over; fewer rows than that split the columns.
PROGRAMS = 264
MOST_SPLITS = 16


def _config(both: bool, multi: bool) -> ExtremesConfig:
    if multi:
        return LABEL_SETS_BOTH if both else LABEL_SETS
    return BOTH_SIDES if both else ONE_SIDE


def _filter_options(hip: bool, POSITIVE: bool, BOTH: bool, MULTI: bool, **_: Any) -> dict[str, int]:
    config = _config(BOTH, MULTI)
    options = {"num_warps": config.filter_warps(hip), "num_stages": config.num_stages}
    return {**options, **ALL_REGISTERS} if POSITIVE else options


def _filter_constants(BOTH: bool, MULTI: bool, **_: Any) -> dict[str, int]:
    config = _config(BOTH, MULTI)
    return {"ROWS": config.rows, "COLUMNS": config.columns, "KEPT": config.kept}


_DOUBLES = ("x_largest", "y_largest", "x_norms", "y_norms", "parameters")
_LABELS = {**dict.fromkeys(("starts", "anchor_bits", "column_bits"), "*i64"),
           **dict.fromkeys(("anchor_class", "column_class"), "*i32")}  # fmt: skip
FILTER = Kernel(
    filter_kernel,
    {"a": "*fp16", "b": "*fp16", **_LABELS,
     **dict.fromkeys(("places", "rest_lanes", "far_places", "far_rest_lanes"), "*i32"),
     **dict.fromkeys(("edges", "far", "values", "rests", "far_values", "far_rests"), "*fp32")},
    [{**choice, "WHOLE": whole, "DEPTH": depth}
     for choice in choices(POSITIVE=(False, True), BOTH=(False, True), MULTI=(False, True))
     for whole, depth in ((True, 64), (True, 128), (False, 64))],
    _filter_options, _filter_constants,
    ("a", "b", "edges", "far", "values", "places", "rests", "rest_lanes", "far_values", "far_places",
     "far_rests", "far_rest_lanes", "dims"),
)  # fmt: skip
DECIDE = Kernel(
    decide_kernel,
    {"x": "*kind", "y": "*kind", **dict.fromkeys(_DOUBLES, "*fp64"), **_LABELS,
     **dict.fromkeys(("listed", "rest_lanes"), "*i32"),
     **dict.fromkeys(("x_errors", "y_errors", "values", "rests"), "*fp32"),
     **dict.fromkeys(("x_order", "y_order", "found"), "*i64")},
    choices(kind=KINDS, MULTI=(False, True), COSINE=(False, True), SPLITS=(1, MOST_SPLITS)),
    always(num_warps=ONE_SIDE.decide_warps, **ALL_REGISTERS, **CANONICAL),
    always(KEPT=ONE_SIDE.kept, COLUMNS=ONE_SIDE.row_columns),
)  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """What the families take: validated rows with the facts that every one of them needs."""

    x: torch.Tensor  # [N, D], contiguous
    y: torch.Tensor  # [M, D]; x itself where they are the same rows
    x_largest: torch.Tensor  # [N] float64, of filter.inspect
    y_largest: torch.Tensor  # [M] float64
    metric: str


def extremes(rows: Rows, labels: Labels, wanted: Iterable[int], exact: bool = True) -> torch.Tensor:
    """found [4, N] int64; rows that are not wanted hold -1."""
    wanted = set(wanted)
    x, y = rows.x, rows.y
    found = torch.full((4, len(x)), -1, dtype=torch.int64, device=x.device)
    if len(x) == 0 or len(y) == 0 or not wanted:
        return found
    plan = _Plan.of(rows, labels)
    with on_device(x):
        for positive in (True, False):
            side = {extreme for extreme in wanted if (extreme < NEAREST_NEGATIVE) == positive}
            if side:
                plan.run(rows, labels, positive, sorted(side), found, exact)
    return found


@dataclass(frozen=True)
class _Plan:
    """Operands and labels in the order of the classes."""

    operands: Filter
    x_order: torch.Tensor | None
    y_order: torch.Tensor | None
    x_norms: torch.Tensor
    y_norms: torch.Tensor
    anchor_class: torch.Tensor  # [Np] int32
    column_class: torch.Tensor  # [Mp] int32
    anchor_bits: torch.Tensor  # [Np, W] int64
    column_bits: torch.Tensor  # [Mp, W] int64

    @classmethod
    def of(cls, rows: Rows, labels: Labels) -> _Plan:
        x_order = y_order = None
        if not labels.multi:
            y_order = labels.members
            x_order = y_order if labels.own else torch.sort(labels.anchor_class, stable=True)[1]
        norms = metric_norms(rows.x, rows.y, rows.metric)
        cosine = rows.metric == "cosine"
        operands = filters.prepare(
            rows.x, rows.y, rows.x_largest, rows.y_largest, "cosine" if cosine else "squared", "float16",
            x_order, y_order, *(norms if cosine else ()),
        )  # fmt: skip
        np, mp = len(operands.anchors.rows), len(operands.columns.rows)
        if labels.multi:
            anchor_class = column_class = labels.anchor_class
            anchor_bits, column_bits = _extend(labels.anchor_bits, np), _extend(labels.column_bits, mp)
        else:
            anchor_class = column_class = labels.packed_class
            if not labels.own:
                anchor_class = _extend(labels.anchor_class[x_order], np, -2)
            anchor_bits = column_bits = labels.anchor_bits
        return cls(operands, x_order, y_order, *norms, anchor_class, column_class, anchor_bits, column_bits)

    def run(
        self,
        rows: Rows,
        labels: Labels,
        positive: bool,
        wanted: list[int],
        found: torch.Tensor,  # [4, N], filled in
        exact: bool,
    ) -> None:
        """One side: the tiles once, then each extreme."""
        a, b = self.operands.anchors, self.operands.columns
        n, m, dims = len(rows.x), len(rows.y), self.operands.dims
        signs = [1 - 2 * (extreme % 2) for extreme in wanted]
        both = len(signs) == 2
        config = _config(both, labels.multi)
        tiles = blocks(m, config.columns)
        splits = 1
        if labels.multi or not positive:
            splits = power_of_two(blocks(PROGRAMS, blocks(n, config.rows)))
            splits = min(splits, MOST_SPLITS, power_of_two(tiles))
        listed = splits * config.kept
        lists = []
        for _ in signs:
            lists += [
                torch.empty(len(a.rows), listed, dtype=torch.float32, device=found.device),
                torch.empty(len(a.rows), listed, dtype=torch.int32, device=found.device),
                torch.empty(len(a.rows), splits, 3, dtype=torch.float32, device=found.device),
                torch.empty(len(a.rows), splits, 2, dtype=torch.int32, device=found.device),
            ]
        FILTER(
            (blocks(n, config.rows), splits), a.rows, b.rows, b.near if signs[0] > 0 else b.far, b.far,
            self.anchor_class, self.column_class, labels.starts, self.anchor_bits, self.column_bits,
            *lists[:4], *lists[-4:], n, m, dims, labels.words, splits, int(labels.own), signs[0],
            POSITIVE=positive, BOTH=both, MULTI=labels.multi, WHOLE=dims == self.operands.depth,
            DEPTH=self.operands.depth,
        )  # fmt: skip
        x_order, y_order = self.x_order, self.y_order
        for place, (extreme, sign) in enumerate(zip(wanted, signs, strict=True)):
            DECIDE(
                (n,), rows.x, rows.y, rows.x_largest, rows.y_largest, self.x_norms, self.y_norms,
                self.operands.parameters, a.errors, b.errors,
                labels.starts if x_order is None else x_order, labels.starts if y_order is None else y_order,
                self.anchor_class, self.column_class, labels.starts, self.anchor_bits, self.column_bits,
                *lists[4 * place : 4 * place + 4], found[extreme], m, rows.x.shape[1], labels.words, splits,
                config.columns, int(labels.own), int(positive), int(exact), sign, MULTI=labels.multi,
                COSINE=rows.metric == "cosine", SPLITS=1 if splits == 1 else MOST_SPLITS,
            )  # fmt: skip


def _extend(values: torch.Tensor, length: int, filler: int = 0) -> torch.Tensor:
    """`values` with more rows of `filler`."""
    out = values.new_full((length, *values.shape[1:]), filler)
    out[: len(values)] = values
    return out
