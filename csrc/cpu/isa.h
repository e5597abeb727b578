// Which instruction sets this processor has, and which one the kernels use.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace minerlib {

// Names of the usable instruction sets, best last.
std::vector<std::string> usable_instruction_sets();

// The table of the named instruction set; throws std::invalid_argument where it is not usable.
const Kernels& kernels_for(const std::string& instruction_set);

}  // namespace minerlib
