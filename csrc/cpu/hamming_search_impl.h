// hamming_search and hamming_range: exact neighbours of packed codes by Hamming distance.
//
// queries uint8 [Q, B], database uint8 [M, B] -> search: distances int32 [Q, k] and indices int64 [Q, k], ordered by
// (distance, index); range: for every query its hits within the radius in the same order.
// Limits: 1 <= k <= M < 2^40, B < 2^20.
// Source: SPEC section 5. Distances are small integers, so that sorting and selecting is counting.
//
// The work is cut into queries x slices of the database. Many queries go through a slice together, block by block
// (query_groups.h); a few read its codes one by one, which is bound by the memory's bandwidth.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "families.h"
#include "pool.h"
#include "query_groups.h"

namespace minerlib {
namespace MINERLIB_ISA {

static inline int64_t blocks_of(int64_t value, int64_t size) { return (value + size - 1) / size; }

// Orders hits that are in the order of their indices by (distance, index), and drops those beyond the first `keep`.
class CountingSort {
public:
    explicit CountingSort(int64_t bits) : starts_(static_cast<size_t>(bits) + 2) {}

    // The `first` hits of least distance (all if there are fewer) of lists one behind the other, in order, and how
    // many.
    const Hit* sort(const std::vector<Hit>* lists, int64_t count, int64_t first, int64_t* total) {
        start(lists, count);
        *total = std::min(first, starts_.back());
        sorted_.resize(*total + 1);  // the last place takes all hits that are too many: cheaper than to ask
        for (int64_t l = 0; l < count; ++l) {
            for (const Hit hit : lists[l]) {
                const int64_t place = starts_[static_cast<size_t>(hit_distance(hit))]++;
                sorted_[std::min(place, *total)] = hit;
            }
        }
        return sorted_.get();
    }

    // Leaves the first k hits, in the order of their indices; returns the distance of the k-th.
    int64_t keep_first(std::vector<Hit>& hits, int64_t k) {
        start(&hits, 1);
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
    // Makes starts_[d] the number of hits nearer than d.
    void start(const std::vector<Hit>* lists, int64_t count) {
        std::fill(starts_.begin(), starts_.end(), 0);
        for (int64_t l = 0; l < count; ++l) {
            for (const Hit hit : lists[l]) ++starts_[static_cast<size_t>(hit_distance(hit)) + 1];
        }
        for (size_t d = 1; d < starts_.size(); ++d) starts_[d] += starts_[d - 1];
    }

    std::vector<int64_t> starts_;
    Buffer<Hit> sorted_;
};

// The queries' words.
class Queries {
public:
    explicit Queries(const Codes& codes) : width(CodeWords(codes).words), words_(codes.rows * width) {
        CodeWords(codes).rows(0, codes.rows, words_.get());
    }

    const int64_t width;

