// Distances that the filter's values stand for, and values that distances stand for, with bounds.
#pragma once

#include <algorithm>
#include <cmath>

#include "filter.h"

namespace minerlib {
namespace MINERLIB_ISA {

struct Interval {
    double low, high;
};

constexpr double SLOP = 0x1p-49;  // covers the rounding of the few float64 operations on an edge

// Between which values the metric's distance to a column lies whose float32 value is v.
template <class T, class Panel>
static inline Interval distance_of(Metric metric, const Filter<T, Panel>& filter, double half_norm, int64_t column,
                                   double v) {
    const double center = v + half_norm, error = filter.error(half_norm, filter.half_norm(column));
    double low = filter.scale_out * (center - error), high = filter.scale_out * (center + error);
    if (metric != Metric::cosine) low = std::max(low, 0.0), high = std::max(high, 0.0);
    if (metric == Metric::euclidean) low = std::sqrt(low), high = std::sqrt(high);
    return {low - SLOP * std::fabs(low), high + SLOP * std::fabs(high)};
}

// The float32 values, were they exact, that distances low .. high of the metric correspond to.
template <class T, class Panel>
static inline Interval values_of(Metric metric, const Filter<T, Panel>& filter, double half_norm, double low,
                                 double high) {
    const double inverse_scale = 1.0 / filter.scale_out;  // exact: a power of two
    if (metric != Metric::cosine) low = std::max(low, 0.0);
    if (metric == Metric::euclidean) low *= low, high *= high;
    low *= inverse_scale;
    high *= inverse_scale;
    return {low - half_norm - SLOP * (std::fabs(low) + half_norm),
            high - half_norm + SLOP * (std::fabs(high) + half_norm)};
}

static inline FloatV magnitude(FloatV v) { return reinterpret_cast<FloatV>(reinterpret_cast<IntV>(v) & 0x7FFFFFFF); }

}  // namespace MINERLIB_ISA
}  // namespace minerlib
