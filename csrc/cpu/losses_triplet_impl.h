// Family losses_triplet: the loss of given triplets and its gradient, fused.
//
//   s = (d(a, p) - d(a, n)) + margin;   term = max(s, 0), or log(1 + exp(s)) where `soft`
//   loss = the terms' mean, sum, or mean over those above zero; hinge_of_sums: max(sum (d(a,p) - d(a,n)) + margin, 0)
//   gradient: with w(a, j) = sum of dloss/ds over the triplets (a, j, .) less that over (a, ., j),
//             dloss/dx_a = sum_j w(a, j) dd(x_a, y_j)/dx_a   and   dloss/dy_j = sum_a w(a, j) dd(x_a, y_j)/dy_j
//
// x [N, D], y [M, D] float32 or float64; distances, sums and gradients are accumulated in float64, distances in the
// canonical order (canonical.h), and every sum in one order, whatever the threads. Triplets are grouped by anchor, so
// that a distance is computed once for each distinct pair and the gradient costs D for each pair, not triplet.
// Gradients are zero where a Euclidean distance is, and for the cosine distance of a zero row.
// Limits: N, M < 2^31. Memory: 48 bytes for each distinct pair (at most 2 T and N M) and 32 bytes for each column and
// thread; no [T, D] array.
// Source: FaceNet; JTANet eq. 4-7; deep triplet supervised hashing (soft).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "double_tiles.h"
#include "losses.h"
#include "memory.h"
#include "pool.h"

