// Family losses_batch_all: the hinge of every triplet of a batch and its gradient, without a list of triplets.
//
//   loss = sum over a, p, n of max((d(a, p) - d(a, n)) + margin, 0), or its mean (over those above zero)
//   dloss/dd(a, p) = how many negatives have a positive hinge with p; dloss/dd(a, n) = less the positives likewise
//
// x [N, D], y [M, D] float32 or float64. All anchors of a small batch compared with itself, or a block at a time:
//   1. products with all columns, which become distances d = |x|^2 + |y|^2 - 2 x.y of centred rows in float64; where
//      that cancels, the canonical distance takes its place. Unit rows and 1 - x.y for `cosine`;
//   2. an anchor's positives are sorted; each negative falls in the bucket of those with which its hinge is not
//      positive; running sums over the buckets (count, sum of d) give the hinges and the weights of all pairs;
//   3. weights times rows are the gradients: of the anchors at once, of the columns when the block is done. Of all
//      anchors at once, a distance serves both of its rows, and so does the sum of both weights of a pair.
// Everything is float64, summed in one order whatever the threads, unless they outnumber the tiles of a block. A hinge
// of zero has no gradient; equal rows have none under `euclidean`, and zero rows none under `cosine`.
// Work: 3 N M D multiply-adds (products and two gradients), or half of it where distances are shared, and N M log P.
// Memory: 24 (N + M) D bytes at most and a block of 4 MiB (or TILE_ROWS rows a thread), or 8 N^2 bytes, 34 MB at most,
// where all anchors are held. Source: EXT eq. 1.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "canonical.h"
#include "double_tiles.h"
#include "losses.h"
#include "memory.h"
#include "panels.h"
#include "pool.h"
#include "positives.h"
#include "ready_rows.h"

