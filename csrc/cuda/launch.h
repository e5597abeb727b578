// Starts a kernel: on a GPU as one, without nvcc as a loop over its blocks. A launch that is refused leaves a message
// that names the kernel, and a status that is not 0.

#pragma once

#include <cstdio>
#include <cstring>

#include "cuda/block.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include <memory>
#endif

namespace minerlib::cuda {

// Of a launch that failed in this thread.
inline thread_local char message[512] = "";

inline int refuse(const char* kernel, const char* reason, int status) {
    std::snprintf(message, sizeof message, "%s: %s", kernel, reason);
    return status;
}

// Where a launch goes.
struct Queue {
    int device;
    void* stream;
};

struct Grid {
    int64_t blocks;  // none: nothing is launched
    int64_t layers;  // along y
    int64_t threads;
    int64_t shared;  // bytes
};

constexpr int64_t MOST_SHARED = 48 << 10;  // what every architecture gives without being asked

#ifdef __CUDACC__

template <class Kernel>
__global__ void __launch_bounds__(Kernel::THREADS, Kernel::RESIDENT)
    entry(const __grid_constant__ typename Kernel::Args args) {
    extern __shared__ __align__(16) char memory[];
    Kernel::run(Block(memory), args);
}

template <class Kernel>
int launch(const char* name, const Grid& grid, const typename Kernel::Args& args, const Queue& queue) {
    if (grid.blocks == 0) return 0;
    cudaError_t status = cudaSetDevice(queue.device);
    if (status == cudaSuccess) {
        void* arguments[] = {const_cast<typename Kernel::Args*>(&args)};
        const dim3 blocks(static_cast<unsigned>(grid.blocks), static_cast<unsigned>(grid.layers));
        status = grid.blocks > INT32_MAX
                     ? cudaErrorInvalidConfiguration
                     : cudaLaunchKernel(reinterpret_cast<const void*>(&entry<Kernel>), blocks,
                                        dim3(static_cast<unsigned>(grid.threads)), arguments,
                                        static_cast<size_t>(grid.shared), static_cast<cudaStream_t>(queue.stream));
    }
    if (status == cudaSuccess) return 0;
    cudaGetLastError();  // what is told here must not be told again by whoever asks next
    char reason[256];
    std::snprintf(reason, sizeof reason, "%s (%s)", cudaGetErrorString(status), cudaGetErrorName(status));
    return refuse(name, reason, static_cast<int>(status));
}

#else

template <class Kernel>
int launch(const char* name, const Grid& grid, const typename Kernel::Args& args, const Queue&) {
    if (grid.blocks == 0) return 0;
    // As a GPU refuses them.
    if (grid.blocks < 0 || grid.blocks > INT32_MAX || grid.layers < 1 || grid.layers > 0xFFFF ||
        grid.shared > MOST_SHARED || grid.threads < WARP || grid.threads > Kernel::THREADS ||
        grid.threads % WARP != 0) {
        return refuse(name, "invalid configuration argument", 9);
    }
    const size_t size = static_cast<size_t>(grid.shared), guard = 64;
    const std::unique_ptr<char[]> memory(new char[size + guard + 16]);
    char* shared = memory.get() + (16 - reinterpret_cast<uintptr_t>(memory.get()) % 16) % 16;
    for (int64_t i = 0; i < grid.blocks * grid.layers; ++i) {
        const int64_t place = thread_order == 0 ? i : grid.blocks * grid.layers - 1 - i;
        std::memset(shared, 0x5A, size + guard);
        Kernel::run(
            Block(shared, place % grid.blocks, static_cast<int>(place / grid.blocks), static_cast<int>(grid.threads)),
            args);
        for (size_t byte = size; byte < size + guard; ++byte) {
            if (shared[byte] != 0x5A) return refuse(name, "wrote beyond its shared memory", 700);
        }
    }
    return 0;
}

#endif

inline int64_t blocks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

}  // namespace minerlib::cuda
