// The coarse half of topk's filter: rows as bytes (byte_panels.h) tell which columns may be near an anchor, and values
// of the panels are computed of those alone.
//
// With the filter's rows of integers, a of an anchor and b of a column, one step s for all of them and
//
//     a = s q + e,    g the whole number next to |a|^2 / 2 / s^2,    z(i, j) = origin - g_i - g_j + q_i . q_j
//
// half the squared distance of two rows is s^2 (origin - z), within s^2 for the two g, and for the products within
// |e_i| (|b_j| + |e_j|) + |a_i| |e_j|. That, what integers have lost of the filter's rows and the filter's own error
// are the reach of an anchor, over the longest column and the largest |e_j|. Only a near column's z must lie within 16
// bits: one that is so far that its z wraps is looked at in vain.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "byte_panels.h"
#include "coarse.h"
#include "filter.h"

namespace minerlib {
namespace MINERLIB_ISA {

// No such path: panels decide alone.
template <class T, class Panel> struct NearTiles {
    static constexpr bool EXISTS = false;
    struct Block {
        Block(int64_t, int64_t) {}
        WholeRows<T, Panel> rows{0, 0};
    };
};

#if MINERLIB_ISA_LEVEL == 1 && !defined(MINERLIB_TILES)
template <class T> class NearTiles<T, Int16Panel> : BytePanels {
public:
    using Panels = Filter<T, Int16Panel>;
    using Rows = WholeRows<T, Int16Panel>;

    static constexpr bool EXISTS = true;

    // The anchors that a thread compares with all columns.
    struct Block {
        Block(int64_t most, int64_t dims) : rows(most, dims) {}
        Rows rows;  // what the filter is to call while it packs them: rows.keeper()
        Buffer<uint16_t> panels;
        Buffer<int16_t> terms, edges;  // [whole panels]
        Buffer<float> reach, bounds;   // [rows] in units of s^2; values beyond do not matter
        Buffer<float> halves;          // [rows] half norms
        Buffer<RowPair> hits;
    };

    // `columns` holds those of the filter.
    NearTiles(const Panels& filter, const Rows& columns, int threads)
        : filter_(filter), columns_(columns), pairs_(filter.padded_dims() / 2),
          blocks_(ceil_div(filter.columns, COLUMNS)), largest_(filter.largest_half_norm()) {
        const double worst = 0.5 * std::sqrt(static_cast<double>(2 * pairs_)), room = LENGTH - worst;
        // Where a cosine's rows include zeros, v + H_i is no squared distance; long sums of float32 need more room.
        if (room < 0.5 * LENGTH || !filter.euclidean() || LENGTH * LENGTH * rounding() > 2) return;
        length_ = 1.01 * std::sqrt(2 * largest_);  // integers may be longer than what they are made of
        if (length_ < 0x1p-40) return;             // squares of what rounding loses must not leave float32
        step_ = static_cast<double>(static_cast<float>(length_ / room) * 1.001f);
        per_square_ = 1 / (step_ * step_);
        most_error_ = 1.001 * step_ * worst;
        origin_ = std::floor(32763.0 - (2 * length_ + most_error_) * most_error_ * per_square_);
        usable_ = pack_columns(threads);
    }

    bool usable() const { return usable_; }

    // Makes bytes of the `count` rows of a block. False: they are not what a common step suits.
    bool start(Block& block, int64_t count) const {
        const int64_t padded = ceil_div(count, ROWS) * ROWS;
        block.panels.resize(padded * pairs_);
        for (Buffer<int16_t>* each : {&block.terms, &block.edges}) each->resize(padded);
        for (Buffer<float>* each : {&block.reach, &block.bounds, &block.halves}) each->resize(count);
        block.hits.resize(padded * COLUMNS + 4);  // taken four at once
        std::fill_n(block.panels.get(), padded * pairs_, uint16_t{0});
        std::fill_n(block.terms.get(), padded, int16_t{0});
        std::fill_n(block.edges.get(), padded, NEVER);
        Buffer<float> row(2 * pairs_);
        Buffer<int8_t> bytes(2 * pairs_);
        for (int64_t r = 0; r < count; ++r) {
            const Converted c = convert_row(block.rows, r, row.get(), bytes.get());
            if (!fits(c)) return false;
            pack_row(bytes.get(), pairs_, block.panels.get() + r / ROWS * ROWS * pairs_ + r % ROWS);
            block.halves[r] = static_cast<float>(block.rows.half_norm(r));
            block.terms[r] = wrapped(static_cast<int32_t>(origin_) - c.g);
            // Of the square of 16 bits, what float32 loses of a row of integers is 4 * 2^-24 length^2 at most.
            const double lost = block.rows.lost(r) + lost_;
            const double error = error_ * c.length + c.error * (length_ + error_) + lost * (c.length + length_ + lost) +
                                 filter_.rounding(largest_, block.rows.half_norm(r)) + 0x1p-20 * length_ * length_;
            block.reach[r] = round_up(1 + LENGTH * LENGTH * rounding() + error * per_square_ * 1.001);
        }
        return true;
    }

    // Columns whose value exceeds `bound` do not matter to row r.
    void set_bound(Block& block, int64_t r, double bound) const {
        block.bounds[r] = static_cast<float>(bound);
        const double half = block.rows.half_norm(r) + bound;
        block.edges[r] =
            whole(std::floor(origin_ - half * per_square_ - static_cast<double>(block.reach[r])) - 2, NEVER);
    }

    // Calls take(row, column, lower, upper), bounds on its value, for each of the block's `count` rows and the columns
    // first .. last - 1 that may matter, `first` being a multiple of COLUMNS. Returns how many values it has computed.
    template <class Take>
    int64_t sweep(Block& block, int64_t count, int64_t first, int64_t last, Take take) const {
        int64_t computed = 0;
        for (int64_t column = first; column < last; column += COLUMNS) {
            RowPair* out = block.hits.get();
            uint32_t fetched = 0;
            for (int64_t r = 0; r < count; r += ROWS) {  // the columns' block stays in the first-level cache
                __m256i found[ROWS];
                if (!compare(block.panels.get() + r * pairs_, packed_.get() + column * pairs_, pairs_,
                             block.terms.get() + r, terms_.get() + column, block.edges.get() + r, found)) {
                    continue;
                }
                for (int64_t some = 0; some < ROWS; some += 2) {
                    const uint64_t hits = mask(found + some) & real(count - r - some, last - column);
                    out += list(hits, r + some, column, out);
                    const auto either = static_cast<uint32_t>(hits | hits >> 32);
                    for (uint32_t lanes = either & ~fetched; lanes != 0; lanes &= lanes - 1) {
                        columns_.prefetch(column + __builtin_ctz(lanes));
                    }
                    fetched |= either;
                }
            }
            weigh(block, out - block.hits.get(), take);
            computed += out - block.hits.get();
        }
        return computed;
    }

private:
    static constexpr int16_t NEVER = 32767;

    struct Converted {
        double length, error;  // |a| and |e|
        int32_t g, sum;        // of q
    };

    double rounding() const { return BytePanels::rounding(2 * pairs_); }
    bool fits(const Converted& c) const { return c.length <= length_ && c.error <= most_error_; }

    // work [2 * pairs_]
    Converted convert_row(const Rows& rows, int64_t i, float* work, int8_t* bytes) const {
        Converted out = {};
        rows.dequantise(i, work);
        const double half = static_cast<double>(half_square(work, 2 * pairs_));
        out.length = std::sqrt(2 * half) * (1 + rounding());
        out.g = static_cast<int32_t>(std::nearbyint(half * per_square_));
        out.error = convert(work, 2 * pairs_, step_, bytes, out.sum);
        return out;
    }

    // False: a column is not what a common step suits.
    bool pack_columns(int threads) {
        const int64_t groups = ceil_div(blocks_ * COLUMNS, GROUP);
        packed_.resize(blocks_ * COLUMNS * pairs_);
        terms_.resize(blocks_ * COLUMNS);
        Buffer<double> errors(groups), lost(groups);
        Buffer<uint8_t> fitting(groups);
        parallel_for(threads, groups, [&](int64_t group) {
            Buffer<float> row(2 * pairs_);
            Buffer<int8_t> bytes(COLUMNS * 2 * pairs_);
            errors[group] = lost[group] = 0;
            fitting[group] = 1;
            for (int64_t j = group * GROUP; j < std::min(filter_.columns, (group + 1) * GROUP); j += COLUMNS) {
                const int64_t count = std::min(COLUMNS, filter_.columns - j);
                std::fill_n(terms_.get() + j, COLUMNS, int16_t{0});
                for (int64_t c = 0; c < count; ++c) {
                    const Converted got = convert_row(columns_, j + c, row.get(), bytes.get() + c * 2 * pairs_);
                    terms_[j + c] = wrapped(-got.g - LARGEST * got.sum);
                    errors[group] = std::max(errors[group], got.error);
                    lost[group] = std::max(lost[group], columns_.lost(j + c));
                    if (!fits(got)) fitting[group] = 0;
                }
                interleave(bytes.get(), count, pairs_, packed_.get() + j * pairs_);
            }
        });
        bool all = true;
        for (int64_t group = 0; group < groups; ++group) {
            error_ = std::max(error_, errors[group]);
            lost_ = std::max(lost_, lost[group]);
            all = all && fitting[group] != 0;
        }
        return all;
    }

    // Truths of ROWS rows and COLUMNS columns (BytePanels::mask); false: there is none. Not inlined, as the loop takes
    // all 16 registers.
    [[gnu::noinline]] static bool compare(const uint16_t* a, const int16_t* b, int64_t pairs, const int16_t* row_terms,
                                          const int16_t* column_terms, const int16_t* edges, __m256i* found) {
        __m256i sums[ROWS][2] = {};
        multiply(a, b, pairs, sums);
        __m256i all = {};
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r) {
            const __m256i term = _mm256_set1_epi16(row_terms[r]), edge = _mm256_set1_epi16(edges[r]);
            __m256i near[2];
            for (int half = 0; half < 2; ++half) {
                const __m256i terms = _mm256_add_epi16(load_whole(column_terms + 16 * half), term);
                near[half] = _mm256_cmpgt_epi16(_mm256_add_epi16(sums[r][half], terms), edge);
            }
            found[r] = _mm256_packs_epi16(near[0], near[1]);
            all = _mm256_or_si256(all, found[r]);
        }
        return _mm256_testz_si256(all, all) == 0;
    }

