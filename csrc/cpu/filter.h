// The approximate half of certified selection: float32 tiles with a rigorous bound on their error.
//
// Rows are shifted and scaled to a [N, D] and b [M, D] in float32 and packed into panels. A tile computes
//
//     v(i, j) = h_j - a_i . b_j,      h_j = |b_j|^2 / 2
//
// and with H_i = |a_i|^2 / 2 the canonical selection value lies within
//
//     scale_out * (v + H_i +- error),     error = relative * (H_i + H_j) + absolute.
//
// Derivation, u = 2^-24, by |a||b| <= H_i + H_j: a fused chain of `kc` steps errs by at most kc u |a||b|, the n
// chunk sums and h_j by (2n + 1) u (H_i + H_j), rounding the rows to float32 moves |a - b|^2 / 2 by at most
// 4 u (H_i + H_j), and the canonical sum itself errs by (D/8 + 6) 2^-53 of a value of at most 2 (H_i + H_j).
// The shift (the mean row) keeps H small, where distances are small against the distance from the origin.
// Panels of bfloat16 and of integers (panels.h) add the residuals of their rows, r_i + r_j + r_i r_j relative to
// |a||b|, where r is measured when a row is packed.
//
// Padding columns hold v = NaN, which no comparison selects.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "double_tiles.h"
#include "memory.h"
#include "panels.h"
#include "pool.h"
#include "problem.h"
#include "simd.h"
#if defined(MINERLIB_TILES)
#include "amx_panel.h"
#endif

