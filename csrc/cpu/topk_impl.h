// topk: the k nearest columns of every anchor, nearest first, ties by the lowest index.
//
// anchors [Q, D], columns [M, D] of float32 or float64 -> distances float64 [Q, k] in the metric's unit and
// indices int64 [Q, k]. Ordered by canonical float64 selection values: the float32 pass keeps every column
// whose lower bound does not exceed the k-th least upper bound, float64 sorts what is left. Once the first columns have
// given such a bound, bytes tell which others need be looked at, where the processor has them (near_tiles.h). With
// labels only negatives are ranked, and where there are fewer than k of them, index -1 and distance infinity stand
// behind.
// Limits: 1 <= k <= M < 2^31. Source: SPEC sections 5 and 9.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "candidates.h"
#include "families.h"
#include "near_tiles.h"
#include "positives.h"

namespace minerlib {
namespace MINERLIB_ISA {

// A number that at least k of the values do not exceed, and k + more at most where no more are equal; by bisection, so
// it need not be one of them. Infinity where there are fewer than k. values [count], then NaN up to whole vectors,
// which is skipped anywhere.
static inline float kth_bound(const float* values, int64_t count, int64_t k, int64_t more) {
    const float infinity = std::numeric_limits<float>::infinity();
    FloatV least = splat(infinity), most = splat(-infinity);
    for (int64_t c = 0; c < count; c += WIDTH) {
        const FloatV v = load(values + c);
        least = v < least ? v : least;
        most = v > most ? v : most;
    }
    float low = infinity, high = -infinity;
    for (int lane = 0; lane < WIDTH; ++lane) low = std::min(low, least[lane]), high = std::max(high, most[lane]);
    const auto within = [&](float bound) {
        int64_t found = 0;
        for (int64_t c = 0; c < count; c += WIDTH) {
            found += __builtin_popcount(mask_le(load(values + c), splat(bound)));
        }
        return found;
    };
    if (within(high) < k) return infinity;
    for (;;) {
        const float middle = low + 0.5f * (high - low);
        if (!(middle > low && middle < high)) return high;
        const int64_t found = within(middle);
        (found < k ? low : high) = middle;
        if (found >= k && found <= k + more) return high;
    }
}

// The columns that may be among the k nearest of one anchor, with bounds on their values.
class CandidatePool {
public:
    void reset(int64_t k) {
        k_ = k;
        resize(k + std::max<int64_t>(16, k / 2));
        bound_ = std::numeric_limits<float>::infinity();
        count_ = 0;
    }

    double bound() const { return static_cast<double>(bound_); }
    // k columns or more have no greater values.
    void lower_bound(float bound) { bound_ = std::min(bound_, bound); }
    int64_t count() const { return count_; }
    int64_t column(int64_t c) const { return columns_[static_cast<size_t>(c)]; }

    // More near-ties than are worth keeping: the whole row is decided in float64.
    bool overflowed() const { return limit_ < 0; }

    void offer(float lower, float upper, int64_t column) {
        if (lower > bound_) return;
        lower_.data()[count_] = lower;
        upper_.data()[count_] = upper;
        columns_.data()[count_] = static_cast<int32_t>(column);
        if (k_ == 1) bound_ = std::min(bound_, upper);
        if (++count_ < limit_) return;
        prune(k_ / 16);
        if (4 * count_ <= 3 * limit_) return;
        if (2 * count_ > 16 * k_ + 4096) {
            bound_ = -std::numeric_limits<float>::infinity();
            count_ = 0;
            limit_ = -1;
        } else {  // keeps pruning rare
            resize(2 * count_);
        }
    }

    // Lowers the bound to the k-th least upper bound, or to one that up to `more` further ones do not exceed, and drops
    // what lies beyond.
    void prune(int64_t more) {
        if (count_ > k_ && k_ > 1) {
            std::fill_n(upper_.data() + count_, WIDTH, std::numeric_limits<float>::quiet_NaN());
            bound_ = std::min(bound_, kth_bound(upper_.data(), count_, k_, more));
        }
        float *lower = lower_.data(), *upper = upper_.data();
        int32_t* columns = columns_.data();
        int64_t kept = 0;
        for (int64_t c = 0; c < count_; ++c) {
            lower[kept] = lower[c];
            upper[kept] = upper[c];
            columns[kept] = columns[c];
            kept += lower[c] <= bound_ ? 1 : 0;
        }
        count_ = kept;
    }

private:
    void resize(int64_t limit) {
        limit_ = limit;
        lower_.resize(static_cast<size_t>(limit));
        upper_.resize(static_cast<size_t>(limit + WIDTH));
        columns_.resize(static_cast<size_t>(limit));
    }