    // Takes those of a block's hits that the panels' values leave: in float32, with room for its rounding.
    template <class Take> void weigh(Block& block, int64_t count, Take take) const {
        constexpr int64_t TOGETHER = 128;
        RowPair* hits = block.hits.get();
        for (int64_t k = count; k % 4 != 0; ++k) hits[k] = hits[0];
        const float relative = static_cast<float>(filter_.relative * 1.001 + 0x1p-20);
        const float absolute = static_cast<float>(filter_.absolute * 1.001);
        float values[TOGETHER], errors[TOGETHER];
        int32_t left[TOGETHER];
        for (; count > 0; hits += TOGETHER, count -= TOGETHER) {
            const int64_t some = std::min(count, TOGETHER);
            for (int64_t k = 0; k < some; k += 4) columns_.values(filter_, block.rows, hits + k, values + k);
            int64_t count_left = 0;  // without branches, as these would be hard to foresee
            for (int64_t k = 0; k < some; ++k) {
                const RowPair& hit = hits[k];
                errors[k] = relative * (block.halves[hit.row] + filter_.half_norms()[hit.column]) + absolute;
                left[count_left] = static_cast<int32_t>(k);
                count_left += values[k] - errors[k] <= block.bounds[hit.row] ? 1 : 0;
            }
            for (int64_t l = 0; l < count_left; ++l) {
                const int32_t k = left[l];
                take(hits[k].row, hits[k].column, values[k] - errors[k], values[k] + errors[k]);
            }
        }
    }

    const Panels& filter_;
    const Rows& columns_;
    const int64_t pairs_, blocks_;  // pairs of dimensions, and blocks of columns
    const double largest_;          // half norm
    bool usable_ = false;
    double length_ = 0, step_ = 0, per_square_ = 0, most_error_ = 0, origin_ = 0;
    double error_ = 0, lost_ = 0;  // of columns, the most
    Buffer<int16_t> packed_;       // [blocks][pairs][COLUMNS] pairs of bytes
    Buffer<int16_t> terms_;        // [blocks * COLUMNS]
};
#endif

}  // namespace MINERLIB_ISA
}  // namespace minerlib
