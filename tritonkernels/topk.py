"""topk: the k nearest columns of each row, decided on canonical float64 values, ties by the lowest index.

x [N, D], y [M, D], float16 to float64 -> float64 [N, k] distances in the metric's unit, int64 [N, k]
columns; k <= M.

Certified selection, a chunk of rows at a time. The filter (filter.py) gives low(i, j) = near_j - a_i . b_j,
and the row's error e_i with it: the true value lies in low - e_i .. low + e_i + 2 e_j.

1. `bound_kernel`: the least upper value of every group of columns. The k-th least of these is an
   upper bound of the k-th nearest: k groups hold a column at least as near.
2. `candidates_kernel`: the columns whose lower value does not exceed that bound, in any order, at most
   `capacity`.
3. `decide_kernel`: their canonical values; a stable sort in index order gives (value, index). A row with
   more candidates than its list holds (duplicates, say) is decided by `whole_row_kernel` instead: canonical
   values of all columns, bisection for the k-th, and the k that belong to it take the places of the list.

Where k is not small against M the filter saves nothing, and chunks of whole canonical rows are sorted.
Nothing is read back by the host. Columns that take no part (NaN, infinite) come last, as index -1 at
infinity. Limits: M < 2^31. Peak memory: CHUNK_BYTES a few times over, the operands, and k slots of 16 bytes
a row. Source: SPEC section 5, nearest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from tritonkernels import filter as filters
from tritonkernels.canonical import metric_norms, pair_selections
from tritonkernels.filter import USABLE, Filter, load_anchors, load_columns, tile_dots
from tritonkernels.launching import CANONICAL, Kernel, always, blocks, choices, on_device
from tritonkernels.pairwise import WIDE_KINDS, selections, to_metric, widened

GROUPS = (
    32,
    128,
)  # of so many columns the bound keeps the least value: the larger where there are many groups
GROUPS_A_NEIGHBOUR = 16  # with fewer the bound gets loose
FEWEST_COLUMNS = 1024  # from here on the filter is worth its preparation
CHUNK_BYTES = 64 << 20
PRECISION = "float16"


@dataclass(frozen=True)
class TileConfig:
    """Tile of the filter."""

    rows: int = 64
    columns: int = 128
    tiles: int = 16  # of columns, one after another
    num_warps: int = 8
    num_stages: int = 3


@dataclass(frozen=True)
class PairsConfig:
    """Candidates a program decides."""

    pairs: int = 64
    num_warps: int = 4


@dataclass(frozen=True)
class WholeConfig:
    """Columns a step, and programs at most, which share the rows among them."""

    columns: int = 128
    programs: int = 512
    num_warps: int = 4


#: Of `bound_kernel`, and of `candidates_kernel`, whose rare branch takes shared memory: the fastest of those
#: timed on an H200, with 10,000 rows and 50,000 columns of 128 dimensions.
BOUND_TILE, TILE = TileConfig(), TileConfig(columns=64, tiles=8, num_warps=4)
PAIRS, WHOLE = PairsConfig(), WholeConfig()
_INFINITY = tl.constexpr(float("inf"))
EMPTY = tl.constexpr(0x7FFFFFFF)  # no column: sorts last


# ------------------------------------------------------------------ filter


@triton.jit
def _dots(
    left, a, b, row, column, dims,
    WHOLE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    if WHOLE:  # the anchors' tile is loaded once
        return tl.dot(left, load_columns(b, column, dims, 0, COLUMNS, DEPTH), input_precision="ieee")
    else:
        return tile_dots(a, b, row, column, dims, ROWS, COLUMNS, DEPTH, "ieee")


@triton.jit
def bound_kernel(
    a,  # [Np, Dp] float16
    b,  # [Mp, Dp] float16
    near,  # [Mp] float32, +inf where a column takes no part
    errors,  # [Mp] float32
    least,  # [R, Mp / GROUP] float32
    first,  # the chunk's first row
    padded_columns,
    dims,
    WHOLE: tl.constexpr,  # one step holds the whole row
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    inner = tl.program_id(1).to(tl.int64) * ROWS
    i, lane = inner + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    left = load_anchors(a, first + inner, dims, 0, ROWS, DEPTH)
    start = tl.program_id(0) * (TILES * COLUMNS)
    for column in range(start, tl.minimum(start + TILES * COLUMNS, padded_columns), COLUMNS):
        high = (tl.load(near + column + lane) + 2.0 * tl.load(errors + column + lane))[None, :]
        high = high - _dots(left, a, b, first + inner, column, dims, WHOLE, ROWS, COLUMNS, DEPTH)
        groups = tl.min(tl.reshape(high, [ROWS, COLUMNS // GROUP, GROUP]), axis=2)
        at = column // GROUP + tl.arange(0, COLUMNS // GROUP)
        tl.store(least + i[:, None] * (padded_columns // GROUP) + at[None, :], groups)


@triton.jit
def candidates_kernel(
    a,  # [Np, Dp] float16
    b,  # [Mp, Dp] float16
    near,  # [Mp] float32
    bounds,  # [R] float32
    counts,  # [R] int32, zeros: candidates found
    found,  # [R, capacity] int32
    first,
    padded_columns,
    capacity,
    dims,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
    DEPTH: tl.constexpr,
):
    inner = tl.program_id(1).to(tl.int64) * ROWS
    i, lane = inner + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    left = load_anchors(a, first + inner, dims, 0, ROWS, DEPTH)
    bound = tl.load(bounds + i)[:, None]
    start = tl.program_id(0) * (TILES * COLUMNS)
    for column in range(start, tl.minimum(start + TILES * COLUMNS, padded_columns), COLUMNS):
        low = tl.load(near + column + lane)[None, :]
        low = low - _dots(left, a, b, first + inner, column, dims, WHOLE, ROWS, COLUMNS, DEPTH)
        hit = ((low <= bound) & (low < _INFINITY)).to(tl.int32)
        if tl.max(tl.ravel(hit), axis=0) > 0:  # rare: most tiles hold nothing near
            number = tl.sum(hit, axis=1)
            place = tl.atomic_add(counts + i, number, mask=number > 0, sem="relaxed")
            place = place[:, None] + tl.cumsum(hit, axis=1) - hit
            columns = tl.broadcast_to((column + lane)[None, :], (ROWS, COLUMNS))
            tl.store(found + i[:, None] * capacity + place, columns, mask=(hit > 0) & (place < capacity))


# ------------------------------------------------------------------ float64


@triton.jit
def decide_kernel(
    x,  # [N, D]
    y,  # [M, D]
    x_norms,  # [N] float64, for the cosine
    y_norms,  # [M] float64
    found,  # [R, capacity] int32, EMPTY where there is none
    values,  # [R, capacity] float64
    first,
    places: tl.int64,  # R * capacity
    capacity,
    dims,
    COSINE: tl.constexpr,
    PAIRS: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    column = tl.load(found + place, mask=place < places, other=EMPTY)
    live = column < EMPTY
    i, j = first + place // capacity, tl.where(live, column, 0).to(tl.int64)
    value = pair_selections(x, y, x_norms, y_norms, i, j, live, dims, COSINE)
    tl.store(values + place, tl.where(live, value, _INFINITY), mask=place < places)


@triton.jit
def _ordered(value):
    """float64 -> int64 in the same order."""
    bits = value.to(tl.int64, bitcast=True)
    return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)


@triton.jit
def whole_row_kernel(
    x,  # [N, D]
    y,  # [M, D]
    x_norms,  # [N] float64
    y_norms,  # [M] float64
    y_largest,  # [M] float64, negative for columns that take no part
    parameters,  # [4] float64 of the filter
    counts,  # [R] int32
    found,  # [R, capacity] int32, replaced in rows of more candidates
    scratch,  # [programs, M] int64: ordered values of one row
    first,
    rows,
    columns,
    k,
    capacity,
    dims,
    COSINE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    own = scratch + tl.program_id(0).to(tl.int64) * columns
    lane = tl.arange(0, COLUMNS)
    everything = tl.load(parameters + USABLE) == 0.0
    for own_row in range(tl.program_id(0), rows, tl.num_programs(0)):
        row = tl.program_id(0).to(tl.int64) * 0 + own_row
        if everything | (tl.load(counts + row) > capacity):
            low = tl.full([COLUMNS], 0x7FFFFFFFFFFFFFFF, tl.int64)
            high = -low
            for start in range(0, columns, COLUMNS):
                j = (start + lane).to(tl.int64)
                live = j < columns
                i = first + row + j * 0
                part = live & (tl.load(y_largest + j, mask=live, other=-1.0) >= 0)
                value = pair_selections(x, y, x_norms, y_norms, i, j, part, dims, COSINE)
                key = _ordered(tl.where(part, value, _INFINITY))
                tl.store(own + j, key, mask=live)
                low = tl.minimum(low, tl.where(live, key, low))
                high = tl.maximum(high, tl.where(live, key, high))
            out = found + row * capacity
            for start in range(0, capacity, COLUMNS):
                tl.store(out + start + lane, EMPTY, mask=start + lane < capacity)
            tl.debug_barrier()
            least, most = tl.min(low, axis=0), tl.max(high, axis=0)
            while least < most:  # the k-th least key lies in least .. most
                middle = (least >> 1) + (most >> 1) + (least & most & 1)
                up_to = tl.full([COLUMNS], 0, tl.int32)
                for start in range(0, columns, COLUMNS):
                    live = start + lane < columns
                    key = tl.load(own + start + lane, mask=live, other=0)
                    up_to += (live & (key <= middle)).to(tl.int32)
                enough = tl.sum(up_to, axis=0) >= k
                least = tl.where(enough, least, middle + 1)
                most = tl.where(enough, middle, most)
            nearer = tl.full([COLUMNS], 0, tl.int32)
            for start in range(0, columns, COLUMNS):
                live = start + lane < columns
                nearer += (live & (tl.load(own + start + lane, mask=live, other=0) < least)).to(tl.int32)
            near_place, tie_place = 0, tl.sum(nearer, axis=0)
            for start in range(0, columns, COLUMNS):
                live = start + lane < columns
                key = tl.load(own + start + lane, mask=live, other=0)
                near, tied = (live & (key < least)).to(tl.int32), (live & (key == least)).to(tl.int32)
                place = tl.where(
                    near > 0, near_place + tl.cumsum(near, axis=0) - near,
                    tie_place + tl.cumsum(tied, axis=0) - tied,
                )  # fmt: skip
                taken = ((near + tied) > 0) & (place < k) & (key < 0x7FF0000000000000)
                tl.store(out + place, start + lane, mask=taken)
                near_place += tl.sum(near, axis=0)
                tie_place += tl.sum(tied, axis=0)
            tl.debug_barrier()


# ------------------------------------------------------------------ launchers

_OPERANDS = {"a": "*fp16", "b": "*fp16", "near": "*fp32"}


def _tiled(tile: TileConfig) -> tuple[Callable[..., dict[str, Any]], Callable[..., dict[str, Any]]]:
    """Options and constants; AMD's multiprocessors have less memory for stages."""
    return (
        lambda hip, **_: {
            "num_warps": tile.num_warps,
            "num_stages": min(tile.num_stages, 2) if hip else tile.num_stages,
        },
        always(ROWS=tile.rows, COLUMNS=tile.columns, TILES=tile.tiles),
    )


