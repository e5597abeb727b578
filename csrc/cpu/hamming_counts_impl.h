// hamming_distance, hamming_counts and hamming_average_precision: all distances of packed codes, and what can be
// counted from them.
//
// a uint8 [N, B], b uint8 [M, B] -> distances int32 [N, M]. queries uint8 [Q, B], database uint8 [M, B] -> counts int64
// [Q, 8B + 1], how many codes (and how many relevant ones) lie at each distance; average precision float64 [Q] of the
// ranking by (distance, index) cut at k, summed in the order of the ranks.
// Memory: a relevant code's distance and rank among its equals, 8 bytes each, for the queries in flight.
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

// Which codes are relevant to one query.
class Relevant {
public:
    Relevant(const Relevance& relevance, int64_t query) : relevance_(relevance), query_(query) {}

    // 1 or 0 for each of the codes first .. first + count - 1.
    void mark(int64_t first, int64_t count, uint8_t* out) const {
        if (relevance_.words == 0) {
            const int64_t wanted = relevance_.query_classes[query_];
            for (int64_t c = 0; c < count; ++c) out[c] = relevance_.database_classes[first + c] == wanted;
            return;
        }
        const uint64_t* wanted = relevance_.query_bits + query_ * relevance_.words;
        for (int64_t c = 0; c < count; ++c) {
            const uint64_t* has = relevance_.database_bits + (first + c) * relevance_.words;
            uint64_t common = 0;
            for (int64_t w = 0; w < relevance_.words; ++w) common |= wanted[w] & has[w];
            out[c] = common != 0;
        }
    }

private:
    const Relevance& relevance_;
    int64_t query_;
};

// Calls body(count, distances, relevant) for pieces of the database in the order of the indices.
template <class Body>
static void for_pieces(const CodeWords& codes, int64_t rows, const uint64_t* words, const Relevance& relevance,
                       int64_t query, const Body& body) {
    const Relevant relevant(relevance, query);
    int32_t distances[CODES_AT_ONCE];
    uint8_t marks[CODES_AT_ONCE];
    const auto piece = [&](int64_t first, int64_t last) {
        codes.with_width([&](auto width) {
            for (int64_t j = first; j < last; ++j) {
                distances[j - first] = static_cast<int32_t>(codes.template distance<decltype(width)::value>(j, words));
            }
        });
        relevant.mark(first, last - first, marks);
        body(last - first, distances, marks);
    };
    const int64_t left_out = relevance.own ? query : rows;  // leave-one-out: the query's own row ends a piece
    for (int64_t first = 0; first < rows;) {
        if (first == left_out) {
            ++first;
            continue;
        }
        const int64_t last = std::min({rows, first + CODES_AT_ONCE, first < left_out ? left_out : rows});
        piece(first, last);
        first = last;
    }
}

void hamming_counts(const Codes& queries, const Codes& database, const Relevance& relevance, int threads, int64_t* all,
                    int64_t* relevant) {
    const CodeWords rows(queries), codes(database);
    const int64_t bins = 8 * database.bytes + 1;
    parallel_for(threads, queries.rows, [&](int64_t i) {
        std::vector<uint64_t> words(static_cast<size_t>(rows.words));
        rows.row(i, words.data());
        int64_t *total = all + i * bins, *hits = relevant + i * bins;
        std::fill_n(total, bins, 0);
        std::fill_n(hits, bins, 0);
        for_pieces(codes, database.rows, words.data(), relevance, i,
                   [&](int64_t count, const int32_t* distances, const uint8_t* marks) {
                       for (int64_t c = 0; c < count; ++c) {
                           ++total[distances[c]];
                           hits[distances[c]] += marks[c];
                       }
                   });
    });
}

namespace {

// One relevant code: its distance, and its rank among the codes at that distance.
struct Ranked {
    uint32_t distance;
    uint32_t rank;
};

// The scratch of a query, which its thread uses again.
struct Ranking {
    std::vector<Ranked> relevant;     // in the order of the indices
    std::vector<int64_t> ranks;       // the same in the order of the ranking
    std::vector<int64_t> total;       // per distance, then: codes that are nearer
    std::vector<int64_t> hits_start;  // per distance: relevant codes that are nearer
};

}  // namespace

// The mean of the precision at every hit inside the first k ranks.
static double average_precision(Ranking& ranking, size_t hits, int64_t k) {
    const size_t bins = ranking.total.size();
    std::fill(ranking.hits_start.begin(), ranking.hits_start.end(), 0);
    for (size_t h = 0; h < hits; ++h) ++ranking.hits_start[ranking.relevant[h].distance + 1];
    int64_t nearer = 0;
    for (size_t d = 0; d < bins; ++d) {
        const int64_t here = ranking.total[d];
        ranking.total[d] = nearer;
        nearer += here;
        ranking.hits_start[d + 1] += ranking.hits_start[d];
    }
    std::vector<int64_t>& ranks = ranking.ranks;
    for (size_t h = 0; h < hits; ++h) {
        const Ranked& hit = ranking.relevant[h];
        ranks[static_cast<size_t>(ranking.hits_start[hit.distance]++)] = ranking.total[hit.distance] + hit.rank;
    }
    double sum = 0.0;
    size_t inside = 0;
    for (; inside < hits && ranks[inside] <= k; ++inside) {
        sum += static_cast<double>(inside + 1) / static_cast<double>(ranks[inside]);
    }
    return inside == 0 ? 0.0 : sum / static_cast<double>(inside);
}

void hamming_average_precision(const Codes& queries, const Codes& database, const Relevance& relevance, int64_t k,
                               int threads, double* out) {
    const CodeWords rows(queries), codes(database);
    const size_t bins = 8 * static_cast<size_t>(database.bytes) + 1;
    const int64_t groups = (queries.rows + QUERIES_AT_ONCE - 1) / QUERIES_AT_ONCE;
    parallel_for(threads, groups, [&](int64_t group) {
        Ranking ranking;
        ranking.total.resize(bins);
        ranking.hits_start.resize(bins + 1);
        std::vector<uint64_t> words(static_cast<size_t>(rows.words));
        for (int64_t i = group * QUERIES_AT_ONCE; i < std::min(queries.rows, (group + 1) * QUERIES_AT_ONCE); ++i) {
            rows.row(i, words.data());
            std::fill(ranking.total.begin(), ranking.total.end(), 0);
            size_t hits = 0;
            for_pieces(codes, database.rows, words.data(), relevance, i,
                       [&](int64_t count, const int32_t* distances, const uint8_t* marks) {
                           if (ranking.relevant.size() < hits + CODES_AT_ONCE) {
                               ranking.relevant.resize(2 * hits + 2 * CODES_AT_ONCE);
                           }
                           Ranked* next = ranking.relevant.data() + hits;
                           for (int64_t c = 0; c < count; ++c) {  // written always, kept if relevant: no branch
                               const uint32_t distance = static_cast<uint32_t>(distances[c]);
                               *next = {distance, static_cast<uint32_t>(++ranking.total[distance])};
                               next += marks[c];
                           }
                           hits = static_cast<size_t>(next - ranking.relevant.data());
                       });
            if (ranking.ranks.size() < hits) ranking.ranks.resize(2 * hits);
            out[i] = average_precision(ranking, hits, k);
        }
    });
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
