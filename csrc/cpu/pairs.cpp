#define MINERLIB_ISA generic
#include "pairs.h"

#include <algorithm>

#include "pool.h"
#include "positives.h"

namespace minerlib {

void pair_offsets(const Problem& problem, bool combinations, int64_t* offsets) {
    const int64_t n = problem.anchors.rows, block = 256;
    parallel_for(problem.threads, (n + block - 1) / block, [&](int64_t b) {
        generic::Positives positives(problem);
        for (int64_t i = b * block; i < std::min(n, (b + 1) * block); ++i) {
            positives.select(i);
            offsets[i + 1] = positives.count_from(combinations ? i + 1 : 0);
        }
    });
    offsets[0] = 0;
    for (int64_t i = 0; i < n; ++i) offsets[i + 1] += offsets[i];
}

}  // namespace minerlib
