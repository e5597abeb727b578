// Packed codes read as 64-bit words, and distances between single codes.
#pragma once

#include <algorithm>
#include <cstring>

#include "hamming.h"
#include "simd.h"

namespace minerlib {
namespace MINERLIB_ISA {

#if defined(__POPCNT__) || !MINERLIB_X86
static inline int64_t count_bits(uint64_t x) { return __builtin_popcountll(x); }
#else  // the baseline of x86-64 has no instruction for it
static inline int64_t count_bits(uint64_t x) {
    x -= x >> 1 & 0x5555555555555555;
    x = (x & 0x3333333333333333) + (x >> 2 & 0x3333333333333333);
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F;
    return static_cast<int64_t>(x * 0x0101010101010101 >> 56);
}
#endif

// Rows of codes as words; a last word that is not whole has zeros behind the code.
class CodeWords {
public:
    explicit CodeWords(const Codes& codes)
        : words((codes.bytes + 7) / 8), data_(codes.data), bytes_(codes.bytes), end_(codes.data + codes.rows * bytes_) {
    }

    const int64_t words;

    uint64_t word(int64_t row, int64_t w) const {
        const uint8_t* p = data_ + row * bytes_ + w * 8;
        const int64_t left = bytes_ - w * 8;
        uint64_t value = 0;
        if (left >= 8) {
            std::memcpy(&value, p, 8);
        } else if (p + 8 <= end_) {  // reads into the next row rather than byte by byte
            std::memcpy(&value, p, 8);
            value &= (uint64_t{1} << 8 * left) - 1;
        } else {
            std::memcpy(&value, p, static_cast<size_t>(left));
        }
        return value;
    }

    void row(int64_t row, uint64_t* out) const {
        for (int64_t w = 0; w < words; ++w) out[w] = word(row, w);
    }

    // A row whose words, and those of the rows behind it, can be read where they lie, or null.
    const uint8_t* whole(int64_t row) const { return bytes_ % 8 == 0 ? data_ + row * bytes_ : nullptr; }

    // `count` rows, one behind the other.
    void rows(int64_t first, int64_t count, uint64_t* out) const {
        int64_t r = 0;
        if (bytes_ % 8 == 0) {
            std::memcpy(out, data_ + first * bytes_, static_cast<size_t>(count * bytes_));
            return;
        }
        if (words == 1) {  // the common short codes
            const uint64_t mask = bytes_ == 8 ? ~uint64_t{0} : (uint64_t{1} << 8 * bytes_) - 1;
            const uint8_t* p = data_ + first * bytes_;
            const int64_t readable = std::min(count, (end_ - p - 8) / bytes_);
            for (; r < readable; ++r, p += bytes_) {
                std::memcpy(out + r, p, 8);
                out[r] &= mask;
            }
        }
        for (; r < count; ++r) row(first + r, out + r * words);
    }

    // The distance of a row to a query's words. `fixed` words where it is not 0, so that the loop unrolls.
    template <int fixed> int64_t distance(int64_t row, const uint64_t* query) const {
        int64_t sum = 0;
        if constexpr (fixed > 0) {
            const uint8_t* p = data_ + row * (fixed * 8);
            for (int w = 0; w < fixed; ++w) {
                uint64_t value;
                std::memcpy(&value, p + 8 * w, 8);
                sum += count_bits(value ^ query[w]);
            }
        } else {
            for (int64_t w = 0; w < words; ++w) sum += count_bits(word(row, w) ^ query[w]);
        }
        return sum;
    }

#ifdef __AVX2__
    // How many bits of each byte are set, by looking up its halves.
    static __m256i count_bytes(__m256i x) {
        const __m256i bits = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
        const __m256i half = _mm256_set1_epi8(15);
        const __m256i low = _mm256_shuffle_epi8(bits, _mm256_and_si256(x, half));
        return _mm256_add_epi8(low, _mm256_shuffle_epi8(bits, _mm256_and_si256(_mm256_srli_epi16(x, 4), half)));
    }

    // Distances of the four codes from p on, of one or two words, one in each 64-bit lane, in some order. wanted: the
    // query's words, over and over.
    template <int fixed> static __m256i four_distances(const uint8_t* p, __m256i wanted) {
        const __m256i* in = reinterpret_cast<const __m256i*>(p);
        __m256i bytes = count_bytes(_mm256_xor_si256(_mm256_loadu_si256(in), wanted));
        if constexpr (fixed == 2) {
            const __m256i other = count_bytes(_mm256_xor_si256(_mm256_loadu_si256(in + 1), wanted));
            bytes = _mm256_add_epi8(_mm256_unpacklo_epi64(bytes, other), _mm256_unpackhi_epi64(bytes, other));
        }
        return _mm256_sad_epu8(bytes, _mm256_setzero_si256());
    }
#endif