namespace minerlib {
namespace MINERLIB_ISA {

template <class T> class BatchAll {
public:
    BatchAll(const Problem& problem, double margin, Reduction reduction)
        : problem_(problem), margin_(margin), reduction_(reduction), n_(problem.anchors.rows), m_(problem.columns.rows),
          dims_(problem.anchors.dims), width_(ceil_div(m_, DOUBLES) * DOUBLES),
          stride_(width_ % 16 == 0 ? width_ + 8 : width_), canonical_(problem) {}

    void run(LossResult& result) {
        const bool differentiate = result.into_x != nullptr;
        prepare(differentiate);
        sums_.resize(n_);
        total_.resize(n_);
        above_.resize(n_);
        if (problem_.own && n_ <= SQUARE) {
            over_square(differentiate);
        } else {
            over_blocks(differentiate);
        }
        const double scale = reduce(result.loss);
        if (!differentiate) return;
        finish(scale, *x_, x_sums_, x_weight_, static_cast<T*>(result.into_x));
        if (!problem_.own) finish(scale, y_ready_, y_sums_, y_weight_, static_cast<T*>(result.into_y));
    }

private:
    using Sorted = std::vector<std::pair<double, int64_t>>;  // positives: distance, column
    struct Work {
        Sorted sorted;
        std::vector<double> sums;
    };

    static constexpr int64_t SQUARE = 2048;    // rows whose distances are all held at once
    static constexpr int64_t BLOCK = 1 << 19;  // values of a block of anchors
    static constexpr int64_t UNIT = 4;         // tiles of rows that share a panel in the first cache
    static constexpr int64_t DEPTH = 256;      // steps of a product between additions to memory
    static constexpr int64_t DIRECT = 24;      // up to so many positives are compared one by one
    static constexpr double CLOSE = 1e-6;      // a distance below this share of the norms has lost digits

    void prepare(bool differentiate) {
        const T* x = static_cast<const T*>(problem_.anchors.data);
        const T* y = static_cast<const T*>(problem_.columns.data);
        const bool unit = problem_.metric == Metric::cosine;
        center_.resize(dims_);
        std::fill(center_.get(), center_.get() + dims_, 0.0);
        if (!unit) {
            for (int64_t j = 0; j < m_; ++j) {
                for (int64_t k = 0; k < dims_; ++k) center_[k] += static_cast<double>(y[j * dims_ + k]);
            }
            for (int64_t k = 0; k < dims_; ++k) center_[k] /= static_cast<double>(m_);
        }
        y_ready_.prepare(y, m_, dims_, center_.get(), unit, problem_.threads, true, differentiate);
        if (!problem_.own) x_ready_.prepare(x, n_, dims_, center_.get(), unit, problem_.threads, false, differentiate);
        x_ = problem_.own ? &y_ready_ : &x_ready_;
        if (!differentiate) return;
        clear(x_sums_, n_ * x_->padded());
        clear(x_weight_, n_);
        if (problem_.own) return;
        clear(y_sums_, m_ * x_->padded());
        clear(y_weight_, m_);
    }

    static void clear(Buffer<double>& buffer, int64_t size) {
        buffer.resize(size);
        std::fill(buffer.get(), buffer.get() + size, 0.0);
    }

    // A block of anchors against all columns at a time.
    void over_blocks(bool differentiate) {
        // As many rows as BLOCK holds, a tile for each thread at least, and units small enough to be shared out.
        const int64_t tiles = std::max<int64_t>(BLOCK / stride_ / TILE_ROWS, problem_.threads);
        const int64_t rows = std::min(n_, tiles * TILE_ROWS), unit = unit_of(tiles);
        const int64_t unit_columns = UNIT * TILE_ROWS;
        block_.resize(rows * stride_);
        for (int64_t first = 0; first < n_; first += rows) {
            const int64_t count = std::min(rows, n_ - first);
            parallel_for(problem_.threads, ceil_div(count, unit), [&](int64_t u) {
                const int64_t top = u * unit, here = std::min(unit, count - top);
                distances(first + top, here, 0, row(top));
                Work work;
                for (int64_t r = top; r < top + here; ++r) weigh(first + r, row(r), work);
                if (differentiate) sum_columns(first + top, here, row(top));
            });
            if (!differentiate) continue;
            parallel_for(problem_.threads, ceil_div(m_, unit_columns), [&](int64_t u) {
                sum_anchors(first, count, u * unit_columns, std::min(unit_columns, m_ - u * unit_columns));
            });
        }
    }

    // All distances, each computed for both of its anchors, and one sum of rows by both of their weights.
    void over_square(bool differentiate) {
        const int64_t unit = unit_of(ceil_div(n_, TILE_ROWS)), units = ceil_div(n_, unit);
        block_.resize(n_ * stride_);
        parallel_for(problem_.threads, units, [&](int64_t u) {
            const int64_t top = u * unit, bottom = std::min(top + unit, n_);
            distances(top, bottom - top, top / DOUBLES * DOUBLES, row(top));
            for (int64_t next = bottom; next < n_; next += unit) {
                const int64_t end = std::min(bottom, next / DOUBLES * DOUBLES);  // the others it computes itself
                for (int64_t j = next; j < std::min(next + unit, n_); ++j) {
                    for (int64_t i = top; i < end; ++i) row(j)[i] = row(i)[j];
                }
            }
        });
        parallel_for(problem_.threads, units, [&](int64_t u) {
            Work work;
            for (int64_t i = u * unit; i < std::min((u + 1) * unit, n_); ++i) weigh(i, row(i), work);
        });
        if (!differentiate) return;
        parallel_for(problem_.threads, units, [&](int64_t u) { sum_both(u * unit, std::min(unit, n_ - u * unit)); });
    }

    int64_t unit_of(int64_t tiles) const {
        return TILE_ROWS * std::max<int64_t>(1, std::min(UNIT, tiles / (4 * problem_.threads)));
    }

    double* row(int64_t r) const { return block_.get() + r * stride_; }

    // out [count, stride]: of anchors to the columns beyond `from`, the first of a panel.
    void distances(int64_t first, int64_t count, int64_t from, double* out) const {
        products(first, count, from, out);
        for (int64_t r = 0; r < count; ++r) measure(first + r, from, problem_.own ? first + r : -1, out + r * stride_);
    }

    void products(int64_t first, int64_t count, int64_t from, double* out) const {
        const int64_t depth = std::min(dims_, DEPTH), tile = depth * TILE_ROWS;
        Buffer<double> packed(UNIT * tile);
        for (int64_t k = 0; k < dims_; k += depth) {
            const int64_t steps = std::min(depth, dims_ - k);
            for (int64_t r = 0; r < UNIT * TILE_ROWS; ++r) {
                double* to = packed.get() + r / TILE_ROWS * tile + r % TILE_ROWS;
                for (int64_t s = 0; s < steps; ++s) to[s * TILE_ROWS] = r < count ? x_->value(first + r, k + s) : 0.0;
            }
            for (int64_t j = from; j < width_; j += DOUBLES) {
                const double* panel = y_ready_.panels.get() + j * dims_ + k * DOUBLES;
                for (int64_t t = 0; t * TILE_ROWS < count; ++t)
                    multiply(packed.get() + t * tile, panel, steps, count - t * TILE_ROWS, k > 0,
                             out + t * TILE_ROWS * stride_ + j, stride_);
            }
        }
    }

    // Turns an anchor's distances into the weights of the rows' differences.
    void weigh(int64_t i, double* row, Work& work) {
        Positives positives(problem_);
        positives.select(i);
        Sorted& sorted = work.sorted;
        sorted.clear();
        positives.visit(0, m_, [&](int64_t j) { sorted.emplace_back(row[j], j); });
        const int64_t count = static_cast<int64_t>(sorted.size());
        const int64_t negatives = m_ - count - (positives.own() >= 0);
        total_[i] = count * negatives;
        sums_[i] = 0;
        above_[i] = 0;
        if (total_[i] == 0) {
            std::fill(row, row + width_, 0.0);
            return;
        }
        std::sort(sorted.begin(), sorted.end());
        const double nothing = std::numeric_limits<double>::infinity();
        for (const auto& positive : sorted) row[positive.second] = nothing;
        if (positives.own() >= 0) row[positives.own()] = nothing;
        std::fill(row + m_, row + width_, nothing);

        work.sums.assign(static_cast<size_t>(2 * count), 0.0);  // active negatives of each positive, their hinges' sum
        double *active = work.sums.data(), *hinges = active + count;
        if (count <= DIRECT) {
            compare_each(sorted, row, active, hinges);
        } else {
            fill_buckets(sorted, row, active, hinges);
        }
        for (int64_t k = 0; k < count; ++k) {
            sums_[i] += hinges[k];
            above_[i] += static_cast<int64_t>(active[k]);
            row[sorted[static_cast<size_t>(k)].second] = slope(sorted[static_cast<size_t>(k)].first) * active[k];
        }
        if (positives.own() >= 0) row[positives.own()] = 0;
        std::fill(row + m_, row + width_, 0.0);
    }

    double slope(double distance) const {
        if (problem_.metric == Metric::euclidean) return distance > 0 ? 1 / distance : 0;
        return problem_.metric == Metric::cosine ? 1 : 2;
    }

    void measure(int64_t i, int64_t from, int64_t own, double* row) const {
        if (problem_.metric == Metric::cosine) {
            for (int64_t j = from; j < width_; ++j) row[j] = 1 - row[j];
            return;
        }
        const double mine = x_->squares[i];
        const double* squares = y_ready_.squares.get();
        for (int64_t first = from; first < width_; first += DOUBLES) {
            LongV close = {};
            for (int64_t j = first; j < first + DOUBLES; j += DOUBLES / 2) {
                const DoubleV norms = splat(mine) + load(squares + j);
                const DoubleV distance = norms - 2.0 * load(row + j);
                close |= (distance < CLOSE * norms) | (norms == 0.0);
                store(row + j, distance);
            }
            int64_t any = 0;
            for (int lane = 0; lane < DOUBLES / 2; ++lane) any |= close[lane];
            if (any == 0) continue;
            for (int64_t j = first; j < std::min(first + DOUBLES, m_); ++j) {
                if (j != own && row[j] <= CLOSE * (mine + squares[j])) row[j] = canonical_.selection(i, j);
            }
        }
        if (problem_.metric != Metric::euclidean) return;
        if (own >= 0) row[own] = 0;
        for (int64_t j = from; j < m_; ++j) row[j] = std::sqrt(row[j]);
    }

    // Few positives: each is compared with all negatives, two vectors at a time; row becomes the negatives' weights.
    void compare_each(const Sorted& positives, double* row, double* active, double* hinges) const {
        const int64_t count = static_cast<int64_t>(positives.size());
        DoubleV near[DIRECT], sums[DIRECT] = {};
        LongV counts[DIRECT] = {};
        for (int64_t k = 0; k < count; ++k) near[k] = splat(positives[static_cast<size_t>(k)].first);
        const DoubleV margin = splat(margin_), zero = {};
        for (int64_t j = 0; j < width_; j += DOUBLES) {
            const DoubleV d0 = load(row + j), d1 = load(row + j + DOUBLE_LANES);
            LongV hits0 = {}, hits1 = {};
            for (int64_t k = 0; k < count; ++k) {
                const DoubleV h0 = (near[k] - d0) + margin, h1 = (near[k] - d1) + margin;
                const LongV above0 = h0 > zero, above1 = h1 > zero;
                sums[k] += masked(h0, above0) + masked(h1, above1);
                counts[k] -= above0 + above1;
                hits0 += above0;
                hits1 += above1;
            }
            store(row + j, weights_of(hits0, d0));
            store(row + j + DOUBLE_LANES, weights_of(hits1, d1));
        }
        for (int64_t k = 0; k < count; ++k) {
            for (int lane = 0; lane < DOUBLE_LANES; ++lane) {
                active[k] += static_cast<double>(counts[k][lane]);
                hinges[k] += sums[k][lane];
            }
        }
    }

    static DoubleV masked(DoubleV v, LongV mask) {
        return reinterpret_cast<DoubleV>(reinterpret_cast<LongV>(v) & mask);
    }

    // Weights of negatives with -hits active positives each.
    DoubleV weights_of(LongV hits, DoubleV distance) const {
        const DoubleV weight = __builtin_convertvector(hits, DoubleV);
        if (problem_.metric == Metric::cosine) return weight;
        if (problem_.metric == Metric::sqeuclidean) return weight + weight;
        const DoubleV one = splat(1.0);
        const LongV apart = distance > DoubleV{};
        return masked(weight / (masked(distance, apart) + masked(one, ~apart)), apart);
    }

    // Many: a search among the sorted ones gives each negative its bucket, and running sums what lies in which. Eight
    // searches of the same steps go side by side, without a branch.
    void fill_buckets(const Sorted& positives, double* row, double* active, double* hinges) const {
        const int64_t count = static_cast<int64_t>(positives.size());
        std::vector<double> nearness(static_cast<size_t>(count));
        for (size_t k = 0; k < nearness.size(); ++k) nearness[k] = positives[k].first;
        const double* sorted = nearness.data();
        constexpr int ABREAST = 8;
        for (int64_t j = 0; j < m_; j += ABREAST) {
            const int lanes_here = static_cast<int>(std::min<int64_t>(ABREAST, m_ - j));
            double distance[ABREAST];
            int64_t inactive[ABREAST] = {};
            for (int lane = 0; lane < ABREAST; ++lane) distance[lane] = row[j + std::min(lane, lanes_here - 1)];
            int64_t left = count;
            for (; left > 1; left -= left / 2) {
                const int64_t half = left / 2;
                for (int lane = 0; lane < ABREAST; ++lane) {
                    const bool above = (sorted[inactive[lane] + half - 1] - distance[lane]) + margin_ > 0;
                    inactive[lane] += half * static_cast<int64_t>(!above);
                }
            }
            for (int lane = 0; lane < lanes_here; ++lane) {
                const bool above = (sorted[inactive[lane]] - distance[lane]) + margin_ > 0;
                const int64_t bucket = inactive[lane] + static_cast<int64_t>(!above);
                row[j + lane] = bucket == count ? 0 : -slope(distance[lane]) * static_cast<double>(count - bucket);
                if (bucket == count) continue;
                active[bucket] += 1;
                hinges[bucket] += distance[lane];
            }
        }
        double before = 0, sum = 0;
        for (int64_t k = 0; k < count; ++k) {
            active[k] = before += active[k];
            sum += hinges[k];
            hinges[k] = before > 0 ? before * (sorted[k] + margin_) - sum : 0;
        }
    }

    // x_sums[i] += sum_j weight(i, j) y_j, and x_weight[i] those weights, for the unit's anchors.
    void sum_columns(int64_t first, int64_t count, const double* weights) {
        const int64_t width = x_->padded(), tile = DEPTH * TILE_ROWS;
        Buffer<double> packed(UNIT * tile);
        for (int64_t j = 0; j < m_; j += DEPTH) {
            const int64_t steps = std::min(DEPTH, m_ - j);
            for (int64_t r = 0; r < UNIT * TILE_ROWS; ++r) {
                double* to = packed.get() + r / TILE_ROWS * tile + r % TILE_ROWS;
                double sum = 0;
                for (int64_t s = 0; s < steps; ++s) {
                    to[s * TILE_ROWS] = r < count ? weights[r * stride_ + j + s] : 0.0;
                    sum += to[s * TILE_ROWS];
                }
                if (r < count) x_weight_[first + r] += sum;
            }
            add_sums(packed.get(), tile, steps, y_ready_, j, count, x_sums_.get() + first * width);
        }
    }

    // y_sums[j] += sum_i weight(i, j) x_i over the block's anchors, for the columns first .. first + count - 1.
    void sum_anchors(int64_t anchor, int64_t anchors, int64_t first, int64_t count) {
        const int64_t width = x_->padded(), tile = DEPTH * TILE_ROWS;
        double* sums = problem_.own ? x_sums_.get() : y_sums_.get();
        double* weight = problem_.own ? x_weight_.get() : y_weight_.get();
        Buffer<double> packed(UNIT * tile);
        for (int64_t a = 0; a < anchors; a += DEPTH) {
            const int64_t steps = std::min(DEPTH, anchors - a);
            for (int64_t s = 0; s < steps; ++s) {
                const double* row = block_.get() + (a + s) * stride_ + first;
                for (int64_t r = 0; r < UNIT * TILE_ROWS; ++r) {
                    const double value = r < count ? row[r] : 0.0;
                    packed[r / TILE_ROWS * tile + s * TILE_ROWS + r % TILE_ROWS] = value;
                    if (r < count) weight[first + r] += value;
                }
            }
            add_sums(packed.get(), tile, steps, *x_, anchor + a, count, sums + first * width);
        }
    }

    // x_sums[i] += sum_j (weight(i, j) + weight(j, i)) y_j for the anchors first .. first + count - 1 of a square.
    void sum_both(int64_t first, int64_t count) {
        const int64_t tile = DEPTH * TILE_ROWS;
        Buffer<double> packed(UNIT * tile);
        for (int64_t j = 0; j < m_; j += DEPTH) {
            const int64_t steps = std::min(DEPTH, m_ - j);
            for (int64_t t = 0; t * TILE_ROWS < count; ++t) {
                const int64_t top = first + t * TILE_ROWS, here = first + count - top;
                double* to = packed.get() + t * tile;
                here >= TILE_ROWS ? pack_both<true>(top, TILE_ROWS, j, steps, to)
                                  : pack_both<false>(top, here, j, steps, to);
            }
            add_sums(packed.get(), tile, steps, y_ready_, j, count, x_sums_.get() + first * x_->padded());
        }
    }

    // Both weights of the anchors top .. top + count - 1, which WHOLE says to be TILE_ROWS, with the others from `from`
    // on.
    template <bool WHOLE> void pack_both(int64_t top, int64_t count, int64_t from, int64_t steps, double* out) {
        const double *mine = row(top) + from, *theirs = row(from) + top;
        double sum[TILE_ROWS] = {};
        for (int64_t s = 0; s < steps; ++s, ++mine, theirs += stride_, out += TILE_ROWS) {
#pragma GCC unroll 16
            for (int64_t r = 0; r < TILE_ROWS; ++r) {
                out[r] = WHOLE || r < count ? mine[r * stride_] + theirs[r] : 0.0;
                sum[r] += out[r];
            }
        }
        for (int64_t r = 0; r < count; ++r) x_weight_[top + r] += sum[r];
    }

    void add_sums(const double* packed, int64_t tile, int64_t steps, const ReadyRows<T>& rows, int64_t from,
                  int64_t count, double* out) const {
        const int64_t width = rows.padded();
        for (int64_t k = 0; k < width; k += DOUBLES) {
            const double* panel = rows.by_dims.get() + k * rows.n + from * DOUBLES;
            for (int64_t t = 0; t * TILE_ROWS < count; ++t)
                multiply(packed + t * tile, panel, steps, count - t * TILE_ROWS, true, out + t * TILE_ROWS * width + k,
                         width);
        }
    }

    double reduce(double& loss) const {
        double sum = 0;
        int64_t total = 0, above = 0;
        for (int64_t i = 0; i < n_; ++i) {
            sum += sums_[i];
            total += total_[i];
            above += above_[i];
        }
        const int64_t divisor = reduction_ == Reduction::mean           ? total
                                : reduction_ == Reduction::mean_nonzero ? above
                                                                        : 1;
        const double scale = 1 / static_cast<double>(std::max<int64_t>(divisor, 1));
        loss = sum * scale;
        return scale;
    }

    // Row by row: scale (weight x - sums), and under `cosine`, where weights multiply other rows alone, the part of
    // -sums across the row, divided by its length.
    void finish(double scale, const ReadyRows<T>& rows, const Buffer<double>& sums, const Buffer<double>& weight,
                T* out) const {
        const bool unit = problem_.metric == Metric::cosine;
        const int64_t block = 64;
        parallel_for(problem_.threads, ceil_div(rows.n, block), [&](int64_t b) {
            Buffer<double> row(rows.padded());
            for (int64_t i = b * block; i < std::min(rows.n, (b + 1) * block); ++i) {
                rows.get(i, row.get());
                const double* sum = sums.get() + i * rows.padded();
                double along = weight[i], length = 1;
                if (unit) {
                    along = 0;
                    for (int64_t k = 0; k < dims_; ++k) along += sum[k] * row[k];
                    length = rows.inverse[i];
                }
                for (int64_t k = 0; k < dims_; ++k)
                    out[i * dims_ + k] = static_cast<T>(scale * length * (along * row[k] - sum[k]));
            }
        });
    }

    const Problem& problem_;
    const double margin_;
    const Reduction reduction_;
    const int64_t n_, m_, dims_;
    const int64_t width_, stride_;  // columns, and values from one row to the next: an odd number of cache lines
    const Canonical<T> canonical_;
    ReadyRows<T> x_ready_, y_ready_;
    const ReadyRows<T>* x_ = nullptr;
    Buffer<double> center_, block_, sums_, x_sums_, y_sums_, x_weight_, y_weight_;
    Buffer<int64_t> total_, above_;
};

void losses_batch_all(const Problem& problem, double margin, Reduction reduction, LossResult& result) {
    if (problem.anchors.wide) {
        BatchAll<double>(problem, margin, reduction).run(result);
    } else {
        BatchAll<float>(problem, margin, reduction).run(result);
    }
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