namespace minerlib {
namespace MINERLIB_ISA {

constexpr int64_t GROUP = 256;  // columns that share one bound on H_j
constexpr int64_t PANELS = 8;   // anchor panels that share a pass over the columns

// What the tiles approximate: squared distances, cosine distances, or squared distances of normalised rows.
enum class Space { squared, cosine, unit };

template <class T, class Panel = Float32Panel> class Filter {
public:
    // order [M], if given, is the order in which columns are packed: column j of this filter is column order[j] of
    // the problem. anchors, if given, are those to be compared: anchor i of this filter is anchors[i].
    Filter(const Problem& problem, Space space, const int64_t* order = nullptr, const int64_t* anchors = nullptr)
        : Filter(problem, space, order, anchors, [](int64_t, const float*, double, double) {}) {}

    // Also calls keep(j, converted, half, lost) for each column j: half its squared norm, and the norm of what
    // converting it has lost.
    template <class Keep>
    Filter(const Problem& problem, Space space, const int64_t* order, const int64_t* anchors, const Keep& keep)
        : dims(problem.anchors.dims), columns(problem.columns.rows), blocks_(ceil_div(columns, Panel::COLUMNS)),
          x_(static_cast<const T*>(problem.anchors.data)), y_(static_cast<const T*>(problem.columns.data)),
          order_(order), anchors_(anchors), normalise_(space != Space::squared) {
        prepare_center(problem, space);
        if (!usable) return;
        set_bounds(problem, space);
        pack_columns(problem, keep);
    }

    const int64_t dims, columns;
    bool usable = true;    // false: values so small that float64 itself underflows; canonical rows decide
    double scale_out = 1;  // selection value = scale_out * (v + H_i)
    double relative = 0, absolute = 0;

    double error(double half_norm_row, double half_norm_column) const {
        return relative * (half_norm_row + half_norm_column) + absolute;
    }
    // Of that, what comes from rounding the rows to float32, and from the canonical sum itself.
    double rounding(double half_norm_row, double half_norm_column) const {
        return rounding_ * (half_norm_row + half_norm_column) + absolute;
    }
    // Whether v + H_i is half a squared distance; not so where a cosine's rows include zeros.
    bool euclidean() const { return !fixed_norms_; }
    double half_norm(int64_t column) const { return half_norms_[column]; }
    const float* half_norms() const { return half_norms_.get(); }
    double group_half_norm(int64_t group) const { return group_max_[group]; }
    // Of all columns; and of all anchors too, where panels had to measure their residuals.
    double largest_half_norm() const {
        double largest = largest_anchor_;
        for (int64_t group = 0; group < ceil_div(columns, GROUP); ++group) {
            largest = std::max(largest, group_max_[group]);
        }
        return largest;
    }
    int64_t padded_columns() const { return blocks_ * Panel::COLUMNS; }

    int64_t steps() const { return Panel::steps(dims); }

    // A row is padded with zeros for whole vectors.
    int64_t padded_dims() const { return ceil_div(dims, Panel::PADDING) * Panel::PADDING; }

    // Packs `rows` anchors from `first` on into panels [ceil(rows / Panel::ROWS)][steps][Panel::ROWS]. Also calls
    // keep(row, converted, half, lost) for each, if given, as the constructor does for columns.
    void pack_anchors(int64_t first, int64_t rows, float* panels, double* half_norms, Buffer<float>& work) const {
        pack_anchors(first, rows, panels, half_norms, work, [](int64_t, const float*, double, double) {});
    }
    template <class Keep>
    void pack_anchors(int64_t first, int64_t rows, float* panels, double* half_norms, Buffer<float>& work,
                      const Keep& keep) const {
        work.resize(Panel::ROWS * padded_dims());
        for (int64_t p = 0; p * Panel::ROWS < rows; ++p) {
            const int64_t count = std::min<int64_t>(Panel::ROWS, rows - p * Panel::ROWS);
            for (int64_t r = 0; r < count; ++r) {
                const int64_t row = p * Panel::ROWS + r;
                const int64_t anchor = anchors_ != nullptr ? anchors_[first + row] : first + row;
                float* converted = work.get() + r * padded_dims();
                half_norms[row] = transform(x_ + anchor * dims, converted);
                const double norm = std::sqrt(2 * half_norms[row]);
                keep(row, converted, half_norms[row], Panel::convert(converted, dims, norm) * norm);
            }
            Panel::pack_rows(work.get(), padded_dims(), count, steps(), panels + p * Panel::ROWS * steps());
        }
    }

    // v of one anchor panel and one block of Panel::COLUMNS columns, out [Panel::ROWS][stride].
    void panel_values(const float* panel, int64_t block, float* out, int64_t stride) const {
        const int64_t column = block * Panel::COLUMNS;
        Panel::tile(panel, packed_.get() + column * steps(), steps(), half_norms_.get() + column, out, stride);
    }

private:
    // row * m - center in float32; returns half the squared norm of the rounded row, or 1/2 in a cosine space
    // that cannot be shifted.
    double transform(const T* row, float* out) const {
        const double m = normalise_ ? inverse_norm(row) : scale_;
        const DoubleV scale = splat(m);
        DoubleV squares[2] = {};
        int64_t k = 0;
        for (; k + WIDTH <= dims; k += WIDTH) {
            for (int half = 0; half < 2; ++half) {
                const int64_t l = k + half * DOUBLE_LANES;
                narrow(widen(row + l) * scale - load(center_.get() + l), out + l);
                const DoubleV d = widen(out + l);
                squares[half] += d * d;
            }
        }
        double sum = added(squares[0] + squares[1]);
        for (; k < dims; ++k) {
            out[k] = static_cast<float>(static_cast<double>(row[k]) * m - center_[k]);
            sum += static_cast<double>(out[k]) * static_cast<double>(out[k]);
        }
        std::fill(out + dims, out + padded_dims(), 0.0f);
        return fixed_norms_ ? 0.5 : 0.5 * sum;
    }

    double norm(const T* row) const {
        DoubleV squares[2] = {};
        int64_t k = 0;
        for (; k + WIDTH <= dims; k += WIDTH) {
            for (int half = 0; half < 2; ++half) {
                const DoubleV d = widen(row + k + half * DOUBLE_LANES);
                squares[half] += d * d;
            }
        }
        double sum = added(squares[0] + squares[1]);
        for (; k < dims; ++k) sum += static_cast<double>(row[k]) * static_cast<double>(row[k]);
        return std::sqrt(sum);
    }

    static double added(DoubleV v) {
        double sum = 0;
        for (int lane = 0; lane < DOUBLE_LANES; ++lane) sum += v[lane];
        return sum;
    }

    double inverse_norm(const T* row) const {
        const double length = norm(row);
        return length > 0 ? 1.0 / length : 0.0;
    }

    void prepare_center(const Problem& problem, Space space) {
        center_.resize(dims);
        std::fill_n(center_.get(), dims, 0.0);
        if (normalise_) {
            bool zeros = false;  // a zero row's cosine distance is 1 by definition, wherever the others lie
            inspect_norms(problem.threads, y_, columns, zeros);
            if (!problem.own) inspect_norms(problem.threads, x_, problem.anchors.rows, zeros);
            fixed_norms_ = space == Space::cosine && zeros;
            if (fixed_norms_) return;
        } else {
            const double largest =
                std::max(largest_value(problem.threads, y_, columns),
                         problem.own ? 0.0 : largest_value(problem.threads, x_, problem.anchors.rows));
            usable = largest == 0 || largest >= 0x1p-400;
            if (largest > 0) scale_ = std::ldexp(1.0, -(std::ilogb(largest) + 3 + (std::ilogb(double(dims)) + 1) / 2));
        }
        if (usable) average_columns();
    }

    // The mean of up to 256 rows spread over all columns: any shift is right, a central one is sharp.
    void average_columns() {
        const int64_t sample = std::min<int64_t>(columns, 256);
        if (sample == 0) return;
        for (int64_t s = 0; s < sample; ++s) {
            const T* row = y_ + s * columns / sample * dims;
            const double m = (normalise_ ? inverse_norm(row) : scale_) / static_cast<double>(sample);
            double* center = center_.get();
            for (int64_t k = 0; k < dims; ++k) center[k] += static_cast<double>(row[k]) * m;
        }
    }

    void set_bounds(const Problem& problem, Space space) {
        scale_out = space == Space::squared ? 2.0 / (scale_ * scale_) : space == Space::unit ? 2.0 : 1.0;
        if (!problem.exact) return;
        const double u = 0x1p-24, d = static_cast<double>(dims);
        rounding_ = 12 * u * 1.02 + (d / 4 + 16) * 0x1p-53;
        relative = (Panel::roundings(dims) + 12) * u * 1.02 + (d / 4 + 16) * 0x1p-53;
        absolute = d * 0x1p-118 + (normalise_ ? (d + 64) * 0x1p-53 : 0.0);
    }

    template <class Keep> void pack_columns(const Problem& problem, const Keep& keep) {
        const int64_t groups = ceil_div(columns, GROUP);
        packed_.resize(blocks_ * Panel::COLUMNS * steps());
        half_norms_.resize(blocks_ * Panel::COLUMNS);
        group_max_.resize(groups);
        Buffer<double> residuals(groups);
        parallel_for(problem.threads, groups, [&](int64_t group) {
            Buffer<float> work(Panel::COLUMNS * padded_dims());
            double largest = 0, residual = 0;
            const int64_t last = std::min(columns, (group + 1) * GROUP);
            for (int64_t j = group * GROUP; j < last; j += Panel::COLUMNS) {
                const int64_t count = std::min<int64_t>(Panel::COLUMNS, columns - j);
                for (int64_t c = 0; c < Panel::COLUMNS; ++c) {
                    half_norms_[j + c] = std::numeric_limits<float>::quiet_NaN();
                    if (c >= count) continue;
                    const int64_t column = order_ != nullptr ? order_[j + c] : j + c;
                    float* row = work.get() + c * padded_dims();
                    const double half = transform(y_ + column * dims, row);
                    half_norms_[j + c] = static_cast<float>(half);
                    largest = std::max(largest, half);
                    const double norm = std::sqrt(2 * half), lost = Panel::convert(row, dims, norm);
                    residual = std::max(residual, lost);
                    keep(j + c, row, half, lost * norm);
                }
                Panel::pack_columns(work.get(), padded_dims(), count, steps(), packed_.get() + j * steps());
            }
            group_max_[group] = largest * (1 + 0x1p-22);  // half_norm() is a rounded float
            residuals[group] = residual;
        });
        if (!problem.exact) return;
        double residual = 0;
        for (int64_t group = 0; group < groups; ++group) residual = std::max(residual, residuals[group]);
        const double anchors = problem.own ? residual : anchor_residual(problem);
        relative += 1.01 * (residual + anchors + residual * anchors);
    }

    double anchor_residual(const Problem& problem) {
        if constexpr (Panel::LARGEST_RESIDUAL >= 0) return Panel::LARGEST_RESIDUAL;
        const int64_t rows = problem.anchors.rows, groups = ceil_div(rows, GROUP);
        Buffer<double> residuals(groups), largest(groups);
        parallel_for(problem.threads, groups, [&](int64_t group) {
            Buffer<float> row(padded_dims());
            residuals[group] = largest[group] = 0;
            for (int64_t i = group * GROUP; i < std::min(rows, (group + 1) * GROUP); ++i) {
                const double half = transform(x_ + i * dims, row.get());
                largest[group] = std::max(largest[group], half);
                residuals[group] = std::max(residuals[group], Panel::convert(row.get(), dims, std::sqrt(2 * half)));
            }
        });
        double residual = 0;
        for (int64_t group = 0; group < groups; ++group) {
            residual = std::max(residual, residuals[group]);
            largest_anchor_ = std::max(largest_anchor_, largest[group]);
        }
        return residual;
    }

    // Sets `zeros` where a row is zero, and `usable` to false where one is so short that float64 loses it.
    void inspect_norms(int threads, const T* rows, int64_t count, bool& zeros) {
        const int64_t blocks = ceil_div(count, GROUP);
        Buffer<uint8_t> found(blocks);
        parallel_for(threads, blocks, [&](int64_t b) {
            found[b] = 0;
            for (int64_t i = b * GROUP; i < count && i < (b + 1) * GROUP; ++i) {
                if (norm(rows + i * dims) < 0x1p-450) found[b] |= is_zero(rows + i * dims) ? 1 : 2;
            }
        });
        for (int64_t b = 0; b < blocks; ++b) {
            zeros = zeros || (found[b] & 1) != 0;
            usable = usable && (found[b] & 2) == 0;
        }
    }

    bool is_zero(const T* row) const {
        for (int64_t k = 0; k < dims; ++k) {
            if (row[k] != 0) return false;
        }
        return true;
    }

    // The largest magnitude, found on the bits: those of non-negative numbers are ordered like the numbers.
    double largest_value(int threads, const T* rows, int64_t count) const {
        using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
        Buffer<Bits> most(ceil_div(count, GROUP));
        parallel_for(threads, ceil_div(count, GROUP), [&](int64_t b) {
            const T* p = rows + b * GROUP * dims;
            const int64_t values = std::min(GROUP, count - b * GROUP) * dims;
            Bits high = 0;
            for (int64_t k = 0; k < values; ++k) {
                Bits bits;
                std::memcpy(&bits, p + k, sizeof bits);
                high = std::max(high, bits & (~Bits{0} >> 1));
            }
            most[b] = high;
        });
        Bits high = 0;
        for (int64_t b = 0; b < ceil_div(count, GROUP); ++b) high = std::max(high, most[b]);
        T value;
        std::memcpy(&value, &high, sizeof value);
        return static_cast<double>(value);
    }

    const int64_t blocks_;
    const T *x_, *y_;
    const int64_t *order_, *anchors_;
    const bool normalise_;
    bool fixed_norms_ = false;
    double scale_ = 1, rounding_ = 0, largest_anchor_ = 0;
    Buffer<double> center_;     // [D], scaled
    Buffer<float> packed_;      // [blocks][steps][Panel::COLUMNS]
    Buffer<float> half_norms_;  // [blocks * Panel::COLUMNS]
    Buffer<double> group_max_;  // [groups]
};

// Reused memory of one thread: packed anchors and the values of a block of rows.
struct Scratch {
    Buffer<float> panels, values, work;
    Buffer<double> half_norms;

