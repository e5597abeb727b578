// All values of a small batch mined against itself: every tile above the diagonal serves both of its sides.
//
// row(i) [N + padding] holds v(i, j) of filter.h for every column j. Memory: N^2 floats, at most 4 MB, which stay in
// the caches; larger batches are swept block by block instead and need O(N).
#pragma once

#include "filter.h"

namespace minerlib {
namespace MINERLIB_ISA {

template <class T> class Square {
public:
    static constexpr int64_t LARGEST = 1024;

    static bool fits(const Problem& problem) { return problem.own && problem.columns.rows <= LARGEST; }

    Square(const Filter<T>& filter, int threads)
        : filter_(filter), n_(filter.columns), stride_(ceil_div(filter.padded_columns(), 64) * 64) {
        values_.resize((n_ + TILE_ROWS) * stride_);  // whole panels
        half_norms_.resize(n_ + TILE_ROWS);
        const int64_t rows = block_rows(n_, threads, stride_);
        parallel_for(threads, ceil_div(n_, rows), [&](int64_t b) { fill(b * rows, std::min(rows, n_ - b * rows)); });
    }

    float* row(int64_t i) const { return values_.get() + i * stride_; }
    double half_norm(int64_t i) const { return half_norms_[i]; }

private:
    // The rows first .. first + rows - 1 from the diagonal on, and the columns below them.
    void fill(int64_t first, int64_t rows) {
        thread_local Scratch scratch;
        Buffer<float> tile(TILE_ROWS * TILE_COLUMNS);
        const int64_t panels = ceil_div(rows, TILE_ROWS);
        scratch.panels.resize(panels * TILE_ROWS * filter_.steps());
        filter_.pack_anchors(first, rows, scratch.panels.get(), half_norms_.get() + first, scratch.work);
        for (int64_t column = first / TILE_COLUMNS * TILE_COLUMNS; column < n_; column += TILE_COLUMNS) {
            for (int64_t p = 0; p < panels; ++p) {
                const int64_t top = first + p * TILE_ROWS, bottom = std::min(top + TILE_ROWS, first + rows);
                if (column + TILE_COLUMNS <= top) continue;
                filter_.panel_values(scratch.panels.get() + p * TILE_ROWS * filter_.steps(), column / TILE_COLUMNS,
                                     tile.get(), TILE_COLUMNS);
                place(tile.get(), top, bottom, column);
            }
        }
    }

    // Values below the diagonal are left to the tile that mirrors them.
    void place(const float* tile, int64_t top, int64_t bottom, int64_t column) {
        const int64_t end = std::min(column + TILE_COLUMNS, n_);
        for (int64_t i = top; i < bottom; ++i) {
            const float* values = tile + (i - top) * TILE_COLUMNS;
            for (int64_t j = std::max(column, i); j < column + TILE_COLUMNS; ++j) row(i)[j] = values[j - column];
        }
        for (int64_t j = std::max(column, top + 1); j < end; ++j) {
            const float h = static_cast<float>(filter_.half_norm(j));
            for (int64_t i = top; i < std::min(bottom, j); ++i) {
                const float shift = static_cast<float>(filter_.half_norm(i)) - h;
                row(j)[i] = tile[(i - top) * TILE_COLUMNS + j - column] + shift;
            }
        }
    }

    const Filter<T>& filter_;
    const int64_t n_, stride_;  // readers of 64 values at a time stay in their row, which is one thread's
    Buffer<float> values_;
    Buffer<double> half_norms_;
};

}  // namespace MINERLIB_ISA
}  // namespace minerlib