    // The first row of first .. last - 1 within a distance of the query, or `last`.
    template <int fixed>
    __attribute__((noinline)) int64_t first_within(int64_t first, int64_t last, const uint64_t* query,
                                                   int64_t limit) const {
        constexpr int64_t ahead = 1024;  // bytes that are fetched ahead; an address beyond the end does no harm
        int64_t row = first;
#ifdef __AVX512VPOPCNTDQ__
        if constexpr (fixed > 0) {
            // A vector holds 8 / fixed codes. Their words' counts are added in steps of twice the distance, after
            // which every word of a code holds its sum.
            uint64_t repeated[8];
            for (int w = 0; w < 8; ++w) repeated[w] = query[w % fixed];
            const __m512i wanted = _mm512_loadu_si512(repeated), most = _mm512_set1_epi64(limit);
            for (; row + 8 / fixed <= last; row += 8 / fixed) {
                const uint8_t* p = data_ + row * (fixed * 8);
                __builtin_prefetch(p + ahead);
                __m512i sum = _mm512_popcnt_epi64(_mm512_xor_si512(_mm512_loadu_si512(p), wanted));
                if constexpr (fixed > 1) sum = _mm512_add_epi64(sum, _mm512_permutex_epi64(sum, 0xB1));
                if constexpr (fixed > 2) sum = _mm512_add_epi64(sum, _mm512_permutex_epi64(sum, 0x4E));
                if constexpr (fixed > 4) sum = _mm512_add_epi64(sum, _mm512_shuffle_i64x2(sum, sum, 0x4E));
                const unsigned within = _mm512_cmple_epi64_mask(sum, most);
                if (__builtin_expect(within != 0, 0)) return row + __builtin_ctz(within) / fixed;
            }
        }
#else
#ifdef __AVX2__
        if constexpr (fixed == 1 || fixed == 2) {  // longer codes are counted as fast word by word
            constexpr int64_t codes = 32;          // whose least distance is compared
            const __m256i wanted =
                _mm256_setr_epi64x(static_cast<int64_t>(query[0]), static_cast<int64_t>(query[fixed - 1]),
                                   static_cast<int64_t>(query[0]), static_cast<int64_t>(query[fixed - 1]));
            const __m256i most = _mm256_set1_epi64x(limit);
            for (; row + codes <= last; row += codes) {
                const uint8_t* p = data_ + row * (fixed * 8);
                __m256i least = _mm256_set1_epi64x(INT16_MAX);
#pragma GCC unroll 8
                for (int64_t c = 0; c < codes; c += 4, p += 32 * fixed) {
                    __builtin_prefetch(p + ahead);
                    least = _mm256_min_epu16(least, four_distances<fixed>(p, wanted));
                }
                const int beyond = _mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(least, most)));
                if (__builtin_expect(beyond != 15, 0)) break;
            }
        }
#endif
        uint64_t wanted[fixed > 0 ? fixed : 1];  // a copy: registers, whatever else is written
        for (int w = 0; w < fixed; ++w) wanted[w] = query[w];
        for (; row + 4 <= last; row += 4) {
            for (int line = 0; line < fixed; line += 2) {
                __builtin_prefetch(data_ + row * (fixed * 8) + ahead + line * 32);
            }
            for (int next = 0; next < 4; ++next) {
                const int64_t d = distance<fixed>(row + next, fixed > 0 ? wanted : query);
                if (__builtin_expect(d <= limit, 0)) return row + next;
            }
        }
#endif
        while (row < last && distance<fixed>(row, query) > limit) ++row;
        return row;
    }

    // Calls body(std::integral_constant<int, fixed>) with the number of words where the common widths have one.
    template <class Body> void with_width(const Body& body) const {
        switch (bytes_) {
            case 8:
                return body(std::integral_constant<int, 1>());
            case 16:
                return body(std::integral_constant<int, 2>());
            case 32:
                return body(std::integral_constant<int, 4>());
            case 64:
                return body(std::integral_constant<int, 8>());
            default:
                return body(std::integral_constant<int, 0>());
        }
    }

private:
    const uint8_t* data_;
    int64_t bytes_;
    const uint8_t* end_;
};

}  // namespace MINERLIB_ISA
}  // namespace minerlib
