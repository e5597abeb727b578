// Packed codes read as 64-bit words, and distances between single codes.
#pragma once

#include <algorithm>
#include <cstring>

#include "hamming.h"

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

    // `count` rows, one behind the other.
    void rows(int64_t first, int64_t count, uint64_t* out) const {
        int64_t r = 0;
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

    // The first row of first .. last - 1 within a distance of the query, or `last`.
    template <int fixed>
    __attribute__((noinline)) int64_t first_within(int64_t first, int64_t last, const uint64_t* query,
                                                   int64_t limit) const {
        uint64_t wanted[fixed > 0 ? fixed : 1];  // a copy: registers, whatever else is written
        for (int w = 0; w < fixed; ++w) wanted[w] = query[w];
        int64_t row = first;
        for (; row + 4 <= last; row += 4) {
            for (int line = 0; line < fixed;
                 line += 2) {  // the codes about 1 KiB ahead; reading beyond the end is harmless
                __builtin_prefetch(data_ + row * (fixed * 8) + 1024 + line * 32);
            }
            for (int ahead = 0; ahead < 4; ++ahead) {
                const int64_t d = distance<fixed>(row + ahead, fixed > 0 ? wanted : query);
                if (__builtin_expect(d <= limit, 0)) return row + ahead;
            }
        }
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
