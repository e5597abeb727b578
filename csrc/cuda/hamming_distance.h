// out[i][j] = number of bits in which a[i] and b[j] differ.
//
// a uint32 [N, width], b in planes (codes.h), out int32 [N, M]. A thread holds a column's code and meets ROWS rows, so
// neighbouring threads write neighbouring places. Limits: what the grid holds, 2^31 - 1 blocks of THREADS x ROWS.

#pragma once

#include "cuda/codes.h"

namespace minerlib::cuda {

struct DistanceArgs {
    const uint32_t* a;  // [N, width]
    Codes b;            // M rows
    int32_t* out;       // [N, M]
    int64_t rows;       // N
    int64_t column_blocks;
};

template <int WORDS> struct Distance {
    using Args = DistanceArgs;
    static constexpr int THREADS = 256, RESIDENT = 4, ROWS = 16;

    MINERLIB_DEVICE static void run(const Block& block, const Args& args) {
        const int64_t first = block.x() / args.column_blocks * ROWS;
        const int64_t stop = least(first + ROWS, args.rows);
        const int64_t first_column = block.x() % args.column_blocks * THREADS;
        block.phase([&](int thread) {
            const int64_t column = first_column + thread;
            if (column >= args.b.rows) return;
            uint32_t own[STEP<WORDS>], row[STEP<WORDS>];
            if constexpr (WORDS != LONG) load_row<WORDS>(args.b, column, 0, own);
            for (int64_t i = first; i < stop; ++i) {
                Difference<WORDS> difference;
                for (int step = 0; step < steps<WORDS>(args.b.width); ++step) {
                    if constexpr (WORDS == LONG) load_row<WORDS>(args.b, column, step, own);
                    load_query<WORDS>(args.a + i * args.b.width, step, row);
                    difference.add(own, row);
                }
                args.out[i * args.b.rows + column] = difference.total();
            }
        });
    }
};

}  // namespace minerlib::cuda
