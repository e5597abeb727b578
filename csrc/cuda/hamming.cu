// The launchers of the Hamming kernels: extern "C", raw pointers, sizes and a stream. 0, or an error's number and a
// message. Compiled by nvcc into minerlib/_cuda.so; by a C++ compiler into the mirror that the tests run.

#include "cuda/hamming_collect.h"
#include "cuda/hamming_distance.h"
#include "cuda/hamming_histogram.h"
#include "cuda/hamming_nearest.h"
#include "cuda/hamming_products.h"
#include "cuda/hamming_ranking.h"
#include "cuda/hamming_select.h"
#include "cuda/launch.h"

#define MINERLIB_API extern "C" __attribute__((visibility("default")))

namespace minerlib::cuda {

#ifndef __CUDACC__
int thread_order = 0;
#endif

namespace {

// Launches the Kernel<WORDS> that serves codes of this width.
template <template <int> class Kernel, class Args>
int launch_for(const char* kernel, int32_t width, const Grid& grid, const Args& args, const Queue& queue) {
    char name[96];
    std::snprintf(name, sizeof name, "%s[words=%d]", kernel, width);
    switch (width) {
        case 1:
            return launch<Kernel<1>>(name, grid, args, queue);
        case 2:
            return launch<Kernel<2>>(name, grid, args, queue);
        case 4:
            return launch<Kernel<4>>(name, grid, args, queue);
        case 8:
            return launch<Kernel<8>>(name, grid, args, queue);
        default:
            break;
    }
    if (width < 8 || width % 8 != 0) return refuse(name, "a code has 1, 2, 4 or a multiple of 8 words", 1);
    return launch<Kernel<LONG>>(name, grid, args, queue);
}

template <int WORDS> using CollectFew = Collect<WORDS, FEW>;
template <int WORDS> using CollectMany = Collect<WORDS, MANY>;

template <template <int> class Kernel>
int launch_collect(const char* name, const CollectArgs& args, const Queue& queue) {
    const int32_t width = args.database.width;
    const int64_t blocks = blocks_of(args.query_count, Kernel<LONG>::QUERIES) * args.splits;
    const int64_t shared = static_cast<int64_t>(width == 1   ? sizeof(typename Kernel<1>::Shared)
                                                : width == 2 ? sizeof(typename Kernel<2>::Shared)
                                                : width == 4 ? sizeof(typename Kernel<4>::Shared)
                                                : width == 8 ? sizeof(typename Kernel<8>::Shared)
                                                             : sizeof(typename Kernel<LONG>::Shared));
    return launch_for<Kernel>(name, width, {blocks, 1, Kernel<LONG>::THREADS, shared}, args, queue);
}

template <int WORDS> int launch_products(const CollectArgs& args, const Queue& queue) {
    using Kernel = Products<WORDS>;
    char name[96];
    std::snprintf(name, sizeof name, "hamming_collect_products[words=%d]", WORDS);
    const int64_t wanted = blocks_of(args.query_count, Kernel::QUERIES);
    int64_t warps = 1;
    while (warps < wanted && warps < Kernel::THREADS / WARP) warps *= 2;
    return launch<Kernel>(
        name, {blocks_of(wanted, warps) * args.splits, 1, warps * WARP, sizeof(typename Kernel::Shared)}, args, queue);
}

int launch_products(const CollectArgs& args, const Queue& queue) {
    switch (args.database.width) {
        case 1:
            return launch_products<1>(args, queue);
        case 2:
            return launch_products<2>(args, queue);
        case 4:
            return launch_products<4>(args, queue);
        case 8:
            return launch_products<8>(args, queue);
        case 16:
            return launch_products<16>(args, queue);
        default:
            return refuse("hamming_collect_products", "a code has 1, 2, 4, 8 or 16 words", 1);
    }
}

}  // namespace
}  // namespace minerlib::cuda

using namespace minerlib::cuda;

#ifdef __CUDACC__
// Compiler and architectures, as the build names them.
MINERLIB_API const char* minerlib_cuda_build() { return MINERLIB_CUDA_BUILD; }
#else
// 0, 1 or 2: the order in which threads take their turns.
MINERLIB_API void minerlib_cuda_thread_order(int order) { thread_order = order; }
#endif

// The last launch of this thread that was refused: the kernel, and why.
MINERLIB_API const char* minerlib_cuda_message() { return message; }

