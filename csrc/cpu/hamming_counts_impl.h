// hamming_distance, hamming_counts and hamming_average_precision: all distances of packed codes, and what can be
// counted from them.
//
// a uint8 [N, B], b uint8 [M, B] -> distances int32 [N, M]. queries uint8 [Q, B], database uint8 [M, B] -> counts int64
// [Q, 8B + 1], how many codes (and how many relevant ones) lie at each distance; average precision float64 [Q] of the
// ranking by (distance, index) cut at k, summed in the order of the ranks.
// Memory: a relevant code's distance and rank among its equals, 8 to 16 bytes each, for the queries in flight.
// Limits of the counts and ranks: M < 2^31.
// Source: SPEC sections 5 and 8.
#pragma once

#include <algorithm>
#include <vector>

#include "code_words.h"
#include "families.h"
#include "memory.h"
#include "pool.h"

namespace minerlib {
namespace MINERLIB_ISA {

static constexpr int64_t CODES_AT_ONCE = 512;  // whose distances are formed before they are counted
static constexpr int64_t QUERIES_AT_ONCE = 8;  // of a task

void hamming_distance(const Codes& a, const Codes& b, int threads, int32_t* out) {
    const CodeWords rows(a), columns(b);
    const int64_t groups = (a.rows + QUERIES_AT_ONCE - 1) / QUERIES_AT_ONCE;
    const int64_t slice = std::max<int64_t>(CODES_AT_ONCE, (int64_t{1} << 17) / std::max<int64_t>(1, b.bytes));
    const int64_t slices = (b.rows + slice - 1) / slice;  // codes that stay in the cache for a group's rows
    parallel_for(threads, groups * slices, [&](int64_t task) {
        const int64_t j0 = task % slices * slice, j1 = std::min(b.rows, j0 + slice);
        const int64_t i0 = task / slices * QUERIES_AT_ONCE, i1 = std::min(a.rows, i0 + QUERIES_AT_ONCE);
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

// Which codes of a piece of the database are relevant to a query.
class PieceLabels {
public:
    explicit PieceLabels(const Relevance& relevance) : relevance_(relevance) {}

    void read(int64_t first, int64_t count) {
        first_ = first;
        count_ = count;
        if (relevance_.words > 0) return;
        for (int64_t c = 0; c < count; ++c) classes_[c] = static_cast<int32_t>(relevance_.database_classes[first + c]);
    }

    // 1 or 0 for each code.
    void mark(int64_t query, uint8_t* out) const {
        if (relevance_.words == 0) {
            const int32_t wanted = static_cast<int32_t>(relevance_.query_classes[query]);
            for (int64_t c = 0; c < count_; ++c) out[c] = classes_[c] == wanted;
            return;
        }
        const uint64_t* wanted = relevance_.query_bits + query * relevance_.words;
        const uint64_t* has = relevance_.database_bits + first_ * relevance_.words;
        for (int64_t c = 0; c < count_; ++c, has += relevance_.words) {
            uint64_t common = 0;
            for (int64_t w = 0; w < relevance_.words; ++w) common |= wanted[w] & has[w];
            out[c] = common != 0;
        }
    }

private:
    const Relevance& relevance_;
    int64_t first_ = 0, count_ = 0;
    int32_t classes_[CODES_AT_ONCE];  // narrower than they came: half as many to compare
};

// Distances of some codes to a query, and which of them are relevant.
struct Piece {
    int64_t size = 0;
    int32_t distances[CODES_AT_ONCE];
    uint8_t relevant[CODES_AT_ONCE];
};

// Queries that go through the database together, piece by piece, so that a piece is read and widened to whole words
// once for all of them. Its two halves are gone through at the same time, a piece of each: counting one distance
// waits for the last count of an equal one, and two counters wait half as long.
class QueryGroup {
public:
    QueryGroup(const Codes& queries, int64_t group)
        : first(group * QUERIES_AT_ONCE), count(std::min(QUERIES_AT_ONCE, queries.rows - first)) {
        const CodeWords source(queries);
        width_ = source.words;
        words_.resize(count * width_);
        for (int64_t i = 0; i < count; ++i) source.row(first + i, words_.get() + i * width_);
    }

    static int64_t groups(const Codes& queries) { return (queries.rows + QUERIES_AT_ONCE - 1) / QUERIES_AT_ONCE; }

    // Calls body(i, near, far) for query first + i with a piece of either half of the database, pieces in the order of
    // the indices. A query's own row is left out where the relevance says so.
    template <class Body> void scan(const Codes& database, const Relevance& relevance, const Body& body) const {
        const CodeWords codes(database);
        const int64_t half = (database.rows + 1) / 2, ends[2] = {half, database.rows};
        Buffer<uint64_t> words[2];
        PieceLabels labels[2] = {PieceLabels(relevance), PieceLabels(relevance)};
        Piece pieces[2];
        for (auto& buffer : words) buffer.resize(CODES_AT_ONCE * width_);
        for (int64_t done = 0; done < half; done += CODES_AT_ONCE) {
            const int64_t starts[2] = {done, half + done};
            int64_t sizes[2];
            for (int h = 0; h < 2; ++h) {
                sizes[h] = std::clamp<int64_t>(ends[h] - starts[h], 0, CODES_AT_ONCE);
                codes.rows(starts[h], sizes[h], words[h].get());
                labels[h].read(starts[h], sizes[h]);
            }
            for (int64_t i = 0; i < count; ++i) {
                for (int h = 0; h < 2; ++h) {
                    pieces[h].size = sizes[h];
                    distances_to(words[h].get(), sizes[h], words_.get() + i * width_, pieces[h].distances);
                    labels[h].mark(first + i, pieces[h].relevant);
                    if (relevance.own) leave_out(first + i - starts[h], pieces[h]);
                }
                body(i, pieces[0], pieces[1]);
            }
        }
    }

    const int64_t first, count;

private:
    static void leave_out(int64_t place, Piece& piece) {
        if (place < 0 || place >= piece.size) return;
        std::copy(piece.distances + place + 1, piece.distances + piece.size, piece.distances + place);
        std::copy(piece.relevant + place + 1, piece.relevant + piece.size, piece.relevant + place);
        --piece.size;
    }

    void distances_to(const uint64_t* codes, int64_t size, const uint64_t* query, int32_t* out) const {
        if (width_ == 1) {
            const uint64_t wanted = query[0];
#pragma GCC unroll 8
            for (int64_t c = 0; c < size; ++c) out[c] = static_cast<int32_t>(count_bits(codes[c] ^ wanted));
            return;
        }
        for (int64_t c = 0; c < size; ++c, codes += width_) {
            int64_t sum = 0;
            for (int64_t w = 0; w < width_; ++w) sum += count_bits(codes[w] ^ query[w]);
            out[c] = static_cast<int32_t>(sum);
        }
    }

    int64_t width_;
    Buffer<uint64_t> words_;  // [count, width]
};

// Calls body(half, distance, relevant) for every code of the two pieces, in turn as long as both have some.
template <class Body> static inline void for_both(const Piece& near, const Piece& far, const Body& body) {
    const int64_t common = std::min(near.size, far.size);
    for (int64_t c = 0; c < common; ++c) {
        body(0, near.distances[c], near.relevant[c]);
        body(1, far.distances[c], far.relevant[c]);
    }
    for (int64_t c = common; c < near.size; ++c) body(0, near.distances[c], near.relevant[c]);
    for (int64_t c = common; c < far.size; ++c) body(1, far.distances[c], far.relevant[c]);
}

void hamming_counts(const Codes& queries, const Codes& database, const Relevance& relevance, int threads, int64_t* all,
                    int64_t* relevant) {
    const int64_t bins = 8 * database.bytes + 1;
    parallel_for(threads, QueryGroup::groups(queries), [&](int64_t g) {
        const QueryGroup group(queries, g);
        Buffer<uint64_t> both(group.count * 2 * bins);  // all in the low half, relevant ones in the high half
        std::fill_n(both.get(), both.size(), 0);
        group.scan(database, relevance, [&](int64_t i, const Piece& near, const Piece& far) {
            uint64_t* counts[2] = {both.get() + 2 * i * bins, both.get() + (2 * i + 1) * bins};
            for_both(near, far, [&](int half, int32_t distance, uint8_t mark) {
                counts[half][distance] += 1 | uint64_t{mark} << 32;
            });
        });
        for (int64_t i = 0; i < group.count; ++i) {
            for (int64_t d = 0; d < bins; ++d) {
                const uint64_t sum = both[2 * i * bins + d] + both[(2 * i + 1) * bins + d];
                all[(group.first + i) * bins + d] = static_cast<int64_t>(sum & 0xFFFFFFFF);
                relevant[(group.first + i) * bins + d] = static_cast<int64_t>(sum >> 32);
            }
        }
    });
}

namespace {

// One relevant code: its distance (high half), and its rank among the codes of its half of the database at that
// distance. One number, so that it is made and written in one piece.
using Ranked = uint64_t;

// What is known of a query's ranking in one half of the database.
struct Ranking {
    std::vector<Ranked> relevant;  // in the order of the indices
    size_t hits = 0;               // of `relevant`, which is longer
    std::vector<uint64_t> counts;  // at each distance: all codes in the low half, relevant ones in the high half
};

// Scratch of average_precision.
struct Order {
    std::vector<int64_t> nearer;      // per distance: codes that are nearer
    std::vector<int64_t> hits_start;  // per distance: relevant codes that are nearer
    std::vector<double> ranks;        // of the relevant codes, ascending
};

}  // namespace

// The mean of the precision at every hit inside the first k ranks.
static double average_precision(const Ranking (&halves)[2], int64_t k, Order& order) {
    const size_t bins = halves[0].counts.size(), hits = halves[0].hits + halves[1].hits;
    order.nearer.assign(bins + 1, 0);
    order.hits_start.assign(bins + 1, 0);
    if (order.ranks.size() < hits) order.ranks.resize(2 * hits);
    for (size_t d = 0; d < bins; ++d) {
        const uint64_t here = halves[0].counts[d] + halves[1].counts[d];
        order.nearer[d + 1] = order.nearer[d] + static_cast<int64_t>(here & 0xFFFFFFFF);
        order.hits_start[d + 1] = order.hits_start[d] + static_cast<int64_t>(here >> 32);
    }
    for (const Ranking& half : halves) {
        for (size_t h = 0; h < half.hits; ++h) {
            const size_t distance = half.relevant[h] >> 32;
            const size_t place = static_cast<size_t>(order.hits_start[distance]++);
            const int64_t rank = order.nearer[distance] + static_cast<int64_t>(half.relevant[h] & 0xFFFFFFFF);
            order.ranks[place] = static_cast<double>(rank);
        }
        // Codes of the second half rank behind all those of the first at their distance.
        for (size_t d = 0; d < bins; ++d) order.nearer[d] += static_cast<int64_t>(half.counts[d] & 0xFFFFFFFF);
    }
    double* ranks = order.ranks.data();
    const size_t inside = static_cast<size_t>(std::upper_bound(ranks, ranks + hits, static_cast<double>(k)) - ranks);
    for (size_t h = 0; h < inside; ++h) ranks[h] = static_cast<double>(static_cast<int32_t>(h) + 1) / ranks[h];
    double sum = 0.0;
    for (size_t h = 0; h < inside; ++h) sum += ranks[h];
    return inside == 0 ? 0.0 : sum / static_cast<double>(inside);
}

namespace {
using Halves = Ranking[2];
}

// Ranks the database for each query of a group; rankings: one for each, of which only the memory is used.
static void rank_group(const QueryGroup& group, const Codes& database, const Relevance& relevance, Halves* rankings) {
    for (int64_t i = 0; i < group.count; ++i) {
        for (Ranking& half : rankings[i]) {
            half.counts.assign(8 * static_cast<size_t>(database.bytes) + 1, 0);
            half.hits = 0;
        }
    }
    group.scan(database, relevance, [&](int64_t i, const Piece& near, const Piece& far) {
        Ranked* next[2];
        uint64_t* counts[2];
        for (int h = 0; h < 2; ++h) {
            Ranking& half = rankings[i][h];
            const size_t room = half.hits + static_cast<size_t>(CODES_AT_ONCE);
            if (half.relevant.size() < room) half.relevant.resize(2 * room);
            next[h] = half.relevant.data() + half.hits;
            counts[h] = half.counts.data();
        }
        for_both(near, far, [&](int half, int32_t distance, uint8_t mark) {
            const uint64_t count = counts[half][distance] += 1 | uint64_t{mark} << 32;
            // Written always, kept if relevant: no branch.
            *next[half] = static_cast<uint64_t>(distance) << 32 | (count & 0xFFFFFFFF);
            next[half] += mark;
        });
        for (int h = 0; h < 2; ++h) {
            rankings[i][h].hits = static_cast<size_t>(next[h] - rankings[i][h].relevant.data());
        }
    });
}

void hamming_average_precision(const Codes& queries, const Codes& database, const Relevance& relevance, int64_t k,
                               int threads, double* out) {
    const int64_t groups = QueryGroup::groups(queries), tasks = std::min<int64_t>(groups, 8 * threads);
    parallel_for(threads, tasks, [&](int64_t task) {
        Halves rankings[QUERIES_AT_ONCE];
        Order order;
        for (int64_t g = task; g < groups; g += tasks) {
            const QueryGroup group(queries, g);
            rank_group(group, database, relevance, rankings);
            for (int64_t i = 0; i < group.count; ++i) out[group.first + i] = average_precision(rankings[i], k, order);
        }
    });
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
