// Each query's hits: database rows within its limit, in index order, split by split.
//
// A block holds QUERIES queries and walks a split of the database in tiles. A thread keeps ROWS rows in registers and
// meets one query after the other, whose words a warp reads at once from shared memory. What each warp says of 32 rows
// is one word of a mask; most tiles have a hit or none, so hits are found by their masks, and their distances computed
// again. Every query has a segment of the candidates in each split; a full segment takes no more, but hits are counted
// to the end: whoever finds more counted than a segment holds calls again with segments of that size.
//
// enough: once so many hits lie in a split, later rows at the limit itself cannot be among the first `enough` by
// (distance, index), and are left out. Tie rule: candidates lie in index order. Limits: codes below 2^24 bits, rows
// below 2^40; a split below 2^31 rows.
//
// Rows may come in stages, one after the other, each with splits of its own: how many hits lie at each distance is
// added up in `totals`, so that the next stage's limits may be nearer (hamming_nearest.h).

#pragma once

#include "cuda/codes.h"

namespace minerlib::cuda {

// A candidate: its distance above its row.
constexpr int ROW_BITS = 40;
MINERLIB_DEVICE uint64_t as_candidate(int distance, int64_t row) {
    return static_cast<uint64_t>(distance) << ROW_BITS | static_cast<uint64_t>(row);
}
MINERLIB_DEVICE int distance_of(uint64_t candidate) { return static_cast<int>(candidate >> ROW_BITS); }
MINERLIB_DEVICE int64_t row_of(uint64_t candidate) {
    return static_cast<int64_t>(candidate & ((uint64_t{1} << ROW_BITS) - 1));
}

// Where the segments lie: each `capacity` long, or where `starts` says, as long as what was counted.
struct Segments {
    uint64_t* candidates;
    const int64_t* starts;  // [Q, splits], or null
    int64_t capacity;
    int64_t splits;  // of all stages

    MINERLIB_DEVICE int64_t place(int64_t query, int64_t split) const { return query * splits + split; }
    MINERLIB_DEVICE int64_t start(int64_t query, int64_t split) const {
        const int64_t at = place(query, split);
        return starts != nullptr ? starts[at] : at * capacity;
    }
};

struct CollectArgs {
    const uint32_t* queries;  // [Q, width]
    Codes database;
    Segments segments;
    const int32_t* limits;  // [Q]
    int32_t* counts;        // [Q, all splits], written
    int64_t* totals;        // [Q, values], added to; or null
    int32_t values;
    int64_t query_count;  // Q
    int64_t first_row, stop_row;
    int64_t splits;  // of these rows
    int64_t first_split;
    int64_t split_rows;
    int64_t enough;

    // A query's hit, the place-th of its split.
    MINERLIB_DEVICE void take(int64_t query, int64_t split, int64_t place, int distance, int64_t row) const {
        if (totals != nullptr) atomic_add(totals + query * values + distance, int64_t{1});
        if (segments.starts == nullptr && place >= segments.capacity) return;
        segments.candidates[segments.start(query, first_split + split) + place] = as_candidate(distance, row);
    }
};

// How a block meets its queries.
constexpr int FEW = 0, MANY = 1;

template <int WORDS, int WAY> struct Collect {
    using Args = CollectArgs;
    static constexpr int THREADS = 256;
    static constexpr int RESIDENT = WORDS == LONG ? 2 : WORDS == 8 ? 3 : 4;
    static constexpr int QUERIES = WAY == FEW ? 4 : 32;      // of a block
    static constexpr int ROWS = WORDS == LONG ? 2 : 4;       // of a thread at a time
    static constexpr int TURNS = WAY == FEW ? 8 : 1;         // of all threads with other rows in a tile
    static constexpr int GROUP = WORDS == LONG ? 4 : 1;      // queries that meet a thread's rows side by side
    static constexpr int TILE = THREADS * ROWS * TURNS;      // rows
    static constexpr int MASKS = TILE / WARP;                // words of a query
    static constexpr int SECTION = MASKS < 32 ? MASKS : 32;  // masks that are added up by one thread
    static constexpr int SECTIONS = MASKS / SECTION;
    static constexpr bool AHEAD = WAY == FEW && WORDS != LONG && WORDS <= 4;  // whether rows are read a turn ahead

    struct Shared {
        alignas(16) uint32_t query[WORDS == LONG ? 1 : QUERIES * WORDS];  // long codes are read where they are
        alignas(16) uint32_t mask[QUERIES][MASKS];
        int32_t section[QUERIES][SECTIONS];  // hits, then the place of a section's first hit in its segment
        int32_t limit[QUERIES];
        int32_t count[QUERIES];
    };

    MINERLIB_DEVICE static void run(const Block& block, const Args& args) {
        Shared& shared = *block.shared<Shared>();
        const int64_t split = block.x() % args.splits, first_query = block.x() / args.splits * QUERIES;
        const int live = static_cast<int>(least<int64_t>(QUERIES, args.query_count - first_query));
        const int64_t start = args.first_row + split * args.split_rows;
        const int64_t stop = least(start + args.split_rows, args.stop_row);

        block.phase([&](int thread) {
            if constexpr (WORDS != LONG) {
                for (int i = thread; i < live * WORDS; i += THREADS)
                    shared.query[i] = args.queries[first_query * WORDS + i];
            }
            if (thread < live) {
                shared.limit[thread] = args.limits[first_query + thread];
                shared.count[thread] = 0;
            }
        });
        for (int64_t first = start; first < stop; first += TILE) {
            block.phase([&](int thread) { compare(args, shared, first, stop, first_query, live, thread); });
            const bool found = block.any([&](int thread) {
                uint32_t masks = 0;
                for (int i = thread; i < live * MASKS; i += THREADS) masks |= shared.mask[i / MASKS][i % MASKS];
                return masks != 0;
            });
            if (!found) continue;
            block.phase([&](int thread) {
                for (int i = thread; i < live * SECTIONS; i += THREADS) {
                    const uint32_t* masks = shared.mask[i / SECTIONS] + i % SECTIONS * SECTION;
                    int32_t hits = 0;
                    for (int m = 0; m < SECTION; ++m) hits += popcount(masks[m]);
                    shared.section[i / SECTIONS][i % SECTIONS] = hits;
                }
            });
            block.phase([&](int thread) {
                if (thread >= live) return;
                int32_t count = shared.count[thread];
                for (int i = 0; i < SECTIONS; ++i) {
                    const int32_t hits = shared.section[thread][i];
                    shared.section[thread][i] = count;
                    count += hits;
                }
                shared.count[thread] = count;
                shared.limit[thread] = args.limits[first_query + thread] - (count >= args.enough);
            });
            block.phase([&](int thread) {
                for (int i = thread; i < live * MASKS; i += THREADS)
                    write(args, shared, first, first_query, i / MASKS, split, i % MASKS);
            });
        }
        block.phase([&](int thread) {
            if (thread < live)
                args.counts[args.segments.place(first_query + thread, args.first_split + split)] = shared.count[thread];
        });
    }

private:
    // A thread's rows of a turn, as near as the last where they lie beyond it.
    struct Rows {
        int64_t row[ROWS];
        bool inside[ROWS];
        uint32_t own[ROWS][STEP<WORDS>];

        MINERLIB_DEVICE void load(const Args& args, int64_t first, int64_t stop, int turn, int thread) {
            MINERLIB_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                const int64_t wanted =
                    first + ((turn * (THREADS / WARP) + thread / WARP) * ROWS + r) * WARP + thread % WARP;
                inside[r] = wanted < stop;
                row[r] = inside[r] ? wanted : stop - 1;
                if constexpr (WORDS != LONG) load_row<WORDS>(args.database, row[r], 0, own[r]);
            }
        }
    };

