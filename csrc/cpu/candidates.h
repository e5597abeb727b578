// Short lists of candidates: what may still be the nearest (or farthest) column once float64 has looked.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "canonical.h"
#include "filter.h"

namespace minerlib {
namespace MINERLIB_ISA {

// One extremum of one anchor. Values are signed so that smaller is better: v for the nearest column, -v for the
// farthest. A column stays a candidate while its lower bound does not exceed the least upper bound seen.
class Shortlist {
public:
    void reset() {
        bound_ = std::numeric_limits<double>::infinity();
        count_ = 0;
        overflowed_ = false;
    }

    // Columns whose value exceeds bound() + their error cannot be the extremum.
    double bound() const { return bound_; }
    bool overflowed() const { return overflowed_; }
    int count() const { return count_; }
    int64_t column(int c) const { return columns_[c]; }

    void offer(double value, double error, int64_t column) {
        if (value - error > bound_) return;
        bound_ = std::min(bound_, value + error);
        if (count_ == CAPACITY) drop_beaten();
        if (count_ == CAPACITY) {  // more near-ties than fit: the whole row is decided in float64
            overflowed_ = true;
            count_ = 0;
            bound_ = -std::numeric_limits<double>::infinity();
            return;
        }
        lower_[count_] = value - error;
        columns_[count_++] = column;
    }

    void drop_beaten() {
        int kept = 0;
        for (int c = 0; c < count_; ++c) {
            if (lower_[c] > bound_) continue;
            lower_[kept] = lower_[c];
            columns_[kept++] = columns_[c];
        }
        count_ = kept;
    }

private:
    static constexpr int CAPACITY = 16;
    double bound_, lower_[CAPACITY];
    int64_t columns_[CAPACITY];
    int count_;
    bool overflowed_;
};

// Offers the values of columns first .. first + count - 1 to the lists of the nearest and the farthest column
// (either may be null). NaN values are skipped.
template <class T>
void scan_extremes(const Filter<T>& filter, double half_norm, const float* values, int64_t first, int64_t count,
                   Shortlist* nearest, Shortlist* farthest) {
    const float never = std::numeric_limits<float>::quiet_NaN();
    for (int64_t g = 0; g < count; g += GROUP) {
        const double slack = filter.error(half_norm, filter.group_half_norm((first + g) / GROUP));
        const auto low = [&] { return nearest ? splat(round_up(nearest->bound() + slack)) : splat(never); };
        const auto high = [&] { return farthest ? splat(round_down(-farthest->bound() - slack)) : splat(never); };
        FloatV near_edge = low(), far_edge = high();
        const int64_t last = std::min(count, g + GROUP);
        for (int64_t c = g; c < last; c += WIDTH) {
            const FloatV v = load(values + c);
            uint32_t near_hits = mask_le(v, near_edge), far_hits = mask_ge(v, far_edge);
            if (__builtin_expect((near_hits | far_hits) == 0, 1)) continue;
            for (; near_hits != 0; near_hits &= near_hits - 1) {
                const int64_t column = first + c + __builtin_ctz(near_hits);
                nearest->offer(values[column - first], filter.error(half_norm, filter.half_norm(column)), column);
            }
            for (; far_hits != 0; far_hits &= far_hits - 1) {
                const int64_t column = first + c + __builtin_ctz(far_hits);
                farthest->offer(-values[column - first], filter.error(half_norm, filter.half_norm(column)), column);
            }
            near_edge = low();
            far_edge = high();
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
// sign: 1 for the nearest, -1 for the farthest.
template <class T> int64_t decide(const Canonical<T>& canonical, int64_t anchor, double sign, Shortlist& list) {
    list.drop_beaten();
    if (list.count() == 1) return list.column(0);  // certified
    Best best;
    for (int c = 0; c < list.count(); ++c) {
        best.offer(sign * canonical.selection(anchor, list.column(c)), list.column(c));
    }
    return best.column;
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
