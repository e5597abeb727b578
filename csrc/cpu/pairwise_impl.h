// pairwise: canonical float64 distances between all rows, out [N, M], in the metric's unit.
//
// anchors [N, D], columns [M, D] of float32 or float64. Source: SPEC section 2.
#pragma once

#include "canonical.h"
#include "families.h"
#include "filter.h"

namespace minerlib {
namespace MINERLIB_ISA {

template <class T> static void pairwise_rows(const Problem& problem, double* out) {
    const Canonical<T> canonical(problem);
    const int64_t n = problem.anchors.rows, m = problem.columns.rows;
    const int64_t row_block = 16, column_block = 64;  // the columns' block stays in the cache for all its rows
    const int64_t column_blocks = ceil_div(m, column_block);
    parallel_for(problem.threads, ceil_div(n, row_block) * column_blocks, [&](int64_t b) {
        const int64_t i0 = b / column_blocks * row_block, j0 = b % column_blocks * column_block;
        const int64_t count = std::min(column_block, m - j0);
        for (int64_t i = i0; i < std::min(n, i0 + row_block); ++i) {
            double* row = out + i * m + j0;
            canonical.row(i, j0, count, row);
            if (problem.metric == Metric::euclidean) {
                for (int64_t j = 0; j < count; ++j) row[j] = std::sqrt(row[j]);
            }
        }
    });
}

void pairwise(const Problem& problem, double* out) {
    if (problem.anchors.wide) {
        pairwise_rows<double>(problem, out);
    } else {
        pairwise_rows<float>(problem, out);
    }
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
