#include <pybind11/numpy.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "bind_spans.h"
#include "bindings.h"
#include "words.h"

namespace py = pybind11;

namespace hybridfast {
namespace {

using Ids = py::array_t<std::int32_t, py::array::c_style>;

template <typename T>
py::array_t<T> copied(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::tuple find_words(WordTable& table, const Bytes& data, const Integers& indptr) {
  const TextSpans texts = checked(data, indptr);
  WordTable::Found found;
  {
    const py::gil_scoped_release release;
    found = table.find(texts);
  }
  return py::make_tuple(copied(found.words), copied(found.indptr), copied(found.is_whole),
                        copied(found.fresh));
}

void add_words(WordTable& table, const Ids& ids, const Integers& indptr, const Bytes& is_plain) {
  check_indptr("indptr", indptr, ids.size());
  const auto words = static_cast<std::size_t>(indptr.size()) - 1;
  if (words != table.fresh() || static_cast<std::size_t>(is_plain.size()) != words) {
    throw std::invalid_argument("indptr and is_plain must be of the " + std::to_string(table.fresh()) +
                                " fresh words, got " + std::to_string(words) + " and " +
                                std::to_string(is_plain.size()));
  }
  table.add(view(ids), view(indptr), view(is_plain));
}

py::tuple gather_words(const WordTable& table, const Ids& words, const Integers& indptr,
                       const Bytes& is_whole, const Ids& head, const Ids& tail, std::int64_t room) {
  check_indptr("indptr", indptr, words.size());
  if (indptr.size() != is_whole.size() + 1)
    throw std::invalid_argument("indptr must have one place more than is_whole");
  for (const std::int32_t word : view(words)) {
    if (word < 0 || static_cast<std::size_t>(word) >= table.known())
      throw std::invalid_argument("words must be known, got " + std::to_string(word));
  }
  if (room < 0) throw std::invalid_argument("room must be >= 0, got " + std::to_string(room));
  std::vector<std::int32_t> ids;
  py::array_t<std::int64_t> lengths(is_whole.size());
  std::int64_t* const out = lengths.mutable_data();
  {
    const py::gil_scoped_release release;
    table.gather(words.data(), view(indptr), is_whole.data(), view(head), view(tail), room, ids, out);
  }
  return py::make_tuple(copied(ids), lengths);
}

}  // namespace

void register_words(py::module_& module) {
  py::class_<WordTable>(module, "WordTable")
      .def(py::init([](const std::string& separators, bool in_runs, bool kept, std::int64_t most) {
             for (const char byte : separators) {
               if (static_cast<std::uint8_t>(byte) >= 0x80)
                 throw std::invalid_argument("separators must be ASCII");
             }
             if (most < 1) throw std::invalid_argument("most must be >= 1, got " + std::to_string(most));
             return WordTable({separators, in_runs, kept}, static_cast<std::size_t>(most));
           }),
           py::arg("separators"), py::arg("in_runs"), py::arg("kept") = false, py::arg("most") = 1 << 20)
      .def("find", &find_words, py::arg("data").noconvert(), py::arg("indptr").noconvert())
      .def("add", &add_words, py::arg("ids").noconvert(), py::arg("indptr").noconvert(),
           py::arg("is_plain").noconvert())
      .def("gather", &gather_words, py::arg("words").noconvert(), py::arg("indptr").noconvert(),
           py::arg("is_whole").noconvert(), py::arg("head").noconvert(), py::arg("tail").noconvert(),
           py::arg("room"));
}

}  // namespace hybridfast
