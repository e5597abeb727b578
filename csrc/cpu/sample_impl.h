// sample: per anchor-positive pair one negative drawn by distance (distance-weighted sampling).
//
// anchors [N, D], columns [M, D] of float32 or float64, labels -> negatives [P] int64, -1 where every negative
// weighs nothing. On L2-normalised rows, with q = d^2, clamped below at 0.25:
//
//     log2 w(n) = -(D-2)/2 log2 q - (D-3)/2 log2(1 - q/4),      w = 0 beyond d = 1.4
//
// Who weighs nothing is decided on canonical float64 distances; the weights themselves are float32, normalised
// by the anchor's largest. The pair (a, p) takes the column in which the running sum of weights passes
// u / 2^64 of their total, u from Philox. Memory: O(M) a row in flight. Limits: M < 2^31.
// Source: Wu et al., "Sampling matters in deep embedding learning", ICCV 2017; EXT eq. 8; SPEC section 4.
#pragma once

#include "canonical.h"
#include "families.h"
#include "filter.h"
#include "philox.h"
#include "positives.h"

namespace minerlib {
namespace MINERLIB_ISA {

static inline IntV as_int(FloatV x) {
    IntV out;
    std::memcpy(&out, &x, sizeof out);
    return out;
}
static inline FloatV as_float(IntV x) {
    FloatV out;
    std::memcpy(&out, &x, sizeof out);
    return out;
}
static inline FloatV select(IntV truth, FloatV yes, FloatV no) {
    return as_float((truth & as_int(yes)) | (~truth & as_int(no)));
}

// log2 of normal positive numbers, to about 1e-7: the exponent, and the series of atanh on the rest.
static inline FloatV log2_of(FloatV x) {
    const IntV shifted = as_int(x) - 0x3F3504F3;  // the bits of sqrt(1/2)
    const FloatV exponent = __builtin_convertvector(shifted >> 23, FloatV);
    const FloatV m = as_float((shifted & 0x007FFFFF) + 0x3F3504F3);  // in [sqrt(1/2), sqrt(2))
    const FloatV s = (m - 1.0f) / (m + 1.0f), z = s * s;
    const FloatV series = ((((z * 0.32059889f + 0.41219858f) * z + 0.57707802f) * z + 0.96179669f) * z + 2.8853901f);
    return exponent + s * series;
}

// 2^x for x <= 0, to about 1e-7; 0 below 2^-126 and for -infinity.
static inline FloatV exp2_of(FloatV x) {
    const IntV tiny = x < -126.0f;
    x = select(tiny, splat(0.0f), x);
    const FloatV rounded = (x + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: rounds to the nearest integer
    const FloatV f = x - rounded;
    FloatV p = f * 1.5403530e-4f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    const IntV scaled = as_int(p) + (__builtin_convertvector(rounded, IntV) << 23);
    return select(tiny, splat(0.0f), as_float(scaled));
}

template <class T> class Sampler {
public:
    Sampler(const Problem& problem, const PairOptions& options, const PairSlots& slots)
        : problem_(problem), options_(options), slots_(slots), filter_(problem, Space::unit),
          columns_(problem.columns.rows) {}

    void run() {
        const int64_t n = problem_.anchors.rows, rows = block_rows(n, problem_.threads, std::max<int64_t>(columns_, 1));
        parallel_for(problem_.threads, ceil_div(n, rows), [&](int64_t b) {
            const int64_t first = b * rows, count = std::min(rows, n - first);
            Work work(problem_);
            if (!filter_.usable) {
                Buffer<float> values(ceil_div(columns_, BLOCK) * BLOCK);
                for (int64_t i = 0; i < count; ++i) {
                    exact_values(first + i, values.get());
                    draw_row(first + i, values.get(), 0, work);
                }
                return;
            }
            thread_local Scratch scratch;
            const auto nothing = [](int64_t, double) {};
            const auto consume = [&](int64_t i, int64_t, int64_t, float* values) {
                draw_row(first + i, values, scratch.half_norms[i], work);
            };
            sweep(filter_, first, count, 0, ceil_div(columns_, GROUP) * GROUP, scratch, nothing, consume);
            scratch.trim();
        });
    }

private:
    static constexpr int64_t BLOCK = 64;  // columns that share one entry of the running sum
    static constexpr double CUTOFF = 1.4, NEAREST_SQUARED = 0.25;

    struct Work {
        explicit Work(const Problem& problem)
            : positives(problem), sums(ceil_div(problem.columns.rows, BLOCK)),
              weights(ceil_div(problem.columns.rows, BLOCK) * BLOCK) {}
        Positives positives;
        Buffer<double> sums;    // running sums at the end of each block
        Buffer<float> weights;  // [M + padding]
    };

    // Canonical squared distance of the normalised rows; a zero row stays zero.
    double unit_squared(int64_t i, int64_t j) const {
        const T* x = static_cast<const T*>(problem_.anchors.data) + i * filter_.dims;
        const T* y = static_cast<const T*>(problem_.columns.data) + j * filter_.dims;
        double xx, yy;
        lane_sums<false, 1>(x, &x, filter_.dims, &xx);
        lane_sums<false, 1>(y, &y, filter_.dims, &yy);
        const double x_norm = std::sqrt(xx), y_norm = std::sqrt(yy);
        double lane[8] = {};
        for (int64_t k = 0; k < filter_.dims; ++k) {
            const double xk = x_norm != 0 ? static_cast<double>(x[k]) / x_norm : 0.0;
            const double yk = y_norm != 0 ? static_cast<double>(y[k]) / y_norm : 0.0;
            lane[k % 8] += (xk - yk) * (xk - yk);
        }
        return lane_sum(lanes(lane));
    }

    bool beyond_cutoff(int64_t i, int64_t j) const { return std::sqrt(unit_squared(i, j)) > CUTOFF; }

    // Values in place of a tile's where float32 cannot hold the rows: half the squared distance, H_i taken as 0.
    void exact_values(int64_t anchor, float* values) const {
        std::fill(values + columns_, values + ceil_div(columns_, BLOCK) * BLOCK,
                  std::numeric_limits<float>::quiet_NaN());
        for (int64_t j = 0; j < columns_; ++j) {
            values[j] =
                beyond_cutoff(anchor, j) ? 2.0f : static_cast<float>(0.5 * std::min(unit_squared(anchor, j), 1.9599));
        }
    }

    void draw_row(int64_t anchor, float* values, double half_norm, Work& work) {
        Positives& positives = work.positives;
        positives.select(anchor);
        positives.visit(0, columns_, [&](int64_t p) { values[p] = std::numeric_limits<float>::quiet_NaN(); });
        if (positives.own() >= 0) values[positives.own()] = std::numeric_limits<float>::quiet_NaN();
        const float largest = log_weights(anchor, values, half_norm, work.weights.get());
        const double total = largest > -INFINITY ? accumulate(largest, work) : 0.0;
        int64_t slot = slots_.offsets[anchor];
        positives.visit(0, columns_, [&](int64_t p) {
            if (options_.combinations && p < anchor) return;
            slots_.anchors[slot] = anchor;
            slots_.positives[slot] = p;
            slots_.negatives[slot++] = total > 0 ? draw(anchor, p, total, work) : -1;
        });
    }

    // log2 of the weights of all columns, -infinity for those that weigh nothing; returns the largest.
    float log_weights(int64_t anchor, const float* values, double half_norm, float* out) const {
        const double edge = 0.5 * CUTOFF * CUTOFF - half_norm, infinity = std::numeric_limits<double>::infinity();
        const FloatV a = splat(0.5f * static_cast<float>(filter_.dims - 2)),
                     b = splat(0.5f * static_cast<float>(filter_.dims - 3));
        const FloatV half = splat(static_cast<float>(half_norm)), nothing = splat(static_cast<float>(-infinity));
        const FloatV nearest = splat(static_cast<float>(NEAREST_SQUARED));
        FloatV largest = nothing;
        for (int64_t g = 0; g < columns_; g += GROUP) {
            const double error =
                filter_.error(half_norm, filter_.usable ? filter_.group_half_norm(g / GROUP) : 0.0) + 0x1p-50;
            const FloatV in = splat(round_down(edge - error)), out_edge = splat(round_up(edge + error));
            for (int64_t c = g; c < std::min(columns_, g + GROUP); c += WIDTH) {
                const FloatV v = load(values + c);
                IntV beyond = ~(v < in);
                uint32_t asked = filter_.usable ? mask_le(v, out_edge) & ~mask_lt(v, in) : 0;
                for (; asked != 0; asked &= asked - 1) {
                    const int lane = __builtin_ctz(asked);
                    beyond[lane] = beyond_cutoff(anchor, c + lane) ? -1 : 0;
                }
                FloatV q = 2.0f * (v + half);
                q = select(q < nearest, nearest, q);
                q = select(beyond, nearest, q);
                const FloatV log_weight = -(a * log2_of(q) + b * log2_of(1.0f - 0.25f * q));
                const FloatV kept = select(beyond, nothing, log_weight);
                store(out + c, kept);
                largest = select(kept > largest, kept, largest);
            }
        }
        float most = largest[0];
        for (int lane = 1; lane < WIDTH; ++lane) most = std::max(most, static_cast<float>(largest[lane]));
        return most;
    }

    // Turns log weights into weights and their running sums by block; returns the total.
    double accumulate(float largest, Work& work) const {
        double total = 0;
        for (int64_t first = 0; first < columns_; first += BLOCK) {
            float* weights = work.weights.get() + first;
            FloatV sum = {};
            for (int64_t c = 0; c < BLOCK && first + c < columns_; c += WIDTH) {
                const FloatV w = exp2_of(load(weights + c) - largest);
                store(weights + c, w);
                sum += w;
            }
            for (int lane = 0; lane < WIDTH; ++lane) total += static_cast<double>(sum[lane]);
            work.sums[first / BLOCK] = total;
        }
        return total;
    }

    int64_t draw(int64_t anchor, int64_t positive, double total, const Work& work) const {
        const uint64_t u = uniform_bits(options_.seed, static_cast<uint64_t>(anchor), static_cast<uint64_t>(positive));
        const double target = static_cast<double>(u) * 0x1p-64 * total;
        const int64_t blocks = ceil_div(columns_, BLOCK);
        int64_t block = std::upper_bound(work.sums.get(), work.sums.get() + blocks, target) - work.sums.get();
        if (block == blocks) block = last_weighing(work) / BLOCK;  // rounding took the target to the very end
        double sum = block == 0 ? 0.0 : work.sums[block - 1];
        int64_t chosen = -1;
        for (int64_t c = block * BLOCK; c < std::min(columns_, (block + 1) * BLOCK); ++c) {
            if (work.weights[c] <= 0) continue;
            chosen = c;
            sum += static_cast<double>(work.weights[c]);
            if (sum > target) break;
        }
        return chosen;
    }

    int64_t last_weighing(const Work& work) const {
        int64_t c = columns_ - 1;
        while (work.weights[c] <= 0) --c;
        return c;
    }

    const Problem& problem_;
    const PairOptions& options_;
    const PairSlots& slots_;
    const Filter<T> filter_;
    const int64_t columns_;
};

void sample(const Problem& problem, const PairOptions& options, const PairSlots& slots) {
    if (problem.anchors.wide) {
        Sampler<double>(problem, options, slots).run();
    } else {
        Sampler<float>(problem, options, slots).run();
    }
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
