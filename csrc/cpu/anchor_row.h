// One anchor against all columns: who is a negative, which negatives a pair may choose, which is nearest.
//
// Starts from float32 values with bounds (filter.h) and asks float64 only about columns that lie within the
// bound of an edge. Where that becomes many (ties, duplicates), or where there are no float32 values, the row is
// computed in float64 once and everything is decided on that.
#pragma once

#include "candidates.h"
#include "intervals.h"
#include "positives.h"

namespace minerlib {
namespace MINERLIB_ISA {

// Which negatives a pair may choose. With s = (d(a,p) - d(a,n)) + margin, evaluated in that order in float64:
struct Eligible {
    bool positive_score;  // s > 0
    bool below_margin;    // s < margin
    bool farther;         // d(a,n) > d(a,p)

    bool holds(double dp, double dn, double margin) const {
        const double s = (dp - dn) + margin;
        return (!positive_score || s > 0) && (!below_margin || s < margin) && (!farther || dn > dp);
    }
};

// The places of the bits of every byte, as many as it has.
struct BitPlaces {
    uint8_t of[256][8];

    constexpr BitPlaces() : of() {
        for (int byte = 0; byte < 256; ++byte) {
            for (int bit = 0, found = 0; bit < 8; ++bit) {
                if (byte >> bit & 1) of[byte][found++] = static_cast<uint8_t>(bit);
            }
        }
    }
};
constexpr BitPlaces BIT_PLACES;

// Writes `column` plus the places of the lowest byte's bits, and what else makes up eight numbers; returns their end.
static inline int64_t* list_byte(uint64_t bits, int64_t column, int64_t* out) {
    typedef uint8_t Bytes __attribute__((vector_size(8), may_alias));
    typedef int64_t Longs __attribute__((vector_size(64), aligned(8), may_alias));
    const auto byte = static_cast<uint8_t>(bits);
    const Bytes places = *reinterpret_cast<const Bytes*>(BIT_PLACES.of[byte]);
    *reinterpret_cast<Longs*>(out) = __builtin_convertvector(places, Longs) + column;
    return out + __builtin_popcount(byte);
}

template <class T, class Panel = Float32Panel> class AnchorRow {
public:
    AnchorRow(const Problem& problem, const Canonical<T>& canonical, const Filter<T, Panel>& filter, double margin)
        : problem_(problem), canonical_(canonical), filter_(filter), margin_(margin), columns_(problem.columns.rows),
          positives_(problem), bits_(ceil_div(columns_, 64)), largest_(filter.usable ? filter.largest_half_norm() : 0),
          span_(alike() ? std::max<int64_t>(columns_, 1) : GROUP) {}

    // Turns to another anchor. values [M + padding] are its float32 values, which are overwritten; null where
    // there are none.
    void select(int64_t anchor, float* values, double half_norm) {
        anchor_ = anchor;
        values_ = values;
        half_norm_ = half_norm;
        asked_ = 0;
        nearest_ = farthest_ = UNKNOWN;
        positives_.select(anchor);
        positive_columns_.resize(columns_);
        positive_values_.resize(columns_);
        positives_count_ = 0;
        positives_.visit(0, columns_, [&](int64_t p) {
            positive_columns_[positives_count_] = p;
            if (values != nullptr) {
                positive_values_[positives_count_] = values[p];
                values[p] = std::numeric_limits<float>::quiet_NaN();
            }
            ++positives_count_;
        });
        if (values != nullptr && positives_.own() >= 0)
            values[positives_.own()] = std::numeric_limits<float>::quiet_NaN();
        exact_ = false;
        if (values == nullptr && negatives() > 0) decide_exactly();
    }

    int64_t anchor() const { return anchor_; }
    int64_t negatives() const { return columns_ - positives_count_ - (positives_.own() >= 0 ? 1 : 0); }
    int64_t positives() const { return positives_count_; }
    int64_t positive(int64_t index) const { return positive_columns_[index]; }

    // Finds the eligible negatives of the pair with positive(index); returns how many.
    int64_t find_eligible(int64_t index, Eligible rule) {
        if (!exact_) {
            const int64_t found = find_filtered(index, rule);
            if (!exact_) return found;
        }
        return find_exact(index, rule);
    }

    // Finds the negatives at a distance d that holds(d): true between low and high, false beyond them, and either
    // within `slack` of the two. Returns how many.
    template <class Holds> int64_t find_where(double low, double high, double slack, const Holds& holds) {
        const double least = problem_.metric == Metric::cosine ? -std::numeric_limits<double>::infinity() : 0.0;
        if (!(low < high) || high + slack < least) {
            std::fill(bits_.get(), bits_.get() + ceil_div(columns_, 64), 0);
            return 0;
        }
        if (!exact_) {
            const Interval far_edge =
                std::isinf(high) ? Interval{high, high} : value_interval(high - slack, high + slack);
            int64_t found;
            if (low + slack < least || std::isinf(low)) {
                found = find_between<false, true>({}, far_edge, holds);
            } else {
                found = find_between<true, true>(value_interval(low - slack, low + slack), far_edge, holds);
            }
            if (!exact_) return found;
        }
        const double* d = exact_distances();
        int64_t found = 0;
        for (int64_t w = 0; w < columns_; w += 64) {
            uint64_t inside = 0;
            for (int bit = 0; bit < 64; ++bit) {
                const bool in = d[w + bit] == d[w + bit] && holds(d[w + bit]);  // NaN: no negative
                inside |= uint64_t{in} << bit;
            }
            bits_[w / 64] = inside;
            found += __builtin_popcountll(inside);
        }
        return found;
    }

    // The r-th eligible negative in index order.
    int64_t eligible(int64_t r) const {
        int64_t word = 0;
        for (int64_t here; r >= (here = __builtin_popcountll(bits_[word])); ++word) r -= here;
        uint64_t rest = bits_[word];
#if MINERLIB_X86 && MINERLIB_ISA_LEVEL > 0
        rest = _pdep_u64(uint64_t{1} << r, rest);
#else
        for (; r > 0; --r) rest &= rest - 1;
#endif
        return word * 64 + __builtin_ctzll(rest);
    }

    // Calls visit(column) for every eligible negative in index order.
    template <class Visit> void visit_eligible(Visit visit) const {
        for (int64_t word = 0; word < ceil_div(columns_, 64); ++word) {
            for (uint64_t rest = bits_[word]; rest != 0; rest &= rest - 1) visit(word * 64 + __builtin_ctzll(rest));
        }
    }

    // Writes the triplets of positive(index) and the `found` eligible negatives, from a slot on.
    void write_triplets(int64_t index, int64_t found, const PairSlots& slots, int64_t slot) {
        std::fill_n(slots.anchors + slot, found, anchor_);
        std::fill_n(slots.positives + slot, found, positive(index));
        listed_.resize(columns_ + 8);
        int64_t* end = listed_.get();
        for (int64_t word = 0; word < ceil_div(columns_, 64); ++word) {
            uint64_t rest = bits_[word];
            for (int64_t column = word * 64; rest != 0; column += 8, rest >>= 8) end = list_byte(rest, column, end);
        }
        std::copy_n(listed_.get(), found, slots.negatives + slot);
    }

    // The nearest eligible negative of the pair with positive(index), -1 where there is none.
    int64_t nearest_eligible(int64_t index, Eligible rule) {
        return find_eligible(index, rule) == 0 ? -1 : extreme_eligible(true);
    }

    // The nearest or the farthest of the negatives found last, -1 where there are none.
    int64_t extreme_eligible(bool nearest) {
        const double sign = nearest ? 1.0 : -1.0;
        if (!exact_) {
            Shortlist list;
            list.reset();
            scan_eligible(list, nearest);
            if (!list.overflowed()) return decide(canonical_, anchor_, sign, list);
            decide_exactly();
        }
        Best best;
        visit_eligible([&](int64_t column) { best.offer(sign * selections_[column], column); });
        return best.column;
    }

    // The nearest or the farthest positive with low < d <= high, -1 where there is none.
    int64_t extreme_positive(bool nearest, double low, double high) const {
        double bound = std::numeric_limits<double>::infinity();
        for (int64_t index = 0; values_ != nullptr && index < positives_count_; ++index) {
            const Interval d = pair_interval(index);
            if (d.low > low && d.high <= high) bound = std::min(bound, nearest ? d.high : -d.low);
        }
        Best best;
        for (int64_t index = 0; index < positives_count_; ++index) {
            if (values_ != nullptr) {
                const Interval d = pair_interval(index);
                if (d.high <= low || d.low > high || (nearest ? d.low : -d.high) > bound) continue;
            }
            const double selection = canonical_.selection(anchor_, positive_columns_[index]);
            const double d = canonical_.value(selection);
            if (d > low && d <= high) best.offer(nearest ? selection : -selection, positive_columns_[index]);
        }
        return best.column;
    }

    // Whether the distance d to positive(index) holds(d): false below low, true above, either within `slack` of it.
    template <class Holds> bool positive_holds(int64_t index, double low, double slack, const Holds& holds) const {
        if (values_ != nullptr) {
            const Interval d = pair_interval(index);
            if (d.low > low + slack) return true;
            if (d.high < low - slack) return false;
        }
        return holds(pair_value(index));
    }

    int64_t nearest_negative() {
        if (nearest_ == UNKNOWN) nearest_ = find_extreme(true);
        return nearest_;
    }
    int64_t farthest_negative() {
        if (farthest_ == UNKNOWN) farthest_ = find_extreme(false);
        return farthest_;
    }

    // The nearest negative with d > low, -1 where there is none.
    int64_t nearest_beyond(double low) {
        if (!exact_) {
            const Interval edge = value_interval(low, low);
            Shortlist list;
            list.reset();
            for (int64_t g = 0; g < columns_; g += GROUP) offer_beyond(low, edge, g, list);
            if (!list.overflowed()) return decide(canonical_, anchor_, 1.0, list);
        }
        const double high = std::numeric_limits<double>::infinity();
        return find_where(low, high, 0.0, [&](double d) { return d > low; }) == 0 ? -1 : extreme_eligible(true);
    }

    // Whether the pair with positive(index) has a positive score against a negative at distance dn.
    bool scores(int64_t index, double dn) {
        if (!exact_) {
            const Interval dp = pair_interval(index);
            const double slack = SLOP * (std::fabs(dp.high) + std::fabs(dn) + margin_);
            if (dp.low - dn + margin_ > slack) return true;
            if (dp.high - dn + margin_ < -slack) return false;
        }
        return (pair_value(index) - dn) + margin_ > 0;
    }

    // The metric's value between the anchor and a column.
    double value(int64_t column) const { return canonical_.value(canonical_.selection(anchor_, column)); }

private:
    static constexpr int64_t UNKNOWN = -2;

    // Whether one bound on errors serves all groups of columns.
    bool alike() const {
        bool all = true;
        for (int64_t g = 0; filter_.usable && g < ceil_div(columns_, GROUP); ++g) {
            all = all && filter_.group_half_norm(g) >= 0.75 * largest_;
        }
        return all;
    }

    double pair_value(int64_t index) const { return value(positive_columns_[index]); }

    // Between which values the metric's distance to positive(index) lies.
    Interval pair_interval(int64_t index) const {
        return distance_of(problem_.metric, filter_, half_norm_, positive_columns_[index], positive_values_[index]);
    }

    // The float32 values that distances low .. high of the metric correspond to.
    Interval value_interval(double low, double high) const {
        return values_of(problem_.metric, filter_, half_norm_, low, high);
    }

    int64_t find_filtered(int64_t index, Eligible rule) {
        const Interval dp = pair_interval(index);
        const double slack = SLOP * (std::fabs(dp.high) + margin_);
        Interval far_edge = {}, near_edge = {};
        if (rule.positive_score) far_edge = value_interval(dp.low + margin_ - slack, dp.high + margin_ + slack);
        if (rule.below_margin || rule.farther) near_edge = value_interval(dp.low - slack, dp.high + slack);
        double positive_distance = std::numeric_limits<double>::quiet_NaN();
        const auto holds = [&](double negative_distance) {
            if (std::isnan(positive_distance)) positive_distance = pair_value(index);
            return rule.holds(positive_distance, negative_distance, margin_);
        };
        if (!rule.positive_score) return find_between<true, false>(near_edge, far_edge, holds);
        if (!rule.below_margin) return find_between<false, true>(near_edge, far_edge, holds);
        return find_between<true, true>(near_edge, far_edge, holds);
    }

    // Columns surely between the edges are taken, those surely outside are not, float64 decides the others.
    template <bool NEAR, bool FAR, class Holds>
    int64_t find_between(Interval near_edge, Interval far_edge, const Holds& holds) {
        constexpr bool BOTH = NEAR && FAR;  // then by the distance from their middle
        int64_t found = 0;
        for (int64_t g = 0; g < columns_; g += span_) {
            const double half = span_ == GROUP ? filter_.group_half_norm(g / GROUP) : largest_;
            const double error = filter_.error(half_norm_, half);
            float middle = 0, surely, possibly;
            if (BOTH) {
                middle = within(near_edge, far_edge, error, half, surely, possibly);
            } else {
                surely = FAR ? round_down(far_edge.low - error) : round_up(near_edge.high + error);
                possibly = FAR ? round_up(far_edge.high + error) : round_down(near_edge.low - error);
            }
            const FloatV center = splat(middle), in_edge = splat(surely), out_edge = splat(possibly);
            const int64_t last = std::min(columns_, g + span_);
            for (int64_t w = g; w < last; w += 64) {
                uint64_t inside = 0, possible = 0;
                for (int c = 0; c < 64; c += 4 * WIDTH) {  // past the last column lies padding of the buffer
                    Truth in[4], out[4];
#pragma GCC unroll 4
                    for (int i = 0; i < 4; ++i) {
                        FloatV v = load(values_ + w + c + i * WIDTH);
                        if (BOTH) v = magnitude(v - center);
                        in[i] = FAR ? less(v, in_edge) : greater(v, in_edge);
                        out[i] = FAR ? at_most(v, out_edge) : at_least(v, out_edge);
                    }
                    inside |= bits_of_four(in) << c;
                    possible |= bits_of_four(out) << c;
                }
                if (last - w < 64) {
                    inside &= (uint64_t{1} << (last - w)) - 1;
                    possible &= (uint64_t{1} << (last - w)) - 1;
                }
                if (__builtin_expect((possible & ~inside) != 0, 0)) {
                    for (uint64_t asked = possible & ~inside; asked != 0; asked &= asked - 1) {
                        const int bit = __builtin_ctzll(asked);
                        if (holds(value(w + bit))) inside |= uint64_t{1} << bit;
                        ++asked_;
                    }
                    if (asked_ > 64 + columns_ / 8) {  // the whole row costs less than going on asking
                        decide_exactly();
                        return 0;
                    }
                }
                bits_[w / 64] = inside;
                found += __builtin_popcountll(inside);
            }
        }
        return found;
    }

    // A middle m such that a value v surely lies between the edges where |v - m| < surely, and surely not where it
    // exceeds possibly; rounding v - m to float32 included. No value of columns with H_j <= half is of magnitude 2 (H_i
    // + H_j), so that edges may be moved to what lies beyond all.
    float within(Interval near_edge, Interval far_edge, double error, double half, float& surely,
                 float& possibly) const {
        const double beyond = 3 * (half_norm_ + half) + 4 * error;
        const auto moved = [&](Interval edge) {
            return Interval{std::clamp(edge.low, -beyond, beyond), std::clamp(edge.high, -beyond, beyond)};
        };
        const Interval near = moved(near_edge), far = moved(far_edge);
        const auto middle = static_cast<float>(0.5 * (near.high + far.low));
        const double m = static_cast<double>(middle);
        const double inner = std::min(m - near.high, far.low - m) - error;
        const double outer = std::max(m - near.low, far.high - m) + error;
        surely = round_down(inner - 0x1p-22 * std::fabs(inner));
        possibly = round_up(outer + 0x1p-22 * std::fabs(outer));
        return middle;
    }

    int64_t find_exact(int64_t index, Eligible rule) {
        const double dp = pair_value(index);
        const double* d = exact_distances();
        int64_t found = 0;
        for (int64_t w = 0; w < columns_; w += 64) {
            uint64_t inside = 0;
            for (int c = 0; c < 64; c += 8) {
                const Lanes dn = lanes(d + w + c), s = (dp - dn) + margin_;
                LaneMask in = dn == dn;  // false for what is no negative
                if (rule.positive_score) in &= s > 0.0;
                if (rule.below_margin) in &= s < margin_;
                if (rule.farther) in &= dn > dp;
                inside |= uint64_t{lane_bits(in)} << c;
            }
            bits_[w / 64] = inside;
            found += __builtin_popcountll(inside);
        }
        return found;
    }

    const double* exact_distances() const {
        return problem_.metric == Metric::euclidean ? distances_.get() : selections_.get();
    }

    // Canonical values of all negatives, NaN for other columns and for the padding to whole words.
    void decide_exactly() {
        const double hidden = std::numeric_limits<double>::quiet_NaN();
        const int64_t padded = ceil_div(columns_, 64) * 64;
        exact_ = true;
        selections_.resize(padded);
        canonical_.row(anchor_, 0, columns_, selections_.get());
        std::fill(selections_.get() + columns_, selections_.get() + padded, hidden);
        for (int64_t p = 0; p < positives_count_; ++p) selections_[positive_columns_[p]] = hidden;
        if (positives_.own() >= 0) selections_[positives_.own()] = hidden;
        if (problem_.metric != Metric::euclidean) return;
        distances_.resize(padded);
        for (int64_t j = 0; j < padded; ++j) distances_[j] = std::sqrt(selections_[j]);
    }

    void scan_eligible(Shortlist& list, bool nearest) const {
        for (int64_t w = 0; w < columns_; w += 64) {
            if (bits_[w / 64] == 0) continue;
            const double slack = filter_.error(half_norm_, filter_.group_half_norm(w / GROUP));
            for (int64_t c = w; c < std::min(columns_, w + 64); c += WIDTH) {
                const FloatV v = load(values_ + c);
                uint32_t hits = nearest ? mask_le(v, splat(round_up(list.bound() + slack)))
                                        : mask_ge(v, splat(round_down(-list.bound() - slack)));
                hits &= static_cast<uint32_t>(bits_[w / 64] >> (c - w)) & ((uint32_t{1} << WIDTH) - 1);
                for (; hits != 0; hits &= hits - 1) {
                    const int64_t column = c + __builtin_ctz(hits);
                    list.offer(nearest ? values_[column] : -values_[column],
                               filter_.error(half_norm_, filter_.half_norm(column)), column);
                }
            }
        }
    }

    // Offers the columns of one group at a distance beyond `low`, whose value lies in `edge`.
    void offer_beyond(double low, Interval edge, int64_t group, Shortlist& list) const {
        const double slack = filter_.error(half_norm_, filter_.group_half_norm(group / GROUP));
        const FloatV surely = splat(round_up(edge.high + slack)), possibly = splat(round_down(edge.low - slack));
        const int64_t last = std::min(columns_, group + GROUP);
        FloatV far = splat(round_up(list.bound() + slack));
        for (int64_t c = group; c < last; c += WIDTH) {
            const FloatV v = load(values_ + c);
            uint32_t hits = mask_ge(v, possibly) & mask_le(v, far);
            if (__builtin_expect(hits == 0, 1)) continue;
            if (last - c < WIDTH) hits &= (1u << (last - c)) - 1;
            const uint32_t sure = mask_gt(v, surely);
            for (; hits != 0; hits &= hits - 1) {
                const int bit = __builtin_ctz(hits);
                if ((sure >> bit & 1) == 0 && !(value(c + bit) > low)) continue;
                list.offer(values_[c + bit], filter_.error(half_norm_, filter_.half_norm(c + bit)), c + bit);
            }
            far = splat(round_up(list.bound() + slack));
        }
    }

    int64_t find_extreme(bool nearest) {
        if (negatives() == 0) return -1;
        const double sign = nearest ? 1.0 : -1.0;
        if (!exact_) {
            Shortlist list;
            list.reset();
            scan_extremes(filter_, half_norm_, values_, 0, columns_, nearest ? &list : nullptr,
                          nearest ? nullptr : &list);
            if (!list.overflowed()) return decide(canonical_, anchor_, sign, list);
            decide_exactly();
        }
        Best best;
        for (int64_t j = 0; j < columns_; ++j) {
            if (!std::isnan(selections_[j])) best.offer(sign * selections_[j], j);
        }
        return best.column;
    }

    const Problem& problem_;
    const Canonical<T>& canonical_;
    const Filter<T, Panel>& filter_;
    const double margin_;
    const int64_t columns_;
    Positives positives_;
    Buffer<int64_t> positive_columns_;
    Buffer<float> positive_values_;
    Buffer<uint64_t> bits_;
    const double largest_;  // half norm of columns
    const int64_t span_;    // columns that share a bound on errors
    Buffer<double> selections_, distances_;
    Buffer<int64_t> listed_;
    float* values_ = nullptr;
    double half_norm_ = 0;
    int64_t anchor_ = -1, positives_count_ = 0, asked_ = 0, nearest_ = UNKNOWN, farthest_ = UNKNOWN;
    bool exact_ = false;
};

}  // namespace MINERLIB_ISA
}  // namespace minerlib
