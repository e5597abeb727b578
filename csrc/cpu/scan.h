// The views of family scan: what pytorch-metric-learning's miners ask of the distances of every anchor.
#pragma once

#include <cstdint>
#include <vector>

namespace minerlib {

// One positive (side 0) and one negative (side 1) for each anchor.
struct ChoiceRule {
    bool wanted[2];
    bool nearest[2];              // or the farthest
    double at_least[2], most[2];  // what their distances may be, both ends included
    int second;                   // the side that stays strictly beyond the other's choice, -1 for none
};

// Positives with d + epsilon > near and negatives with d - epsilon < far.
struct PairRule {
    double epsilon;
    bool own_edges;  // near and far are the distances of each anchor's nearest negative and farthest positive
    double near, far;
};

// Triplets with above < d(a, n) - d(a, p) <= up_to.
struct TripletRule {
    double above, up_to;
};

// Columns of each anchor, ascending.
using ColumnLists = std::vector<std::vector<int32_t>>;

}  // namespace minerlib
