// How many database rows lie at each distance from a query, and how many of them are relevant.
//
// A thread counts rows for one query in a column of its own in shared memory: no atomics, no bank conflicts (thread t
// uses bank t), and meets AHEAD rows before it counts the first, so that their words are on their way together. Rows in
// the low and relevant rows in the high half of a counter, so a thread takes at most MOST_ROWS of them. Shared memory
// holds `window` distances; block.y() says which, so codes of any length are counted. Two ways to deal out rows:
//   summed   the parts of a block take turns, neighbours read neighbouring rows; counts of all parts are added up
//   by part  a part takes thread_rows consecutive rows and has counts of its own, for what goes on in index order
// Codes as in codes.h. With `own`, row i is query i and does not count.

#pragma once

#include "cuda/codes.h"

namespace minerlib::cuda {

struct Labels {
    const int32_t* query_class;    // [Q], or null
    const int32_t* row_class;      // [M]
    const uint64_t* query_labels;  // [Q, words]: relevant where a bit is shared
    const uint64_t* row_labels;    // [M, words]
    int32_t words;

    MINERLIB_DEVICE bool relevant(int64_t query, int64_t row) const {
        if (query_class != nullptr) return query_class[query] == row_class[row];
        for (int word = 0; word < words; ++word) {
            if ((query_labels[query * words + word] & row_labels[row * words + word]) != 0) return true;
        }
        return false;
    }
};

// Which query and which rows a thread has.
struct Parts {
    int64_t queries;      // Q
    int64_t first;        // the queries' place in the whole set, for `own`
    int64_t rows;         // M
    int64_t splits;       // of the database, each a block's
    int32_t block;        // queries of a block, a divisor of its threads; the parts of a split share it
    int32_t thread_rows;  // rows of a part
    bool own;

    // Rows `row`, `row` + `step`, .., `count` of them; the query's own is the own_th, or none.
    struct Share {
        int64_t query, part, row;
        int32_t step, count, own_th;
    };

    MINERLIB_DEVICE Share of(const Block& block_, int thread, bool by_part) const {
        const int64_t parts = block_.threads() / block;
        const int64_t split = block_.x() % splits, place = thread / block;
        Share share;
        share.query = block_.x() / splits * block + thread % block;
        share.part = split * parts + place;
        share.row = by_part ? share.part * thread_rows : split * parts * thread_rows + place;
        share.step = static_cast<int32_t>(by_part ? 1 : parts);
        const int64_t left = (rows - share.row + share.step - 1) / share.step;
        share.count = share.row < rows ? static_cast<int32_t>(least<int64_t>(left, thread_rows)) : 0;
        const int64_t beyond = first + share.query - share.row;
        const bool has_own = own && beyond >= 0 && beyond % share.step == 0 && beyond / share.step < share.count;
        share.own_th = has_own ? static_cast<int32_t>(beyond / share.step) : -1;
        return share;
    }
};

struct HistogramArgs {
    const uint32_t* queries;  // [Q, width]
    Codes database;
    Labels labels;
    Parts parts;
    int32_t values;             // distances: 8 * bytes + 1
    int32_t window;             // of them at a time
    int64_t* totals;            // [Q, values], added to; or null, then
    int64_t* relevant_totals;   // [Q, values], added to; or null
    int32_t* by_part;           // [Q, parts, values], written
    int32_t* relevant_by_part;  // [Q, parts, values], written
    int64_t all_parts;          // splits times parts of a block
};

template <int WORDS> struct Histogram {
    using Args = HistogramArgs;
    static constexpr int THREADS = 64, RESIDENT = 12, MOST_ROWS = 0xFFFF;
    static constexpr int AHEAD = WORDS == LONG ? 1 : STEP<WORDS> == 8 ? 2 : 4;

    MINERLIB_DEVICE static void run(const Block& block, const Args& args) {
        block.phase([&](int thread) { count(block, args, thread); });
        if (args.totals == nullptr) return;
        block.phase([&](int thread) { add_up(block, args, thread); });
    }

private:
    MINERLIB_DEVICE static void count(const Block& block, const Args& args, int thread) {
        const bool by_part = args.totals == nullptr;
        const auto share = args.parts.of(block, thread, by_part);
        if (share.query >= args.parts.queries) return;
        const int threads = block.threads(), lowest = block.y() * args.window;
        const int window = least(args.window, args.values - lowest);
        uint32_t* column = block.shared<uint32_t>() + thread;
        for (int i = 0; i < window; ++i) column[i * threads] = 0;

        const Query<WORDS> query(args.queries + share.query * args.database.width);
        const bool labelled = args.relevant_totals != nullptr || by_part;
        for (int32_t first = 0; first < share.count; first += AHEAD) {
            int place[AHEAD];
            MINERLIB_UNROLL
            for (int i = 0; i < AHEAD; ++i) {
                const int64_t row = share.row + int64_t{least(first + i, share.count - 1)} * share.step;
                place[i] = query.distance(args.database, row) - lowest;
            }
            MINERLIB_UNROLL
            for (int i = 0; i < AHEAD; ++i) {
                if (static_cast<uint32_t>(place[i]) >= static_cast<uint32_t>(window) || first + i >= share.count ||
                    first + i == share.own_th)
                    continue;
                const int64_t row = share.row + int64_t{first + i} * share.step;
                const bool relevant = labelled && args.labels.relevant(share.query, row);
                column[place[i] * threads] += relevant ? 0x10001u : 1u;
            }
        }

        if (!by_part) return;
        const int64_t at = (share.query * args.all_parts + share.part) * args.values + lowest;
        for (int i = 0; i < window; ++i) {
            args.by_part[at + i] = column[i * threads] & 0xFFFF;
            args.relevant_by_part[at + i] = column[i * threads] >> 16;
        }
    }

    // A query's counts over the parts of a block; threads begin with different parts, which lie in different banks.
    MINERLIB_DEVICE static void add_up(const Block& block, const Args& args, int thread) {
        const int threads = block.threads(), queries = args.parts.block, parts = threads / queries;
        const int lowest = block.y() * args.window, window = least(args.window, args.values - lowest);
        for (int i = thread; i < window * queries; i += threads) {
            const int64_t query = block.x() / args.parts.splits * queries + i % queries;
            if (query >= args.parts.queries) continue;
            const uint32_t* counts = block.shared<uint32_t>() + i / queries * threads + i % queries;
            int32_t rows = 0, relevant = 0;
            for (int part = 0; part < parts; ++part) {
                const uint32_t count = counts[(part + thread) % parts * queries];
                rows += count & 0xFFFF;
                relevant += count >> 16;
            }
            const int64_t at = query * args.values + lowest + i / queries;
            if (rows != 0) atomic_add(args.totals + at, int64_t{rows});
            if (relevant != 0) atomic_add(args.relevant_totals + at, int64_t{relevant});
        }
    }
};

}  // namespace minerlib::cuda
