// Panels: rows converted, interleaved and multiplied in tiles of Panel::ROWS x Panel::COLUMNS.
//
// A panel holds one 4-byte element for each step of the inner loop and each of its rows: a float32 value, or a
// pair of bfloat16 or int16 values of neighbouring dimensions. convert() rounds a row of float32, zero-padded to whole
// multiples of Panel::PADDING, in place and returns its residual, |a - converted a| / |a|; pack_rows() and
// pack_columns() make panels of converted rows; tile() writes v = h - a . b (filter.h).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd.h"

namespace minerlib {
namespace MINERLIB_ISA {

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// [count][elements] to [elements][LANES_OUT], zeros in the lanes beyond count. Elements are moved, not read.
template <int LANES_OUT>
static inline void interleave(const float* rows, int64_t stride, int64_t count, int64_t elements, float* out) {
    if (count == LANES_OUT) {
        for (int64_t k = 0; k < elements; ++k) {
            for (int lane = 0; lane < LANES_OUT; ++lane) out[k * LANES_OUT + lane] = rows[lane * stride + k];
        }
        return;
    }
    for (int64_t k = 0; k < elements; ++k) {
        for (int lane = 0; lane < LANES_OUT; ++lane) {
            out[k * LANES_OUT + lane] = lane < count ? rows[lane * stride + k] : 0.0f;
        }
    }
}

// What panels have in common whose tiles stay in vector registers.
struct VectorPanel {
    static constexpr int64_t ROWS = TILE_ROWS, COLUMNS = TILE_COLUMNS;
    static constexpr int64_t PADDING = 2 * WIDTH;  // dimensions of a row are padded to a multiple
    static constexpr int64_t TOGETHER = 1 << 20;   // panels of anchors whose values are made before any is used
    static constexpr int64_t CHUNK = 512;          // columns whose values are made before any is used
    struct Session {};                             // what a thread holds while it computes tiles

    static void pack_rows(const float* rows, int64_t stride, int64_t count, int64_t steps, float* out) {
        interleave<ROWS>(rows, stride, count, steps, out);
    }
    static void pack_columns(const float* rows, int64_t stride, int64_t count, int64_t steps, float* out) {
        interleave<COLUMNS>(rows, stride, count, steps, out);
    }
};

struct Float32Panel : VectorPanel {
    // Steps of one running sum before it is added up: bounds the error for any D.
    static constexpr int64_t DEPTH = 128;

    static int64_t steps(int64_t dims) { return dims; }

    // The error of a tile beyond the conversion's, in units of 2^-24 (H_i + H_j).
    static double roundings(int64_t dims) {
        return static_cast<double>(std::min(dims, DEPTH) + 2 * ceil_div(dims, DEPTH));
    }

    static constexpr double LARGEST_RESIDUAL = 0;
    static double convert(float*, int64_t, double) { return 0.0; }

    static void tile(const float* a, const float* b, int64_t steps, const float* h, float* out, int64_t stride) {
        for (int64_t k = 0; k < steps; k += DEPTH) {
            tile_part(a + k * TILE_ROWS, b + k * TILE_COLUMNS, std::min(DEPTH, steps - k), k == 0 ? h : nullptr, out,
                      stride);
        }
    }

private:
    // out = (h or out) - a . b over `depth` dimensions; the accumulators stay in registers.
    static void tile_part(const float* a, const float* b, int64_t depth, const float* h, float* out, int64_t stride) {
        FloatV acc[TILE_ROWS][2] = {};
        for (int64_t k = 0; k < depth; ++k) {
            const FloatV b0 = load(b), b1 = load(b + WIDTH);
#pragma GCC unroll 16
            for (int i = 0; i < TILE_ROWS; ++i) {
                const FloatV ai = splat(a[i]);
                acc[i][0] = multiply_add(ai, b0, acc[i][0]);
                acc[i][1] = multiply_add(ai, b1, acc[i][1]);
            }
            a += TILE_ROWS;
            b += TILE_COLUMNS;
        }
#pragma GCC unroll 16
        for (int i = 0; i < TILE_ROWS; ++i) {
            float* row = out + i * stride;
            const float* base = h != nullptr ? h : row;
            const FloatV v0 = load(base) - acc[i][0], v1 = load(base + WIDTH) - acc[i][1];
            store(row, v0);
            store(row + WIDTH, v1);
        }
    }
};

// Rounds a row in place to bfloat16, half as wide: nearest even, and to zero below 2^-126, as products of bfloat16 take
// it. Returns what that loses of the row's norm, 0 where none is given.
static inline double round_to_bfloat16(float* row, int64_t padded, double norm) {
    typedef uint16_t HalfV __attribute__((vector_size(WIDTH * 2), aligned(2), may_alias));
    FloatV squares = {};
    for (int64_t k = 0; k < padded; k += WIDTH) {
        const FloatV value = load(row + k);
        const IntV bits = reinterpret_cast<IntV>(value);
        IntV rounded = bits + 0x7FFF + ((bits >> 16) & 1);
        rounded &= (rounded & 0x7F800000) != 0;
        const FloatV rest = value - reinterpret_cast<FloatV>(rounded & static_cast<int32_t>(0xFFFF0000u));
        squares += rest * rest;
        *reinterpret_cast<HalfV*>(row + k / 2) = __builtin_convertvector(rounded >> 16, HalfV);
    }
    if (norm == 0) return 0;
    double sum = 0;
    for (int lane = 0; lane < WIDTH; ++lane) sum += static_cast<double>(squares[lane]);
    return std::sqrt(sum) / norm * (1.0 + static_cast<double>(padded) * 0x1p-22);  // the float32 sum errs, too
}

#if MINERLIB_ISA_LEVEL >= 3
// Two dimensions a step, rounded to bfloat16: twice float32's rate. What rounding loses, 2^-8 of a row's norm at
// most and usually half of that, is measured by convert().
struct Bfloat16Panel : VectorPanel {
    static int64_t steps(int64_t dims) { return (dims + 1) / 2; }

