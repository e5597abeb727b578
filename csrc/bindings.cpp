// The extension module minerlib._native: unpacks arguments and calls a kernel family without the GIL.
//
// Callers (minerlib/backends/native.py) pass validated C-contiguous arrays; what is checked here is only that
// types and sizes are what the kernels will read.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>
#include <utility>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/pairs.h"
#include "results.h"

namespace py = pybind11;
using namespace minerlib;

namespace {

template <class T> using Array = py::array_t<T, py::array::c_style>;
using Indices = Array<int64_t>;

void expect(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(std::string("minerlib._native: ") + what);
}

Rows rows(const py::array& array) {
    expect(array.ndim() == 2, "rows must have two axes");
    expect((array.flags() & py::array::c_style) != 0, "rows must be contiguous");
    const bool wide = py::isinstance<py::array_t<double>>(array);
    expect(wide || py::isinstance<py::array_t<float>>(array), "rows must be float32 or float64");
    return {array.data(), array.shape(0), array.shape(1), wide};
}

// Keeps the arrays of one call alive and shows them to the kernels as plain pointers.
class Call {
public:
    // labels: None, (anchor_class, starts, members) or (anchor_bits, column_bits).
    Call(py::array anchors, py::array columns, const py::object& labels, bool own, int metric, bool exact, int threads)
        : anchors_(std::move(anchors)), columns_(std::move(columns)) {
        view.anchors = rows(anchors_);
        view.columns = rows(columns_);
        expect(view.anchors.dims == view.columns.dims && view.anchors.wide == view.columns.wide, "rows must match");
        expect(view.columns.rows < INT32_MAX, "at most 2^31 - 2 columns are supported");
        view.labels = {};
        if (!labels.is_none()) set_labels(labels.cast<py::tuple>());
        view.own = own;
        view.metric = static_cast<Metric>(metric);
        view.exact = exact;
        view.threads = threads;
    }

    Problem view;

    const py::array& anchors() const { return anchors_; }
    const py::array& columns() const { return columns_; }

private:
    void set_labels(const py::tuple& labels) {
        if (labels.size() == 3) {
            for (int i = 0; i < 3; ++i) single_[i] = labels[static_cast<size_t>(i)].cast<Indices>();
            expect(single_[0].size() == view.anchors.rows && single_[2].size() == view.columns.rows, "label lengths");
            view.labels.anchor_class = single_[0].data();
            view.labels.starts = single_[1].data();
            view.labels.members = single_[2].data();
            return;
        }
        for (int i = 0; i < 2; ++i) multi_[i] = labels[static_cast<size_t>(i)].cast<Array<uint64_t>>();
        expect(multi_[0].ndim() == 2 && multi_[1].ndim() == 2 && multi_[0].shape(0) == view.anchors.rows &&
                   multi_[1].shape(0) == view.columns.rows && multi_[0].shape(1) == multi_[1].shape(1),
               "label sets");
        view.labels.words = multi_[0].shape(1);
        view.labels.anchor_bits = multi_[0].data();
        view.labels.column_bits = multi_[1].data();
    }

    py::array anchors_, columns_;
    Indices single_[3];
    Array<uint64_t> multi_[2];
};

PairOptions pair_options(double margin, uint64_t seed, bool combinations, int fallback) {
    return {margin, seed, combinations, fallback};
}

// Slot arrays of `size` pairs, and the kernels' view of them.
struct Slots {
    Slots(const Indices& slot_offsets, int64_t size)
        : offsets(slot_offsets), anchors(result_array<int64_t>(size)), positives(result_array<int64_t>(size)),
          negatives(result_array<int64_t>(size)) {
        view = {offsets.data(), anchors.mutable_data(), positives.mutable_data(), negatives.mutable_data()};
    }
    py::tuple result() const { return py::make_tuple(anchors, positives, negatives); }