    const uint64_t* words(int64_t i) const { return words_.get() + i * width; }

private:
    Buffer<uint64_t> words_;
};

// Hits of one query in one slice: the best k of them, or all within the radius.
template <bool nearest> class SliceHits {
public:
    // expected: how many hits there may be, at a guess.
    void reset(int64_t bits, int64_t asked, int64_t expected) {
        asked_ = asked;
        own_limit_ = nearest ? bits : std::min(bits, asked);
        full_ = nearest ? static_cast<size_t>(asked + std::max<int64_t>(asked, 64)) : SIZE_MAX;
        if (nearest) hits.reserve(std::min(full_ + 64, static_cast<size_t>(expected)));
    }

    // The greatest distance that is still wanted; `shared` is one that k codes are known to lie within.
    int64_t limit(const std::atomic<int32_t>& shared) const {
        return nearest ? std::min<int64_t>(own_limit_, shared.load(std::memory_order_relaxed)) : own_limit_;
    }

    void offer(int64_t distance, int64_t index) { hits.push_back(make_hit(distance, index)); }

    // Forgets what cannot be among the first k and tightens the limits; true if it did. Of this slice only nearer
    // hits are wanted then, since later ones lose ties; other slices may still win ties.
    bool trim(CountingSort& sort, std::atomic<int32_t>& shared) {
        if (hits.size() < full_) return false;
        const int64_t kth = sort.keep_first(hits, asked_);
        own_limit_ = kth - 1;
        int32_t known = shared.load(std::memory_order_relaxed);
        while (kth < known && !shared.compare_exchange_weak(known, static_cast<int32_t>(kth))) {
        }
        return true;
    }

    std::vector<Hit> hits;  // in the order of their indices

private:
    int64_t asked_ = 0, own_limit_ = 0;
    size_t full_ = 0;
};

// A sample of a database. The distance of a query's `rank`-th nearest code in it is a limit that about twice k codes of
// the database lie within, or too low a one in rare cases.
class Sample {
public:
    Sample(const Codes& database, int64_t k) : bytes_(database.bytes) {
        const int64_t m = database.rows;
        size_ = std::clamp<int64_t>(16 * m / k, 2048, std::max<int64_t>(2048, m / 16));
        if (std::max(k, size_) > m / 4) return;
        const double expected = static_cast<double>(size_) * static_cast<double>(k) / static_cast<double>(m);
        rank = static_cast<int64_t>(expected + 4.0 * std::sqrt(expected) + 1.0);
        data_.resize(size_ * bytes_);
        // One code of every stretch, at random: periodic data must not matter.
        uint64_t state = 0x9E3779B97F4A7C15, first = 0;
        for (int64_t i = 0; i < size_; ++i) {
            const uint64_t next = static_cast<uint64_t>((i + 1) * m / size_);
            state = state * 6364136223846793005 + 1442695040888963407;
            const int64_t row = static_cast<int64_t>(first + (state >> 32) * (next - first) / (uint64_t{1} << 32));
            std::copy_n(database.data + row * bytes_, bytes_, data_.get() + i * bytes_);
            first = next;
        }
    }

    int64_t rank = 0;  // 0: sampling does not pay

