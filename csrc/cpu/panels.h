// Panels: rows converted, interleaved and multiplied in tiles of TILE_ROWS x TILE_COLUMNS.
//
// A panel holds one 4-byte element for each step of the inner loop and each of its rows: a float32 value, or a
// pair of bfloat16 values of neighbouring dimensions. convert() rounds a row of float32 and returns its residual,
// |a - converted a| / |a|; tile() writes v = h - a . b (filter.h).
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

struct Float32Panel {
    // Steps of one running sum before it is added up: bounds the error for any D.
    static constexpr int64_t DEPTH = 128;

    static int64_t steps(int64_t dims) { return dims; }

    // The error of a tile beyond the conversion's, in units of 2^-24 (H_i + H_j).
    static double roundings(int64_t dims) {
        return static_cast<double>(std::min(dims, DEPTH) + 2 * ceil_div(dims, DEPTH));
    }

    static double largest_residual(int64_t) { return 0.0; }
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

#if MINERLIB_ISA_LEVEL >= 3
// Two dimensions a step, rounded to bfloat16: twice float32's rate. What rounding loses, 2^-8 of a row's norm at
// most and usually half of that, is measured by convert().
struct Bfloat16Panel {
    static int64_t steps(int64_t dims) { return (dims + 1) / 2; }

    // One running sum of all dimensions, products exact.
    static double roundings(int64_t dims) { return static_cast<double>(dims) + 4; }

    static double largest_residual(int64_t) { return 0x1p-8; }

    // Overwrites a row, zero-padded to whole vectors, by its bfloat16 values; returns its residual.
    static double convert(float* row, int64_t dims, double norm) {
        FloatV squares = {};
        for (int64_t k = 0; k < ceil_div(dims, 2 * WIDTH) * 2 * WIDTH; k += 2 * WIDTH) {
            const FloatV low = load(row + k), high = load(row + k + WIDTH);
            const __m512i pairs = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
            const FloatV low_rest = low - widen(_mm512_castsi512_si256(pairs));
            const FloatV high_rest = high - widen(_mm512_extracti64x4_epi64(pairs, 1));
            squares += low_rest * low_rest + high_rest * high_rest;
            _mm512_storeu_si512(row + k / 2, pairs);
        }
        if (norm == 0) return 0;
        double sum = 0;
        for (int lane = 0; lane < WIDTH; ++lane) sum += static_cast<double>(squares[lane]);
        return std::sqrt(sum) / norm * (1.0 + static_cast<double>(dims) * 0x1p-22);  // the float32 sum errs, too
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

private:
    static FloatV widen(__m256i halves) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
    }
};
using FastPanel = Bfloat16Panel;
#else
using FastPanel = Float32Panel;
#endif

}  // namespace MINERLIB_ISA
}  // namespace minerlib
