// What the bindings make of spans of an array, such as texts: data, and where each begins and ends.
#pragma once

#include <pybind11/numpy.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "bind_arrays.h"
#include "texts.h"

namespace hybridfast {

using Bytes = pybind11::array_t<std::uint8_t, pybind11::array::c_style>;

// Ascending places within 0 to size.
inline void check_indptr(const char* name, const Integers& indptr, std::int64_t size) {
  const auto places = view(indptr);
  bool good = !places.empty() && places.front() >= 0 && places.back() <= size;
  for (std::size_t i = 1; good && i < places.size(); ++i) good = places[i - 1] <= places[i];
  if (!good) {
    throw std::invalid_argument(std::string(name) + " must ascend from 0 or more to " + std::to_string(size) +
                                " at most");
  }
}

inline TextSpans checked(const Bytes& data, const Integers& indptr) {
  check_indptr("indptr", indptr, data.size());
  return {data.data(), view(indptr)};
}

}  // namespace hybridfast
