// hamming_search and hamming_range: exact neighbours of packed codes by Hamming distance.
//
// queries uint8 [Q, B], database uint8 [M, B] -> search: distances int32 [Q, k] and indices int64 [Q, k], ordered by
// (distance, index); range: for every query its hits within the radius in the same order.
// Limits: 1 <= k <= M < 2^40, B < 2^20.
// Source: SPEC section 5. Distances are small integers, so that sorting and selecting is counting.
//
// The work is cut into queries x slices of the database. Many queries go through a slice together, block by block
// (bit_planes.h); a few read its codes one by one, which is bound by the memory's bandwidth.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>
#include <stdexcept>
#include <vector>

#include "bit_planes.h"
#include "families.h"
#include "pool.h"

namespace minerlib {
namespace MINERLIB_ISA {

static inline int64_t blocks_of(int64_t value, int64_t size) { return (value + size - 1) / size; }

// Orders hits that are in the order of their indices by (distance, index), and drops those beyond the first `keep`.
class CountingSort {
public:
    explicit CountingSort(int64_t bits) : starts_(static_cast<size_t>(bits) + 2) {}

    // `first` hits of least distance (all of them if there are fewer) into `out`, in order; returns how many.
    int64_t sort(const std::vector<Hit>& hits, int64_t first, Hit* out) {
        count(hits);
        const int64_t total = std::min<int64_t>(first, static_cast<int64_t>(hits.size()));
        for (const Hit hit : hits) {
            const int64_t place = starts_[static_cast<size_t>(hit_distance(hit))]++;
            if (place < total) out[place] = hit;
        }
        return total;
    }

    // Leaves the first k hits, in the order of their indices; returns the distance of the k-th.
    int64_t keep_first(std::vector<Hit>& hits, int64_t k) {
        count(hits);
        int64_t kth = 0;
        while (starts_[static_cast<size_t>(kth) + 1] < k) ++kth;
        int64_t room = k - starts_[static_cast<size_t>(kth)];  // for hits at that distance
        size_t kept = 0;
        for (const Hit hit : hits) {
            const int64_t distance = hit_distance(hit);
            if (distance < kth || (distance == kth && room-- > 0)) hits[kept++] = hit;
        }
        hits.resize(kept);
        return kth;
    }

private:
    // starts_[d]: how many hits are nearer than d.
    void count(const std::vector<Hit>& hits) {
        std::fill(starts_.begin(), starts_.end(), 0);
        for (const Hit hit : hits) ++starts_[static_cast<size_t>(hit_distance(hit)) + 1];
        for (size_t d = 1; d < starts_.size(); ++d) starts_[d] += starts_[d - 1];
    }

    std::vector<int64_t> starts_;
};

// The queries' words, and what the filter looks up for them.
class Queries {
public:
    Queries(const Codes& codes, bool with_picks) : triples_(triples_of(codes.bytes)) {
        const CodeWords source(codes);
        width_ = source.words;
        words_.resize(codes.rows * width_);
        if (with_picks) picks_.resize(codes.rows * triples_);
        for (int64_t i = 0; i < codes.rows; ++i) {
            source.row(i, words_.get() + i * width_);
            if (with_picks) pick_vectors(words(i), codes.bytes, picks_.get() + i * triples_);
        }
    }

    const uint64_t* words(int64_t i) const { return words_.get() + i * width_; }
    const uint32_t* picks(int64_t i) const { return picks_.get() + i * triples_; }
    int64_t triples() const { return triples_; }

private:
    int64_t triples_, width_;
    Buffer<uint64_t> words_;
    Buffer<uint32_t> picks_;
};

// The best k hits of one query in one slice.
class NearestHits {
public:
    void reset(int64_t bits, int64_t k) {
        k_ = k;
        own_limit_ = bits;
        full_ = static_cast<size_t>(k + std::max<int64_t>(k, 64));
    }

    // The greatest distance that is still wanted; `shared` is the least k-th distance that any slice has found.
    int64_t limit(const std::atomic<int32_t>& shared) const {
        return std::min<int64_t>(own_limit_, shared.load(std::memory_order_relaxed));
    }

    void offer(Hit hit) { hits.push_back(hit); }

    // Called between blocks: forgets what cannot be among the first k and tightens the limits. Of this slice only
    // nearer hits are wanted then, since later ones lose ties; other slices may still win ties.
    void trim(CountingSort& sort, std::atomic<int32_t>& shared) {
        if (hits.size() < full_) return;
        const int64_t kth = sort.keep_first(hits, k_);
        own_limit_ = kth - 1;
        int32_t known = shared.load(std::memory_order_relaxed);
        while (kth < known && !shared.compare_exchange_weak(known, static_cast<int32_t>(kth))) {
        }
    }

    std::vector<Hit> hits;  // in the order of their indices

private:
    int64_t k_ = 0, own_limit_ = 0;
    size_t full_ = 0;
};

// Every hit within the radius.
class RangeHits {
public:
    void reset(int64_t, int64_t radius) { radius_ = radius; }
    int64_t limit(const std::atomic<int32_t>&) const { return radius_; }
    void offer(Hit hit) { hits.push_back(hit); }
    void trim(CountingSort&, std::atomic<int32_t>&) {}

