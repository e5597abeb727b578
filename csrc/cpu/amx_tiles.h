// The processor's eight tile registers (AMX) and what is done with them; or, for tests, the same in plain C++.
//
// A tile holds up to 16 rows of 64 bytes: C [16, 16] of float32, A [16, 32] of bfloat16, B [16, 16] of pairs of
// bfloat16, dimensions 2k and 2k + 1 side by side in row k. TDPBF16PS adds A B to C, as Intel's manual defines it:
//
//     even[n], odd[n] = 0;  for each row k of B:  even[n] = fma(A[m][2k], B[k][2n], even[n]),  odd[n] likewise
//     C[m][n] += even[n] + odd[n]
//
// in float32, rounded to nearest even at each step, denormal inputs and results taken as zero, MXCSR ignored.
//
// MINERLIB_TILES chooses: 1, the processor's; 2, emulated, exact but for results between 2^-126 (1 - 2^-24) and
// 2^-126, which a processor may round up before it flushes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "simd.h"

namespace minerlib {
namespace MINERLIB_ISA {

// What LDTILECFG reads.
struct TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
static_assert(sizeof(TileConfig) == 64, "the layout is the processor's");

constexpr int64_t TILE_SIDE = 16;  // rows of a tile, and 4-byte elements of a row

constexpr TileConfig whole_tiles() {
    TileConfig config = {};
    config.palette = 1;
    for (int tile = 0; tile < 8; ++tile) {
        config.row_bytes[tile] = 4 * TILE_SIDE;
        config.rows[tile] = TILE_SIDE;
    }
    return config;
}

#if MINERLIB_TILES == 1

// Assembly, since the intrinsics take literal register numbers and do not say that they read memory.
struct Tiles {
    static void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" : : "m"(config)); }
    static void release() { asm volatile("tilerelease"); }

    // Row r comes from (goes to) `bytes` * r behind the first.
    template <int TILE> static void load(const float* from, int64_t bytes) {
        asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(TILE), "r"(from), "r"(bytes) : "memory");
    }
    template <int TILE> static void store(float* to, int64_t bytes) {
        asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(TILE), "r"(to), "r"(bytes) : "memory");
    }
    template <int C, int A, int B> static void multiply_add() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
    }
};

#else

// Refuses what the processor would refuse.
struct Tiles {
    static void configure(const TileConfig& config) {
        expect(config.palette == 1 && config.start_row == 0, "the palette is 1 and the start row 0");
        for (uint8_t byte : config.reserved) expect(byte == 0, "reserved bytes are zero");
        for (int tile = 0; tile < 16; ++tile) {
            const bool used = config.rows[tile] > 0 && config.row_bytes[tile] > 0;
            expect(config.rows[tile] <= 16 && config.row_bytes[tile] <= 64, "a tile has 16 rows of 64 bytes at most");
            expect(tile < 8 ? used : config.rows[tile] == 0 && config.row_bytes[tile] == 0, "there are eight tiles");
        }
        state = {};
        state.config = config;
    }
    static void release() { state = {}; }

    template <int TILE> static void load(const float* from, int64_t bytes) {
        expect(state.config.palette == 1, "tiles are configured before they are used");
        std::memset(state.data[TILE], 0, sizeof state.data[TILE]);
        for (int r = 0; r < state.config.rows[TILE]; ++r) {
            std::memcpy(state.data[TILE][r], reinterpret_cast<const char*>(from) + r * bytes,
                        state.config.row_bytes[TILE]);
        }
    }
    template <int TILE> static void store(float* to, int64_t bytes) {
        expect(state.config.palette == 1, "tiles are configured before they are used");
        for (int r = 0; r < state.config.rows[TILE]; ++r) {
            std::memcpy(reinterpret_cast<char*>(to) + r * bytes, state.data[TILE][r], state.config.row_bytes[TILE]);
        }
    }
    template <int C, int A, int B> static void multiply_add() {
        static_assert(C != A && C != B && A != B, "three tiles");
        const TileConfig& shape = state.config;
        expect(shape.palette == 1, "tiles are configured before they are used");
        expect(shape.rows[C] == shape.rows[A] && shape.row_bytes[C] == shape.row_bytes[B] &&
                   shape.row_bytes[A] == 4 * shape.rows[B],
               "the shapes of a product fit");
        for (int m = 0; m < shape.rows[C]; ++m) {
            float even[16] = {}, odd[16] = {};
            for (int k = 0; k < shape.rows[B]; ++k) {
                const float a0 = low(state.data[A][m][k]), a1 = high(state.data[A][m][k]);
                for (int n = 0; n < 16; ++n) {
                    even[n] = normal(std::fma(a0, low(state.data[B][k][n]), even[n]));
                    odd[n] = normal(std::fma(a1, high(state.data[B][k][n]), odd[n]));
                }
            }
            for (int n = 0; n < shape.row_bytes[C] / 4; ++n) {
                float sum;
                std::memcpy(&sum, &state.data[C][m][n], sizeof sum);
                sum = normal(normal(sum) + normal(even[n] + odd[n]));
                std::memcpy(&state.data[C][m][n], &sum, sizeof sum);
            }
        }
    }

private:
    struct State {
        TileConfig config;
        uint32_t data[8][16][16];
    };
    static inline thread_local State state = {};

    static void expect(bool condition, const char* what) {
        if (!condition) throw std::logic_error(std::string("emulated tiles: ") + what);
    }
    static float normal(float x) { return std::abs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
    static float low(uint32_t pair) { return high(pair << 16); }
    static float high(uint32_t pair) {
        float x;
        pair &= 0xFFFF0000u;
        std::memcpy(&x, &pair, sizeof x);
        return normal(x);
    }
};

#endif

// Tiles of 16 x 64 bytes for the thread that holds one of these.
class TileSession {
public:
    TileSession() { Tiles::configure(config); }
    ~TileSession() { Tiles::release(); }
    TileSession(const TileSession&) = delete;
    TileSession& operator=(const TileSession&) = delete;

private:
    static constexpr TileConfig config = whole_tiles();
};

}  // namespace MINERLIB_ISA
}  // namespace minerlib
