// What the bindings make of an array of embeddings.
#pragma once

#include <pybind11/numpy.h>

#include <stdexcept>
#include <string>

#include "embeddings.h"

namespace hybridfast {

// float32, float16, or int16 holding the bits of bfloat16, which NumPy lacks.
inline Embeddings view_embeddings(const pybind11::array& array, const char* name) {
  Embeddings embeddings{array.data(), 0, 0, Element::float32};
  const char code = array.dtype().char_();
  if (code == 'e') {
    embeddings.element = Element::float16;
  } else if (code == 'h') {
    embeddings.element = Element::bfloat16;
  } else if (code != 'f') {
    throw std::invalid_argument(std::string(name) +
                                " must be float32, float16 or the int16 bits of bfloat16");
  }
  if (array.ndim() != 2 || !(array.flags() & pybind11::array::c_style))
    throw std::invalid_argument(std::string(name) + " must be a C-contiguous matrix");
  embeddings.rows = static_cast<std::size_t>(array.shape(0));
  embeddings.depth = static_cast<std::size_t>(array.shape(1));
  return embeddings;
}

}  // namespace hybridfast
