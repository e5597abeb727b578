// Blocks of codes as bit planes, and bit-sliced numbers.
//
// A block holds as many codes as a vector has bits. Its codes are transposed into planes (plane b: bit b of every
// code), so that one logical instruction works on all of them. A number for each code is bit-sliced likewise: vector
// i of it holds bit i of all of them.
#pragma once

#include <algorithm>

#include "code_words.h"
#include "memory.h"
#include "simd.h"

namespace minerlib {
namespace MINERLIB_ISA {

#if MINERLIB_ISA_LEVEL >= 2
constexpr int BLOCK_WORDS = 8;
#elif MINERLIB_ISA_LEVEL == 1
constexpr int BLOCK_WORDS = 4;
#else
constexpr int BLOCK_WORDS = 2;
#endif
constexpr int BLOCK_CODES = 64 * BLOCK_WORDS;

typedef uint64_t Plane __attribute__((vector_size(BLOCK_WORDS * 8), aligned(8), may_alias));

// Numbers live in registers only where all that touches them is inlined.
#define MINERLIB_INLINE __attribute__((always_inline)) inline

// The same bit for every code, from a mask of 64 of them.
static MINERLIB_INLINE Plane plane_of(uint64_t mask) { return Plane{} + mask; }

#if MINERLIB_ISA_LEVEL >= 2
// Three inputs are one instruction; bit 4 x + 2 y + z of `table` is the result.
template <int table> static MINERLIB_INLINE Plane logic(Plane x, Plane y, Plane z) {
    return reinterpret_cast<Plane>(_mm512_ternarylogic_epi64(reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(y),
                                                             reinterpret_cast<__m512i>(z), table));
}

// Two vectors to be added to a third.
struct Pair {
    Plane one, other;
};

static MINERLIB_INLINE Pair pair_of(Plane one, Plane other) { return {one, other}; }

// total + a pair: leaves the sum in total and returns the carry.
static MINERLIB_INLINE Plane add_pair(Plane& total, Pair pair) {
    const Plane carry = logic<0xE8>(total, pair.one, pair.other);
    total = logic<0x96>(total, pair.one, pair.other);
    return carry;
}

static MINERLIB_INLINE Pair add_pairs(Plane& total, Pair first, Pair second) {
    const Plane one = add_pair(total, first);
    return {one, add_pair(total, second)};
}

// One bit of x + y and of x - y.
static MINERLIB_INLINE void add_and_subtract(Plane x, Plane y, Plane& carry, Plane& borrow, Plane& sum,
                                             Plane& difference) {
    sum = logic<0x96>(x, y, carry);
    difference = logic<0x96>(x, y, borrow);
    carry = logic<0xE8>(x, y, carry);
    borrow = logic<0x8E>(x, y, borrow);
}

// choice ? x : y, bit by bit
static MINERLIB_INLINE Plane choose(Plane choice, Plane x, Plane y) { return logic<0xCA>(choice, x, y); }

// choice ? x & y : x | y
static MINERLIB_INLINE Plane both_or_either(Plane choice, Plane x, Plane y) { return logic<0x8E>(choice, x, y); }

static MINERLIB_INLINE bool any(Plane bits) {
    const __m512i x = reinterpret_cast<__m512i>(bits);
    return _mm512_test_epi64_mask(x, x) != 0;
}
#else
// Two vectors to be added to a third: `one` of them and where they differ. With that, two additions to the same total
// take eight instructions and give their carries in the same form, where two full adders would take ten.
// Source: E. Demenkov et al., New upper bounds on the Boolean circuit complexity of symmetric functions, 2010.
struct Pair {
    Plane one, differ;
};

static MINERLIB_INLINE Pair pair_of(Plane one, Plane other) { return {one, one ^ other}; }

// total + a pair: leaves the sum in total and returns the carry.
static MINERLIB_INLINE Plane add_pair(Plane& total, Pair pair) {
    const Plane either = pair.differ | (pair.one ^ total);
    total ^= pair.differ;
    return total ^ either;
}

static MINERLIB_INLINE Pair add_pairs(Plane& total, Pair first, Pair second) {
    const Plane either = first.differ | (first.one ^ total);
    total ^= first.differ;
    const Plane changed = ~second.differ & (second.one ^ total);
    const Plane carry = total ^ either;
    total ^= second.differ;
    return {carry, either ^ changed};
}

// One bit of x + y and of x - y.
static MINERLIB_INLINE void add_and_subtract(Plane x, Plane y, Plane& carry, Plane& borrow, Plane& sum,
                                             Plane& difference) {
    const Plane differ = x ^ y;
    sum = differ ^ carry;
    difference = differ ^ borrow;
    carry = (differ & carry) | (x & y);
    borrow = (~differ & borrow) | (~x & y);
}

#if MINERLIB_ISA_LEVEL == 1
// choice ? x : y, byte by byte
static MINERLIB_INLINE Plane choose(Plane choice, Plane x, Plane y) {
    return reinterpret_cast<Plane>(_mm256_blendv_epi8(reinterpret_cast<__m256i>(y), reinterpret_cast<__m256i>(x),
                                                      reinterpret_cast<__m256i>(choice)));
}
#endif

// choice ? x & y : x | y; choice is all ones or zero.
static MINERLIB_INLINE Plane both_or_either(Plane choice, Plane x, Plane y) {
#if MINERLIB_ISA_LEVEL == 1
    return choose(choice, x & y, x | y);
#else
    return (x & y) | (~choice & (x | y));
#endif
}

static MINERLIB_INLINE bool any(Plane bits) {
#if MINERLIB_ISA_LEVEL == 1
    const __m256i x = reinterpret_cast<__m256i>(bits);
    return _mm256_testz_si256(x, x) == 0;
#else
    uint64_t either = 0;
    for (int lane = 0; lane < BLOCK_WORDS; ++lane) either |= bits[lane];
    return either != 0;
#endif
}
#endif

static MINERLIB_INLINE Plane add_one(Plane& total, Plane bit) {
    const Plane carry = total & bit;
    total ^= bit;
    return carry;
}

// Exchanges the bits of a at odd multiples of `width` with those of b at even ones: a step of a transposition.
template <int width> static MINERLIB_INLINE void exchange(Plane& a, Plane& b) {
    constexpr uint64_t even = ~uint64_t{0} / ((uint64_t{1} << width) + 1);
#if MINERLIB_ISA_LEVEL >= 1
    if constexpr (MINERLIB_ISA_LEVEL >= 2 || width >= 8) {
        const Plane up = b << width, down = a >> width;
        a = choose(plane_of(even), a, up);
        b = choose(plane_of(even), down, b);
        return;
    }
#endif
    const Plane swapped = ((a >> width) ^ b) & even;
    b ^= swapped;
    a ^= swapped << width;
}

// Two steps for vectors `apart`, 2 `apart` and 3 `apart` behind each other; apart is the narrower step's width.
template <int apart> static MINERLIB_INLINE void exchange_four(Plane* a) {
    exchange<2 * apart>(a[0], a[2 * apart]);
    exchange<2 * apart>(a[apart], a[3 * apart]);
    exchange<apart>(a[0], a[apart]);
    exchange<apart>(a[2 * apart], a[3 * apart]);
}

// Every plane of a block and its opposite, behind one of zeros. Code c of the block is bit c % 64 of lane
// c / 64.
class Block {
public:
    explicit Block(const Codes& codes)
        : source_(codes), bits_(8 * codes.bytes), planes_((1 + 2 * bits_) * BLOCK_WORDS),
          words_(BLOCK_CODES * source_.words) {}

