// chunk_extremes: the extremes of two chunks of a data set, improved by each other's rows; or of one by its own.
//
// rows [n, D] of float32 or float64: those of one chunk, then those of the other; records [n], updated in place.
// Decided on canonical float64 selection values, ties by the lowest global row number; filtered by tiles, each of
// which serves both sides: v(i, j) = h_j - a_i . a_j for row i, v + h_i - h_j for row j. With limits, a row j with
// value(i, j) > limit(i) is no candidate of row i: EXT's outlier rule.
// What is recorded bounds what is looked for, so most pairs of chunks improve few records.
// Memory: the packed rows and one cache line a wanted extremum, row and thread. Limits: n < 2^31.
// Source: SPEC section 9, EXT section II.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <numeric>
#include <vector>

#include "candidates.h"
#include "chunk_rows.h"
#include "coarse_sweep.h"
#include "families.h"
#include "first_bounds.h"
#include "twins.h"

namespace minerlib {
namespace MINERLIB_ISA {

template <class T, class Panel> class ChunkExtremes : ChunkRows {
public:
    ChunkExtremes(const ChunkPair& pair, const Problem& problem, unsigned wanted)
        : ChunkRows(pair), wanted_(wanted), canonical_(problem),
          rows_(order_ != nullptr ? n_ : 0, problem.anchors.dims),
          filter_(problem, pair.metric == Metric::cosine ? Space::cosine : Space::squared, order_, order_,
                  rows_.keeper()) {
        if (order_ == nullptr) return;
        find_positives();
        if constexpr (Bytes::EXISTS) {
            if (!filter_.usable) return;
            coarse_ = std::make_unique<Bytes>(pair_, filter_, rows_, wanted_, anchors_, positives_begin_.get(),
                                              positives_end_.get());
            if (!coarse_->usable()) coarse_.reset();
        }
        if (filter_.usable && pair_.split == 0 && pair_.limits == nullptr && n_ >= LEAST_SAMPLED && fresh(wanted_)) {
            first_ = std::make_unique<FirstBounds<T, Panel>>(filter_, wanted_, positives_begin_.get(),
                                                             positives_end_.get(), pair_.threads);
        }
    }

    void run() {
        if (!filter_.usable) {
            each(16, n_, [&](int64_t i) { whole_row(i, wanted_); });
            return;
        }
        const int least = std::max(pair_.threads * 4, first_ == nullptr ? BLOCKS : FEW_BLOCKS);
        const int64_t sharing = std::max<int64_t>(1, anchors_ / (Panel::ROWS * least));
        const int64_t rows = std::min(ROWS, Panel::ROWS * sharing), blocks = ceil_div(anchors_, rows);
        const int threads = static_cast<int>(std::min<int64_t>(pair_.threads, blocks));
        std::vector<std::unique_ptr<Work>> works(static_cast<size_t>(threads));
        std::atomic<int64_t> next{0};  // of a chunk alone, the first blocks have the longest rows
        parallel_for(threads, threads, [&](int64_t thread) {
            works[static_cast<size_t>(thread)] = std::make_unique<Work>();
            Work& work = *works[static_cast<size_t>(thread)];
            start(work);
            for (int64_t b = next++; b < blocks; b = next++) {
                sweep_block(b * rows, std::min(rows, anchors_ - b * rows), work);
            }
        });
        each(64, n_, [&](int64_t i) {
            for (size_t other = 1; other < works.size(); ++other) merge(i, *works[0], *works[other]);
            finish(i, *works[0]);
        });
    }

private:
    using Bytes = CoarseSweep<T, Panel>;

    static constexpr int64_t LEAST_SAMPLED = 1024;  // rows of which a sample is worth while
    static constexpr int PAUSE = 2;          // blocks of anchors that do without coarse tiles, where they spare little
    static constexpr int64_t CHUNK = GROUP;  // columns taken at a time
    // Anchors that share a pass over the columns: many, as panels of columns come from memory; their values of one
    // piece still fit a second-level cache.
    static constexpr int64_t ROWS = 192 / Panel::ROWS * Panel::ROWS;
    // At least so many; more where the first one of each thread is slow.
    static constexpr int FEW_BLOCKS = 32, BLOCKS = 84;

    // What one thread works with: lists of all rows, by their positions, and the thresholds of a piece's columns.
    struct Work {
        Buffer<Shortlist> lists[4];
        Buffer<float> bounds[4];  // those of the lists, side by side
        Buffer<float> edges[4], limits, positive_values;
        Scratch scratch;
        typename Bytes::State coarse;
        int pause = 0;  // how many blocks of anchors do without coarse tiles

        Shortlist* at(int e, int64_t i) const { return lists[e].get() == nullptr ? nullptr : lists[e].get() + i; }
    };

    // The values of the row at position `anchor` and the columns column + begin .. column + end - 1.
    struct Piece {
        int64_t anchor;
        double half_norm, largest_half_norm;
        const float* values;
        int64_t column, begin, end;
    };

    static double sign(int e) { return e % 2 == 0 ? 1.0 : -1.0; }

    template <class Body> void each(int64_t rows, int64_t count, Body body) {
        parallel_for(pair_.threads, ceil_div(count, rows), [&](int64_t b) {
            for (int64_t i = b * rows; i < std::min(count, (b + 1) * rows); ++i) body(i);
        });
    }

    // The filter's value, without the row's own half norm, that corresponds to a selection value.
    double filter_value(double selection, double half_norm) const { return selection / filter_.scale_out - half_norm; }

    // What computing it in float64 from a half norm rounded to float32 may be off by.
    double slack(double selection, double half_norm) const {
        return 0x1p-23 * half_norm + 0x1p-50 * std::abs(selection / filter_.scale_out);
    }

    void start(Work& work) const {
        if constexpr (Bytes::EXISTS) {
            if (first_ == nullptr && fresh(wanted_)) work.pause = 1;
            if (coarse_ != nullptr) coarse_->start(work.coarse);
            for (int e = 0; e < 4 && coarse_ != nullptr; ++e) {
                work.bounds[e].resize(n_);  // what no row passes, where the extremum is not wanted
                std::fill_n(work.bounds[e].get(), n_, -std::numeric_limits<float>::infinity());
            }
        }
        for (int e = 0; e < 4; ++e) {  // what no column passes, where the extremum is not wanted
            work.edges[e].resize(CHUNK + WIDTH);
            std::fill_n(work.edges[e].get(), CHUNK + WIDTH, std::numeric_limits<float>::quiet_NaN());
        }
        work.limits.resize(CHUNK + WIDTH);
        for (int e = 0; e < 4; ++e) {
            if ((wanted_ >> e & 1) == 0) continue;
            work.lists[e].resize(n_);
            work.bounds[e].resize(n_);
            for (int64_t i = 0; i < n_; ++i) {
                restart(e, i, work.lists[e][i]);
                set_bound(e, i, work);
            }
        }
    }

    // To be called whenever a list's bound may have changed.
    void set_bound(int e, int64_t i, Work& work) const {
        const double bound = work.lists[e][i].bound();
        work.bounds[e][i] = static_cast<float>(bound);
        if constexpr (Bytes::EXISTS) {
            if (coarse_ != nullptr) coarse_->mark(e, i, bound, work.coarse);
        }
    }

    // A list that takes only what may improve the record.
    void restart(int e, int64_t i, Shortlist& list) const {
        const Record& record = pair_.records[row(i)];
        if (record.id[e] < 0) {
            list.restart(first_ != nullptr ? first_->bound(e, i) : std::numeric_limits<double>::infinity());
            return;
        }
        const double value = record.value[e], h = filter_.half_norm(i);
        list.restart(sign(e) * filter_value(value, h) + slack(value, h));
    }

    void sweep_block(int64_t first, int64_t count, Work& work) const {
        const bool alone = pair_.split == 0;
        const int64_t from = alone ? first : pair_.split, behind = alone ? first + count : pair_.split;
        if constexpr (Bytes::EXISTS) {
            if (coarse_ != nullptr && --work.pause < 0) {
                const auto offer_both = [&](int side, int64_t i, int64_t j, float value, bool shared) {
                    weigh(side, i, j, value, shared, work);
                };
                const auto prefetch = [&](int side, int64_t i, int64_t j) {
                    for (int e = side; e < side + 2; ++e) {
                        __builtin_prefetch(work.lists[e].get() + i);
                        __builtin_prefetch(work.lists[e].get() + j);
                    }
                };
                if (!coarse_->sweep(first, count, from, behind, work.bounds, work.coarse, prefetch, offer_both)) {
                    work.pause = PAUSE;
                }
                return;
            }
        }
        double largest = 0;
        const auto start = [&](int64_t, double half_norm) { largest = std::max(largest, half_norm); };
        const auto consume = [&](int64_t r, int64_t column, int64_t columns, float* values) {
            if (r == 0) set_edges(column, columns, largest, work);
            const int64_t begin = std::clamp<int64_t>(from - column, 0, columns);
            take({first + r, work.scratch.half_norms[r], largest, values, column, begin, columns}, behind, values,
                 work);
        };
        sweep(filter_, first, count, from / Panel::COLUMNS * Panel::COLUMNS, CHUNK, work.scratch, start, consume);
    }

    // Offers column j, whose value is v, to row i's lists of one side, and the row to the column's.
    void weigh(int side, int64_t i, int64_t j, float value, bool shared, Work& work) const {
        const double own = filter_.half_norm(i), h = filter_.half_norm(j), error = filter_.error(own, h);
        const double v = static_cast<double>(value), mirrored = v + own - h;
        for (int e = side; e < side + 2; ++e) {
            if ((wanted_ >> e & 1) == 0) continue;
            if (sign(e) * v - error <= static_cast<double>(work.bounds[e][i])) offer(e, i, j, v, own, error, work);
            if (shared && sign(e) * mirrored - error <= static_cast<double>(work.bounds[e][j])) {
                offer(e, j, i, mirrored, h, error, work);
            }
        }
    }

    // Splits the values of a row into those of positives and of negatives.
    void take(const Piece& piece, int64_t behind, float* values, Work& work) const {
        const float hidden = std::numeric_limits<float>::quiet_NaN();
        const int64_t own = piece.anchor - piece.column;
        if (own >= 0 && own < piece.end) values[own] = hidden;
        if (order_ == nullptr) {
            work.positive_values.resize(CHUNK + WIDTH);
            std::fill_n(work.positive_values.get(), CHUNK + WIDTH, hidden);
            for (int64_t c = piece.begin; c < piece.end; ++c) {
                if (same_class(piece.anchor, piece.column + c)) std::swap(work.positive_values[c], values[c]);
            }
            Piece positives = piece;
            positives.values = work.positive_values.get();
            scan(0, positives, behind, work);
            scan(2, piece, behind, work);
            return;
        }
        const auto inside = [&](int64_t j) { return std::clamp<int64_t>(j - piece.column, piece.begin, piece.end); };
        const int64_t begin = inside(positives_begin_[piece.anchor]), end = inside(positives_end_[piece.anchor]);
        scan(2, part(piece, piece.begin, begin), behind, work);
        scan(0, part(piece, begin, end), behind, work);
        scan(2, part(piece, end, piece.end), behind, work);
    }

    static Piece part(const Piece& piece, int64_t begin, int64_t end) {
        Piece out = piece;
        out.begin = begin;
        out.end = end;
        return out;
    }

    // The thresholds of a piece's columns for v + h_i, over all rows with H_i <= largest.
    void set_edges(int64_t column, int64_t columns, double largest, Work& work) const {
        for (int e = 0; e < 4; ++e) {
            if ((wanted_ >> e & 1) == 0) continue;
            const float* bounds = work.bounds[e].get() + column;
            float* edges = work.edges[e].get();
            for (int64_t c = 0; c < columns; ++c) edges[c] = edge(e, bounds[c], column + c, largest);
        }
        if (pair_.limits == nullptr) return;
        for (int64_t c = 0; c < columns; ++c) {
            const double h = filter_.half_norm(column + c), most = limit(column + c);
            work.limits[c] = round_up(filter_value(most, h) + h + slack(most, h) + filter_.error(largest, h));
        }
    }

    // Rounded outwards by more than float32 may round inwards; an edge at infinity stays there.
    float edge(int e, float bound, int64_t column, double largest) const {
        const double h = filter_.half_norm(column), reach = static_cast<double>(bound) + filter_.error(largest, h);
        const float edge = static_cast<float>(e % 2 == 0 ? h + reach : h - reach);
        const float outwards = std::abs(edge) * 0x1p-22f + std::numeric_limits<float>::min();
        return std::abs(bound) > std::numeric_limits<float>::max() ? edge
               : e % 2 == 0                                        ? edge + outwards
                                                                   : edge - outwards;
    }

    // Offers the columns of a piece to the row's lists of one side, and the row to theirs from `behind` on.
    void scan(int side, const Piece& piece, int64_t behind, Work& work) const {
        if (piece.begin >= piece.end || (wanted_ >> side & 3) == 0) return;
        const int64_t alone = std::clamp(behind - piece.column, piece.begin, piece.end);
        scan_wanted<false>(side, part(piece, piece.begin, alone), work);
        scan_wanted<true>(side, part(piece, alone, piece.end), work);
    }

    template <bool SHARED> void scan_wanted(int side, const Piece& piece, Work& work) const {
        const bool near = (wanted_ >> side & 1) != 0, far = (wanted_ >> (side + 1) & 1) != 0;
        if (pair_.limits != nullptr && far) {
            scan_part<true, true, true, SHARED>(side, piece, work);
        } else if (near && far) {
            scan_part<true, true, false, SHARED>(side, piece, work);
        } else if (near) {
            scan_part<true, false, false, SHARED>(side, piece, work);
        } else {
            scan_part<false, true, false, SHARED>(side, piece, work);
        }
    }

    template <bool NEAR, bool FAR, bool LIMITED, bool SHARED>
    void scan_part(int side, const Piece& piece, Work& work) const {
        Shortlist *nearest = work.at(side, piece.anchor), *farthest = work.at(side + 1, piece.anchor);
        const FloatV h = splat(static_cast<float>(piece.half_norm));
        const float *near_edges = work.edges[side].get(), *far_edges = work.edges[side + 1].get();
        const float* limits = work.limits.get();
        for (int64_t c = piece.begin, last = 0; c < piece.end; c = last) {
            last = std::min(piece.end, c + GROUP - (piece.column + c) % GROUP);
            const double error = filter_.error(piece.half_norm, filter_.group_half_norm((piece.column + c) / GROUP));
            Edges edges(nearest, farthest, error);
            FloatV most = {};
            if (LIMITED) {
                const double own = limit(piece.anchor);
                most = splat(round_up(filter_value(own, piece.half_norm) + slack(own, piece.half_norm) + error));
            }
            for (; c < last; c += WIDTH) {
                const FloatV v = load(piece.values + c), mirrored = v + h;
                Truth near = {}, far = {}, column_near = {}, column_far = {};
                if (NEAR) near = at_most(v, edges.near);
                if (FAR) far = at_least(v, edges.far);
                if (LIMITED) far &= at_most(v, most);
                if (NEAR && SHARED) column_near = at_most(mirrored, load(near_edges + c));
                if (FAR && SHARED) column_far = at_least(mirrored, load(far_edges + c));
                if (LIMITED && SHARED) column_far &= at_most(mirrored, load(limits + c));
                if (__builtin_expect(!any(near | far | column_near | column_far), 1)) continue;
                const uint32_t here = last - c < WIDTH ? (1u << (last - c)) - 1 : ~0u;
                offer_columns(side, piece, c, lane_mask(near) & here, lane_mask(far) & here, work);
                if (((lane_mask(near) | lane_mask(far)) & here) != 0) edges.renew();
                if (SHARED) {
                    offer_row(side, piece, c, lane_mask(column_near) & here, lane_mask(column_far) & here, work);
                }
            }
        }
    }

    // A bit for every lane.
#if MINERLIB_ISA_LEVEL >= 2
    static uint32_t lane_mask(Truth lanes) { return lanes; }
#elif MINERLIB_ISA_LEVEL == 1
    static uint32_t lane_mask(Truth lanes) {
        return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(lanes)));
    }
#else
    static uint32_t lane_mask(Truth lanes) { return bits(lanes); }
#endif

