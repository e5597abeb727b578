#define MINERLIB_ISA avx512
#include "families.h"
#undef MINERLIB_ISA
#define MINERLIB_ISA avx512bf16
#include "families.h"

namespace minerlib {
// Families that want float32's accuracy are those of avx512.
const Kernels kernels_avx512bf16 = {avx512bf16::extremes,
                                    avx512bf16::chunk_extremes,
                                    avx512::window,
                                    avx512::count_window,
                                    avx512::emit_window,
                                    avx512::sample,
                                    avx512bf16::topk,
                                    avx512::pairwise,
                                    avx512::hamming_distance,
                                    avx512::hamming_search,
                                    avx512::hamming_range,
                                    avx512::hamming_counts,
                                    avx512::hamming_average_precision,
                                    avx512::losses_triplet,
                                    avx512::losses_batch_all,
                                    avx512::scan_choose,
                                    avx512::scan_pairs,
                                    avx512::scan_count,
                                    avx512::scan_triplets};
}  // namespace minerlib
