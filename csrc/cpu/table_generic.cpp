#define MINERLIB_ISA generic
#include "families.h"

namespace minerlib {
const Kernels kernels_generic = {generic::extremes, generic::window, generic::count_window, generic::emit_window,
                                 generic::sample,   generic::topk,   generic::pairwise};
}  // namespace minerlib
