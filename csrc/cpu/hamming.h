// Views and results of the Hamming families.
#pragma once

#include <cstdint>
#include <vector>

namespace minerlib {

// Rows of packed codes [rows, bytes], contiguous; bit j of byte i is code bit 8i + j.
struct Codes {
    const uint8_t* data;
    int64_t rows;
    int64_t bytes;
};

// Which database rows count as hits of a query: those of its class or, with words > 0, those that share a bit.
struct Relevance {
    const int64_t* query_classes;     // [Q]
    const int64_t* database_classes;  // [M]
    int64_t words;
    const uint64_t* query_bits;     // [Q, words]
    const uint64_t* database_bits;  // [M, words]
    bool own;                       // leave-one-out: row i is not ranked for query i
};

// A database row found for a query, as distance * 2^40 + index: numbers in the order of the results.
using Hit = uint64_t;
constexpr int HIT_INDEX_BITS = 40;

static inline Hit make_hit(int64_t distance, int64_t index) {
    return static_cast<uint64_t>(distance) << HIT_INDEX_BITS | static_cast<uint64_t>(index);
}
static inline int64_t hit_distance(Hit hit) { return static_cast<int64_t>(hit >> HIT_INDEX_BITS); }
static inline int64_t hit_index(Hit hit) { return static_cast<int64_t>(hit & ((uint64_t{1} << HIT_INDEX_BITS) - 1)); }

using HitLists = std::vector<std::vector<Hit>>;

}  // namespace minerlib
