// Packed codes as 32-bit words, and the number of bits in which two of them differ.
//
// A code has `width` words: 1, 2, 4, 8, or a greater multiple of 8; what its bytes leave open is 0 and adds nothing.
// Queries lie row by row. Database rows lie in planes of up to four words, so that the threads of a warp, which hold
// neighbouring rows, read neighbouring vectors: vector v of row r is the (v * rows + r)-th.
//
// Popcounts are the scarce instruction (16 a cycle and multiprocessor, logic 64), so words are first added up bit by
// bit: a full adder turns three words into two, one of which counts twice. 4 words take 3 popcounts, 8 take 4. Going on
// across steps (one popcount for every further 8 words) would save popcounts, but logic is the limit by then.
// Source: Warren, Hacker's Delight, section 5-1.

#pragma once

#include "cuda/block.h"

namespace minerlib::cuda {

// WORDS of a kernel's code: the width, or LONG for any multiple of 8.
constexpr int LONG = 0;

template <int WORDS> constexpr int STEP = WORDS == LONG ? 8 : WORDS;  // words that are taken at a time
template <int WORDS> constexpr int VECTOR = STEP<WORDS> < 4 ? STEP<WORDS> : 4;

struct Codes {
    const uint32_t* words;
    int64_t rows;   // of a plane
    int32_t width;  // words of a code
};

template <int WORDS> MINERLIB_DEVICE int steps(int width) { return WORDS == LONG ? width / 8 : 1; }

// Words step * STEP .. of a query.
template <int WORDS>
MINERLIB_DEVICE void load_query(const uint32_t* query, int step, uint32_t (&out)[STEP<WORDS>]) {
    using Part = Vector<VECTOR<WORDS>>;
    const Part* parts = reinterpret_cast<const Part*>(query) + step * (STEP<WORDS> / VECTOR<WORDS>);
    MINERLIB_UNROLL
    for (int v = 0; v < STEP<WORDS> / VECTOR<WORDS>; ++v) {
        const Part part = parts[v];
        MINERLIB_UNROLL
        for (int w = 0; w < VECTOR<WORDS>; ++w) out[v * VECTOR<WORDS> + w] = part.word[w];
    }
}

// Words step * STEP .. of a database row.
template <int WORDS>
MINERLIB_DEVICE void load_row(const Codes& codes, int64_t row, int step, uint32_t (&out)[STEP<WORDS>]) {
    using Part = Vector<VECTOR<WORDS>>;
    constexpr int PARTS = STEP<WORDS> / VECTOR<WORDS>;
    const Part* parts = reinterpret_cast<const Part*>(codes.words) + row;
    MINERLIB_UNROLL
    for (int v = 0; v < PARTS; ++v) {
        const Part part = parts[(static_cast<int64_t>(step) * PARTS + v) * codes.rows];
        MINERLIB_UNROLL
        for (int w = 0; w < VECTOR<WORDS>; ++w) out[v * VECTOR<WORDS> + w] = part.word[w];
    }
}

// Word w of a database row.
template <int WORDS> MINERLIB_DEVICE uint32_t word_of(const Codes& codes, int64_t row, int w) {
    return codes.words[(w / VECTOR<WORDS> * codes.rows + row) * VECTOR<WORDS> + w % VECTOR<WORDS>];
}

// Three words become their sum without carries, and the carries, which count twice. Left to itself the compiler spends
// three instructions on it and not two. An instruction's number is what it makes of the bits 0xF0, 0xCC and 0xAA.
static_assert(((0xF0 & 0xCC) | (0xF0 & 0xAA) | (0xCC & 0xAA)) == 0xE8 && (0xF0 ^ 0xCC ^ 0xAA) == 0x96);
MINERLIB_DEVICE uint32_t full_adder(uint32_t& sum, uint32_t a, uint32_t b) {
    uint32_t carry;
#ifdef __CUDACC__
    asm("lop3.b32 %0, %1, %2, %3, 0xE8;" : "=r"(carry) : "r"(sum), "r"(a), "r"(b));
    asm("lop3.b32 %0, %0, %1, %2, 0x96;" : "+r"(sum) : "r"(a), "r"(b));
#else
    carry = (sum & a) | (sum & b) | (a & b);
    sum = sum ^ a ^ b;
#endif
    return carry;
}

// Counts differing bits, STEP words at a time.
template <int WORDS> class Difference {
public:
    MINERLIB_DEVICE void add(const uint32_t (&a)[STEP<WORDS>], const uint32_t (&b)[STEP<WORDS>]) {
        uint32_t x[STEP<WORDS>];
        MINERLIB_UNROLL
        for (int w = 0; w < STEP<WORDS>; ++w) x[w] = a[w] ^ b[w];
        if constexpr (STEP<WORDS> == 8) {
            const uint32_t two0 = full_adder(x[0], x[1], x[2]), two1 = full_adder(x[3], x[4], x[5]);
            uint32_t twos = full_adder(x[0], x[3], x[6]);
            const uint32_t fours = full_adder(twos, two0, two1);
            total_ += popcount(x[0]) + popcount(x[7]) + 2 * popcount(twos) + 4 * popcount(fours);
        } else if constexpr (STEP<WORDS> == 4) {
            const uint32_t twos = full_adder(x[0], x[1], x[2]);
            total_ += popcount(x[0] ^ x[3]) + 2 * (popcount(twos) + popcount(x[0] & x[3]));
        } else if constexpr (STEP<WORDS> == 2) {
            total_ += popcount(x[0]) + popcount(x[1]);
        } else {
            total_ += popcount(x[0]);
        }
    }

    MINERLIB_DEVICE int total() const { return total_; }

private:
    int32_t total_ = 0;
};

// A query's words, in registers where their number is known.
template <int WORDS> class Query {
public:
    MINERLIB_DEVICE explicit Query(const uint32_t* query) : query_(query) {
        if constexpr (WORDS != LONG) load_query<WORDS>(query, 0, word_);
    }

    MINERLIB_DEVICE int distance(const Codes& codes, int64_t row) const {
        Difference<WORDS> difference;
        uint32_t other[STEP<WORDS>];
        for (int step = 0; step < steps<WORDS>(codes.width); ++step) {
            load_row<WORDS>(codes, row, step, other);
            if constexpr (WORDS != LONG) {
                difference.add(word_, other);
            } else {
                uint32_t own[STEP<WORDS>];
                load_query<WORDS>(query_, step, own);
                difference.add(own, other);
            }
        }
        return difference.total();
    }

private:
    const uint32_t* query_;
    uint32_t word_[STEP<WORDS>];
};

}  // namespace minerlib::cuda