    void offer_columns(int side, const Piece& piece, int64_t c, uint32_t near, uint32_t far, Work& work) const {
        for (uint32_t hits = near | far; hits != 0; hits &= hits - 1) {
            const int bit = __builtin_ctz(hits);
            const int64_t j = piece.column + c + bit;
            const double v = static_cast<double>(piece.values[c + bit]);
            const double error = filter_.error(piece.half_norm, filter_.half_norm(j));
            if (near >> bit & 1) offer(side, piece.anchor, j, v, piece.half_norm, error, work);
            if (far >> bit & 1) offer(side + 1, piece.anchor, j, v, piece.half_norm, error, work);
        }
    }

    void offer_row(int side, const Piece& piece, int64_t c, uint32_t near, uint32_t far, Work& work) const {
        for (uint32_t hits = near | far; hits != 0; hits &= hits - 1) {
            const int bit = __builtin_ctz(hits);
            const int64_t j = piece.column + c + bit;
            const double h = filter_.half_norm(j), error = filter_.error(piece.half_norm, h);
            const double mirrored = static_cast<double>(piece.values[c + bit]) + piece.half_norm - h;
            if (near >> bit & 1) offer(side, j, piece.anchor, mirrored, h, error, work);
            if (far >> bit & 1) offer(side + 1, j, piece.anchor, mirrored, h, error, work);
            for (int e = side; e < side + 2; ++e) {
                if (work.at(e, j) == nullptr) continue;
                work.edges[e][c + bit] = edge(e, work.bounds[e][j], j, piece.largest_half_norm);
            }
        }
    }

