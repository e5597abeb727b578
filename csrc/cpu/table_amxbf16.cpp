#define MINERLIB_ISA avx512
#include "families.h"
#undef MINERLIB_ISA
#define MINERLIB_ISA avx512vpopcntdq
#include "families.h"
#undef MINERLIB_ISA
#define MINERLIB_ISA amxbf16
#include "families.h"

namespace minerlib {
// What can be filtered in bfloat16 is its own; the rest is that of avx512vpopcntdq.
const Kernels kernels_amxbf16 = {amxbf16::extremes,
                                 amxbf16::chunk_extremes,
                                 amxbf16::window,
                                 amxbf16::count_window,
                                 amxbf16::emit_window,
                                 avx512::sample,
                                 amxbf16::topk,
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
