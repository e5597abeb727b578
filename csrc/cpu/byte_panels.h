// Rows rounded to bytes, multiplied at twice the rate of 16-bit integers: what coarse.h and near_tiles.h have in
// common.
//
// With a step s, a row is a = s q + e, q whole and at most LARGEST in magnitude. Sums of products are taken modulo
// 2^16; only their end must lie within 16 bits. vpmaddubsw takes bytes without a sign on one side: anchors hold q +
// LARGEST, and the columns' terms take LARGEST times their sum away. Two products of at most 2 LARGEST * LARGEST fit 16
// bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd.h"

namespace minerlib {
namespace MINERLIB_ISA {

// A row and a column, by their positions.
struct RowPair {
    int32_t row, column;
};

#if MINERLIB_ISA_LEVEL == 1 && !defined(MINERLIB_TILES)
struct BytePanels {
    static constexpr int64_t ROWS = TILE_ROWS, COLUMNS = 32;
    static constexpr int LARGEST = 90;     // 4 * 90 * 90 < 2^15
    static constexpr double LENGTH = 181;  // of a row in steps: half a squared distance is 2 * 181^2 < 2^16 at most

    static int16_t wrapped(int32_t x) { return static_cast<int16_t>(static_cast<uint16_t>(x)); }
    static int16_t whole(double z, int16_t most) {
        return static_cast<int16_t>(std::clamp(z, -32768.0, static_cast<double>(most)));
    }

    // Half the squared norm of a row of `padded` values, which errs by rounding() of it at most.
    static float half_square(const float* row, int64_t padded) {
        FloatV sum = {};
        for (int64_t k = 0; k < padded; k += WIDTH) sum += load(row + k) * load(row + k);
        float total = 0;
        for (int lane = 0; lane < WIDTH; ++lane) total += sum[lane];
        return 0.5f * total;
    }
    static double rounding(int64_t padded) { return static_cast<double>(padded / WIDTH + 2 * WIDTH) * 0x1p-24; }

    // q of a row, the sum of its values, and |e|.
    static double convert(const float* row, int64_t padded, double step, int8_t* out, int32_t& sum) {
        const FloatV factor = splat(1.0f / static_cast<float>(step)), unit = splat(static_cast<float>(step));
        const FloatV top = splat(static_cast<float>(LARGEST));
        FloatV squares = {}, sums = {};
        for (int64_t k = 0; k < padded; k += WIDTH) {
            const FloatV x = load(row + k);
            FloatV q = _mm256_round_ps(x * factor, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
            q = _mm256_max_ps(_mm256_min_ps(q, top), -top);
            const FloatV rest = _mm256_fnmadd_ps(q, unit, x);
            squares += rest * rest;
            sums += q;
            const __m256i whole = _mm256_cvtps_epi32(q);
            const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
            _mm_storel_epi64(reinterpret_cast<__m128i*>(out + k), _mm_packs_epi16(halves, halves));
        }
        double square = 0, total = 0;
        for (int lane = 0; lane < WIDTH; ++lane) {
            square += static_cast<double>(squares[lane]);
            total += static_cast<double>(sums[lane]);
        }
        sum = static_cast<int32_t>(total);
        return std::sqrt(square) * (1.0 + static_cast<double>(padded) * 0x1p-22);  // the float32 sum errs
    }

    // Row `row` of a panel of anchors [pairs][ROWS].
    static void pack_row(const int8_t* row, int64_t pairs, uint16_t* out) {
        for (int64_t k = 0; k < pairs; ++k) {
            out[k * ROWS] = static_cast<uint16_t>((row[2 * k] + LARGEST) | (row[2 * k + 1] + LARGEST) << 8);
        }
    }

    // Rows [count][pairs][2] as a block of columns: [pairs][COLUMNS] pairs of bytes.
    static void interleave(const int8_t* rows, int64_t count, int64_t pairs, int16_t* out) {
        if (count < COLUMNS) std::fill_n(out, COLUMNS * pairs, int16_t{0});
        for (int64_t c = 0; c < count; ++c) {
            for (int64_t k = 0; k < pairs; ++k) std::memcpy(out + k * COLUMNS + c, rows + (c * pairs + k) * 2, 2);
        }
    }

    // Adds up the products of a panel of anchors and a block of columns. Takes all 16 registers.
    [[gnu::always_inline]] static void multiply(const uint16_t* a, const int16_t* b, int64_t pairs,
                                                __m256i (&sums)[ROWS][2]) {
        for (int64_t k = 0; k < pairs; ++k) {
            const __m256i b0 = load_whole(b), b1 = load_whole(b + 16);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) multiply_add(a[r], b0, b1, sums[r]);
            a += ROWS;
            b += COLUMNS;
        }
    }

    static __m256i load_whole(const int16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

    // Truths of two rows, as bytes in the order in which vpacksswb leaves them: bit 32 r + c of row r and column c.
    static uint64_t mask(const __m256i* truths) {
        uint64_t rows[2];
        for (int r = 0; r < 2; ++r) {
            const __m256i in_order = _mm256_permute4x64_epi64(truths[r], 0xD8);  // packed half by half
            rows[r] = static_cast<uint32_t>(_mm256_movemask_epi8(in_order));
        }
        return rows[0] | rows[1] << 32;
    }

    // Writes the pairs of such a word, whose first row and column are given. Returns how many; what lies up to AT_ONCE
    // elements behind them is overwritten.
    static constexpr int64_t AT_ONCE = 3;
    static int64_t list(uint64_t word, int64_t row, int64_t column, RowPair* out) {
        const int64_t count = __builtin_popcountll(word);
        // Few are more than AT_ONCE: a loop of that many has no branch that is hard to foresee.
        for (int64_t k = 0; k < std::max(count, AT_ONCE); ++k, word &= word - 1) {
            const int bit = __builtin_ctzll(word | uint64_t{1} << 63);
            out[k] = {static_cast<int32_t>(row) + bit / 32, static_cast<int32_t>(column) + bit % 32};
        }
        return count;
    }

    // Which bits of a word of two rows are real, where there are only `rows` rows and `columns` columns from there on.
    static uint64_t real(int64_t rows, int64_t columns) {
        const uint64_t lanes = (uint64_t{1} << std::min(columns, COLUMNS)) - 1;
        return rows >= 2 ? lanes * 0x100000001 : rows == 1 ? lanes : 0;
    }

private:
    // Assembly, since 12 sums, 2 columns and 2 products take all registers and the compiler spills.
    static void multiply_add(const uint16_t& a, __m256i b0, __m256i b1, __m256i* sums) {
        __m256i first, second;
        asm("vpbroadcastw %4, %3\n\tvpmaddubsw %5, %3, %2\n\tvpaddw %2, %0, %0\n\t"
            "vpmaddubsw %6, %3, %3\n\tvpaddw %3, %1, %1"
            : "+x"(sums[0]), "+x"(sums[1]), "=&x"(first), "=&x"(second)
            : "m"(a), "x"(b0), "x"(b1));
    }
};
#endif

}  // namespace MINERLIB_ISA
}  // namespace minerlib
