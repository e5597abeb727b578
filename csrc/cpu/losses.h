// The views of the families of losses: what a loss is computed of, and where value and gradients go.
#pragma once

#include <cstdint>

#include "problem.h"

namespace minerlib {

enum class Reduction { mean = 0, sum = 1, mean_nonzero = 2, hinge_of_sums = 3 };

// What is compared: the distances of the metrics, or (product) minus half the inner product.
enum class Comparison { sqeuclidean = 0, euclidean = 1, cosine = 2, product = 3 };

// Triplets (anchor of x, positive of y, negative of y), in range, in any order.
struct TripletTerms {
    Rows x;                    // [N, D]
    Rows y;                    // [M, D], the very rows of x where `own`
    bool own;                  // y is x: one gradient for both
    const int64_t* anchors;    // [T]
    const int64_t* positives;  // [T]
    const int64_t* negatives;  // [T]
    int64_t count;
    double margin;
    Comparison comparison;
    Reduction reduction;
    bool soft;  // log(1 + exp(s)) instead of max(s, 0)
    int threads;
};

// Gradients have the type and shape of their rows; null where none is asked for.
struct LossResult {
    double loss;
    void* into_x;  // [N, D]
    void* into_y;  // [M, D], null where `own`
};

}  // namespace minerlib
