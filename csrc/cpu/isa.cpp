#include "isa.h"

#include <stdexcept>

#include "amx_check.h"

namespace minerlib {

namespace {

struct Entry {
    const char* name;
    const Kernels* kernels;
    bool usable, emulated;
};

struct Machine {
    std::vector<Entry> entries;
    std::string without_amx;  // why, or empty
};

#if MINERLIB_X86
// Only what this processor has just proven is chosen: the kernels were written without one at hand.
std::string prove_amx(bool processor) {
    if (!processor) return "the processor has no AVX-512 with BF16 and VPOPCNTDQ";
    const std::string reason = reason_without_amx();
    if (!reason.empty()) return reason;
    return passes_self_check("amxbf16") ? "" : SELF_CHECK_FAILED;
}
#endif

// The compiler's probe also asks the operating system whether it saves the wide registers.
Machine probe() {
    Machine machine = {{{"generic", &kernels_generic, true, false}}, "the processor is not an x86-64 one"};
#if MINERLIB_X86
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512cd");
    const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    const bool vpopcntdq = bf16 && __builtin_cpu_supports("avx512vpopcntdq");
    machine.without_amx = prove_amx(vpopcntdq);
    machine.entries.push_back({"avx2", &kernels_avx2, avx2, false});
    machine.entries.push_back({"avx512", &kernels_avx512, avx512, false});
    machine.entries.push_back({"avx512bf16", &kernels_avx512bf16, bf16, false});
    machine.entries.push_back({"avx512vpopcntdq", &kernels_avx512vpopcntdq, vpopcntdq, false});
    machine.entries.push_back({"amxbf16", &kernels_amxbf16, machine.without_amx.empty(), false});
    machine.entries.push_back({"amxemulated", &kernels_amxemulated, avx2, true});
#endif
    return machine;
}

const Machine& machine() {
    static const Machine found = probe();
    return found;
}

std::vector<std::string> names(bool emulated) {
    std::vector<std::string> out;
    for (const Entry& entry : machine().entries) {
        if (entry.usable && entry.emulated == emulated) out.emplace_back(entry.name);
    }
    return out;
}

}  // namespace

std::vector<std::string> usable_instruction_sets() { return names(false); }

std::vector<std::string> emulated_instruction_sets() { return names(true); }

std::string without_amx() { return machine().without_amx; }

bool passes_self_check(const std::string& instruction_set) {
#if MINERLIB_X86
    if (instruction_set == "amxbf16") {
        return amxbf16::tiles_are_right() && same_answers(kernels_amxbf16, kernels_avx512);
    }
    if (instruction_set == "amxemulated") {
        return amxemulated::tiles_are_right() && same_answers(kernels_amxemulated, kernels_avx2);
    }
#endif
    throw std::invalid_argument("instruction set '" + instruction_set + "' has no self-check");
}

const Kernels& kernels_for(const std::string& instruction_set) {
    for (const Entry& entry : machine().entries) {
        if (entry.usable && instruction_set == entry.name) return *entry.kernels;
    }
    throw std::invalid_argument("instruction set '" + instruction_set + "' is not usable on this machine");
}

}  // namespace minerlib
