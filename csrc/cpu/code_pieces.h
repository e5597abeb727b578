// A database of codes gone through in pieces: the distances of a piece to many queries, and which of its codes are
// relevant to them.
#pragma once

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "code_words.h"
#include "memory.h"
#include "simd.h"

namespace minerlib {
namespace MINERLIB_ISA {

constexpr int64_t CODES_AT_ONCE = 512;  // of a piece

// Distances of a piece of the database to some queries. Where they fit into bytes, vectors look up how many bits of
// each half-byte differ: a load, a shuffle and an addition for 32 codes. Else words are counted.
template <class Distance> class PieceDistances {
    static constexpr bool BY_HALVES = sizeof(Distance) == 1 && MINERLIB_ISA_LEVEL > 0;

public:
    PieceDistances(const Codes& queries, int64_t first, int64_t count, const Codes& database)
        : database_(database), codes_(database) {
        if constexpr (BY_HALVES) {
            tables_.resize(count * database.bytes * 32);
            halves_.resize(database.bytes * 2 * CODES_AT_ONCE);
            std::fill_n(halves_.get(), halves_.size(), uint8_t{0});
            for (int64_t i = 0; i < count; ++i) {
                fill_tables(queries.data + (first + i) * database.bytes, tables_.get() + i * database.bytes * 32);
            }
        } else {
            const CodeWords source(queries);
            words_.resize(CODES_AT_ONCE * codes_.words);
            wanted_.resize(count * codes_.words);
            for (int64_t i = 0; i < count; ++i) source.row(first + i, wanted_.get() + i * codes_.words);
        }
    }

    // Takes codes first .. first + size - 1 of the database.
    void read(int64_t first, int64_t size) {
        size_ = size;
        if constexpr (BY_HALVES) {
            const int64_t bytes = database_.bytes;
            for (int64_t b = 0; b < bytes; ++b) {
                uint8_t *low = halves_.get() + 2 * b * CODES_AT_ONCE, *high = low + CODES_AT_ONCE;
                const uint8_t* in = database_.data + first * bytes + b;
                for (int64_t c = 0; c < size; ++c) low[c] = in[c * bytes];
                for (int64_t c = 0; c < CODES_AT_ONCE; ++c) {
                    high[c] = low[c] >> 4;
                    low[c] &= 15;
                }
            }
        } else {
            codes_.rows(first, size, words_.get());
        }
    }

    // Distances of the piece's codes to a query; out [CODES_AT_ONCE] may be written behind them.
    void to_query(int64_t i, Distance* out) const {
        if constexpr (BY_HALVES) {
            look_up(tables_.get() + i * database_.bytes * 32, out);
        } else {
            const uint64_t *codes = words_.get(), *query = wanted_.get() + i * codes_.words;
            for (int64_t c = 0; c < size_; ++c, codes += codes_.words) {
                int64_t sum = 0;
                for (int64_t w = 0; w < codes_.words; ++w) sum += count_bits(codes[w] ^ query[w]);
                out[c] = static_cast<Distance>(sum);
            }
        }
    }

private:
    // Per half-byte of a query: in how many bits each of the sixteen values differs.
    void fill_tables(const uint8_t* query, uint8_t* out) const {
        for (int64_t half = 0; half < 2 * database_.bytes; ++half) {
            const uint64_t own = query[half / 2] >> half % 2 * 4 & 15;
            for (uint64_t value = 0; value < 16; ++value) *out++ = static_cast<uint8_t>(count_bits(value ^ own));
        }
    }

#if MINERLIB_ISA_LEVEL > 0
    void look_up(const uint8_t* tables, uint8_t* out) const {
        constexpr int VECTORS = 4;
        const auto vectors = [](const uint8_t* p) { return reinterpret_cast<const __m256i*>(p); };
        for (int64_t c = 0; c < size_; c += 32 * VECTORS) {
            __m256i sums[VECTORS] = {};
            const uint8_t *table = tables, *in = halves_.get() + c;
            for (int64_t half = 0; half < 2 * database_.bytes; ++half, table += 16, in += CODES_AT_ONCE) {
                const __m256i bits =
                    _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table)));
                for (int v = 0; v < VECTORS; ++v) {
                    const __m256i values = _mm256_load_si256(vectors(in) + v);
                    sums[v] = _mm256_add_epi8(sums[v], _mm256_shuffle_epi8(bits, values));
                }
            }
            for (int v = 0; v < VECTORS; ++v) _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + c) + v, sums[v]);
        }
    }
