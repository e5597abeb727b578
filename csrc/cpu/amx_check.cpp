#include "amx_check.h"

#include <cstring>
#include <numeric>
#include <vector>

#if MINERLIB_X86 && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#endif

namespace minerlib {

#if MINERLIB_X86 && defined(__linux__)

namespace {

struct Registers {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned part) {
    Registers r;
    if (!__get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d)) return {};
    return r;
}

bool has(unsigned bits, int first, unsigned value) { return (bits >> first & 0xFFFF) == value; }

}  // namespace

std::string reason_without_amx() {
    constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24, OSXSAVE = 1u << 27, TILE_STATES = 3u << 17;
    const unsigned features = cpuid(7, 0).d;
    if ((features & AMX_BF16) == 0 || (features & AMX_TILE) == 0) return "the processor has no AMX for bfloat16";
    const Registers palette = cpuid(0x1D, 1);  // tiles of 1024 bytes, 64 a row; eight of them, 16 rows each
    if (!has(palette.a, 16, 1024) || !has(palette.b, 0, 64) || !has(palette.b, 16, 8) || !has(palette.c, 0, 16)) {
        return "the processor's tiles are not the eight of 16 x 64 bytes that the kernels expect";
    }
    unsigned states = 0, high = 0;
    if (cpuid(1, 0).c & OSXSAVE) asm volatile("xgetbv" : "=a"(states), "=d"(high) : "c"(0));
    if ((states & TILE_STATES) != TILE_STATES) return "the operating system does not save the tile registers";
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) != 0) {
        return std::string("the operating system refuses the tile registers: ") + std::strerror(errno);
    }
    return "";
}

#else

std::string reason_without_amx() { return "AMX is used on x86-64 Linux alone"; }

#endif

namespace {

// Numbers in rows [rows, dims], around a few centres.
std::vector<float> numbers(int64_t rows, int64_t dims, uint32_t seed) {
    std::vector<float> out(static_cast<size_t>(rows * dims));
    for (size_t i = 0; i < out.size(); ++i) {
        seed = seed * 1664525u + 1013904223u;
        const auto centre = static_cast<float>(i / static_cast<size_t>(dims) % 3);
        out[i] = static_cast<float>(static_cast<int32_t>(seed)) * 0x1p-31f + centre;
    }
    return out;
}

bool same_extremes(const Kernels& kernels, const Kernels& trusted) {
    constexpr int64_t N = 150, D = 70, CLASSES = 5;
    const std::vector<float> rows = numbers(N, D, 1);
    std::vector<int64_t> classes(N), members(N), starts(CLASSES + 1);
    for (int64_t i = 0; i < N; ++i) classes[static_cast<size_t>(i)] = i % CLASSES;
    for (int64_t i = 0; i < N; ++i) members[static_cast<size_t>(i % CLASSES * (N / CLASSES) + i / CLASSES)] = i;
    for (int64_t c = 0; c <= CLASSES; ++c) starts[static_cast<size_t>(c)] = c * (N / CLASSES);
    Problem problem = {};
    problem.anchors = problem.columns = {rows.data(), N, D, false};
    problem.labels.anchor_class = classes.data();
    problem.labels.starts = starts.data();
    problem.labels.members = members.data();
    problem.own = problem.exact = true;
    problem.threads = 1;
    std::vector<int64_t> found(4 * N), expected(4 * N);
    kernels.extremes(problem, 15, found.data());
    trusted.extremes(problem, 15, expected.data());
    return found == expected;
}

bool same_neighbours(const Kernels& kernels, const Kernels& trusted) {
    constexpr int64_t Q = 41, M = 300, D = 130, K = 5;
    const std::vector<float> queries = numbers(Q, D, 2), columns = numbers(M, D, 3);
    Problem problem = {};
    problem.anchors = {queries.data(), Q, D, false};
    problem.columns = {columns.data(), M, D, false};
    problem.exact = true;
    problem.threads = 1;
    std::vector<double> found(Q * K), expected(Q * K);
    std::vector<int64_t> found_at(Q * K), expected_at(Q * K);
    kernels.topk(problem, K, found.data(), found_at.data());
    trusted.topk(problem, K, expected.data(), expected_at.data());
    return found == expected && found_at == expected_at;
}

// Against other rows, as small batches of their own are not compared by tiles.
bool same_windows(const Kernels& kernels, const Kernels& trusted) {
    constexpr int64_t N = 33, M = 280, D = 50;
    const std::vector<float> anchors = numbers(N, D, 4), columns = numbers(M, D, 5);
    std::vector<int64_t> classes(N), members(M), offsets(N + 1);
    const std::vector<int64_t> starts = {0, M / 2, M};
    for (size_t i = 0; i < N; ++i) classes[i] = static_cast<int64_t>(i % 2);
    for (size_t i = 0; i <= N; ++i) offsets[i] = static_cast<int64_t>(i) * (M / 2);
    std::iota(members.begin(), members.end(), int64_t{0});
    Problem problem = {};
    problem.anchors = {anchors.data(), N, D, false};
    problem.columns = {columns.data(), M, D, false};
    problem.labels.anchor_class = classes.data();
    problem.labels.starts = starts.data();
    problem.labels.members = members.data();
    problem.exact = true;
    problem.threads = 1;
    const auto mined = [&](const Kernels& which) {
        std::vector<int64_t> a(N * M / 2), p(N * M / 2), n(N * M / 2);
        which.window(problem, Rule::semi_hard, {2.0, 1, false, 0}, {offsets.data(), a.data(), p.data(), n.data()});
        return n;
    };
    return mined(kernels) == mined(trusted);
}

}  // namespace

bool same_answers(const Kernels& kernels, const Kernels& trusted) {
    return same_extremes(kernels, trusted) && same_neighbours(kernels, trusted) && same_windows(kernels, trusted);
}

}  // namespace minerlib
