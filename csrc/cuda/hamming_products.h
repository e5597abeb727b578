// Each query's hits, as hamming_collect.h has them, by 1-bit matrix products (tensor.h): for many queries, codes of at
// most 16 words and devices of compute capability 8 and 9.
//
// [a, ~a] times [~b, b] is the distance itself. A sum starts from -1 - limit, so a hit is a negative sum: what is left
// to do for each pair is half an instruction, which joins the signs of 16 sums and more, and all 32 lanes look at them
// once a step of ROWS rows. Only where one is negative are products made again, of the queries and then the rows
// that it comes from.
//
// A warp holds QUERIES queries in registers and walks a split of the database by itself; the warps of a block walk the
// same split, so they find rows in the nearest cache. It is a query's only warp there: hits come in index order, and
// their number is kept by each of the four lanes of a group, in a column of its own in shared memory.

#pragma once

#include "cuda/hamming_collect.h"
#include "cuda/tensor.h"

namespace minerlib::cuda {

template <int WORDS> struct Products {
    using Args = CollectArgs;
    static constexpr int THREADS = 256, RESIDENT = 2;
    static constexpr int HALVES = WORDS <= 2 ? 1 : 2;                   // of 128 bits that a product adds up
    static constexpr int VECTORS = WORDS <= 4 ? 1 : WORDS / 4;          // products for one sum
    static constexpr int FRAGMENTS = WORDS <= 8 ? 4 : 2;                // of 16 queries
    static constexpr int QUERIES = 16 * FRAGMENTS;                      // of a warp
    static constexpr int PIECES = WORDS <= 2 ? 4 : WORDS == 4 ? 3 : 2;  // of 8 rows
    static constexpr int ROWS = 8 * PIECES;

    struct Shared {
        // Of 8 queries, at 2 * fragment + half: hits so far, and what a sum starts from.
        int32_t count[2 * FRAGMENTS][THREADS], from[2 * FRAGMENTS][THREADS];
    };

    MINERLIB_DEVICE static void run(const Block& block, const Args& args) {
        block.phase([&](int thread) {
            const int64_t warps = block.threads() / WARP;
            const int64_t first = (block.x() / args.splits * warps + thread / WARP) * QUERIES;
            if (first >= args.query_count) return;
            Walk(args, *block.shared<Shared>(), first, block.x() % args.splits, thread).walk();
        });
    }

private:
    // Words t (and t + 4) of queries g and g + 8.
    struct QueryLoad {
        static constexpr int RAW = 2 * HALVES, SIZE = RAW;
        const uint32_t* queries;
        int64_t first, last;
        int vector;

        MINERLIB_DEVICE void read(int lane, uint32_t (&raw)[RAW]) const {
            const int t = lane % 4;
            MINERLIB_UNROLL
            for (int row = 0; row < 2; ++row) {
                const uint32_t* code = queries + least(first + row * 8 + lane / 4, last) * WORDS;
                if constexpr (HALVES == 2) {
                    raw[row] = code[vector * 4 + t];
                    raw[2 + row] = ~raw[row];
                    opaque(raw[2 + row]);  // or it would be made again each time
                } else {
                    const uint32_t word = code[t % WORDS];
                    raw[row] = t < WORDS ? word : t < 2 * WORDS ? ~word : 0;
                }
            }
        }
        MINERLIB_DEVICE static void form(int, const uint32_t (&raw)[RAW], uint32_t (&words)[RAW]) {
            MINERLIB_UNROLL
            for (int i = 0; i < RAW; ++i) words[i] = raw[i];
        }
    };

    // The same words of row g, complement first. CLAMPED: rows beyond the last are the last.
    template <bool CLAMPED> struct RowLoad {
        static constexpr int RAW = 1, SIZE = HALVES;
        const uint32_t* rows;  // of the split
        int64_t plane;
        int32_t first, last;
        int vector;

        MINERLIB_DEVICE void read(int lane, uint32_t (&raw)[RAW]) const {
            const int32_t row = CLAMPED ? least(first + lane / 4, last) : first + lane / 4;
            if constexpr (HALVES == 2) {
                raw[0] = rows[vector * plane * 4 + (int64_t{row} * 4 + lane % 4)];
            } else {
                raw[0] = rows[int64_t{row} * WORDS + lane % WORDS];
            }
        }
        MINERLIB_DEVICE static void form(int lane, const uint32_t (&raw)[RAW], uint32_t (&words)[HALVES]) {
            if constexpr (HALVES == 2) {
                words[0] = ~raw[0];
                words[1] = raw[0];
            } else {
                const int t = lane % 4;
                words[0] = t < WORDS ? ~raw[0] : t < 2 * WORDS ? raw[0] : 0;
            }
        }
    };

    template <bool CLAMPED> using Rows = Fragment<RowLoad<CLAMPED>>;

    // A lane's way through a split. Rows are numbered from its start.
    class Walk {
    public:
        MINERLIB_DEVICE Walk(const Args& args, Shared& shared, int64_t first_query, int64_t split, int thread)
            : args_(args), shared_(shared), first_query_(first_query), split_(split), thread_(thread),
              lane_(thread % WARP), start_(args.first_row + split * args.split_rows),
              rows_(args.database.words + start_ * (HALVES == 2 ? 4 : WORDS)),
              count_(static_cast<int32_t>(least(args.split_rows, args.stop_row - start_))) {
            MINERLIB_UNROLL
            for (int f = 0; f < FRAGMENTS; ++f) load(query_[f], f);
            for (int i = 0; i < 2 * FRAGMENTS; ++i) {
                const int64_t query = query_of(i);
                shared.count[i][thread] = 0;
                shared.from[i][thread] = query < args.query_count ? -1 - args.limits[query] : 0;
            }
            set_start();
        }

        MINERLIB_DEVICE void walk() {
            const int32_t whole = count_ / ROWS * ROWS;
            int32_t row = 0;
            Rows<false> ahead[PIECES][VECTORS];
            if (row < whole) load(ahead, row);
            for (; row < whole; row += ROWS) {
                Rows<false> rows[PIECES][VECTORS];
                MINERLIB_UNROLL
                for (int i = 0; i < PIECES * VECTORS; ++i)
                    rows[i / VECTORS][i % VECTORS] = ahead[i / VECTORS][i % VECTORS];
                load(ahead, least(row + ROWS, whole - ROWS));
                meet(rows, row);
            }
            if (row < count_) {
                Rows<true> rows[PIECES][VECTORS];
                load(rows, row);
                meet(rows, row);
            }
            if (lane_ % 4 != 0) return;
            for (int i = 0; i < 2 * FRAGMENTS; ++i) {
                const int64_t query = query_of(i);
                if (query < args_.query_count)
                    args_.counts[args_.segments.place(query, args_.first_split + split_)] = shared_.count[i][thread_];
            }
        }

    private:
        using Queries = Fragment<QueryLoad>;

        MINERLIB_DEVICE int64_t query_of(int i) const { return first_query_ + i * 8 + lane_ / 4; }

        MINERLIB_DEVICE void load(Queries (&queries)[VECTORS], int f) const {
            MINERLIB_UNROLL
            for (int v = 0; v < VECTORS; ++v)
                queries[v].load({args_.queries, first_query_ + f * 16, args_.query_count - 1, v}, lane_);
        }
        template <bool CLAMPED>
        MINERLIB_DEVICE void load(Rows<CLAMPED> (&rows)[PIECES][VECTORS], int32_t row) const {
            MINERLIB_UNROLL
            for (int piece = 0; piece < PIECES; ++piece) load(rows[piece], row + piece * 8);
        }
        template <bool CLAMPED> MINERLIB_DEVICE void load(Rows<CLAMPED> (&rows)[VECTORS], int32_t row) const {
            MINERLIB_UNROLL
            for (int v = 0; v < VECTORS; ++v) rows[v].load({rows_, args_.database.rows, row, count_ - 1, v}, lane_);
        }

        // A sum's four starts are known to be two values; four registers, where there are, spare copies before
        // products.
        MINERLIB_DEVICE void set_start() {
            MINERLIB_UNROLL
            for (int i = 0; i < 4 * FRAGMENTS; ++i) {
                from_[i / 4][i % 4] = shared_.from[i / 2][thread_];
                if constexpr (WORDS < 16) opaque(from_[i / 4][i % 4]);
            }
        }

        template <bool CLAMPED>
        MINERLIB_DEVICE Sums<HALVES> product(const int32_t (&from)[4], const Queries (&queries)[VECTORS],
                                             const Rows<CLAMPED> (&rows)[VECTORS]) const {
            Sums<HALVES> sums;
            sums.start(from, queries[0], rows[0], lane_);
            MINERLIB_UNROLL
            for (int v = 1; v < VECTORS; ++v) sums.add(queries[v], rows[v], lane_);
            return sums;
        }

        template <bool CLAMPED> MINERLIB_DEVICE void meet(const Rows<CLAMPED> (&rows)[PIECES][VECTORS], int32_t row) {
            int32_t signs[FRAGMENTS], any = 0;
            MINERLIB_UNROLL
            for (int f = 0; f < FRAGMENTS; ++f) {
                signs[f] = 0;
                MINERLIB_UNROLL
                for (int piece = 0; piece < PIECES; ++piece) {
                    const Sums<HALVES> sums = product(from_[f], query_[f], rows[piece]);
                    signs[f] = signs[f] | sums.sign(0) | sums.sign(1);
                    signs[f] = signs[f] | sums.sign(2) | sums.sign(3);
                }
                any |= signs[f];
            }
            if (!warp_any(any < 0)) return;
            uint32_t found = 0;  // fragments of queries with hits
            MINERLIB_UNROLL
            for (int f = 0; f < FRAGMENTS; ++f) found |= static_cast<uint32_t>(warp_any(signs[f] < 0)) << f;
            bool changed = false;
            for (; found != 0; found &= found - 1) {
                const int f = lowest_bit(found);
                for (uint32_t pieces = pieces_with_hits(f, rows); pieces != 0; pieces &= pieces - 1)
                    changed = keep(f, row + 8 * lowest_bit(pieces)) || changed;
            }
            if (changed) set_start();
        }

        // Bit p: whether 16 queries may have hits in piece p; of long codes, which leave no registers for it, any.
        template <bool CLAMPED>
        MINERLIB_DEVICE uint32_t pieces_with_hits(int f, const Rows<CLAMPED> (&rows)[PIECES][VECTORS]) const {
            if constexpr (VECTORS > 2) return (uint32_t{1} << PIECES) - 1;
            const int32_t low = shared_.from[2 * f][thread_], high = shared_.from[2 * f + 1][thread_];
            Queries queries[VECTORS];
            load(queries, f);
            uint32_t pieces = 0;
            MINERLIB_UNROLL
            for (int piece = 0; piece < PIECES; ++piece) {
                const Sums<HALVES> sums = product({low, low, high, high}, queries, rows[piece]);
                const int32_t sign = sums.sign(0) | sums.sign(1) | sums.sign(2) | sums.sign(3);
                pieces |= static_cast<uint32_t>(warp_any(sign < 0)) << piece;
            }
            return pieces;
        }

        // The hits of 16 queries in 8 rows; returns whether any of them starts from another sum now.
        MINERLIB_DEVICE bool keep(int f, int32_t row) {
            const int t = lane_ % 4;
            const uint32_t before = (uint32_t{1} << t) - 1;
            const int32_t low = shared_.from[2 * f][thread_], high = shared_.from[2 * f + 1][thread_];
            Sums<HALVES> sums;
            MINERLIB_UNROLL
            for (int v = 0; v < VECTORS; ++v) {
                Queries queries;
                Rows<true> rows;
                queries.load({args_.queries, first_query_ + f * 16, args_.query_count - 1, v}, lane_);
                rows.load({rows_, args_.database.rows, row, count_ - 1, v}, lane_);
                warp_together();
                if (v == 0) {
                    sums.start({low, low, high, high}, queries, rows, lane_);
                } else {
                    sums.add(queries, rows, lane_);
                }
            }
            uint32_t votes[4];
            MINERLIB_UNROLL
            for (int i = 0; i < 4; ++i) {
                const int inside = least(count_ - row, 8) - i % 2;
                votes[i] = sums.votes(lane_, i) & (inside > 0 ? (uint32_t{1} << (inside + 1) / 2) - 1 : 0);
            }
            bool changed = false;
            MINERLIB_UNROLL
            for (int half = 0; half < 2; ++half) {
                const uint32_t even = votes[2 * half], odd = votes[2 * half + 1];
                if ((even | odd) == 0) continue;
                const int i = 2 * f + half;
                const int32_t from = half == 0 ? low : high, count = shared_.count[i][thread_];
                int32_t place = count + popcount(even & before) + popcount(odd & before);
                MINERLIB_UNROLL
                for (int column = 0; column < 2; ++column) {
                    if ((votes[2 * half + column] >> t & 1) == 0) continue;
                    const int distance = sums.of(lane_, 2 * half + column) - from;
                    args_.take(query_of(i), split_, place++, distance, start_ + row + 2 * t + column);
                }
                const int32_t counted = count + popcount(even) + popcount(odd);
                shared_.count[i][thread_] = counted;
                if (count < args_.enough && counted >= args_.enough) {
                    shared_.from[i][thread_] = from + 1;
                    changed = true;
                }
            }
            warp_together();
            return changed;
        }

        const Args& args_;
        Shared& shared_;
        int64_t first_query_, split_;
        int thread_, lane_;
        int64_t start_;  // of the split
        const uint32_t* rows_;
        int32_t count_;  // of rows
        Queries query_[FRAGMENTS][VECTORS];
        int32_t from_[FRAGMENTS][4];  // what a sum starts from
    };
};

}  // namespace minerlib::cuda
