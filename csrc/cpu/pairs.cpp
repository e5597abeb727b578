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

void class_offsets(const Problem& problem, bool same, int64_t* offsets) {
    pair_offsets(problem, false, offsets);
    if (same) return;
    const int64_t others = problem.columns.rows - (problem.own ? 1 : 0);
    for (int64_t i = 0; i <= problem.anchors.rows; ++i) offsets[i] = i * others - offsets[i];
}

namespace {

// first .. last - 1
int64_t* count_up(int64_t* out, int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) *out++ = j;
    return out;
}

}  // namespace

void class_pairs(const Problem& problem, bool same, const int64_t* offsets, int64_t* anchors, int64_t* columns) {
    const int64_t n = problem.anchors.rows, m = problem.columns.rows, block = 16;
    parallel_for(problem.threads, (n + block - 1) / block, [&](int64_t b) {
        generic::Positives positives(problem);
        for (int64_t i = b * block; i < std::min(n, (b + 1) * block); ++i) {
            positives.select(i);
            std::fill(anchors + offsets[i], anchors + offsets[i + 1], i);
            int64_t* out = columns + offsets[i];
            if (same) {
                positives.visit(0, m, [&](int64_t j) { *out++ = j; });
                continue;
            }
            int64_t from = 0, own = positives.own();  // neither is the anchor itself its own negative
            positives.visit(0, m, [&](int64_t j) {
                if (own >= from && own < j) out = count_up(out, from, own), from = own + 1;
                out = count_up(out, from, j);
                from = j + 1;
            });
            if (own >= from) out = count_up(out, from, own), from = own + 1;
            count_up(out, from, m);
        }
    });
}

void list_offsets(const ColumnLists& lists, int64_t* offsets) {
    offsets[0] = 0;
    for (size_t i = 0; i < lists.size(); ++i) offsets[i + 1] = offsets[i] + static_cast<int64_t>(lists[i].size());
}

void list_pairs(const ColumnLists& lists, int threads, const int64_t* offsets, int64_t* anchors, int64_t* columns) {
    const int64_t n = static_cast<int64_t>(lists.size()), block = 16;
    parallel_for(offsets[n] < 1 << 16 ? 1 : threads, (n + block - 1) / block, [&](int64_t b) {
        for (int64_t i = b * block; i < std::min(n, (b + 1) * block); ++i) {
            const std::vector<int32_t>& list = lists[static_cast<size_t>(i)];
            std::fill(anchors + offsets[i], anchors + offsets[i + 1], i);
            std::copy(list.begin(), list.end(), columns + offsets[i]);
        }
    });
}

}  // namespace minerlib
