// Whether this processor's tiles are what amx_panel.h takes them for: values of small panels against float64 sums.
#pragma once

#include "amx_check.h"
#include "amx_panel.h"
#include "memory.h"

namespace minerlib {
namespace MINERLIB_ISA {

// One panel of anchors and one of columns, as rows of numbers and packed.
class CheckedPanels {
public:
    explicit CheckedPanels(int64_t dims)
        : dims_(dims), padded_(ceil_div(dims, AmxPanel::PADDING) * AmxPanel::PADDING), anchors_(ROWS * padded_),
          columns_(ROWS * padded_), values_(ROWS * STRIDE) {
        const int64_t steps = AmxPanel::steps(dims), packed = ROWS * steps;
        Buffer<float> a(packed), b(packed);
        make_rows(1, anchors_);
        make_rows(2, columns_);
        // The last anchor and the last column are padding.
        AmxPanel::pack_rows(anchors_.get(), padded_, ROWS - 1, steps, a.get());
        AmxPanel::pack_columns(columns_.get(), padded_, ROWS - 1, steps, b.get());
        for (int64_t j = 0; j < ROWS; ++j) half_norms_[j] = static_cast<float>(half_norm(columns_, j));
        half_norms_[ROWS - 1] = std::numeric_limits<float>::quiet_NaN();
        const TileSession session;
        AmxPanel::tile(a.get(), b.get(), steps, half_norms_, values_.get(), STRIDE);
    }

    bool right() const {
        const double relative = AmxPanel::roundings(dims_) * 0x1p-24 * 1.02;
        const double absolute = static_cast<double>(dims_) * 0x1p-118;
        for (int64_t i = 0; i < ROWS; ++i) {
            for (int64_t j = 0; j < ROWS; ++j) {
                const double v = values_[i * STRIDE + j];
                if (j == ROWS - 1) {
                    if (!std::isnan(v)) return false;
                    continue;
                }
                double expected = half_norms_[j];
                if (i < ROWS - 1) {
                    for (int64_t k = 0; k < dims_; ++k) expected -= value(anchors_, i, k) * value(columns_, j, k);
                }
                const double reach = half_norm(anchors_, i) + half_norm(columns_, j);
                if (!(std::abs(v - expected) <= relative * reach + absolute)) return false;
            }
        }
        return true;
    }

private:
    static constexpr int64_t ROWS = AmxPanel::ROWS, STRIDE = AmxPanel::COLUMNS + TILE_SIDE;
    static_assert(AmxPanel::ROWS == AmxPanel::COLUMNS, "one number serves both");

    // Numbers of all sizes up to 1/8, zeros and denormals among them, rounded to bfloat16.
    void make_rows(uint32_t seed, const Buffer<float>& rows) const {
        for (int64_t r = 0; r < ROWS; ++r) {
            float* row = rows.get() + r * padded_;
            std::fill_n(row, padded_, 0.0f);
            for (int64_t k = 0; k < dims_; ++k) {
                seed = seed * 1664525u + 1013904223u;
                const float unit = static_cast<float>(static_cast<int32_t>(seed)) * 0x1p-34f;
                row[k] = seed % 61 == 0 ? 0.0f : seed % 53 == 0 ? unit * 0x1p-124f : unit;
            }
            AmxPanel::convert(row, dims_, 0);
        }
    }

    double value(const Buffer<float>& rows, int64_t r, int64_t k) const {
        uint16_t half;
        std::memcpy(&half, reinterpret_cast<const char*>(rows.get() + r * padded_) + 2 * k, sizeof half);
        const uint32_t bits = static_cast<uint32_t>(half) << 16;
        float out;
        std::memcpy(&out, &bits, sizeof out);
        return static_cast<double>(out);
    }

    double half_norm(const Buffer<float>& rows, int64_t r) const {
        double sum = 0;
        for (int64_t k = 0; k < dims_; ++k) sum += value(rows, r, k) * value(rows, r, k);
        return sum / 2;
    }

    const int64_t dims_, padded_;
    const Buffer<float> anchors_, columns_, values_;
    float half_norms_[ROWS];
};

bool tiles_are_right() {
    for (int64_t dims : {1, 2, 31, 32, 33, 150}) {
        if (!CheckedPanels(dims).right()) return false;
    }
    return true;
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
