// topk: the k nearest columns of every anchor, nearest first, ties by the lowest index.
//
// anchors [Q, D], columns [M, D] of float32 or float64 -> distances float64 [Q, k] in the metric's unit and
// indices int64 [Q, k]. Ordered by canonical float64 selection values: the float32 pass keeps every column
// whose lower bound does not exceed the k-th least upper bound, float64 sorts what is left. With labels only
// negatives are ranked, and where there are fewer than k of them, index -1 and distance infinity stand behind.
// Limits: 1 <= k <= M < 2^31. Source: SPEC sections 5 and 9.
#pragma once

#include <algorithm>
#include <vector>

#include "candidates.h"
#include "families.h"
#include "positives.h"

namespace minerlib {
namespace MINERLIB_ISA {

struct Candidate {
    float lower, upper;  // bounds on its value
    int32_t column;
};

// The columns that may be among the k nearest of one anchor.
class CandidatePool {
public:
    void reset(int64_t k) {
        k_ = k;
        limit_ = 2 * k + 64;
        bound_ = std::numeric_limits<float>::infinity();
        candidates_.clear();
    }

    double bound() const { return static_cast<double>(bound_); }
    const std::vector<Candidate>& candidates() const { return candidates_; }

    // More near-ties than are worth keeping: the whole row is decided in float64.
    bool overflowed() const { return limit_ < 0; }

    void offer(double value, double error, int64_t column) {
        const float lower = round_down(value - error);
        if (lower > bound_) return;
        candidates_.push_back({lower, round_up(value + error), static_cast<int32_t>(column)});
        const int64_t size = static_cast<int64_t>(candidates_.size());
        if (size < limit_) return;
        prune();
        limit_ = std::max(limit_, 2 * static_cast<int64_t>(candidates_.size()));  // keeps pruning rare
        if (limit_ > 16 * k_ + 4096) {
            std::vector<Candidate>().swap(candidates_);
            bound_ = -std::numeric_limits<float>::infinity();
            limit_ = -1;
        }
    }

    // Lowers the bound to the k-th least upper bound and drops what lies beyond.
    void prune() {
        if (static_cast<int64_t>(candidates_.size()) > k_) {
            const auto kth = candidates_.begin() + (k_ - 1);
            std::nth_element(candidates_.begin(), kth, candidates_.end(),
                             [](const Candidate& a, const Candidate& b) { return a.upper < b.upper; });
            bound_ = std::min(bound_, kth->upper);
        }
        candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(),
                                         [&](const Candidate& c) { return c.lower > bound_; }),
                          candidates_.end());
    }

private:
    int64_t k_ = 0, limit_ = 0;
    float bound_ = 0;
    std::vector<Candidate> candidates_;
};

// A column and its canonical selection value.
struct Ranked {
    double value;
    int64_t column;

    bool operator<(const Ranked& other) const {
        return value < other.value || (value == other.value && column < other.column);
    }
};

