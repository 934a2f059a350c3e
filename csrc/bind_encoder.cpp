#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>

#include "bind_arrays.h"
#include "bindings.h"
#include "encoder/attention.h"
#include "threads.h"

namespace py = pybind11;

namespace hybridfast {
namespace {

using encoder::Heads;
using Key = std::tuple<std::uint64_t, std::uint32_t, float>;

std::optional<simd::Dropout> dropout_of(const std::optional<Key>& key) {
  if (!key) return std::nullopt;
  return simd::Dropout{std::get<0>(*key), std::get<1>(*key), std::get<2>(*key)};
}

// float32 (tokens, heads, dim), of any strides but for the last.
template <class Float, class Array>
Heads<Float> view_heads(Array& array, const char* name, py::ssize_t tokens) {
  if (array.dtype().char_() != 'f' || array.ndim() != 3 || array.shape(0) != tokens ||
      (array.shape(2) > 1 && array.strides(2) != sizeof(float)) || array.strides(0) < 0 ||
      array.strides(1) < 0)
    throw std::invalid_argument(std::string(name) + " must be float32 (tokens, heads, dim), dim contiguous");
  Float* data;
  if constexpr (std::is_const_v<Float>)
    data = static_cast<Float*>(array.data());
  else
    data = static_cast<Float*>(array.mutable_data());
  return {data, static_cast<std::size_t>(array.strides(0)) / sizeof(float),
          static_cast<std::size_t>(array.strides(1)) / sizeof(float)};
}

encoder::Attention view_attention(const py::array& queries, const py::array& keys, const py::array& values,
                                  const Integers& starts, const Integers& places, std::size_t before,
                                  std::size_t after, float scale,
                                  const std::optional<simd::Dropout>& dropout) {
  if (starts.size() < 1 || places.size() != starts.size() - 1 || starts.at(0) != 0)
    throw std::invalid_argument("starts must begin with 0 and have one entry more than places");
  for (py::ssize_t i = 1; i < starts.size(); ++i)
    if (starts.at(i) < starts.at(i - 1)) throw std::invalid_argument("starts must not fall");
  const py::ssize_t tokens = starts.at(starts.size() - 1);
  encoder::Attention attention{view_heads<const float>(queries, "queries", tokens),
                               view_heads<const float>(keys, "keys", tokens),
                               view_heads<const float>(values, "values", tokens),
                               static_cast<std::size_t>(queries.shape(1)),
                               static_cast<std::size_t>(keys.shape(1)),
                               static_cast<std::size_t>(queries.shape(2)),
                               view(starts),
                               view(places),
                               before,
                               after,
                               scale,
                               dropout ? &*dropout : nullptr};
  if (keys.shape(1) != values.shape(1) || keys.shape(2) != queries.shape(2) ||
      values.shape(2) != queries.shape(2) || keys.shape(1) < 1 || queries.shape(1) % keys.shape(1) ||
      queries.shape(2) < 1)
    throw std::invalid_argument("queries, keys and values differ in heads or width");
  return attention;
}

void check_like(const py::array& array, const py::array& other, const char* name) {
  if (array.ndim() != 3 || array.shape(1) != other.shape(1) || array.shape(2) != other.shape(2))
    throw std::invalid_argument(std::string(name) + " has another shape than what it belongs to");
}

void attend(const py::array& queries, const py::array& keys, const py::array& values, const Integers& starts,
            const Integers& places, std::size_t before, std::size_t after, float scale,
            const std::optional<Key>& key, py::array& out, int threads) {
  const auto dropout = dropout_of(key);
  const auto attention = view_attention(queries, keys, values, starts, places, before, after, scale, dropout);
  check_like(out, queries, "out");
  const auto to = view_heads<float>(out, "out", queries.shape(0));
  const py::gil_scoped_release release;
  encoder::attend(attention, to, threads);
}

void attend_gradients(const py::array& queries, const py::array& keys, const py::array& values,
                      const Integers& starts, const Integers& places, std::size_t before, std::size_t after,
                      float scale, const std::optional<Key>& key, const py::array& out_gradient,
                      py::array& query_gradient, py::array& key_gradient, py::array& value_gradient,
                      int threads) {
  const auto dropout = dropout_of(key);
  const auto attention = view_attention(queries, keys, values, starts, places, before, after, scale, dropout);
  check_like(out_gradient, queries, "out_gradient");
  check_like(query_gradient, queries, "query_gradient");
  check_like(key_gradient, keys, "key_gradient");
  check_like(value_gradient, values, "value_gradient");
  const py::ssize_t tokens = queries.shape(0);
  const auto from = view_heads<const float>(out_gradient, "out_gradient", tokens);
  const auto to_queries = view_heads<float>(query_gradient, "query_gradient", tokens),
             to_keys = view_heads<float>(key_gradient, "key_gradient", tokens),
             to_values = view_heads<float>(value_gradient, "value_gradient", tokens);
  const py::gil_scoped_release release;
  encoder::attend_gradients(attention, from, to_queries, to_keys, to_values, threads);
}

void dropout(const py::array_t<float, py::array::c_style>& in, const Integers& rows,
             const std::optional<Integers>& heads, const std::optional<Integers>& first, const Key& key,
             py::array_t<float, py::array::c_style>& out, int threads) {
  const auto count = static_cast<std::size_t>(rows.size());
  if (in.size() != out.size() || (count ? in.size() % rows.size() : in.size()))
    throw std::invalid_argument("in and out must have one row of equal size for each of rows");
  if ((heads && heads->size() != rows.size()) || (first && first->size() != rows.size()))
    throw std::invalid_argument("heads and first must have one entry for each of rows");
  if (!count) return;
  const std::span<const std::int64_t> none;
  const auto of_rows = view(rows), of_heads = heads ? view(*heads) : none,
             of_first = first ? view(*first) : none;
  const simd::Dropout function = *dropout_of(key);
  const float* from = in.data();
  float* to = out.mutable_data();
  const std::size_t columns = static_cast<std::size_t>(in.size()) / count;
  const py::gil_scoped_release release;
  encoder::drop_rows(function, from, columns, of_rows, of_heads, of_first, to, threads);
}

}  // namespace

void register_encoder(py::module_& module) {
  module.def("attend", &attend, py::arg("queries").noconvert(), py::arg("keys").noconvert(),
             py::arg("values").noconvert(), py::arg("starts").noconvert(), py::arg("places").noconvert(),
             py::arg("before"), py::arg("after"), py::arg("scale"), py::arg("dropout"),
             py::arg("out").noconvert(), py::arg("threads"));
  module.def("attend_gradients", &attend_gradients, py::arg("queries").noconvert(),
             py::arg("keys").noconvert(), py::arg("values").noconvert(), py::arg("starts").noconvert(),
             py::arg("places").noconvert(), py::arg("before"), py::arg("after"), py::arg("scale"),
             py::arg("dropout"), py::arg("out_gradient").noconvert(), py::arg("query_gradient").noconvert(),
             py::arg("key_gradient").noconvert(), py::arg("value_gradient").noconvert(), py::arg("threads"));
  module.def("dropout", &dropout, py::arg("values").noconvert(), py::arg("rows").noconvert(),
             py::arg("heads").noconvert(), py::arg("first").noconvert(), py::arg("dropout"),
             py::arg("out").noconvert(), py::arg("threads"));
}

}  // namespace hybridfast
