// scan: choices and lists over the distances of every anchor, as pytorch-metric-learning's miners define them.
//
//   scan_choose   for each anchor a positive and a negative, the nearest or the farthest with a distance in a range;
//                 the second side, if any, strictly beyond the first one's choice (nearer for a positive)
//   scan_pairs    positives with d + epsilon > near, negatives with d - epsilon < far
//   scan_count    how many triplets each anchor has with above < d(a, n) - d(a, p) <= up_to
//   scan_triplets those triplets, by anchor, positive, negative
//
// anchors [N, D], columns [M, D] of float32 or float64. Choices are index [N, 2] (-1 for none) and value [N, 2], lists
// one of columns for each anchor. Every comparison is decided on canonical float64 values of the metric, nearest and
// farthest on selection values, ties by the lowest index. Memory beyond the lists: that of window, and 8 D bytes a row
// where rows as bytes (coarse.h) tell which pairs of fixed edges need be looked at.
// Source: pytorch-metric-learning's BatchEasyHardMiner, PairMarginMiner, MultiSimilarityMiner and TripletMarginMiner.
#pragma once

#include <atomic>

#include "coarse.h"
#include "each_anchor.h"
#include "families.h"

namespace minerlib {
namespace MINERLIB_ISA {

constexpr double ANY = std::numeric_limits<double>::infinity();

// Bounds that leave float64 little to decide; where a faster panel's are coarser, float32 is a gain.
constexpr double FINE = 0x1p-10;

template <class T> void choose_rows(const Problem& problem, const ChoiceRule& rule, int64_t* index, double* value) {
    const auto choose_for = [&](auto& row) {
        double closest = -ANY, farthest = ANY;  // what the side chosen first leaves to the other
        const int order[2] = {rule.second == 0 ? 1 : 0, rule.second == 0 ? 0 : 1};
        for (const int side : order) {
            int64_t& chosen = index[2 * row.anchor() + side];
            double& distance = value[2 * row.anchor() + side];
            chosen = -1;
            distance = 0;
            if (!rule.wanted[side]) continue;
            // The edges as low < d <= high.
            double low = std::nextafter(rule.at_least[side], -ANY), high = rule.most[side];
            if (rule.at_least[side] == -ANY) low = -ANY;
            if (side == 0) {
                if (farthest < ANY) high = std::min(high, std::nextafter(farthest, -ANY));
                chosen = row.extreme_positive(rule.nearest[0], low, high);
            } else {
                low = std::max(low, closest);
                if (low == -ANY && high == ANY) {
                    chosen = rule.nearest[1] ? row.nearest_negative() : row.farthest_negative();
                } else if (rule.nearest[1] && low >= 0 && low < ANY && high == ANY) {
                    chosen = row.nearest_beyond(low);
                } else if (row.find_where(low, high, 0.0, [&](double d) { return d > low && d <= high; }) > 0) {
                    chosen = row.extreme_eligible(rule.nearest[1]);
                }
            }
            if (chosen >= 0) distance = row.value(chosen);
            if (rule.second == 0 && side == 1) farthest = chosen >= 0 ? distance : -ANY;
            if (rule.second == 1 && side == 0) closest = chosen >= 0 ? distance : ANY;
        }
    };
    if (!std::is_same_v<FastPanel, Float32Panel> && !Square<T>::fits(problem)) {
        const Filter<T, FastPanel> filter(problem, problem.metric == Metric::cosine ? Space::cosine : Space::squared);
        if (filter.usable && filter.relative <= FINE) {
            visit_anchors(problem, Canonical<T>(problem), filter, 0.0, choose_for);
            return;
        }
    }
    for_each_anchor<T>(problem, 0.0, choose_for);
}

// Positives alone: anchors have so few that float64 decides them sooner than products with every column are made.
template <class T> void choose_positives(const Problem& problem, const ChoiceRule& rule, int64_t* index,
                                         double* value) {
    const Canonical<T> canonical(problem);
    const double sign = rule.nearest[0] ? 1.0 : -1.0;
    const int64_t n = problem.anchors.rows, block = 16;
    parallel_for(problem.threads, ceil_div(n, block), [&](int64_t b) {
        Positives positives(problem);
        for (int64_t i = b * block; i < std::min(n, (b + 1) * block); ++i) {
            Best best;
            positives.select(i);
            positives.visit(0, problem.columns.rows, [&](int64_t p) {
                const double selection = canonical.selection(i, p), d = canonical.value(selection);
                if (d >= rule.at_least[0] && d <= rule.most[0]) best.offer(sign * selection, p);
            });
            index[2 * i] = best.column;
            index[2 * i + 1] = -1;
            value[2 * i] = best.column < 0 ? 0 : canonical.value(sign * best.value);
            value[2 * i + 1] = 0;
        }
    });
}

static inline bool few_positives(const Problem& problem) {
    constexpr int64_t ENOUGH = 16;  // products of float32 a column take less time than this share of sums in float64
    Positives positives(problem);
    int64_t left = problem.anchors.rows * problem.columns.rows / ENOUGH;
    for (int64_t i = 0; i < problem.anchors.rows && left >= 0; ++i) {
        positives.select(i);
        left -= positives.count_from(0);
    }
    return left >= 0;
}

template <class T> void choose(const Problem& problem, const ChoiceRule& rule, int64_t* index, double* value) {
    if (!rule.wanted[1] && few_positives(problem)) {
        choose_positives<T>(problem, rule, index, value);
    } else {
        choose_rows<T>(problem, rule, index, value);
    }
}

// More than the rounding of d + epsilon or d - epsilon next to an edge.
static inline double slack_of(double edge, double epsilon) {
    return std::isinf(edge) ? 0.0 : (std::fabs(edge) + std::fabs(epsilon)) * 4e-15;
}

template <class T>
void pair_rows(const Problem& problem, const PairRule& rule, ColumnLists& positives, ColumnLists& negatives) {
    const double epsilon = rule.epsilon;
    for_each_anchor<T>(problem, 0.0, [&](AnchorRow<T>& row) {
        double near = rule.near, far = rule.far;
        if (rule.own_edges) {
            const int64_t nearest = row.nearest_negative(), farthest = row.extreme_positive(false, -ANY, ANY);
            near = nearest >= 0 ? row.value(nearest) : ANY;
            far = farthest >= 0 ? row.value(farthest) : -ANY;
        }
        std::vector<int32_t>& near_by = negatives[static_cast<size_t>(row.anchor())];
        const auto closer = [&](double d) { return d - epsilon < far; };
        near_by.reserve(static_cast<size_t>(row.find_where(-ANY, far + epsilon, slack_of(far, epsilon), closer)));
        row.visit_eligible([&](int64_t column) { near_by.push_back(static_cast<int32_t>(column)); });

        std::vector<int32_t>& far_off = positives[static_cast<size_t>(row.anchor())];
        const auto farther = [&](double d) { return d + epsilon > near; };
        for (int64_t p = 0; p < row.positives(); ++p) {
            if (row.positive_holds(p, near - epsilon, slack_of(near, epsilon), farther))
                far_off.push_back(static_cast<int32_t>(row.positive(p)));
        }
    });
}

// Edges that are the same for all, in a batch mined against itself: each pair is looked at once, from its lower row.
template <class T, class Panel> class HalfPairs {
public:
    HalfPairs(const Problem& problem, const PairRule& rule, const Canonical<T>& canonical,
              const Filter<T, Panel>& filter, const WholeRows<T, Panel>& whole)
        : problem_(problem), rule_(rule), canonical_(canonical), filter_(filter), whole_(whole),
          n_(problem.anchors.rows) {}

    void run(ColumnLists& positives, ColumnLists& negatives) const {
        ColumnLists half[2] = {ColumnLists(static_cast<size_t>(n_)), ColumnLists(static_cast<size_t>(n_))};
        if (!by_bytes(half)) by_panels(half);
        mirror(half[0], positives);
        mirror(half[1], negatives);
    }

private:
    // Positives with every column beyond a row, and negatives among those that coarse tiles leave. False, and garbage
    // is in the lists, where panels find them sooner.
    bool by_bytes(ColumnLists* half) const {
        if constexpr (Coarse<T, Panel>::EXISTS) {
            using Bytes = Coarse<T, Panel>;
            const double reach = rule_.far + rule_.epsilon + slack_of(rule_.far, rule_.epsilon);
            if (!(std::fabs(reach) < ANY) || !few_positives(problem_)) return false;
            std::vector<typename Bytes::Part> parts;
            for (int64_t i = 0; i < n_; i += GROUP) parts.push_back({i, std::min(n_, i + GROUP), nullptr});
            const Bytes bytes(filter_, whole_, parts, problem_.threads);
            if (!bytes.usable()) return false;

            Buffer<int16_t> near(bytes.padded_rows()), far(bytes.padded_rows());
            std::fill_n(near.get(), bytes.padded_rows(), Bytes::NEVER_NEAR);
            std::fill_n(far.get(), bytes.padded_rows(), Bytes::NEVER_FAR);
            const double most = values_of(problem_.metric, filter_, 0.0, reach, reach).high;
            for (int64_t i = 0; i < n_; ++i) near[i] = bytes.near_edge(most, i);
            const CoarseEdges edges{near.get(), far.get(), near.get()};

            constexpr int64_t SPARE = 64;  // a value alone takes as long as so many comparisons of bytes
            std::atomic<bool> dense = false;
            const int64_t rows = Panel::ROWS * PANELS;
            parallel_for(problem_.threads, ceil_div(n_, rows), [&](int64_t b) {
                if (dense) return;
                const int64_t first = b * rows, count = std::min(rows, n_ - first);
                ColumnLists hits(static_cast<size_t>(count));
                if (find_hits(bytes, edges, first, hits) > count * (n_ - first) / SPARE + GROUP) dense = true;
                Positives same(problem_);
                for (int64_t i = first; i < first + count && !dense; ++i) {
                    const size_t row = static_cast<size_t>(i);
                    visit_hits(i, hits[static_cast<size_t>(i - first)], same, half[0][row], half[1][row]);
                }
            });
            return !dense;
        }
        return false;
    }

    // The columns beyond each row that may be near to it; returns how many.
    template <class Bytes>
    int64_t find_hits(const Bytes& bytes, const CoarseEdges& edges, int64_t first, ColumnLists& hits) const {
        const int64_t count = static_cast<int64_t>(hits.size());
        Buffer<uint16_t> panels;
        bytes.pack_anchors(first, count, panels);
        int64_t total = 0;
        for (int64_t block = first / Bytes::COLUMNS; block * Bytes::COLUMNS < n_; ++block) {
            for (int64_t p = 0; p * Bytes::ROWS < count; ++p) {
                uint64_t found[Bytes::ROWS / 2];
                const int64_t top = p * Bytes::ROWS;
                if (!bytes.template tile<EdgeKinds::near>(panels, p, first + top, block, edges, found)) continue;
                for (int64_t r = top; r < std::min<int64_t>(top + Bytes::ROWS, count); ++r) {
                    const uint64_t both = found[(r - top) / 2];
                    for (auto lanes = static_cast<uint32_t>((r - top) % 2 == 0 ? both : both >> 32); lanes != 0;
                         lanes &= lanes - 1) {
                        const int64_t j = block * Bytes::COLUMNS + __builtin_ctz(lanes);
                        if (j <= first + r || j >= n_) continue;
                        hits[static_cast<size_t>(r)].push_back(static_cast<int32_t>(j));
                        ++total;
                    }
                }
            }
        }
        return total;
    }

    void visit_hits(int64_t i, const std::vector<int32_t>& hits, Positives& same, std::vector<int32_t>& far_off,
                    std::vector<int32_t>& near_by) const {
        const auto interval = [&](int64_t j) {
            return distance_of(problem_.metric, filter_, whole_.half_norm(i), j, whole_.value(filter_, i, j));
        };
        const double edge = rule_.far + rule_.epsilon, slack = slack_of(rule_.far, rule_.epsilon);
        auto hit = hits.begin();
        const auto take_before = [&](int64_t end) {
            for (; hit != hits.end() && *hit < end; ++hit) {
                const Interval d = interval(*hit);
                if (d.high < edge - slack || (d.low <= edge + slack && value(i, *hit) - rule_.epsilon < rule_.far))
                    near_by.push_back(*hit);
            }
        };
        same.select(i);
        far_off.reserve(static_cast<size_t>(same.count_from(i + 1)));
        same.visit(i + 1, n_ - i - 1, [&](int64_t j) {
            if (is_far(interval(j), i, j)) far_off.push_back(static_cast<int32_t>(j));
            take_before(j);
            if (hit != hits.end() && *hit == j) ++hit;
        });
        take_before(n_);
    }

    void by_panels(ColumnLists* half) const {
        const int64_t rows = block_rows(n_, problem_.threads, n_);
        parallel_for(problem_.threads, ceil_div(n_, rows), [&](int64_t b) {
            const int64_t first = b * rows, count = std::min(rows, n_ - first);
            thread_local Scratch scratch;
            Positives same(problem_);
            std::vector<int32_t> found;
            const auto nothing = [](int64_t, double) {};
            const auto consume = [&](int64_t i, int64_t from, int64_t, float* values) {
                const size_t anchor = static_cast<size_t>(first + i);
                half[0][anchor].clear();
                visit(first + i, from, values, scratch.half_norms[i], same, half[0][anchor], found);
                half[1][anchor].assign(found.begin(), found.end());
            };
            sweep(filter_, first, count, first / Panel::COLUMNS * Panel::COLUMNS, ceil_div(n_, GROUP) * GROUP, scratch,
                  nothing, consume);
            scratch.trim();
        });
    }

    // The columns beyond row i; values are those of columns from `from` on.
    void visit(int64_t i, int64_t from, float* values, double half_norm, Positives& same, std::vector<int32_t>& far_off,
               std::vector<int32_t>& near_by) const {
        const float hidden = std::numeric_limits<float>::quiet_NaN();
        const double epsilon = rule_.epsilon;
        std::fill(values, values + (i + 1 - from), hidden);
        same.select(i);
        same.visit(i + 1, n_ - i - 1, [&](int64_t j) {
            const Interval d = distance_of(problem_.metric, filter_, half_norm, j, values[j - from]);
            values[j - from] = hidden;
            if (is_far(d, i, j)) far_off.push_back(static_cast<int32_t>(j));
        });
        near_by.clear();
        const double far = rule_.far + epsilon, reach = slack_of(rule_.far, epsilon);
        if (!(far + reach >= 0) && problem_.metric != Metric::cosine) return;
        const Interval edge = std::isinf(far)
                                  ? Interval{far, far}
                                  : values_of(problem_.metric, filter_, half_norm, far - reach, far + reach);
        for (int64_t c = from, last = 0; c < n_; c = last) {
            last = std::min(n_, (c / GROUP + 1) * GROUP);
            const double error = filter_.error(half_norm, filter_.group_half_norm(c / GROUP));
            const FloatV in = splat(round_down(edge.low - error)), out = splat(round_up(edge.high + error));
            for (; c < last; c += WIDTH) {
                const FloatV v = load(values + (c - from));
                uint32_t possible = mask_le(v, out);
                if (possible == 0) continue;
                const uint32_t inside = mask_lt(v, in);
                for (; possible != 0; possible &= possible - 1) {
                    const int bit = __builtin_ctz(possible);
                    const bool sure = (inside >> bit & 1) != 0;
                    if (sure || value(i, c + bit) - epsilon < rule_.far)
                        near_by.push_back(static_cast<int32_t>(c + bit));
                }
            }
        }
    }

    bool is_far(Interval d, int64_t i, int64_t j) const {
        const double low = rule_.near - rule_.epsilon, slack = slack_of(rule_.near, rule_.epsilon);
        return d.low > low + slack || (d.high >= low - slack && value(i, j) + rule_.epsilon > rule_.near);
    }

    double value(int64_t i, int64_t j) const { return canonical_.value(canonical_.selection(i, j)); }

    // Whole lists from those of columns beyond the row: a range of rows at a time, the lower columns first.
    void mirror(const ColumnLists& half, ColumnLists& lists) const {
        int64_t total = 0;
        for (const std::vector<int32_t>& beyond : half) total += static_cast<int64_t>(beyond.size());
        const int64_t pieces = std::clamp<int64_t>(total >> 14, 1, 4 * problem_.threads);
        parallel_for(problem_.threads, pieces, [&](int64_t piece) {
            const int64_t begin = n_ * piece / pieces, end = n_ * (piece + 1) / pieces;
            const auto visit_lower = [&](auto visit) {
                for (int64_t i = 0; i < end; ++i) {
                    const std::vector<int32_t>& beyond = half[static_cast<size_t>(i)];
                    auto j = i >= begin ? beyond.begin() : std::lower_bound(beyond.begin(), beyond.end(), begin);
                    for (; j != beyond.end() && *j < end; ++j) visit(*j, i);
                }
            };
            std::vector<size_t> lower(static_cast<size_t>(end - begin));
            visit_lower([&](int64_t j, int64_t) { ++lower[static_cast<size_t>(j - begin)]; });
            for (int64_t j = begin; j < end; ++j) {
                const size_t row = static_cast<size_t>(j);
                lists[row].reserve(lower[static_cast<size_t>(j - begin)] + half[row].size());
            }
            visit_lower(
                [&](int64_t j, int64_t i) { lists[static_cast<size_t>(j)].push_back(static_cast<int32_t>(i)); });
            for (int64_t j = begin; j < end; ++j) {
                const std::vector<int32_t>& beyond = half[static_cast<size_t>(j)];
                lists[static_cast<size_t>(j)].insert(lists[static_cast<size_t>(j)].end(), beyond.begin(), beyond.end());
            }
        });
    }

    const Problem& problem_;
    const PairRule& rule_;
    const Canonical<T>& canonical_;
    const Filter<T, Panel>& filter_;
    const WholeRows<T, Panel>& whole_;
    const int64_t n_;
};

// Whether the panel's bounds leave so little to float64 that its faster product is a gain.
template <class T, class Panel>
bool list_half(const Problem& problem, const PairRule& rule, double coarsest, ColumnLists& positives,
               ColumnLists& negatives) {
    WholeRows<T, Panel> whole(problem.anchors.rows, problem.anchors.dims);
    const Filter<T, Panel> filter(problem, problem.metric == Metric::cosine ? Space::cosine : Space::squared, nullptr,
                                  nullptr, whole.keeper());
    if (!filter.usable || filter.relative > coarsest) return false;
    HalfPairs<T, Panel>(problem, rule, Canonical<T>(problem), filter, whole).run(positives, negatives);
    return true;
}

template <class T>
void scan_pairs_of(const Problem& problem, const PairRule& rule, ColumnLists& positives, ColumnLists& negatives) {
    if (problem.own && !rule.own_edges && !Square<T>::fits(problem)) {
        if (!std::is_same_v<FastPanel, Float32Panel> &&
            list_half<T, FastPanel>(problem, rule, FINE, positives, negatives))
            return;
        if (list_half<T, Float32Panel>(problem, rule, ANY, positives, negatives)) return;
    }
    pair_rows<T>(problem, rule, positives, negatives);
}

// The triplets of the row's pair with positive(index): finds its negatives, returns how many.
template <class T> int64_t find_triplets(AnchorRow<T>& row, int64_t index, const TripletRule& rule) {
    const double d = row.value(row.positive(index)), low = d + rule.above, high = d + rule.up_to;
    const double slack = std::max(slack_of(d, std::isinf(rule.above) ? 0 : rule.above),
                                  slack_of(d, std::isinf(rule.up_to) ? 0 : rule.up_to));
    return row.find_where(low, high, slack, [&](double n) { return n - d > rule.above && n - d <= rule.up_to; });
}

template <class T> void count_triplets(const Problem& problem, const TripletRule& rule, int64_t* counts) {
    for_each_anchor<T>(problem, 0.0, [&](AnchorRow<T>& row) {
        int64_t& found = counts[row.anchor()];
        found = 0;
        if (row.negatives() == 0) return;
        for (int64_t p = 0; p < row.positives(); ++p) found += find_triplets(row, p, rule);
    });
}

template <class T> void list_triplets(const Problem& problem, const TripletRule& rule, const PairSlots& slots) {
    for_each_anchor<T>(problem, 0.0, [&](AnchorRow<T>& row) {
        if (row.negatives() == 0) return;
        int64_t first = slots.offsets[row.anchor()];
        for (int64_t p = 0; p < row.positives(); ++p) {
            const int64_t found = find_triplets(row, p, rule);
            row.write_triplets(p, found, slots, first);
            first += found;
        }
    });
}

void scan_choose(const Problem& problem, const ChoiceRule& rule, int64_t* index, double* value) {
    if (problem.anchors.wide) {
        choose<double>(problem, rule, index, value);
    } else {
        choose<float>(problem, rule, index, value);
    }
}

void scan_pairs(const Problem& problem, const PairRule& rule, ColumnLists& positives, ColumnLists& negatives) {
    if (problem.anchors.wide) {
        scan_pairs_of<double>(problem, rule, positives, negatives);
    } else {
        scan_pairs_of<float>(problem, rule, positives, negatives);
    }
}

void scan_count(const Problem& problem, const TripletRule& rule, int64_t* counts) {
    if (problem.anchors.wide) {
        count_triplets<double>(problem, rule, counts);
    } else {
        count_triplets<float>(problem, rule, counts);
    }
}

void scan_triplets(const Problem& problem, const TripletRule& rule, const PairSlots& slots) {
    if (problem.anchors.wide) {
        list_triplets<double>(problem, rule, slots);
    } else {
        list_triplets<float>(problem, rule, slots);
    }
}

}  // namespace MINERLIB_ISA
}  // namespace minerlib