template <class T, class Panel> class TopK {
public:
    TopK(const Problem& problem, int64_t k, double* distances, int64_t* indices)
        : problem_(problem), k_(k), labelled_(problem.labels.words > 0 || problem.labels.anchor_class != nullptr),
          distances_(distances), indices_(indices), canonical_(problem),
          filter_(problem, problem.metric == Metric::cosine ? Space::cosine : Space::squared) {}

    void run() {
        const int64_t n = problem_.anchors.rows;
        // Where most columns are wanted the filter saves nothing; a pool of many candidates wants few rows.
        const bool filtered = filter_.usable && 4 * k_ <= problem_.columns.rows;
        const int64_t rows = block_rows<Panel>(n, problem_.threads, std::max(CHUNK, 8 * k_));
        parallel_for(problem_.threads, ceil_div(n, rows), [&](int64_t b) {
            const int64_t first = b * rows, count = std::min(rows, n - first);
            std::vector<CandidatePool> pools(static_cast<size_t>(count));
            std::vector<Ranked> ranked;
            Positives positives(problem_);
            if (filtered) sweep_rows(first, count, positives, pools);
            for (int64_t row = 0; row < count; ++row) {
                const CandidatePool& pool = pools[static_cast<size_t>(row)];
                ranked.clear();
                if (!filtered || pool.overflowed()) {
                    list_columns(first + row, positives, ranked);
                } else {
                    for (const Candidate& candidate : pool.candidates()) ranked.push_back({0, candidate.column});
                }
                finish(first + row, ranked);
            }
        });
    }

private:
    static constexpr int64_t CHUNK = Panel::CHUNK;

    // All columns that may be ranked.
    void list_columns(int64_t anchor, Positives& positives, std::vector<Ranked>& ranked) const {
        int64_t next = 0;
        const auto up_to = [&](int64_t end) {
            for (; next < end; ++next) {
                if (!labelled_ || !problem_.own || next != anchor) ranked.push_back({0, next});
            }
        };
        if (labelled_) {
            positives.select(anchor);
            positives.visit(0, problem_.columns.rows, [&](int64_t p) {
                up_to(p);
                next = p + 1;
            });
        }
        up_to(problem_.columns.rows);
    }

    // Hides the positives of an anchor and the anchor itself.
    void hide(int64_t anchor, Positives& positives, int64_t column, int64_t columns, float* values) const {
        const float hidden = std::numeric_limits<float>::quiet_NaN();
        positives.select(anchor);
        positives.visit(column, columns, [&](int64_t p) { values[p - column] = hidden; });
        if (problem_.own && anchor >= column && anchor < column + columns) values[anchor - column] = hidden;
    }

    void sweep_rows(int64_t first, int64_t count, Positives& positives, std::vector<CandidatePool>& pools) {
        thread_local Scratch scratch;
        Buffer<double> half_norms(count);
        const auto start = [&](int64_t row, double half_norm) {
            pools[static_cast<size_t>(row)].reset(k_);
            half_norms[row] = half_norm;
        };
        const auto consume = [&](int64_t row, int64_t column, int64_t columns, float* values) {
            if (labelled_) hide(first + row, positives, column, columns, values);
            scan(pools[static_cast<size_t>(row)], half_norms[row], values, column, columns);
        };
        sweep(filter_, first, count, 0, CHUNK, scratch, start, consume);
        for (CandidatePool& pool : pools) {
            if (!pool.overflowed()) pool.prune();
        }
    }

    void scan(CandidatePool& pool, double half_norm, const float* values, int64_t first, int64_t count) const {
        for (int64_t g = 0; g < count; g += GROUP) {
            const double slack = filter_.error(half_norm, filter_.group_half_norm((first + g) / GROUP));
            FloatV edge = splat(round_up(pool.bound() + slack));
            const int64_t last = std::min(count, g + GROUP);
            for (int64_t c = g; c < last; c += WIDTH) {
                uint32_t hits = mask_le(load(values + c), edge);
                if (__builtin_expect(hits == 0, 1)) continue;
                for (; hits != 0; hits &= hits - 1) {
                    const int64_t column = first + c + __builtin_ctz(hits);
                    pool.offer(values[column - first], filter_.error(half_norm, filter_.half_norm(column)), column);
                }
                edge = splat(round_up(pool.bound() + slack));
            }
        }
    }

    // Sorts candidates by canonical values and writes the first k, or all with padding behind them.
    void finish(int64_t anchor, std::vector<Ranked>& ranked) {
        size_t c = 0;
        for (; c + 4 <= ranked.size(); c += 4) {
            int64_t columns[4];
            double values[4];
            for (size_t i = 0; i < 4; ++i) columns[i] = ranked[c + i].column;
            canonical_.template selections<4>(anchor, columns, values);
            for (size_t i = 0; i < 4; ++i) ranked[c + i].value = values[i];
        }
        for (; c < ranked.size(); ++c) ranked[c].value = canonical_.selection(anchor, ranked[c].column);
        const int64_t found = std::min(k_, static_cast<int64_t>(ranked.size()));
        std::partial_sort(ranked.begin(), ranked.begin() + found, ranked.end());
        std::fill_n(distances_ + anchor * k_ + found, k_ - found, std::numeric_limits<double>::infinity());
        std::fill_n(indices_ + anchor * k_ + found, k_ - found, -1);
        for (int64_t rank = 0; rank < found; ++rank) {
            const Ranked& next = ranked[static_cast<size_t>(rank)];
            distances_[anchor * k_ + rank] = canonical_.value(next.value);
            indices_[anchor * k_ + rank] = next.column;
        }
    }

    const Problem& problem_;
    const int64_t k_;
    const bool labelled_;
    double* distances_;
    int64_t* indices_;
    const Canonical<T> canonical_;
    const Filter<T, Panel> filter_;
};

template <class T>
void topk_rows(const Problem& problem, int64_t k, double* distances, int64_t* indices) {
    if (problem.exact) {
        TopK<T, FastPanel>(problem, k, distances, indices).run();
    } else {
        TopK<T, Float32Panel>(problem, k, distances, indices).run();
    }
}

void topk(const Problem& problem, int64_t k, double* distances, int64_t* indices) {
    if (problem.anchors.wide) {
        topk_rows<double>(problem, k, distances, indices);
    } else {
        topk_rows<float>(problem, k, distances, indices);
    }
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
