// What the bindings make of an array of integers.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <span>

namespace hybridfast {

using Integers = pybind11::array_t<std::int64_t, pybind11::array::c_style>;

inline std::span<const std::int64_t> view(const Integers& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

}  // namespace hybridfast
