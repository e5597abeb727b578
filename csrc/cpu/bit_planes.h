// Which codes of a block lie within a distance of a query, for all codes of the block at once.
//
// A block holds as many codes as a vector has bits. Its codes are transposed into planes (plane b: bit b of every
// code), so that one logical instruction works on all of them, and distances are added up in bit-sliced counters
// (counter c: bit c of every distance) by full adders. Three ideas save most of the additions:
//   - Planes go in threes. What three bits of a code add to the distance is a two-bit number that depends on three
//     bits of the query: eight possible pairs of vectors, made once for a block and looked up for every query.
//     The high one is the majority of the three (negated for the opposite query bits), the low one their parity.
//   - The counters start at 2^m - 1 - threshold, so that counter m ends up set exactly for the codes beyond the
//     threshold: nothing is compared.
//   - Codes are never un-transposed: the distances of the few hits are counted anew from their words.
// Per triple and query: two loads and two full adders (2 instructions each with AVX-512, 5 without). Long codes go
// in segments whose vectors fit the nearest cache, the counters of every query being kept in between.
#pragma once

#include <algorithm>
#include <type_traits>

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

static inline Plane plane_of(bool bit) { return Plane{} - static_cast<uint64_t>(bit); }

// total + a + b as sum (in place) and carry.
static inline Plane full_add(Plane& total, Plane a, Plane b) {
#if MINERLIB_ISA_LEVEL >= 2
    const __m512i x = reinterpret_cast<__m512i>(total), y = reinterpret_cast<__m512i>(a),
                  z = reinterpret_cast<__m512i>(b);
    total = reinterpret_cast<Plane>(_mm512_ternarylogic_epi64(x, y, z, 0x96));
    return reinterpret_cast<Plane>(_mm512_ternarylogic_epi64(x, y, z, 0xE8));
#else
    const Plane either = total ^ a;
    const Plane carry = (total & a) | (either & b);
    total = either ^ b;
    return carry;
#endif
}

static inline Plane half_add(Plane& total, Plane a) {
    const Plane carry = total & a;
    total ^= a;
    return carry;
}

// Transposes the 64 x 64 bits of every lane: afterwards bit i of a[j] is what bit j of a[i] was.
static inline void transpose_bits(Plane* a) {
    uint64_t mask = 0x00000000FFFFFFFF;
#pragma GCC unroll 6
    for (int width = 32; width > 0; width >>= 1) {
        for (int i = 0; i < 64; i = ((i | width) + 1) & ~width) {
            const Plane swapped = ((a[i] >> width) ^ a[i | width]) & mask;
            a[i | width] ^= swapped;
            a[i] ^= swapped << width;
        }
        mask ^= mask << (width / 2);
    }
}

// Counters live in registers only where all that touches them is inlined.
#define MINERLIB_INLINE __attribute__((always_inline)) inline

constexpr int TRIPLE_VECTORS = 10;  // eight majorities, the parity and its opposite
constexpr int TRIPLE_BYTES = TRIPLE_VECTORS * sizeof(Plane);

// Triples whose vectors are used for all queries before the next ones are.
constexpr int64_t SEGMENT_TRIPLES = (24 << 10) / TRIPLE_BYTES;

// Triples of planes of a code, rounded up to a pair of triples (the last ones hold zeros).
static inline int64_t triples_of(int64_t bytes) { return (8 * bytes + 5) / 6 * 2; }

// Where the two vectors of a triple lie for a query: byte offsets.
struct Pick {
    uint16_t majority, parity;
};

static inline void pick_vectors(const uint64_t* query, int64_t bytes, Pick* picks) {
    const auto bit = [&](int64_t b) { return b < 8 * bytes ? query[b / 64] >> b % 64 & 1 : 0; };
    for (int64_t t = 0; t < triples_of(bytes); ++t) {
        const uint64_t x = bit(3 * t), y = bit(3 * t + 1), z = bit(3 * t + 2);
        const uint64_t majority = x | y << 1 | z << 2, parity = 8 + (x ^ y ^ z);
        picks[t].majority = static_cast<uint16_t>(majority * sizeof(Plane));
        picks[t].parity = static_cast<uint16_t>(parity * sizeof(Plane));
    }
}

class Block {
public:
    explicit Block(const Codes& codes)
        : source_(codes), bytes_(codes.bytes), planes_((source_.words * 64 + 6) * BLOCK_WORDS),
          vectors_(triples_of(codes.bytes) * TRIPLE_VECTORS * BLOCK_WORDS) {}