_DEPTHS = [{"WHOLE": whole, "DEPTH": depth} for whole, depth in ((True, 64), (True, 128), (False, 64))]
BOUND = Kernel(
    bound_kernel, {**_OPERANDS, "errors": "*fp32", "least": "*fp32"},
    [{**depth, "GROUP": group} for depth in _DEPTHS for group in GROUPS], *_tiled(BOUND_TILE),
    ("a", "b", "near", "errors", "least", "padded_columns", "dims"),
)  # fmt: skip
CANDIDATES = Kernel(
    candidates_kernel, {**_OPERANDS, "bounds": "*fp32", "counts": "*i32", "found": "*i32"}, _DEPTHS,
    *_tiled(TILE), ("a", "b", "near", "padded_columns", "dims"),
)  # fmt: skip
_ROWS = {"x": "*kind", "y": "*kind", "x_norms": "*fp64", "y_norms": "*fp64", "found": "*i32"}
_FORMS = choices(kind=WIDE_KINDS, COSINE=(False, True))
DECIDE = Kernel(
    decide_kernel, {**_ROWS, "values": "*fp64", "places": "i64"}, _FORMS,
    always(num_warps=PAIRS.num_warps, **CANONICAL), always(PAIRS=PAIRS.pairs),
)  # fmt: skip
WHOLE_ROW = Kernel(
    whole_row_kernel,
    {**_ROWS, "y_largest": "*fp64", "parameters": "*fp64", "counts": "*i32", "scratch": "*i64"}, _FORMS,
    always(num_warps=WHOLE.num_warps, **CANONICAL), always(COLUMNS=WHOLE.columns),
)  # fmt: skip