    // Gives back what only a very wide problem needs.
    void trim() {
        if (values.size() > (int64_t{1} << 22)) values.release();
    }
};

// Packs the anchors first .. first + rows - 1 for sweep_columns; `keep` as in Filter::pack_anchors.
template <class T, class Panel, class Keep>
void pack_block(const Filter<T, Panel>& filter, int64_t first, int64_t rows, Scratch& scratch, const Keep& keep) {
    scratch.panels.resize(ceil_div(rows, Panel::ROWS) * Panel::ROWS * filter.steps());
    scratch.half_norms.resize(rows);
    filter.pack_anchors(first, rows, scratch.panels.get(), scratch.half_norms.get(), scratch.work, keep);
}

// Computes v of `rows` packed anchors and the columns column .. column + count - 1, column being a multiple of
// Panel::COLUMNS and count `chunk` at most, and calls consume(row, column, count, values) for each row: values[0 ..
// count) are followed by padding up to a multiple of Panel::COLUMNS. The consumer may overwrite them. To be called
// while a Panel::Session lives.
template <class T, class Panel, class Consume>
void sweep_columns(const Filter<T, Panel>& filter, int64_t rows, int64_t column, int64_t count, int64_t chunk,
                   Scratch& scratch, Consume consume) {
    const int64_t panels = ceil_div(rows, Panel::ROWS), together = std::min(panels, Panel::TOGETHER);
    const int64_t stride = std::min(ceil_div(chunk, Panel::COLUMNS) * Panel::COLUMNS, filter.padded_columns());
    scratch.values.resize(together * Panel::ROWS * stride);
    for (int64_t p = 0; p < panels; p += together) {
        const int64_t last = std::min(panels, p + together);
        for (int64_t c = 0; c < count; c += Panel::COLUMNS) {
            for (int64_t q = p; q < last; ++q) {  // the columns' panel stays in the first-level cache
                filter.panel_values(scratch.panels.get() + q * Panel::ROWS * filter.steps(),
                                    (column + c) / Panel::COLUMNS,
                                    scratch.values.get() + (q - p) * Panel::ROWS * stride + c, stride);
            }
        }
        for (int64_t row = p * Panel::ROWS; row < std::min(rows, last * Panel::ROWS); ++row) {
            consume(row, column, count, scratch.values.get() + (row - p * Panel::ROWS) * stride);
        }
    }
}

// sweep_columns of the anchors first .. first + rows - 1 and all columns from `from` (a multiple of Panel::COLUMNS) on,
// `chunk` (a multiple of GROUP) at a time. start(row, H) is called first for each row.
template <class T, class Panel, class Start, class Consume>
void sweep(const Filter<T, Panel>& filter, int64_t first, int64_t rows, int64_t from, int64_t chunk, Scratch& scratch,
           Start start, Consume consume) {
    pack_block(filter, first, rows, scratch, [](int64_t, const float*, double, double) {});
    for (int64_t row = 0; row < rows; ++row) start(row, scratch.half_norms[row]);
    [[maybe_unused]] const typename Panel::Session session;
    for (int64_t column = from, count = 0; column < filter.columns; column += count) {
        count = std::min(chunk - column % chunk, filter.columns - column);
        sweep_columns(filter, rows, column, count, chunk, scratch, consume);
    }
}

// How many anchors one thread takes at a time: `most` panels at most, as many as share the columns well, and no more
// than leave work for every thread or fit `values` floats a row into the second-level cache.
template <class Panel = Float32Panel>
int64_t block_rows(int64_t anchors, int threads, int64_t values, int64_t most = PANELS) {
    const int64_t fitting = std::max<int64_t>(1, (int64_t{1} << 17) / (values * Panel::ROWS));
    const int64_t sharing = std::max<int64_t>(1, anchors / (Panel::ROWS * threads * 4));
    return Panel::ROWS * std::min({most, fitting, sharing});
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
