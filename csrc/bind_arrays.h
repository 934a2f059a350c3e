// What the bindings make of an array.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <span>

namespace hybridfast {

using Integers = pybind11::array_t<std::int64_t, pybind11::array::c_style>;

template <typename T>
std::span<const T> view(const pybind11::array_t<T, pybind11::array::c_style>& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

}  // namespace hybridfast
