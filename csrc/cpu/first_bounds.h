// Bounds on the extremes of rows compared with each other, from a sample of them: what lists of candidates start from,
// so that few columns enter them that are beaten later.
//
// A row's distance to any row of the sample bounds its nearest from above, its farthest from below. Branch-free minima
// and maxima of the panels' values (filter.h), which serve both sides: v(i, j) row i, v + H_i - h_j row j.
#pragma once

#include <atomic>
#include <vector>

#include "filter.h"

namespace minerlib {
namespace MINERLIB_ISA {

template <class T, class Panel> class FirstBounds {
public:
    // The positives of row i are the rows positives_begin[i] ..
    // positives_end[i] - 1, itself among them. wanted: as in Kernels::extremes.
    FirstBounds(const Filter<T, Panel>& filter, unsigned wanted, const int64_t* positives_begin,
                const int64_t* positives_end, int threads)
        : filter_(filter), wanted_(wanted), n_(filter.columns), largest_(filter.largest_half_norm()),
          positives_begin_(positives_begin), positives_end_(positives_end) {
        for (int e = 0; e < 4; ++e) {
            if (wanted_ >> e & 1) bounds_[e].resize(n_);
        }
        const int64_t every = std::max<int64_t>(1, n_ / std::max(LEAST, n_ / SHARE));
        const int64_t panels = ceil_div(ceil_div(n_, int64_t{Panel::ROWS}), every);
        const auto workers = static_cast<int>(std::min<int64_t>(threads, panels));
        std::vector<Best> found(static_cast<size_t>(workers));
        for (int e = 0; e < 4; ++e) {
            if ((wanted_ >> e & 1) != 0) std::fill_n(bounds_[e].get(), n_, std::numeric_limits<float>::infinity());
        }
        std::atomic<int64_t> next{0};
        parallel_for(workers, workers, [&](int64_t worker) {
            Best& best = found[static_cast<size_t>(worker)];
            for (int e = 0; e < 4; ++e) {
                if ((wanted_ >> e & 1) == 0) continue;
                best.of[e].resize(n_ + WIDTH);
                std::fill_n(best.of[e].get(), n_ + WIDTH, sign(e) * std::numeric_limits<float>::infinity());
            }
            for (int64_t p = next++; p < panels; p = next++) {
                const int64_t first = p * every * Panel::ROWS;
                compare(first, std::min<int64_t>(Panel::ROWS, n_ - first), best);
            }
        });
        for (const Best& best : found) {
            for (int e = 0; e < 4; ++e) {
                if ((wanted_ >> e & 1) != 0) take(e, best.of[e].get());
            }
        }
    }

    // The value of row i's extremum, v of the nearest or -v of the farthest, is no greater.
    double bound(int e, int64_t i) const { return static_cast<double>(bounds_[e][i]); }

private:
    // The sample is one row of SHARE, or LEAST rows; products of tiles cost little beside what lists cost.
#if defined(MINERLIB_TILES)
    static constexpr int64_t SHARE = 8, LEAST = 128;
#else
    static constexpr int64_t SHARE = 32, LEAST = 128;
#endif

    // The best v + H_i of each row that a thread has seen.
    struct Best {
        Buffer<float> of[4];  // [n + WIDTH]
    };

    static float sign(int e) { return e % 2 == 0 ? 1.0f : -1.0f; }

    // Compares the rows first .. first + count - 1 with all others.
    void compare(int64_t first, int64_t count, Best& best) {
        constexpr int64_t CHUNK = std::min(int64_t{512}, Panel::CHUNK);
        thread_local Scratch scratch;
        FloatV rows[4][Panel::ROWS];  // not for std::fill_n: as an argument of a template the type takes alignment
        for (int e = 0; e < 4; ++e) {
            for (int64_t r = 0; r < count; ++r) rows[e][r] = splat(sign(e) * std::numeric_limits<float>::infinity());
        }
        const auto consume = [&](int64_t r, int64_t column, int64_t columns, float* values) {
            const int64_t i = first + r;
            const auto inside = [&](int64_t j) { return std::clamp<int64_t>(j - column, 0, columns); };
            const int64_t begin = inside(positives_begin_[i]), end = inside(positives_end_[i]);
            if (i >= column && i < column + columns) values[i - column] = std::numeric_limits<float>::quiet_NaN();
            const FloatV h = splat(filter_.half_norms()[i]);
            side<2>(values, 0, begin, column, h, r, rows, best);
            side<0>(values, begin, end, column, h, r, rows, best);
            side<2>(values, end, columns, column, h, r, rows, best);
        };
        sweep(filter_, first, count, 0, CHUNK, scratch, [](int64_t, double) {}, consume);
        for (int e = 0; e < 4; ++e) {  // every row is one thread's
            for (int64_t r = 0; r < count && (wanted_ >> e & 1) != 0; ++r) {
                float v = std::numeric_limits<float>::infinity();
                for (int lane = 0; lane < WIDTH; ++lane) v = std::min(v, sign(e) * rows[e][r][lane]);
                bounds_[e][first + r] =
                    round_up(static_cast<double>(v) + filter_.error(scratch.half_norms[r], largest_));
            }
        }
    }

    // The values first .. last - 1 of a row, which are of positives (SIDE 0) or of negatives.
    template <int SIDE>
    void side(const float* values, int64_t first, int64_t last, int64_t column, FloatV h, int64_t r,
              FloatV (&rows)[4][Panel::ROWS], Best& best) const {
        if (first >= last) return;
        const bool near = (wanted_ >> SIDE & 1) != 0, far = (wanted_ >> (SIDE + 1) & 1) != 0;
        if (near && far) {
            part<true, true>(SIDE, values, first, last, column, h, r, rows, best);
        } else if (near) {
            part<true, false>(SIDE, values, first, last, column, h, r, rows, best);
        } else if (far) {
            part<false, true>(SIDE, values, first, last, column, h, r, rows, best);
        }
    }

    template <bool NEAR, bool FAR>
    static void part(int side, const float* values, int64_t first, int64_t last, int64_t column, FloatV h, int64_t r,
                     FloatV (&rows)[4][Panel::ROWS], Best& best) {
        float* near = NEAR ? best.of[side].get() + column : nullptr;
        float* far = FAR ? best.of[side + 1].get() + column : nullptr;
        FloatV nearest = rows[side][r], farthest = rows[side + 1][r];
        const auto see = [&](FloatV v, int64_t c) {  // NaN is passed over
            const FloatV mirrored = v + h;
            if (NEAR) {
                const FloatV before = load(near + c);
                nearest = v < nearest ? v : nearest;
                store(near + c, mirrored < before ? mirrored : before);
            }
            if (FAR) {
                const FloatV before = load(far + c);
                farthest = v > farthest ? v : farthest;
                store(far + c, mirrored > before ? mirrored : before);
            }
        };
        int64_t c = first;
        for (; c + WIDTH <= last; c += WIDTH) see(load(values + c), c);
        if (c < last) {
            FloatV v = load(values + c);
            for (int64_t lane = last - c; lane < WIDTH; ++lane) v[lane] = std::numeric_limits<float>::quiet_NaN();
            see(v, c);
        }
        if (NEAR) rows[side][r] = nearest;
        if (FAR) rows[side + 1][r] = farthest;
    }

    // Joins what one thread has seen: v + H_i of the best row i of the sample for each row j.
    void take(int e, const float* best) {
        for (int64_t j = 0; j < n_; ++j) {
            if (std::abs(best[j]) > std::numeric_limits<float>::max()) continue;
            const double h = filter_.half_norm(j), v = static_cast<double>(best[j]) - h;
            // H_i and the sum were rounded to float32.
            const double error = filter_.error(largest_, h) + 0x1p-20 * (largest_ + h);
            bounds_[e][j] = std::min(bounds_[e][j], round_up(static_cast<double>(sign(e)) * v + error));
        }
    }

    const Filter<T, Panel>& filter_;
    const unsigned wanted_;
    const int64_t n_;
    const double largest_;  // half norm
    const int64_t *positives_begin_, *positives_end_;
    Buffer<float> bounds_[4];  // [n]
};

}  // namespace MINERLIB_ISA
}  // namespace minerlib
