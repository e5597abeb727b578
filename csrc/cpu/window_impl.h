// window: per anchor-positive pair one negative out of those whose distance lies in the pair's window.
//
// anchors [N, D], columns [M, D] of float32 or float64, labels -> negatives [P] int64, -1 for none; also the
// number of eligible negatives, and the list of all of them. Every comparison is decided on canonical float64
// values of the metric, nearest on selection values, ties by the lowest index; the random rules take the r-th
// eligible column in index order, r from Philox (SPEC section 3).
// Memory: O(M) a row in flight, and at most 4 MB for a batch of up to 1024 rows mined against itself. Limits: M < 2^31.
// Source: SPEC section 4, JTANet section 4.3, FaceNet, EXT eq. 1-2.
#pragma once

#include "each_anchor.h"
#include "families.h"
#include "philox.h"

namespace minerlib {
namespace MINERLIB_ISA {

constexpr Eligible POSITIVE_SCORE = {true, false, false};
constexpr Eligible SEMI_HARD = {true, true, false};
constexpr Eligible FARTHER = {false, false, true};

template <class Row> int64_t choose_negative(Row& row, int64_t index, Rule rule, uint64_t seed) {
    if (rule == Rule::semi_hard_nearest) return row.nearest_eligible(index, FARTHER);
    const int64_t count = row.find_eligible(index, rule == Rule::semi_hard ? SEMI_HARD : POSITIVE_SCORE);
    if (count == 0) return -1;
    const uint64_t u =
        uniform_bits(seed, static_cast<uint64_t>(row.anchor()), static_cast<uint64_t>(row.positive(index)));
    return row.eligible(choose(u, count));
}

// Calls visit(index, slot) for the pairs of the row that count, slots from offsets[anchor] on.
template <class Row, class Visit>
void for_each_pair(const Row& row, bool combinations, int64_t slot, Visit visit) {
    for (int64_t index = 0; index < row.positives(); ++index) {
        if (!combinations || row.positive(index) > row.anchor()) visit(index, slot++);
    }
}

template <class T>
void window_rows(const Problem& problem, Rule rule, const PairOptions& options, const PairSlots& slots) {
    for_each_anchor<T>(problem, options.margin, [&](auto& row) {
        const bool empty = row.negatives() == 0;
        const double hardest =
            rule == Rule::hard && !empty && row.positives() > 0 ? row.value(row.nearest_negative()) : 0;
        for_each_pair(row, options.combinations, slots.offsets[row.anchor()], [&](int64_t index, int64_t slot) {
            int64_t negative = -1;
            if (!empty) {
                if (rule == Rule::hard) {
                    negative = row.scores(index, hardest) ? row.nearest_negative() : -1;
                } else {
                    negative = choose_negative(row, index, rule, options.seed);
                }
                if (negative < 0 && options.fallback == 1) negative = row.nearest_negative();
                if (negative < 0 && options.fallback == 2) negative = row.farthest_negative();
            }
            slots.anchors[slot] = row.anchor();
            slots.positives[slot] = row.positive(index);
            slots.negatives[slot] = negative;
        });
    });
}

template <class T>
void count_window_rows(const Problem& problem, const PairOptions& options, int64_t* total, int64_t* positive,
                       int64_t* below_margin) {
    for_each_anchor<T>(problem, options.margin, [&](auto& row) {
        int64_t all = 0, scored = 0, semi_hard = 0;
        if (row.negatives() > 0) {
            for_each_pair(row, options.combinations, 0, [&](int64_t index, int64_t) {
                all += row.negatives();
                scored += row.find_eligible(index, POSITIVE_SCORE);
                if (below_margin != nullptr) semi_hard += row.find_eligible(index, SEMI_HARD);
            });
        }
        if (total != nullptr) total[row.anchor()] = all;
        positive[row.anchor()] = scored;
        if (below_margin != nullptr) below_margin[row.anchor()] = semi_hard;
    });
}

template <class T> void emit_window_rows(const Problem& problem, const PairOptions& options, const PairSlots& slots) {
    for_each_anchor<T>(problem, options.margin, [&](auto& row) {
        if (row.negatives() == 0) return;
        int64_t out = slots.offsets[row.anchor()];
        for_each_pair(row, options.combinations, 0, [&](int64_t index, int64_t) {
            row.find_eligible(index, POSITIVE_SCORE);
            row.visit_eligible([&](int64_t column) {
                slots.anchors[out] = row.anchor();
                slots.positives[out] = row.positive(index);
                slots.negatives[out++] = column;
            });
        });
    });
}

void window(const Problem& problem, Rule rule, const PairOptions& options, const PairSlots& slots) {
    if (problem.anchors.wide) {
        window_rows<double>(problem, rule, options, slots);
    } else {
        window_rows<float>(problem, rule, options, slots);
    }
}

void count_window(const Problem& problem, const PairOptions& options, int64_t* total, int64_t* positive,
                  int64_t* below_margin) {
    if (problem.anchors.wide) {
        count_window_rows<double>(problem, options, total, positive, below_margin);
    } else {
        count_window_rows<float>(problem, options, total, positive, below_margin);
    }
}

void emit_window(const Problem& problem, const PairOptions& options, const PairSlots& slots) {
    if (problem.anchors.wide) {
        emit_window_rows<double>(problem, options, slots);
    } else {
        emit_window_rows<float>(problem, options, slots);
    }
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