    // One running sum of all dimensions, products exact.
    static double roundings(int64_t dims) { return static_cast<double>(dims) + 4; }

    static constexpr double LARGEST_RESIDUAL = 0x1p-8;

    static double convert(float* row, int64_t dims, double norm) {
        return round_to_bfloat16(row, ceil_div(dims, PADDING) * PADDING, norm);
    }

    static void tile(const float* a, const float* b, int64_t steps, const float* h, float* out, int64_t stride) {
        FloatV acc[TILE_ROWS][2] = {};
        for (int64_t k = 0; k < steps; ++k) {
            const FloatV b0 = load(b), b1 = load(b + WIDTH);
#pragma GCC unroll 16
            for (int i = 0; i < TILE_ROWS; ++i) {
                // Assembly, since the intrinsic has no broadcast from memory and the compiler spills without it.
                asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(acc[i][0]) : "v"(b0), "m"(a[i]));
                asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(acc[i][1]) : "v"(b1), "m"(a[i]));
            }
            a += TILE_ROWS;
            b += TILE_COLUMNS;
        }
        const FloatV h0 = load(h), h1 = load(h + WIDTH);
#pragma GCC unroll 16
        for (int i = 0; i < TILE_ROWS; ++i) {
            store(out + i * stride, h0 - acc[i][0]);
            store(out + i * stride + WIDTH, h1 - acc[i][1]);
        }
    }
};
#endif

#if defined(MINERLIB_TILES)
// FastPanel is that of amx_panel.h.
#elif MINERLIB_ISA_LEVEL >= 3
using FastPanel = Bfloat16Panel;
#elif MINERLIB_ISA_LEVEL == 1
// Two dimensions a step, as integers of up to 13 bits with a scale for each row, so that a sum over DEPTH dimensions
// is exact in 32 bits: 1.4 times float32's rate, and 2^-12 of a row's norm is lost where its values are of a size.
// The scale is the last element of a row.
struct Int16Panel : VectorPanel {
    static constexpr int64_t DEPTH = 64;  // steps of one sum

    static int64_t steps(int64_t dims) { return pairs(dims) + 1; }

    // The scaled sums of the chunks, and the chunk sums: products are exact.
    static double roundings(int64_t dims) { return 4.0 + 2.0 * static_cast<double>(ceil_div(pairs(dims), DEPTH)); }

    static constexpr double LARGEST_RESIDUAL = -1;  // depends on the data: to be measured

