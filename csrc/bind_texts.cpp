#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "bind_arrays.h"
#include "bindings.h"
#include "texts.h"
#include "words.h"

namespace py = pybind11;

namespace hybridfast {
namespace {

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;

// Ascending places within 0 to size.
void check_indptr(const char* name, const Integers& indptr, std::int64_t size) {
  const auto places = view(indptr);
  bool good = !places.empty() && places.front() >= 0 && places.back() <= size;
  for (std::size_t i = 1; good && i < places.size(); ++i) good = places[i - 1] <= places[i];
  if (!good) {
    throw std::invalid_argument(std::string(name) + " must ascend from 0 or more to " + std::to_string(size) +
                                " at most");
  }
}

TextSpans checked(const Bytes& data, const Integers& indptr) {
  check_indptr("indptr", indptr, data.size());
  return {data.data(), view(indptr)};
}

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

// --- words -------------------------------------------------------------------------------------------------

using Ids = py::array_t<std::int32_t, py::array::c_style>;

template <typename T>
std::span<const T> view_of(const py::array_t<T, py::array::c_style>& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

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
  table.add(view_of(ids), view(indptr), view_of(is_plain));
}

py::tuple gather_words(const WordTable& table, const Ids& words, const Integers& indptr,
                       const Bytes& is_whole, const Ids& head, const Ids& tail, std::int64_t room) {
  check_indptr("indptr", indptr, words.size());
  if (indptr.size() != is_whole.size() + 1)
    throw std::invalid_argument("indptr must have one place more than is_whole");
  for (const std::int32_t word : view_of(words)) {
    if (word < 0 || static_cast<std::size_t>(word) >= table.known())
      throw std::invalid_argument("words must be known, got " + std::to_string(word));
  }
  if (room < 0) throw std::invalid_argument("room must be >= 0, got " + std::to_string(room));
  std::vector<std::int32_t> ids;
  py::array_t<std::int64_t> lengths(is_whole.size());
  std::int64_t* const out = lengths.mutable_data();
  {
    const py::gil_scoped_release release;
    table.gather(words.data(), view(indptr), is_whole.data(), view_of(head), view_of(tail), room, ids, out);
  }
  return py::make_tuple(copied(ids), lengths);
}

}  // namespace

void register_texts(py::module_& module) {
  module.def("text_hashes", &hashes_of, py::arg("data").noconvert(), py::arg("indptr").noconvert(),
             py::arg("words"));
  module.def("texts_are_utf8", &utf8_of, py::arg("data").noconvert(), py::arg("indptr").noconvert());
  module.def("text_json", &json_of, py::arg("data").noconvert(), py::arg("indptr").noconvert(),
             py::arg("list_indptr").noconvert() = py::none());
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
