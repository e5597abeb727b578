#define MINERLIB_ISA generic
#include "families.h"

namespace minerlib {
const Kernels kernels_generic = {generic::extremes,
                                 generic::chunk_extremes,
                                 generic::window,
                                 generic::count_window,
                                 generic::emit_window,
                                 generic::sample,
                                 generic::topk,
                                 generic::pairwise,
                                 generic::hamming_distance,
                                 generic::hamming_search,
                                 generic::hamming_range,
                                 generic::hamming_counts,
                                 generic::hamming_average_precision,
                                 generic::losses_triplet,
                                 generic::losses_batch_all,
                                 generic::scan_choose,
                                 generic::scan_pairs,
                                 generic::scan_count,
                                 generic::scan_triplets};
}  // namespace minerlib
