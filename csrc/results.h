// Large arrays of results, in memory that earlier ones have left.
//
// The system hands out fresh pages zeroed, which takes longer than to fill them with what was found. Memory of results
// that nobody holds any more therefore stays for the next ones, KEPT bytes at most. All of it happens under the GIL.
#pragma once

#include <pybind11/numpy.h>

#include <cstdlib>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace minerlib {

class ResultMemory {
public:
    struct Block {
        void* data;
        size_t bytes;
    };

    static constexpr size_t SMALLEST = size_t{4} << 20;  // smaller ones come from memory that malloc keeps itself
    static constexpr size_t KEPT = size_t{128} << 20;

    // At least `bytes`, and no block of more than twice that: the smallest, of several the last to be freed.
    Block take(size_t bytes) {
        size_t best = blocks_.size();
        for (size_t i = 0; i < blocks_.size(); ++i) {
            const size_t size = blocks_[i].bytes;
            if (size < bytes || size / 2 > bytes) continue;
            if (best == blocks_.size() || size <= blocks_[best].bytes) best = i;
        }
        return best < blocks_.size() ? remove(best) : allocate(bytes);
    }

    void give_back(Block block) {
        blocks_.push_back(block);
        kept_ += block.bytes;
        while (kept_ > KEPT) std::free(remove(0).data);  // the oldest first
    }

private:
    static Block allocate(size_t bytes) {
        constexpr size_t page = size_t{2} << 20;
        bytes = (bytes + page - 1) / page * page;
        void* data = std::aligned_alloc(page, bytes);
        if (data == nullptr) throw std::bad_alloc();
#if defined(__linux__)
        madvise(data, bytes, MADV_HUGEPAGE);
#endif
        return {data, bytes};
    }

    Block remove(size_t i) {
        const Block block = blocks_[i];
        blocks_.erase(blocks_.begin() + static_cast<std::ptrdiff_t>(i));
        kept_ -= block.bytes;
        return block;
    }

    std::vector<Block> blocks_;
    size_t kept_ = 0;
};

// An array of `count` numbers that are not yet set.
template <class T> pybind11::array_t<T, pybind11::array::c_style> result_array(int64_t count) {
    static auto& memory = *new ResultMemory;  // outlives every array
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    if (bytes < ResultMemory::SMALLEST) return pybind11::array_t<T, pybind11::array::c_style>(count);
    auto* block = new ResultMemory::Block(memory.take(bytes));
    const pybind11::capsule owner(block, [](void* held) {
        auto* freed = static_cast<ResultMemory::Block*>(held);
        memory.give_back(*freed);
        delete freed;
    });
    return pybind11::array_t<T, pybind11::array::c_style>(count, static_cast<T*>(block->data), owner);
}

}  // namespace minerlib
