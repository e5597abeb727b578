// Pairs of an anchor and a column: slots for the families that answer per anchor-positive pair, and lists of pairs.
#pragma once

#include "problem.h"
#include "scan.h"

namespace minerlib {

// offsets [N + 1]: the number of pairs of the anchors before each one; with `combinations` pairs a < p only.
void pair_offsets(const Problem& problem, bool combinations, int64_t* offsets);

// Every pair of one class (same), or of two: anchor i's from place offsets[i] of anchors and columns on.
void class_offsets(const Problem& problem, bool same, int64_t* offsets);
void class_pairs(const Problem& problem, bool same, const int64_t* offsets, int64_t* anchors, int64_t* columns);

// The same for the columns that are listed.
void list_offsets(const ColumnLists& lists, int64_t* offsets);
void list_pairs(const ColumnLists& lists, int threads, const int64_t* offsets, int64_t* anchors, int64_t* columns);

}  // namespace minerlib
