// The kernel families of one instruction set, each defined in its <family>_impl.h. Without a guard: a table that
// borrows from another set includes it for both.

#include "kernels.h"

namespace minerlib {
namespace MINERLIB_ISA {

void extremes(const Problem&, unsigned wanted, int64_t* out);
void chunk_extremes(const ChunkPair&, unsigned wanted);
void window(const Problem&, Rule, const PairOptions&, const PairSlots&);
void count_window(const Problem&, const PairOptions&, int64_t* total, int64_t* positive, int64_t* below_margin);
void emit_window(const Problem&, const PairOptions&, const PairSlots&);
void sample(const Problem&, const PairOptions&, const PairSlots&);
void topk(const Problem&, int64_t k, double* distances, int64_t* indices);
void pairwise(const Problem&, double* out);

void hamming_distance(const Codes& a, const Codes& b, int threads, int32_t* out);
void hamming_search(const Codes& queries, const Codes& database, int64_t k, int threads, int32_t* distances,
                    int64_t* indices);
void hamming_range(const Codes& queries, const Codes& database, int64_t radius, int threads, HitLists& out);
void hamming_counts(const Codes& queries, const Codes& database, const Relevance&, int threads, int64_t* all,
                    int64_t* relevant);
void hamming_average_precision(const Codes& queries, const Codes& database, const Relevance&, int64_t k, int threads,
                               double* out);

void losses_triplet(const TripletTerms&, LossResult&);
void losses_batch_all(const Problem&, double margin, Reduction, LossResult&);

void scan_choose(const Problem&, const ChoiceRule&, int64_t* index, double* value);
void scan_pairs(const Problem&, const PairRule&, ColumnLists& positives, ColumnLists& negatives);
void scan_count(const Problem&, const TripletRule&, int64_t* counts);
void scan_triplets(const Problem&, const TripletRule&, const PairSlots&);

}  // namespace MINERLIB_ISA
}  // namespace minerlib
