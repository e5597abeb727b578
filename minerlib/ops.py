"""Padded mining, neighbours, distances and packed codes as operators of torch, for
`torch.compile(fullgraph=True)` and CUDA graphs.

`torch.ops.minerlib.mine_padded` answers like `mine(..., compact=False, backend="triton")`, which calls it
while torch compiles. Nothing is read back from the device as long as the number of slots is known: `[N]` for
strategies per anchor; for strategies per pair `slots`, or -1 to read back how many pairs there are.
`nearest_rows` and `all_distances` are `nearest` and `pairwise_distance` with that backend, `code_distances`,
`nearest_codes` and `codes_within` are `hamming_distance`, `hamming_search` and `hamming_range`.
Importing this module imports torch and registers the operators.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from minerlib import device_inputs, device_mining, hamming, neighbors
from minerlib.results import PaddedTriplets
from minerlib.strategies import STRATEGIES, Assorted, PerAnchor, Request

_Columns = tuple[Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("minerlib::mine_padded", mutates_args=())
def mine_padded(
    embeddings: Tensor,  # [N, D]
    labels: Tensor,  # [N] or [N, C] bool
    reference: Tensor | None,  # [M, D]
    reference_labels: Tensor | None,  # [M] or [M, C] bool
    strategy: str,
    margin: float,
    metric: str,
    pairs: str,
    fallback: str,
    seed: int,  # 64 bits as a signed number
    exact: bool,
    slots: int,
) -> _Columns:
    """anchors, positives, negatives [S] int64 and valid [S] bool, as `results.PaddedTriplets` says.

    Where `slots` exceeds the pairs, the slots beyond them are not valid; where it falls short, the pairs
    beyond are left out.
    """
    problem = device_inputs.mining_problem(
        embeddings, labels, reference, reference_labels, metric, strict=False
    )
    problem = replace(problem, slots=None if slots < 0 else slots)
    request = Request(margin, pairs, fallback, seed & (2**64 - 1), exact)
    found = device_mining.run(STRATEGIES[strategy], problem, request, compact=False)
    assert isinstance(found, PaddedTriplets)
    return found.anchors.clone(), found.positives, found.negatives, found.valid


@mine_padded.register_fake
def _(
    embeddings: Tensor,
    labels: Tensor,
    reference: Tensor | None,
    reference_labels: Tensor | None,
    strategy: str,
    margin: float,
    metric: str,
    pairs: str,
    fallback: str,
    seed: int,
    exact: bool,
    slots: int,
) -> _Columns:
    size: int | torch.SymInt = slots
    if isinstance(STRATEGIES[strategy], (PerAnchor, Assorted)):
        size = embeddings.shape[0]
    elif slots < 0:
        size = torch.library.get_ctx().new_dynamic_size()
    columns = [embeddings.new_empty(size, dtype=torch.int64) for _ in range(3)]
    return columns[0], columns[1], columns[2], embeddings.new_empty(size, dtype=torch.bool)


@torch.library.custom_op("minerlib::nearest_rows", mutates_args=())
def nearest_rows(
    queries: Tensor,  # [Q, D]
    database: Tensor,  # [M, D]
    k: int,
    metric: str,
    exact: bool,
) -> tuple[Tensor, Tensor]:
    """distances [Q, k] float64 and indices [Q, k] int64."""
    return tuple(neighbors.nearest(queries, database, k, metric=metric, exact=exact, backend="triton"))


@nearest_rows.register_fake
def _(queries: Tensor, database: Tensor, k: int, metric: str, exact: bool) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], k)
    return queries.new_empty(shape, dtype=torch.float64), queries.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op("minerlib::all_distances", mutates_args=())
def all_distances(
    x: Tensor,  # [N, D] or [B, N, D]
    y: Tensor | None,  # [M, D] or [B, M, D]
    metric: str,
) -> Tensor:
    """[N, M] or [B, N, M] float64."""
    found: Tensor = neighbors.pairwise_distance(x, y, metric=metric, backend="triton")
    return found


@all_distances.register_fake
def _(x: Tensor, y: Tensor | None, metric: str) -> Tensor:
    columns = x.shape[-2] if y is None else y.shape[-2]
    return x.new_empty((*x.shape[:-1], columns), dtype=torch.float64)


@torch.library.custom_op("minerlib::code_distances", mutates_args=())
def code_distances(
    a: Tensor,  # [N, bytes] uint8
    b: Tensor,  # [M, bytes] uint8
) -> Tensor:
    """[N, M] int32."""
    found: Tensor = hamming.hamming_distance(a, b, backend="triton")
    return found


@code_distances.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[0]), dtype=torch.int32)


@torch.library.custom_op("minerlib::nearest_codes", mutates_args=())
def nearest_codes(
    queries: Tensor,  # [Q, bytes] uint8
    database: Tensor,  # [M, bytes] uint8
    k: int,
) -> tuple[Tensor, Tensor]:
    """distances [Q, k] int32 and indices [Q, k] int64."""
    return tuple(hamming.hamming_search(queries, database, k, backend="triton"))


@nearest_codes.register_fake
def _(queries: Tensor, database: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (queries.shape[0], k)
    return queries.new_empty(shape, dtype=torch.int32), queries.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op("minerlib::codes_within", mutates_args=())
def codes_within(
    queries: Tensor,  # [Q, bytes] uint8
    database: Tensor,  # [M, bytes] uint8
    radius: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """offsets [Q + 1] int64, indices [T] int64 and distances [T] int32; T is read back."""
    return tuple(hamming.hamming_range(queries, database, radius, backend="triton"))


@codes_within.register_fake
def _(queries: Tensor, database: Tensor, radius: int) -> tuple[Tensor, Tensor, Tensor]:
    hits = torch.library.get_ctx().new_dynamic_size()
    offsets = queries.new_empty(queries.shape[0] + 1, dtype=torch.int64)
    return offsets, queries.new_empty(hits, dtype=torch.int64), queries.new_empty(hits, dtype=torch.int32)


def padded(
    embeddings: Tensor,
    labels: Tensor,
    reference: Tensor | None,
    reference_labels: Tensor | None,
    strategy: str,
    metric: str,
    request: Request,
    slots: int | None,
) -> _Columns:
    """The operator, called with a validated request."""
    seed = request.seed - (1 << 64) if request.seed >= 1 << 63 else request.seed
    found: _Columns = torch.ops.minerlib.mine_padded(
        embeddings.detach(), labels, reference, reference_labels, strategy, request.margin, metric,
        request.pairs, request.fallback, seed, request.exact, -1 if slots is None else slots,
    )  # fmt: skip
    return found
