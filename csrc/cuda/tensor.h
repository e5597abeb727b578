// 1-bit matrix products of a warp: D[16, 8] += popcounts of A[16, K] and B[K, 8] (mma.sync m16n8k128 and m16n8k256,
// and.popc; native on sm_80 to sm_90).
//
// Lane l is thread t = l % 4 of group g = l / 4. It holds words t (and t + 4 where K is 256) of rows g and g + 8 of A
// and of column g of B, and D's rows g and g + 8 in columns 2 t and 2 t + 1. Which 32 bits of a row make word t does
// not matter, as long as A and B agree. Source: the PTX manual's "Matrix Fragments for mma.m16n8k256".
//
// A lane cannot see another's registers on the host, where its turn is a loop's: there a Fragment keeps how any lane
// loads, and a product loads what the layout says.

#pragma once

#include "cuda/block.h"

namespace minerlib::cuda {

// What each lane holds of an operand: load(lane, words).
template <int COUNT, class Load> class Fragment {
public:
#ifdef __CUDACC__
    MINERLIB_DEVICE Fragment(Load load, int lane) { load(lane, word); }
    uint32_t word[COUNT];
#else
    Fragment(Load load, int) : load_(load) {}
    uint32_t of(int lane, int place) const {
        uint32_t words[COUNT];
        load_(lane, words);
        return words[place];
    }

private:
    Load load_;
#endif
};

template <int COUNT, class Load> MINERLIB_DEVICE Fragment<COUNT, Load> fragment(Load load, int lane) {
    return Fragment<COUNT, Load>(load, lane);
}

// d: rows g, g, g + 8, g + 8 and columns 2 t, 2 t + 1, 2 t, 2 t + 1. HALVES: 1 where K is 128, 2 where it is 256.
// Of A the words are: rows g and g + 8 of the first half, then of the second.
template <int HALVES, class LoadA, class LoadB>
MINERLIB_DEVICE void multiply_bits(int32_t (&d)[4], const Fragment<2 * HALVES, LoadA>& a,
                                   const Fragment<HALVES, LoadB>& b, int lane) {
#ifdef __CUDACC__
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
    __trap();  // there it is a subroutine of byte products; no launcher comes here
#else
    if constexpr (HALVES == 1) {
        asm("mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
            : "r"(a.word[0]), "r"(a.word[1]), "r"(b.word[0]));
    } else {
        asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};"
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
            : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
    }
#endif
#else
    const int group = lane / 4, column = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
        for (int t = 0; t < 4; ++t) {
            for (int half = 0; half < HALVES; ++half) {
                const uint32_t row_bits = a.of(4 * group + t, 2 * half + i / 2);
                d[i] += popcount(row_bits & b.of(4 * (column + i % 2) + t, half));
            }
        }
    }
#endif
}

}  // namespace minerlib::cuda
