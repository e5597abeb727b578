"""Philox4x32-10 (SPEC section 3): the random words of (seed, anchor, positive).

    u = w0 + 2^32 w1 of philox4x32_10(key=seed, counter=(anchor, positive));   r = floor(u * count / 2^64)

int64 everywhere, holding unsigned 64-bit numbers; 32-bit words are kept in the lower halves.
Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

WORD = tl.constexpr(0xFFFFFFFF)
MULTIPLIER_0 = tl.constexpr(0xD2511F53)
MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
WEYL_0 = tl.constexpr(0x9E3779B9)
WEYL_1 = tl.constexpr(0xBB67AE85)


@triton.jit
def _upper(x):
    """The upper 32 bits of an unsigned number: the shift of a signed one copies its sign."""
    return (x >> 32) & WORD


@triton.jit
def words(
    seed,  # int64
    anchor,  # [P] int64
    positive,  # [P] int64
):
    """Four words w0..w3, [P] int64 each."""
    c0, c1 = anchor & WORD, _upper(anchor)
    c2, c3 = positive & WORD, _upper(positive)
    k0, k1 = seed & WORD, _upper(seed)
    for _ in tl.static_range(10):
        product_0, product_1 = c0 * MULTIPLIER_0, c2 * MULTIPLIER_1  # of 64 bits: what wraps is the sign
        c0, c1, c2, c3 = (
            _upper(product_1) ^ c1 ^ k0,
            product_1 & WORD,
            _upper(product_0) ^ c3 ^ k1,
            product_0 & WORD,
        )
        k0, k1 = (k0 + WEYL_0) & WORD, (k1 + WEYL_1) & WORD
    return c0, c1, c2, c3


@triton.jit
def choose(
    seed,  # int64
    anchor,  # [P] int64
    positive,  # [P] int64
    count,  # [P] int64, below 2^31
):  # [P] int64
    """floor(u * count / 2^64), by halves: no product leaves 64 bits."""
    w0, w1, _, _ = words(seed, anchor, positive)
    return (w1 * count + _upper(w0 * count)) >> 32


@triton.jit
def uniform(
    seed,  # int64
    anchor,  # [P] int64
    positive,  # [P] int64
):  # [P] float64 in [0, 1)
    """The upper 53 bits of u over 2^53."""
    w0, w1, _, _ = words(seed, anchor, positive)
    return ((w1 << 21) | (w0 >> 11)).to(tl.float64) * 1.1102230246251565e-16


def cases(
    seed: int,
    anchors: torch.Tensor,  # [N] int64
) -> torch.Tensor:  # [N] int64 in 0..3
    """The case of each anchor under `assorted`, as minerlib.random.cases, in torch's own arithmetic."""
    word = 0xFFFFFFFF

    def upper(x: torch.Tensor) -> torch.Tensor:
        return (x >> 32) & word

    c0, c1 = anchors & word, upper(anchors)
    c2 = c3 = torch.full_like(anchors, word)
    k0, k1 = seed & word, seed >> 32
    for _ in range(10):
        product_0, product_1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            upper(product_1) ^ c1 ^ k0,
            product_1 & word,
            upper(product_0) ^ c3 ^ k1,
            product_0 & word,
        )
        k0, k1 = (k0 + 0x9E3779B9) & word, (k1 + 0xBB67AE85) & word
    return c2 & 3
