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

#pragma once

#include "cuda/codes.h"
#include "cuda/tensor.h"

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
    int64_t splits;

    MINERLIB_DEVICE int64_t start(int64_t query, int64_t split) const {
        const int64_t at = query * splits + split;
        return starts != nullptr ? starts[at] : at * capacity;
    }
};

struct CollectArgs {
    const uint32_t* queries;  // [Q, width]
    Codes database;
    Segments segments;
    const int32_t* limits;    // [Q]
    const int32_t* row_ones;  // [M]: bits that a row has; read by products of more than 4 words
    int32_t* counts;          // [Q, splits], written
    int64_t query_count;      // Q
    int64_t rows;             // M
    int64_t split_rows;
    int64_t enough;
};

// How a block meets its queries: FEW and MANY count bits; PRODUCTS are 1-bit matrix products (tensor.h), for devices of
// compute capability 8 and 9.
constexpr int FEW = 0, MANY = 1, PRODUCTS = 2;

template <int WORDS, int WAY> struct Collect {
    using Args = CollectArgs;
    static constexpr int THREADS = 256;
    static constexpr int RESIDENT = WAY == PRODUCTS ? 2 : STEP<WORDS> == 8 ? 3 : 4;
    static constexpr int QUERIES = WAY == FEW ? 4 : 32;                       // of a block
    static constexpr int ROWS = WAY == PRODUCTS ? 4 : WORDS == LONG ? 2 : 4;  // of a thread at a time
    static constexpr int TURNS = WAY == FEW ? 8 : 1;         // of all threads with other rows in a tile
    static constexpr int GROUP = WORDS == LONG ? 4 : 1;      // queries that meet a thread's rows side by side
    static constexpr int TILE = THREADS * ROWS * TURNS;      // rows
    static constexpr int MASKS = TILE / WARP;                // words of a query
    static constexpr int SECTION = MASKS < 32 ? MASKS : 32;  // masks that are added up by one thread
    static constexpr int SECTIONS = MASKS / SECTION;
    static constexpr int HALVES = WORDS == 1 || WORDS == 2 ? 1 : 2;   // of 128 bits that a product adds up
    static constexpr bool COMPLEMENTS = WORDS != LONG && WORDS <= 4;  // whether a product is a distance

    struct Shared {
        alignas(16) uint32_t query[WORDS == LONG ? 1 : QUERIES * WORDS];  // long codes are read where they are
        alignas(16) uint32_t mask[QUERIES][MASKS];
        int32_t section[QUERIES][SECTIONS];  // hits, then the place of a section's first hit in its segment
        int32_t limit[QUERIES];
        int32_t count[QUERIES];
        // Of products: masks as the four lanes of a group know them, and the bits that a query has.
        alignas(16) uint32_t part[WAY == PRODUCTS ? QUERIES * MASKS * 4 : 1];
        int32_t ones[WAY == PRODUCTS ? QUERIES : 1];
    };

    MINERLIB_DEVICE static void run(const Block& block, const Args& args) {
        Shared& shared = *block.shared<Shared>();
        const int64_t splits = args.segments.splits, split = block.x() % splits;
        const int64_t first_query = block.x() / splits * QUERIES;
        const int live = static_cast<int>(least<int64_t>(QUERIES, args.query_count - first_query));
        const int64_t start = split * args.split_rows, stop = least(start + args.split_rows, args.rows);

        block.phase([&](int thread) {
            if constexpr (WORDS != LONG) {
                for (int i = thread; i < live * WORDS; i += THREADS)
                    shared.query[i] = args.queries[first_query * WORDS + i];
            }
            if (thread < live) {
                shared.limit[thread] = args.limits[first_query + thread];
                shared.count[thread] = 0;
                if constexpr (WAY == PRODUCTS) {
                    const uint32_t* words = args.queries + (first_query + thread) * args.database.width;
                    int32_t ones = 0;
                    for (int w = 0; w < args.database.width; ++w) ones += popcount(words[w]);
                    shared.ones[thread] = ones;
                }
            }
        });
        for (int64_t first = start; first < stop; first += TILE) {
            block.phase([&](int thread) {
                if constexpr (WAY == PRODUCTS) {
                    multiply(args, shared, first, stop, first_query, live, thread);
                } else {
                    compare(args, shared, first, stop, first_query, live, thread);
                }
            });
            const bool found = block.any([&](int thread) {
                uint32_t masks = 0;
                for (int i = thread; i < live * MASKS; i += THREADS) {
                    uint32_t& mask = shared.mask[i / MASKS][i % MASKS];
                    if constexpr (WAY == PRODUCTS) {
                        const Vector<4> parts = reinterpret_cast<const Vector<4>*>(shared.part)[i];
                        mask = parts.word[0] | parts.word[1] | parts.word[2] | parts.word[3];
                    }
                    masks |= mask;
                }
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
            if (thread < live) args.counts[(first_query + thread) * splits + split] = shared.count[thread];
        });
    }

private:
    // A tile's masks. Bit l of mask m of a query is row m * 32 + l of the tile.
    MINERLIB_DEVICE static void compare(const Args& args, Shared& shared, int64_t first, int64_t stop,
                                        int64_t first_query, int live, int thread) {
        for (int turn = 0; turn < TURNS; ++turn) {
            int64_t row[ROWS];
            bool inside[ROWS];
            uint32_t own[ROWS][STEP<WORDS>];
            MINERLIB_UNROLL
            for (int r = 0; r < ROWS; ++r) {
                const int64_t wanted =
                    first + ((turn * (THREADS / WARP) + thread / WARP) * ROWS + r) * WARP + thread % WARP;
                inside[r] = wanted < stop;
                row[r] = inside[r] ? wanted : stop - 1;
                if constexpr (WORDS != LONG) load_row<WORDS>(args.database, row[r], 0, own[r]);
            }
            for (int q = 0; q < live; q += GROUP) {
                Difference<WORDS> difference[GROUP][ROWS];
                for (int step = 0; step < steps<WORDS>(args.database.width); ++step) {
                    if constexpr (WORDS == LONG) {
                        MINERLIB_UNROLL
                        for (int r = 0; r < ROWS; ++r) load_row<WORDS>(args.database, row[r], step, own[r]);
                    }
                    MINERLIB_UNROLL
                    for (int g = 0; g < GROUP; ++g) {
                        uint32_t query[STEP<WORDS>];
                        load_query<WORDS>(words_of(args, shared, first_query, least(q + g, live - 1)), step, query);
                        MINERLIB_UNROLL
                        for (int r = 0; r < ROWS; ++r) difference[g][r].add(query, own[r]);
                    }
                }
                MINERLIB_UNROLL
                for (int g = 0; g < GROUP; ++g) {
                    const int32_t limit = q + g < live ? shared.limit[q + g] : -1;
                    bool hit[ROWS];
                    MINERLIB_UNROLL
                    for (int r = 0; r < ROWS; ++r) hit[r] = inside[r] && difference[g][r].total() <= limit;
                    ballots(shared.mask[q + g] + turn * ROWS * (THREADS / WARP), thread, hit);
                }
            }
        }
    }

    // The same by products: a warp has 32 queries by 32 rows at a time. Up to 4 words, [a, ~a] times [~b, b] is the
    // distance itself; beyond, a times b are the bits that both have, and the distance is |a| + |b| - 2 a b.
    MINERLIB_DEVICE static void multiply(const Args& args, Shared& shared, int64_t first, int64_t stop,
                                         int64_t first_query, int live, int thread) {
        const int lane = thread % WARP, group = lane / 4, t = lane % 4;
        for (int m = thread / WARP * ROWS; m < (thread / WARP + 1) * ROWS; ++m) {
            const int64_t base = first + m * WARP;
            int32_t d[2][4][4] = {};  // [queries of 16, rows of 8]
            for (int step = 0; step < steps<WORDS>(args.database.width); ++step) {
                const auto queries_from = [&](int lowest) {
                    return fragment<2 * HALVES>(
                        [&args, &shared, first_query, live, lowest, step](int of, uint32_t (&word)[2 * HALVES]) {
                            MINERLIB_UNROLL
                            for (int i = 0; i < 2 * HALVES; ++i) {
                                const int q = least(lowest + i % 2 * 8 + of / 4, live - 1);
                                const uint32_t* words = words_of(args, shared, first_query, q);
                                word[i] =
                                    operand<false>(of % 4 + i / 2 * 4, [&](int w) { return words[step * 8 + w]; });
                            }
                        },
                        lane);
                };
                const auto low = queries_from(0), high = queries_from(16);
                MINERLIB_UNROLL
                for (int j = 0; j < 4; ++j) {
                    const auto rows = fragment<HALVES>(
                        [&args, stop, base, j, step](int of, uint32_t (&word)[HALVES]) {
                            const int64_t row = least(base + j * 8 + of / 4, stop - 1);
                            MINERLIB_UNROLL
                            for (int i = 0; i < HALVES; ++i) {
                                word[i] = operand<true>(of % 4 + i * 4, [&](int w) {
                                    return word_of<WORDS>(args.database, row, step * 8 + w);
                                });
                            }
                        },
                        lane);
                    multiply_bits<HALVES>(d[0][j], low, rows, lane);
                    multiply_bits<HALVES>(d[1][j], high, rows, lane);
                }
            }
            int32_t ones[4][2] = {};
            if constexpr (!COMPLEMENTS) {
                MINERLIB_UNROLL
                for (int i = 0; i < 8; ++i)
                    ones[i / 2][i % 2] = args.row_ones[least(base + i / 2 * 8 + 2 * t + i % 2, stop - 1)];
            }
            const int64_t left = stop - base;
            const uint32_t inside = left >= WARP ? ~uint32_t{0} : left <= 0 ? 0 : (uint32_t{1} << left) - 1;
            MINERLIB_UNROLL
            for (int i = 0; i < 4; ++i) {
                const int q = i * 8 + group;
                int32_t limit = q < live ? shared.limit[q] : -1;
                if constexpr (!COMPLEMENTS) limit -= shared.ones[least(q, live - 1)];
                int32_t value[8], nearest = INT32_MAX;
                MINERLIB_UNROLL
                for (int r = 0; r < 8; ++r) {
                    const int32_t product = d[i / 2][r / 2][i % 2 * 2 + r % 2];
                    value[r] = COMPLEMENTS ? product : ones[r / 2][r % 2] - 2 * product;
                    nearest = least(nearest, value[r]);
                }
                uint32_t mask = 0;
                if (nearest <= limit) {
                    MINERLIB_UNROLL
                    for (int r = 0; r < 8; ++r) mask |= static_cast<uint32_t>(value[r] <= limit) << (r / 2 * 8 + r % 2);
                }
                shared.part[(q * MASKS + m) * 4 + t] = mask << 2 * t & inside;
            }
        }
    }

    // Word `place` of an operand: of a code, or of a code and its complement; ROW: the complement first.
    template <bool ROW, class WordOf> MINERLIB_DEVICE static uint32_t operand(int place, WordOf word_of) {
        if constexpr (!COMPLEMENTS) {
            return word_of(place);
        } else {
            if (place >= 2 * WORDS) return 0;
            const uint32_t word = word_of(place % WORDS);
            return (place < WORDS) == ROW ? ~word : word;
        }
    }

    // The hits of one mask, behind those before them in their section.
    MINERLIB_DEVICE static void write(const Args& args, const Shared& shared, int64_t first, int64_t first_query, int q,
                                      int64_t split, int m) {
        uint32_t mask = shared.mask[q][m];
        if (mask == 0) return;
        int64_t place = shared.section[q][m / SECTION];
        for (int i = m / SECTION * SECTION; i < m; ++i) place += popcount(shared.mask[q][i]);
        const int64_t start = args.segments.start(first_query + q, split);
        const Query<WORDS> query(words_of(args, shared, first_query, q));
        for (; mask != 0; mask &= mask - 1, ++place) {
            if (args.segments.starts == nullptr && place >= args.segments.capacity) return;
            const int64_t row = first + m * WARP + lowest_bit(mask);
            args.segments.candidates[start + place] = as_candidate(query.distance(args.database, row), row);
        }
    }

    MINERLIB_DEVICE static const uint32_t* words_of(const Args& args, const Shared& shared, int64_t first_query,
                                                    int q) {
        if constexpr (WORDS == LONG) return args.queries + (first_query + q) * args.database.width;
        return shared.query + q * WORDS;
    }
};

}  // namespace minerlib::cuda
