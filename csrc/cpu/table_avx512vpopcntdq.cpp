#define MINERLIB_ISA avx2
#include "families.h"
#undef MINERLIB_ISA
#define MINERLIB_ISA avx512
#include "families.h"
#undef MINERLIB_ISA
#define MINERLIB_ISA avx512vpopcntdq
#include "families.h"

namespace minerlib {
// What counts bits is its own; what bytes serve is that of avx2, and the rest that of avx512.
const Kernels kernels_avx512vpopcntdq = {avx2::extremes,
                                         avx2::chunk_extremes,
                                         avx512::window,
                                         avx512::count_window,
                                         avx512::emit_window,
                                         avx512::sample,
                                         avx2::topk,
                                         avx512::pairwise,
                                         avx512vpopcntdq::hamming_distance,
                                         avx512vpopcntdq::hamming_search,
                                         avx512vpopcntdq::hamming_range,
                                         avx512vpopcntdq::hamming_counts,
                                         avx512vpopcntdq::hamming_average_precision,
                                         avx512::losses_triplet,
                                         avx512::losses_batch_all,
                                         avx512::scan_choose,
                                         avx512::scan_pairs,
                                         avx512::scan_count,
                                         avx512::scan_triplets};
}  // namespace minerlib
