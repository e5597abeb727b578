// hamming_distance, hamming_counts and hamming_average_precision: all distances of packed codes, and what can be
// counted from them.
//
// a uint8 [N, B], b uint8 [M, B] -> distances int32 [N, M]. queries uint8 [Q, B], database uint8 [M, B] -> counts int64
// [Q, 8B + 1], how many codes (and how many relevant ones) lie at each distance; average precision float64 [Q] of the
// ranking by (distance, index) cut at k, summed in the order of the ranks.
// Memory: 8 bytes a relevant code of the queries in flight, at most 128 of them and MOST_IN_FLIGHT bytes, and 8 bytes a
// distance and lane of theirs; 8 bytes a code. Limits of the counts and ranks: M < 2^31. Source: SPEC sections 5 and 8.
#pragma once

#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

#include "distance_masks.h"
#include "families.h"
#include "memory.h"
#include "pool.h"
#include "relevant_rows.h"

namespace minerlib {
namespace MINERLIB_ISA {

static constexpr int64_t ROWS_AT_ONCE = 8;                    // of a task
static constexpr int64_t CODES_AT_ONCE = 512;                 // that they meet, at least
static constexpr int TOGETHER = 4;                            // queries whose precisions are added up in turn
static constexpr int SPARE = 4;                               // divisions at once, which may reach beyond a list
static constexpr int64_t MOST_QUERIES = 128;                  // that go through the database together
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

// Queries that go through the database together, some blocks at a time.
class QueryGroup {
public:
    // The rows of the queries: order[0 .. count - 1].
    QueryGroup(const Codes& queries, const Codes& database, const Relevance& relevance, const RelevantRows& relevant,
               const int64_t* order, int64_t count)
        : order(order), count(count), own_(relevance.own), relevant_(relevant), lanes_(database.rows),
          blocks_(database, lanes_), width_((database.bytes + 7) / 8), words_(count * width_),
          places_(count * blocks_.places()) {
        const CodeWords source(queries);
        for (int64_t i = 0; i < count; ++i) {
            source.row(order[i], words_.get() + i * width_);
            blocks_.place(words(i), places_.get() + i * blocks_.places());
        }
    }

    // The words of the i-th query.
    const uint64_t* words(int64_t i) const { return words_.get() + i * width_; }

    // Calls body(i, planes, there, relevant, hits) for the i-th query and every block, in the order of the lanes'
    // rows. planes: of the distances; there, relevant: the places of the rows that are ranked and of the relevant
    // ones; hits: those, if they are to be listed.
    template <bool listed, class Body> void scan(const Body& body) {
        std::vector<RelevantRows::Cursor> cursors;
        std::vector<int64_t> alike;  // the first query to which the same rows are relevant
        for (int64_t i = 0; i < count; ++i) {
            cursors.push_back(relevant_.start(order[i]));
            alike.push_back(i > 0 && relevant_.alike(order[i], order[alike.back()]) ? alike.back() : i);
        }
        Plane planes[BlockDistances::MOST_PLANES], taken[BlockDistances::MOST_AT_ONCE];
        RelevantCodes codes[BlockDistances::MOST_AT_ONCE], others;
        for (int64_t first = 0; first < lanes_.blocks(); first += blocks_.at_once) {
            const int64_t size = std::min(lanes_.blocks() - first, blocks_.at_once);
            blocks_.read(first, first + size);
            for (int64_t i = 0; i < count; ++i) {
                if (alike[static_cast<size_t>(i)] == i) {
                    for (int64_t b = 0; b < size; ++b) {
                        taken[b] = relevant_.take(cursors[static_cast<size_t>(i)], first + b);
                        if constexpr (listed) relevant_.list(first + b, taken[b], codes[b]);
                    }
                }
                for (int64_t b = 0; b < size; ++b) {
                    blocks_.to_query(b, words(i), places_.get() + i * blocks_.places(), planes);
                    const int own = own_ ? lanes_.place(order[i], first + b) : -1;
                    if (own < 0) {
                        body(i, planes, blocks_.there(b), taken[b], codes[b]);
                        continue;
                    }
                    Plane rest = ~Plane{};
                    rest[own / 64] ^= uint64_t{1} << own % 64;
                    if constexpr (listed) relevant_.list(first + b, taken[b] & rest, others);
                    body(i, planes, blocks_.there(b) & rest, taken[b] & rest, others);
                }
            }
        }
    }

