// One table of kernel families for each instruction set; isa.cpp picks a table at run time.
#pragma once

#include "chunks.h"
#include "hamming.h"
#include "losses.h"
#include "problem.h"
#include "scan.h"

namespace minerlib {

struct Kernels {
    // wanted: bit 0 nearest positive, 1 farthest positive, 2 nearest negative, 3 farthest negative.
    // out [4, N]: column indices, -1 for none; rows of `out` that are not wanted are left alone.
    void (*extremes)(const Problem&, unsigned wanted, int64_t* out);
    // Improves the records of a pair of chunks by each other's rows; `wanted` as above.
    void (*chunk_extremes)(const ChunkPair&, unsigned wanted);
    void (*window)(const Problem&, Rule, const PairOptions&, const PairSlots&);
    // How many triplets each anchor has [N], how many with s > 0 [N], and how many of those with s < margin [N];
    // total and below_margin may be null.
    void (*count_window)(const Problem&, const PairOptions&, int64_t* total, int64_t* positive, int64_t* below_margin);
    // All triplets with s > 0, anchor i's from slot offsets[i] on.
    void (*emit_window)(const Problem&, const PairOptions&, const PairSlots&);
    void (*sample)(const Problem&, const PairOptions&, const PairSlots&);
    void (*topk)(const Problem&, int64_t k, double* distances, int64_t* indices);
    void (*pairwise)(const Problem&, double* out);

    void (*hamming_distance)(const Codes& a, const Codes& b, int threads, int32_t* out);
    void (*hamming_search)(const Codes& queries, const Codes& database, int64_t k, int threads, int32_t* distances,
                           int64_t* indices);
    void (*hamming_range)(const Codes& queries, const Codes& database, int64_t radius, int threads, HitLists& out);
    void (*hamming_counts)(const Codes& queries, const Codes& database, const Relevance&, int threads, int64_t* all,
                           int64_t* relevant);
    void (*hamming_average_precision)(const Codes& queries, const Codes& database, const Relevance&, int64_t k,
                                      int threads, double* out);

    void (*losses_triplet)(const TripletTerms&, LossResult&);
    void (*losses_batch_all)(const Problem&, double margin, Reduction, LossResult&);

    // index [N, 2] and value [N, 2]; the lists have a place for each anchor.
    void (*scan_choose)(const Problem&, const ChoiceRule&, int64_t* index, double* value);
    void (*scan_pairs)(const Problem&, const PairRule&, ColumnLists& positives, ColumnLists& negatives);
    // How many triplets each anchor has [N], and all of them, anchor i's from slot offsets[i] on.
    void (*scan_count)(const Problem&, const TripletRule&, int64_t* counts);
    void (*scan_triplets)(const Problem&, const TripletRule&, const PairSlots&);
};

extern const Kernels kernels_generic;
#if MINERLIB_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512bf16;
extern const Kernels kernels_avx512vpopcntdq;
extern const Kernels kernels_amxbf16;
extern const Kernels kernels_amxemulated;
#endif

}  // namespace minerlib
