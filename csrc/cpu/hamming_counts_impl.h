// hamming_distance, hamming_counts and hamming_average_precision: all distances of packed codes, and what can be
// counted from them.
//
// a uint8 [N, B], b uint8 [M, B] -> distances int32 [N, M]. queries uint8 [Q, B], database uint8 [M, B] -> counts int64
// [Q, 8B + 1], how many codes (and how many relevant ones) lie at each distance; average precision float64 [Q] of the
// ranking by (distance, index) cut at k, summed in the order of the ranks.
// Memory: 12 to 24 bytes a relevant code of the queries in flight, at most 64 of them (MOST_IN_FLIGHT); 8 bytes a code.
// Limits of the counts and ranks: M < 2^31.
// Source: SPEC sections 5 and 8.
#pragma once

#include <algorithm>
#include <vector>

#include "code_pieces.h"
#include "families.h"
#include "memory.h"
#include "pool.h"

namespace minerlib {
namespace MINERLIB_ISA {

static constexpr int64_t ROWS_AT_ONCE = 8;                    // of a task
static constexpr int TOGETHER = 4;                            // queries whose codes are counted in turn
static constexpr int64_t MOST_QUERIES = 64;                   // that go through the database together
static constexpr int64_t MOST_IN_FLIGHT = int64_t{16} << 20;  // bytes for them in every thread

void hamming_distance(const Codes& a, const Codes& b, int threads, int32_t* out) {
    const CodeWords rows(a), columns(b);
    const int64_t groups = (a.rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    const int64_t slice = std::max<int64_t>(CODES_AT_ONCE, (int64_t{1} << 17) / std::max<int64_t>(1, b.bytes));
    const int64_t slices = (b.rows + slice - 1) / slice;  // codes that stay in the cache for a group's rows
    parallel_for(threads, groups * slices, [&](int64_t task) {
        const int64_t j0 = task % slices * slice, j1 = std::min(b.rows, j0 + slice);
        const int64_t i0 = task / slices * ROWS_AT_ONCE, i1 = std::min(a.rows, i0 + ROWS_AT_ONCE);
        Buffer<uint64_t> words(rows.words);
        columns.with_width([&](auto width) {
            for (int64_t i = i0; i < i1; ++i) {
                rows.row(i, words.get());
                for (int64_t j = j0; j < j1; ++j) {
                    const int64_t distance = columns.template distance<decltype(width)::value>(j, words.get());
                    out[i * b.rows + j] = static_cast<int32_t>(distance);
                }
            }
        });
    });
}

// Counts codes by their distances, for some queries in turn: counting one distance waits for the last count of an equal
// one, and the others have theirs meanwhile. ranks: how many codes before were at the same distance. Stores bound it,
// so two ranks share one.
template <int queries, bool ranked, class Distance>
static inline void count_codes(const Distance* distances, int64_t size, uint32_t* counts, int64_t bins,
                               uint32_t* ranks) {
    int64_t c = 0;
    for (; c + 2 <= size; c += 2) {
#pragma GCC unroll 8
        for (int i = 0; i < queries; ++i) {
            const Distance* two = distances + i * CODES_AT_ONCE + c;
            const uint64_t first = counts[i * bins + two[0]]++, second = counts[i * bins + two[1]]++;
            if constexpr (ranked) {
                const uint64_t both = first | second << 32;
                std::memcpy(ranks + i * CODES_AT_ONCE + c, &both, sizeof both);
            }
        }
    }
    for (int i = 0; c < size && i < queries; ++i) {
        const uint32_t rank = counts[i * bins + distances[i * CODES_AT_ONCE + c]]++;
        if constexpr (ranked) ranks[i * CODES_AT_ONCE + c] = rank;
    }
}

// Queries that go through the database together, piece by piece.
template <class Distance> class QueryGroup {
public:
    QueryGroup(const Codes& queries, const Codes& database, const Relevance& relevance, const RelevantRows& rows,
               int64_t first, int64_t count)
        : first(first), count(count), database_(database), own_(relevance.own), rows_(rows),
          pieces_(queries, first, count, database), counts_(count * bins()) {
        std::fill_n(counts_.get(), counts_.size(), 0);
    }

    // A bin for every distance, and one for the query's own row, where that is left out.
    int64_t bins() const { return 8 * database_.bytes + 2; }

    const uint32_t* counts(int64_t i) const { return counts_.get() + i * bins(); }

    // Relevant codes of a piece.
    struct Hits {
        const int32_t* rows;
        int64_t count;
        int64_t start;              // of the piece
        const Distance* distances;  // of the piece's codes
        const uint32_t* ranks;      // how many codes before are at the same distance
    };

    // Counts the codes at each distance to every query; calls body(i, hits) with those of query first + i in each
    // piece.
    template <bool ranked, class Body> void scan(const Body& body) {
        std::vector<RelevantRows::Cursor> cursors;
        std::vector<RelevantRows::Rows> taken(static_cast<size_t>(count));
        std::vector<int64_t> alike;  // the first query of the same class
        for (int64_t i = 0; i < count; ++i) {
            cursors.push_back(rows_.start(first + i));
            int64_t other = 0;
            while (!rows_.alike(first + i, first + other)) ++other;
            alike.push_back(other);
        }
        Distance distances[TOGETHER * CODES_AT_ONCE];
        int32_t scratch[CODES_AT_ONCE];
        uint32_t ranks[ranked ? TOGETHER * CODES_AT_ONCE : 1];
        for (int64_t start = 0; start < database_.rows; start += CODES_AT_ONCE) {
            const int64_t size = std::min(CODES_AT_ONCE, database_.rows - start);
            pieces_.read(start, size);
            for (int64_t i = 0; i < count; i += TOGETHER) {
                const int64_t together = std::min<int64_t>(TOGETHER, count - i);
                for (int64_t t = 0; t < together; ++t) {
                    pieces_.to_query(i + t, distances + t * CODES_AT_ONCE);
                    const int64_t own = first + i + t - start;
                    if (own_ && own >= 0 && own < size) {
                        distances[t * CODES_AT_ONCE + own] = static_cast<Distance>(bins() - 1);
                    }
                }
                uint32_t* counts = counts_.get() + i * bins();
                if (together == TOGETHER) {
                    count_codes<TOGETHER, ranked>(distances, size, counts, bins(), ranks);
                } else {
                    for (int64_t t = 0; t < together; ++t) {
                        count_codes<1, ranked>(distances + t * CODES_AT_ONCE, size, counts + t * bins(), bins(),
                                               ranked ? ranks + t * CODES_AT_ONCE : ranks);
                    }
                }
                for (int64_t t = 0; t < together; ++t) {
                    const size_t query = static_cast<size_t>(i + t);
                    if (alike[query] == i + t) taken[query] = rows_.take(cursors[query], start, size, scratch);
                    const RelevantRows::Rows rows = taken[static_cast<size_t>(alike[query])];
                    const int64_t place = t * CODES_AT_ONCE;
                    body(i + t, Hits{rows.begin, rows.count, start, distances + place, ranked ? ranks + place : ranks});
                }
            }
        }
    }

    const int64_t first, count;

private:
    Codes database_;
    bool own_;
    const RelevantRows& rows_;
    PieceDistances<Distance> pieces_;
    Buffer<uint32_t> counts_;  // [queries, bins]
};

// Calls body(group, scratch) for groups of all queries, in parallel; scratch: of type Scratch, for one call after the
// other. `bytes`: what a query needs in flight.
template <class Scratch, class Body>
static void for_query_groups(const Codes& queries, const Codes& database, const Relevance& relevance, int64_t bytes,
                             int threads, const Body& body) {
    const RelevantRows rows(relevance, queries.rows, database.rows);
    const auto whole = [](int64_t count) { return (count + TOGETHER - 1) / TOGETHER * TOGETHER; };
    const int64_t fitting = std::clamp<int64_t>(MOST_IN_FLIGHT / bytes, TOGETHER, MOST_QUERIES);
    const int64_t step = whole(std::clamp<int64_t>(queries.rows / (4 * threads), TOGETHER, fitting));
    const int64_t groups = (queries.rows + step - 1) / step, tasks = std::min<int64_t>(groups, 8 * threads);
    parallel_for(threads, tasks, [&](int64_t task) {
        Scratch scratch;
        for (int64_t first = task * step; first < queries.rows; first += tasks * step) {
            const int64_t count = std::min(step, queries.rows - first);
            if (8 * database.bytes + 1 <= UINT8_MAX) {
                body(QueryGroup<uint8_t>(queries, database, relevance, rows, first, count), scratch);
            } else {
                body(QueryGroup<int32_t>(queries, database, relevance, rows, first, count), scratch);
            }
        }
    });
}

void hamming_counts(const Codes& queries, const Codes& database, const Relevance& relevance, int threads, int64_t* all,
                    int64_t* relevant) {
    const int64_t bins = 8 * database.bytes + 1;
    const auto count = [&](auto&& group, Buffer<uint32_t>& hits) {
        hits.resize(group.count * (bins + 1));
        std::fill_n(hits.get(), hits.size(), 0);
        group.template scan<false>([&](int64_t i, const auto& piece) {
            uint32_t* counts = hits.get() + i * (bins + 1);
            for (int64_t h = 0; h < piece.count; ++h) ++counts[piece.distances[piece.rows[h] - piece.start]];
        });
        for (int64_t i = 0; i < group.count; ++i) {
            for (int64_t d = 0; d < bins; ++d) {
                all[(group.first + i) * bins + d] = group.counts(i)[d];
                relevant[(group.first + i) * bins + d] = hits[i * (bins + 1) + d];
            }
        }
    };
    for_query_groups<Buffer<uint32_t>>(queries, database, relevance, 12 * bins, threads, count);
}

namespace {

// A query's relevant codes in the order of their indices.
struct Ranking {
    std::vector<int32_t> distances;
    std::vector<uint64_t> places;  // at that distance, before it: relevant codes (high half) and all
    size_t count = 0;              // of both, which may be longer
    std::vector<uint32_t> counts;  // of relevant codes at each distance

    void reset(size_t bins) {
        count = 0;
        counts.assign(bins, 0);
    }

    template <class Hits> void add(const Hits& hits) {
        const size_t more = static_cast<size_t>(hits.count);
        if (distances.size() < count + more) {
            distances.resize(2 * (count + more));
            places.resize(2 * (count + more));
        }
        int32_t* distance = distances.data() + count;
        uint64_t* place = places.data() + count;
        uint32_t* next = counts.data();
        const auto* in = hits.distances - hits.start;
        const uint32_t* ranks = hits.ranks - hits.start;
        for (size_t h = 0; h < more; ++h) {
            const int64_t j = hits.rows[h];
            const size_t d = static_cast<size_t>(in[j]);
            distance[h] = static_cast<int32_t>(d);
            place[h] = uint64_t{next[d]++} << 32 | ranks[j];
        }
        count += more;
    }

    // The ranks of the hits, ascending; returns how many are among the first k. all [bins]: codes at each distance, the
    // last of them none.
    int64_t ranks(const uint32_t* all, int64_t k, std::vector<uint64_t>& starts, std::vector<double>& out) const {
        starts.assign(counts.size(), 1);  // of a distance: place of its first relevant code (high half), its first rank
        for (size_t d = 1; d < starts.size(); ++d) {
            starts[d] = starts[d - 1] + (uint64_t{counts[d - 1]} << 32) + all[d - 1];
        }
        if (out.size() < count) out.resize(2 * count);
        for (size_t h = 0; h < count; ++h) {
            const uint64_t place = starts[static_cast<size_t>(distances[h])] + places[h];
            out[place >> 32] = static_cast<int32_t>(place & 0xFFFFFFFF);
        }
        const auto end = out.begin() + static_cast<int64_t>(starts.back() >> 32);
        return std::upper_bound(out.begin(), end, static_cast<double>(k)) - out.begin();
    }
};

// Scratch for a group of queries.
struct Rankings {
    std::vector<Ranking> of_query;
    std::vector<uint64_t> starts;
    std::vector<double> ranks[TOGETHER];
};

}  // namespace

// The mean precision at the hits of some queries, whose ranks are given. Every sum is in the order of the ranks, and
// waits for one addition after the other: the queries take turns.
static void mean_precision(std::vector<double> (&ranks)[TOGETHER], const int64_t (&hits)[TOGETHER], int64_t queries,
                           double* out) {
    double sums[TOGETHER] = {};
    double* precisions[TOGETHER];
    for (int64_t i = 0; i < TOGETHER; ++i) {
        double* values = precisions[i] = ranks[i].data();
        for (int64_t h = 0; h < hits[i]; ++h) values[h] = static_cast<double>(static_cast<int32_t>(h) + 1) / values[h];
    }
    const int64_t common = *std::min_element(hits, hits + TOGETHER);
    for (int64_t h = 0; h < common; ++h) {
        for (int64_t i = 0; i < TOGETHER; ++i) sums[i] += precisions[i][h];
    }
    for (int64_t i = 0; i < queries; ++i) {
        for (int64_t h = common; h < hits[i]; ++h) sums[i] += precisions[i][h];
        out[i] = hits[i] == 0 ? 0.0 : sums[i] / static_cast<double>(hits[i]);
    }
}

void hamming_average_precision(const Codes& queries, const Codes& database, const Relevance& relevance, int64_t k,
                               int threads, double* out) {
    const auto rank = [&](auto&& group, Rankings& scratch) {
        scratch.of_query.resize(std::max(scratch.of_query.size(), static_cast<size_t>(group.count)));
        for (Ranking& ranking : scratch.of_query) ranking.reset(static_cast<size_t>(group.bins()));
        group.template scan<true>(
            [&](int64_t i, const auto& hits) { scratch.of_query[static_cast<size_t>(i)].add(hits); });
        for (int64_t i = 0; i < group.count; i += TOGETHER) {
            const int64_t together = std::min<int64_t>(TOGETHER, group.count - i);
            int64_t inside[TOGETHER] = {};
            for (int64_t t = 0; t < together; ++t) {
                inside[t] = scratch.of_query[static_cast<size_t>(i + t)].ranks(group.counts(i + t), k, scratch.starts,
                                                                               scratch.ranks[t]);
            }
            mean_precision(scratch.ranks, inside, together, out + group.first + i);
        }
    };
    for_query_groups<Rankings>(queries, database, relevance, 12 * database.rows, threads, rank);
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
