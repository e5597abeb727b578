// The coarse half of a filter of two stages: rows as bytes, multiplied at twice the rate of 16-bit integers and
// compared in 16 bits, tell which values of the panels (panels.h) need be computed at all.
//
// With the rows a of a filter (shifted, scaled, as integers) and one step s for all of them,
//
//     a = s q + e,    q whole and at most LARGEST in magnitude,    g the whole number next to |a|^2 / 2 / s^2
//     z(i, j) = origin - g_i - g_j + q_i . q_j
//
// so that half the squared distance of two rows is s^2 (origin - z), within s^2 for the two g and, E being the largest
// |e|, E (|a_i| + |a_j|) + E^2 for the products. That and the filter's own error are the reach of a row. Here a is the
// panels' row of integers: what it has lost of the filter's moves a squared distance like a's own E. Sums are taken
// modulo 2^16 (byte_panels.h); only their end must lie within 16 bits, and does, as s is chosen so that |a| + E <= 181
// s. Rows that are only compared within their class may be taken from its centre first: shorter, so E is smaller.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "byte_panels.h"
#include "filter.h"

namespace minerlib {
namespace MINERLIB_ISA {

// A pair of rows is of interest where its z passes an edge of either row: z > near or far > z > least. Arrays of an
// edge for each row.
struct CoarseEdges {
    const int16_t *near, *far, *least;

    CoarseEdges from(int64_t i) const { return {near + i, far + i, least + i}; }
};

// Which edges there are: near ones alone, near and far ones, or all three.
enum class EdgeKinds { near, either, limited };

// No such path: panels decide alone.
template <class T, class Panel> struct Coarse {
    static constexpr bool EXISTS = false;
    struct Part {};
};
template <class T, class Panel> struct WholeRows {
    WholeRows(int64_t, int64_t) {}
    auto keeper() {
        return [](int64_t, const float*, double, double) {};
    }
};

#if MINERLIB_ISA_LEVEL == 1 && !defined(MINERLIB_TILES)
// The rows of a filter as whole numbers, one by one: values of the panels, and panels of anchors.
template <class T> class WholeRows<T, Int16Panel> {
public:
    using Panels = Filter<T, Int16Panel>;

    WholeRows(int64_t rows, int64_t dims)
        : steps_(Int16Panel::steps(dims)), half_(ceil_div(dims, Int16Panel::PADDING) * Int16Panel::PADDING / 2),
          integers_(rows * half_), scales_(rows), lost_(rows), half_norms_(rows) {}

    // What a filter is to call while it packs its columns.
    auto keeper() {
        return [this](int64_t j, const float* converted, double half, double lost) {
            if (lost_.size() == 0) return;
            float* out = integers_.get() + j * half_;
            std::copy_n(converted, half_, out);
            if (steps_ <= half_) out[steps_ - 1] = 0.0f;  // the scale, which follows the last pair
            scales_[j] = converted[steps_ - 1];
            half_norms_[j] = half;
            lost_[j] = round_up(lost);
        };
    }

    // Row j in float32, out [2 * half the padded dimensions], and what it has lost of the filter's.
    void dequantise(int64_t j, float* out) const {
        const FloatV scale = splat(scales_[j]);
        for (int64_t k = 0; k < half_; k += 4) {
            const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(integers_.get() + j * half_ + k));
            store(out + 2 * k, _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(eight)) * scale);
        }
    }
    double half_norm(int64_t j) const { return half_norms_[j]; }
    double lost(int64_t j) const { return static_cast<double>(lost_[j]); }

    void prefetch(int64_t j) const {
        for (int64_t k = 0; k < half_; k += 16) __builtin_prefetch(integers_.get() + j * half_ + k);
    }

    // v of row i and column j.
    float value(const Panels& filter, int64_t i, int64_t j) const {
        return Int16Panel::value(integers_.get() + i * half_, integers_.get() + j * half_, half_,
                                 scales_[i] * scales_[j], filter.half_norms()[j]);
    }

    // v of four pairs of one of `anchors`, which may be these rows, and of these rows.
    void values(const Panels& filter, const WholeRows& anchors, const RowPair* pairs, float* out) const {
        const float *rows[4], *columns[4];
        alignas(16) float scales[4], half_norms[4];
        for (int p = 0; p < 4; ++p) {
            const int64_t i = pairs[p].row, j = pairs[p].column;
            rows[p] = anchors.integers_.get() + i * half_;
            columns[p] = integers_.get() + j * half_;
            scales[p] = anchors.scales_[i] * scales_[j];
            half_norms[p] = filter.half_norms()[j];
        }
        _mm_storeu_ps(out, Int16Panel::values(rows, columns, half_, _mm_load_ps(scales), _mm_load_ps(half_norms)));
    }

