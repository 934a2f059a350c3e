// Embeddings in the element types that models give them in.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace hybridfast {

enum class Element { float32, float16, bfloat16 };

// Row-major embeddings; every element type is widened to float32 where its rows are used.
struct Embeddings {
  const void* data;
  std::size_t rows;
  std::size_t depth;
  Element element;
};

struct Half {
  std::uint16_t bits;
};
struct Brain {
  std::uint16_t bits;
};

inline float widen(float value) {
  return value;
}

inline float widen(Brain value) {
  return std::bit_cast<float>(std::uint32_t{value.bits} << 16);
}

// To the nearest, ties to even.
inline Brain narrow(float value) {
  if (value != value) return {0x7fc0};  // a carry could make a number of a NaN
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return {static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// Without branches, so that rows are widened by vectors.
inline float widen(Half value) {
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  const std::uint32_t sign = (value.bits & 0x8000u) << 16;
  constexpr std::uint32_t rebias = (127 - 15) << 23;
  const std::uint32_t special = magnitude >= 0x7c00u ? rebias : 0u;  // infinity and NaN stay so
  const std::uint32_t normal = (magnitude << 13) + rebias + special;
  const float multiple = static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24f;
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(multiple);  // or zero
  return std::bit_cast<float>((magnitude < 0x0400u ? subnormal : normal) | sign);
}

// Calls body with the embeddings' data as a pointer of their element type.
template <class Body>
auto with_elements(const Embeddings& embeddings, Body body) {
  switch (embeddings.element) {
    case Element::float16:
      return body(static_cast<const Half*>(embeddings.data));
    case Element::bfloat16:
      return body(static_cast<const Brain*>(embeddings.data));
    default:
      return body(static_cast<const float*>(embeddings.data));
  }
}

// Elements [begin, begin + count) of a row.
inline void widen_row(const Embeddings& embeddings, std::size_t row, std::size_t begin, std::size_t count,
                      float* out) {
  with_elements(embeddings, [&](const auto* data) {
    const auto* in = data + row * embeddings.depth + begin;
    for (std::size_t d = 0; d < count; ++d) out[d] = widen(in[d]);
  });
}

}  // namespace hybridfast
