// The kernel families of one instruction set, each defined in its <family>_impl.h. Without a guard: a table that
// borrows from another set includes it for both.

#include "kernels.h"

namespace minerlib {
namespace MINERLIB_ISA {

void extremes(const Problem&, unsigned wanted, int64_t* out);
void window(const Problem&, Rule, const PairOptions&, const PairSlots&);
void count_window(const Problem&, const PairOptions&, int64_t* total, int64_t* positive, int64_t* below_margin);
void emit_window(const Problem&, const PairOptions&, const PairSlots&);
void sample(const Problem&, const PairOptions&, const PairSlots&);
void topk(const Problem&, int64_t k, double* distances, int64_t* indices);
void pairwise(const Problem&, double* out);

}  // namespace MINERLIB_ISA
}  // namespace minerlib
