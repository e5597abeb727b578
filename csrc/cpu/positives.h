// Who the positives of an anchor are.
#pragma once

#include <algorithm>
#include <cstdint>

#include "problem.h"

namespace minerlib {
namespace MINERLIB_ISA {

// The positives of one anchor at a time, ascending, its own column left out.
class Positives {
public:
    explicit Positives(const Problem& problem) : problem_(problem), labels_(problem.labels) {}

    void select(int64_t anchor) {
        own_ = problem_.own ? anchor : -1;
        if (labels_.words > 0) {
            bits_ = labels_.anchor_bits + anchor * labels_.words;
            return;
        }
        const int64_t c = labels_.anchor_class[anchor];
        begin_ = c < 0 ? labels_.members : labels_.members + labels_.starts[c];
        end_ = c < 0 ? labels_.members : labels_.members + labels_.starts[c + 1];
    }

    // Calls visit(column) for the positives in first .. first + count - 1.
    template <class Visit> void visit(int64_t first, int64_t count, Visit visit) const {
        if (labels_.words > 0) {
            for (int64_t j = first; j < first + count; ++j) {
                if (j != own_ && shares_label(j)) visit(j);
            }
            return;
        }
        const int64_t* p = first == 0 ? begin_ : std::lower_bound(begin_, end_, first);
        for (; p != end_ && *p < first + count; ++p) {
            if (*p != own_) visit(*p);
        }
    }

    bool contains(int64_t column) const {
        bool found = false;
        visit(column, 1, [&](int64_t) { found = true; });
        return found;
    }

    // How many of the columns from `first` on are positives.
    int64_t count_from(int64_t first) const {
        int64_t count = 0;
        if (labels_.words > 0) {
            visit(first, problem_.columns.rows - first, [&](int64_t) { ++count; });
            return count;
        }
        const int64_t* from = std::lower_bound(begin_, end_, first);
        return (end_ - from) - (own_ >= first && std::binary_search(from, end_, own_) ? 1 : 0);
    }

    // The anchor's own column, -1 where it has none.
    int64_t own() const { return own_; }

private:
    bool shares_label(int64_t column) const {
        uint64_t shared = 0;
        for (int64_t w = 0; w < labels_.words; ++w)
            shared |= bits_[w] & labels_.column_bits[column * labels_.words + w];
        return shared != 0;
    }

    const Problem& problem_;
    const Labels& labels_;
    const int64_t *begin_ = nullptr, *end_ = nullptr;
    const uint64_t* bits_ = nullptr;
    int64_t own_ = -1;
};

}  // namespace MINERLIB_ISA
}  // namespace minerlib