    // Offers row j, whose value to row i the filter puts within v +- error, to a list of row i.
    void offer(int e, int64_t i, int64_t j, double v, double half_norm, double error, Work& work) const {
        Shortlist& list = work.lists[e][i];
        if (e % 2 == 1 && pair_.limits != nullptr) {  // beyond the limit it must not bound what is looked for
            const double most = limit(i), edge = filter_value(most, half_norm), off = slack(most, half_norm);
            if (v - error > edge + off) return;
            if (v + error >= edge - off) {
                const double value = canonical_.selection(row(i), row(j));
                if (value > most) return;
                v = filter_value(value, half_norm);
                error = slack(value, half_norm);
            }
        }
        const double before = list.bound();
        if (list.full()) collapse(e, i, list);
        list.offer(sign(e) * v, error, j);
        if (list.bound() != before) set_bound(e, i, work);
    }

    // Decides among the columns of a full list, so that only the best of them stays. Where all are equally good
    // there may be many more: the whole row is decided in float64 then.
    void collapse(int e, int64_t i, Shortlist& list) const {
        list.drop_beaten();
        if (!list.full()) return;
        Record best = {};
        best.id[e] = -1;
        int64_t kept = -1;
        bool equal = true;
        for (int c = 0; c < list.count(); ++c) {
            const double value = canonical_.selection(row(i), row(list.column(c)));
            equal = equal && (c == 0 || value == best.value[e]);
            if (improve(best, e, value, id(row(list.column(c))))) kept = list.column(c);
        }
        if (equal) {
            list.overflow();
            return;
        }
        const double h = filter_.half_norm(i), v = filter_value(best.value[e], h), off = slack(best.value[e], h);
        list.restart(std::min(list.bound(), sign(e) * v + off));
        list.offer(sign(e) * v, off, kept);
    }

