// Large arrays of results, in memory that earlier ones have left: KEPT bytes at most stay for the next. All of it
// happens under the GIL.
#pragma once

#include <pybind11/numpy.h>

#include "cpu/memory.h"

namespace minerlib {

// An array of `count` numbers that are not yet set.
template <class T> pybind11::array_t<T, pybind11::array::c_style> result_array(int64_t count) {
    constexpr size_t SMALLEST = size_t{4} << 20;  // smaller ones come from memory that malloc keeps itself
    constexpr size_t KEPT = size_t{128} << 20;
    static auto& memory = *new KeptBlocks(KEPT, 2);  // outlives every array
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    if (bytes < SMALLEST) return pybind11::array_t<T, pybind11::array::c_style>(count);
    auto* block = new Block(memory.take(bytes));
    const pybind11::capsule owner(block, [](void* held) {
        auto* freed = static_cast<Block*>(held);
        memory.give_back(*freed);
        delete freed;
    });
    return pybind11::array_t<T, pybind11::array::c_style>(count, static_cast<T*>(block->data), owner);
}

}  // namespace minerlib
