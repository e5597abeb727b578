// The sweep of chunk_extremes where coarse tiles (coarse.h) tell which values need be computed.
#pragma once

#include <memory>
#include <vector>

#include "chunks.h"
#include "coarse.h"

namespace minerlib {
namespace MINERLIB_ISA {

// No such path: panels decide alone.
template <class T, class Panel> struct CoarseSweep {
    static constexpr bool EXISTS = false;
    struct State {};
};

#if MINERLIB_ISA_LEVEL == 1 && !defined(MINERLIB_TILES)
template <class T> class CoarseSweep<T, Int16Panel> {
    using Rows = WholeRows<T, Int16Panel>;
    using Bytes = Coarse<T, Int16Panel>;

public:
    static constexpr bool EXISTS = true;

    // What one thread works with: an edge for each extremum and row (nearest and farthest positive, nearest and
    // farthest negative), and a block's packed anchors and hits.
    struct State {
        Buffer<int16_t> marks[4];
        Buffer<uint16_t> bytes[2];
        Buffer<float> panels, work;
        Buffer<RowPair> hits[2];  // of positives and of negatives
    };

    // Rows are counted in the order of packing; the anchors are the first of them, and the columns of the class of
    // anchor i are positives_begin[i] .. positives_end[i] - 1.
    CoarseSweep(const ChunkPair& pair, const Filter<T, Int16Panel>& filter, const Rows& rows, unsigned wanted,
                int64_t anchors, const int64_t* positives_begin, const int64_t* positives_end)
        : pair_(pair), filter_(filter), rows_(rows), wanted_(wanted), n_(pair.rows.rows), anchors_(anchors),
          positives_begin_(positives_begin), positives_end_(positives_end) {
        prepare();
    }

    bool usable() const { return of_side_[1] != nullptr; }

    // Edges that no pair passes.
    void start(State& state) const {
        for (int e = 0; e < 4; ++e) {
            const int64_t padded = of_side_[1]->padded_rows();
            state.marks[e].resize(padded);
            std::fill_n(state.marks[e].get(), padded, e % 2 == 0 ? Bytes::NEVER_NEAR : Bytes::NEVER_FAR);
        }
    }

    // Values v of the panels up to `bound` matter to the nearest row of row i, -v to the farthest.
    void mark(int e, int64_t i, double bound, State& state) const {
        const Bytes& coarse = *of_side_[e / 2];
        const double h = filter_.half_norm(i);
        state.marks[e][i] = e % 2 == 0 ? coarse.near_edge(h + bound, i) : coarse.far_edge(h - bound, i);
    }

    // Calls weigh(side, i, j, v, shared), soon after prefetch(side, i, j), for every anchor i of first .. first + count
    // - 1 and column j from `from` on that may matter to an extremum of either (shared: to the column's, too, as from
    // `behind` on). Values are computed where a coarse tile holds a pair of interest, or may hold both positives and
    // negatives. Where classes are small, all positives are weighed alone instead, and of a pair of anchors only the
    // column behind the row. Returns whether that spared enough of them: one alone takes as long as 16 in a tile.
    template <class Prefetch, class Weigh>
    bool sweep(int64_t first, int64_t count, int64_t from, int64_t behind, const Buffer<float>* bounds, State& state,
               Prefetch prefetch, Weigh weigh) const {
        const int64_t panels = ceil_div(count, int64_t{TILE_ROWS}), panel_size = TILE_ROWS * filter_.steps();
        state.panels.resize(panels * panel_size);
        rows_.pack_anchors(first, count, state.panels.get(), state.work);
        if (small_classes_) weigh_positives(first, count, weigh);
        for (int s = 0; s < 2; ++s) {
            if (coarse_[s] != nullptr) coarse_[s]->pack_anchors(first, count, state.bytes[s]);
        }
        for (Buffer<RowPair>& some : state.hits) some.resize(panels * DENSE + 4);  // taken four at once
        int64_t tiles = 0, computed = 0;
        for (int64_t block = from / Bytes::COLUMNS; block * Bytes::COLUMNS < n_; ++block) {
            int64_t found[2] = {0, 0};              // of positives and of negatives
            for (int64_t p = 0; p < panels; ++p) {  // the columns' block stays in the first-level cache
                const Tile tile{first + p * TILE_ROWS, std::min<int64_t>(TILE_ROWS, count - p * TILE_ROWS),
                                block * Bytes::COLUMNS, state.panels.get() + p * panel_size};
                if (small_classes_ && alone() && tile.column + Bytes::COLUMNS <= tile.anchor) continue;
                const int side = small_classes_ ? 2 : tile.column < behind ? MIXED : side_of(tile);
                ++tiles;
                if (side == MIXED) {
                    weigh_all(tile, from, behind, bounds, weigh);
                } else if ((wanted_ >> side & 3) != 0) {
                    int64_t& so_far = found[side / 2];
                    const int64_t some = collect(tile, p, side, state.hits[side / 2].get() + so_far, state);
                    if (some > DENSE) {
                        weigh_all(tile, from, behind, bounds, weigh);
                        computed += DENSE;
                    } else {
                        so_far += some;
                    }
                }
            }
            for (int s = 0; s < 2; ++s) {
                RowPair* hits = state.hits[s].get();
                for (int64_t k = found[s]; k % 4 != 0; ++k) hits[k] = hits[0];
                weigh_hits(2 * s, hits, found[s], bounds, prefetch, weigh);
            }
            computed += found[0] + found[1];
        }
        return computed < tiles * TILE_ROWS * Bytes::COLUMNS / 16;
    }

private:
    // Hits that take as long as all values of a tile: so many there are where a class meets its columns for the first
    // time.
    static constexpr int64_t DENSE = 24;

    void prepare() {
        std::vector<typename Bytes::Part> parts;
        for (int64_t i = 0; i < n_; i += GROUP) parts.push_back({i, std::min(n_, i + GROUP), nullptr});
        add_coarse(1, parts);
        if (of_side_[1] == nullptr) return;
        of_side_[0] = of_side_[1];
        int64_t largest = 0;
        for (int64_t i = 0; i < anchors_; ++i) largest = std::max(largest, positives_end_[i] - positives_begin_[i]);
        small_classes_ = largest <= Bytes::COLUMNS;
        if (largest >= 4 * Bytes::COLUMNS && filter_.euclidean() && (wanted_ & 3) != 0) {
            Buffer<float> centres;
            class_centres(parts, centres);
            add_coarse(0, parts);
        }
        if (pair_.limits == nullptr) return;
        for (int s = 0; s < 2; ++s) {
            least_[s].resize(of_side_[s]->padded_rows());
            for (int64_t i = 0; i < n_; ++i) {
                least_[s][i] = of_side_[s]->near_edge(pair_.limits[pair_.order[i]] / filter_.scale_out, i);
            }
        }
    }

    void add_coarse(int side, const std::vector<typename Bytes::Part>& parts) {
        auto coarse = std::make_unique<Bytes>(filter_, rows_, parts, pair_.threads);
        if (!coarse->usable()) return;
        coarse_[side] = std::move(coarse);
        of_side_[side] = coarse_[side].get();
    }

    // Parts of the rows that have positives among the columns, class by class, and the centres of those classes.
    void class_centres(std::vector<typename Bytes::Part>& parts, Buffer<float>& centres) const {
        const int64_t padded = filter_.padded_dims();
        struct Class {
            int64_t anchors[2], columns[2];
        };
        std::vector<Class> classes;
        for (int64_t i = 0, last = 0; i < anchors_; i = last) {
            const int64_t begin = positives_begin_[i], end = positives_end_[i];
            last = i + 1;
            while (last < anchors_ && pair_.classes[pair_.order[last]] == pair_.classes[pair_.order[i]]) ++last;
            if (begin < end) classes.push_back({{i, last}, {begin, end}});
        }
        parts.clear();
        centres.resize(static_cast<int64_t>(classes.size()) * padded);
        Buffer<float> some(padded);
        float* centre = centres.get();
        for (const Class& c : classes) {
            const int64_t size = c.columns[1] - c.columns[0], sample = std::min<int64_t>(size, 64);
            std::fill_n(centre, padded, 0.0f);
            for (int64_t s = 0; s < sample; ++s) {
                rows_.dequantise(c.columns[0] + s * size / sample, some.get());
                for (int64_t k = 0; k < padded; ++k) centre[k] += some[k] / static_cast<float>(sample);
            }
            const auto add = [&](const int64_t* range) {
                for (int64_t i = range[0]; i < range[1]; i += GROUP) {
                    parts.push_back({i, std::min(range[1], i + GROUP), centre});
                }
            };
            add(c.columns);
            if (pair_.split > 0) add(c.anchors);
            centre += padded;
        }
    }

    bool alone() const { return pair_.split == 0; }

    // TILE_ROWS anchors, `rows` of them real, and the coarse block of columns from `column` on.
    struct Tile {
        int64_t anchor, rows, column;
        const float* panel;
    };
    static constexpr int MIXED = -1;

    // 0: every pair is positive; 2: every pair is negative.
    int side_of(const Tile& tile) const {
        const int64_t last = tile.anchor + tile.rows - 1;
        const int64_t begin = positives_begin_[tile.anchor], end = positives_end_[last];
        if (tile.column >= end || tile.column + Bytes::COLUMNS <= begin) return 2;
        const bool one_class = positives_begin_[last] == begin && positives_end_[tile.anchor] == end;
        return one_class && tile.column >= begin && tile.column + Bytes::COLUMNS <= end ? 0 : MIXED;
    }

    // Where classes are small: which of the columns from `column` on are negatives of row i, behind it in a chunk
    // alone.
    uint32_t negatives(int64_t i, int64_t column) const {
        const auto before = [&](int64_t j) {
            return static_cast<uint32_t>((uint64_t{1} << std::clamp<int64_t>(j - column, 0, Bytes::COLUMNS)) - 1);
        };
        const uint32_t positives = before(positives_end_[i]) & ~before(positives_begin_[i]);
        return ~positives & ~before(alone() ? i + 1 : pair_.split);
    }

    // Offers the positives of the rows first .. first + count - 1 to each other.
    template <class Weigh> void weigh_positives(int64_t first, int64_t count, Weigh weigh) const {
        if ((wanted_ & 3) == 0) return;
        RowPair some[4] = {};
        float values[4];
        int64_t held = 0;
        const auto take = [&] {
            for (int64_t k = held; k < 4; ++k) some[k] = some[0];
            rows_.values(filter_, rows_, some, values);
            for (int64_t k = 0; k < held; ++k) weigh(0, some[k].row, some[k].column, values[k], true);
            held = 0;
        };
        for (int64_t i = first; i < first + count; ++i) {
            for (int64_t j = std::max(positives_begin_[i], alone() ? i + 1 : 0); j < positives_end_[i]; ++j) {
                some[held++] = {static_cast<int32_t>(i), static_cast<int32_t>(j)};
                if (held == 4) take();
            }
        }
        if (held > 0) take();
    }

    // Writes the pairs of interest of a tile, where they are DENSE at most, and returns how many there are. What lies
    // behind them is overwritten as in BytePanels::list.
    int64_t collect(const Tile& tile, int64_t p, int side, RowPair* out, const State& state) const {
        const int16_t* near = state.marks[side].get();
        const bool limited = pair_.limits != nullptr, far = (wanted_ >> (side + 1) & 1) != 0;
        const CoarseEdges edges{near, state.marks[side + 1].get(), limited ? least_[side / 2].get() : near};
        const Bytes& coarse = *of_side_[side / 2];
        const Buffer<uint16_t>& panels = state.bytes[&coarse == coarse_[1].get()];
        const int64_t block = tile.column / Bytes::COLUMNS;
        uint64_t hits[TILE_ROWS / 2];
        const bool any = !far ? coarse.template tile<EdgeKinds::near>(panels, p, tile.anchor, block, edges, hits)
                         : limited
                             ? coarse.template tile<EdgeKinds::limited>(panels, p, tile.anchor, block, edges, hits)
                             : coarse.template tile<EdgeKinds::either>(panels, p, tile.anchor, block, edges, hits);
        if (!any) return 0;
        int64_t count = 0;
        const bool split =
            small_classes_ && tile.column < std::max(positives_end_[tile.anchor + tile.rows - 1], pair_.split);
        for (int64_t r = 0; r < TILE_ROWS; r += 2) {
            hits[r / 2] &= BytePanels::real(tile.rows - r, n_ - tile.column);
            if (split && hits[r / 2] != 0) {
                const int64_t i = tile.anchor + r;
                uint64_t lanes = negatives(i, tile.column);
                if (r + 1 < tile.rows) lanes |= uint64_t{negatives(i + 1, tile.column)} << 32;
                hits[r / 2] &= lanes;
            }
            count += __builtin_popcountll(hits[r / 2]);
        }
        if (count > DENSE) return count;
        for (int64_t r = 0; r < TILE_ROWS; r += 2) {
            const int64_t some = BytePanels::list(hits[r / 2], tile.anchor + r, tile.column, out);
            for (int64_t k = 0; k < some; ++k) rows_.prefetch(out[k].column);
            out += some;
        }
        return count;
    }

    // Offers each other the pairs that panels' values leave of those hits. Few are: so first a loop without branches,
    // in float32 and with room for its rounding.
    template <class Prefetch, class Weigh>
    void weigh_hits(int side, const RowPair* hits, int64_t count, const Buffer<float>* bounds, Prefetch prefetch,
                    Weigh weigh) const {
        constexpr int64_t TOGETHER = 128;
        const float *near = bounds[side].get(), *far = bounds[side + 1].get(), *h = filter_.half_norms();
        const float relative = float_relative(), absolute = float_absolute();
        float values[TOGETHER];
        int32_t left[TOGETHER];
        for (; count > 0; hits += TOGETHER, count -= TOGETHER) {
            const int64_t some = std::min(count, TOGETHER);
            for (int64_t k = 0; k < some; k += 4) rows_.values(filter_, rows_, hits + k, values + k);
            for (int64_t k = 0; k < some; ++k) {
                const int32_t i = hits[k].row, j = hits[k].column;
                const float own = h[i], other = h[j], error = relative * (own + other) + absolute;
                const float v = values[k], mirrored = v + own - other;
                left[k] = (v - error <= near[i]) | (-v - error <= far[i]) | (mirrored - error <= near[j]) |
                          (-mirrored - error <= far[j]);
            }
            int64_t count_left = 0;
            for (int64_t k = 0; k < some; ++k) {
                if (left[k] == 0) continue;
                left[count_left++] = static_cast<int32_t>(k);
                prefetch(side, hits[k].row, hits[k].column);
            }
            for (int64_t l = 0; l < count_left; ++l) {
                const int32_t k = left[l];
                weigh(side, hits[k].row, hits[k].column, values[k], true);
            }
        }
    }

    // Offers each other all pairs of a tile.
    template <class Weigh>
    void weigh_all(const Tile& tile, int64_t from, int64_t behind, const Buffer<float>* bounds, Weigh weigh) const {
        const FloatV relative = splat(float_relative()), absolute = splat(float_absolute());
        const float* h = filter_.half_norms();
        for (int64_t column = tile.column; column < std::min(n_, tile.column + Bytes::COLUMNS);
             column += TILE_COLUMNS) {
            float values[TILE_ROWS * TILE_COLUMNS];
            filter_.panel_values(tile.panel, column / TILE_COLUMNS, values, TILE_COLUMNS);
            for (int64_t r = 0; r < tile.rows; ++r) {
                const int64_t i = tile.anchor + r;
                const FloatV own = splat(h[i]);
                for (int64_t first = column; first < column + TILE_COLUMNS; first += WIDTH) {
                    const auto inside = [&](int64_t j) {
                        return (1u << std::clamp<int64_t>(j - first, 0, WIDTH)) - 1u;  // the lanes before j
                    };
                    const FloatV v = load(values + r * TILE_COLUMNS + first - column), other = load(h + first);
                    const FloatV error = relative * (own + other) + absolute, mirrored = v + own - other;
                    uint32_t left[2];
                    for (int s = 0; s < 2; ++s) {
                        const float *near = bounds[2 * s].get(), *far = bounds[2 * s + 1].get();
                        left[s] = mask_le(v - error, splat(near[i])) | mask_le(-v - error, splat(far[i])) |
                                  mask_le(mirrored - error, load(near + first)) |
                                  mask_le(-mirrored - error, load(far + first));
                    }
                    const uint32_t positives = inside(positives_end_[i]) & ~inside(positives_begin_[i]);
                    uint32_t lanes = ((left[0] & positives) | (left[1] & ~positives)) & inside(n_) & ~inside(from);
                    if (i >= first && i < first + WIDTH) lanes &= ~(1u << (i - first));
                    if (small_classes_) lanes &= ~positives & (alone() ? ~inside(i + 1) : ~0u);
                    for (; lanes != 0; lanes &= lanes - 1) {
                        const int bit = __builtin_ctz(lanes);
                        const int64_t j = first + bit;
                        weigh((positives >> bit & 1) != 0 ? 0 : 2, i, j, v[bit], small_classes_ || j >= behind);
                    }
                }
            }
        }
    }

    // The filter's bound on errors, with room for computing it and what it is added to in float32.
    float float_relative() const { return static_cast<float>(filter_.relative * 1.001 + 0x1p-20); }
    float float_absolute() const { return static_cast<float>(filter_.absolute * 1.001); }

    const ChunkPair& pair_;
    const Filter<T, Int16Panel>& filter_;
    const Rows& rows_;
    const unsigned wanted_;
    const int64_t n_, anchors_;
    const int64_t *positives_begin_, *positives_end_;
    // Of positives, or null, and of all rows; which one a side takes, null where panels decide alone.
    std::unique_ptr<Bytes> coarse_[2];
    const Bytes* of_side_[2] = {nullptr, nullptr};
    bool small_classes_ = false;  // too small to fill tiles
    Buffer<int16_t> least_[2];    // [rows] edges of the limits
};
#endif

}  // namespace MINERLIB_ISA
}  // namespace minerlib
