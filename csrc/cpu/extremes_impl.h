// extremes: per anchor the nearest and farthest positive and the nearest and farthest negative.
//
// anchors [N, D], columns [M, D] of float32 or float64, labels -> out [4, N] int64 column indices, -1 for none.
// Decided on canonical float64 selection values, ties by the lowest index; certified by float32 tiles first.
// Mined against themselves, rows share their tiles: v(i, j) = h_j - a_i . a_j serves anchor i, and
// v(i, j) + h_i - h_j serves anchor j, so that only the upper triangle is multiplied.
// Memory: one cache line a wanted extremum, anchor and thread where tiles are shared, else O(1) a row in flight.
// Limits: M < 2^31. Source: SPEC section 4, EXT eq. 3 and 9-12.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>
#include <vector>

#include "candidates.h"
#include "coarse.h"
#include "families.h"
#include "positives.h"

namespace minerlib {
namespace MINERLIB_ISA {

// Extremum e of SPEC's four: nearest (even) or farthest (odd) of the positives (0, 1) or the negatives (2, 3).
constexpr int POSITIVE_SIDE = 0, NEGATIVE_SIDE = 2;

// The lists of `rows` anchors, those of one extremum side by side; null for what is not wanted.
class ListTable {
public:
    void reset(unsigned wanted, int64_t rows) {
        int count = 0;
        for (int e = 0; e < 4; ++e) count += static_cast<int>(wanted >> e & 1);
        lists_.resize(count * rows);
        int64_t next = 0;
        for (int e = 0; e < 4; ++e) of_[e] = (wanted >> e & 1) ? lists_.get() + rows * next++ : nullptr;
        for (int64_t i = 0; i < count * rows; ++i) lists_[i].reset();
    }