namespace minerlib {
namespace MINERLIB_ISA {

template <class T> class TripletLoss {
public:
    explicit TripletLoss(const TripletTerms& terms)
        : terms_(terms), x_(static_cast<const T*>(terms.x.data)), y_(static_cast<const T*>(terms.y.data)),
          n_(terms.x.rows), m_(terms.y.rows), dims_(terms.x.dims) {
        group();
        if (terms.comparison == Comparison::cosine) find_norms();
    }

    void run(LossResult& result) {
        slots_.resize(first_slot_[n_]);
        used_.resize(n_);
        sums_.resize(n_);
        above_.resize(n_);
        // Few pieces, as each starts with a table of all columns.
        const int64_t pieces = std::min<int64_t>(n_, 4 * static_cast<int64_t>(terms_.threads));
        parallel_for(terms_.threads, pieces, [&](int64_t piece) {
            Buffer<int32_t> place(m_);
            Buffer<int32_t> seen_by(m_);
            std::fill(seen_by.get(), seen_by.get() + m_, -1);
            for (int64_t i = bound(piece, pieces); i < bound(piece + 1, pieces); ++i)
                visit_anchor(i, place.get(), seen_by.get());
        });
        double sum = 0;
        int64_t above = 0;
        for (int64_t i = 0; i < n_; ++i) {
            sum += sums_[i];
            above += above_[i];
        }
        const double scale = reduce(sum, above, result.loss);
        if (result.into_x != nullptr) differentiate(scale, result);
    }

private:
    // A distinct pair of an anchor and another row.
    struct Slot {
        int32_t other;
        double distance;
        double weight;  // first of the distance, then of the rows' difference (or of the other row)
    };
    struct Mirror {
        int32_t anchor;
        double weight;
        double turn;  // of the row itself, under the cosine distance
    };

    void group() {
        Buffer<int64_t> counts(n_ + 1);
        std::fill(counts.get(), counts.get() + n_ + 1, 0);
        bool sorted = true;
        for (int64_t t = 0; t < terms_.count; ++t) {
            ++counts[terms_.anchors[t] + 1];
            sorted = sorted && (t == 0 || terms_.anchors[t - 1] <= terms_.anchors[t]);
        }
        first_triplet_.resize(n_ + 1);
        first_slot_.resize(n_ + 1);
        first_triplet_[0] = first_slot_[0] = 0;
        for (int64_t i = 0; i < n_; ++i) {
            first_triplet_[i + 1] = first_triplet_[i] + counts[i + 1];
            first_slot_[i + 1] = first_slot_[i] + std::min(2 * counts[i + 1], m_);
        }
        if (sorted) return;
        order_.resize(terms_.count);
        std::copy(first_triplet_.get(), first_triplet_.get() + n_, counts.get());
        for (int64_t t = 0; t < terms_.count; ++t) order_[counts[terms_.anchors[t]]++] = t;
    }

    void find_norms() {
        y_norms_.resize(m_);
        norms(y_, m_, y_norms_.get());
        x_norm_ = y_norms_.get();
        if (terms_.own) return;
        x_norms_.resize(n_);
        norms(x_, n_, x_norms_.get());
        x_norm_ = x_norms_.get();
    }

    void norms(const T* rows, int64_t count, double* out) const {
        const int64_t block = 256;
        parallel_for(terms_.threads, (count + block - 1) / block, [&](int64_t b) {
            for (int64_t i = b * block; i < count && i < (b + 1) * block; ++i) {
                const T* row = rows + i * dims_;
                lane_sums<false, 1>(row, &row, dims_, out + i);
                out[i] = std::sqrt(out[i]);
            }
        });
    }

    // The first anchor of a piece of about as many triplets as the others.
    int64_t bound(int64_t piece, int64_t pieces) const {
        if (piece == pieces) return n_;
        const int64_t target = first_triplet_[n_] / pieces * piece;
        return std::lower_bound(first_triplet_.get(), first_triplet_.get() + n_, target) - first_triplet_.get();
    }

    void visit_anchor(int64_t i, int32_t* place, int32_t* seen_by) {
        Slot* slots = slots_.get() + first_slot_[i];
        int32_t used = 0;
        const auto find = [&](int64_t other) {
            if (seen_by[other] != static_cast<int32_t>(i)) {
                seen_by[other] = static_cast<int32_t>(i);
                place[other] = used;
                slots[used++] = {static_cast<int32_t>(other), 0.0, 0.0};
            }
        };
        for (int64_t k = first_triplet_[i]; k < first_triplet_[i + 1]; ++k) {
            const int64_t t = triplet(k);
            find(terms_.positives[t]);
            find(terms_.negatives[t]);
        }
        used_[i] = used;
        int32_t u = 0;
        for (; u + 4 <= used; u += 4) distances<4>(i, slots + u);
        for (; u < used; ++u) distances<1>(i, slots + u);

        double sum = 0;
        int64_t above = 0;
        const bool literal = terms_.reduction == Reduction::hinge_of_sums;
        for (int64_t k = first_triplet_[i]; k < first_triplet_[i + 1]; ++k) {
            const int64_t t = triplet(k);
            Slot& positive = slots[place[terms_.positives[t]]];
            Slot& negative = slots[place[terms_.negatives[t]]];
            double slope = 1;
            if (literal) {
                sum += positive.distance - negative.distance;
            } else {
                const double score = (positive.distance - negative.distance) + terms_.margin;
                const double term = terms_.soft ? soft_hinge(score, slope) : hinge(score, slope);
                sum += term;
                above += term > 0;
            }
            positive.weight += slope;
            negative.weight -= slope;
        }
        sums_[i] = sum;
        above_[i] = above;
    }

    static double hinge(double score, double& slope) {
        slope = score > 0 ? 1 : 0;
        return score > 0 ? score : 0;
    }
    static double soft_hinge(double score, double& slope) {
        const double e = std::exp(-std::fabs(score));
        slope = (score > 0 ? 1 : e) / (1 + e);
        return std::max(score, 0.0) + std::log1p(e);
    }

    template <int COUNT> void distances(int64_t i, Slot* slots) const {
        const T* rows[COUNT];
        double out[COUNT];
        for (int c = 0; c < COUNT; ++c) rows[c] = y_ + slots[c].other * dims_;
        if (terms_.comparison == Comparison::sqeuclidean || terms_.comparison == Comparison::euclidean) {
            lane_sums<true, COUNT>(x_ + i * dims_, rows, dims_, out);
        } else {
            lane_sums<false, COUNT>(x_ + i * dims_, rows, dims_, out);
        }
        for (int c = 0; c < COUNT; ++c) {
            switch (terms_.comparison) {
                case Comparison::sqeuclidean:
                    break;
                case Comparison::euclidean:
                    out[c] = std::sqrt(out[c]);
                    break;
                case Comparison::product:
                    out[c] *= -0.5;
                    break;
                case Comparison::cosine: {
                    const double scale = x_norm_[i] * y_norms_[slots[c].other];
                    out[c] = 1.0 - (scale != 0 ? out[c] / scale : 0.0);
                }
            }
            slots[c].distance = out[c];
        }
    }

    // Sets the loss; returns what the terms' gradients are to be multiplied by.
    double reduce(double sum, int64_t above, double& loss) const {
        double scale = terms_.count > 0 ? 1 : 0;
        switch (terms_.reduction) {
            case Reduction::sum:
                break;
            case Reduction::mean:
                scale /= static_cast<double>(std::max<int64_t>(terms_.count, 1));
                break;
            case Reduction::mean_nonzero:
                scale /= static_cast<double>(std::max<int64_t>(above, 1));
                break;
            case Reduction::hinge_of_sums:
                sum += terms_.margin;
                if (sum <= 0) scale = 0;
        }
        loss = scale != 0 ? sum * scale : 0;
        return scale;
    }

    void differentiate(double scale, LossResult& result) {
        Buffer<int64_t> first_mirror(m_ + 1);
        weigh(scale, first_mirror);
        T* into_x = static_cast<T*>(result.into_x);
        T* into_y = static_cast<T*>(result.into_y);
        const int64_t rows = terms_.own ? n_ : n_ + m_, block = 16;
        parallel_for(terms_.threads, (rows + block - 1) / block, [&](int64_t b) {
            Buffer<double> sum(dims_);
            for (int64_t r = b * block; r < std::min(rows, (b + 1) * block); ++r) {
                std::fill(sum.get(), sum.get() + dims_, 0.0);
                if (r < n_) {
                    const Slot* slots = slots_.get() + first_slot_[r];
                    double turn = 0;
                    for (int32_t u = 0; u < used_[r]; ++u) turn += slots[u].weight * turn_of_x(r, slots[u]);
                    gather(
                        x_ + r * dims_, used_[r], turn, [&](int64_t u) { return y_ + slots[u].other * dims_; },
                        [&](int64_t u) { return slots[u].weight; }, sum.get());
                }
                const int64_t j = terms_.own ? r : r - n_;
                if (j >= 0) {
                    const Mirror* entries = mirrors_.get() + first_mirror[j];
                    const int64_t count = first_mirror[j + 1] - first_mirror[j];
                    double turn = 0;
                    for (int64_t e = 0; e < count; ++e) turn += entries[e].turn;
                    gather(
                        y_ + j * dims_, count, turn, [&](int64_t e) { return x_ + entries[e].anchor * dims_; },
                        [&](int64_t e) { return entries[e].weight; }, sum.get());
                }
                T* out = r < n_ ? into_x + r * dims_ : into_y + j * dims_;
                for (int64_t k = 0; k < dims_; ++k) out[k] = static_cast<T>(sum[k]);
            }
        });
    }

    // Weights of distances become those of rows, scaled, and a second list has them by the other row.
    void weigh(double scale, Buffer<int64_t>& first_mirror) {
        std::fill(first_mirror.get(), first_mirror.get() + m_ + 1, 0);
        for (int64_t i = 0; i < n_; ++i) {
            Slot* slots = slots_.get() + first_slot_[i];
            int32_t kept = 0;
            for (int32_t u = 0; u < used_[i]; ++u) {
                Slot slot = slots[u];
                slot.weight *= scale * slope(i, slot);
                if (slot.weight == 0) continue;
                ++first_mirror[slot.other + 1];
                slots[kept++] = slot;
            }
            used_[i] = kept;
        }
        for (int64_t j = 0; j < m_; ++j) first_mirror[j + 1] += first_mirror[j];
        mirrors_.resize(first_mirror[m_]);
        Buffer<int64_t> next(m_);
        std::copy(first_mirror.get(), first_mirror.get() + m_, next.get());
        for (int64_t i = 0; i < n_; ++i) {
            const Slot* slots = slots_.get() + first_slot_[i];
            for (int32_t u = 0; u < used_[i]; ++u)
                mirrors_[next[slots[u].other]++] = {static_cast<int32_t>(i), slots[u].weight,
                                                    slots[u].weight * turn_of_y(i, slots[u])};
        }
    }

    // dd/dx = slope (x - y), or under `cosine` and `product` turn x - slope y.
    double slope(int64_t i, const Slot& slot) const {
        switch (terms_.comparison) {
            case Comparison::sqeuclidean:
                return 2;
            case Comparison::euclidean:
                return slot.distance > 0 ? 1 / slot.distance : 0;
            case Comparison::product:
                return 0.5;
            default:
                break;
        }
        const double norms = x_norm_[i] * y_norms_[slot.other];
        return norms != 0 ? 1 / norms : 0;
    }

    // Per unit of the pair's weight: c / |x|^2 = (c |y| / |x|) slope, c the cosine.
    double turn_of_x(int64_t i, const Slot& slot) const {
        if (terms_.comparison != Comparison::cosine) return 0;
        return (1 - slot.distance) * y_norms_[slot.other] / x_norm_[i];
    }
    double turn_of_y(int64_t i, const Slot& slot) const {
        if (terms_.comparison != Comparison::cosine) return 0;
        return (1 - slot.distance) * x_norm_[i] / y_norms_[slot.other];
    }

    // sum += weights (row - others), or turn row - weights others, four others at a time.
    template <class Other, class Weight>
    void gather(const T* row, int64_t count, double turn, Other other, Weight weight, double* sum) const {
        const bool differences =
            terms_.comparison == Comparison::sqeuclidean || terms_.comparison == Comparison::euclidean;
        int64_t e = 0;
        for (; e < count; e += 4) {
            const T* rows[4];
            double weights[4];
            for (int c = 0; c < 4; ++c) {
                const bool there = e + c < count;
                rows[c] = there ? other(e + c) : row;
                weights[c] = there ? weight(e + c) : 0.0;
            }
            differences ? add<true>(row, rows, weights, sum) : add<false>(row, rows, weights, sum);
        }
        if (turn != 0) {
            for (int64_t k = 0; k < dims_; ++k) sum[k] += turn * static_cast<double>(row[k]);
        }
    }

    template <bool DIFFERENCES>
    void add(const T* row, const T* const* others, const double* weights, double* sum) const {
        int64_t k = 0;
        for (; k + DOUBLE_LANES <= dims_; k += DOUBLE_LANES) {
            DoubleV own = {}, total = load(sum + k);
            if (DIFFERENCES) own = widen(row + k);
            for (int c = 0; c < 4; ++c) total = multiply_add(splat(weights[c]), own - widen(others[c] + k), total);
            store(sum + k, total);
        }
        for (; k < dims_; ++k) {
            const double own = DIFFERENCES ? static_cast<double>(row[k]) : 0.0;
            for (int c = 0; c < 4; ++c) sum[k] += weights[c] * (own - static_cast<double>(others[c][k]));
        }
    }

    int64_t triplet(int64_t k) const { return order_.get() != nullptr ? order_[k] : k; }

    const TripletTerms& terms_;
    const T *x_, *y_;
    const int64_t n_, m_, dims_;
    Buffer<int64_t> first_triplet_, first_slot_, order_, above_;
    Buffer<Slot> slots_;
    Buffer<Mirror> mirrors_;
    Buffer<int32_t> used_;
    Buffer<double> sums_, x_norms_, y_norms_;
    const double* x_norm_ = nullptr;
};

void losses_triplet(const TripletTerms& terms, LossResult& result) {
    if (terms.x.wide) {
        TripletLoss<double>(terms).run(result);
    } else {
        TripletLoss<float>(terms).run(result);
    }
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