    static double convert(float* row, int64_t dims, double norm) {
        const int64_t padded = ceil_div(dims, 2 * WIDTH) * 2 * WIDTH;
        const FloatV sign = splat(-0.0f);
        FloatV magnitudes = {};
        for (int64_t k = 0; k < padded; k += WIDTH) {
            magnitudes = _mm256_max_ps(magnitudes, _mm256_andnot_ps(sign, load(row + k)));
        }
        float largest = 0;
        for (int lane = 0; lane < WIDTH; ++lane) largest = std::max(largest, magnitudes[lane]);
        const float limit = static_cast<float>(most(dims));
        // Rows so short that their scale would lose bits: what that costs is less than the bound's absolute part.
        const bool tiny = largest < limit * 0x1p-126f;
        const float scale = tiny ? 0x1p-126f : largest / limit;
        const FloatV factor = splat(1.0f / scale), top = splat(limit);
        FloatV squares = {};
        for (int64_t k = 0; k < padded; k += 2 * WIDTH) {
            const FloatV low = load(row + k), high = load(row + k + WIDTH);
            const FloatV low_steps = whole(low * factor, top), high_steps = whole(high * factor, top);
            const FloatV low_rest = _mm256_fnmadd_ps(low_steps, splat(scale), low);
            const FloatV high_rest = _mm256_fnmadd_ps(high_steps, splat(scale), high);
            squares += low_rest * low_rest + high_rest * high_rest;
            const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(low_steps), _mm256_cvtps_epi32(high_steps));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(row + k / 2), _mm256_permute4x64_epi64(packed, 0xD8));
        }
        row[pairs(dims)] = scale;
        if (norm == 0 || tiny) return 0;
        double sum = 0;
        for (int lane = 0; lane < WIDTH; ++lane) sum += static_cast<double>(squares[lane]);
        return std::sqrt(sum) / norm * (1.0 + static_cast<double>(dims) * 0x1p-22);  // the float32 sum errs, too
    }

    static void tile(const float* a, const float* b, int64_t steps, const float* h, float* out, int64_t stride) {
        const int64_t scales = steps - 1;
        for (int64_t k = 0; k < scales; k += DEPTH) {
            tile_part(a + k * TILE_ROWS, b + k * TILE_COLUMNS, std::min(DEPTH, scales - k), a + scales * TILE_ROWS,
                      b + scales * TILE_COLUMNS, k == 0 ? h : nullptr, out, stride);
        }
    }

    // h - a . b of two converted rows of `elements`, zero-padded to whole vectors, whose scales have been taken.
    static float value(const float* a, const float* b, int64_t elements, float scales, float h) {
        for (int64_t first = 0; first < elements; first += DEPTH) {
            __m256i sums = {};
            for (int64_t k = first; k < std::min(elements, first + DEPTH); k += WIDTH) {
                const __m256i products =
                    _mm256_madd_epi16(reinterpret_cast<__m256i>(load(a + k)), reinterpret_cast<__m256i>(load(b + k)));
                sums = _mm256_add_epi32(sums, products);
            }
            const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
            const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
            const int32_t sum = _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xB1)));
            h -= static_cast<float>(sum) * scales;
        }
        return h;
    }

    // The same of four pairs.
    static __m128 values(const float* const* a, const float* const* b, int64_t elements, __m128 scales, __m128 h) {
        for (int64_t first = 0; first < elements; first += DEPTH) {
            __m256i sums[4] = {};
            for (int64_t k = first; k < std::min(elements, first + DEPTH); k += WIDTH) {
                for (int p = 0; p < 4; ++p) {
                    const __m256i products = _mm256_madd_epi16(reinterpret_cast<__m256i>(load(a[p] + k)),
                                                               reinterpret_cast<__m256i>(load(b[p] + k)));
                    sums[p] = _mm256_add_epi32(sums[p], products);
                }
            }
            const __m256i both =
                _mm256_hadd_epi32(_mm256_hadd_epi32(sums[0], sums[1]), _mm256_hadd_epi32(sums[2], sums[3]));
            const __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
            h = _mm_fnmadd_ps(_mm_cvtepi32_ps(sum), scales, h);
        }
        return h;
    }

private:
    static int64_t pairs(int64_t dims) { return (dims + 1) / 2; }

    // The largest integer whose square, summed over a chunk, fits 31 bits.
    static int32_t most(int64_t dims) {
        const auto terms = static_cast<double>(2 * std::min(pairs(dims), DEPTH));
        return static_cast<int32_t>(std::sqrt(std::min(2147483647.0 / terms, 32767.0 * 32767.0)));
    }

    static FloatV whole(FloatV x, FloatV top) {
        const FloatV rounded = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        return _mm256_max_ps(_mm256_min_ps(rounded, top), -top);
    }

    // out = (h or out) - a . b over `depth` steps; the accumulators stay in registers. Not inlined, since the loop
    // takes all 16 of them and callers' values would be spilled inside it.
    [[gnu::noinline]] static void tile_part(const float* a, const float* b, int64_t depth, const float* row_scales,
                                            const float* column_scales, const float* h, float* out, int64_t stride) {
        __m256i acc[TILE_ROWS][2] = {};
        for (int64_t k = 0; k < depth; ++k) {
            const FloatV b0 = load(b), b1 = load(b + WIDTH);
#pragma GCC unroll 16
            for (int i = 0; i < TILE_ROWS; ++i) multiply_add_pairs(a[i], b0, b1, acc[i]);
            a += TILE_ROWS;
            b += TILE_COLUMNS;
        }
        const FloatV s0 = load(column_scales), s1 = load(column_scales + WIDTH);
#pragma GCC unroll 16
        for (int i = 0; i < TILE_ROWS; ++i) {
            float* row = out + i * stride;
            const float* base = h != nullptr ? h : row;
            const FloatV scale = splat(row_scales[i]);
            const FloatV v0 = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(acc[i][0]) * scale, s0, load(base));
            const FloatV v1 = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(acc[i][1]) * scale, s1, load(base + WIDTH));
            store(row, v0);
            store(row + WIDTH, v1);
        }
    }

    // Assembly, since 12 sums, 2 columns and 2 products take all registers and the compiler spills.
    static void multiply_add_pairs(const float& a, FloatV b0, FloatV b1, __m256i* sums) {
        FloatV first, second;
        asm("vbroadcastss %4, %3\n\tvpmaddwd %5, %3, %2\n\tvpaddd %2, %0, %0\n\t"
            "vpmaddwd %6, %3, %3\n\tvpaddd %3, %1, %1"
            : "+x"(sums[0]), "+x"(sums[1]), "=&x"(first), "=&x"(second)
            : "m"(a), "x"(b0), "x"(b1));
    }
};
using FastPanel = Int16Panel;
#else
using FastPanel = Float32Panel;
#endif

}  // namespace MINERLIB_ISA
}  // namespace minerlib