    static bool improve(Record& record, int e, double value, int64_t id) {
        const double old = record.value[e];
        const bool nearer = e % 2 == 0 ? value < old : value > old;
        if (record.id[e] >= 0 && !nearer && !(value == old && id < record.id[e])) return false;
        record.value[e] = value;
        record.id[e] = id;
        return true;
    }

    static void merge(int64_t i, Work& into, Work& from) {
        for (int e = 0; e < 4; ++e) {
            if (Shortlist* list = into.at(e, i)) list->merge(*from.at(e, i));
        }
    }

    void finish(int64_t i, const Work& work) const {
        Record& record = pair_.records[row(i)];
        unsigned overflowed = 0;
        for (int e = 0; e < 4; ++e) {
            Shortlist* list = work.at(e, i);
            if (list == nullptr) continue;
            if (list->overflowed()) overflowed |= 1u << e;
            list->drop_beaten();
            if (pair_.rows_alone && list->count() == 1) {
                record.id[e] = id(row(list->column(0)));
                continue;
            }
            for (int c = 0; c < list->count(); ++c) offer_exactly(record, e, i, list->column(c));
        }
        if (overflowed != 0) whole_row(i, overflowed);
    }

    void offer_exactly(Record& record, int e, int64_t i, int64_t j) const {
        const double value = canonical_.selection(row(i), row(j));
        if (pair_.limits != nullptr && value > limit(i)) return;
        improve(record, e, value, id(row(j)));
    }

