#define MINERLIB_ISA avx512
#include "families.h"

namespace minerlib {
const Kernels kernels_avx512 = {avx512::extremes, avx512::window, avx512::count_window, avx512::emit_window,
                                avx512::sample,   avx512::topk,   avx512::pairwise};
}  // namespace minerlib
