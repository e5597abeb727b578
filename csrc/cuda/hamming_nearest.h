// How far the k-th nearest can be, and the k nearest of few candidates.
//
// `Limits`: of counts at each distance, the least distance up to which k rows lie. `Nearest`: of all candidates
// (hamming_collect.h), those within the limit, ranked by how many of them come before each. There are k of them and
// those that tie with the k-th; where a segment was full, or they are more than a block has room for, `failed` is set
// and the answer is worth nothing (hamming_select.h takes any number).

#pragma once

#include "cuda/hamming_collect.h"

namespace minerlib::cuda {

struct LimitsArgs {
    const int64_t* totals;  // [Q, values]
    int64_t k;
    int32_t* limits;  // [Q], lowered; or written, where they are the first
    int32_t values;
    bool first;
};

struct Limits {
    using Args = LimitsArgs;
    static constexpr int THREADS = 64, RESIDENT = 16, EACH = 8, WINDOW = THREADS * EACH;

    struct Shared {
        int64_t count[WINDOW], part[THREADS];
        int64_t nearer;  // rows before the window
        int32_t found;
    };

    MINERLIB_DEVICE static void run(const Block& block, const Args& args) {
        Shared& shared = *block.shared<Shared>();
        const int64_t* totals = args.totals + block.x() * args.values;
        block.phase([&](int thread) {
            if (thread == 0) shared.nearer = shared.found = 0;
        });
        for (int lowest = 0; lowest < args.values && shared.found == 0; lowest += WINDOW) {
            const int window = least(WINDOW, args.values - lowest);
            block.phase([&](int thread) {
                for (int i = thread; i < window; i += THREADS) shared.count[i] = totals[lowest + i];
            });
            block.phase([&](int thread) {
                int64_t rows = 0;
                for (int i = thread * EACH; i < least(thread * EACH + EACH, window); ++i) rows += shared.count[i];
                shared.part[thread] = rows;
            });
            block.phase([&](int thread) {
                if (thread != 0) return;
                int64_t rows = shared.nearer;
                for (int part = 0; part < THREADS; ++part) {
                    if (rows + shared.part[part] < args.k) {
                        rows += shared.part[part];
                        continue;
                    }
                    int i = part * EACH;
                    while ((rows += shared.count[i]) < args.k) ++i;
                    int32_t& limit = args.limits[block.x()];
                    limit = args.first ? lowest + i : least(limit, lowest + i);
                    shared.found = 1;
                    return;
                }
                shared.nearer = rows;
            });
        }
    }
};

struct NearestArgs {
    Segments segments;      // of the same capacity
    const int32_t* counts;  // [Q, splits]
    const int32_t* limits;  // [Q]: up to it each query has k candidates at least
    int64_t* indices;       // [Q, k]
    int32_t* distances;     // [Q, k]
    int64_t* failed;        // [1], set
    int64_t k;
    int32_t lanes;  // threads that read a segment side by side, a divisor of the threads
};

struct Nearest {
    using Args = NearestArgs;
    static constexpr int THREADS = 1024, RESIDENT = 1, MOST = 1024;

    struct Shared {
        uint64_t candidate[MOST];
        int32_t count;
    };

    MINERLIB_DEVICE static void run(const Block& block, const Args& args) {
        Shared& shared = *block.shared<Shared>();
        const int64_t query = block.x();
        block.phase([&](int thread) {
            if (thread == 0) shared.count = 0;
        });
        block.phase([&](int thread) {
            const int32_t limit = args.limits[query];
            for (int64_t split = thread / args.lanes; split < args.segments.splits;
                 split += block.threads() / args.lanes) {
                const int32_t count = args.counts[args.segments.place(query, split)];
                if (count > args.segments.capacity) *args.failed = 1;
                const uint64_t* candidates = args.segments.candidates + args.segments.start(query, split);
                const int stop = static_cast<int>(least<int64_t>(count, args.segments.capacity));
                for (int i = thread % args.lanes; i < stop; i += args.lanes) {
                    const uint64_t candidate = candidates[i];
                    if (distance_of(candidate) > limit) continue;
                    const int place = atomic_next(&shared.count);
                    if (place < MOST) shared.candidate[place] = candidate;
                }
            }
        });
        block.phase([&](int thread) {
            if (shared.count > MOST) *args.failed = 1;
            const int count = least(shared.count, MOST);
            for (int i = thread; i < count; i += block.threads()) {
                const uint64_t candidate = shared.candidate[i];
                int rank = 0;
                for (int j = 0; j < count; ++j) rank += shared.candidate[j] < candidate;
                if (rank >= args.k) continue;
                args.indices[query * args.k + rank] = row_of(candidate);
                args.distances[query * args.k + rank] = distance_of(candidate);
            }
        });
    }
};

}  // namespace minerlib::cuda
