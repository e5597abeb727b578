// Panels of bfloat16 for AMX: 32 x 32 values from 2 x 2 tiles, 32 dimensions a step of the processor.
//
// Columns [steps][32] are pairs side by side, as in every panel: 16 steps of them are two B tiles. Anchors lie
// [steps / 16][32][16], two A tiles, with their signs flipped, so that C starts as h (one row, loaded 16 times) and
// ends as v = h - a . b, stored where it is wanted. Per 16 steps: 4 loads of about 8 cycles and 4 products of 16.
#pragma once

#include "amx_tiles.h"
#include "panels.h"

namespace minerlib {
namespace MINERLIB_ISA {

struct AmxPanel {
    static constexpr int64_t ROWS = 2 * TILE_SIDE, COLUMNS = 2 * TILE_SIDE, PADDING = 2 * TILE_SIDE;
    static constexpr int64_t TOGETHER = 1, CHUNK = 256;  // 32 x 256 values stay in the first-level cache
    using Session = TileSession;

    static int64_t steps(int64_t dims) { return ceil_div(dims, PADDING) * TILE_SIDE; }

    // h and D exact products, added up in any order: D u (H_j + |a||b|). By the manual's order it would be 17 + 2 D /
    // 32; beside what bfloat16 loses the difference is nothing, and so nothing rests on the order. Denormals taken as
    // zero, in rows, products and sums, move v by less than D 2^-123: the bound's absolute part is D 2^-118.
    static double roundings(int64_t dims) { return 2.0 * static_cast<double>(dims) + 4.0; }

    static constexpr double LARGEST_RESIDUAL = 0x1p-8;

    static double convert(float* row, int64_t dims, double norm) {
        return round_to_bfloat16(row, ceil_div(dims, PADDING) * PADDING, norm);
    }

    static void pack_rows(const float* rows, int64_t stride, int64_t count, int64_t steps, float* out) {
        for (int64_t k = 0; k < steps; k += TILE_SIDE) {
            for (int64_t r = 0; r < ROWS; ++r, out += TILE_SIDE) {
                if (r < count) {
                    flip_signs(rows + r * stride + k, out);
                } else {
                    std::fill_n(out, TILE_SIDE, 0.0f);
                }
            }
        }
    }

    static void pack_columns(const float* rows, int64_t stride, int64_t count, int64_t steps, float* out) {
        interleave<COLUMNS>(rows, stride, count, steps, out);
    }

    static void tile(const float* a, const float* b, int64_t steps, const float* h, float* out, int64_t stride) {
        constexpr int64_t ELEMENT = sizeof(float), ROW = TILE_SIDE * ELEMENT;
        Tiles::load<0>(h, 0);
        Tiles::load<1>(h + TILE_SIDE, 0);
        Tiles::load<2>(h, 0);
        Tiles::load<3>(h + TILE_SIDE, 0);
        for (int64_t k = 0; k < steps; k += TILE_SIDE) {
            Tiles::load<4>(a, ROW);
            Tiles::load<6>(b, 2 * ROW);
            Tiles::multiply_add<0, 4, 6>();
            Tiles::load<7>(b + TILE_SIDE, 2 * ROW);
            Tiles::multiply_add<1, 4, 7>();
            Tiles::load<5>(a + TILE_SIDE * TILE_SIDE, ROW);
            Tiles::multiply_add<2, 5, 6>();
            Tiles::multiply_add<3, 5, 7>();
            a += TILE_SIDE * ROWS;
            b += TILE_SIDE * COLUMNS;
        }
        float* below = out + TILE_SIDE * stride;
        Tiles::store<0>(out, ELEMENT * stride);
        Tiles::store<1>(out + TILE_SIDE, ELEMENT * stride);
        Tiles::store<2>(below, ELEMENT * stride);
        Tiles::store<3>(below + TILE_SIDE, ELEMENT * stride);
    }

private:
    static void flip_signs(const float* pairs, float* out) {
        for (int64_t k = 0; k < TILE_SIDE; k += WIDTH) {
            const IntV flipped = *reinterpret_cast<const IntV*>(pairs + k) ^ static_cast<int32_t>(0x80008000u);
            *reinterpret_cast<IntV*>(out + k) = flipped;
        }
    }
};
using FastPanel = AmxPanel;

// The same of rows as sums of two numbers of bfloat16, a = high + low, where float32's accuracy is wanted: high . high
// + high . low + low . high, as products of rows three times as long. 32 dimensions of a converted row are 16 pairs of
// high parts and 16 of low ones.
struct AmxFinePanel : AmxPanel {
    static int64_t steps(int64_t dims) { return 3 * AmxPanel::steps(dims); }
    static double roundings(int64_t dims) { return AmxPanel::roundings(3 * dims); }

