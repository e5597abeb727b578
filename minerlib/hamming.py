"""Binary codes: packing, distances, search and range search by Hamming distance.

A code of `bits` bits is a row of ceil(bits / 8) bytes of uint8; bit j of byte i is code bit 8 i + j, and the
padding bits of the last byte are 0. Two codes are compared on all bits of their bytes. Order is always by
(distance, index): ties go to the lowest index.

Codes given as tensors on a GPU stay there with `backend="triton"` or `backend="cuda"`, and torch compiles
calls with the former as operators (`ops`). In every other case codes pass through the host: those of a GPU
are copied for a host backend, those of the host are copied to the current GPU for these two.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from minerlib import dispatch, inputs
from minerlib.arrays import Origin, to_numpy
from minerlib.results import Neighbors, RangeNeighbors

_CHUNK = 1 << 19  # values packed at a time: what they need besides stays in a cache


def pack_bits(
    x: Any,  # [N, bits]
) -> Any:  # [N, ceil(bits / 8)] uint8
    """Codes of the signs of x: bit = (x > 0), eight to a byte, the first in the lowest bit.

    Args:
        x: `[N, bits]` bool, integers (such as {0, 1} or {-1, +1}), float16, bfloat16, float32 or float64; a
            torch tensor, a NumPy array (also a memory-mapped one) or anything that speaks DLPack.

    Returns:
        uint8 `[N, ceil(bits / 8)]` of the same kind on the same device; padding bits are 0.

    Raises:
        TypeError, ValueError: the message names the argument, what was expected and what came; also for a
            row that holds NaN or infinity.

    Memory: the result, and a few megabytes; a DLPack object of a type that NumPy lacks is converted whole.

    Source: SPEC section 5.

    >>> import minerlib, numpy as np
    >>> minerlib.pack_bits(np.array([[1.0, -1.0, 0.5, 0.0, -2.0, 0.0, 0.0, 0.0, 3.0]])).tolist()
    [[5, 1]]
    """
    source, sample, origin = inputs.sliceable("x", x)
    if sample.ndim != 2:
        raise ValueError(f"x: expected shape [rows, bits], got {sample.ndim} axes {list(sample.shape)}")
    if sample.dtype.itemsize > 8:
        raise TypeError(f"x: expected bool, integers or floats of up to 64 bits, got {sample.dtype}")
    bits = sample.shape[1]
    if bits == 0:
        raise ValueError(f"x: expected at least one bit a row, got shape {list(source.shape)}")
    codes = np.empty((len(source), -(-bits // 8)), dtype=np.uint8)
    step = max(1, _CHUNK // bits)
    for first in range(0, len(codes), step):
        block, _ = to_numpy("x", source[first : first + step])
        inputs.finite_rows("x", block, first)
        codes[first : first + step] = np.packbits(block > 0, axis=1, bitorder="little")
    return origin.wrap(codes)


def unpack_bits(
    codes: Any,  # [N, bytes] uint8
    bits: int,
) -> Any:  # [N, bits] uint8
    """The first `bits` bits of every code as 0 and 1: what `pack_bits` packed.

    Args:
        codes: `[N, bytes]` uint8 of any kind that `pack_bits` returns.
        bits: 1 to 8 * bytes.

    Returns:
        uint8 `[N, bits]` of 0 and 1, of the same kind on the same device.

    Raises:
        TypeError, ValueError: as `pack_bits`.

    Memory: the result.

    Source: SPEC section 5.

    >>> import minerlib, numpy as np
    >>> minerlib.unpack_bits(np.array([[5, 1]], dtype=np.uint8), 9).tolist()
    [[1, 0, 1, 0, 0, 0, 0, 0, 1]]
    """
    array, origin = inputs.code_rows("codes", codes)
    count = inputs.integer("bits", bits, 1, 8 * array.shape[1])
    return origin.wrap(np.unpackbits(array, axis=1, count=count, bitorder="little"))


def hamming_distance(
    a: Any,  # [N, bytes] uint8
    b: Any,  # [M, bytes] uint8
    *,
    backend: str = "auto",
) -> Any:  # [N, M] int32
    """In how many bits each code of a differs from each code of b.

    Args:
        a, b: `[N, bytes]` and `[M, bytes]` packed codes, see `pack_bits`.
        backend: `auto`, or a name of `explain("hamming_distance")`.

    Returns:
        int32 `[N, M]`, from 0 to 8 * bytes.

    Raises:
        TypeError, ValueError: the message names the argument, what was expected and what came.
        BackendUnavailable: the named backend cannot be used here; the message lists the reasons.

    Memory: the result, 4 * N * M bytes; `hamming_search` and `hamming_range` need none of it.

    Source: SPEC section 5.

    >>> import minerlib, numpy as np
    >>> a, b = np.array([[0], [255]], dtype=np.uint8), np.array([[3]], dtype=np.uint8)
    >>> minerlib.hamming_distance(a, b).tolist()
    [[2], [6]]
    """
    if dispatch.traced(backend, a):
        from minerlib import ops

        return ops.code_distances(a, b)
    backend = dispatch.resolve(backend, a)
    if dispatch.codes_stay(backend, a, b):
        from minerlib import device_inputs

        return dispatch.choose(backend).hamming_distance(*device_inputs.code_pair("a", a, "b", b))
    a_codes, b_codes, origin = check_hamming_distance(a, b)
    return origin.wrap(dispatch.choose(backend).hamming_distance(a_codes, b_codes))


def check_hamming_distance(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray, Origin]:
    """The arguments of `hamming_distance`, validated."""
    return inputs.code_pair("a", a, "b", b)


def hamming_search(
    queries: Any,  # [Q, bytes] uint8
    database: Any,  # [M, bytes] uint8
    k: int,
    *,
    backend: str = "auto",
) -> Neighbors:
    """The k database codes nearest to every query, nearest first, ties by the lowest index.

    Args:
        queries, database: `[Q, bytes]` and `[M, bytes]` packed codes, see `pack_bits`; the database may be a
            memory-mapped file.
        k: 1 to M; every k is exact.
        backend: `auto`, or a name of `explain("hamming_search")`.

    Returns:
        `Neighbors(distances, indices)`: int32 `[Q, k]` in bits, int64 `[Q, k]`; of the queries' kind, on
        their device.

    Raises:
        TypeError, ValueError, BackendUnavailable: as `hamming_distance`.

    Memory: the result, and O(k) a query in flight; nothing that grows with M.

    Source: SPEC section 5.

    >>> import minerlib, numpy as np
    >>> database = np.array([[7], [1], [0], [2]], dtype=np.uint8)
    >>> minerlib.hamming_search(np.zeros((1, 1), dtype=np.uint8), database, 3).indices.tolist()
    [[2, 1, 3]]
    """
    if dispatch.traced(backend, queries):
        from minerlib import ops

        return Neighbors(*ops.nearest_codes(queries, database, k))
    backend = dispatch.resolve(backend, queries)
    if dispatch.codes_stay(backend, queries, database):
        from minerlib import device_inputs

        codes = device_inputs.code_pair("queries", queries, "database", database)
        return Neighbors(*dispatch.choose(backend).hamming_search(*codes, _checked_k(k, len(codes[1]))))
    x, y, k, origin = check_hamming_search(queries, database, k)
    distances, indices = dispatch.choose(backend).hamming_search(x, y, k)
    return Neighbors(origin.wrap(distances), origin.wrap(indices))


def check_hamming_search(
    queries: Any, database: Any, k: int = 1
) -> tuple[np.ndarray, np.ndarray, int, Origin]:
    """The arguments of `hamming_search`, validated."""
    x, y, origin = inputs.code_pair("queries", queries, "database", database)
    return x, y, _checked_k(k, len(y)), origin


def _checked_k(k: int, rows: int) -> int:
    if rows == 0:
        raise ValueError("database: expected at least one row, got none")
    return inputs.integer("k", k, 1, rows)


def hamming_range(
    queries: Any,  # [Q, bytes] uint8
    database: Any,  # [M, bytes] uint8
    radius: int,
    *,
    backend: str = "auto",
) -> RangeNeighbors:
    """All database codes within `radius` bits of each query, nearest first, ties by the lowest index.

    Args:
        queries, database: as for `hamming_search`; a database without rows has no hits.
        radius: at least 0; from 8 * bytes on every row is a hit.
        backend: `auto`, or a name of `explain("hamming_range")`.

    Returns:
        `RangeNeighbors(offsets, indices, distances)`: query q's hits are the rows
        `indices[offsets[q] : offsets[q + 1]]` (int64), their `distances` (int32) lie at the same places; of
        the queries' kind, on their device.

    Raises:
        TypeError, ValueError, BackendUnavailable: as `hamming_distance`.

    Memory: at most twice the result.

    Source: SPEC section 5.

    >>> import minerlib, numpy as np
    >>> database = np.array([[7], [1], [0], [2]], dtype=np.uint8)
    >>> minerlib.hamming_range(np.zeros((1, 1), dtype=np.uint8), database, 1).indices.tolist()
    [2, 1, 3]
    """
    if dispatch.traced(backend, queries):
        from minerlib import ops

        return RangeNeighbors(*ops.codes_within(queries, database, radius))
    backend = dispatch.resolve(backend, queries)
    if dispatch.codes_stay(backend, queries, database):
        from minerlib import device_inputs

        codes = device_inputs.code_pair("queries", queries, "database", database)
        radius = _checked_radius(radius, codes[0].shape[1])
        return RangeNeighbors(*dispatch.choose(backend).hamming_range(*codes, radius))
    x, y, radius, origin = check_hamming_range(queries, database, radius)
    found = dispatch.choose(backend).hamming_range(x, y, radius)
    offsets, indices, distances = (origin.wrap(array) for array in found)
    return RangeNeighbors(offsets, indices, distances)


def check_hamming_range(
    queries: Any, database: Any, radius: int = 0
) -> tuple[np.ndarray, np.ndarray, int, Origin]:
    """The arguments of `hamming_range`, validated; a radius beyond all bits becomes that of all bits."""
    x, y, origin = inputs.code_pair("queries", queries, "database", database)
    return x, y, _checked_radius(radius, x.shape[1]), origin


def _checked_radius(radius: int, length: int) -> int:
    return min(inputs.integer("radius", radius, 0, sys.maxsize), 8 * length)
