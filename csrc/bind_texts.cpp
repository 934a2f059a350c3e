#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "bind_spans.h"
#include "bindings.h"

namespace py = pybind11;

namespace hybridfast {
namespace {

py::array_t<std::uint64_t> hashes_of(const Bytes& data, const Integers& indptr, int words) {
  if (words < 1 || words > 8)
    throw std::invalid_argument("words must be 1 to 8, got " + std::to_string(words));
  const TextSpans texts = checked(data, indptr);
  py::array_t<std::uint64_t> hashes({texts.size(), static_cast<std::size_t>(words)});
  std::uint64_t* const out = hashes.mutable_data();
  const py::gil_scoped_release release;
  hash_texts(texts, words, out);
  return hashes;
}

bool utf8_of(const Bytes& data, const Integers& indptr) {
  const TextSpans texts = checked(data, indptr);
  const py::gil_scoped_release release;
  return are_utf8(texts);
}

py::bytes json_of(const Bytes& data, const Integers& indptr, const std::optional<Integers>& list_indptr) {
  const TextSpans texts = checked(data, indptr);
  if (list_indptr) check_indptr("list_indptr", *list_indptr, static_cast<std::int64_t>(texts.size()));
  std::string json;
  {
    const py::gil_scoped_release release;
    json.reserve(static_cast<std::size_t>(data.size()) + 4 * texts.size());
    list_indptr ? append_json(texts, view(*list_indptr), json) : append_json(texts, json);
  }
  return py::bytes(json);
}

}  // namespace

void register_texts(py::module_& module) {
  module.def("text_hashes", &hashes_of, py::arg("data").noconvert(), py::arg("indptr").noconvert(),
             py::arg("words"));
  module.def("texts_are_utf8", &utf8_of, py::arg("data").noconvert(), py::arg("indptr").noconvert());
  module.def("text_json", &json_of, py::arg("data").noconvert(), py::arg("indptr").noconvert(),
             py::arg("list_indptr").noconvert() = py::none());
}

}  // namespace hybridfast
