// 1-bit matrix products of a warp: D[16, 8] = C + popcounts of A[16, K] and B[K, 8] (mma.sync m16n8k128 and m16n8k256,
// and.popc; native on sm_80 to sm_90).
//
// Lane l is thread t = l % 4 of group g = l / 4. It holds words t (and t + 4 where K is 256) of rows g and g + 8 of A
// and of column g of B, and D's rows g and g + 8 in columns 2 t and 2 t + 1. Which 32 bits of a row make word t does
// not matter, as long as A and B agree. Source: the PTX manual's "Matrix Fragments for mma.m16n8k256".
//
// A lane cannot see another's registers on the host, where its turn is a loop's: there a Fragment keeps how any lane
// loads, and Sums holds what all four lanes of the group have.

#pragma once

#include "cuda/block.h"

namespace minerlib::cuda {

// What each lane holds of an operand. A Load reads RAW words (`read(lane, raw)`), and makes SIZE of them when they are
// needed (`form(lane, raw, words)`), so that nothing waits for a word that was read ahead.
template <class Load> class Fragment {
public:
#ifdef __CUDACC__
    MINERLIB_DEVICE void load(const Load& load, int lane) { load.read(lane, raw_); }
    MINERLIB_DEVICE void words(int lane, uint32_t (&out)[Load::SIZE]) const { Load::form(lane, raw_, out); }

private:
    uint32_t raw_[Load::RAW];
#else
    void load(const Load& load, int) { load_ = load; }
    void words(int lane, uint32_t (&out)[Load::SIZE]) const {
        uint32_t raw[Load::RAW];
        load_.read(lane, raw);
        Load::form(lane, raw, out);
    }

private:
    Load load_;
#endif
};

// D of a product: of rows g, g, g + 8, g + 8 and columns 2 t, 2 t + 1, 2 t, 2 t + 1. HALVES: 1 where K is 128, 2 where
// it is 256. Of A the words are: rows g and g + 8 of the first half, then of the second. All lanes of a warp call these
// together.
template <int HALVES> class Sums {
public:
    // c: what the lane's four sums start from; the same in all lanes of a group.
    template <class LoadA, class LoadB>
    MINERLIB_DEVICE void start(const int32_t (&c)[4], const Fragment<LoadA>& a, const Fragment<LoadB>& b, int lane) {
#ifdef __CUDACC__
        multiply(c, a, b, lane);
#else
        for (int i = 0; i < 16; ++i) group_[i / 4][i % 4] = c[i % 4];
        add(a, b, lane);
#endif
    }

    template <class LoadA, class LoadB>
    MINERLIB_DEVICE void add(const Fragment<LoadA>& a, const Fragment<LoadB>& b, int lane) {
#ifdef __CUDACC__
        const int32_t c[4] = {d_[0], d_[1], d_[2], d_[3]};
        multiply(c, a, b, lane);
#else
        const int group = lane / 4;
        uint32_t rows[2 * HALVES], column[HALVES];
        for (int t = 0; t < 4; ++t) {
            a.words(4 * group + t, rows);
            for (int j = 0; j < 8; ++j) {
                b.words(4 * j + t, column);
                for (int half = 0; half < HALVES; ++half) {
                    for (int row = 0; row < 2; ++row)
                        group_[j / 2][2 * row + j % 2] += popcount(rows[2 * half + row] & column[half]);
                }
            }
        }
#endif
    }

#ifdef __CUDACC__
    MINERLIB_DEVICE int32_t of(int, int i) const { return d_[i]; }
    // Negative where the i-th sum of the lane is; on the host, where that of any lane of the group is.
    MINERLIB_DEVICE int32_t sign(int i) const { return d_[i]; }
    // Bit t: whether the i-th sum of the group's lane t is negative.
    MINERLIB_DEVICE uint32_t votes(int lane, int i) const {
        return __ballot_sync(0xFFFFFFFFu, d_[i] < 0) >> (lane & ~3) & 15;
    }

private:
    template <class LoadA, class LoadB>
    MINERLIB_DEVICE void multiply(const int32_t (&c)[4], const Fragment<LoadA>& a, const Fragment<LoadB>& b, int lane) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
        __trap();  // there it is a subroutine of byte products; no launcher comes here
#else
        uint32_t x[2 * HALVES], y[HALVES];
        a.words(lane, x);
        b.words(lane, y);
        if constexpr (HALVES == 1) {
            asm("mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5}, {%6}, "
                "{%7,%8,%9,%10};"
                : "=r"(d_[0]), "=r"(d_[1]), "=r"(d_[2]), "=r"(d_[3])
                : "r"(x[0]), "r"(x[1]), "r"(y[0]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
        } else {
            asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                "{%10,%11,%12,%13};"
                : "=r"(d_[0]), "=r"(d_[1]), "=r"(d_[2]), "=r"(d_[3])
                : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]), "r"(c[0]), "r"(c[1]), "r"(c[2]),
                  "r"(c[3]));
        }
#endif
    }

    int32_t d_[4];
#else
    int32_t of(int lane, int i) const { return group_[lane % 4][i]; }
    int32_t sign(int i) const { return group_[0][i] | group_[1][i] | group_[2][i] | group_[3][i]; }
    uint32_t votes(int, int i) const {
        uint32_t mask = 0;
        for (int t = 0; t < 4; ++t) mask |= static_cast<uint32_t>(group_[t][i] < 0) << t;
        return mask;
    }

private:
    int32_t group_[4][4];  // [lane of the group]
#endif
};

#ifdef __CUDACC__
// Whether any lane of the warp says so; on the host, what this lane says, which has to hold for its group.
MINERLIB_DEVICE bool warp_any(bool says) { return __any_sync(0xFFFFFFFFu, says) != 0; }
MINERLIB_DEVICE void warp_together() { __syncwarp(); }
#else
inline bool warp_any(bool says) { return says; }
inline void warp_together() {}
#endif

}  // namespace minerlib::cuda
