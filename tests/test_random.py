"""Philox against the known-answer vectors published with Random123, and against plain integer arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from minerlib import random

FULL = 0xFFFFFFFF

#: philox4x32, 10 rounds, from Random123's kat_vectors: counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((FULL, FULL, FULL, FULL), (FULL, FULL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_in_python(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Ten rounds as the paper writes them."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high_0, low_0 = divmod(0xD2511F53 * c0, 2**32)
        high_1, low_1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high_1 ^ c1 ^ k0, low_1, high_0 ^ c3 ^ k1, low_0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]) -> None:
    words = random.philox4x32_10(key, tuple(np.array([word]) for word in counter))
    assert tuple(int(word[0]) for word in words) == answer
    assert philox_in_python(counter, key) == answer


def test_arrays_of_counters() -> None:
    rng = np.random.default_rng(0)
    counters = rng.integers(2**32, size=(4, 3, 50), dtype=np.uint64)
    words = random.philox4x32_10((123, FULL), tuple(counters))
    for word in words:
        assert word.shape == (3, 50)
        assert word.max() <= FULL
    for i, j in np.ndindex(3, 50):
        counter = tuple(int(word[i, j]) for word in counters)
        assert tuple(int(word[i, j]) for word in words) == philox_in_python(counter, (123, FULL))


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 0x0123456789ABCDEF, 2**64 - 1])
@pytest.mark.parametrize(("a", "p"), [(0, 0), (5, 3), (2**32 - 1, 2**32), (2**33 + 7, 2**40 + 1)])
def test_the_words_of_a_pair(seed: int, a: int, p: int) -> None:
    """The key is the seed and the counter the pair, low words first."""
    key = (seed % 2**32, seed // 2**32)
    w0, w1, w2, _ = philox_in_python((a % 2**32, a // 2**32, p % 2**32, p // 2**32), key)
    assert random.uniform_bits(seed, a, p) == w0 + 2**32 * w1
    assert int(random.words(seed, np.array([a]), p)[2][0]) == w2


@pytest.mark.parametrize("count", [1, 2, 3, 7, 1000, 2**31, 2**40 + 1])
def test_choice_is_the_scaled_fraction(count: int) -> None:
    for a in range(20):
        u = random.uniform_bits(99, a, a + 1)
        choice = random.choose(99, a, a + 1, count)
        assert choice == u * count // 2**64
        assert 0 <= choice < count


def test_choices_are_even() -> None:
    choices = [random.choose(5, a, p, 10) for a in range(60) for p in range(60)]
    counts = np.bincount(choices, minlength=10)
    # Chi-square of 9 degrees of freedom: 27.9 is exceeded once in a thousand seeds.
    assert ((counts - 360.0) ** 2 / 360.0).sum() < 27.9


@pytest.mark.parametrize("seed", [0, 3, 2**64 - 1])
def test_cases_of_assorted(seed: int) -> None:
    anchors = np.arange(200)
    cases = random.cases(seed, anchors)
    key = (seed % 2**32, seed // 2**32)
    assert cases.tolist() == [philox_in_python((a, 0, FULL, FULL), key)[2] & 3 for a in anchors.tolist()]
    assert set(cases.tolist()) == {0, 1, 2, 3}
