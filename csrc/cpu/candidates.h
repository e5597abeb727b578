// Short lists of candidates: what may still be the nearest (or farthest) column once float64 has looked.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "canonical.h"
#include "filter.h"

namespace minerlib {
namespace MINERLIB_ISA {

// One extremum of one anchor, in one cache line. Values are signed so that smaller is better: v for the nearest
// column, -v for the farthest. A column stays a candidate while its lower bound does not exceed the least upper
// bound seen. Bounds are rounded outwards to float32.
class Shortlist {
public:
    void reset() { restart(std::numeric_limits<double>::infinity()); }

    // Forgets its columns; only those whose lower bound does not exceed `bound` can be the extremum.
    void restart(double bound) {
        bound_ = round_up(bound);
        count_ = 0;
    }

    // Columns whose value exceeds bound() + their error cannot be the extremum.
    double bound() const { return static_cast<double>(bound_); }
    int count() const { return count_; }
    int64_t column(int c) const { return columns_[c]; }

    // More near-ties than fit: the whole row is decided in float64, and no further column is taken. Those that it
    // held, column(0) .. column(held() - 1), are some of the ties.
    bool overflowed() const { return count_ < 0; }
    int held() const { return -1 - count_; }
    void overflow() {
        if (overflowed()) return;
        count_ = -1 - count_;
        bound_ = -std::numeric_limits<float>::infinity();
    }

    // Whether the next column may not fit.
    bool full() const { return count_ == CAPACITY; }

    void offer(double value, double error, int64_t column) {
        offer_bounds(round_down(value - error), round_up(value + error), column);
    }

    // Takes over what another thread found for the same extremum.
    void merge(Shortlist& other) {
        if (other.overflowed() && !overflowed()) *this = other;
        if (overflowed()) return;
        bound_ = std::min(bound_, other.bound_);
        for (int c = 0; c < other.count_; ++c) offer_bounds(other.lower_[c], bound_, other.columns_[c]);
    }

    void drop_beaten() {
        int kept = 0;
        for (int c = 0; c < count_; ++c) {
            if (lower_[c] > bound_) continue;
            lower_[kept] = lower_[c];
            columns_[kept++] = columns_[c];
        }
        if (!overflowed()) count_ = kept;
    }

private:
    static constexpr int CAPACITY = 7;

    void offer_bounds(float lower, float upper, int64_t column) {
        if (lower > bound_ || overflowed()) return;
        bound_ = std::min(bound_, upper);
        if (count_ == CAPACITY) drop_beaten();
        if (count_ == CAPACITY) {
            overflow();
            return;
        }
        lower_[count_] = lower;
        columns_[count_++] = static_cast<int32_t>(column);
    }

    float bound_;
    int32_t count_;
    float lower_[CAPACITY];
    int32_t columns_[CAPACITY];
};

// The thresholds of one anchor's lists over one group of columns, renewed after every hit.
class Edges {
public:
    Edges(const Shortlist* nearest, const Shortlist* farthest, double slack)
        : nearest_(nearest), farthest_(farthest), slack_(slack) {
        renew();
    }

    void renew() {
        const float never = std::numeric_limits<float>::quiet_NaN();
        near = splat(nearest_ != nullptr ? round_up(nearest_->bound() + slack_) : never);
        far = splat(farthest_ != nullptr ? round_down(-farthest_->bound() - slack_) : never);
    }

    FloatV near, far;

private:
    const Shortlist *nearest_, *farthest_;
    const double slack_;
};

// Offers the columns of two hit masks, bit 0 being column `first`, to an anchor's lists.
template <class T, class Panel>
static inline void offer_hits(const Filter<T, Panel>& filter, double half_norm, const float* values, int64_t first,
                              uint32_t near_hits, uint32_t far_hits, Shortlist* nearest, Shortlist* farthest) {
    for (; near_hits != 0; near_hits &= near_hits - 1) {
        const int bit = __builtin_ctz(near_hits);
        nearest->offer(values[bit], filter.error(half_norm, filter.half_norm(first + bit)), first + bit);
    }
    for (; far_hits != 0; far_hits &= far_hits - 1) {
        const int bit = __builtin_ctz(far_hits);
        farthest->offer(-values[bit], filter.error(half_norm, filter.half_norm(first + bit)), first + bit);
    }
}

// Offers the values of columns first .. first + count - 1 to the lists of the nearest and the farthest column
// (either may be null). NaN values are skipped.
template <class T, class Panel>
void scan_extremes(const Filter<T, Panel>& filter, double half_norm, const float* values, int64_t first, int64_t count,
                   Shortlist* nearest, Shortlist* farthest) {
    for (int64_t c = 0, last = 0; c < count; c = last) {
        last = std::min(count, c + GROUP - (first + c) % GROUP);
        Edges edges(nearest, farthest, filter.error(half_norm, filter.group_half_norm((first + c) / GROUP)));
        for (; c < last; c += WIDTH) {
            const FloatV v = load(values + c);
            uint32_t near_hits = mask_le(v, edges.near), far_hits = mask_ge(v, edges.far);
            if (__builtin_expect((near_hits | far_hits) == 0, 1)) continue;
            if (last - c < WIDTH) {  // the rest of the vector belongs to the next group
                near_hits &= (1u << (last - c)) - 1;
                far_hits &= (1u << (last - c)) - 1;
            }
            offer_hits(filter, half_norm, values + c, first + c, near_hits, far_hits, nearest, farthest);
            edges.renew();
        }
    }
}

// The running extremum of canonical values, ties by the lowest index.
struct Best {
    double value = std::numeric_limits<double>::infinity();
    int64_t column = -1;

    void offer(double candidate, int64_t index) {
        if (column < 0 || candidate < value || (candidate == value && index < column)) {
            value = candidate;
            column = index;
        }
    }
};

// Decides a list that did not overflow: the candidate that float64 prefers, or -1 where there is none.
// sign: 1 for the nearest, -1 for the farthest; order: as the filter's.
template <class T>
int64_t decide(const Canonical<T>& canonical, int64_t anchor, double sign, Shortlist& list,
               const int64_t* order = nullptr) {
    const auto column = [&](int c) { return order != nullptr ? order[list.column(c)] : list.column(c); };
    list.drop_beaten();
    if (list.count() == 1) return column(0);  // certified
    Best best;
    for (int c = 0; c < list.count(); ++c) best.offer(sign * canonical.selection(anchor, column(c)), column(c));
    return best.column;
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
