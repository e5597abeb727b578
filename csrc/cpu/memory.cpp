#include "memory.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace minerlib {

namespace {

// Straight from the system and back to it, in huge pages where whole ones fit.
#if defined(__linux__)
constexpr size_t HUGE_PAGE = size_t{2} << 20;

Block allocate(size_t bytes) {
    static const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    bytes = (bytes + page - 1) / page * page;
    void* mapped = mmap(nullptr, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    const size_t before = (HUGE_PAGE - reinterpret_cast<uintptr_t>(mapped) % HUGE_PAGE) % HUGE_PAGE;
    char* data = static_cast<char*>(mapped) + before;
    if (before > 0) munmap(mapped, before);
    munmap(data + bytes, HUGE_PAGE - before);
    madvise(data, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    return {data, bytes};
}

void release(Block block) { munmap(block.data, block.bytes); }
#else
Block allocate(size_t bytes) {
    void* data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (data == nullptr) throw std::bad_alloc();
    return {data, bytes};
}

void release(Block block) { std::free(block.data); }
#endif

// Buffers of SMALLEST bytes and more, kept while `keepers` is not 0.
struct KeptBuffers {
    static constexpr size_t SMALLEST = size_t{1} << 20;
    static constexpr size_t LARGE = size_t{16} << 20;  // worth huge pages where nothing is kept, too

    std::mutex mutex;
    int keepers = 0;
    KeptBlocks blocks{~size_t{0}, 4};
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
        if (size < bytes || size / waste_ > bytes) continue;
        if (best == blocks_.size() || size <= blocks_[best].bytes) best = i;
    }
    return best;
}

Block KeptBlocks::take(size_t bytes) {
    const size_t best = find(bytes);
    return best < blocks_.size() ? remove(best) : allocate(bytes);
}

void KeptBlocks::give_back(Block block) {
    blocks_.push_back(block);
    kept_ += block.bytes;
    while (kept_ > most_) minerlib::release(remove(0));  // the oldest first
}

void KeptBlocks::release() {
    while (!blocks_.empty()) minerlib::release(remove(0));
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
        if (kept.keepers > 0 || bytes >= KeptBuffers::LARGE) {
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
                release(block);
            }
            return;
        }
    }
    std::free(data);
}

}  // namespace minerlib
