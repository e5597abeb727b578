// topk: the k nearest columns of every anchor, nearest first, ties by the lowest index.
//
// anchors [Q, D], columns [M, D] of float32 or float64 -> distances float64 [Q, k] in the metric's unit and
// indices int64 [Q, k]. Ordered by canonical float64 selection values: the float32 pass keeps every column
// whose lower bound does not exceed the k-th least upper bound, float64 sorts what is left.
// Limits: 1 <= k <= M < 2^31. Source: SPEC section 5.
#pragma once

#include <algorithm>
#include <vector>

#include "candidates.h"
#include "families.h"

namespace minerlib {
namespace MINERLIB_ISA {

struct Candidate {
    double value, error;  // v and the bound on its error, until float64 replaces the value
    int64_t column;
};

// The columns that may be among the k nearest of one anchor.
class CandidatePool {
public:
    void reset(int64_t k) {
        k_ = k;
        limit_ = 2 * k + 64;
        bound_ = std::numeric_limits<double>::infinity();
        candidates_.clear();
    }

    double bound() const { return bound_; }
    std::vector<Candidate>& candidates() { return candidates_; }

    void offer(double value, double error, int64_t column) {
        if (value - error > bound_) return;
        candidates_.push_back({value, error, column});
        if (static_cast<int64_t>(candidates_.size()) < limit_) return;
        prune();
        // Near-ties that cannot be told apart may stay: room for them keeps pruning rare.
        limit_ = std::max(limit_, 2 * static_cast<int64_t>(candidates_.size()));
    }

    // Lowers the bound to the k-th least upper bound and drops what lies beyond.
    void prune() {
        if (static_cast<int64_t>(candidates_.size()) > k_) {
            const auto kth = candidates_.begin() + (k_ - 1);
            std::nth_element(candidates_.begin(), kth, candidates_.end(), [](const Candidate& a, const Candidate& b) {
                return a.value + a.error < b.value + b.error;
            });
            bound_ = std::min(bound_, kth->value + kth->error);
        }
        candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(),
                                         [&](const Candidate& c) { return c.value - c.error > bound_; }),
                          candidates_.end());
    }

private:
    int64_t k_ = 0, limit_ = 0;
    double bound_ = 0;
    std::vector<Candidate> candidates_;
};

template <class T> class TopK {
public:
    TopK(const Problem& problem, int64_t k, double* distances, int64_t* indices)
        : problem_(problem), k_(k), distances_(distances), indices_(indices), canonical_(problem),
          filter_(problem, problem.metric == Metric::cosine ? Space::cosine : Space::squared) {}

    void run() {
        const int64_t n = problem_.anchors.rows;
        // Where most columns are wanted the filter saves nothing; a pool of many candidates wants few rows.
        const bool filtered = filter_.usable && 4 * k_ <= problem_.columns.rows;
        const int64_t rows = block_rows(n, problem_.threads, std::max(CHUNK, 8 * k_));
        parallel_for(problem_.threads, ceil_div(n, rows), [&](int64_t b) {
            const int64_t first = b * rows, count = std::min(rows, n - first);
            std::vector<CandidatePool> pools(static_cast<size_t>(count));
            if (filtered) sweep_rows(first, count, pools);
            for (int64_t row = 0; row < count; ++row) {
                std::vector<Candidate>& candidates = pools[static_cast<size_t>(row)].candidates();
                if (!filtered) take_all(candidates);
                finish(first + row, candidates);
            }
        });
    }

private:
    static constexpr int64_t CHUNK = 2 * GROUP;

    void sweep_rows(int64_t first, int64_t count, std::vector<CandidatePool>& pools) {
        thread_local Scratch scratch;
        Buffer<double> half_norms(count);
        const auto start = [&](int64_t row, double half_norm) {
            pools[static_cast<size_t>(row)].reset(k_);
            half_norms[row] = half_norm;
        };
        const auto consume = [&](int64_t row, int64_t column, int64_t columns, const float* values) {
            scan(pools[static_cast<size_t>(row)], half_norms[row], values, column, columns);
        };
        sweep(filter_, first, count, 0, CHUNK, scratch, start, consume);
        for (CandidatePool& pool : pools) pool.prune();
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

    void take_all(std::vector<Candidate>& candidates) const {
        candidates.resize(static_cast<size_t>(problem_.columns.rows));
        for (size_t j = 0; j < candidates.size(); ++j) candidates[j] = {0, 0, static_cast<int64_t>(j)};
    }

    // Replaces the candidates' values by canonical ones and writes the first k in order.
    void finish(int64_t anchor, std::vector<Candidate>& candidates) {
        size_t c = 0;
        for (; c + 4 <= candidates.size(); c += 4) {
            int64_t columns[4];
            double values[4];
            for (size_t i = 0; i < 4; ++i) columns[i] = candidates[c + i].column;
            canonical_.template selections<4>(anchor, columns, values);
            for (size_t i = 0; i < 4; ++i) candidates[c + i].value = values[i];
        }
        for (; c < candidates.size(); ++c) candidates[c].value = canonical_.selection(anchor, candidates[c].column);
        std::partial_sort(candidates.begin(), candidates.begin() + k_, candidates.end(),
                          [](const Candidate& a, const Candidate& b) {
                              return a.value < b.value || (a.value == b.value && a.column < b.column);
                          });
        for (int64_t rank = 0; rank < k_; ++rank) {
            const Candidate& found = candidates[static_cast<size_t>(rank)];
            distances_[anchor * k_ + rank] = canonical_.value(found.value);
            indices_[anchor * k_ + rank] = found.column;
        }
    }

    const Problem& problem_;
    const int64_t k_;
    double* distances_;
    int64_t* indices_;
    const Canonical<T> canonical_;
    const Filter<T> filter_;
};

void topk(const Problem& problem, int64_t k, double* distances, int64_t* indices) {
    if (problem.anchors.wide) {
        TopK<double>(problem, k, distances, indices).run();
    } else {
        TopK<float>(problem, k, distances, indices).run();
    }
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
