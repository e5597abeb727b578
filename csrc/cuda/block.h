// What a kernel body may use, for a GPU and for the host.
//
// A body is a struct with Args and `static void run(const Block&, const Args&)`, made of phases: within one, threads
// neither wait for nor read from each other; between two lies a barrier. Control flow outside phases depends on what
// all threads of a block see alike. nvcc turns a phase into the thread's own turn and __syncthreads(). Any C++17
// compiler turns it into a loop over the threads, forwards, backwards or shuffled: a body whose answer depends on
// that order has a race (tests/test_cuda_kernels.py).
//
// A body names its THREADS, and RESIDENT, the blocks a multiprocessor should hold: the compiler gives each thread its
// share of the registers.

#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define MINERLIB_DEVICE __device__ __forceinline__
#define MINERLIB_UNROLL _Pragma("unroll")
#define MINERLIB_ROLLED _Pragma("unroll 1")
#else
#define MINERLIB_DEVICE inline
#define MINERLIB_UNROLL
#define MINERLIB_ROLLED
#endif

namespace minerlib::cuda {

constexpr int WARP = 32;

// Words that are loaded and stored at once.
template <int COUNT> struct alignas(4 * COUNT) Vector {
    uint32_t word[COUNT];
};

#ifdef __CUDACC__

class Block {
public:
    MINERLIB_DEVICE explicit Block(char* memory) : memory_(memory) {}

    MINERLIB_DEVICE int64_t x() const { return blockIdx.x; }
    MINERLIB_DEVICE int y() const { return static_cast<int>(blockIdx.y); }
    MINERLIB_DEVICE int threads() const { return static_cast<int>(blockDim.x); }
    template <class T> MINERLIB_DEVICE T* shared() const { return reinterpret_cast<T*>(memory_); }

    template <class Turn> MINERLIB_DEVICE void phase(Turn turn) const {
        turn(static_cast<int>(threadIdx.x));
        __syncthreads();
    }
    // Whether the turn of any thread returned true.
    template <class Turn> MINERLIB_DEVICE bool any(Turn turn) const {
        return __syncthreads_or(turn(static_cast<int>(threadIdx.x))) != 0;
    }

private:
    char* memory_;
};

// What each lane says of COUNT things: bit l of words[w * COUNT + i] is what lane l of warp w says of the i-th. All
// threads of the block call it, and read the words a phase later.
template <int COUNT> MINERLIB_DEVICE void ballots(uint32_t* words, int thread, const bool (&says)[COUNT]) {
    Vector<COUNT> masks;
    MINERLIB_UNROLL
    for (int i = 0; i < COUNT; ++i) masks.word[i] = __ballot_sync(0xFFFFFFFFu, says[i]);
    if (thread % WARP == 0) reinterpret_cast<Vector<COUNT>*>(words)[thread / WARP] = masks;
}

MINERLIB_DEVICE int popcount(uint32_t x) { return __popc(x); }
MINERLIB_DEVICE int lowest_bit(uint32_t x) { return __ffs(static_cast<int>(x)) - 1; }
MINERLIB_DEVICE void atomic_add(int64_t* at, int64_t value) {
    atomicAdd(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
}
MINERLIB_DEVICE void atomic_add(int32_t* at, int32_t value) { atomicAdd(at, value); }
// Hides from the compiler what a value is, so that it stays in a register of its own.
template <class T> MINERLIB_DEVICE void opaque(T& value) { asm("" : "+r"(value)); }
// What was there before it was raised by one.
MINERLIB_DEVICE int32_t atomic_next(int32_t* at) { return atomicAdd(at, 1); }

#else

extern int thread_order;  // 0 forwards, 1 backwards, 2 shuffled

template <class Turn> void in_turn(int count, Turn turn) {
    // 2: steps of a size that has no divisor in common with the count, which is a power of two
    for (int i = 0; i < count; ++i) {
        turn(thread_order == 0 ? i : thread_order == 1 ? count - 1 - i : (i * 37 + 11) & (count - 1));
    }
}

class Block {
public:
    Block(char* memory, int64_t x, int y, int threads) : memory_(memory), x_(x), y_(y), threads_(threads) {}

    int64_t x() const { return x_; }
    int y() const { return y_; }
    int threads() const { return threads_; }
    template <class T> T* shared() const { return reinterpret_cast<T*>(memory_); }

    template <class Turn> void phase(Turn turn) const { in_turn(threads_, turn); }
    template <class Turn> bool any(Turn turn) const {
        bool found = false;
        in_turn(threads_, [&](int thread) { found = turn(thread) || found; });
        return found;
    }

private:
    char* memory_;
    int64_t x_;
    int y_, threads_;
};

template <int COUNT> void ballots(uint32_t* words, int thread, const bool (&says)[COUNT]) {
    const uint32_t bit = uint32_t{1} << thread % WARP;
    for (int i = 0; i < COUNT; ++i) {
        uint32_t& word = words[thread / WARP * COUNT + i];
        word = says[i] ? word | bit : word & ~bit;
    }
}

inline int popcount(uint32_t x) { return __builtin_popcount(x); }
inline int lowest_bit(uint32_t x) { return __builtin_ctz(x); }
inline void atomic_add(int64_t* at, int64_t value) { *at += value; }
inline void atomic_add(int32_t* at, int32_t value) { *at += value; }
template <class T> void opaque(T&) {}
inline int32_t atomic_next(int32_t* at) { return (*at)++; }

#endif

template <class T> MINERLIB_DEVICE T least(T a, T b) { return a < b ? a : b; }

}  // namespace minerlib::cuda
