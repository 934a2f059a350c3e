#include <pybind11/numpy.h>

#include "bind_arrays.h"
#include "bind_embeddings.h"
#include "bindings.h"
#include "ranks.h"
#include "threads.h"

namespace py = pybind11;

namespace hybridfast {
namespace {

py::tuple find_largest_norm(const py::array& array, int threads) {
  const Embeddings embeddings = view_embeddings(array, "embeddings");
  RowNorm largest{};
  {
    const py::gil_scoped_release release;
    with_threads(threads, [&] { largest = largest_norm(embeddings, threads); });
  }
  return py::make_tuple(largest.row, largest.norm);
}

py::tuple rank_counts(const py::array& queries, const py::array& passages, const Integers& group_starts,
                      const Integers& group_rows, const Integers& gold_indptr, const Integers& gold_rows,
                      int threads) {
  const Embeddings query_view = view_embeddings(queries, "queries"),
                   passage_view = view_embeddings(passages, "passages");
  if (query_view.depth != passage_view.depth)
    throw std::invalid_argument("queries and passages differ in width");
  if (static_cast<std::size_t>(gold_indptr.size()) != query_view.rows + 1)
    throw std::invalid_argument("gold_indptr must have one entry more than there are queries");
  const Groups groups{view(group_starts), view(group_rows)};
  const Golds golds{view(gold_indptr), view(gold_rows)};
  const auto make = [&] {
    py::array_t<std::int32_t> counts({golds.rows.size(), groups.count()});
    std::fill_n(counts.mutable_data(), counts.size(), 0);
    return counts;
  };
  auto greater = make(), tied = make(), later = make();
  const RankCounts counts{greater.mutable_data(), tied.mutable_data(), later.mutable_data()};
  {
    const py::gil_scoped_release release;
    with_threads(threads, [&] { count_ranks(query_view, passage_view, groups, golds, counts, threads); });
  }
  return py::make_tuple(std::move(greater), std::move(tied), std::move(later));
}

}  // namespace

void register_ranks(py::module_& module) {
  module.def("largest_norm", &find_largest_norm, py::arg("embeddings").noconvert(), py::arg("threads"));
  module.def("rank_counts", &rank_counts, py::arg("queries").noconvert(), py::arg("passages").noconvert(),
             py::arg("group_starts").noconvert(), py::arg("group_rows").noconvert(),
             py::arg("gold_indptr").noconvert(), py::arg("gold_rows").noconvert(), py::arg("threads"));
}

}  // namespace hybridfast
