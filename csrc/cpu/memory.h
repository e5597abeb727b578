// Uninitialised, cache-line aligned memory for one call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

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
        const size_t bytes = (static_cast<size_t>(size) * sizeof(T) + 63) / 64 * 64 + READ_PAST;
        data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
        if (data_ == nullptr) throw std::bad_alloc();
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

    T* data_ = nullptr;
    int64_t size_ = 0;
};

}  // namespace minerlib
