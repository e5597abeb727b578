// Which codes of a block lie within a distance of each of three or four queries.
//
// Where two queries agree in a bit, the bit adds the same to both distances; where they differ, it adds x to one and
// 1 - x to the other. So the bits are sorted into 2^(m - 1) classes by which of a group's m queries differ there from
// the first one, and every class is summed up once. With S_c the sum of class c, of planes xor the bits of query 0,
//
//     distance to query j = sum over classes of S_c, or of n_c - S_c where query j differs.
//
// Sums and differences of pairs of classes, of pairs of these and so on give all m distances: for four queries 18
// additions of numbers of a few bits take the place of three more sums over all planes.
#pragma once

#include <vector>

#include "bit_planes.h"

namespace minerlib {
namespace MINERLIB_ISA {

// Queries in groups, each sorted for the filter.
class QueryGroups {
public:
    // Any range of queries that starts at a multiple of this is whole groups.
    static constexpr int64_t ALIGNMENT = 12;
    // Bits of a class's sum. Between MANY_LEVELS and MOST_LEVELS nothing is compiled.
    static constexpr int LEAST_LEVELS = 4, MANY_LEVELS = 10, MOST_LEVELS = 13;
    static constexpr int MASKS = MOST_LEVELS + 3;  // of a limit

    // Longer codes have planes beyond the reach of 16-bit places.
    static constexpr int64_t MOST_BITS = std::min<int64_t>((1 << MOST_LEVELS) - 1, (UINT16_MAX / BLOCK_WORDS - 1) / 2);

    // words: of all queries.
    QueryGroups(const uint64_t* words, int64_t width, int64_t count, int64_t bits)
        : size_(bits <= BITS_OF_THREE ? 3 : 4), stride_(bits + 3 * classes()), groups_((count + size_ - 1) / size_),
          places_(groups_ * stride_), counts_(groups_ * classes()), levels_(groups_), differing_(groups_ * size_) {
        std::vector<uint8_t> patterns(static_cast<size_t>(bits));
        for (int64_t g = 0; g < groups_; ++g) {
            // A last group that is not whole repeats its last query.
            const auto bit = [&](int64_t j, int64_t b) -> int {
                const int64_t query = std::min(g * size_ + j, count - 1);
                return words[query * width + b / 64] >> b % 64 & 1;
            };
            int64_t* differing = differing_.get() + g * size_;
            std::fill_n(differing, size_, 0);
            for (int64_t b = 0; b < bits; ++b) {
                const int first = bit(0, b);
                int pattern = 0;
                for (int j = 1; j < size_; ++j) {
                    const int differs = bit(j, b) ^ first;
                    differing[j] += differs;
                    pattern |= differs << (j - 1);
                }
                patterns[static_cast<size_t>(b)] = static_cast<uint8_t>(pattern);
            }
            uint16_t* place = places_.get() + g * stride_;
            int64_t most = 0;
            for (int c = 0; c < classes(); ++c) {
                uint16_t* const begin = place;
                for (int64_t b = 0; b < bits; ++b) {
                    if (patterns[static_cast<size_t>(b)] == c) {
                        *place++ = static_cast<uint16_t>(Block::place(b, bit(0, b) != 0));
                    }
                }
                most = std::max<int64_t>(most, place - begin);
                while ((place - begin) % 4 != 0) *place++ = 0;
                counts_[g * classes() + c] = static_cast<uint16_t>(place - begin);
            }
            levels_[g] = LEAST_LEVELS;
            while (int64_t{1} << levels_[g] <= most) ++levels_[g];
            if (levels_[g] > MANY_LEVELS) levels_[g] = MOST_LEVELS;
        }
    }

    // Writes the masks that tell the filter a query's limit, from -1 for no codes up to the number of bits.
    void set_limit(int64_t query, int64_t limit, uint64_t* masks) const {
        const int64_t j = query % size_;
        // Each difference has a power of two added (see add_and_subtract), which come to the same for all j > 0.
        const int64_t raised = j == 0 ? 0 : (int64_t{1} << (levels_[query / size_] + size_ - 2)) - differing_[query];
        for (int i = 0; i < MASKS; ++i) masks[i] = uint64_t{0} - static_cast<uint64_t>((limit + 1 + raised) >> i & 1);
    }

