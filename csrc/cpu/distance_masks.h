// Where in a block the codes at each distance of a query are: a mask of the block for every distance, and how many
// codes there have been so far.
//
// Distances of a block's codes are added up bit-sliced (bit_planes.h): plane c is bit c of every distance. The code at
// a place is at distance d where the planes' bits there are those of d, so the mask of d is an AND of all planes or
// their opposites. Those of the upper planes come first: where no code is left, eight distances are passed over. Of a
// mask one popcount gives the count in the histogram, and another how many codes at this distance come before one
// that is asked for: nothing is done for a single code but the relevant ones.
//
// Lane l of all blocks goes through the l-th part of the database, so that the lanes of a vector count apart and the
// order of the rows is that of (lane, row).
#pragma once

#include <algorithm>
#include <deque>

#include "bit_planes.h"
#include "code_words.h"
#include "memory.h"

namespace minerlib {
namespace MINERLIB_ISA {

constexpr int LANES = BLOCK_WORDS;

// How the rows of a database are dealt out to blocks: lane l of block b has the rows from l * part + 64 b on.
class Lanes64 {
public:
    explicit Lanes64(int64_t rows) : rows_(rows), part_((rows + BLOCK_CODES - 1) / BLOCK_CODES * 64) {}

    int64_t blocks() const { return part_ / 64; }
    int64_t first(int64_t block, int lane) const { return lane * part_ + 64 * block; }
    int64_t count(int64_t block, int lane) const { return std::clamp<int64_t>(rows_ - first(block, lane), 0, 64); }

    // Where a block holds a row, as 64 * lane + place, or -1.
    int place(int64_t row, int64_t block) const {
        const int64_t lane = row / part_, place = row - first(block, static_cast<int>(lane));
        return place >= 0 && place < 64 ? static_cast<int>(64 * lane + place) : -1;
    }

    // The places of a block that hold a row.
    Plane there(int64_t block) const {
        Plane out;
        for (int lane = 0; lane < LANES; ++lane) {
            const int64_t left = count(block, lane);
            out[lane] = left == 64 ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
        }
        return out;
    }

private:
    int64_t rows_, part_;
};

// The bits set in each lane.
static inline Plane count_lanes(Plane x) {
#if MINERLIB_ISA_LEVEL == 1
    const __m256i bytes = CodeWords::count_bytes(reinterpret_cast<__m256i>(x));
    return reinterpret_cast<Plane>(_mm256_sad_epu8(bytes, _mm256_setzero_si256()));
#elif defined(__AVX512VPOPCNTDQ__)
    return reinterpret_cast<Plane>(_mm512_popcnt_epi64(reinterpret_cast<__m512i>(x)));
#else
    Plane out;
    for (int lane = 0; lane < LANES; ++lane) out[lane] = static_cast<uint64_t>(count_bits(x[lane]));
    return out;
#endif
}

// Distances for which counts have room: a multiple of eight.
static inline int64_t bins_of(int64_t bytes) { return 8 * bytes + 8; }

// Some blocks of a database, and the planes of their distances to queries.
class BlockDistances {
public:
    static constexpr int MOST_PLANES = 32;
    static constexpr int64_t MOST_AT_ONCE = 4;

    BlockDistances(const Codes& database, const Lanes64& lanes)
        : source_(database), lanes_(lanes), bits_(8 * database.bytes) {
        while (int64_t{1} << planes_ <= bits_) ++planes_;
        const int64_t fitting = FITTING / (2 * bits_ * static_cast<int64_t>(sizeof(Plane)));
        at_once = sliced() ? std::clamp<int64_t>(fitting, 1, MOST_AT_ONCE) : 1;
        codes_.resize(at_once * BLOCK_CODES * database.bytes);
        for (int64_t b = 0; sliced() && b < at_once; ++b) blocks_.emplace_back(codes_of(b));
    }

    int64_t at_once;  // blocks

    // Of the distances.
    int planes() const { return planes_; }

    // How many places a query has; none where its words are compared.
    int64_t places() const { return sliced() ? bits_ : 0; }

    // Where the planes lie whose ones are a query's distances.
    void place(const uint64_t* query, uint16_t* out) const {
        for (int64_t b = 0; b < places(); ++b) {
            out[b] = static_cast<uint16_t>(Block::place(b, query[b / 64] >> b % 64 & 1));
        }
    }

