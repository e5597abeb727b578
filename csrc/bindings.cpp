// The extension module minerlib._native: unpacks arguments and calls a kernel family without the GIL.
//
// Callers (minerlib/backends/native.py) pass validated C-contiguous arrays; what is checked here is only that
// types and sizes are what the kernels will read.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/pairs.h"

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
        : offsets(slot_offsets), anchors(size), positives(size), negatives(size) {
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

py::tuple every_triplet(const std::string& isa, const Call& call, const PairOptions& options) {
    const int64_t n = call.view.anchors.rows;
    Indices offsets(n + 1);
    int64_t* out = offsets.mutable_data();
    const Kernels& kernels = kernels_for(isa);
    {
        py::gil_scoped_release release;
        out[0] = 0;
        kernels.count_window(call.view, options, nullptr, out + 1, nullptr);
        for (int64_t i = 0; i < n; ++i) out[i + 1] += out[i];
    }
    const Slots slots(offsets, offsets.at(n));
    {
        py::gil_scoped_release release;
        kernels.emit_window(call.view, options, slots.view);
    }
    return slots.result();
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

}  // namespace

PYBIND11_MODULE(_native, module) {
    module.doc() = "minerlib's native CPU kernels";
    module.attr("compiler") = MINERLIB_COMPILER_INFO;
    module.def("instruction_sets", &usable_instruction_sets);
    py::class_<Call>(module, "Call")
        .def(py::init<py::array, py::array, py::object, bool, int, bool, int>(), py::arg("anchors"), py::arg("columns"),
             py::arg("labels"), py::arg("own"), py::arg("metric"), py::arg("exact"), py::arg("threads"));
    py::class_<PairOptions>(module, "PairOptions")
        .def(py::init(&pair_options), py::arg("margin"), py::arg("seed"), py::arg("combinations"), py::arg("fallback"));
    module.def("extremes", &extremes);
    module.def("window", &window);
    module.def("sample", &sample);
    module.def("count_window", &count_window);
    module.def("every_triplet", &every_triplet);
    module.def("topk", &topk);
    module.def("pairwise", &pairwise);
}
