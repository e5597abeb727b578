#include "isa.h"

#include <stdexcept>

namespace minerlib {

namespace {

struct Entry {
    const char* name;
    const Kernels* kernels;
    bool usable;
};

// The compiler's probe also asks the operating system whether it saves the wide registers.
std::vector<Entry> entries() {
    std::vector<Entry> all = {{"generic", &kernels_generic, true}};
#if MINERLIB_X86
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512cd");
    all.push_back({"avx2", &kernels_avx2, avx2});
    all.push_back({"avx512", &kernels_avx512, avx512});
    const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    all.push_back({"avx512bf16", &kernels_avx512bf16, bf16});
    const bool vpopcntdq = bf16 && __builtin_cpu_supports("avx512vpopcntdq");
    all.push_back({"avx512vpopcntdq", &kernels_avx512vpopcntdq, vpopcntdq});
#endif
    return all;
}

}  // namespace

std::vector<std::string> usable_instruction_sets() {
    std::vector<std::string> names;
    for (const Entry& entry : entries()) {
        if (entry.usable) names.emplace_back(entry.name);
    }
    return names;
}

const Kernels& kernels_for(const std::string& instruction_set) {
    for (const Entry& entry : entries()) {
        if (entry.usable && instruction_set == entry.name) return *entry.kernels;
    }
    throw std::invalid_argument("instruction set '" + instruction_set + "' is not usable on this machine");
}

}  // namespace minerlib
