// Uninitialised, cache-line aligned memory for one call, and large blocks of it that stay for the next one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace minerlib {

struct Block {
    void* data;
    size_t bytes;
};

// Large blocks that nobody holds any more. The system hands out fresh pages zeroed, one fault for each, which can take
// longer than the work on them. Not for several threads at once.
class KeptBlocks {
public:
    // Keeps `most` bytes, and hands out no block of more than `waste` times what is asked for.
    KeptBlocks(size_t most, size_t waste) : most_(most), waste_(waste) {}

    // At least `bytes`: the smallest block that is kept, of several the last to be freed, or a new one.
    Block take(size_t bytes);
    void give_back(Block block);
    void release();
    bool fits(size_t bytes) const { return find(bytes) < blocks_.size(); }

private:
    size_t find(size_t bytes) const;
    Block remove(size_t i);

    const size_t most_, waste_;
    std::vector<Block> blocks_;
    size_t kept_ = 0;
};

// While one lives, large buffers that calls release stay for the next calls, until one finds none that fits: for a run
// of many calls of one size.
class KeepBuffers {
public:
    KeepBuffers();
    ~KeepBuffers();
    KeepBuffers(const KeepBuffers&) = delete;
    KeepBuffers& operator=(const KeepBuffers&) = delete;
};

void* take_buffer(size_t bytes);
void give_back_buffer(void* data, size_t bytes);

template <class T> class Buffer {
public:
    Buffer() = default;
    explicit Buffer(int64_t size) { resize(size); }
    ~Buffer() { release(); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    // Grows to at least `size` elements; what was there is lost.
    void resize(int64_t size) {
        if (size <= size_) return;
        release();
        data_ = static_cast<T*>(take_buffer(bytes_of(size)));
        size_ = size;
    }

    void release() {
        if (data_ != nullptr) give_back_buffer(data_, bytes_of(size_));
        data_ = nullptr;
        size_ = 0;
    }

    int64_t size() const { return size_; }
    T* get() const { return data_; }
    T& operator[](int64_t i) const { return data_[i]; }

private:
    // Loops over whole vectors or words of bits read up to 64 floats past the last value and drop what they read.
    static constexpr size_t READ_PAST = 256;

    static size_t bytes_of(int64_t size) { return (static_cast<size_t>(size) * sizeof(T) + 63) / 64 * 64 + READ_PAST; }

    T* data_ = nullptr;
    int64_t size_ = 0;
};

}  // namespace minerlib