    // Where a plane lies, in words; 0 is where the zeros lie.
    static int64_t place(int64_t bit, bool opposite) { return (1 + 2 * bit + opposite) * BLOCK_WORDS; }

    // Takes codes first .. first + count - 1; the places behind them hold zero codes.
    void fill(int64_t first, int64_t count) {
        const uint8_t* bytes = source_.whole(first);  // read as they lie, if they can be
        if (bytes == nullptr || count < BLOCK_CODES) {
            source_.rows(first, count, words_.get());
            std::fill(words_.get() + count * source_.words, words_.get() + BLOCK_CODES * source_.words, 0);
            bytes = reinterpret_cast<const uint8_t*>(words_.get());
        }
        const int64_t stride = 8 * source_.words;
        Plane* out = reinterpret_cast<Plane*>(planes_.get());
        *out++ = Plane{};
        for (int64_t w = 0; w < source_.words; ++w) {
            Plane rows[64];
            const uint8_t* in = bytes + 8 * w;
            const uint8_t* next = bytes + BLOCK_CODES * stride + w * static_cast<int64_t>(sizeof rows);
            for (Plane& row : rows) {
                __builtin_prefetch(next, 0, 2);  // the next block; an address beyond the end does no harm
                next += sizeof row;
                for (int lane = 0; lane < BLOCK_WORDS; ++lane) {
                    uint64_t word;
                    std::memcpy(&word, in + 64 * lane * stride, 8);
                    row[lane] = word;
                }
                in += stride;
            }
            for (int i = 0; i < 16; ++i) exchange_four<16>(rows + i);
            for (int i = 0; i < 64; i += 16) {
                for (int j = i; j < i + 4; ++j) exchange_four<4>(rows + j);
            }
            const int64_t left = std::min<int64_t>(64, bits_ - 64 * w);
            for (int64_t bit = 0; bit < left; bit += 4) {
                exchange_four<1>(rows + bit);
                for (int64_t b = bit; b < bit + 4; ++b) {
                    *out++ = rows[b];
                    *out++ = ~rows[b];
                }
            }
        }
    }

