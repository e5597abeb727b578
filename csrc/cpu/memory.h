// Uninitialised, cache-line aligned memory for one call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace minerlib {

template <class T> class Buffer {
public:
    Buffer() = default;
    explicit Buffer(int64_t size) { resize(size); }
    ~Buffer() { std::free(data_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    // Grows to at least `size` elements; what was there is lost.
    void resize(int64_t size) {
        if (size <= size_) return;
        release();
        const size_t least = static_cast<size_t>(size) * sizeof(T) + READ_PAST, unit = least < LARGE ? 64 : PAGE;
        const size_t bytes = (least + unit - 1) / unit * unit;
        data_ = static_cast<T*>(std::aligned_alloc(unit, bytes));
        if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
        if (unit == PAGE) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
        size_ = size;
    }

    void release() {
        std::free(data_);
        data_ = nullptr;
        size_ = 0;
    }

    int64_t size() const { return size_; }
    T* get() const { return data_; }
    T& operator[](int64_t i) const { return data_[i]; }

private:
    // Loops over whole vectors or words of bits read up to 64 floats past the last value and drop what they read.
    static constexpr size_t READ_PAST = 256;

    // Memory in large pages takes the system a fraction of the time of as much in small ones.
    static constexpr size_t LARGE = size_t{16} << 20, PAGE = size_t{2} << 20;

    T* data_ = nullptr;
    int64_t size_ = 0;
};

}  // namespace minerlib
