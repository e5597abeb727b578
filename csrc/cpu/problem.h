// The views that bindings.cpp hands to every kernel family: raw pointers and sizes, owned by the caller.
#pragma once

#include <cstdint>

namespace minerlib {

enum class Metric { sqeuclidean = 0, euclidean = 1, cosine = 2 };

// Rows of one matrix [rows, dims], contiguous, float32 or (wide) float64.
struct Rows {
    const void* data;
    int64_t rows;
    int64_t dims;
    bool wide;
};

// Class membership. Single-label: the positives of anchor i are members[starts[c] .. starts[c + 1]) with
// c = anchor_class[i], or none where c < 0. Multi-label (words > 0): the columns that share a bit with it.
struct Labels {
    const int64_t* anchor_class;  // [N]
    const int64_t* starts;        // [C + 1]
    const int64_t* members;       // [M], ascending within a class
    int64_t words;                // 64-bit words a row, 0 for single-label
    const uint64_t* anchor_bits;  // [N, words]
    const uint64_t* column_bits;  // [M, words]
};

struct Problem {
    Rows anchors;  // [N, D]
    Rows columns;  // [M, D]
    Labels labels;
    bool own;  // self-mining: column i is anchor i and never its own positive
    Metric metric;
    bool exact;  // false: the float32 values themselves decide
    int threads;
};

// Options of the families that answer per anchor-positive pair.
struct PairOptions {
    double margin;
    uint64_t seed;
    bool combinations;  // pairs a < p only
    int fallback;       // 0 drop, 1 hardest, 2 farthest
};

enum class Rule { hard = 0, semi_hard = 1, random_hard = 2, semi_hard_nearest = 3 };

// A slot per pair, sorted by (anchor, positive); offsets[i] is the first slot of anchor i.
struct PairSlots {
    const int64_t* offsets;  // [N + 1]
    int64_t* anchors;        // [P]
    int64_t* positives;      // [P]
    int64_t* negatives;      // [P], -1: none
};

}  // namespace minerlib