def topk(
    x: torch.Tensor,  # [N, D]
    y: torch.Tensor,  # [M, D], of the same type; may be x itself
    k: int,
    metric: str,
) -> tuple[torch.Tensor, torch.Tensor]:  # float64 [N, k] distances, int64 [N, k] columns
    """The k nearest columns of each row by (distance, index); no host synchronisation."""
    distances = torch.empty((len(x), k), dtype=torch.float64, device=x.device)
    indices = torch.empty((len(x), k), dtype=torch.int64, device=x.device)
    if indices.numel() == 0:
        return distances, indices
    with on_device(x):
        a = widened(x)
        b = a if y is x else widened(y)
        if len(y) >= FEWEST_COLUMNS and len(y) >= 4 * GROUPS[0] * k:
            _certified(a, b, k, metric, distances, indices)
        else:
            _whole(a, b, k, metric, distances, indices)
        none = ~distances.isfinite()
        distances.masked_fill_(none, torch.inf)
        indices.masked_fill_(none, -1)
        to_metric(distances, metric)
    return distances, indices


def _whole(
    x: torch.Tensor,  # [N, D] float32 or float64, contiguous
    y: torch.Tensor,  # [M, D]
    k: int,
    metric: str,
    distances: torch.Tensor,  # [N, k] float64, written
    indices: torch.Tensor,  # [N, k] int64, written
) -> None:
    """Chunks of whole canonical rows, sorted."""
    step = max(1, CHUNK_BYTES // (8 * len(y)))
    values = torch.empty((min(step, len(x)), len(y)), dtype=torch.float64, device=x.device)
    for first in range(0, len(x), step):
        rows = x[first : first + step]
        part = values[: len(rows)]
        selections(x if len(rows) == len(x) else rows, y, metric, part)
        ordered, order = torch.sort(part, dim=1, stable=True)
        distances[first : first + step] = ordered[:, :k]
        indices[first : first + step] = order[:, :k]


@dataclass(frozen=True)
class _Task:
    """What the kernels of all chunks share."""

    x: torch.Tensor  # [N, D] float32 or float64, contiguous
    y: torch.Tensor  # [M, D]
    lengths: tuple[torch.Tensor, torch.Tensor]  # canonical, for the cosine
    y_largest: torch.Tensor  # [M] float64
    filter: Filter
    k: int
    capacity: int
    cosine: bool

    @property
    def group(self) -> int:
        """Columns of which the bound keeps one value."""
        fits = [group for group in GROUPS if len(self.y) >= GROUPS_A_NEIGHBOUR * group * self.k]
        return fits[-1] if fits else GROUPS[0]


def _certified(
    x: torch.Tensor,  # [N, D] float32 or float64, contiguous
    y: torch.Tensor,  # [M, D]
    k: int,
    metric: str,
    distances: torch.Tensor,  # [N, k] float64, written
    indices: torch.Tensor,  # [N, k] int64, written
) -> None:
    x_largest = filters.inspect(x)
    y_largest = x_largest if y is x else filters.inspect(y)
    space = "cosine" if metric == "cosine" else "squared"
    lengths = metric_norms(x, y, metric)
    norms = lengths if metric == "cosine" else (None, None)
    packed = filters.prepare(x, y, x_largest, y_largest, space, PRECISION, None, None, *norms)
    task = _Task(x, y, lengths, y_largest, packed, k, 2 * k + 64, metric == "cosine")
    row_bytes = max(len(packed.columns.near) // task.group * 4, task.capacity * 24)
    step = max(1, CHUNK_BYTES // (row_bytes * TILE.rows)) * TILE.rows
    for first in range(0, len(x), step):
        rows = min(step, len(x) - first)
        found = _candidates(task, first, rows)
        if k == 1:
            values = _decide(task, first, found)
            torch.amin(values, 1, keepdim=True, out=distances[first : first + rows])
            found = found.masked_fill_(values > distances[first : first + rows], EMPTY.value)
            indices[first : first + rows] = found.amin(1, keepdim=True)
            continue
        found = torch.sort(found, dim=1)[0]  # in index order
        values, order = torch.sort(_decide(task, first, found), dim=1, stable=True)
        distances[first : first + rows] = values[:, :k]
        indices[first : first + rows] = found.gather(1, order[:, :k])
    distances.masked_fill_((x_largest < 0)[:, None], torch.inf)


def _candidates(task: _Task, first: int, rows: int) -> torch.Tensor:  # [rows, capacity] int32
    """Columns among which the k nearest of each row are, EMPTY beyond them."""
    anchors, columns = task.filter.anchors, task.filter.columns
    device, many = task.x.device, len(columns.near)
    padded_rows = blocks(rows, TILE.rows) * TILE.rows
    form = {"WHOLE": task.filter.dims == task.filter.depth, "DEPTH": task.filter.depth}
    least = torch.empty((padded_rows, many // task.group), dtype=torch.float32, device=device)
    BOUND(
        _grid(BOUND_TILE, many, padded_rows), anchors.rows, columns.rows, columns.near, columns.errors, least,
        first, many, task.filter.dims, **form, GROUP=task.group,
    )  # fmt: skip
    errors = anchors.errors[first : first + padded_rows].double()
    kth = least.amin(dim=1) if task.k == 1 else least.kthvalue(task.k, dim=1).values
    bounds = kth.double() + 2.0 * errors
    bounds = bounds.float().nextafter(torch.full_like(least[0, :1], torch.inf))  # rounded up
    counts = torch.zeros(padded_rows, dtype=torch.int32, device=device)
    found = torch.full((padded_rows, task.capacity), EMPTY.value, dtype=torch.int32, device=device)
    CANDIDATES(
        _grid(TILE, many, padded_rows), anchors.rows, columns.rows, columns.near, bounds, counts, found,
        first, many, task.capacity, task.filter.dims, **form,
    )  # fmt: skip
    programs = max(1, min(WHOLE.programs, rows, CHUNK_BYTES // (8 * len(task.y))))
    scratch = torch.empty((programs, len(task.y)), dtype=torch.int64, device=device)
    WHOLE_ROW(
        (programs,), task.x, task.y, *task.lengths, task.y_largest, task.filter.parameters, counts, found,
        scratch, first, rows, len(task.y), task.k, task.capacity, task.x.shape[1], COSINE=task.cosine,
    )  # fmt: skip
    return found[:rows]


def _grid(tile: TileConfig, columns: int, rows: int) -> tuple[int, int]:
    return blocks(columns, tile.columns * tile.tiles), rows // tile.rows


def _decide(
    task: _Task,
    first: int,
    found: torch.Tensor,  # [rows, capacity] int32, contiguous
) -> torch.Tensor:  # [rows, capacity] float64
    values = torch.empty(found.shape, dtype=torch.float64, device=found.device)
    DECIDE(
        (blocks(found.numel(), PAIRS.pairs),), task.x, task.y, *task.lengths, found, values, first,
        found.numel(), task.capacity, task.x.shape[1], COSINE=task.cosine,
    )  # fmt: skip
    return values
