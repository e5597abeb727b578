// The rows of a pair of chunks, by their positions in the order of packing: class by class within each chunk.
#pragma once

#include <algorithm>
#include <cstdint>

#include "chunks.h"
#include "memory.h"
#include "simd.h"

namespace minerlib {
namespace MINERLIB_ISA {

class ChunkRows {
protected:
    explicit ChunkRows(const ChunkPair& pair)
        : pair_(pair), n_(pair.rows.rows), anchors_(pair.split > 0 ? pair.split : n_),
          order_(pair.words > 0 ? nullptr : pair.order) {}

    // The row at a position, what it is called, and beyond which value rows do not count for it.
    int64_t row(int64_t i) const { return order_ != nullptr ? order_[i] : i; }
    int64_t id(int64_t row) const {
        return row < pair_.split ? pair_.first[0] + row : pair_.first[1] + row - pair_.split;
    }
    double limit(int64_t i) const { return pair_.limits[row(i)]; }

    // Where among the columns the class of each anchor lies.
    void find_positives() {
        positives_begin_.resize(anchors_);
        positives_end_.resize(anchors_);
        int64_t begin = pair_.split, end = pair_.split;
        for (int64_t i = 0; i < anchors_; ++i) {
            const int64_t c = pair_.classes[row(i)];
            while (begin < n_ && pair_.classes[row(begin)] < c) ++begin;
            end = std::max(begin, end);
            while (end < n_ && pair_.classes[row(end)] == c) ++end;
            positives_begin_[i] = begin;
            positives_end_[i] = end;
        }
    }

    // Of two rows, not by their positions.
    bool same_class(int64_t i, int64_t j) const {
        if (order_ != nullptr) return pair_.classes[i] == pair_.classes[j];
        uint64_t shared = 0;
        for (int64_t w = 0; w < pair_.words; ++w) {
            shared |= pair_.bits[i * pair_.words + w] & pair_.bits[j * pair_.words + w];
        }
        return shared != 0;
    }

    // Whether most of the columns have nothing recorded that bounds what is looked for.
    bool fresh(unsigned wanted) const {
        int64_t missing = 0;
        for (int64_t i = pair_.split; i < n_; ++i) {
            const Record& record = pair_.records[row(i)];
            for (int e = 0; e < 4; ++e) missing += (wanted >> e & 1) != 0 && record.id[e] < 0 ? 1 : 0;
        }
        return missing * 2 > n_ - pair_.split;
    }

    const ChunkPair& pair_;
    const int64_t n_, anchors_;
    const int64_t* order_;                             // null: rows are not in classes
    Buffer<int64_t> positives_begin_, positives_end_;  // [anchors]
};

}  // namespace MINERLIB_ISA
}  // namespace minerlib