    // Takes blocks first .. last - 1 of the database, at most `at_once`.
    void read(int64_t first, int64_t last) {
        uint8_t* out = codes_.get();
        const int64_t bytes = source_.bytes;
        for (int64_t b = first; b < last; ++b) {
            for (int lane = 0; lane < LANES; ++lane, out += 64 * bytes) {
                const size_t size = static_cast<size_t>(lanes_.count(b, lane) * bytes);
                if (size > 0) std::memcpy(out, source_.data + lanes_.first(b, lane) * bytes, size);
                std::memset(out + size, 0, static_cast<size_t>(64 * bytes) - size);
            }
            there_[b - first] = lanes_.there(b);
            if (sliced()) blocks_[static_cast<size_t>(b - first)].fill(0, BLOCK_CODES);
        }
    }

    // The places of the b-th block taken that hold a row.
    Plane there(int64_t b) const { return there_[b]; }

    // Planes of the distances between the b-th block taken and a query; out [MOST_PLANES].
    void to_query(int64_t b, const uint64_t* query, const uint16_t* places, Plane* out) const {
        if (!sliced()) return count_words(query, out);
        count_ones<4>(blocks_[static_cast<size_t>(b)], places, out);
    }

private:
    static constexpr int64_t FITTING = 20 << 10;  // bytes of planes, beside which masks and counts stay near
    static constexpr int MOST_LEVELS = 13;

    Codes codes_of(int64_t b) const {
        return {codes_.get() + b * BLOCK_CODES * source_.bytes, BLOCK_CODES, source_.bytes};
    }

    // Longer codes have planes beyond the reach of 16-bit places.
    bool sliced() const { return planes_ <= MOST_LEVELS && Block::place(bits_, false) <= UINT16_MAX; }

    template <int levels> void count_ones(const Block& block, const uint16_t* places, Plane* out) const {
        if constexpr (levels < MOST_LEVELS) {
            if (planes_ > levels) return count_ones<levels + 1>(block, places, out);
        }
        const int64_t half = bits_ / 8 * 4;
        Ones<levels> first, second;  // two chains of additions, as each waits for its last one
        first.count(block.planes(), places, half);
        second.count(block.planes(), places + half, bits_ - half);
        const auto sum = add(first.total, second.total);
#pragma GCC unroll 16
        for (int i = 0; i < levels; ++i) out[i] = sum.bit[i];
    }

    // Distances of very long codes, word by word.
    void count_words(const uint64_t* query, Plane* out) const {
        const CodeWords codes(codes_of(0));
        std::fill_n(out, planes_, Plane{});
        for (int64_t c = 0; c < BLOCK_CODES; ++c) {
            const uint64_t distance = static_cast<uint64_t>(codes.distance<0>(c, query));
            for (int p = 0; p < planes_; ++p) out[p][c / 64] |= (distance >> p & 1) << c % 64;
        }
    }

    Codes source_;
    Lanes64 lanes_;
    int64_t bits_;
    int planes_ = 4;
    Plane there_[MOST_AT_ONCE];
    Buffer<uint8_t> codes_;  // [at_once, BLOCK_CODES, bytes], place after place
    std::deque<Block> blocks_;
};

// Calls body(distance, mask) with the codes of a block at each distance to a query; distances that no code has may be
// among them, up to the next multiple of eight beyond the greatest one.
template <class Body> class DistanceMasks {
public:
    // planes: of the distances; there: the codes that count.
    DistanceMasks(const Plane* planes, int count, Plane there, const Body& body) : planes_(planes), body_(body) {
        const auto side = [&](int plane, int set) { return set ? planes[plane] : ~planes[plane]; };
        for (int low = 0; low < 8; ++low) low_[low] = side(0, low & 1) & side(1, low & 2) & side(2, low & 4);
        descend(count - 1, there, 0);
    }

private:
    // The codes whose planes above this one are settled: at distances from `first` on.
    void descend(int plane, Plane within, int64_t first) {
        if (!any(within)) return;
        if (plane == 3) return split<3>(within, first);
        if (plane == 5) return split<5>(within, first);
        descend(plane - 1, within & ~planes_[plane], first);
        descend(plane - 1, within & planes_[plane], first + (int64_t{1} << plane));
    }

    template <int plane> MINERLIB_INLINE void split(Plane within, int64_t first) {
        if constexpr (plane == 2) {
            if (any(within)) eight(within, first);
        } else {
            split<plane - 1>(within & ~planes_[plane], first);
            split<plane - 1>(within & planes_[plane], first + (int64_t{1} << plane));
        }
    }

    __attribute__((noinline)) void eight(Plane within, int64_t first) {
#pragma GCC unroll 8
        for (int low = 0; low < 8; ++low) body_(first + low, within & low_[low]);
    }

    const Plane* planes_;
    const Body body_;
    Plane low_[8];  // of the lowest three planes
};

}  // namespace MINERLIB_ISA
}  // namespace minerlib
