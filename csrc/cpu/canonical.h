// Canonical float64 distances (SPEC section 2): eight running sums in index order, no fused multiply-add.
//
//   acc[k % 8] += t * t,  t = float64(x[k]) - float64(y[k]);   sq = ((acc0+acc1)+(acc2+acc3)) + ((acc4+..)+..)
//
// x [N, D], y [M, D] of type T (float or double). The selection value is sq, or the cosine distance; the
// metric's value is its square root for `euclidean`, else the selection value itself.
#pragma once

#include "double_tiles.h"
#include "memory.h"
#include "pool.h"
#include "problem.h"

namespace minerlib {
namespace MINERLIB_ISA {

template <class T> class Canonical {
public:
    explicit Canonical(const Problem& problem)
        : x_(static_cast<const T*>(problem.anchors.data)), y_(static_cast<const T*>(problem.columns.data)),
          dims_(problem.anchors.dims), columns_(problem.columns.rows), metric_(problem.metric) {
        if (metric_ == Metric::cosine) find_norms(problem);
    }

    const T* x(int64_t i) const { return x_ + i * dims_; }
    const T* y(int64_t j) const { return y_ + j * dims_; }

    void prefetch(int64_t j) const {
        const char* row = reinterpret_cast<const char*>(y(j));
        for (int64_t byte = 0; byte < dims_ * static_cast<int64_t>(sizeof(T)); byte += 64)
            __builtin_prefetch(row + byte);
    }

    // Selection values of anchor i against COUNT columns.
    template <int COUNT> void selections(int64_t i, const int64_t* j, double* out) const {
        const T* rows[COUNT];
        for (int c = 0; c < COUNT; ++c) rows[c] = y(j[c]);
        if (metric_ != Metric::cosine) {
            lane_sums<true, COUNT>(x(i), rows, dims_, out);
            return;
        }
        lane_sums<false, COUNT>(x(i), rows, dims_, out);
        for (int c = 0; c < COUNT; ++c) {
            const double scale = x_norm_[i] * y_norm_[j[c]];
            out[c] = 1.0 - (scale != 0 ? out[c] / scale : 0.0);
        }
    }

    double selection(int64_t i, int64_t j) const {
        double out;
        selections<1>(i, &j, &out);
        return out;
    }

    // The metric's value of a selection value.
    double value(double selection) const { return metric_ == Metric::euclidean ? std::sqrt(selection) : selection; }

    // Selection values of anchor i against columns first .. first + count - 1.
    void row(int64_t i, int64_t first, int64_t count, double* out) const {
        int64_t c = 0;
        for (; c + 4 <= count; c += 4) {
            const int64_t j[4] = {first + c, first + c + 1, first + c + 2, first + c + 3};
            selections<4>(i, j, out + c);
        }
        for (; c < count; ++c) out[c] = selection(i, first + c);
    }

private:
    void find_norms(const Problem& problem) {
        y_norms_.resize(columns_);
        norms(problem.threads, y_, columns_, y_norms_.get());
        x_norm_ = y_norm_ = y_norms_.get();
        if (!problem.own && static_cast<const void*>(x_) != y_) {
            x_norms_.resize(problem.anchors.rows);
            norms(problem.threads, x_, problem.anchors.rows, x_norms_.get());
            x_norm_ = x_norms_.get();
        }
    }

    void norms(int threads, const T* rows, int64_t count, double* out) const {
        const int64_t block = 256;
        parallel_for(threads, (count + block - 1) / block, [&](int64_t b) {
            for (int64_t i = b * block; i < count && i < (b + 1) * block; ++i) {
                const T* row = rows + i * dims_;
                double squared;
                lane_sums<false, 1>(row, &row, dims_, &squared);
                out[i] = std::sqrt(squared);
            }
        });
    }

    const T *x_, *y_;
    int64_t dims_, columns_;
    Metric metric_;
    Buffer<double> x_norms_, y_norms_;
    const double *x_norm_ = nullptr, *y_norm_ = nullptr;
};

}  // namespace MINERLIB_ISA
}  // namespace minerlib