    Indices offsets, anchors, positives, negatives;
    PairSlots view;
};

Indices pair_slot_offsets(const Call& call, bool combinations) {
    Indices offsets(call.view.anchors.rows + 1);
    int64_t* out = offsets.mutable_data();
    py::gil_scoped_release release;
    pair_offsets(call.view, combinations, out);
    return offsets;
}

Indices extremes(const std::string& isa, const Call& call, unsigned wanted) {
    Indices out({int64_t{4}, call.view.anchors.rows});
    int64_t* data = out.mutable_data();
    const Kernels& kernels = kernels_for(isa);
    py::gil_scoped_release release;
    kernels.extremes(call.view, wanted, data);
    return out;
}

// labels: (classes, order) or (bits,); records: float64 [n, 8], the bits of `Record`, changed in place.
void chunk_extremes(const std::string& isa, const py::array& both, int64_t split, int64_t first, int64_t other_first,
                    const py::tuple& labels, const py::object& limits, int metric, unsigned wanted, int threads,
                    Array<double> records) {
    ChunkPair pair = {};
    pair.rows = rows(both);
    const int64_t n = pair.rows.rows;
    expect(n < INT32_MAX, "at most 2^31 - 2 rows are supported");
    expect(split >= 0 && (split < n || split == 0), "split");
    pair.split = split;
    pair.first[0] = first;
    pair.first[1] = other_first;
    Indices classes, order;
    Array<uint64_t> bits;
    Array<double> most;
    if (labels.size() == 2) {
        classes = labels[0].cast<Indices>();
        order = labels[1].cast<Indices>();
        expect(classes.size() == n && order.size() == n, "label lengths");
        pair.classes = classes.data();
        pair.order = order.data();
    } else {
        bits = labels[0].cast<Array<uint64_t>>();
        expect(bits.ndim() == 2 && bits.shape(0) == n, "label sets");
        pair.words = bits.shape(1);
        pair.bits = bits.data();
    }
    if (!limits.is_none()) {
        most = limits.cast<Array<double>>();
        expect(most.size() == n, "limits");
        pair.limits = most.data();
    }
    static_assert(sizeof(Record) == 8 * sizeof(double), "records are passed as rows of eight numbers");
    expect(records.ndim() == 2 && records.shape(0) == n && records.shape(1) == 8, "records");
    pair.records = reinterpret_cast<Record*>(records.mutable_data());
    pair.metric = static_cast<Metric>(metric);
    pair.threads = threads;
    const Kernels& kernels = kernels_for(isa);
    py::gil_scoped_release release;
    kernels.chunk_extremes(pair, wanted);
}

py::tuple window(const std::string& isa, const Call& call, int rule, const PairOptions& options) {
    const Indices offsets = pair_slot_offsets(call, options.combinations);
    const Slots slots(offsets, offsets.at(call.view.anchors.rows));
    const Kernels& kernels = kernels_for(isa);
    {
        py::gil_scoped_release release;
        kernels.window(call.view, static_cast<Rule>(rule), options, slots.view);
    }
    return slots.result();
}

py::tuple sample(const std::string& isa, const Call& call, const PairOptions& options) {
    const Indices offsets = pair_slot_offsets(call, options.combinations);
    const Slots slots(offsets, offsets.at(call.view.anchors.rows));
    const Kernels& kernels = kernels_for(isa);
    {
        py::gil_scoped_release release;
        kernels.sample(call.view, options, slots.view);
    }
    return slots.result();
}

// Per anchor [N]: all triplets, those with s > 0, and those of them with s < margin.
py::tuple count_window(const std::string& isa, const Call& call, const PairOptions& options) {
    const int64_t n = call.view.anchors.rows;
    Indices total(n), positive(n), below_margin(n);
    int64_t *all = total.mutable_data(), *scored = positive.mutable_data(), *semi_hard = below_margin.mutable_data();
    const Kernels& kernels = kernels_for(isa);
    {
        py::gil_scoped_release release;
        kernels.count_window(call.view, options, all, scored, semi_hard);
    }
    return py::make_tuple(total, positive, below_margin);
}

// Triplets: count(out) says how many each anchor has [N], list(slots) writes them.
template <class Count, class List> py::tuple counted_and_listed(const Call& call, Count count, List list) {
    const int64_t n = call.view.anchors.rows;
    Indices offsets(n + 1);
    int64_t* out = offsets.mutable_data();
    {
        py::gil_scoped_release release;
        out[0] = 0;
        count(out + 1);
        for (int64_t i = 0; i < n; ++i) out[i + 1] += out[i];
    }
    const Slots slots(offsets, offsets.at(n));
    {
        py::gil_scoped_release release;
        list(slots.view);
    }
    return slots.result();
}

py::tuple every_triplet(const std::string& isa, const Call& call, const PairOptions& options) {
    const Kernels& kernels = kernels_for(isa);
    const auto count = [&](int64_t* out) { kernels.count_window(call.view, options, nullptr, out, nullptr); };
    const auto list = [&](const PairSlots& slots) { kernels.emit_window(call.view, options, slots); };
    return counted_and_listed(call, count, list);
}

py::tuple topk(const std::string& isa, const Call& call, int64_t k) {
    Array<double> distances({call.view.anchors.rows, k});
    Indices indices({call.view.anchors.rows, k});
    expect(k >= 1 && k <= call.view.columns.rows, "k");
    double* d = distances.mutable_data();
    int64_t* i = indices.mutable_data();
    const Kernels& kernels = kernels_for(isa);
    {
        py::gil_scoped_release release;
        kernels.topk(call.view, k, d, i);
    }
    return py::make_tuple(distances, indices);
}

Array<double> pairwise(const std::string& isa, const Call& call) {
    Array<double> out({call.view.anchors.rows, call.view.columns.rows});
    double* data = out.mutable_data();
    const Kernels& kernels = kernels_for(isa);
    py::gil_scoped_release release;
    kernels.pairwise(call.view, data);
    return out;
}

using CodeRows = Array<uint8_t>;

Codes codes(const CodeRows& array) {
    expect(array.ndim() == 2, "codes must have two axes");
    return {array.data(), array.shape(0), array.shape(1)};
}

void expect_same_width(const Codes& a, const Codes& b) {
    expect(a.bytes == b.bytes && a.bytes > 0 && a.bytes < 1 << 20, "codes must be equally long, and below 1 MiB");
    expect(b.rows < int64_t{1} << HIT_INDEX_BITS, "at most 2^40 codes are supported");
}

Array<int32_t> hamming_distance(const std::string& isa, const CodeRows& a, const CodeRows& b, int threads) {
    const Codes rows = codes(a), columns = codes(b);
    expect_same_width(rows, columns);
    Array<int32_t> out({rows.rows, columns.rows});
    int32_t* data = out.mutable_data();
    const Kernels& kernels = kernels_for(isa);
    py::gil_scoped_release release;
    kernels.hamming_distance(rows, columns, threads, data);
    return out;
}

py::tuple hamming_search(const std::string& isa, const CodeRows& queries, const CodeRows& database, int64_t k,
                         int threads) {
    const Codes wanted = codes(queries), rows = codes(database);
    expect_same_width(wanted, rows);
    expect(k >= 1 && k <= rows.rows, "k");
    Array<int32_t> distances({wanted.rows, k});
    Indices indices({wanted.rows, k});
    int32_t* d = distances.mutable_data();
    int64_t* i = indices.mutable_data();
    const Kernels& kernels = kernels_for(isa);
    {
        py::gil_scoped_release release;
        kernels.hamming_search(wanted, rows, k, threads, d, i);
    }
    return py::make_tuple(distances, indices);
}

py::tuple hamming_range(const std::string& isa, const CodeRows& queries, const CodeRows& database, int64_t radius,
                        int threads) {
    const Codes wanted = codes(queries), rows = codes(database);
    expect_same_width(wanted, rows);
    HitLists lists;
    const Kernels& kernels = kernels_for(isa);
    Indices offsets(wanted.rows + 1);
    int64_t* starts = offsets.mutable_data();
    {
        py::gil_scoped_release release;
        kernels.hamming_range(wanted, rows, radius, threads, lists);
        starts[0] = 0;
        for (size_t i = 0; i < lists.size(); ++i) starts[i + 1] = starts[i] + static_cast<int64_t>(lists[i].size());
    }
    Indices indices(starts[wanted.rows]);
    Array<int32_t> distances(starts[wanted.rows]);
    int64_t* index = indices.mutable_data();
    int32_t* distance = distances.mutable_data();
    {
        py::gil_scoped_release release;
        for (std::vector<Hit>& list : lists) {
            for (const Hit hit : list) {
                *index++ = hit_index(hit);
                *distance++ = static_cast<int32_t>(hit_distance(hit));
            }
            std::vector<Hit>().swap(list);
        }
    }
    return py::make_tuple(offsets, indices, distances);
}

// Keeps the labels of one call alive: (query_classes, database_classes) or (query_bits, database_bits).
class RankingLabels {
public:
    RankingLabels(const py::tuple& labels, bool own, const Codes& queries, const Codes& database) {
        expect(labels.size() == 2, "labels");
        const bool multi = labels[0].cast<py::array>().ndim() == 2;
        view = {};
        view.own = own;
        for (size_t i = 0; i < 2; ++i) {
            const int64_t rows = i == 0 ? queries.rows : database.rows;
            if (multi) {
                bits_[i] = labels[i].cast<Array<uint64_t>>();
                expect(bits_[i].ndim() == 2 && bits_[i].shape(0) == rows, "label sets");
            } else {
                classes_[i] = labels[i].cast<Indices>();
                expect(classes_[i].ndim() == 1 && classes_[i].shape(0) == rows, "label lengths");
            }
        }
        if (multi) {
            expect(bits_[0].shape(1) == bits_[1].shape(1) && bits_[0].shape(1) > 0, "label sets");
            view.words = bits_[0].shape(1);
            view.query_bits = bits_[0].data();
            view.database_bits = bits_[1].data();
        } else {
            view.query_classes = classes_[0].data();
            view.database_classes = classes_[1].data();
        }
        expect(!own || queries.rows == database.rows, "leave-one-out ranks the queries themselves");
        expect(database.rows < int64_t{1} << 31, "at most 2^31 - 1 codes are ranked");
    }