    Codes codes() const { return {data_.get(), size_, bytes_}; }

private:
    int64_t bytes_, size_ = 0;
    Buffer<uint8_t> data_;
};

// Runs all queries over all slices of the database for their k nearest codes, or (nearest = false) those within a
// radius; `asked` is k or the radius.
template <bool nearest> class Scan {
public:
    Scan(const Codes& queries, const Codes& database, int64_t asked, int threads)
        : wanted_(queries), database_(database), codes_(database), bits_(8 * database.bytes), asked_(asked),
          count_(queries.rows), batched_(queries.rows >= least_queries(bits_) && bits_ <= QueryGroups::MOST_BITS),
          queries_(queries), groups_(queries_.words(0), queries_.width, batched_ ? count_ : 0, bits_),
          threads_(threads), limits_(static_cast<size_t>(queries.rows)) {
        for (auto& limit : limits_) limit.store(static_cast<int32_t>(bits_), std::memory_order_relaxed);
        plan();
    }

    // Calls take(query, hits, count) with the `first` nearest hits of every query (all if there are fewer), in order.
    template <class Take> void each_sorted(int64_t first, const Take& take) {
        constexpr int64_t together = 16;  // queries
        parallel_for(threads_, blocks_of(count_, together), [&](int64_t group) {
            CountingSort sort(bits_);
            for (int64_t i = group * together; i < std::min(count_, (group + 1) * together); ++i) {
                std::vector<Hit>* lists = &found_[static_cast<size_t>(i * slices_)];
                int64_t count;
                const Hit* hits = sort.sort(lists, slices_, first, &count);
                take(i, hits, count);
                for (int64_t slice = 0; slice < slices_; ++slice) std::vector<Hit>().swap(lists[slice]);
            }
        });
    }

    int64_t hits(int64_t query) const {
        int64_t count = 0;
        for (int64_t s = 0; s < slices_; ++s) {
            count += static_cast<int64_t>(found_[static_cast<size_t>(query * slices_ + s)].size());
        }
        return count;
    }

    void run() {
        found_.resize(static_cast<size_t>(count_ * slices_));
        if (nearest && asked_ >= (batched_ ? 256 : 4096)) sample();  // below, the first hits give a limit soon enough
        const int64_t tasks = blocks_of(count_, together_) * slices_;
        parallel_for(threads_, tasks, [&](int64_t task) {
            // Slices of the same queries follow each other, so that the limits of the first help the others.
            const int64_t slice = task % slices_, first = task / slices_ * together_;
            const int64_t last = std::min(count_, first + together_);
            if (batched_) {
                search_blocks(first, last, slice);
            } else {
                for (int64_t i = first; i < last; ++i) search_one(i, slice);
            }
        });
        if (nearest) search_again();
    }

private:
    // Fewer queries do not pay for transposing the database, least of all where single codes are counted fast.
    static int64_t least_queries(int64_t bits) { return bits > 128 ? 4 : bits > 64 ? 6 : 12; }

    static constexpr int64_t MOST_STEP = 4096;
    static constexpr int64_t LEAST_TOGETHER = 3 * QueryGroups::ALIGNMENT;  // queries that share a block's planes
    static constexpr int64_t MOST_TOGETHER = 43 * QueryGroups::ALIGNMENT;  // whose places stay in the cache
    static constexpr int64_t LEAST_SLICE = 16384;                          // codes
    static constexpr int64_t MOST_WAITING = int64_t{64} << 20;             // bytes of hits that wait to be merged

    // Enough tasks for all threads; sliced queries keep up to k hits in every slice until they are merged.
    void plan() {
        const int64_t tasks = threads_ > 1 ? (batched_ ? 4 : 16) * threads_ : 1;  // few queries: some threads wake late
        together_ = batched_ ? MOST_TOGETHER : 1;
        const int64_t waiting = std::max<int64_t>(1, 8 * count_ * (nearest ? asked_ : 1));
        const int64_t most = std::clamp<int64_t>(MOST_WAITING / waiting, 1,
                                                 std::max<int64_t>(1, blocks_of(database_.rows, LEAST_SLICE)));
        if (batched_ && blocks_of(count_, together_) * most < tasks) {
            together_ = std::clamp(blocks_of(count_ * most, tasks), LEAST_TOGETHER, MOST_TOGETHER);
            together_ = blocks_of(together_, QueryGroups::ALIGNMENT) * QueryGroups::ALIGNMENT;
        }
        const int64_t groups = std::max<int64_t>(1, blocks_of(count_, together_));
        slices_ = std::min(most, blocks_of(tasks, groups));
        rows_ = std::max<int64_t>(1, blocks_of(blocks_of(database_.rows, slices_), BLOCK_CODES)) * BLOCK_CODES;
        slices_ = std::max<int64_t>(1, blocks_of(database_.rows, rows_));
    }

    // Hits of a slice, from limits that 2 k codes lie within.
    int64_t expected() const { return 192 + asked_ * 5 / (2 * slices_); }

    void sample() {
        const Sample sample(database_, asked_);
        if (sample.rank == 0) return;
        Scan<true> scan(wanted_, sample.codes(), sample.rank, threads_);
        scan.run();
        scan.each_sorted(sample.rank, [&](int64_t query, const Hit* hits, int64_t count) {
            limits_[static_cast<size_t>(query)] = static_cast<int32_t>(hit_distance(hits[count - 1]));
        });
    }

    void search_again() {
        std::vector<int64_t> poor;
        for (int64_t i = 0; i < count_; ++i) {
            if (hits(i) >= asked_) continue;
            limits_[static_cast<size_t>(i)] = static_cast<int32_t>(bits_);
            poor.push_back(i);
        }
        const int64_t count = static_cast<int64_t>(poor.size());
        parallel_for(threads_, count * slices_,
                     [&](int64_t task) { search_one(poor[static_cast<size_t>(task / slices_)], task % slices_); });
    }

    void search_one(int64_t query, int64_t slice) {
        const uint64_t* words = queries_.words(query);
        std::atomic<int32_t>& shared = limits_[static_cast<size_t>(query)];
        CountingSort sort(bits_);
        SliceHits<nearest> hits;
        hits.reset(bits_, asked_, expected());
        codes_.with_width([&](auto width) {
            const int64_t end = std::min(database_.rows, (slice + 1) * rows_);
            bool dense = false;           // many hits: the next one is not worth a search
            int64_t step = 64, last = 0;  // it grows: the first codes are all wanted until a trim says which
            for (int64_t first = slice * rows_; first < end; first = last, step = std::min(2 * step, MOST_STEP)) {
                const int64_t limit = hits.limit(shared);
                last = std::min(end, first + step);
                const size_t before = hits.hits.size();
                const auto next = [&](int64_t j) {
                    return codes_.template first_within<decltype(width)::value>(j, last, words, limit);
                };
                if (dense) {
                    for (int64_t j = first; j < last; ++j) {
                        const int64_t distance = codes_.template distance<decltype(width)::value>(j, words);
                        if (distance <= limit) hits.offer(distance, j);
                    }
                } else {
                    for (int64_t j = next(first); j < last; j = next(j + 1)) {
                        hits.offer(codes_.template distance<decltype(width)::value>(j, words), j);
                    }
                }
                dense = static_cast<int64_t>(hits.hits.size() - before) > (last - first) / 32;
                hits.trim(sort, shared);
            }
        });
        found_[static_cast<size_t>(query * slices_ + slice)] = std::move(hits.hits);
    }

    // The queries first .. first + count - 1 in one slice.
    struct Together {
        Together(int64_t first_query, int64_t count, int64_t bits, int64_t asked, int64_t expected)
            : first(first_query), hits(static_cast<size_t>(count)), limits(count),
              masks(padded(count) * QueryGroups::MASKS), within(padded(count) * BLOCK_WORDS), some(count),
              words(count * BLOCK_WORDS), sort(bits) {
            for (auto& list : hits) list.reset(bits, asked, expected);
            std::fill_n(masks.get(), masks.size(), 0);
            std::fill_n(limits.get(), count, -2);
        }

        static int64_t padded(int64_t count) {
            return blocks_of(count, QueryGroups::ALIGNMENT) * QueryGroups::ALIGNMENT;
        }

        // 64 codes, from code `start` of the block on, of which a query wants those whose bits are set.
        struct Word {
            int32_t query, start;
            uint64_t bits;
        };

        int64_t first;
        std::vector<SliceHits<nearest>> hits;
        Buffer<int64_t> limits;   // that the masks hold; -2 for none yet
        Buffer<uint64_t> masks;   // of the limits, [queries, MASKS]
        Buffer<uint64_t> within;  // of Plane: the block's codes within each query's limit
        Buffer<int32_t> some;     // queries that want codes of the block, and
        Buffer<Word> words;       // which
        CountingSort sort;
    };

    void search_blocks(int64_t first, int64_t last, int64_t slice) {
        Block block(database_);
        Together queries(first, last - first, bits_, asked_, expected());
        const int64_t begin = slice * rows_, end = std::min(database_.rows, begin + rows_);
        for (int64_t start = begin; start < end; start += BLOCK_CODES) {
            const int64_t count = std::min<int64_t>(BLOCK_CODES, end - start);
            block.fill(start, count);
            if ((start - begin) % (16 * BLOCK_CODES) == 0) {  // what other slices have found since
                for (int64_t i = 0; i < last - first; ++i) set_limit(queries, i);
            }
            groups_.filter(block.planes(), first, last, queries.masks.get(), queries.within.get());
            resolve(queries, start, Block::there(count));
        }
        for (int64_t i = first; i < last; ++i) {
            std::vector<Hit>& found = queries.hits[static_cast<size_t>(i - first)].hits;
            found_[static_cast<size_t>(i * slices_ + slice)] = std::move(found);
        }
    }

    void set_limit(Together& queries, int64_t i) const {
        const int64_t query = queries.first + i;
        const int64_t limit = queries.hits[static_cast<size_t>(i)].limit(limits_[static_cast<size_t>(query)]);
        if (limit == queries.limits[i]) return;
        queries.limits[i] = limit;
        groups_.set_limit(query, limit, queries.masks.get() + i * QueryGroups::MASKS);
    }

    // Hits of a block, whose first code is `start`, as distances. Most words of bits are zero in no order that a
    // processor could foresee, so they are first passed over without a branch: those of a query, then each.
    void resolve(Together& queries, int64_t start, Plane there) {
        const Plane* within = reinterpret_cast<const Plane*>(queries.within.get());
        int64_t some = 0, count = 0;
        for (size_t i = 0; i < queries.hits.size(); ++i) {
            queries.some[some] = static_cast<int32_t>(i);
            some += any(within[i]);
        }
        for (int64_t s = 0; s < some; ++s) {
            const Plane found = within[queries.some[s]] & there;
            for (int lane = 0; lane < BLOCK_WORDS; ++lane) {
                queries.words[count] = {queries.some[s], 64 * lane, found[lane]};
                count += found[lane] != 0;
            }
        }
        codes_.with_width([&](auto width) {
            for (int64_t w = 0; w < count; ++w) {
                const typename Together::Word& word = queries.words[w];
                const int64_t query = queries.first + word.query;
                SliceHits<nearest>& list = queries.hits[static_cast<size_t>(word.query)];
                const uint64_t* wanted = queries_.words(query);
                for (uint64_t bits = word.bits; bits != 0; bits &= bits - 1) {
                    const int64_t index = start + word.start + __builtin_ctzll(bits);
                    list.offer(codes_.template distance<decltype(width)::value>(index, wanted), index);
                }
                if (list.trim(queries.sort, limits_[static_cast<size_t>(query)])) set_limit(queries, word.query);
            }
        });
    }

    Codes wanted_, database_;
    CodeWords codes_;
    int64_t bits_, asked_, count_;
    bool batched_;
    Queries queries_;
    QueryGroups groups_;
    int threads_;
    std::vector<std::atomic<int32_t>>
        limits_;  // per query: a distance that k codes are known (or thought) to lie within
    int64_t together_ = 1, slices_ = 1, rows_ = 0;  // queries and codes of a task
    std::vector<std::vector<Hit>> found_;           // [Q, slices], each in the order of the indices
};

void hamming_search(const Codes& queries, const Codes& database, int64_t k, int threads, int32_t* distances,
                    int64_t* indices) {
    Scan<true> scan(queries, database, k, threads);
    scan.run();
    scan.each_sorted(k, [&](int64_t query, const Hit* hits, int64_t count) {
        if (count != k) throw std::logic_error("hamming_search: hits are missing");
        for (int64_t j = 0; j < k; ++j) distances[query * k + j] = static_cast<int32_t>(hit_distance(hits[j]));
        for (int64_t j = 0; j < k; ++j) indices[query * k + j] = hit_index(hits[j]);
    });
}

void hamming_range(const Codes& queries, const Codes& database, int64_t radius, int threads, HitLists& out) {
    Scan<false> scan(queries, database, radius, threads);
    scan.run();
    out.resize(static_cast<size_t>(queries.rows));
    scan.each_sorted(INT64_MAX, [&](int64_t query, const Hit* hits, int64_t count) {
        out[static_cast<size_t>(query)].assign(hits, hits + count);
    });
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
