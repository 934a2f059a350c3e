#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <variant>
#include <vector>

#include "bind_embeddings.h"
#include "bindings.h"
#include "infonce/infonce.h"

namespace py = pybind11;

namespace hybridfast {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
void require(const Array<T>& array, const char* name, std::initializer_list<py::ssize_t> shape) {
  bool same = array.ndim() == static_cast<py::ssize_t>(shape.size());
  for (std::size_t axis = 0; same && axis < shape.size(); ++axis)
    same = array.shape(static_cast<py::ssize_t>(axis)) == shape.begin()[axis];
  if (!same) throw py::value_error(std::string(name) + " has the wrong shape");
}

template <typename T>
T* data_or_null(std::optional<Array<T>>& array) {
  return array ? array->mutable_data() : nullptr;
}

// Fills `losses`, if given, and where `weights` is given, one for each query or one for all, the gradients;
// returns the losses' sum, d(objective)/d(temperature), the share of pairs summed and the largest share of a
// query's negatives left out.
std::tuple<double, double, double, double> info_nce_binding(
    const py::array& queries, const py::array& passages, double temperature,
    const std::optional<Array<std::int64_t>>& targets, const std::optional<Array<std::int32_t>>& query_groups,
    const std::optional<Array<std::int32_t>>& passage_groups, double margin, bool normalize, bool in_batch,
    bool group_positives, bool bidirectional, bool bfloat16, std::optional<Array<float>>& losses,
    const std::variant<std::monostate, double, Array<float>>& weights,
    std::optional<Array<float>>& query_grads, std::optional<Array<float>>& passage_grads, double tolerance,
    int threads) {
  if (queries.ndim() != 2 || passages.ndim() != 2 || passages.shape(0) == 0 || queries.shape(1) == 0)
    throw py::value_error("queries and passages must be (Q, D) and (N, D) with N, D >= 1");
  const py::ssize_t query_count = queries.shape(0), passage_count = passages.shape(0), dim = queries.shape(1);
  if (std::max(query_count, passage_count) >> 32 != 0)
    throw py::value_error("queries and passages must have fewer than 2**32 rows");
  if (passages.shape(1) != dim) throw py::value_error("passages has the wrong shape");
  if (targets) require(*targets, "targets", {query_count});
  if (losses) require(*losses, "losses", {query_count});
  if (query_groups.has_value() != passage_groups.has_value())
    throw py::value_error("query_groups and passage_groups go together");
  if (query_groups) require(*query_groups, "query_groups", {query_count});
  if (passage_groups) require(*passage_groups, "passage_groups", {passage_count});
  const auto* each_weight = std::get_if<Array<float>>(&weights);
  if (each_weight) require(*each_weight, "weights", {query_count});
  if (query_grads) require(*query_grads, "query_grads", {query_count, dim});
  if (passage_grads) require(*passage_grads, "passage_grads", {passage_count, dim});
  if (group_positives && !query_groups) throw py::value_error("group_positives needs groups");
  for (const auto* groups : {&query_groups, &passage_groups})
    for (py::ssize_t i = 0; *groups && i < (*groups)->size(); ++i)
      if ((*groups)->data()[i] < 0) throw py::value_error("groups must not be negative");
  for (py::ssize_t i = 0; targets && i < query_count; ++i)
    if (targets->data()[i] < 0 || targets->data()[i] >= passage_count)
      throw py::value_error("targets must be rows of the " + std::to_string(passage_count) +
                            " passages, got " + std::to_string(targets->data()[i]));
  if (!targets && !group_positives && query_count > passage_count)
    throw py::value_error("targets must be given for more queries than passages");

  const InfoNceProblem problem{static_cast<std::size_t>(query_count),
                               static_cast<std::size_t>(passage_count),
                               static_cast<std::size_t>(dim),
                               view_embeddings(queries, "queries"),
                               view_embeddings(passages, "passages"),
                               targets ? targets->data() : nullptr,
                               query_groups ? query_groups->data() : nullptr,
                               passage_groups ? passage_groups->data() : nullptr,
                               temperature,
                               margin,
                               normalize,
                               in_batch,
                               group_positives,
                               bidirectional,
                               bfloat16};
  double temperature_grad = 0;
  const auto* weight = std::get_if<double>(&weights);
  const std::vector<float> same_weight(weight ? query_count : 0, weight ? static_cast<float>(*weight) : 0.0f);
  const InfoNceGradients gradients{each_weight ? each_weight->data() : same_weight.data(),
                                   data_or_null(query_grads), data_or_null(passage_grads), &temperature_grad,
                                   tolerance};
  InfoNceStats stats;
  std::vector<float> own_losses(losses ? 0 : query_count);
  float* out = losses ? losses->mutable_data() : own_losses.data();
  {
    const py::gil_scoped_release released;
    stats = info_nce(problem, out, weight || each_weight ? &gradients : nullptr, threads);
  }
  // In double and in order: the same bits with any number of threads.
  return {std::accumulate(out, out + query_count, 0.0), temperature_grad, stats.kept, stats.dropped};
}

}  // namespace

void register_infonce(py::module_& module) {
  // noconvert: pybind11 would fill a converted copy of an output, and drop it.
  module.def("info_nce", &info_nce_binding, py::arg("queries").noconvert(), py::arg("passages").noconvert(),
             py::arg("temperature"), py::arg("targets").noconvert(), py::arg("query_groups").noconvert(),
             py::arg("passage_groups").noconvert(), py::arg("margin"), py::arg("normalize"),
             py::arg("in_batch"), py::arg("group_positives"), py::arg("bidirectional"), py::arg("bfloat16"),
             py::arg("losses").noconvert(), py::arg("weights").noconvert(),
             py::arg("query_grads").noconvert(), py::arg("passage_grads").noconvert(), py::arg("tolerance"),
             py::arg("threads"));
}

}  // namespace hybridfast