    // Takes codes first .. first + count - 1; the places behind them hold zero codes.
    void fill(int64_t first, int64_t count) {
        Plane* planes = reinterpret_cast<Plane*>(planes_.get());
        for (int64_t w = 0; w < source_.words; ++w) {
            uint64_t* out = reinterpret_cast<uint64_t*>(planes + 64 * w);
            for (int64_t bit = 0; bit < 64; ++bit) {
                for (int64_t c = bit; c < BLOCK_CODES; c += 64) *out++ = c < count ? source_.word(first + c, w) : 0;
            }
            transpose_bits(planes + 64 * w);
        }
        for (int b = 0; b < 6; ++b) planes[64 * source_.words + b] = Plane{};
        for (int64_t t = 0; t < triples_of(bytes_); ++t) {
            const Plane x = planes[3 * t], y = planes[3 * t + 1], z = planes[3 * t + 2];
            Plane* out = reinterpret_cast<Plane*>(vectors_.get()) + TRIPLE_VECTORS * t;
            out[0] = majority(x, y, z);
            out[1] = majority(~x, y, z);
            out[2] = majority(x, ~y, z);
            out[4] = majority(x, y, ~z);
            for (int opposite = 0; opposite < 4; ++opposite) {
                const int pattern = opposite == 3 ? 4 : opposite;
                out[7 - pattern] = ~out[pattern];
            }
            out[8] = x ^ y ^ z;
            out[9] = ~out[8];
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

    const Plane* vectors() const { return reinterpret_cast<const Plane*>(vectors_.get()); }

private:
    static Plane majority(Plane x, Plane y, Plane z) { return full_add(x, y, z); }

    CodeWords source_;
    int64_t bytes_;
    Buffer<uint64_t> planes_;   // of Plane: code c of the block is bit c % 64 of lane c / 64
    Buffer<uint64_t> vectors_;  // of Plane, [triples, TRIPLE_VECTORS]
};

// Bit-sliced counters of distances below 2^levels, and one above them for the codes beyond a threshold.
template <int levels> class Counters {
    static_assert(levels >= 4, "a pair of triples carries up to counter 3");

public:
    // Of no triples yet; with threshold -1 every code is beyond.
    MINERLIB_INLINE void start(int64_t threshold) {
        const uint64_t value = static_cast<uint64_t>((int64_t{1} << levels) - 1 - threshold);
#pragma GCC unroll 16
        for (int c = 0; c <= levels; ++c) counter_[c] = plane_of(value >> c & 1);
    }

    MINERLIB_INLINE void load(const Plane* saved) {
#pragma GCC unroll 16
        for (int c = 0; c <= levels; ++c) counter_[c] = saved[c];
    }

    MINERLIB_INLINE void save(Plane* out) const {
#pragma GCC unroll 16
        for (int c = 0; c <= levels; ++c) out[c] = counter_[c];
    }

    // Adds triples first .. last - 1 of a block.
    MINERLIB_INLINE void add(const Plane* block, const Pick* picks, int64_t first, int64_t last) {
        const char* vectors = reinterpret_cast<const char*>(block);
        int64_t t = first;
        for (; t + 8 <= last; t += 8) add_eight(vectors + t * TRIPLE_BYTES, picks + t);
        if (t + 4 <= last) {
            add_four(vectors + t * TRIPLE_BYTES, picks + t);
            t += 4;
        }
        if (t < last) add_two(vectors + t * TRIPLE_BYTES, picks + t);
    }

    // The codes beyond the threshold: code c of the block as bit c % 64 of lane c / 64.
    Plane overflowed() const { return counter_[levels]; }

private:
    // The next two, four or eight triples. Carries are paired as they come, which keeps few of them waiting.
    MINERLIB_INLINE void add_two(const char* vectors, const Pick* picks) {
        Plane four;
        const Plane other = pair(vectors, picks, four);
        const Plane extra = half_add(counter_[1], other);
        carry(3, full_add(counter_[2], four, extra));
    }
    MINERLIB_INLINE void add_four(const char* vectors, const Pick* picks) {
        Plane waiting;
        const Plane eight = quad(vectors, picks, waiting);
        const Plane other = half_add(counter_[2], waiting);
        carry(4, full_add(counter_[3], eight, other));
    }
    MINERLIB_INLINE void add_eight(const char* vectors, const Pick* picks) {
        Plane waiting, also_waiting;
        const Plane first = quad(vectors, picks, waiting);
        const Plane second = quad(vectors + 4 * TRIPLE_BYTES, picks + 4, also_waiting);
        const Plane third = full_add(counter_[2], waiting, also_waiting);
        const Plane sixteen = full_add(counter_[3], first, second);
        const Plane other = half_add(counter_[3], third);
        if constexpr (levels > 4) {
            carry(5, full_add(counter_[4], sixteen, other));
        } else {
            counter_[4] |= sixteen | other;
        }
    }

    static Plane vector(const char* vectors, int64_t offset) {
        return *reinterpret_cast<const Plane*>(vectors + offset);
    }

    // Two triples: returns the carry of the parities, worth two, and in `four` that of the majorities.
    MINERLIB_INLINE Plane pair(const char* vectors, const Pick* picks, Plane& four) {
        const char* second = vectors + TRIPLE_BYTES;
        const Plane two = full_add(counter_[0], vector(vectors, picks[0].parity), vector(second, picks[1].parity));
        four = full_add(counter_[1], vector(vectors, picks[0].majority), vector(second, picks[1].majority));
        return two;
    }

    // Four triples: returns a carry worth eight, and in `waiting` one worth four.
    MINERLIB_INLINE Plane quad(const char* vectors, const Pick* picks, Plane& waiting) {
        Plane four, also_four;
        const Plane two = pair(vectors, picks, four);
        const Plane also_two = pair(vectors + 2 * TRIPLE_BYTES, picks + 2, also_four);
        waiting = full_add(counter_[1], two, also_two);
        return full_add(counter_[2], four, also_four);
    }

    MINERLIB_INLINE void carry(int from, Plane value) {
#pragma GCC unroll 16
        for (int c = from; c < levels; ++c) value = half_add(counter_[c], value);
        counter_[levels] |= value;
    }

    Plane counter_[levels + 1];
};

}  // namespace MINERLIB_ISA
}  // namespace minerlib