    int64_t k_ = 0, limit_ = 0, count_ = 0;
    float bound_ = 0;
    std::vector<float> lower_, upper_;  // [limit]
    std::vector<int32_t> columns_;
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
          rows_(by_bytes() ? problem.columns.rows : 0, problem.columns.dims),
          filter_(problem, problem.metric == Metric::cosine ? Space::cosine : Space::squared, nullptr, nullptr,
                  rows_.keeper()) {
        if constexpr (Tiles::EXISTS) {
            if (!by_bytes() || !filter_.usable) return;
            tiles_ = std::make_unique<Tiles>(filter_, rows_, problem.threads);
            if (!tiles_->usable()) tiles_.reset();
        }
    }

    void run() {
        const int64_t n = problem_.anchors.rows;
        const int64_t most = tiles_ != nullptr ? MANY_PANELS : PANELS;
        const int64_t rows = block_rows<Panel>(n, problem_.threads, std::max(CHUNK, 8 * k_), most);
        const int64_t blocks = ceil_div(n, rows);
        std::atomic<int64_t> next{0};
        parallel_for(problem_.threads, std::min<int64_t>(problem_.threads, blocks), [&](int64_t) {
            Work work(problem_, rows);
            for (int64_t b = next++; b < blocks; b = next++) {
                const int64_t first = b * rows, count = std::min(rows, n - first);
                if (filtered()) sweep_rows(first, count, work);
                for (int64_t row = 0; row < count; ++row) {
                    const CandidatePool& pool = work.pools[static_cast<size_t>(row)];
                    work.ranked.clear();
                    if (!filtered() || pool.overflowed()) {
                        list_columns(first + row, work.positives, work.ranked);
                    } else {
                        for (int64_t c = 0; c < pool.count(); ++c) work.ranked.push_back({0, pool.column(c)});
                    }
                    finish(first + row, work.ranked);
                }
            }
        });
    }

private:
    using Tiles = NearTiles<T, Panel>;

    static constexpr int64_t CHUNK = Panel::CHUNK;
    // Bytes: how many times k columns panels take at first, so that there are bounds; how many chunks they take at most
    // where bytes leave more than one value in DENSE; how many columns and anchors make bytes worth while; and how many
    // panels of anchors share a pass, as bytes of columns pass quickly.
    static constexpr int64_t FIRST = 24, LONGEST = 16, DENSE = 16, LEAST_COLUMNS = 4096, LEAST_ANCHORS = 96;
    static constexpr int64_t MANY_PANELS = 32;

    struct Work {
        Work(const Problem& problem, int64_t rows)
            : pools(static_cast<size_t>(rows)), positives(problem), block(rows, problem.anchors.dims) {}
        std::vector<CandidatePool> pools;
        std::vector<Ranked> ranked;
        Positives positives;
        typename Tiles::Block block;
    };

    // Where most columns are wanted the filter saves nothing.
    bool filtered() const { return filter_.usable && 4 * k_ <= problem_.columns.rows; }
    bool by_bytes() const {
        return Tiles::EXISTS && problem_.anchors.rows >= LEAST_ANCHORS &&
               problem_.columns.rows >= std::max(LEAST_COLUMNS, 2 * FIRST * k_);
    }

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
    bool hidden(int64_t anchor, Positives& positives, int64_t column) const {
        positives.select(anchor);
        return column == positives.own() || positives.contains(column);
    }

    void sweep_rows(int64_t first, int64_t count, Work& work) const {
        thread_local Scratch scratch;
        for (int64_t row = 0; row < count; ++row) work.pools[static_cast<size_t>(row)].reset(k_);
        const auto consume = [&](int64_t row, int64_t column, int64_t columns, float* values) {
            if (labelled_) hide(first + row, work.positives, column, columns, values);
            scan(work.pools[static_cast<size_t>(row)], scratch.half_norms[row], values, column, columns);
        };
        pack_block(filter_, first, count, scratch, work.block.rows.keeper());
        const bool bytes = start_bytes(count, work);
        [[maybe_unused]] const typename Panel::Session session;
        int64_t panels = ceil_div(FIRST * k_, CHUNK), pause = 1;  // how many chunks they still take
        for (int64_t column = 0, columns = 0; column < filter_.columns; column += columns) {
            columns = std::min(CHUNK, filter_.columns - column);
            if (!bytes || panels > 0) {
                sweep_columns(filter_, count, column, columns, CHUNK, scratch, consume);
                if (--panels == 0 && bytes) set_bounds(count, work);
            } else if (sweep_bytes(first, count, column, columns, work) * DENSE > count * columns) {
                panels = pause;
                pause = std::min(2 * pause, LONGEST);
            } else {
                pause = 1;
            }
        }
        for (int64_t row = 0; row < count; ++row) {
            CandidatePool& pool = work.pools[static_cast<size_t>(row)];
            if (!pool.overflowed()) pool.prune(0);
        }
    }