// All distances. out: int32 [rows, columns].
MINERLIB_API int minerlib_cuda_hamming_distance(const uint32_t* a, int64_t rows, const uint32_t* b, int64_t columns,
                                                int32_t width, int32_t* out, int device, void* stream) {
    using Kernel = Distance<LONG>;
    const int64_t column_blocks = blocks_of(columns, Kernel::THREADS);
    const DistanceArgs args{a, {b, columns, width}, out, rows, column_blocks};
    const Grid grid{column_blocks * blocks_of(rows, Kernel::ROWS), 1, Kernel::THREADS, 0};
    return launch_for<Distance>("hamming_distance", width, grid, args, {device, stream});
}

// Hits within each query's limit among rows first_row to stop_row, see hamming_collect.h. starts: null, or int64
// [queries, all_splits]; counts: int32 of that shape; totals: null, or int64 [queries, values]. way: FEW, MANY, or 2
// for products.
MINERLIB_API int minerlib_cuda_hamming_collect(const uint32_t* queries, int64_t query_count, const uint32_t* database,
                                               int64_t plane_rows, int64_t first_row, int64_t stop_row, int32_t width,
                                               const int32_t* limits, int64_t enough, int64_t splits,
                                               int64_t split_rows, int64_t first_split, int64_t all_splits,
                                               uint64_t* candidates, const int64_t* starts, int64_t capacity,
                                               int32_t* counts, int64_t* totals, int32_t values, int32_t way,
                                               int device, void* stream) {
    const CollectArgs args{queries,
                           {database, plane_rows, width},
                           {candidates, starts, capacity, all_splits},
                           limits,
                           counts,
                           totals,
                           values,
                           query_count,
                           first_row,
                           stop_row,
                           splits,
                           first_split,
                           split_rows,
                           enough};
    switch (way) {
        case FEW:
            return launch_collect<CollectFew>("hamming_collect_few", args, {device, stream});
        case MANY:
            return launch_collect<CollectMany>("hamming_collect_many", args, {device, stream});
        default:
            return launch_products(args, {device, stream});
    }
}

// The least distance up to which k rows lie, where it is below the limit. totals: int64 [queries, values]; limits:
// int32 [queries].
MINERLIB_API int minerlib_cuda_hamming_limits(const int64_t* totals, int64_t queries, int32_t values, int64_t k,
                                              int32_t first, int32_t* limits, int device, void* stream) {
    const Grid grid{queries, 1, Limits::THREADS, sizeof(Limits::Shared)};
    return launch<Limits>("hamming_limits", grid, {totals, k, limits, values, first != 0}, {device, stream});
}

// Candidates in order. ends: int64 [queries, splits]; offsets: int64 [queries + 1].
MINERLIB_API int minerlib_cuda_hamming_select(const uint64_t* candidates, const int64_t* starts, int64_t capacity,
                                              int64_t splits, const int64_t* ends, const int64_t* offsets,
                                              int64_t queries, int32_t values, int64_t* indices, int32_t* distances,
                                              int device, void* stream) {
    const SelectArgs args{
        {const_cast<uint64_t*>(candidates), starts, capacity, splits}, ends, offsets, indices, distances, values};
    const Grid grid{queries, 1, Select::THREADS, sizeof(Select::Shared)};
    return launch<Select>("hamming_select", grid, args, {device, stream});
}

// Counts at each distance, see hamming_histogram.h. With totals null, by part. `threads` and `window` are the
// caller's: a counter of 4 bytes for each thread and distance of a window must fit the shared memory.
MINERLIB_API int minerlib_cuda_hamming_histogram(
    const uint32_t* queries, int64_t query_count, int64_t first_query, const uint32_t* database, int64_t plane_rows,
    int64_t rows, int32_t width, const int32_t* query_class, const int32_t* row_class, const uint64_t* query_labels,
    const uint64_t* row_labels, int32_t label_words, int32_t own, int64_t splits, int32_t block_queries,
    int32_t thread_rows, int32_t values, int32_t threads, int32_t window, int64_t* totals, int64_t* relevant_totals,
    int32_t* by_part, int32_t* relevant_by_part, int device, void* stream) {
    if (thread_rows > Histogram<LONG>::MOST_ROWS)
        return refuse("hamming_histogram", "a thread counts at most 65535 rows", 1);
    const HistogramArgs args{queries,
                             {database, plane_rows, width},
                             {query_class, row_class, query_labels, row_labels, label_words},
                             {query_count, first_query, rows, splits, block_queries, thread_rows, own != 0},
                             values,
                             window,
                             totals,
                             relevant_totals,
                             by_part,
                             relevant_by_part,
                             splits * (threads / block_queries)};
    const Grid grid{blocks_of(query_count, block_queries) * splits, blocks_of(values, window), threads,
                    int64_t{4} * threads * window};
    return launch_for<Histogram>("hamming_histogram", width, grid, args, {device, stream});
}