    // Of the distances.
    int planes() const { return blocks_.planes(); }

    // At least as many rows as are relevant to any of the queries.
    int64_t most() const { return relevant_.most(); }

    const int64_t* order;
    const int64_t count;

private:
    bool own_;
    const RelevantRows& relevant_;
    Lanes64 lanes_;
    BlockDistances blocks_;
    int64_t width_;
    Buffer<uint64_t> words_;   // [queries, width]
    Buffer<uint16_t> places_;  // [queries, places]
};

// Calls body(group, scratch) for groups of all queries, in parallel; scratch: of type Scratch, for one call after the
// other. bytes: what a query needs in flight; row_bytes: for each row that may be relevant to it.
template <class Scratch, class Body>
static void for_query_groups(const Codes& queries, const Codes& database, const Relevance& relevance, int64_t bytes,
                             int64_t row_bytes, int threads, const Body& body) {
    const RelevantRows rows(relevance, queries, database);
    const auto whole = [](int64_t count) { return (count + TOGETHER - 1) / TOGETHER * TOGETHER; };
    const int64_t fitting =
        std::clamp<int64_t>(MOST_IN_FLIGHT / (bytes + row_bytes * rows.most()), TOGETHER, MOST_QUERIES);
    const int64_t step = whole(std::clamp<int64_t>(queries.rows / (4 * threads), TOGETHER, fitting));
    std::mutex mutex;
    std::vector<std::unique_ptr<Scratch>> idle;
    parallel_for(threads, (queries.rows + step - 1) / step, [&](int64_t task) {
        std::unique_ptr<Scratch> scratch;
        {
            std::lock_guard<std::mutex> lock(mutex);
            if (!idle.empty()) {
                scratch = std::move(idle.back());
                idle.pop_back();
            }
        }
        if (!scratch) scratch = std::make_unique<Scratch>();
        const int64_t first = task * step, count = std::min(step, queries.rows - first);
        body(QueryGroup(queries, database, relevance, rows, rows.order.data() + first, count), *scratch);
        std::lock_guard<std::mutex> lock(mutex);
        idle.push_back(std::move(scratch));
    });
}

void hamming_counts(const Codes& queries, const Codes& database, const Relevance& relevance, int threads, int64_t* all,
                    int64_t* relevant) {
    const int64_t bins = 8 * database.bytes + 1, counted = bins_of(database.bytes);
    const auto count = [&](auto&& group, Buffer<uint64_t>& scratch) {  // [queries, counted, LANES] of all, of relevant
        scratch.resize(2 * group.count * counted * LANES);
        std::fill_n(scratch.get(), scratch.size(), 0);
        Plane* sums = reinterpret_cast<Plane*>(scratch.get());
        Plane* found = sums + group.count * counted;
        group.template scan<false>([&](int64_t i, const Plane* planes, Plane there, Plane wanted, const auto&) {
            Plane *own_sums = sums + i * counted, *own_found = found + i * counted;
            const auto add = [=](int64_t d, Plane mask) {
                own_sums[d] += count_lanes(mask);
                own_found[d] += count_lanes(mask & wanted);
            };
            DistanceMasks(planes, group.planes(), there, add);
        });
        const auto total = [](Plane lanes) {
            uint64_t sum = 0;
            for (int lane = 0; lane < LANES; ++lane) sum += lanes[lane];
            return static_cast<int64_t>(sum);
        };
        for (int64_t i = 0; i < group.count; ++i) {
            for (int64_t d = 0; d < bins; ++d) {
                all[group.order[i] * bins + d] = total(sums[i * counted + d]);
                relevant[group.order[i] * bins + d] = total(found[i * counted + d]);
            }
        }
    };
    const int64_t bytes = 16 * counted * LANES;
    for_query_groups<Buffer<uint64_t>>(queries, database, relevance, bytes, 0, threads, count);
}

namespace {

// Scratch for a group of queries, and for some of them in turn.
struct Rankings {
    Buffer<uint64_t> found;  // [queries, most]: a relevant code's group, distance * LANES + lane, in the high half,
    std::vector<int64_t> counts;  // and in the low one how many codes come before it there. counts [queries]
    Buffer<uint64_t> sums;        // [queries, bins, LANES]: codes in each group; in the high half how many are relevant
    Buffer<int32_t> ranks;        // [TOGETHER, most + SPARE]: of the relevant codes, ascending
};

// Whether the relevant codes of a mask are counted at once, not one by one as their places are found.
#ifdef __AVX512VPOPCNTDQ__
constexpr bool COUNT_MASKS = true;
#else
constexpr bool COUNT_MASKS = false;
#endif
constexpr uint64_t ONE_RELEVANT = uint64_t{1} << 32;

}  // namespace

// Finds the places of a block's relevant codes in their groups. masks [bins, LANES]: the block's codes in each group;
// counts [bins, LANES]: how many have been there, up to the block's end, in the low half. fixed: the words of a code,
// where it is not 0.
template <int fixed>
__attribute__((noinline)) static void find_places(const RelevantCodes& hits, const uint64_t* query, int64_t width,
                                                  const uint64_t* masks, const uint64_t* counts, uint64_t* out) {
    const uint64_t* code = hits.words.data();
    const uint16_t* places = hits.places.data();
    const int64_t size = static_cast<int64_t>(hits.places.size());
#ifdef __AVX512VPOPCNTDQ__
    if constexpr (fixed == 1) {
        static_assert(LANES == 8, "distance * LANES is a shift by three");
        const __m512i wanted = _mm512_set1_epi64(static_cast<int64_t>(query[0]));
        const __m512i low = _mm512_set1_epi64(0xFFFFFFFF);
        for (int64_t h = 0; h < size; h += 8) {
            // Where there is no code, one of zeros is looked up, whose group is one like any other.
            const __mmask8 here = static_cast<__mmask8>(size - h < 8 ? (1 << (size - h)) - 1 : 0xFF);
            const __m512i codes = _mm512_maskz_loadu_epi64(here, code + h);
            const __m512i place = _mm512_cvtepu16_epi64(_mm_maskz_loadu_epi16(here, places + h));
            const __m512i d = _mm512_popcnt_epi64(_mm512_xor_si512(codes, wanted));
            const __m512i group = _mm512_add_epi64(_mm512_slli_epi64(d, 3), _mm512_srli_epi64(place, 6));
            const __m512i later = _mm512_srlv_epi64(_mm512_i64gather_epi64(group, masks, 8),
                                                    _mm512_and_si512(place, _mm512_set1_epi64(63)));
            const __m512i so_far = _mm512_and_si512(_mm512_i64gather_epi64(group, counts, 8), low);
            const __m512i before = _mm512_sub_epi64(so_far, _mm512_popcnt_epi64(later));
            _mm512_mask_storeu_epi64(out + h, here, _mm512_or_si512(_mm512_slli_epi64(group, 32), before));
        }
        return;
    }
#endif
    for (int64_t h = 0; h < size; ++h, code += fixed > 0 ? fixed : width) {
        int64_t d = 0;
        for (int64_t w = 0; w < (fixed > 0 ? fixed : width); ++w) d += count_bits(code[w] ^ query[w]);
        const unsigned place = places[h];
        const uint64_t group = static_cast<uint64_t>(d) * LANES + place / 64;
        // Of the codes in this group so far, those of this block that are not before this one are taken off.
        const uint64_t others = static_cast<uint64_t>(count_bits(masks[group] >> place % 64));
        out[h] = group << 32 | (static_cast<uint32_t>(counts[group]) - others);
    }
}

// A query whose relevant codes are to be ranked.
struct Ranking {
    uint64_t* sums;         // [groups]: codes in each group, and with COUNT_MASKS relevant ones in the high half; lost
    const uint64_t* found;  // [count]: the relevant codes, those of a group in order
    int64_t count;
    int32_t* ranks;  // [count]: theirs, ascending
};

// Calls body(query, hit, counter) for a hit of every query in turn, with what the counter of the hit's group holds, and
// adds ONE_RELEVANT to that. A processor that doesn't know yet where it writes may not read on, and one that reads what
// it has just written waits: so all queries' counters and next hits are read before any is written.
template <class Body> static MINERLIB_INLINE void each_hit(const Ranking (&queries)[TOGETHER], const Body& body) {
    int64_t common = queries[0].count;
    for (const Ranking& query : queries) common = std::min(common, query.count);
    uint64_t hits[TOGETHER], next[TOGETHER], counters[TOGETHER];
    for (int t = 0; common > 0 && t < TOGETHER; ++t) next[t] = queries[t].found[0];
    for (int64_t h = 0; h < common; ++h) {
#pragma GCC unroll 4
        for (int t = 0; t < TOGETHER; ++t) {
            hits[t] = next[t];
            counters[t] = queries[t].sums[hits[t] >> 32];
            next[t] = queries[t].found[h + 1];  // behind the last one whatever lies there, unused
        }
#pragma GCC unroll 4
        for (int t = 0; t < TOGETHER; ++t) {
            queries[t].sums[hits[t] >> 32] = counters[t] + ONE_RELEVANT;
            body(queries[t], hits[t], counters[t]);
        }
    }
    for (const Ranking& query : queries) {
        for (int64_t h = common; h < query.count; ++h) {
            uint64_t& counter = query.sums[query.found[h] >> 32];
            body(query, query.found[h], counter);
            counter += ONE_RELEVANT;
        }
    }
}

// Ranks the relevant codes of some queries.
__attribute__((noinline)) static void rank_hits(const Ranking (&all)[TOGETHER], int64_t groups) {
    Ranking queries[TOGETHER];
    std::copy_n(all, TOGETHER, queries);
    if (!COUNT_MASKS) each_hit(queries, [](const Ranking&, uint64_t, uint64_t) {});
    for (const Ranking& query : queries) {
        uint64_t start = 1;  // the rank of a group's first code; in the high half how many relevant ones come before
        for (int64_t g = 0; query.count > 0 && g < groups; ++g) {
            const uint64_t sum = query.sums[g];
            query.sums[g] = start;
            start += sum;
        }
    }
    each_hit(queries, [](const Ranking& query, uint64_t hit, uint64_t counter) {
        query.ranks[counter >> 32] = static_cast<int32_t>(counter + hit);
    });
}

// The mean precision at the hits of some queries. Every sum is in the order of the ranks, and waits for one addition
// after the other: those of the queries are added in turn. ranks: TOGETHER lists, `stride` apart.
__attribute__((noinline)) static void mean_precision(const int32_t* ranks, int64_t stride,
                                                     const int64_t (&hits)[TOGETHER], double (&out)[TOGETHER]) {
    constexpr int64_t step = 64;
    typedef double Doubles __attribute__((vector_size(SPARE * 8), aligned(8), may_alias));
    typedef int32_t Ranks __attribute__((vector_size(SPARE * 4), aligned(4), may_alias));
    double sums[TOGETHER] = {}, precisions[TOGETHER][step];
    const int64_t most = *std::max_element(hits, hits + TOGETHER);
    for (int64_t first = 0; first < most; first += step) {
        for (int t = 0; t < TOGETHER; ++t) {
            const int64_t count = std::clamp<int64_t>(hits[t] - first, 0, step);
            const int32_t* here = ranks + t * stride + first;
            Doubles number = static_cast<double>(first + 1) + Doubles{0, 1, 2, 3};
            for (int64_t h = 0; h < count; h += SPARE, number += SPARE) {
                const Doubles rank = __builtin_convertvector(*reinterpret_cast<const Ranks*>(here + h), Doubles);
                *reinterpret_cast<Doubles*>(precisions[t] + h) = number / rank;
            }
            std::fill_n(precisions[t] + count, step - count, 0.0);  // adds nothing
        }
        for (int64_t h = 0; h < step; ++h) {
            for (int t = 0; t < TOGETHER; ++t) sums[t] += precisions[t][h];
        }
    }
    for (int t = 0; t < TOGETHER; ++t) out[t] = hits[t] == 0 ? 0.0 : sums[t] / static_cast<double>(hits[t]);
}

void hamming_average_precision(const Codes& queries, const Codes& database, const Relevance& relevance, int64_t k,
                               int threads, double* out) {
    const int64_t width = (database.bytes + 7) / 8, groups = bins_of(database.bytes) * LANES;
    const auto rank = [&](auto&& group, Rankings& scratch) {
        const int64_t most = group.most();
        scratch.found.resize(group.count * most);
        scratch.counts.assign(static_cast<size_t>(group.count), 0);
        const int64_t stride = most + SPARE;
        scratch.ranks.resize(TOGETHER * stride);
        scratch.sums.resize(group.count * groups);
        std::fill_n(scratch.sums.get(), scratch.sums.size(), 0);
        Buffer<uint64_t> masks(groups);
        group.template scan<true>(
            [&](int64_t i, const Plane* planes, Plane there, Plane wanted, const RelevantCodes& hits) {
                uint64_t* sums = scratch.sums.get() + i * groups;
                Plane *own_masks = reinterpret_cast<Plane*>(masks.get()), *own_sums = reinterpret_cast<Plane*>(sums);
                const auto add = [=](int64_t d, Plane mask) {
                    own_masks[d] = mask;
                    own_sums[d] += count_lanes(mask);
                    if (COUNT_MASKS) own_sums[d] += count_lanes(mask & wanted) << 32;
                };
                DistanceMasks(planes, group.planes(), there, add);
                int64_t& count = scratch.counts[static_cast<size_t>(i)];
                uint64_t* found = scratch.found.get() + i * most + count;
                if (width == 1) {
                    find_places<1>(hits, group.words(i), 1, masks.get(), sums, found);
                } else {
                    find_places<0>(hits, group.words(i), width, masks.get(), sums, found);
                }
                count += static_cast<int64_t>(hits.places.size());
            });
        for (int64_t i = 0; i < group.count; i += TOGETHER) {
            const int together = static_cast<int>(std::min<int64_t>(TOGETHER, group.count - i));
            int64_t inside[TOGETHER] = {};
            double means[TOGETHER];
            Ranking queries[TOGETHER] = {};
            for (int t = 0; t < together; ++t) {
                queries[t] = {scratch.sums.get() + (i + t) * groups, scratch.found.get() + (i + t) * most,
                              scratch.counts[static_cast<size_t>(i + t)], scratch.ranks.get() + t * stride};
            }
            rank_hits(queries, groups);
            for (int t = 0; t < together; ++t) {
                const int32_t *ranks = queries[t].ranks, *end = ranks + queries[t].count;
                inside[t] = std::upper_bound(ranks, end, k) - ranks;
            }
            mean_precision(scratch.ranks.get(), stride, inside, means);
            for (int t = 0; t < together; ++t) out[group.order[i + t]] = means[t];
        }
    };
    for_query_groups<Rankings>(queries, database, relevance, 8 * groups, 8, threads, rank);
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