    bool start_bytes(int64_t count, Work& work) const {
        if constexpr (Tiles::EXISTS) return tiles_ != nullptr && tiles_->start(work.block, count);
        return false;
    }

    void set_bounds(int64_t count, Work& work) const {
        if constexpr (Tiles::EXISTS) {
            for (int64_t row = 0; row < count; ++row) {
                CandidatePool& pool = work.pools[static_cast<size_t>(row)];
                if (!pool.overflowed()) pool.prune(0);
                tiles_->set_bound(work.block, row, pool.bound());
            }
        }
    }

    // Returns how many values have been computed.
    int64_t sweep_bytes(int64_t first, int64_t count, int64_t column, int64_t columns, Work& work) const {
        if constexpr (Tiles::EXISTS) {
            return tiles_->sweep(work.block, count, column, column + columns,
                                 [&](int64_t row, int64_t j, float lower, float upper) {
                                     if (labelled_ && hidden(first + row, work.positives, j)) return;
                                     CandidatePool& pool = work.pools[static_cast<size_t>(row)];
                                     const double before = pool.bound();
                                     pool.offer(lower, upper, j);
                                     if (pool.bound() != before) tiles_->set_bound(work.block, row, pool.bound());
                                 });
        }
        return 0;
    }

    void scan(CandidatePool& pool, double half_norm, const float* values, int64_t first, int64_t count) const {
        if (first == 0 && k_ > 1 && k_ <= count) {  // spares the pool most of these columns
            double error = 0;
            for (int64_t g = 0; g < count; g += GROUP) {
                error = std::max(error, filter_.error(half_norm, filter_.group_half_norm(g / GROUP)));
            }
            pool.lower_bound(round_up(static_cast<double>(kth_bound(values, count, k_, k_ / 16)) + error));
        }
        for (int64_t g = 0; g < count; g += GROUP) {
            const double slack = filter_.error(half_norm, filter_.group_half_norm((first + g) / GROUP));
            FloatV edge = splat(round_up(pool.bound() + slack));
            const int64_t last = std::min(count, g + GROUP);
            for (int64_t c = g; c < last; c += WIDTH) {
                uint32_t hits = mask_le(load(values + c), edge);
                if (__builtin_expect(hits == 0, 1)) continue;
                for (; hits != 0; hits &= hits - 1) {
                    const int64_t column = first + c + __builtin_ctz(hits);
                    const double value = static_cast<double>(values[column - first]);
                    const double error = filter_.error(half_norm, filter_.half_norm(column));
                    pool.offer(round_down(value - error), round_up(value + error), column);
                }
                edge = splat(round_up(pool.bound() + slack));
            }
        }
    }

    // Sorts candidates by canonical values and writes the first k, or all with padding behind them.
    void finish(int64_t anchor, std::vector<Ranked>& ranked) const {
        constexpr size_t TOGETHER = 4;
        const auto fetch = [&](size_t c) {
            for (size_t i = c; i < std::min(c + TOGETHER, ranked.size()); ++i) canonical_.prefetch(ranked[i].column);
        };
        fetch(0);
        size_t c = 0;
        for (; c + TOGETHER <= ranked.size(); c += TOGETHER) {
            fetch(c + TOGETHER);
            int64_t columns[TOGETHER];
            double values[TOGETHER];
            for (size_t i = 0; i < TOGETHER; ++i) columns[i] = ranked[c + i].column;
            canonical_.template selections<TOGETHER>(anchor, columns, values);
            for (size_t i = 0; i < TOGETHER; ++i) ranked[c + i].value = values[i];
        }
        for (; c < ranked.size(); ++c) ranked[c].value = canonical_.selection(anchor, ranked[c].column);
        const int64_t found = std::min(k_, static_cast<int64_t>(ranked.size()));
        if (found < static_cast<int64_t>(ranked.size())) {
            std::nth_element(ranked.begin(), ranked.begin() + found, ranked.end());
        }
        std::sort(ranked.begin(), ranked.begin() + found);
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
    WholeRows<T, Panel> rows_;  // of the columns
    const Filter<T, Panel> filter_;
    std::unique_ptr<Tiles> tiles_;  // null: panels decide alone
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