    // For queries `first` to `last` - 1, of which the first is a multiple of ALIGNMENT: which codes of a block lie
    // within their limits. masks: [queries, MASKS]; within: of Plane, for whole groups.
    void filter(const uint64_t* planes, int64_t first, int64_t last, const uint64_t* masks, uint64_t* within) const {
        for (int64_t q = first; q < last; q += size_, masks += size_ * MASKS, within += size_ * BLOCK_WORDS) {
            const int64_t g = q / size_;
            const uint16_t* places = places_.get() + g * stride_;
            const uint16_t* counts = counts_.get() + g * classes();
            if (size_ == 3) {
                run<3>(levels_[g], planes, places, counts, masks, within);
            } else {
                run<4>(levels_[g], planes, places, counts, masks, within);
            }
        }
    }

private:
    static constexpr int LEVELS_OF_THREE = 7;
    static constexpr int64_t BITS_OF_THREE = 96;  // longer codes are searched by four: sums have up to LEVELS_OF_THREE

    int classes() const { return 1 << (size_ - 1); }

    template <int size, int levels> struct Group {
        const uint64_t* masks;
        uint64_t* within;  // of Plane

        template <int width> MINERLIB_INLINE void finish(int j, const Number<width>& distance) const {
            *reinterpret_cast<Plane*>(within + j * BLOCK_WORDS) = below(distance, masks + j * MASKS);
        }

        template <int count, int width> static MINERLIB_INLINE auto sum(const Number<width>* x) {
            if constexpr (count == 1) {
                return *x;
            } else {
                return add(sum<count / 2>(x), sum<count / 2>(x + count / 2));
            }
        }

        // Query j of the group differs in every second class, 0 in none.
        template <int j, int classes, int width> MINERLIB_INLINE void combine(const Number<width>* sums) const {
            if constexpr (classes == 1) {
                finish(0, *sums);
            } else {
                Number<width + 1> same[classes / 2], opposite[classes / 2];
#pragma GCC unroll 4
                for (int c = 0; c < classes / 2; ++c) {
                    add_and_subtract(sums[2 * c], sums[2 * c + 1], same[c], opposite[c]);
                }
                finish(j, sum<classes / 2>(opposite));
                combine<j + 1, classes / 2>(same);
            }
        }

        __attribute__((noinline)) void filter(const uint64_t* planes, const uint16_t* places,
                                              const uint16_t* counts) const {
            constexpr int classes = 1 << (size - 1);
            Number<levels> sums[classes];
            for (int c = 0; c < classes; ++c) {
                Ones<levels> ones;
                ones.count(planes, places, counts[c]);
                places += counts[c];
#pragma GCC unroll 16
                for (int i = 0; i < levels; ++i) sums[c].bit[i] = ones.total.bit[i];
            }
            combine<1, classes>(sums);
        }
    };

    // Filters with what is compiled for a group of so many levels.
    template <int size, int compiled = LEAST_LEVELS>
    static void run(int levels, const uint64_t* planes, const uint16_t* places, const uint16_t* counts,
                    const uint64_t* masks, uint64_t* within) {
        constexpr int next = compiled < MANY_LEVELS ? compiled + 1 : MOST_LEVELS;
        if constexpr (compiled < (size == 3 ? LEVELS_OF_THREE : MOST_LEVELS)) {
            if (levels > compiled) return run<size, next>(levels, planes, places, counts, masks, within);
        }
        Group<size, compiled>{masks, within}.filter(planes, places, counts);
    }

    int size_;
    int64_t stride_, groups_;
    Buffer<uint16_t> places_;    // [groups, stride]: of planes, class by class, each filled up to fours with zeros
    Buffer<uint16_t> counts_;    // [groups, classes]
    Buffer<int> levels_;         // [groups]: bits of a class's sum
    Buffer<int64_t> differing_;  // [queries]: bits in which a query differs from its group's first
};

}  // namespace MINERLIB_ISA
}  // namespace minerlib