    Shortlist* at(int e, int64_t row) const { return of_[e] == nullptr ? nullptr : of_[e] + row; }

private:
    Buffer<Shortlist> lists_;
    Shortlist* of_[4];
};

template <class T, class Panel> class Extremes {
public:
    // Single-label columns are packed class by class, so that an anchor's positives are a range of columns; the
    // columns' order is also that of the anchors where they are the columns. again [count], if given: the only
    // anchors to decide, by their positions in that order.
    Extremes(const Problem& problem, unsigned wanted, int64_t* out, const std::vector<int64_t>* again = nullptr)
        : problem_(problem), wanted_(wanted), m_(problem.columns.rows), out_(out),
          order_(problem.labels.words == 0 ? problem.labels.members : nullptr), again_(again),
          n_(again != nullptr ? static_cast<int64_t>(again->size()) : problem.anchors.rows), anchors_(list_anchors()),
          canonical_(problem),
          filter_(problem, problem.metric == Metric::cosine ? Space::cosine : Space::squared, order_, anchors_.data()) {
    }

    // Returns the positions of the anchors that float32 must look at, since this pass left too many candidates.
    std::vector<int64_t> run() {
        if (!filter_.usable) {
            each_block(16, [&](int64_t first, int64_t count) {
                Buffer<double> row(m_);
                Positives positives(problem_);
                for (int64_t i = first; i < first + count; ++i) whole_row(anchor(i), wanted_, positives, row.get());
            });
        } else if (problem_.own && n_ <= LARGEST_SHARED && again_ == nullptr) {
            run_shared();
        } else {
            each_block(block_rows<Panel>(n_, problem_.threads, CHUNK), [&](int64_t first, int64_t count) {
                Work work(problem_);
                work.table.reset(wanted_, count);
                work.shared = false;
                sweep_block(first, count, work);
                for (int64_t row = 0; row < count; ++row) finish(first + row, row, work.table, work);
            });
        }
        return std::move(undecided_);
    }

private:
    static constexpr bool LAST = std::is_same_v<Panel, Float32Panel>;  // beyond this pass only float64 can decide

    static constexpr int64_t CHUNK = Panel::CHUNK;
    static constexpr int64_t LARGEST_SHARED = 1 << 17;  // beyond, the lists of all anchors would weigh too much

    // What one thread works with.
    struct Work {
        explicit Work(const Problem& problem) : positives(problem) {
            for (Buffer<float>& edge : edges) edge.resize(CHUNK + WIDTH);
        }
        bool shared = true;
        ListTable table;  // of the block's anchors, or of all where tiles are shared
        Positives positives;
        Scratch scratch;
        Buffer<float> edges[4];         // thresholds of the columns' own lists, shifted by h_j
        Buffer<float> positive_values;  // multi-label: the positives' values, NaN for other columns
        Buffer<double> row;
    };

    // A piece of the values of one anchor: those of columns column + begin .. column + end - 1.
    struct Piece {
        int64_t anchor, row;  // the anchor, and its row in the table
        double half_norm, largest_half_norm;
        const float* values;
        int64_t column, begin, end;
    };

    // Anchors are counted in the order of this pass: i-th anchor, its position among the columns (where it is one),
    // and its index in the problem.
    int64_t position(int64_t i) const { return again_ != nullptr ? (*again_)[static_cast<size_t>(i)] : i; }
    int64_t anchor(int64_t i) const { return problem_.own && order_ != nullptr ? order_[position(i)] : position(i); }

    std::vector<int64_t> list_anchors() const {
        std::vector<int64_t> anchors(static_cast<size_t>(n_));
        for (int64_t i = 0; i < n_; ++i) anchors[static_cast<size_t>(i)] = anchor(i);
        return anchors;
    }

    template <class Body> void each_block(int64_t rows, Body body) {
        parallel_for(problem_.threads, ceil_div(n_, rows),
                     [&](int64_t b) { body(b * rows, std::min(rows, n_ - b * rows)); });
    }

    void run_shared() {
        const int64_t rows = block_rows<Panel>(n_, problem_.threads, CHUNK), blocks = ceil_div(n_, rows);
        const int threads = static_cast<int>(std::min<int64_t>(problem_.threads, blocks));
        std::vector<std::unique_ptr<Work>> works(static_cast<size_t>(threads));
        std::atomic<int64_t> next{0};  // the first blocks have the longest rows
        parallel_for(threads, threads, [&](int64_t thread) {
            works[static_cast<size_t>(thread)] = std::make_unique<Work>(problem_);
            Work& work = *works[static_cast<size_t>(thread)];
            work.table.reset(wanted_, n_);
            for (int64_t b = next++; b < blocks; b = next++) sweep_block(b * rows, std::min(rows, n_ - b * rows), work);
        });
        each_block(64, [&](int64_t first, int64_t count) {
            Work work(problem_);
            for (int64_t i = first; i < first + count; ++i) {
                for (size_t other = 1; other < works.size(); ++other) merge(i, works[0]->table, works[other]->table);
                finish(i, i, works[0]->table, work);
            }
        });
    }

    static void merge(int64_t anchor, const ListTable& into, const ListTable& from) {
        for (int e = 0; e < 4; ++e) {
            if (Shortlist* list = into.at(e, anchor)) list->merge(*from.at(e, anchor));
        }
    }

    // Offers the anchors first .. first + count - 1 all columns; where tiles are shared, all columns from
    // `first` on, and themselves to those behind the block.
    void sweep_block(int64_t first, int64_t count, Work& work) {
        const int64_t from = work.shared ? first / Panel::COLUMNS * Panel::COLUMNS : 0;
        const int64_t behind = work.shared ? first + count : m_;
        double largest = 0;
        const auto start = [&](int64_t, double half_norm) { largest = std::max(largest, half_norm); };
        const auto consume = [&](int64_t row, int64_t column, int64_t columns, float* values) {
            if (row == 0 && column + columns > behind) set_edges(column, columns, largest, work);
            const int64_t begin = work.shared ? std::clamp<int64_t>(first - column, 0, columns) : 0;
            const Piece piece = {position(first + row),
                                 work.shared ? first + row : row,
                                 work.scratch.half_norms[row],
                                 largest,
                                 values,
                                 column,
                                 begin,
                                 columns};
            take(piece, behind, values, work);
        };
        sweep(filter_, first, count, from, CHUNK, work.scratch, start, consume);
    }

    // Splits the values of an anchor into those of positives and of negatives.
    void take(const Piece& piece, int64_t behind, float* values, Work& work) const {
        const float hidden = std::numeric_limits<float>::quiet_NaN();
        const int64_t own = piece.anchor - piece.column;
        if (problem_.own && own >= 0 && own < piece.end) values[own] = hidden;
        if (order_ == nullptr) {
            split_by_bits(piece, values, work);
            Piece positives = piece;
            positives.values = work.positive_values.get();
            scan(POSITIVE_SIDE, positives, behind, work);
            scan(NEGATIVE_SIDE, piece, behind, work);
            return;
        }
        const int64_t c = problem_.labels.anchor_class[problem_.own ? order_[piece.anchor] : piece.anchor];
        const auto inside = [&](int64_t j) { return std::clamp(j - piece.column, piece.begin, piece.end); };
        const int64_t begin = c < 0 ? piece.begin : inside(problem_.labels.starts[c]);
        const int64_t end = c < 0 ? piece.begin : inside(problem_.labels.starts[c + 1]);
        scan(NEGATIVE_SIDE, part(piece, piece.begin, begin), behind, work);
        scan(POSITIVE_SIDE, part(piece, begin, end), behind, work);
        scan(NEGATIVE_SIDE, part(piece, end, piece.end), behind, work);
    }

    static Piece part(const Piece& piece, int64_t begin, int64_t end) {
        Piece out = piece;
        out.begin = begin;
        out.end = end;
        return out;
    }

    // Multi-label: moves the positives' values to an array of their own.
    void split_by_bits(const Piece& piece, float* values, Work& work) const {
        const float hidden = std::numeric_limits<float>::quiet_NaN();
        work.positive_values.resize(CHUNK + WIDTH);
        std::fill_n(work.positive_values.get(), CHUNK + WIDTH, hidden);
        work.positives.select(piece.anchor);
        work.positives.visit(piece.column, piece.end, [&](int64_t p) {
            std::swap(work.positive_values[p - piece.column], values[p - piece.column]);
        });
    }

    // Offers the columns of a piece to the anchor's lists of one side, and the anchor to theirs from `behind` on.
    void scan(int side, const Piece& piece, int64_t behind, Work& work) const {
        if (piece.begin >= piece.end) return;
        Shortlist *nearest = work.table.at(side, piece.row), *farthest = work.table.at(side + 1, piece.row);
        const int64_t alone = std::clamp(behind - piece.column, piece.begin, piece.end);
        if (nearest == nullptr && farthest == nullptr) return;
        scan_extremes(filter_, piece.half_norm, piece.values + piece.begin, piece.column + piece.begin,
                      alone - piece.begin, nearest, farthest);
        if (alone == piece.end) return;  // nothing is shared: the anchor need not be a column at all
        if (farthest == nullptr) {
            scan_shared<true, false>(side, part(piece, alone, piece.end), work);
        } else if (nearest == nullptr) {
            scan_shared<false, true>(side, part(piece, alone, piece.end), work);
        } else {
            scan_shared<true, true>(side, part(piece, alone, piece.end), work);
        }
    }

    void set_edges(int64_t column, int64_t columns, double largest, Work& work) const {
        for (int side : {POSITIVE_SIDE, NEGATIVE_SIDE}) {
            if ((wanted_ >> side & 3) == 0) continue;
            for (int64_t c = 0; c < columns; ++c) set_edge(side, column, c, largest, work);
        }
    }

    // The thresholds of one column for v + h_i, over all anchors with H_i <= largest.
    void set_edge(int side, int64_t column, int64_t c, double largest, Work& work) const {
        const double h = filter_.half_norm(column + c), slack = filter_.error(largest, h);
        if (const Shortlist* list = work.table.at(side, column + c))
            work.edges[side][c] = round_up(list->bound() + h + slack);
        if (const Shortlist* list = work.table.at(side + 1, column + c)) {
            work.edges[side + 1][c] = round_down(h - list->bound() - slack);
        }
    }

    template <bool NEAR, bool FAR> void scan_shared(int side, const Piece& piece, Work& work) const {
        Shortlist* nearest = NEAR ? work.table.at(side, piece.row) : nullptr;
        Shortlist* farthest = FAR ? work.table.at(side + 1, piece.row) : nullptr;
        const FloatV h = splat(static_cast<float>(filter_.half_norm(piece.anchor)));
        const float *near_edges = work.edges[side].get(), *far_edges = work.edges[side + 1].get();
        for (int64_t c = piece.begin, last = 0; c < piece.end; c = last) {
            last = std::min(piece.end, c + GROUP - (piece.column + c) % GROUP);
            Edges edges(nearest, farthest,
                        filter_.error(piece.half_norm, filter_.group_half_norm((piece.column + c) / GROUP)));
            for (; c < last; c += WIDTH) {
                const FloatV v = load(piece.values + c), mirrored = v + h;
                uint32_t near = 0, far = 0, column_near = 0, column_far = 0;
                if (NEAR) near = mask_le(v, edges.near), column_near = mask_le(mirrored, load(near_edges + c));
                if (FAR) far = mask_ge(v, edges.far), column_far = mask_ge(mirrored, load(far_edges + c));
                if (__builtin_expect((near | far | column_near | column_far) == 0, 1)) continue;
                const uint32_t here = last - c < WIDTH ? (1u << (last - c)) - 1 : ~0u;
                if (((near | far) & here) != 0) {
                    offer_hits(filter_, piece.half_norm, piece.values + c, piece.column + c, near & here, far & here,
                               nearest, farthest);
                    edges.renew();
                }
                offer_anchor(side, piece, c, column_near & here, column_far & here, work);
            }
        }
    }

    void offer_anchor(int side, const Piece& piece, int64_t c, uint32_t near_hits, uint32_t far_hits,
                      Work& work) const {
        for (uint32_t hits = near_hits | far_hits; hits != 0; hits &= hits - 1) {
            const int bit = __builtin_ctz(hits);
            const int64_t j = piece.column + c + bit;
            const double h = filter_.half_norm(j), error = filter_.error(piece.half_norm, h);
            const double mirrored = static_cast<double>(piece.values[c + bit]) + filter_.half_norm(piece.anchor) - h;
            if (near_hits >> bit & 1) work.table.at(side, j)->offer(mirrored, error, piece.anchor);
            if (far_hits >> bit & 1) work.table.at(side + 1, j)->offer(-mirrored, error, piece.anchor);
            set_edge(side, piece.column, c + bit, piece.largest_half_norm, work);
        }
    }

    // Decides the lists of the i-th anchor.
    void finish(int64_t i, int64_t row, const ListTable& table, Work& work) {
        unsigned overflowed = 0;
        bool hopeless = LAST;
        for (int e = 0; e < 4; ++e) {
            Shortlist* list = table.at(e, row);
            if (list == nullptr) continue;
            if (list->overflowed()) {
                overflowed |= 1u << e;
                hopeless = hopeless || all_tied(anchor(i), *list);
            } else {
                const double sign = e % 2 == 0 ? 1.0 : -1.0;
                out_[e * problem_.anchors.rows + anchor(i)] = decide(canonical_, anchor(i), sign, *list, order_);
            }
        }
        if (overflowed == 0) return;
        if (!hopeless) {
            std::lock_guard<std::mutex> lock(undecided_mutex_);
            undecided_.push_back(position(i));
            return;
        }
        work.row.resize(m_);
        whole_row(anchor(i), overflowed, work.positives, work.row.get());
    }

    // Whether the columns of a list that overflowed tie in float64, so that float32 cannot tell them apart.
    bool all_tied(int64_t anchor, const Shortlist& list) const {
        const auto value = [&](int c) {
            return canonical_.selection(anchor, order_ != nullptr ? order_[list.column(c)] : list.column(c));
        };
        for (int c = 1; c < list.held(); ++c) {
            if (value(c) != value(0)) return false;
        }
        return list.held() > 1;
    }

    // Decides the given extrema from canonical values of the whole row.
    void whole_row(int64_t anchor, unsigned which, Positives& positives, double* row) {
        const double hidden = std::numeric_limits<double>::quiet_NaN();
        const bool negatives = (which >> NEGATIVE_SIDE) != 0;
        Best best[4];
        positives.select(anchor);
        if (negatives) canonical_.row(anchor, 0, m_, row);
        positives.visit(0, m_, [&](int64_t p) {
            const double d = negatives ? row[p] : canonical_.selection(anchor, p);
            best[POSITIVE_SIDE].offer(d, p);
            best[POSITIVE_SIDE + 1].offer(-d, p);
            row[p] = hidden;
        });
        if (negatives) {
            if (problem_.own) row[anchor] = hidden;
            for (int64_t j = 0; j < m_; ++j) {
                if (std::isnan(row[j])) continue;
                best[NEGATIVE_SIDE].offer(row[j], j);
                best[NEGATIVE_SIDE + 1].offer(-row[j], j);
            }
        }
        for (int e = 0; e < 4; ++e) {
            if (which >> e & 1) out_[e * problem_.anchors.rows + anchor] = best[e].column;
        }
    }

    const Problem& problem_;
    const unsigned wanted_;
    const int64_t m_;
    int64_t* out_;
    const int64_t* order_;
    const std::vector<int64_t>* again_;
    const int64_t n_;  // anchors of this pass
    const std::vector<int64_t> anchors_;
    const Canonical<T> canonical_;
    const Filter<T, Panel> filter_;
    std::mutex undecided_mutex_;
    std::vector<int64_t> undecided_;
};

template <class T> void extremes_rows(const Problem& problem, unsigned wanted, int64_t* out) {
    if (!problem.exact) {
        Extremes<T, Float32Panel>(problem, wanted, out).run();
        return;
    }
    // A pass gives its memory back before the next one.
    const std::vector<int64_t> undecided = Extremes<T, FastPanel>(problem, wanted, out).run();
    if (!undecided.empty()) Extremes<T, Float32Panel>(problem, wanted, out, &undecided).run();
}

// Own rows in classes are a chunk of a data set alone, with nothing recorded.
void extremes_by_chunk(const Problem& problem, unsigned wanted, int64_t* out) {
    const int64_t n = problem.anchors.rows;
    Buffer<Record> records(n);
    for (int64_t i = 0; i < n; ++i) records[i] = {{}, {-1, -1, -1, -1}};
    ChunkPair pair = {};
    pair.rows = problem.anchors;
    pair.classes = problem.labels.anchor_class;
    pair.order = problem.labels.members;
    pair.metric = problem.metric;
    pair.threads = problem.threads;
    pair.records = records.get();
    pair.rows_alone = true;
    chunk_extremes(pair, wanted);
    for (int e = 0; e < 4; ++e) {
        for (int64_t i = 0; i < n && (wanted >> e & 1) != 0; ++i) out[e * n + i] = records[i].id[e];
    }
}

void extremes(const Problem& problem, unsigned wanted, int64_t* out) {
    constexpr int64_t LEAST = 2048, MOST = 1 << 17;  // rows for which it pays, and whose lists weigh little
    const bool some = problem.anchors.rows >= LEAST && problem.anchors.rows <= MOST;
    if (MINERLIB_ISA_LEVEL > 0 && some && problem.own && problem.exact && problem.labels.words == 0) {
        extremes_by_chunk(problem, wanted, out);
        return;
    }
    if (problem.anchors.wide) {
        extremes_rows<double>(problem, wanted, out);
    } else {
        extremes_rows<float>(problem, wanted, out);
    }
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