    std::vector<Hit> hits;

private:
    int64_t radius_ = 0;
};

// Runs all queries over all slices of the database; Hits is NearestHits (asked: k) or RangeHits (asked: the radius).
template <class Hits> class Scan {
public:
    Scan(const Codes& queries, const Codes& database, int64_t asked, int threads)
        : database_(database), bits_(8 * database.bytes), asked_(asked), count_(queries.rows),
          batched_(queries.rows >= LEAST_QUERIES && bits_ < 1 << MOST_LEVELS), queries_(queries, batched_),
          threads_(threads), limits_(static_cast<size_t>(queries.rows)) {
        for (auto& limit : limits_) limit.store(static_cast<int32_t>(bits_), std::memory_order_relaxed);
        plan();
    }

    int64_t slices() const { return slices_; }

    // Hits of a query in a slice, in the order of their indices.
    std::vector<Hit>& found(int64_t query, int64_t slice) {
        return found_[static_cast<size_t>(query * slices_ + slice)];
    }

    void run() {
        found_.resize(static_cast<size_t>(count_ * slices_));
        const int64_t groups = blocks_of(count_, group_);
        parallel_for(threads_, groups * slices_, [&](int64_t task) {
            // Slices of one group follow each other, so that the limits of the first help the others.
            const int64_t slice = task % slices_, first = task / slices_ * group_;
            const int64_t last = std::min(count_, first + group_);
            if (batched_) {
                search_blocks(first, last, slice);
            } else {
                for (int64_t i = first; i < last; ++i) search_one(i, slice);
            }
        });
    }

private:
    static constexpr int64_t LEAST_QUERIES = 12;  // fewer do not pay for transposing the database
    static constexpr int MOST_LEVELS = 13;
    static constexpr int64_t GROUP = 512;                       // queries whose picks stay in the cache
    static constexpr int64_t LEAST_SLICE = 16384;               // codes
    static constexpr int64_t MOST_WAITING = int64_t{64} << 20;  // bytes of hits that wait to be merged

    // Enough tasks for all threads; sliced queries keep up to k hits in every slice until they are merged.
    void plan() {
        const int64_t tasks = threads_ > 1 ? 4 * threads_ : 1;
        group_ = batched_ ? GROUP : 1;
        const int64_t waiting = std::max<int64_t>(1, 8 * asked_for_slices() * count_);
        const int64_t most =
            std::min(blocks_of(database_.rows, LEAST_SLICE), std::max<int64_t>(1, MOST_WAITING / waiting));
        if (batched_ && blocks_of(count_, group_) * most < tasks) {
            group_ = std::clamp<int64_t>(blocks_of(count_ * most, tasks), 32, GROUP);
        }
        const int64_t groups = blocks_of(count_, group_);
        slices_ = std::clamp<int64_t>(blocks_of(tasks, std::max<int64_t>(1, groups)), 1, std::max<int64_t>(1, most));
        rows_ = blocks_of(blocks_of(database_.rows, slices_), BLOCK_CODES) * BLOCK_CODES;
        slices_ = std::max<int64_t>(1, blocks_of(database_.rows, rows_ > 0 ? rows_ : 1));
    }

    int64_t asked_for_slices() const { return std::is_same<Hits, NearestHits>::value ? asked_ : 1; }

    void search_one(int64_t query, int64_t slice) {
        const CodeWords codes(database_);
        const uint64_t* words = queries_.words(query);
        std::atomic<int32_t>& shared = limits_[static_cast<size_t>(query)];
        CountingSort sort(bits_);
        Hits hits;
        hits.reset(bits_, asked_);
        codes.with_width([&](auto width) {
            const int64_t end = std::min(database_.rows, (slice + 1) * rows_);
            for (int64_t first = slice * rows_; first < end; first += BLOCK_CODES) {
                const int64_t limit = hits.limit(shared), last = std::min(end, first + BLOCK_CODES);
                for (int64_t j = first; j < last; ++j) {
                    const int64_t distance = codes.template distance<decltype(width)::value>(j, words);
                    if (__builtin_expect(distance <= limit, 0)) hits.offer(make_hit(distance, j));
                }
                hits.trim(sort, shared);
            }
        });
        found(query, slice) = std::move(hits.hits);
    }

    void search_blocks(int64_t first, int64_t last, int64_t slice) {
        int levels = 4;
        while (int64_t{1} << levels <= bits_) ++levels;
        with_levels(levels, [&](auto constant) { filter_blocks<decltype(constant)::value>(first, last, slice); });
    }

    template <class Body> static void with_levels(int levels, const Body& body) {
        switch (levels) {
            case 4:
                return body(std::integral_constant<int, 4>());
            case 5:
                return body(std::integral_constant<int, 5>());
            case 6:
                return body(std::integral_constant<int, 6>());
            case 7:
                return body(std::integral_constant<int, 7>());
            case 8:
                return body(std::integral_constant<int, 8>());
            case 9:
                return body(std::integral_constant<int, 9>());
            case 10:
                return body(std::integral_constant<int, 10>());
            case 11:
                return body(std::integral_constant<int, 11>());
            default:
                return body(std::integral_constant<int, MOST_LEVELS>());
        }
    }

    template <int levels> void filter_blocks(int64_t first, int64_t last, int64_t slice) {
        Block block(database_);
        CountingSort sort(bits_);
        std::vector<Hits> hits(static_cast<size_t>(last - first));
        for (Hits& list : hits) list.reset(bits_, asked_);
        const int64_t end = std::min(database_.rows, (slice + 1) * rows_);
        for (int64_t start = slice * rows_; start < end; start += BLOCK_CODES) {
            const int64_t count = std::min<int64_t>(BLOCK_CODES, end - start);
            block.fill(start, count);
            for (int64_t i = first; i < last; ++i) {
                Hits& list = hits[static_cast<size_t>(i - first)];
                std::atomic<int32_t>& shared = limits_[static_cast<size_t>(i)];
                const int64_t limit = std::min(list.limit(shared), bits_);
                const Plane within = ~beyond<levels>(block.vectors(), queries_.picks(i), queries_.triples(), limit);
                uint64_t any = 0;
                for (int lane = 0; lane < BLOCK_WORDS; ++lane) any |= within[lane];
                if (any == 0) continue;
                collect(block, within, any, start, count, queries_.words(i), list);
                list.trim(sort, shared);
            }
        }
        for (int64_t i = first; i < last; ++i) found(i, slice) = std::move(hits[static_cast<size_t>(i - first)].hits);
    }

    // Places in ascending order: bit by bit, and lane by lane within a bit.
    static void collect(const Block& block, Plane within, uint64_t any, int64_t start, int64_t count,
                        const uint64_t* query, Hits& list) {
        for (; any != 0; any &= any - 1) {
            const int64_t bit = __builtin_ctzll(any);
            for (int lane = 0; lane < BLOCK_WORDS; ++lane) {
                const int64_t place = bit * BLOCK_WORDS + lane;
                if ((within[lane] >> bit & 1) == 0 || place >= count) continue;
                list.offer(make_hit(block.distance(place, query), start + place));
            }
        }
    }

    Codes database_;
    int64_t bits_, asked_, count_;
    bool batched_;
    Queries queries_;
    int threads_;
    std::vector<std::atomic<int32_t>> limits_;  // per query: the least k-th distance any slice has found
    int64_t group_ = 1, slices_ = 1, rows_ = 0;
    std::vector<std::vector<Hit>> found_;  // [Q, slices]
};

// A query's hits of all slices, in the order of their indices.
template <class Hits> static std::vector<Hit> merge(Scan<Hits>& scan, int64_t query) {
    std::vector<Hit> all = std::move(scan.found(query, 0));
    for (int64_t slice = 1; slice < scan.slices(); ++slice) {
        std::vector<Hit>& more = scan.found(query, slice);
        all.insert(all.end(), more.begin(), more.end());
        std::vector<Hit>().swap(more);
    }
    return all;
}

static constexpr int64_t MERGED_TOGETHER = 16;  // queries

void hamming_search(const Codes& queries, const Codes& database, int64_t k, int threads, int32_t* distances,
                    int64_t* indices) {
    Scan<NearestHits> scan(queries, database, k, threads);
    scan.run();
    parallel_for(threads, blocks_of(queries.rows, MERGED_TOGETHER), [&](int64_t group) {
        CountingSort sort(8 * database.bytes);
        Buffer<Hit> sorted(k);
        const int64_t last = std::min(queries.rows, (group + 1) * MERGED_TOGETHER);
        for (int64_t i = group * MERGED_TOGETHER; i < last; ++i) {
            const std::vector<Hit> hits = merge(scan, i);
            if (sort.sort(hits, k, sorted.get()) != k) throw std::logic_error("hamming_search: hits are missing");
            for (int64_t j = 0; j < k; ++j) {
                distances[i * k + j] = static_cast<int32_t>(hit_distance(sorted[j]));
                indices[i * k + j] = hit_index(sorted[j]);
            }
        }
    });
}

void hamming_range(const Codes& queries, const Codes& database, int64_t radius, int threads, HitLists& out) {
    Scan<RangeHits> scan(queries, database, radius, threads);
    scan.run();
    out.resize(static_cast<size_t>(queries.rows));
    parallel_for(threads, blocks_of(queries.rows, MERGED_TOGETHER), [&](int64_t group) {
        CountingSort sort(8 * database.bytes);
        const int64_t last = std::min(queries.rows, (group + 1) * MERGED_TOGETHER);
        for (int64_t i = group * MERGED_TOGETHER; i < last; ++i) {
            const std::vector<Hit> hits = merge(scan, i);
            std::vector<Hit>& sorted = out[static_cast<size_t>(i)];
            sorted.resize(hits.size());
            sort.sort(hits, static_cast<int64_t>(hits.size()), sorted.data());
        }
    });
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