// Ranks of the relevant rows, see hamming_ranking.h. Two counters of 4 bytes for each thread and distance of a window.
MINERLIB_API int minerlib_cuda_hamming_rank(const uint32_t* queries, int64_t query_count, int64_t first_query,
                                            const uint32_t* database, int64_t rows, int32_t width,
                                            const int32_t* query_class, const int32_t* row_class,
                                            const uint64_t* query_labels, const uint64_t* row_labels,
                                            int32_t label_words, int32_t own, int64_t splits, int32_t block_queries,
                                            int32_t thread_rows, int32_t values, int32_t threads, int32_t window,
                                            const int32_t* first_ranks, const int32_t* first_hits, int64_t k,
                                            int32_t* ranks, int32_t* hits, int device, void* stream) {
    const RankArgs args{queries,
                        {database, rows, width},
                        {query_class, row_class, query_labels, row_labels, label_words},
                        {query_count, first_query, rows, splits, block_queries, thread_rows, own != 0},
                        values,
                        window,
                        splits * (threads / block_queries),
                        first_ranks,
                        first_hits,
                        k,
                        ranks,
                        hits};
    const Grid grid{blocks_of(query_count, block_queries) * splits, blocks_of(values, window), threads,
                    int64_t{8} * threads * window};
    return launch_for<Rank>("hamming_rank", width, grid, args, {device, stream});
}

// Average precision from ranks. out: float64 [queries].
MINERLIB_API int minerlib_cuda_hamming_precision(const int32_t* ranks, const int32_t* hits, int64_t queries, int64_t k,
                                                 double* out, int device, void* stream) {
    const PrecisionArgs args{ranks, hits, out, queries, k};
    const Grid grid{blocks_of(queries, Precision::THREADS), 1, Precision::THREADS, 0};
    return launch<Precision>("hamming_precision", grid, args, {device, stream});
}

// A whole search, one kernel after the other: counts of the first `sample` rows, their limits; stage by stage hits and
// limits; the k nearest of them, where nearest_threads is not 0. stages: int64 [stage_count, 5] of the host, each
// first_row, stop_row, splits, split_rows and first_split. zeros: int64 [2, queries, values] and one more, which tells
// whether `nearest` failed. limits: int32 [queries]; counts: int32 [queries, all_splits].
MINERLIB_API int minerlib_cuda_hamming_search(const uint32_t* queries, int64_t query_count, const uint32_t* database,
                                              int64_t rows, int32_t width, int32_t values, int64_t k, int32_t way,
                                              int64_t sample, int64_t sample_splits, int32_t block_queries,
                                              int32_t thread_rows, int32_t sample_threads, int32_t window,
                                              const int64_t* stages, int64_t stage_count, int64_t all_splits,
                                              int64_t capacity, int64_t* zeros, int32_t* limits, int32_t* counts,
                                              uint64_t* candidates, int32_t nearest_threads, int32_t lanes,
                                              int64_t* indices, int32_t* distances, int device, void* stream) {
    int64_t *totals = zeros + query_count * values, *failed = totals + query_count * values;
    int status = minerlib_cuda_hamming_histogram(
        queries, query_count, 0, database, rows, sample, width, nullptr, nullptr, nullptr, nullptr, 0, 0, sample_splits,
        block_queries, thread_rows, values, sample_threads, window, zeros, nullptr, nullptr, nullptr, device, stream);
    if (status == 0) status = minerlib_cuda_hamming_limits(zeros, query_count, values, k, 1, limits, device, stream);
    for (const int64_t* stage = stages; status == 0 && stage < stages + 5 * stage_count; stage += 5) {
        status = minerlib_cuda_hamming_collect(queries, query_count, database, rows, stage[0], stage[1], width, limits,
                                               k, stage[2], stage[3], stage[4], all_splits, candidates, nullptr,
                                               capacity, counts, totals, values, way, device, stream);
        if (status == 0)
            status = minerlib_cuda_hamming_limits(totals, query_count, values, k, 0, limits, device, stream);
    }
    if (status != 0 || nearest_threads == 0) return status;
    const NearestArgs args{
        {candidates, nullptr, capacity, all_splits}, counts, limits, indices, distances, failed, k, lanes};
    return launch<Nearest>("hamming_nearest", {query_count, 1, nearest_threads, sizeof(Nearest::Shared)}, args,
                           {device, stream});
}
