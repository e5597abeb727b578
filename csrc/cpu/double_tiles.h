// Tiles of float64 products: out [TILE_ROWS, DOUBLES] (+)= a [K, TILE_ROWS]^T b [K, DOUBLES], from packed panels.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace minerlib {
namespace MINERLIB_ISA {

typedef double DoubleV __attribute__((vector_size(WIDTH * 4), aligned(8), may_alias));
typedef int64_t LongV __attribute__((vector_size(WIDTH * 4), aligned(8), may_alias));
constexpr int DOUBLES = WIDTH;  // columns of a tile: two vectors, as many rows as with floats

static inline DoubleV load(const double* p) { return *reinterpret_cast<const DoubleV*>(p); }
static inline void store(double* p, DoubleV v) { *reinterpret_cast<DoubleV*>(p) = v; }
static inline DoubleV splat(double x) { return x - DoubleV{}; }

#if MINERLIB_ISA_LEVEL >= 2
static inline DoubleV multiply_add(DoubleV a, DoubleV b, DoubleV c) { return _mm512_fmadd_pd(a, b, c); }
#elif MINERLIB_ISA_LEVEL == 1
static inline DoubleV multiply_add(DoubleV a, DoubleV b, DoubleV c) { return _mm256_fmadd_pd(a, b, c); }
#else
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

}  // namespace MINERLIB_ISA
}  // namespace minerlib
