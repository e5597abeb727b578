// Philox4x32-10 (Salmon et al., SC 2011) and the choice built on it: SPEC section 3, minerlib/random.py.
#pragma once

#include <cstdint>

namespace minerlib {

// u: 64 random bits that belong to (seed, anchor, positive).
static inline uint64_t uniform_bits(uint64_t seed, uint64_t anchor, uint64_t positive) {
    uint32_t c0 = static_cast<uint32_t>(anchor), c1 = static_cast<uint32_t>(anchor >> 32);
    uint32_t c2 = static_cast<uint32_t>(positive), c3 = static_cast<uint32_t>(positive >> 32);
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t{0xD2511F53} * c0, product1 = uint64_t{0xCD9E8D57} * c2;
        c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<uint32_t>(product1);
        c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<uint32_t>(product0);
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    return c0 | (static_cast<uint64_t>(c1) << 32);
}

// floor(u * count / 2^64)
static inline int64_t choose(uint64_t u, int64_t count) {
    __extension__ using uint128 = unsigned __int128;
    return static_cast<int64_t>(static_cast<uint128>(u) * static_cast<uint128>(count) >> 64);
}

}  // namespace minerlib
