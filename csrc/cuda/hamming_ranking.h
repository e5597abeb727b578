// Average precision of rankings by (distance, index), cut at k.
//
//     AP(q) = (1 / H) sum over relevant rows in the cut, in rank order, of float64(hits so far) / float64(rank)
//
// with H relevant rows inside the cut, and 0 where H is 0. No ranking is formed. A part's counts at each distance
// (hamming_histogram.h, by part) say at which rank its first row of a distance stands and which hit its first relevant
// one is; `Rank` walks the part in index order, counts on from there in columns of shared memory, and writes the rank
// of each relevant row to the place of its hit. `Precision` adds the precisions one after another, as the definition
// does, so the sum has its bits. Limits: less than 2^31 rows.

#pragma once

#include "cuda/hamming_histogram.h"

namespace minerlib::cuda {

struct RankArgs {
    const uint32_t* queries;  // [Q, width]
    Codes database;
    Labels labels;
    Parts parts;
    int32_t values;  // distances: 8 * bytes + 1
    int32_t window;  // of them at a time
    int64_t all_parts;
    const int32_t* first_ranks;  // [Q, parts, values], from 0
    const int32_t* first_hits;   // [Q, parts, values], from 0
    int64_t k;
    int32_t* ranks;  // [Q, k]: the rank of each hit, from 1
    int32_t* hits;   // [Q], added to: relevant rows inside the cut
};

template <int WORDS> struct Rank {
    using Args = RankArgs;
    static constexpr int THREADS = 64, RESIDENT = 16;

    MINERLIB_DEVICE static void run(const Block& block, const Args& args) {
        block.phase([&](int thread) { walk(block, args, thread); });
    }

private:
    MINERLIB_DEVICE static void walk(const Block& block, const Args& args, int thread) {
        const auto share = args.parts.of(block, thread, true);
        if (share.query >= args.parts.queries) return;
        const int threads = block.threads(), lowest = block.y() * args.window;
        const int window = least(args.window, args.values - lowest);
        int32_t* next_rank = block.shared<int32_t>() + thread;
        int32_t* next_hit = next_rank + args.window * threads;
        const int64_t at = (share.query * args.all_parts + share.part) * args.values + lowest;
        for (int i = 0; i < window; ++i) {
            next_rank[i * threads] = args.first_ranks[at + i];
            next_hit[i * threads] = args.first_hits[at + i];
        }

        const Query<WORDS> query(args.queries + share.query * args.database.width);
        int32_t inside = 0;
        for (int32_t i = 0; i < share.count; ++i) {
            const int64_t row = share.row + i;
            const int place = query.distance(args.database, row) - lowest;
            if (static_cast<uint32_t>(place) >= static_cast<uint32_t>(window) || i == share.own_th) continue;
            const int32_t rank = next_rank[place * threads]++;
            if (!args.labels.relevant(share.query, row)) continue;
            const int32_t hit = next_hit[place * threads]++;
            if (rank >= args.k) continue;
            args.ranks[share.query * args.k + hit] = rank + 1;
            ++inside;
        }
        if (inside != 0) atomic_add(args.hits + share.query, inside);
    }
};

struct PrecisionArgs {
    const int32_t* ranks;  // [Q, k]
    const int32_t* hits;   // [Q]
    double* out;           // [Q]
    int64_t queries;       // Q
    int64_t k;
};

struct Precision {
    using Args = PrecisionArgs;
    static constexpr int THREADS = 64, RESIDENT = 16;

    MINERLIB_DEVICE static void run(const Block& block, const Args& args) {
        block.phase([&](int thread) {
            const int64_t query = block.x() * THREADS + thread;
            if (query >= args.queries) return;
            const int32_t hits = args.hits[query];
            const int32_t* ranks = args.ranks + query * args.k;
            double total = 0;
            for (int32_t hit = 0; hit < hits; ++hit) total += (hit + 1.0) / ranks[hit];
            args.out[query] = hits == 0 ? 0.0 : total / hits;
        });
    }
};

}  // namespace minerlib::cuda
