// Whether AMX may be used: asked of the processor and the system, then proven on small problems.
#pragma once

#include <string>

#include "kernels.h"

namespace minerlib {

namespace amxbf16 {
bool tiles_are_right();
}
namespace amxemulated {
bool tiles_are_right();
}

// Asks the system for AMX, for all threads of this process. Why it cannot be used, or an empty string.
std::string reason_without_amx();

// Whether `kernels` answer small problems as `trusted` do.
bool same_answers(const Kernels& kernels, const Kernels& trusted);

}  // namespace minerlib
