// Float64 in vectors of the registers' own width, which the compiler keeps in registers where wider ones are spilled:
// tiles of products, out [TILE_ROWS, DOUBLES] (+)= a [K, TILE_ROWS]^T b [K, DOUBLES] from packed panels, and canonical
// sums over eight lanes.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace minerlib {
namespace MINERLIB_ISA {

typedef double DoubleV __attribute__((vector_size(WIDTH * 4), aligned(8), may_alias));
typedef int64_t LongV __attribute__((vector_size(WIDTH * 4), aligned(8), may_alias));
typedef float NarrowV __attribute__((vector_size(WIDTH * 2), aligned(4), may_alias));
constexpr int DOUBLES = WIDTH;  // columns of a tile: two vectors, as many rows as with floats
constexpr int DOUBLE_LANES = WIDTH / 2;

static inline DoubleV load(const double* p) { return *reinterpret_cast<const DoubleV*>(p); }
static inline void store(double* p, DoubleV v) { *reinterpret_cast<DoubleV*>(p) = v; }
static inline DoubleV splat(double x) { return x - DoubleV{}; }
static inline DoubleV widen(const double* p) { return load(p); }

// GCC 12 converts half a vector at a time, through memory, where it is not told the instruction.
#if MINERLIB_ISA_LEVEL >= 2
static inline DoubleV widen(const float* p) { return _mm512_cvtps_pd(_mm256_loadu_ps(p)); }
static inline void narrow(DoubleV v, float* p) { _mm256_storeu_ps(p, _mm512_cvtpd_ps(v)); }
static inline DoubleV multiply_add(DoubleV a, DoubleV b, DoubleV c) { return _mm512_fmadd_pd(a, b, c); }
#elif MINERLIB_ISA_LEVEL == 1
static inline DoubleV widen(const float* p) { return _mm256_cvtps_pd(_mm_loadu_ps(p)); }
static inline void narrow(DoubleV v, float* p) { _mm_storeu_ps(p, _mm256_cvtpd_ps(v)); }
static inline DoubleV multiply_add(DoubleV a, DoubleV b, DoubleV c) { return _mm256_fmadd_pd(a, b, c); }
#else
static inline DoubleV widen(const float* p) {
    return __builtin_convertvector(*reinterpret_cast<const NarrowV*>(p), DoubleV);
}
static inline void narrow(DoubleV v, float* p) { *reinterpret_cast<NarrowV*>(p) = __builtin_convertvector(v, NarrowV); }
static inline DoubleV multiply_add(DoubleV a, DoubleV b, DoubleV c) { return a * b + c; }
#endif

// Rows of the tile beyond `rows` are computed and not written.
static inline void multiply(const double* a, const double* b, int64_t steps, int64_t rows, bool add, double* out,
                            int64_t stride) {
    DoubleV acc[TILE_ROWS][2] = {};
    for (int64_t k = 0; k < steps; ++k) {
        const DoubleV b0 = load(b), b1 = load(b + DOUBLES / 2);
#pragma GCC unroll 16
        for (int i = 0; i < TILE_ROWS; ++i) {
            const DoubleV ai = splat(a[i]);
            acc[i][0] = multiply_add(ai, b0, acc[i][0]);
            acc[i][1] = multiply_add(ai, b1, acc[i][1]);
        }
        a += TILE_ROWS;
        b += DOUBLES;
    }
#pragma GCC unroll 16
    for (int i = 0; i < TILE_ROWS; ++i) {
        if (i >= rows) break;
        double* row = out + i * stride;
        store(row, add ? load(row) + acc[i][0] : acc[i][0]);
        store(row + DOUBLES / 2, add ? load(row + DOUBLES / 2) + acc[i][1] : acc[i][1]);
    }
}

// The canonical sums (canonical.h) over COUNT pairs of rows: of squared differences, or of products.
template <bool DIFFERENCES, int COUNT, class T>
static inline void lane_sums(const T* x, const T* const* y, int64_t dims, double* out) {
    constexpr int PARTS = 8 / DOUBLE_LANES;
    DoubleV acc[COUNT][PARTS] = {};
    const auto add = [&acc](const T* xk, const T* const* yk, int64_t k) __attribute__((always_inline)) {
        for (int part = 0; part < PARTS; ++part) {
            const DoubleV a = widen(xk + k + part * DOUBLE_LANES);
            for (int c = 0; c < COUNT; ++c) {
                const DoubleV b = widen(yk[c] + k + part * DOUBLE_LANES), t = DIFFERENCES ? a - b : a;
                acc[c][part] = acc[c][part] + t * (DIFFERENCES ? t : b);
            }
        }
    };
    int64_t k = 0;
    for (; k + 8 <= dims; k += 8) add(x, y, k);
    if (k < dims) {
        T last[COUNT + 1][8] = {};
        const T* rows[COUNT];
        std::memcpy(last[COUNT], x + k, sizeof(T) * static_cast<size_t>(dims - k));
        for (int c = 0; c < COUNT; ++c) {
            std::memcpy(last[c], y[c] + k, sizeof(T) * static_cast<size_t>(dims - k));
            rows[c] = last[c];
        }
        add(last[COUNT], rows, 0);
    }
    for (int c = 0; c < COUNT; ++c) {
        double lane[8];
        for (int part = 0; part < PARTS; ++part) store(lane + part * DOUBLE_LANES, acc[c][part]);
        out[c] = ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
    }
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
