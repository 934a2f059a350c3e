#include <pybind11/numpy.h>

#include <limits>

#include "bind_arrays.h"
#include "bind_embeddings.h"
#include "bindings.h"
#include "threads.h"
#include "topk.h"

namespace py = pybind11;

namespace hybridfast {
namespace {

py::tuple find_top_k(const py::array& queries, const py::array& passages, const Integers& rows,
                     const Integers& excluded_groups, const Integers& excluded_indptr,
                     const Integers& excluded_rows, std::size_t k, bool filter, int threads) {
  const Embeddings query_view = view_embeddings(queries, "queries"),
                   passage_view = view_embeddings(passages, "passages");
  if (query_view.depth != passage_view.depth)
    throw std::invalid_argument("queries and passages differ in width");
  if (excluded_groups.size() && static_cast<std::size_t>(excluded_groups.size()) != query_view.rows)
    throw std::invalid_argument("excluded_groups must have one entry for each query");
  if (k < 1) throw std::invalid_argument("k must be at least 1");
  if (rows.size() > std::numeric_limits<std::int32_t>::max())
    throw std::invalid_argument("rows must have fewer than 2**31 entries");
  py::array_t<float> scores({query_view.rows, k});
  py::array_t<std::int64_t> found({query_view.rows, k});
  const TopK best{k, scores.mutable_data(), found.mutable_data()};
  const Excluded excluded{view(excluded_groups), view(excluded_indptr), view(excluded_rows)};
  const auto searched = view(rows);
  {
    const py::gil_scoped_release release;
    with_threads(threads,
                 [&] { top_k(query_view, passage_view, searched, excluded, best, filter, threads); });
  }
  return py::make_tuple(std::move(scores), std::move(found));
}

}  // namespace

void register_topk(py::module_& module) {
  module.def("top_k", &find_top_k, py::arg("queries").noconvert(), py::arg("passages").noconvert(),
             py::arg("rows").noconvert(), py::arg("excluded_groups").noconvert(),
             py::arg("excluded_indptr").noconvert(), py::arg("excluded_rows").noconvert(), py::arg("k"),
             py::arg("filter"), py::arg("threads"));
}

}  // namespace hybridfast
