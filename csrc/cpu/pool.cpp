#include "pool.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#if MINERLIB_X86
#include <immintrin.h>
#endif

namespace minerlib {

namespace {

// Canonical distances are IEEE float64: a caller that flushes denormals (torch.set_flush_denormal) or changed
// the rounding mode must not change them.
class DefaultFloatingPoint {
public:
#if MINERLIB_X86
    DefaultFloatingPoint() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
    ~DefaultFloatingPoint() { _mm_setcsr(saved_); }

private:
    unsigned saved_;
#endif
};

struct Job {
    const std::function<void(int64_t)>* body;
    int64_t count;
    std::atomic<int64_t> next{0};
    std::mutex error_mutex;
    std::exception_ptr error;

    void run() {
        DefaultFloatingPoint scope;
        for (int64_t index = next++; index < count; index = next++) {
            try {
                (*body)(index);
            } catch (...) {
                std::lock_guard<std::mutex> lock(error_mutex);
                if (!error) error = std::current_exception();
                next = count;
            }
        }
    }
};

// Calls have several phases with little between them, and a thread that sleeps takes longer to wake than some of them
// last: so threads look for a while before they sleep. Returns whether it came true.
template <class Condition> bool soon(Condition condition) {
    constexpr auto WHILE = std::chrono::microseconds(50);
    const auto start = std::chrono::steady_clock::now();
    do {
        for (int i = 0; i < 16; ++i) {
            if (condition()) return true;
#if MINERLIB_X86
            _mm_pause();
#endif
        }
    } while (std::chrono::steady_clock::now() - start < WHILE);
    return false;
}

class Pool {
public:
    void run(int helpers, Job& job) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (size_ < helpers) {
                std::thread(&Pool::work, this).detach();
                ++size_;
                crowded_ = size_ >= static_cast<int>(std::thread::hardware_concurrency());
            }
            job_ = &job;
            wanted_ = helpers;
            busy_ = helpers;
        }
        wake_.notify_all();
        job.run();
        std::unique_lock<std::mutex> lock(mutex_);
        busy_ -= wanted_;  // helpers that have not woken yet are no longer needed
        wanted_ = 0;
        lock.unlock();
        if (!crowded_) soon([this] { return busy_ == 0; });
        lock.lock();
        done_.wait(lock, [this] { return busy_ == 0; });
        job_ = nullptr;
    }

    std::mutex owner;  // held by the call that has the pool

private:
    void work() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            lock.unlock();
            if (!crowded_) soon([this] { return wanted_ > 0; });
            lock.lock();
            wake_.wait(lock, [this] { return wanted_ > 0; });
            --wanted_;
            Job* job = job_;
            lock.unlock();
            job->run();
            lock.lock();
            if (--busy_ == 0) done_.notify_one();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, done_;
    Job* job_ = nullptr;
    int size_ = 0;
    std::atomic<bool> crowded_{false};      // more threads than processors: who looks is in the others' way
    std::atomic<int> wanted_{0}, busy_{0};  // changed by who holds the mutex
};

// Never destroyed: its threads sleep until the process ends. A forked child has none of the threads, so it
// starts over with a new pool.
Pool* pool = nullptr;
std::once_flag fork_handler;

Pool& the_pool() {
    std::call_once(fork_handler, [] {
        pool = new Pool;
        pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
    });
    return *pool;
}

}  // namespace

void parallel_for(int threads, int64_t count, const std::function<void(int64_t)>& body) {
    Job job;
    job.body = &body;
    job.count = count;
    const int helpers = static_cast<int>(std::min<int64_t>(threads, count)) - 1;
    if (helpers > 0) {
        Pool& shared = the_pool();
        std::unique_lock<std::mutex> owner(shared.owner, std::try_to_lock);
        if (owner.owns_lock()) {
            shared.run(helpers, job);
        } else {
            job.run();
        }
    } else {
        job.run();
    }
    if (job.error) std::rethrow_exception(job.error);
}

}  // namespace minerlib
