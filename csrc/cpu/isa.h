// Which instruction sets this processor has, and which one the kernels use.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace minerlib {

// Names of the usable instruction sets, best last.
std::vector<std::string> usable_instruction_sets();

// Those that are emulated, for tests: never chosen, only named.
std::vector<std::string> emulated_instruction_sets();

// Why AMX is not used, or an empty string where it is.
std::string without_amx();
constexpr const char* SELF_CHECK_FAILED = "its self-check failed";

// Whether tiles and answers of `amxbf16` or `amxemulated` are right on small problems; takes a millisecond.
bool passes_self_check(const std::string& instruction_set);

// The table of the named instruction set; throws std::invalid_argument where it is not usable.
const Kernels& kernels_for(const std::string& instruction_set);

}  // namespace minerlib
