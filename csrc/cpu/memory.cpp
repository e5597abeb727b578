#include "memory.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace minerlib {

namespace {

constexpr size_t HUGE_PAGE = size_t{2} << 20;

Block allocate_huge(size_t bytes) {
    bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    void* data = std::aligned_alloc(HUGE_PAGE, bytes);
    if (data == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    madvise(data, bytes, MADV_HUGEPAGE);
#endif
    return {data, bytes};
}

// Buffers of SMALLEST bytes and more, kept while `keepers` is not 0.
struct KeptBuffers {
    static constexpr size_t SMALLEST = size_t{1} << 20;

    std::mutex mutex;
    int keepers = 0;
    KeptBlocks blocks{~size_t{0}};
    std::map<void*, size_t> given;  // what came from `blocks`, and how large it is
};

KeptBuffers& kept_buffers() {
    static auto& kept = *new KeptBuffers;  // outlives every buffer
    return kept;
}

}  // namespace

size_t KeptBlocks::find(size_t bytes) const {
    size_t best = blocks_.size();
    for (size_t i = 0; i < blocks_.size(); ++i) {
        const size_t size = blocks_[i].bytes;
        if (size < bytes || size / 2 > bytes) continue;
        if (best == blocks_.size() || size <= blocks_[best].bytes) best = i;
    }
    return best;
}

Block KeptBlocks::take(size_t bytes) {
    const size_t best = find(bytes);
    return best < blocks_.size() ? remove(best) : allocate_huge(bytes);
}

void KeptBlocks::give_back(Block block) {
    blocks_.push_back(block);
    kept_ += block.bytes;
    while (kept_ > most_) std::free(remove(0).data);  // the oldest first
}

void KeptBlocks::release() {
    while (!blocks_.empty()) std::free(remove(0).data);
}

Block KeptBlocks::remove(size_t i) {
    const Block block = blocks_[i];
    blocks_.erase(blocks_.begin() + static_cast<std::ptrdiff_t>(i));
    kept_ -= block.bytes;
    return block;
}

KeepBuffers::KeepBuffers() {
    const std::lock_guard<std::mutex> lock(kept_buffers().mutex);
    ++kept_buffers().keepers;
}

KeepBuffers::~KeepBuffers() {
    const std::lock_guard<std::mutex> lock(kept_buffers().mutex);
    if (--kept_buffers().keepers == 0) kept_buffers().blocks.release();
}

void* take_buffer(size_t bytes) {
    if (bytes >= KeptBuffers::SMALLEST) {
        KeptBuffers& kept = kept_buffers();
        const std::lock_guard<std::mutex> lock(kept.mutex);
        if (kept.keepers > 0) {
            if (!kept.blocks.fits(bytes)) kept.blocks.release();
            const Block block = kept.blocks.take(bytes);
            kept.given.emplace(block.data, block.bytes);
            return block.data;
        }
    }
    void* data = std::aligned_alloc(64, bytes);
    if (data == nullptr) throw std::bad_alloc();
    return data;
}

void give_back_buffer(void* data, size_t bytes) {
    if (bytes >= KeptBuffers::SMALLEST) {
        KeptBuffers& kept = kept_buffers();
        const std::lock_guard<std::mutex> lock(kept.mutex);
        const auto found = kept.given.find(data);
        if (found != kept.given.end()) {
            const Block block{data, found->second};
            kept.given.erase(found);
            if (kept.keepers > 0) {
                kept.blocks.give_back(block);
            } else {
                std::free(data);
            }
            return;
        }
    }
    std::free(data);
}

}  // namespace minerlib
