#define MINERLIB_ISA avx2
#include "families.h"
#undef MINERLIB_ISA
#define MINERLIB_ISA amxemulated
#include "families.h"

namespace minerlib {
// For tests: AMX where there is none. The rest is that of avx2.
const Kernels kernels_amxemulated = {amxemulated::extremes,
                                     amxemulated::chunk_extremes,
                                     amxemulated::window,
                                     amxemulated::count_window,
                                     amxemulated::emit_window,
                                     avx2::sample,
                                     amxemulated::topk,
                                     avx2::pairwise,
                                     avx2::hamming_distance,
                                     avx2::hamming_search,
                                     avx2::hamming_range,
                                     avx2::hamming_counts,
                                     avx2::hamming_average_precision,
                                     avx2::losses_triplet,
                                     avx2::losses_batch_all,
                                     avx2::scan_choose,
                                     avx2::scan_pairs,
                                     avx2::scan_count,
                                     avx2::scan_triplets};
}  // namespace minerlib
