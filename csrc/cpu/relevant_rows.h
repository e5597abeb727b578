// Which rows of a database are relevant to a query, block by block.
#pragma once

#include <algorithm>
#include <numeric>
#include <unordered_map>
#include <vector>

#include "distance_masks.h"

namespace minerlib {
namespace MINERLIB_ISA {

// The relevant rows of a block.
struct RelevantCodes {
    std::vector<uint16_t> places;  // ascending: 64 * lane + place in it
    std::vector<uint64_t> words;   // of their codes
};

// Rows are kept by their classes; sets of labels are compared anew.
class RelevantRows {
public:
    RelevantRows(const Relevance& relevance, const Codes& queries, const Codes& database)
        : order(static_cast<size_t>(queries.rows)), relevance_(relevance), codes_(database), lanes_(database.rows),
          most_(database.rows) {
        std::iota(order.begin(), order.end(), int64_t{0});
        if (relevance.words > 0) return;
        std::unordered_map<int64_t, size_t> numbers;
        numbers_.resize(order.size());
        for (size_t i = 0; i < numbers_.size(); ++i) {
            numbers_[i] = numbers.emplace(relevance.query_classes[i], numbers.size()).first->second;
        }
        std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) {
            return numbers_[static_cast<size_t>(i)] < numbers_[static_cast<size_t>(j)];
        });
        std::vector<int32_t> number_of(static_cast<size_t>(database.rows));
        starts_.assign(numbers.size() + 2, 0);
        for (size_t j = 0; j < number_of.size(); ++j) {
            const auto found = numbers.find(relevance.database_classes[j]);
            const size_t number = found == numbers.end() ? numbers.size() : found->second;
            number_of[j] = static_cast<int32_t>(number);
            ++starts_[number + 1];
        }
        most_ = *std::max_element(starts_.begin(), starts_.end() - 1);
        for (size_t n = 1; n < starts_.size(); ++n) starts_[n] += starts_[n - 1];
        std::vector<int64_t> next = starts_;
        rows_.resize(number_of.size());
        for (size_t j = 0; j < rows_.size(); ++j) {
            rows_[static_cast<size_t>(next[static_cast<size_t>(number_of[j])]++)] = static_cast<int32_t>(j);
        }
    }

    // Of the queries: those of one class follow each other.
    std::vector<int64_t> order;

    // At least as many rows as are relevant to any query.
    int64_t most() const { return most_; }

    // Whether the same rows are relevant to both, as far as that is known at once.
    bool alike(int64_t query, int64_t other) const {
        return query == other ||
               (relevance_.words == 0 && relevance_.query_classes[query] == relevance_.query_classes[other]);
    }

    // A query's way through the lanes.
    struct Cursor {
        int64_t query;
        const int32_t *next[LANES], *end[LANES];  // of its class
    };

    Cursor start(int64_t query) const {
        Cursor cursor = {};
        cursor.query = query;
        if (relevance_.words > 0) return cursor;
        const size_t number = numbers_[static_cast<size_t>(query)];
        const int32_t *begin = rows_.data() + starts_[number], *end = rows_.data() + starts_[number + 1];
        for (int lane = 0; lane < LANES; ++lane) {
            cursor.next[lane] = std::lower_bound(begin, end, lanes_.first(0, lane));
            cursor.end[lane] = end;
        }
        return cursor;
    }

    // The places of a block, the cursor's next, that hold a relevant row.
    Plane take(Cursor& cursor, int64_t block) const {
        Plane out = {};
        for (int lane = 0; lane < LANES; ++lane) {
            const int64_t first = lanes_.first(block, lane), last = first + lanes_.count(block, lane);
            if (relevance_.words > 0) {
                out[lane] = common_labels(cursor.query, first, last);
                continue;
            }
            const int32_t*& next = cursor.next[lane];
            for (; next != cursor.end[lane] && *next < last; ++next) out[lane] |= uint64_t{1} << (*next - first);
        }
        return out;
    }

    // Lists the relevant rows of a block.
    void list(int64_t block, Plane relevant, RelevantCodes& out) const {
        out.places.clear();
        out.words.clear();
        for (int lane = 0; lane < LANES; ++lane) {
            for (uint64_t left = relevant[lane]; left != 0; left &= left - 1) {
                const int place = __builtin_ctzll(left);
                out.places.push_back(static_cast<uint16_t>(64 * lane + place));
                for (int64_t w = 0; w < codes_.words; ++w) {
                    out.words.push_back(codes_.word(lanes_.first(block, lane) + place, w));
                }
            }
        }
    }

private:
    // Which of at most 64 rows share a label with the query.
    uint64_t common_labels(int64_t query, int64_t first, int64_t last) const {
        const uint64_t* wanted = relevance_.query_bits + query * relevance_.words;
        const uint64_t* has = relevance_.database_bits + first * relevance_.words;
        uint64_t out = 0;
        for (int64_t j = 0; j < last - first; ++j, has += relevance_.words) {
            uint64_t common = 0;
            for (int64_t w = 0; w < relevance_.words; ++w) common |= wanted[w] & has[w];
            out |= static_cast<uint64_t>(common != 0) << j;
        }
        return out;
    }

    const Relevance& relevance_;
    CodeWords codes_;
    Lanes64 lanes_;
    int64_t most_;
    std::vector<size_t> numbers_;  // [Q] of the queries' classes
    std::vector<int64_t> starts_;  // [classes + 2]; the last part is of classes that no query has
    std::vector<int32_t> rows_;    // [M], ascending within a class
};

}  // namespace MINERLIB_ISA
}  // namespace minerlib