    // A tile's masks. Bit l of mask m of a query is row m * 32 + l of the tile.
    MINERLIB_DEVICE static void compare(const Args& args, Shared& shared, int64_t first, int64_t stop,
                                        int64_t first_query, int live, int thread) {
        Rows rows, ahead;
        if constexpr (AHEAD) ahead.load(args, first, stop, 0, thread);
        for (int turn = 0; turn < TURNS; ++turn) {
            if constexpr (AHEAD) {
                rows = ahead;
                if (turn + 1 < TURNS) ahead.load(args, first, stop, turn + 1, thread);
            } else {
                rows.load(args, first, stop, turn, thread);
            }
            for (int q = 0; q < live; q += GROUP) {
                Difference<WORDS> difference[GROUP][ROWS];
                for (int step = 0; step < steps<WORDS>(args.database.width); ++step) {
                    if constexpr (WORDS == LONG) {
                        MINERLIB_UNROLL
                        for (int r = 0; r < ROWS; ++r) load_row<WORDS>(args.database, rows.row[r], step, rows.own[r]);
                    }
                    MINERLIB_UNROLL
                    for (int g = 0; g < GROUP; ++g) {
                        uint32_t query[STEP<WORDS>];
                        load_query<WORDS>(words_of(args, shared, first_query, least(q + g, live - 1)), step, query);
                        MINERLIB_UNROLL
                        for (int r = 0; r < ROWS; ++r) difference[g][r].add(query, rows.own[r]);
                    }
                }
                MINERLIB_UNROLL
                for (int g = 0; g < GROUP; ++g) {
                    const int32_t limit = q + g < live ? shared.limit[q + g] : -1;
                    bool hit[ROWS];
                    MINERLIB_UNROLL
                    for (int r = 0; r < ROWS; ++r) hit[r] = rows.inside[r] && difference[g][r].total() <= limit;
                    ballots(shared.mask[q + g] + turn * ROWS * (THREADS / WARP), thread, hit);
                }
            }
        }
    }

    // The hits of one mask, behind those before them in their section.
    MINERLIB_DEVICE static void write(const Args& args, const Shared& shared, int64_t first, int64_t first_query, int q,
                                      int64_t split, int m) {
        uint32_t mask = shared.mask[q][m];
        if (mask == 0) return;
        int64_t place = shared.section[q][m / SECTION];
        for (int i = m / SECTION * SECTION; i < m; ++i) place += popcount(shared.mask[q][i]);
        const Query<WORDS> query(words_of(args, shared, first_query, q));
        for (; mask != 0; mask &= mask - 1, ++place) {
            const int64_t row = first + m * WARP + lowest_bit(mask);
            args.take(first_query + q, split, place, query.distance(args.database, row), row);
        }
    }

    MINERLIB_DEVICE static const uint32_t* words_of(const Args& args, const Shared& shared, int64_t first_query,
                                                    int q) {
        if constexpr (WORDS == LONG) return args.queries + (first_query + q) * args.database.width;
        return shared.query + q * WORDS;
    }
};

}  // namespace minerlib::cuda
