// How many slots the families that answer per anchor-positive pair need.
#pragma once

#include "problem.h"

namespace minerlib {

// offsets [N + 1]: the number of pairs of the anchors before each one; with `combinations` pairs a < p only.
void pair_offsets(const Problem& problem, bool combinations, int64_t* offsets);

}  // namespace minerlib
