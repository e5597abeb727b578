// Vectors of one instruction set. Every file <family>_<isa>.cpp defines MINERLIB_ISA (generic, avx2, avx512,
// avx512bf16, avx512vpopcntdq, amxbf16 or amxemulated), its number MINERLIB_ISA_LEVEL, and is compiled with the flags
// of that set; all code that depends on it lives in the namespace of the same name.
//
// Arithmetic, comparisons and conversions are the compiler's vector extensions; intrinsics are left for what
// those lack: fused multiply-add and comparisons that give bit masks.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if MINERLIB_X86 && MINERLIB_ISA_LEVEL > 0
#include <immintrin.h>
#endif

// Vectors wider than the registers are passed between inlined functions only, so their ABI does not matter.
#pragma GCC diagnostic ignored "-Wpsabi"
// GCC's own AVX-512 headers read variables that they leave undefined on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace minerlib {
namespace MINERLIB_ISA {

#if MINERLIB_ISA_LEVEL >= 2
constexpr int WIDTH = 16;      // floats in a vector
constexpr int TILE_ROWS = 14;  // 14 x 2 accumulators, two columns, one broadcast from memory: 30 of 32 registers
#elif MINERLIB_ISA_LEVEL == 1
constexpr int WIDTH = 8;
constexpr int TILE_ROWS = 6;  // 6 x 2 accumulators of 16 registers
#else
constexpr int WIDTH = 4;
constexpr int TILE_ROWS = 4;
#endif
constexpr int TILE_COLUMNS = 2 * WIDTH;

// may_alias and the alignment of one float: vectors are read from and written to arrays of floats anywhere.
typedef float FloatV __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));
typedef int32_t IntV __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

static inline FloatV load(const float* p) { return *reinterpret_cast<const FloatV*>(p); }
static inline void store(float* p, FloatV v) { *reinterpret_cast<FloatV*>(p) = v; }
static inline FloatV splat(float x) { return x - FloatV{}; }

#if MINERLIB_ISA_LEVEL >= 2
static inline FloatV multiply_add(FloatV a, FloatV b, FloatV c) { return _mm512_fmadd_ps(a, b, c); }
static inline uint32_t mask_le(FloatV a, FloatV b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
static inline uint32_t mask_ge(FloatV a, FloatV b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
static inline uint32_t mask_lt(FloatV a, FloatV b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static inline uint32_t mask_gt(FloatV a, FloatV b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
#elif MINERLIB_ISA_LEVEL == 1
static inline FloatV multiply_add(FloatV a, FloatV b, FloatV c) { return _mm256_fmadd_ps(a, b, c); }
template <int predicate> static inline uint32_t mask(FloatV a, FloatV b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, predicate)));
}
static inline uint32_t mask_le(FloatV a, FloatV b) { return mask<_CMP_LE_OQ>(a, b); }
static inline uint32_t mask_ge(FloatV a, FloatV b) { return mask<_CMP_GE_OQ>(a, b); }
static inline uint32_t mask_lt(FloatV a, FloatV b) { return mask<_CMP_LT_OQ>(a, b); }
static inline uint32_t mask_gt(FloatV a, FloatV b) { return mask<_CMP_GT_OQ>(a, b); }
#else
static inline FloatV multiply_add(FloatV a, FloatV b, FloatV c) { return a * b + c; }
static inline uint32_t bits(IntV truth) {
    uint32_t out = 0;
    for (int lane = 0; lane < WIDTH; ++lane) out |= (static_cast<uint32_t>(truth[lane]) & 1u) << lane;
    return out;
}
static inline uint32_t mask_le(FloatV a, FloatV b) { return bits(a <= b); }
static inline uint32_t mask_ge(FloatV a, FloatV b) { return bits(a >= b); }
static inline uint32_t mask_lt(FloatV a, FloatV b) { return bits(a < b); }
static inline uint32_t mask_gt(FloatV a, FloatV b) { return bits(a > b); }
#endif

// Comparisons of lanes to be joined by & and | before one question to all, or to many: cheaper than a bit mask of each.
#if MINERLIB_ISA_LEVEL >= 2
typedef uint32_t Truth;
static inline Truth at_most(FloatV a, FloatV b) { return mask_le(a, b); }
static inline Truth at_least(FloatV a, FloatV b) { return mask_ge(a, b); }
static inline Truth less(FloatV a, FloatV b) { return mask_lt(a, b); }
static inline Truth greater(FloatV a, FloatV b) { return mask_gt(a, b); }
static inline bool any(Truth lanes) { return lanes != 0; }
#else
typedef IntV Truth;
static inline Truth at_most(FloatV a, FloatV b) { return a <= b; }
static inline Truth at_least(FloatV a, FloatV b) { return a >= b; }
static inline Truth less(FloatV a, FloatV b) { return a < b; }
static inline Truth greater(FloatV a, FloatV b) { return a > b; }
#if MINERLIB_ISA_LEVEL == 1
static inline bool any(Truth lanes) { return _mm256_movemask_ps(reinterpret_cast<__m256>(lanes)) != 0; }
#else
static inline bool any(Truth lanes) { return bits(lanes) != 0; }
#endif
#endif

// A bit for every lane of four comparisons, in order.
static inline uint64_t bits_of_four(const Truth* lanes) {
#if MINERLIB_ISA_LEVEL == 1
    const __m256i* in = reinterpret_cast<const __m256i*>(lanes);
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(in[0], in[1]), _mm256_packs_epi32(in[2], in[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // packing went by halves of the vectors
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_permutevar8x32_epi32(bytes, order)));
#else
    uint64_t out = 0;
#if MINERLIB_ISA_LEVEL >= 2
    for (int i = 0; i < 4; ++i) out |= uint64_t{lanes[i]} << i * WIDTH;
#else
    for (int i = 0; i < 4; ++i) out |= uint64_t{bits(lanes[i])} << i * WIDTH;
#endif
    return out;
#endif
}

// The eight float64 lanes of SPEC section 2.
typedef double Lanes __attribute__((vector_size(64), aligned(8), may_alias));
typedef int64_t LaneMask __attribute__((vector_size(64), aligned(8), may_alias));

static inline Lanes lanes(const double* p) { return *reinterpret_cast<const Lanes*>(p); }

static inline double lane_sum(Lanes a) { return ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7])); }

#if MINERLIB_ISA_LEVEL >= 2
static inline uint32_t lane_bits(LaneMask truth) { return _mm512_movepi64_mask(reinterpret_cast<__m512i>(truth)); }
#else
static inline uint32_t lane_bits(LaneMask truth) {
    uint32_t out = 0;
    for (int lane = 0; lane < 8; ++lane) out |= (static_cast<uint32_t>(truth[lane]) & 1u) << lane;
    return out;
}
#endif

// The neighbouring float above (below) a number that is not NaN and not infinite on that side.
static inline float step(float f, bool up) {
    uint32_t bits;
    f += 0.0f;  // -0 to +0
    std::memcpy(&bits, &f, sizeof bits);
    if (f == 0.0f) {
        bits = up ? 1u : 0x80000001u;
    } else {
        bits += (f > 0.0f) == up ? 1u : ~0u;
    }
    std::memcpy(&f, &bits, sizeof bits);
    return f;
}

// A float no less (no more) than x: thresholds are rounded outwards so that rounding never loses a candidate.
static inline float round_up(double x) {
    const float f = static_cast<float>(x);
    return static_cast<double>(f) < x ? step(f, true) : f;
}
static inline float round_down(double x) {
    const float f = static_cast<float>(x);
    return static_cast<double>(f) > x ? step(f, false) : f;
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