    // As the filter's, of the rows first .. first + count - 1.
    void pack_anchors(int64_t first, int64_t count, float* panels, Buffer<float>& work) const {
        constexpr int64_t ROWS = Int16Panel::ROWS;
        const int64_t stride = half_ + 1;
        work.resize(ROWS * stride);
        for (int64_t i = 0; i < count; i += ROWS) {
            const int64_t some = std::min(ROWS, count - i);
            for (int64_t r = 0; r < some; ++r) {
                std::copy_n(integers_.get() + (first + i + r) * half_, half_, work.get() + r * stride);
                work[r * stride + steps_ - 1] = scales_[first + i + r];
            }
            Int16Panel::pack_rows(work.get(), stride, some, steps_, panels + i * steps_);
        }
    }

private:
    const int64_t steps_, half_;  // elements of a panel's row, and pairs of dimensions with what pads them
    Buffer<float> integers_;      // [rows][half_] pairs of 16 bits
    Buffer<float> scales_, lost_;
    Buffer<double> half_norms_;
};

template <class T> class Coarse<T, Int16Panel> : BytePanels {
public:
    using Panels = Filter<T, Int16Panel>;

    static constexpr bool EXISTS = true;
    using BytePanels::COLUMNS, BytePanels::ROWS;
    static constexpr int16_t NEVER_NEAR = 32767, NEVER_FAR = -32768;

    // Rows to be compared with each other, and what is taken from them first, or null.
    struct Part {
        int64_t first, last;
        const float* centre;
    };

    // Of a filter whose anchors are its columns. Rows in no part must not be compared.
    Coarse(const Panels& filter, const WholeRows<T, Int16Panel>& plain, const std::vector<Part>& parts, int threads)
        : filter_(filter), plain_(plain), rows_(filter.columns), blocks_(ceil_div(rows_, COLUMNS)),
          pairs_(filter.padded_dims() / 2) {
        bytes_.resize(rows_ * 2 * pairs_);
        packed_.resize(blocks_ * COLUMNS * pairs_);
        row_terms_.resize(padded_rows());
        column_terms_.resize(padded_rows());
        for (Buffer<float>* each : {&reach_, &lengths_, &errors_}) each->resize(rows_);
        std::fill_n(bytes_.get(), rows_ * 2 * pairs_, int8_t{0});
        std::fill_n(reach_.get(), rows_, 0.0f);
        const double room = LENGTH - 0.5 * std::sqrt(static_cast<double>(filter.dims));
        // Where a cosine's rows include zeros, v + H_i is no squared distance; long sums of float32 need more room.
        if (room < 0.5 * LENGTH || !filter.euclidean() || LENGTH * LENGTH * rounding() > 2) return;
        length_ = longest(parts, threads);
        if (length_ < 0x1p-40) return;  // squares of what rounding loses must not leave float32
        step_ = static_cast<double>(static_cast<float>(length_ / room) * 1.001f);
        per_square_ = 1 / (step_ * step_);
        convert_rows(parts, threads);
        usable_ = (length_ + error_) / step_ <= LENGTH;
        if (usable_) finish(parts, threads);
    }

    bool usable() const { return usable_; }
    int64_t padded_rows() const { return blocks_ * COLUMNS + COLUMNS; }

    // Where half the squared distance to row i is `half` at most, z lies above.
    int16_t near_edge(double half, int64_t i) const {
        return whole(std::floor(origin_ - half * per_square_ - static_cast<double>(reach_[i])) - 2, NEVER_NEAR);
    }
    // Where it is `half` at least, z lies below.
    int16_t far_edge(double half, int64_t i) const {
        return whole(std::ceil(origin_ - half * per_square_ + static_cast<double>(reach_[i])) + 2, 32767);
    }

    // Packs the rows first .. first + count - 1 into panels [ceil(count / ROWS)][pairs][ROWS].
    void pack_anchors(int64_t first, int64_t count, Buffer<uint16_t>& panels) const {
        panels.resize(ceil_div(count, ROWS) * ROWS * pairs_);
        for (int64_t i = 0; i < ceil_div(count, ROWS) * ROWS; ++i) {
            pack_row(bytes_.get() + std::min(first + i, rows_ - 1) * 2 * pairs_, pairs_,
                     panels.get() + i / ROWS * ROWS * pairs_ + i % ROWS);
        }
    }

    // Which pairs of the ROWS rows from i on, of a panel, and the columns of a block are of interest: bit 32 (r % 2) +
    // c of hits[r / 2] for row i + r and column block * COLUMNS + c. False: none is. Rows and columns beyond the last
    // are garbage.
    template <EdgeKinds KINDS>
    bool tile(const Buffer<uint16_t>& panels, int64_t panel, int64_t i, int64_t block, const CoarseEdges& edges,
              uint64_t* hits) const {
        static_assert(ROWS % 2 == 0 && COLUMNS == 32, "two rows to a word");
        const int64_t j = block * COLUMNS;
        __m256i found[ROWS];
        if (!compare<KINDS>(panels.get() + panel * ROWS * pairs_, packed_.get() + j * pairs_, pairs_,
                            row_terms_.get() + i, column_terms_.get() + j, edges.from(i), edges.from(j), found)) {
            return false;
        }
        for (int r = 0; r < ROWS; r += 2) hits[r / 2] = mask(found + r);
        return true;
    }

private:
    // Row j of a part in float32, and half its squared norm, which errs by rounding() of it at most.
    float row(const Part& part, int64_t j, float* out) const {
        plain_.dequantise(j, out);
        for (int64_t k = 0; part.centre != nullptr && k < 2 * pairs_; k += WIDTH) {
            store(out + k, load(out + k) - load(part.centre + k));
        }
        return half_square(out, 2 * pairs_);
    }
    double rounding() const { return BytePanels::rounding(2 * pairs_); }

    double longest(const std::vector<Part>& parts, int threads) const {
        Buffer<double> most(static_cast<int64_t>(parts.size()));
        parallel_for(threads, static_cast<int64_t>(parts.size()), [&](int64_t p) {
            const Part& part = parts[static_cast<size_t>(p)];
            Buffer<float> work(2 * pairs_);
            float half = 0;
            for (int64_t j = part.first; j < part.last; ++j) half = std::max(half, row(part, j, work.get()));
            most[p] = static_cast<double>(half);
        });
        double half = 0;
        for (size_t p = 0; p < parts.size(); ++p) half = std::max(half, most[static_cast<int64_t>(p)]);
        return std::sqrt(2 * half) * (1 + rounding());
    }

    // q, its terms without the origin, and |a| of all rows; the largest |e|.
    void convert_rows(const std::vector<Part>& parts, int threads) {
        Buffer<double> errors(static_cast<int64_t>(parts.size()));
        std::fill_n(row_terms_.get(), padded_rows(), int16_t{0});
        std::fill_n(column_terms_.get(), padded_rows(), int16_t{0});
        parallel_for(threads, static_cast<int64_t>(parts.size()), [&](int64_t p) {
            const Part& part = parts[static_cast<size_t>(p)];
            Buffer<float> work(2 * pairs_);
            double error = 0;
            for (int64_t j = part.first; j < part.last; ++j) {
                const double half = static_cast<double>(row(part, j, work.get()));
                const auto g = static_cast<int32_t>(std::nearbyint(half * per_square_));
                int32_t sum = 0;
                errors_[j] = round_up(convert(work.get(), 2 * pairs_, step_, bytes_.get() + j * 2 * pairs_, sum));
                error = std::max(error, static_cast<double>(errors_[j]));
                row_terms_[j] = wrapped(-g);
                column_terms_[j] = wrapped(-g - LARGEST * sum);
                lengths_[j] = round_up(std::sqrt(2 * half) * (1 + rounding()));
            }
            errors[p] = error;
        });
        for (size_t p = 0; p < parts.size(); ++p) error_ = std::max(error_, errors[static_cast<int64_t>(p)]);
    }

    void finish(const std::vector<Part>& parts, int threads) {
        const double squared = step_ * step_;
        origin_ = std::floor(32763.0 - (2 * length_ + error_) * error_ / squared);
        parallel_for(threads, ceil_div(blocks_, 8), [&](int64_t group) {
            for (int64_t b = 8 * group; b < std::min(blocks_, 8 * group + 8); ++b) {
                interleave(bytes_.get() + b * COLUMNS * 2 * pairs_, std::min(COLUMNS, rows_ - b * COLUMNS), pairs_,
                           packed_.get() + b * COLUMNS * pairs_);
            }
        });
        double largest = 0, most_lost = 0;
        for (int64_t g = 0; g < ceil_div(rows_, GROUP); ++g) largest = std::max(largest, filter_.group_half_norm(g));
        for (int64_t i = 0; i < rows_; ++i) most_lost = std::max(most_lost, plain_.lost(i));
        for (const Part& part : parts) {
            for (int64_t i = part.first; i < part.last; ++i) {
                row_terms_[i] = wrapped(row_terms_[i] + static_cast<int32_t>(origin_));
                // Rounding what is left of a row without its centre to float32 adds 4 * 2^-24 length^2 at most.
                const double both = static_cast<double>(lengths_[i]) + length_, lost = plain_.lost(i) + most_lost;
                const double own = static_cast<double>(errors_[i]);
                const double error = error_ * static_cast<double>(lengths_[i]) + own * (length_ + error_) +
                                     lost * (both + lost) + filter_.rounding(largest, filter_.half_norm(i)) +
                                     0x1p-20 * length_ * length_;
                reach_[i] = round_up(1 + LENGTH * LENGTH * rounding() + error / squared * 1.001);
            }
        }
    }

    // Truths of ROWS rows and COLUMNS columns as bytes, those of 8 columns each in the order 0, 2, 1, 3. Not inlined,
    // as the loop takes all 16 registers.
    template <EdgeKinds KINDS>
    [[gnu::noinline]] static bool compare(const uint16_t* a, const int16_t* b, int64_t pairs, const int16_t* row_terms,
                                          const int16_t* column_terms, CoarseEdges rows, CoarseEdges columns,
                                          __m256i* found) {
        __m256i sums[ROWS][2] = {};
        multiply(a, b, pairs, sums);
        __m256i all = {};
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            __m256i truth[2];
            const __m256i near = _mm256_set1_epi16(rows.near[r]), far = _mm256_set1_epi16(rows.far[r]);
            for (int half = 0; half < 2; ++half) {
                const int offset = 16 * half;
                const __m256i terms =
                    _mm256_add_epi16(load_whole(column_terms + offset), _mm256_set1_epi16(row_terms[r]));
                const __m256i z = _mm256_add_epi16(sums[r][half], terms);
                truth[half] = _mm256_cmpgt_epi16(z, _mm256_min_epi16(near, load_whole(columns.near + offset)));
                if (KINDS == EdgeKinds::near) continue;
                const __m256i columns_far = load_whole(columns.far + offset);
                __m256i is_far;
                if (KINDS == EdgeKinds::limited) {
                    const __m256i of_row = _mm256_cmpgt_epi16(z, _mm256_set1_epi16(rows.least[r]));
                    const __m256i of_column = _mm256_cmpgt_epi16(z, load_whole(columns.least + offset));
                    is_far = _mm256_or_si256(_mm256_and_si256(_mm256_cmpgt_epi16(far, z), of_row),
                                             _mm256_and_si256(_mm256_cmpgt_epi16(columns_far, z), of_column));
                } else {
                    is_far = _mm256_cmpgt_epi16(_mm256_max_epi16(far, columns_far), z);
                }
                truth[half] = _mm256_or_si256(truth[half], is_far);
            }
            found[r] = _mm256_packs_epi16(truth[0], truth[1]);
            all = _mm256_or_si256(all, found[r]);
        }
        return _mm256_testz_si256(all, all) == 0;
    }

    const Panels& filter_;
    const WholeRows<T, Int16Panel>& plain_;
    const int64_t rows_, blocks_, pairs_;  // pairs of dimensions
    bool usable_ = false;
    double length_ = 0, step_ = 0, per_square_ = 0, error_ = 0, origin_ = 0;
    Buffer<int8_t> bytes_;    // [rows][pairs][2]
    Buffer<int16_t> packed_;  // [blocks][pairs][COLUMNS] pairs of bytes
    Buffer<int16_t> row_terms_, column_terms_;
    Buffer<float> lengths_, errors_, reach_;  // [rows] |a|, |e|, and in units of step^2
};

#endif

}  // namespace MINERLIB_ISA
}  // namespace minerlib