    // The bits of the block's first `count` codes.
    static Plane there(int64_t count) {
        Plane out;
        for (int lane = 0; lane < BLOCK_WORDS; ++lane) {
            const int64_t left = std::clamp<int64_t>(count - 64 * lane, 0, 64);
            out[lane] = left == 64 ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
        }
        return out;
    }

    const uint64_t* planes() const { return planes_.get(); }

private:
    CodeWords source_;
    int64_t bits_;
    Buffer<uint64_t> planes_;  // of Plane
    Buffer<uint64_t> words_;   // [BLOCK_CODES, words]
};

// A bit-sliced number below 2^width.
template <int width> struct Number {
    Plane bit[width];
};

template <int width> static MINERLIB_INLINE Number<width + 1> add(const Number<width>& x, const Number<width>& y) {
    Number<width + 1> sum;
    sum.bit[0] = x.bit[0];
    Plane carry = add_one(sum.bit[0], y.bit[0]);
#pragma GCC unroll 16
    for (int i = 1; i < width; ++i) {
        sum.bit[i] = x.bit[i];
        carry = add_pair(sum.bit[i], pair_of(y.bit[i], carry));
    }
    sum.bit[width] = carry;
    return sum;
}

// x + y and x - y + 2^width.
template <int width>
static MINERLIB_INLINE void add_and_subtract(const Number<width>& x, const Number<width>& y, Number<width + 1>& sum,
                                             Number<width + 1>& difference) {
    Plane carry = x.bit[0] & y.bit[0], borrow = ~x.bit[0] & y.bit[0];
    sum.bit[0] = difference.bit[0] = x.bit[0] ^ y.bit[0];
#pragma GCC unroll 16
    for (int i = 1; i < width; ++i) {
        add_and_subtract(x.bit[i], y.bit[i], carry, borrow, sum.bit[i], difference.bit[i]);
    }
    sum.bit[width] = carry;
    difference.bit[width] = ~borrow;
}

// Where x is less than a limit; mask i is all ones where bit i of the limit is set.
template <int width> static MINERLIB_INLINE Plane below(const Number<width>& x, const uint64_t* limit_masks) {
    Plane at_least = ~Plane{};
#pragma GCC unroll 16
    for (int i = 0; i < width; ++i) at_least = both_or_either(plane_of(limit_masks[i]), x.bit[i], at_least);
    return ~at_least;
}

// The number of ones among some planes of a block, which are less than 2^width.
template <int width> class Ones {
    static_assert(width >= 4, "sixteen planes carry up to bit 4");

public:
    // `places` of planes in words; their count is a multiple of four.
    MINERLIB_INLINE void count(const uint64_t* planes, const uint16_t* places, int64_t count) {
#pragma GCC unroll 16
        for (int i = 0; i < width; ++i) total.bit[i] = Plane{};
        int64_t i = 0;
        if (__builtin_expect(count >= 16, 1)) {  // on its own, as totals of zero save instructions
            sixteen(planes, places);
            i = 16;
        }
        for (; i + 16 <= count; i += 16) sixteen(planes, places + i);
        if (count & 8) {
            carry<3>(add_pair(total.bit[2], eight(planes, places + i)));
            i += 8;
        }
        if (count & 4) carry<2>(add_pair(total.bit[1], four(planes, places + i)));
    }

    Number<width> total;

private:
    static Plane plane(const uint64_t* planes, uint16_t place) {
        return *reinterpret_cast<const Plane*>(planes + place);
    }

    MINERLIB_INLINE Pair four(const uint64_t* planes, const uint16_t* places) {
        const Pair first = pair_of(plane(planes, places[0]), plane(planes, places[1]));
        const Pair second = pair_of(plane(planes, places[2]), plane(planes, places[3]));
        return add_pairs(total.bit[0], first, second);
    }

    MINERLIB_INLINE Pair eight(const uint64_t* planes, const uint16_t* places) {
        const Pair first = four(planes, places), second = four(planes, places + 4);
        return add_pairs(total.bit[1], first, second);
    }

    MINERLIB_INLINE void sixteen(const uint64_t* planes, const uint16_t* places) {
        const Pair first = eight(planes, places), second = eight(planes, places + 8);
        carry<4>(add_pair(total.bit[3], add_pairs(total.bit[2], first, second)));
    }

    template <int from> MINERLIB_INLINE void carry(Plane bit) {
#pragma GCC unroll 16
        for (int i = from; i < width; ++i) bit = add_one(total.bit[i], bit);
    }
};

}  // namespace MINERLIB_ISA
}  // namespace minerlib