    // Decides the given extrema of one row from canonical values alone.
    void whole_row(int64_t i, unsigned which) const {
        constexpr int64_t TOGETHER = 64;
        const int64_t own = row(i);
        const bool behind = pair_.split > 0 && own < pair_.split;
        const int64_t first = behind ? pair_.split : 0, last = pair_.split == 0 || behind ? n_ : pair_.split;
        const bool negatives = (which & 12u) != 0;
        if (negatives) std::call_once(twins_found_, [&] { twins_.find(pair_.rows); });
        Buffer<double> all(last);
        Span best[2];  // of positives and of negatives
        for (int64_t from = first; from < last; from += TOGETHER) {
            const int64_t count = std::min(TOGETHER, last - from);
            double* values = all.get() + from;
            if (negatives && twins_.repeat(from, count, first)) {
                for (int64_t k = 0; k < count; ++k) values[k] = all[twins_.first(from + k)];
            } else if (negatives) {
                canonical_.row(own, from, count, values);
            }
            for (int64_t j = from; j < from + count; ++j) {
                const bool same = same_class(own, j);
                if (j == own || !(negatives || same)) continue;
                const double value = negatives ? values[j - from] : canonical_.selection(own, j);
                if (pair_.limits != nullptr && value > limit(i)) continue;
                Span& span = best[same ? 0 : 1];
                if (value < span.low) span.low = value, span.lowest = j;
                if (value > span.high) span.high = value, span.highest = j;
            }
        }
        for (int e = 0; e < 4; ++e) {
            const Span& span = best[e / 2];
            if ((which >> e & 1) == 0 || span.lowest < 0) continue;
            const bool near = e % 2 == 0;
            improve(pair_.records[own], e, near ? span.low : span.high, id(near ? span.lowest : span.highest));
        }
    }

    // The least and the greatest of values, and the first rows that have them.
    struct Span {
        double low = std::numeric_limits<double>::infinity(), high = -low;
        int64_t lowest = -1, highest = -1;
    };

    const unsigned wanted_;
    const Canonical<T> canonical_;
    WholeRows<T, Panel> rows_;
    const Filter<T, Panel> filter_;
    std::unique_ptr<Bytes> coarse_;                 // null: panels decide alone
    std::unique_ptr<FirstBounds<T, Panel>> first_;  // null: there are none
    mutable std::once_flag twins_found_;
    mutable Twins twins_;  // once a whole row has been decided
};

void chunk_extremes(const ChunkPair& pair, unsigned wanted) {
    Problem problem = {};
    problem.anchors = problem.columns = pair.rows;
    problem.own = true;
    problem.metric = pair.metric;
    problem.exact = true;
    problem.threads = pair.threads;
    if (pair.rows.wide) {
        ChunkExtremes<double, FastPanel>(pair, problem, wanted).run();
    } else {
        ChunkExtremes<float, FastPanel>(pair, problem, wanted).run();
    }
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