#endif

    Codes database_;
    CodeWords codes_;
    int64_t size_ = 0;
    Buffer<uint8_t> tables_;           // [queries, 2 * bytes, 16]
    Buffer<uint8_t> halves_;           // [2 * bytes, CODES_AT_ONCE]: low half of byte 0, its high half, byte 1, ...
    Buffer<uint64_t> words_, wanted_;  // [CODES_AT_ONCE, words], [queries, words]
};

// Which rows of the database are relevant to a query, in ascending order. Rows are kept by their classes; sets of
// labels are compared anew.
class RelevantRows {
public:
    RelevantRows(const Relevance& relevance, int64_t queries, int64_t rows) : relevance_(relevance) {
        if (relevance.words > 0) return;
        std::unordered_map<int64_t, size_t> numbers;
        numbers_.resize(static_cast<size_t>(queries));
        for (size_t i = 0; i < numbers_.size(); ++i) {
            numbers_[i] = numbers.emplace(relevance.query_classes[i], numbers.size()).first->second;
        }
        std::vector<int32_t> number_of(static_cast<size_t>(rows));
        starts_.assign(numbers.size() + 2, 0);
        for (size_t j = 0; j < number_of.size(); ++j) {
            const auto found = numbers.find(relevance.database_classes[j]);
            const size_t number = found == numbers.end() ? numbers.size() : found->second;
            number_of[j] = static_cast<int32_t>(number);
            ++starts_[number + 1];
        }
        for (size_t n = 1; n < starts_.size(); ++n) starts_[n] += starts_[n - 1];
        std::vector<size_t> next = starts_;
        rows_.resize(number_of.size());
        for (size_t j = 0; j < rows_.size(); ++j) {
            rows_[next[static_cast<size_t>(number_of[j])]++] = static_cast<int32_t>(j);
        }
    }

    // A query's way through the database.
    struct Cursor {
        int64_t query;
        const int32_t *next, *end;  // of its class
    };

    Cursor start(int64_t query) const {
        if (relevance_.words > 0) return {query, nullptr, nullptr};
        const size_t number = numbers_[static_cast<size_t>(query)];
        return {query, rows_.data() + starts_[number], rows_.data() + starts_[number + 1]};
    }

    // Whether the same rows are relevant to both, as far as that is known at once.
    bool alike(int64_t query, int64_t other) const {
        return query == other ||
               (relevance_.words == 0 && relevance_.query_classes[query] == relevance_.query_classes[other]);
    }

    struct Rows {
        const int32_t* begin;
        int64_t count;
    };

    // The relevant ones of rows first .. first + size - 1, which are the cursor's next. scratch: [size]
    Rows take(Cursor& cursor, int64_t first, int64_t size, int32_t* scratch) const {
        if (relevance_.words == 0) {
            const int32_t* begin = cursor.next;
            cursor.next = std::lower_bound(begin, begin + std::min<int64_t>(cursor.end - begin, size), first + size);
            return {begin, cursor.next - begin};
        }
        const uint64_t* wanted = relevance_.query_bits + cursor.query * relevance_.words;
        const uint64_t* has = relevance_.database_bits + first * relevance_.words;
        int32_t* out = scratch;
        for (int64_t j = first; j < first + size; ++j, has += relevance_.words) {
            uint64_t common = 0;
            for (int64_t w = 0; w < relevance_.words; ++w) common |= wanted[w] & has[w];
            *out = static_cast<int32_t>(j);
            out += common != 0;
        }
        return {scratch, out - scratch};
    }

private:
    const Relevance& relevance_;
    std::vector<size_t> numbers_;  // [Q] of the queries' classes
    std::vector<size_t> starts_;   // [classes + 2]; the last part is of classes that no query has
    std::vector<int32_t> rows_;    // [M], ascending within a class
};

}  // namespace MINERLIB_ISA
}  // namespace minerlib
