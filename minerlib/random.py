"""Counter-based random choice (SPEC section 3): Philox4x32-10.

A choice depends on the seed and on who chooses, never on threads, tiles, backends or ranks.
Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numpy as np

_MULTIPLIER_0 = np.uint64(0xD2511F53)
_MULTIPLIER_1 = np.uint64(0xCD9E8D57)
_WEYL_0 = 0x9E3779B9  # golden ratio
_WEYL_1 = 0xBB67AE85  # sqrt(3) - 1
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)

#: The value of `p` at which `assorted` draws its case; no row has this index.
CASE_COUNTER = 0xFFFFFFFF_FFFFFFFF


def philox4x32_10(
    key: tuple[int, int],
    counter: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],  # four 32-bit words, [...] each
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ten rounds of Philox over arrays of counters: four 32-bit words, `uint64 [...]` each."""
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(10):
        product_0 = _MULTIPLIER_0 * c0
        product_1 = _MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (
            (product_1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product_1 & _LOW,
            (product_0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            product_0 & _LOW,
        )
        k0 = (k0 + _WEYL_0) & 0xFFFFFFFF
        k1 = (k1 + _WEYL_1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def words(
    seed: int,
    anchors: np.ndarray,  # [...] global indices
    positives: np.ndarray | int,  # [...] global indices
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The four words that belong to (seed, anchor, positive)."""
    a = np.asarray(anchors, dtype=np.uint64)
    p = np.broadcast_to(np.asarray(positives, dtype=np.uint64), a.shape)
    key = (seed & 0xFFFFFFFF, seed >> 32)
    return philox4x32_10(key, (a & _LOW, a >> _SHIFT, p & _LOW, p >> _SHIFT))


def uniform_bits(seed: int, anchor: int, positive: int) -> int:
    """u, the 64 random bits of one (anchor, positive) pair, as a Python integer."""
    w0, w1, _, _ = words(seed, np.array([anchor]), positive)
    return int(w0[0]) | (int(w1[0]) << 32)


def choose(seed: int, anchor: int, positive: int, count: int) -> int:
    """Which of `count` eligible rows the pair chooses: floor(u * count / 2^64)."""
    return (uniform_bits(seed, anchor, positive) * count) >> 64


def cases(
    seed: int,
    anchors: np.ndarray,  # [N] global indices
) -> np.ndarray:  # [N] int64 in 0..3
    """The case of each anchor under `assorted`: 0 EPEN, 1 EPHN, 2 HPEN, 3 HPHN."""
    return (words(seed, anchors, CASE_COUNTER)[2] & np.uint64(3)).astype(np.int64)
