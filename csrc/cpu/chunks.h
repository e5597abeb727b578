// The views of a pair of chunks of a data set, for mining that takes it a piece at a time.
#pragma once

#include <cstdint>

#include "problem.h"

namespace minerlib {

// The extremes of one row found so far, one cache line: nearest and farthest positive, nearest and farthest
// negative. Canonical selection values, and global row numbers, -1 for none.
struct Record {
    double value[4];
    int64_t id[4];
};

// Rows 0 .. split - 1 are those of one chunk, the others those of another; split = 0: one chunk alone.
struct ChunkPair {
    Rows rows;  // [n, D]
    int64_t split;
    int64_t first[2];        // global row numbers of the chunks' first rows (split = 0: the second)
    const int64_t* classes;  // [n] equal for rows of one class, or null
    const int64_t* order;    // [n] the rows of each chunk by class, those of one class ascending
    int64_t words;           // label sets instead: 64-bit words a row
    const uint64_t* bits;    // [n, words]
    const double* limits;    // [n] selection values beyond which rows do not count, or null
    Metric metric;
    int threads;
    Record* records;  // [n]
    bool rows_alone;  // of the records only the rows are asked for, and none were found before
};

}  // namespace minerlib
