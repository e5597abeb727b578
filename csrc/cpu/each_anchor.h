// All anchors, each with its row of float32 values.
#pragma once

#include "anchor_row.h"
#include "square.h"

namespace minerlib {
namespace MINERLIB_ISA {

// Calls visit(row) with an AnchorRow for every anchor, in parallel; whole rows of values are swept.
template <class T, class Panel, class Visit>
void visit_anchors(const Problem& problem, const Canonical<T>& canonical, const Filter<T, Panel>& filter, double margin,
                   Visit visit) {
    const int64_t n = problem.anchors.rows, m = problem.columns.rows;
    const int64_t rows = block_rows<Panel>(n, problem.threads, std::max<int64_t>(m, 1));
    parallel_for(problem.threads, ceil_div(n, rows), [&](int64_t b) {
        const int64_t first = b * rows, count = std::min(rows, n - first);
        AnchorRow<T, Panel> row(problem, canonical, filter, margin);
        if (!filter.usable) {
            for (int64_t i = 0; i < count; ++i) {
                row.select(first + i, nullptr, 0);
                visit(row);
            }
            return;
        }
        thread_local Scratch scratch;
        const auto nothing = [](int64_t, double) {};
        const auto consume = [&](int64_t i, int64_t, int64_t, float* values) {
            row.select(first + i, values, scratch.half_norms[i]);
            visit(row);
        };
        sweep(filter, first, count, 0, ceil_div(m, GROUP) * GROUP, scratch, nothing, consume);
        scratch.trim();
    });
}

#if !defined(MINERLIB_TILES)
using FinePanel = Float32Panel;  // values as accurate as float32's; tiles have their own in amx_panel.h
#endif

// The same by values of float32's accuracy, and by a square of them where the batch is small.
template <class T, class Visit> void for_each_anchor(const Problem& problem, double margin, Visit visit) {
    const Canonical<T> canonical(problem);
    const Space space = problem.metric == Metric::cosine ? Space::cosine : Space::squared;
    if (!std::is_same_v<FinePanel, Float32Panel> && problem.exact && !Square<T>::fits(problem)) {
        visit_anchors(problem, canonical, Filter<T, FinePanel>(problem, space), margin, visit);
        return;
    }
    const Filter<T> filter(problem, space);
    const int64_t n = problem.anchors.rows;
    if (!filter.usable || !Square<T>::fits(problem)) {
        visit_anchors(problem, canonical, filter, margin, visit);
        return;
    }
    const Square<T> square(filter, problem.threads);
    const int64_t rows = 16;
    parallel_for(problem.threads, ceil_div(n, rows), [&](int64_t b) {
        AnchorRow<T> row(problem, canonical, filter, margin);
        for (int64_t i = b * rows; i < std::min(n, (b + 1) * rows); ++i) {
            row.select(i, square.row(i), square.half_norm(i));
            visit(row);
        }
    });
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
