#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/infonce.h"

namespace py = pybind11;

namespace hybridfast::cuda {

namespace {

// Tensors are passed as their addresses, 0 for none.
using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Rows rows(Address data, std::int64_t stride, int count) {
  if (data % 16 || stride % 8)
    throw std::invalid_argument("rows must begin at multiples of 16 bytes, got address " +
                                std::to_string(data) + " and a stride of " + std::to_string(stride));
  return {at<void>(data), stride, count};
}

Element element(const std::string& dtype) {
  if (dtype == "bfloat16") return Element::bfloat16;
  if (dtype == "float16") return Element::float16;
  throw std::invalid_argument("dtype must be bfloat16 or float16, got " + dtype);
}

}  // namespace

PYBIND11_MODULE(_cuda, module, py::mod_gil_not_used()) {
  module.doc() = "The CUDA C++ kernels of hybridfast; hybridfast/infonce/cuda_kernels.py checks and calls.";

  py::class_<Block>(module, "Block")
      .def(py::init([](int device, Address queries, std::int64_t query_stride, int query_count,
                       Address passages, std::int64_t passage_stride, int passage_count, int dim,
                       const std::string& dtype, Address inverse_temperature, Address targets,
                       Address query_groups, Address passage_groups, Address excluded, bool by_group) {
             return Block{
                 device,
                 rows(queries, query_stride, query_count),
                 rows(passages, passage_stride, passage_count),
                 dim,
                 element(dtype),
                 at<float>(inverse_temperature),
                 {at<std::int64_t>(targets), at<std::int64_t>(query_groups), at<std::int64_t>(passage_groups),
                  at<unsigned char>(excluded), query_count, passage_count, by_group}};
           }),
           py::kw_only(), py::arg("device"), py::arg("queries"), py::arg("query_stride"),
           py::arg("query_count"), py::arg("passages"), py::arg("passage_stride"), py::arg("passage_count"),
           py::arg("dim"), py::arg("dtype"), py::arg("inverse_temperature"), py::arg("targets"),
           py::arg("query_groups"), py::arg("passage_groups"), py::arg("excluded"), py::arg("by_group"));

  py::class_<Sweep>(module, "Sweep")
      .def(py::init([](int first, int last, int splits, int tiles_each, Address only) {
             return Sweep{first, last, splits, tiles_each, at<unsigned char>(only)};
           }),
           py::arg("first"), py::arg("last"), py::arg("splits"), py::arg("tiles_each"), py::arg("only") = 0);

  module.def(
      "tile",
      [](int device) {
        const Shape there = shape(device);
        return py::make_tuple(kTileRows, there.columns, kTileRows / there.rows_per_column);
      },
      py::arg("device"));

  module.def(
      "negative_sums",
      [](const Block& block, const Sweep& sweep, Address row_parts, Address column_parts, Address stream) {
        negative_sums(block, sweep, at<float>(row_parts), at<float>(column_parts), at<CUstream_st>(stream));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("block"), py::arg("sweep"), py::arg("row_parts"),
      py::arg("column_parts"), py::arg("stream"));

  module.def(
      "form_exps",
      [](const Block& block, const Sweep& sweep, Address wanted, Address out, std::int64_t out_stride,
         Address row_parts, Address stream) {
        const Rows checked = rows(out, out_stride, sweep.last - sweep.first);
        form_exps(block, sweep, at<float>(wanted), at<void>(out), checked.stride, at<float>(row_parts),
                  at<CUstream_st>(stream));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("block"), py::arg("sweep"), py::arg("wanted"),
      py::arg("out"), py::arg("out_stride"), py::arg("row_parts"), py::arg("stream"));

  module.def(
      "form_weights",
      [](const Block& block, const Sweep& sweep, float margin, Address row_sums, Address row_weights,
         Address column_sums, Address column_weights, Address weights, Address out, std::int64_t out_stride,
         Address stream) {
        const Rows checked = rows(out, out_stride, sweep.last - sweep.first);
        const Weights given{margin,
                            at<float>(row_sums),
                            at<float>(row_weights),
                            at<float>(column_sums),
                            at<float>(column_weights),
                            at<float>(weights)};
        form_weights(block, sweep, given, at<void>(out), checked.stride, at<CUstream_st>(stream));
      },
      py::call_guard<py::gil_scoped_release>(), py::arg("block"), py::arg("sweep"), py::arg("margin"),
      py::arg("row_sums"), py::arg("row_weights"), py::arg("column_sums"), py::arg("column_weights"),
      py::arg("weights"), py::arg("out"), py::arg("out_stride"), py::arg("stream"));
}

}  // namespace hybridfast::cuda