    Relevance view;

private:
    Indices classes_[2];
    Array<uint64_t> bits_[2];
};

py::tuple hamming_counts(const std::string& isa, const CodeRows& queries, const CodeRows& database,
                         const py::tuple& labels, bool own, int threads) {
    const Codes wanted = codes(queries), rows = codes(database);
    expect_same_width(wanted, rows);
    const RankingLabels relevance(labels, own, wanted, rows);
    Indices all({wanted.rows, 8 * rows.bytes + 1}), relevant({wanted.rows, 8 * rows.bytes + 1});
    int64_t *a = all.mutable_data(), *r = relevant.mutable_data();
    const Kernels& kernels = kernels_for(isa);
    {
        py::gil_scoped_release release;
        kernels.hamming_counts(wanted, rows, relevance.view, threads, a, r);
    }
    return py::make_tuple(all, relevant);
}

Array<double> hamming_average_precision(const std::string& isa, const CodeRows& queries, const CodeRows& database,
                                        const py::tuple& labels, bool own, int64_t k, int threads) {
    const Codes wanted = codes(queries), rows = codes(database);
    expect_same_width(wanted, rows);
    const RankingLabels relevance(labels, own, wanted, rows);
    Array<double> out(wanted.rows);
    double* data = out.mutable_data();
    const Kernels& kernels = kernels_for(isa);
    py::gil_scoped_release release;
    kernels.hamming_average_precision(wanted, rows, relevance.view, k, threads, data);
    return out;
}

// An array like `rows`, for its gradient.
py::array like(const py::array& rows) { return py::array(rows.dtype(), {rows.shape(0), rows.shape(1)}); }

// (loss, gradient of x, gradient of y): y None: it is x; gradients None: not asked for, or that of x is all.
py::tuple losses_triplet(const std::string& isa, const py::array& x, const py::object& y, const Indices& anchors,
                         const Indices& positives, const Indices& negatives, double margin, int comparison,
                         int reduction, bool soft, bool differentiate, int threads) {
    TripletTerms terms = {};
    terms.own = y.is_none();
    const py::array columns = terms.own ? x : y.cast<py::array>();
    terms.x = rows(x);
    terms.y = rows(columns);
    expect(terms.x.dims == terms.y.dims && terms.x.wide == terms.y.wide, "rows must match");
    expect(terms.x.rows < INT32_MAX && terms.y.rows < INT32_MAX, "at most 2^31 - 2 rows are supported");
    terms.count = anchors.size();
    expect(positives.size() == terms.count && negatives.size() == terms.count, "triplets");
    terms.anchors = anchors.data();
    terms.positives = positives.data();
    terms.negatives = negatives.data();
    for (int64_t t = 0; t < terms.count; ++t) {
        const auto within = [](int64_t i, int64_t count) { return i >= 0 && i < count; };
        expect(within(terms.anchors[t], terms.x.rows) && within(terms.positives[t], terms.y.rows) &&
                   within(terms.negatives[t], terms.y.rows),
               "triplets out of range");
    }
    terms.margin = margin;
    terms.comparison = static_cast<Comparison>(comparison);
    terms.reduction = static_cast<Reduction>(reduction);
    terms.soft = soft;
    terms.threads = threads;
    LossResult result = {};
    py::object into_x = py::none(), into_y = py::none();
    if (differentiate) {
        into_x = like(x);
        result.into_x = into_x.cast<py::array>().mutable_data();
        if (!terms.own) {
            into_y = like(columns);
            result.into_y = into_y.cast<py::array>().mutable_data();
        }
    }
    const Kernels& kernels = kernels_for(isa);
    {
        py::gil_scoped_release release;
        kernels.losses_triplet(terms, result);
    }
    return py::make_tuple(result.loss, into_x, into_y);
}

py::tuple losses_batch_all(const std::string& isa, const Call& call, double margin, int reduction, bool differentiate) {
    LossResult result = {};
    py::object into_x = py::none(), into_y = py::none();
    if (differentiate) {
        into_x = like(call.anchors());
        result.into_x = into_x.cast<py::array>().mutable_data();
        if (!call.view.own) {
            into_y = like(call.columns());
            result.into_y = into_y.cast<py::array>().mutable_data();
        }
    }
    const Kernels& kernels = kernels_for(isa);
    {
        py::gil_scoped_release release;
        kernels.losses_batch_all(call.view, margin, static_cast<Reduction>(reduction), result);
    }
    return py::make_tuple(result.loss, into_x, into_y);
}

// index [N, 2], -1 for none, and value [N, 2].
py::tuple scan_choose(const std::string& isa, const Call& call, const std::array<bool, 2>& wanted,
                      const std::array<bool, 2>& nearest, const std::array<double, 2>& at_least,
                      const std::array<double, 2>& most, int second) {
    ChoiceRule rule = {};
    for (size_t side = 0; side < 2; ++side) {
        rule.wanted[side] = wanted[side];
        rule.nearest[side] = nearest[side];
        rule.at_least[side] = at_least[side];
        rule.most[side] = most[side];
    }
    rule.second = second;
    Indices index({call.view.anchors.rows, int64_t{2}});
    Array<double> value({call.view.anchors.rows, int64_t{2}});
    int64_t* chosen = index.mutable_data();
    double* distance = value.mutable_data();
    const Kernels& kernels = kernels_for(isa);
    {
        py::gil_scoped_release release;
        kernels.scan_choose(call.view, rule, chosen, distance);
    }
    return py::make_tuple(index, value);
}

// (anchors, columns) of lists, which are emptied.
py::tuple listed(ColumnLists& lists, int threads) {
    Indices offsets(static_cast<int64_t>(lists.size()) + 1);
    int64_t* starts = offsets.mutable_data();
    list_offsets(lists, starts);
    const int64_t count = starts[lists.size()];
    Indices anchors = result_array<int64_t>(count), columns = result_array<int64_t>(count);
    int64_t *a = anchors.mutable_data(), *c = columns.mutable_data();
    {
        py::gil_scoped_release release;
        list_pairs(lists, threads, starts, a, c);
        ColumnLists().swap(lists);
    }
    return py::make_tuple(anchors, columns);
}

// ((anchors, positives), (anchors, negatives)); edges None: those of each anchor itself.
py::tuple scan_pairs(const std::string& isa, const Call& call, double epsilon, const py::object& edges) {
    PairRule rule = {epsilon, edges.is_none(), 0, 0};
    if (!rule.own_edges) std::tie(rule.near, rule.far) = edges.cast<std::pair<double, double>>();
    const size_t n = static_cast<size_t>(call.view.anchors.rows);
    ColumnLists positives(n), negatives(n);
    const Kernels& kernels = kernels_for(isa);
    {
        py::gil_scoped_release release;
        kernels.scan_pairs(call.view, rule, positives, negatives);
    }
    const py::tuple of_one_class = listed(positives, call.view.threads);
    return py::make_tuple(of_one_class, listed(negatives, call.view.threads));
}

// Every triplet with above < d(a, n) - d(a, p) <= up_to.
py::tuple scan_triplets(const std::string& isa, const Call& call, double above, double up_to) {
    const TripletRule rule = {above, up_to};
    const Kernels& kernels = kernels_for(isa);
    const auto count = [&](int64_t* out) { kernels.scan_count(call.view, rule, out); };
    const auto list = [&](const PairSlots& slots) { kernels.scan_triplets(call.view, rule, slots); };
    return counted_and_listed(call, count, list);
}

// (anchors, columns) of every pair of one class, or of two.
py::tuple every_pair(const Call& call, bool same) {
    Indices offsets(call.view.anchors.rows + 1);
    int64_t* starts = offsets.mutable_data();
    class_offsets(call.view, same, starts);
    const int64_t count = starts[call.view.anchors.rows];
    Indices anchors = result_array<int64_t>(count), columns = result_array<int64_t>(count);
    int64_t *a = anchors.mutable_data(), *c = columns.mutable_data();
    {
        py::gil_scoped_release release;
        class_pairs(call.view, same, starts, a, c);
    }
    return py::make_tuple(anchors, columns);
}

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "minerlib's native CPU kernels";
    module.attr("compiler") = MINERLIB_COMPILER_INFO;
    module.def("instruction_sets", &usable_instruction_sets);
    module.def("emulated_instruction_sets", &emulated_instruction_sets);
    module.def("without_amx", &without_amx);
    module.attr("self_check_failed") = SELF_CHECK_FAILED;
    module.def("passes_self_check", &passes_self_check);
    py::class_<Call>(module, "Call")
        .def(py::init<py::array, py::array, py::object, bool, int, bool, int>(), py::arg("anchors"), py::arg("columns"),
             py::arg("labels"), py::arg("own"), py::arg("metric"), py::arg("exact"), py::arg("threads"));
    py::class_<PairOptions>(module, "PairOptions")
        .def(py::init(&pair_options), py::arg("margin"), py::arg("seed"), py::arg("combinations"), py::arg("fallback"));
    py::class_<KeepBuffers>(module, "KeepBuffers").def(py::init<>());
    module.def("extremes", &extremes);
    module.def("chunk_extremes", &chunk_extremes);
    module.def("window", &window);
    module.def("sample", &sample);
    module.def("count_window", &count_window);
    module.def("every_triplet", &every_triplet);
    module.def("topk", &topk);
    module.def("pairwise", &pairwise);
    module.def("hamming_distance", &hamming_distance);
    module.def("hamming_search", &hamming_search);
    module.def("hamming_range", &hamming_range);
    module.def("hamming_counts", &hamming_counts);
    module.def("hamming_average_precision", &hamming_average_precision);
    module.def("losses_triplet", &losses_triplet);
    module.def("losses_batch_all", &losses_batch_all);
    module.def("scan_choose", &scan_choose);
    module.def("scan_pairs", &scan_pairs);
    module.def("scan_triplets", &scan_triplets);
    module.def("every_pair", &every_pair);
}
