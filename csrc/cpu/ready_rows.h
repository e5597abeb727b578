// Rows made ready for products in float64: centred or of unit length, in panels for both of their roles.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "double_tiles.h"
#include "memory.h"
#include "panels.h"
#include "pool.h"

namespace minerlib {
namespace MINERLIB_ISA {

template <class T> struct ReadyRows {
    // panels [rows / DOUBLES][D][DOUBLES]: columns of a product. by_dims [D / DOUBLES][rows][DOUBLES]: summed rows.
    void prepare(const T* data, int64_t count, int64_t dimensions, const double* shift, bool unit, int threads,
                 bool with_panels, bool with_sums) {
        rows = data;
        n = count;
        dims = dimensions;
        center = shift;
        squares.resize(ceil_div(n, DOUBLES) * DOUBLES);
        inverse.resize(unit ? n : 0);
        if (with_panels) panels.resize(ceil_div(n, DOUBLES) * DOUBLES * dims);
        if (with_sums) by_dims.resize(ceil_div(dims, DOUBLES) * DOUBLES * n);
        parallel_for(threads, ceil_div(n, DOUBLES), [&](int64_t panel) {
            Buffer<double> row(padded());
            for (int lane = 0; lane < DOUBLES; ++lane) {
                const int64_t i = panel * DOUBLES + lane;
                if (i < n && unit) set_inverse(i);
                std::fill(row.get(), row.get() + padded(), 0.0);
                if (i < n) get(i, row.get());
                double sum = 0;
                for (int64_t k = 0; k < dims; ++k) sum += row[k] * row[k];
                squares[i] = sum;
                if (with_panels) {
                    for (int64_t k = 0; k < dims; ++k) panels[(panel * dims + k) * DOUBLES + lane] = row[k];
                }
                if (i >= n || !with_sums) continue;
                for (int64_t k = 0; k < padded(); k += DOUBLES)
                    std::memcpy(by_dims.get() + k * n + i * DOUBLES, row.get() + k, DOUBLES * sizeof(double));
            }
        });
    }

    int64_t padded() const { return ceil_div(dims, DOUBLES) * DOUBLES; }

    double value(int64_t i, int64_t k) const {
        const double v = static_cast<double>(rows[i * dims + k]);
        return inverse.size() > 0 ? v * inverse[i] : v - center[k];
    }

    void get(int64_t i, double* out) const {
        for (int64_t k = 0; k < dims; ++k) out[k] = value(i, k);
    }

    const T* rows = nullptr;
    int64_t n = 0, dims = 0;
    const double* center = nullptr;
    Buffer<double> panels, by_dims, squares, inverse;

private:
    void set_inverse(int64_t i) {
        double sum = 0;
        for (int64_t k = 0; k < dims; ++k) {
            const double v = static_cast<double>(rows[i * dims + k]);
            sum += v * v;
        }
        inverse[i] = sum > 0 ? 1 / std::sqrt(sum) : 0;
    }
};

}  // namespace MINERLIB_ISA
}  // namespace minerlib
