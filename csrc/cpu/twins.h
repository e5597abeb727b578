// Rows that repeat others bit for bit, as ties mostly do: what is known of one holds for the others.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "memory.h"
#include "problem.h"

namespace minerlib {
namespace MINERLIB_ISA {

class Twins {
public:
    // Finds them, by hashes first.
    void find(const Rows& rows) {
        const int64_t bytes = rows.dims * (rows.wide ? 8 : 4);
        const char* data = static_cast<const char*>(rows.data);
        struct Hashed {
            uint64_t hash;
            int64_t row;
        };
        std::vector<Hashed> order(static_cast<size_t>(rows.rows));
        for (int64_t i = 0; i < rows.rows; ++i) order[static_cast<size_t>(i)] = {hash(data + i * bytes, bytes), i};
        std::sort(order.begin(), order.end(),
                  [](const Hashed& a, const Hashed& b) { return a.hash != b.hash ? a.hash < b.hash : a.row < b.row; });
        first_.resize(rows.rows);
        Hashed one = {};
        for (size_t k = 0; k < order.size(); ++k) {
            const Hashed other = order[k];
            const bool same = k > 0 && other.hash == one.hash &&
                              std::memcmp(data + other.row * bytes, data + one.row * bytes, bytes) == 0;
            if (!same) one = other;
            first_[other.row] = one.row;
        }
    }

    // Whether each of the rows from .. from + count - 1 repeats one of least .. from - 1: first(j).
    bool repeat(int64_t from, int64_t count, int64_t least) const {
        for (int64_t j = from; j < from + count; ++j) {
            if (first_[j] < least || first_[j] >= from) return false;
        }
        return true;
    }
    int64_t first(int64_t row) const { return first_[row]; }

private:
    static uint64_t hash(const char* row, int64_t bytes) {
        uint64_t sum = 0;
        for (int64_t k = 0; k < bytes; k += 4) {
            uint32_t word;
            std::memcpy(&word, row + k, 4);
            sum = (sum ^ word) * 0x9E3779B97F4A7C15;
            sum ^= sum >> 29;
        }
        return sum;
    }

    Buffer<int64_t> first_;  // [rows] the first with the same bits, or of the same hash another
};

}  // namespace MINERLIB_ISA
}  // namespace minerlib
