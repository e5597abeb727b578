// The one thread pool: workers sleep between calls and share out the indices of a loop.
#pragma once

#include <cstdint>
#include <functional>

namespace minerlib {

// Runs body(index) for index in 0 .. count-1 on up to `threads` threads, the caller among them, and returns
// when all are done; the first exception thrown by a body is thrown again here. A call made while another
// one has the pool (from another Python thread, or from inside a body) runs on its own thread alone.
void parallel_for(int threads, int64_t count, const std::function<void(int64_t)>& body);

}  // namespace minerlib
