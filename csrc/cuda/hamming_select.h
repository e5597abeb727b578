// The candidates of each query in their final order, by (distance, index), cut where its places end.
//
// Candidates of a query, over all its segments, lie in index order. A block sorts them by counting, stably: thread t
// takes the t-th part of them and counts distances in a column of its own in shared memory; a running sum over
// distances first and threads second gives each thread its first place for each distance. Shared memory holds WINDOW
// distances at a time, from the least that there is; the first window is often the last, because windows end where
// the places are filled.
//
// Candidates uint64 (hamming_collect.h), indices int64 and distances int32 [offsets[Q]]. Limits: less than 2^32
// candidates of a query.

#pragma once

#include "cuda/hamming_collect.h"

namespace minerlib::cuda {

struct SelectArgs {
    Segments segments;
    const int64_t* ends;     // [Q, splits]: candidates of a query up to the end of each segment
    const int64_t* offsets;  // [Q + 1]: the places of each query; it has at least as many candidates
    int64_t* indices;
    int32_t* distances;
    int32_t values;  // distances are below it
};

struct Select {
    using Args = SelectArgs;
    static constexpr int THREADS = 64, RESIDENT = 6, WINDOW = 128;

    struct Shared {
        uint32_t place[WINDOW * THREADS];  // [distance, thread]
        uint32_t rows[WINDOW];
        int64_t filled;
        int32_t least;
    };

    MINERLIB_DEVICE static void run(const Block& block, const Args& args) {
        Shared& shared = *block.shared<Shared>();
        const int64_t query = block.x(), offset = args.offsets[query], wanted = args.offsets[query + 1] - offset;
        block.phase([&](int thread) {
            int nearest = args.values;
            if (args.values > WINDOW) {
                each_candidate(args, query, thread,
                               [&](uint64_t candidate) { nearest = least(nearest, distance_of(candidate)); });
            }
            shared.rows[thread] = static_cast<uint32_t>(nearest);
        });
        block.phase([&](int thread) {
            if (thread != 0) return;
            int nearest = args.values;
            for (int t = 0; t < THREADS; ++t) nearest = least(nearest, static_cast<int>(shared.rows[t]));
            shared.least = args.values > WINDOW ? nearest : 0;
            shared.filled = 0;
        });
        for (int lowest = shared.least; lowest < args.values && shared.filled < wanted; lowest += WINDOW) {
            block.phase([&](int thread) {
                uint32_t* column = shared.place + thread;
                for (int i = 0; i < WINDOW; ++i) column[i * THREADS] = 0;
                each_candidate(args, query, thread, [&](uint64_t candidate) {
                    const int i = distance_of(candidate) - lowest;
                    if (0 <= i && i < WINDOW) ++column[i * THREADS];
                });
            });
            block.phase([&](int thread) {
                for (int i = thread; i < WINDOW; i += THREADS) {
                    uint32_t rows = 0;
                    for (int t = 0; t < THREADS; ++t) rows += shared.place[i * THREADS + (t + thread) % THREADS];
                    shared.rows[i] = rows;
                }
            });
            block.phase([&](int thread) {
                for (int i = thread; i < WINDOW; i += THREADS) {
                    uint32_t next = static_cast<uint32_t>(shared.filled);
                    for (int j = 0; j < i; ++j) next += shared.rows[j];
                    for (int t = 0; t < THREADS; ++t) {
                        const uint32_t rows = shared.place[i * THREADS + t];
                        shared.place[i * THREADS + t] = next;
                        next += rows;
                    }
                }
            });
            block.phase([&](int thread) {
                uint32_t* column = shared.place + thread;
                each_candidate(args, query, thread, [&](uint64_t candidate) {
                    const int i = distance_of(candidate) - lowest;
                    if (i < 0 || i >= WINDOW) return;
                    const int64_t place = column[i * THREADS]++;
                    if (place >= wanted) return;
                    args.indices[offset + place] = row_of(candidate);
                    args.distances[offset + place] = distance_of(candidate);
                });
            });
            block.phase([&](int thread) {
                if (thread != 0) return;
                for (int i = 0; i < WINDOW; ++i) shared.filled += shared.rows[i];
            });
        }
    }

private:
    // A thread's part of a query's candidates, in index order.
    template <class Visit>
    MINERLIB_DEVICE static void each_candidate(const Args& args, int64_t query, int thread, Visit visit) {
        const int64_t splits = args.segments.splits;
        const int64_t* ends = args.ends + query * splits;
        const int64_t count = ends[splits - 1];
        int64_t place = count * thread / THREADS;
        const int64_t stop = count * (thread + 1) / THREADS;
        if (place >= stop) return;
        int64_t split = 0;  // the first that ends beyond the place
        for (int64_t beyond = splits - 1; split < beyond;) {
            const int64_t middle = (split + beyond) / 2;
            if (ends[middle] > place) {
                beyond = middle;
            } else {
                split = middle + 1;
            }
        }
        for (; place < stop; ++split) {
            const int64_t before = split == 0 ? 0 : ends[split - 1];
            const uint64_t* candidates = args.segments.candidates + args.segments.start(query, split) - before;
            for (const int64_t end = least(stop, ends[split]); place < end; ++place) visit(candidates[place]);
        }
    }
};

}  // namespace minerlib::cuda
