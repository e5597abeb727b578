// extremes: per anchor the nearest and farthest positive and the nearest and farthest negative.
//
// anchors [N, D], columns [M, D] of float32 or float64, labels -> out [4, N] int64 column indices, -1 for none.
// Decided on canonical float64 selection values, ties by the lowest index; certified by float32 tiles first.
// Limits: M < 2^31. Source: SPEC section 4, EXT eq. 3 and 9-12.
#pragma once

#include "candidates.h"
#include "families.h"
#include "positives.h"

namespace minerlib {
namespace MINERLIB_ISA {

template <class T> class Extremes {
public:
    Extremes(const Problem& problem, unsigned wanted, int64_t* out)
        : problem_(problem), wanted_(wanted), out_(out), canonical_(problem),
          filter_(problem, problem.metric == Metric::cosine ? Space::cosine : Space::squared) {}

    void run() {
        const int64_t n = problem_.anchors.rows, rows = block_rows(n, problem_.threads, CHUNK);
        parallel_for(problem_.threads, ceil_div(n, rows), [&](int64_t b) {
            const int64_t first = b * rows, count = std::min(rows, n - first);
            Work work(problem_);
            if (filter_.usable) {
                filtered(first, count, work);
            } else {
                for (int64_t row = 0; row < count; ++row) whole_row(first + row, wanted_, work);
            }
        });
    }

private:
    static constexpr int64_t CHUNK = 2 * GROUP;

    struct Work {
        explicit Work(const Problem& problem) : positives(problem) {}
        Positives positives;
        Buffer<double> row;
    };
    struct Lists {
        Shortlist of[4];
        double half_norm;
    };

    void filtered(int64_t first, int64_t count, Work& work) {
        thread_local Scratch scratch;
        Buffer<Lists> lists(count);
        const auto start = [&](int64_t row, double half_norm) {
            for (Shortlist& list : lists[row].of) list.reset();
            lists[row].half_norm = half_norm;
        };
        const auto consume = [&](int64_t row, int64_t column, int64_t columns, float* values) {
            take_positives(first + row, column, columns, values, lists[row], work.positives);
            scan_extremes(filter_, lists[row].half_norm, values, column, columns, (wanted_ & 4) ? &lists[row].of[2] : nullptr,
                          (wanted_ & 8) ? &lists[row].of[3] : nullptr);
        };
        sweep(filter_, first, count, CHUNK, scratch, start, consume);
        for (int64_t row = 0; row < count; ++row) finish(first + row, lists[row], work);
    }

    // Offers the positives among the values to their lists and hides them, and the anchor itself, from the
    // search for negatives.
    void take_positives(int64_t anchor, int64_t column, int64_t columns, float* values, Lists& lists,
                        Positives& positives) const {
        const float hidden = std::numeric_limits<float>::quiet_NaN();
        positives.select(anchor);
        positives.visit(column, columns, [&](int64_t p) {
            const double v = values[p - column];
            values[p - column] = hidden;
            if ((wanted_ & 3) == 0) return;
            const double error = filter_.error(lists.half_norm, filter_.half_norm(p));
            if (wanted_ & 1) lists.of[0].offer(v, error, p);
            if (wanted_ & 2) lists.of[1].offer(-v, error, p);
        });
        const int64_t own = positives.own() - column;
        if (own >= 0 && own < columns) values[own] = hidden;
    }

    void finish(int64_t anchor, Lists& lists, Work& work) {
        unsigned overflowed = 0;
        for (int e = 0; e < 4; ++e) {
            if ((wanted_ >> e & 1) == 0) continue;
            if (lists.of[e].overflowed()) {
                overflowed |= 1u << e;
            } else {
                out_[e * problem_.anchors.rows + anchor] = decide(canonical_, anchor, e % 2 == 0 ? 1.0 : -1.0, lists.of[e]);
            }
        }
        if (overflowed != 0) whole_row(anchor, overflowed, work);
    }

    // Decides the given extrema from canonical values of the whole row.
    void whole_row(int64_t anchor, unsigned which, Work& work) {
        const int64_t m = problem_.columns.rows;
        Best best[4];
        work.row.resize(m);
        double* row = work.row.get();
        work.positives.select(anchor);
        if (which & 12) canonical_.row(anchor, 0, m, row);
        work.positives.visit(0, m, [&](int64_t p) {
            const double d = (which & 12) ? row[p] : canonical_.selection(anchor, p);
            best[0].offer(d, p);
            best[1].offer(-d, p);
            row[p] = std::numeric_limits<double>::quiet_NaN();
        });
        if (which & 12) {
            if (problem_.own) row[anchor] = std::numeric_limits<double>::quiet_NaN();
            for (int64_t j = 0; j < m; ++j) {
                if (std::isnan(row[j])) continue;
                best[2].offer(row[j], j);
                best[3].offer(-row[j], j);
            }
        }
        for (int e = 0; e < 4; ++e) {
            if (which >> e & 1) out_[e * problem_.anchors.rows + anchor] = best[e].column;
        }
    }

    const Problem& problem_;
    const unsigned wanted_;
    int64_t* out_;
    const Canonical<T> canonical_;
    const Filter<T> filter_;
};

void extremes(const Problem& problem, unsigned wanted, int64_t* out) {
    if (problem.anchors.wide) {
        Extremes<double>(problem, wanted, out).run();
    } else {
        Extremes<float>(problem, wanted, out).run();
    }
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