    static constexpr double LARGEST_RESIDUAL = 0x1p-17;

    // What is lost of a . b is r_a + r_b + r_a r_b for what both parts lose of the rows, and low . low, which is at
    // most half the sum of the two squares: all relative to |a||b|.
    static double convert(float* row, int64_t dims, double norm) {
        FloatV lost = {}, low = {};
        for (int64_t k = 0; k < ceil_div(dims, PADDING) * PADDING; k += PADDING) {
            float block[PADDING];
            std::copy_n(row + k, PADDING, block);
            for (int64_t l = 0; l < PADDING; l += WIDTH) {
                const FloatV value = load(block + l), rest = value - rounded(value), left = rest - rounded(rest);
                low += rest * rest;
                lost += left * left;
                store_halves(rounded(value), row + k + l / 2);
                store_halves(rounded(rest), row + k + (PADDING + l) / 2);
            }
        }
        if (norm == 0) return 0;
        double lost_square = 0, low_square = 0;
        for (int lane = 0; lane < WIDTH; ++lane) {
            lost_square += static_cast<double>(lost[lane]);
            low_square += static_cast<double>(low[lane]);
        }
        const double room = 1.01 + static_cast<double>(dims) * 0x1p-22;  // the float32 sums err, too
        return room * (std::sqrt(lost_square) / norm + 0.5 * low_square / (norm * norm));
    }

    static void pack_rows(const float* rows, int64_t stride, int64_t count, int64_t steps, float* out) {
        for (int64_t k = 0; k < steps; k += 3 * TILE_SIDE) {
            const float* block = rows + k / 3 * 2;
            for (const float* part : {block, block, block + TILE_SIDE}) {
                AmxPanel::pack_rows(part, stride, count, TILE_SIDE, out);
                out += TILE_SIDE * ROWS;
            }
        }
    }

    static void pack_columns(const float* rows, int64_t stride, int64_t count, int64_t steps, float* out) {
        for (int64_t k = 0; k < steps; k += 3 * TILE_SIDE) {
            const float* block = rows + k / 3 * 2;
            for (const float* part : {block, block + TILE_SIDE, block}) {
                interleave<COLUMNS>(part, stride, count, TILE_SIDE, out);
                out += TILE_SIDE * COLUMNS;
            }
        }
    }

private:
    // As round_to_bfloat16.
    static FloatV rounded(FloatV value) {
        const IntV bits = reinterpret_cast<IntV>(value);
        IntV nearest = bits + 0x7FFF + ((bits >> 16) & 1);
        nearest &= (nearest & 0x7F800000) != 0;
        return reinterpret_cast<FloatV>(nearest & static_cast<int32_t>(0xFFFF0000u));
    }
    static void store_halves(FloatV value, float* out) {
        typedef uint16_t HalfV __attribute__((vector_size(WIDTH * 2), aligned(2), may_alias));
        *reinterpret_cast<HalfV*>(out) = __builtin_convertvector(reinterpret_cast<IntV>(value) >> 16, HalfV);
    }
};
using FinePanel = AmxFinePanel;

}  // namespace MINERLIB_ISA
}  // namespace minerlib
