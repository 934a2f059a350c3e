// The one body of every kernel. An ISA file sets HYBRIDFAST_VECTOR_BYTES, HYBRIDFAST_ROWS and
// HYBRIDFAST_VECTORS, then includes this file; the compiler's vector types do the rest.
//
// Everything here is in an anonymous namespace and nothing but fixed headers is included: an inline function
// compiled for AVX-512 would otherwise be what the linker may pick for every CPU.
#include <cstddef>

#include "simd/tile.h"

namespace {

constexpr std::size_t kLanes = HYBRIDFAST_VECTOR_BYTES / sizeof(float);
constexpr std::size_t kRows = HYBRIDFAST_ROWS;        // queries in a register block
constexpr std::size_t kVectors = HYBRIDFAST_VECTORS;  // passage vectors in a register block
constexpr std::size_t kColumns = kVectors * kLanes;

typedef float Vector __attribute__((vector_size(HYBRIDFAST_VECTOR_BYTES)));
typedef float VectorU __attribute__((vector_size(HYBRIDFAST_VECTOR_BYTES), aligned(4), may_alias));

// kRows x kVectors accumulators stay in registers; each step of d loads kVectors vectors and broadcasts kRows.
void score_tile(const float* query_panel, const float* passage_panel, std::size_t depth, float* scores,
                std::size_t stride) {
  Vector sums[kRows][kVectors] = {};
  for (std::size_t d = 0; d < depth; ++d) {
    Vector passages[kVectors];
    for (std::size_t v = 0; v < kVectors; ++v)
      passages[v] = *reinterpret_cast<const VectorU*>(passage_panel + d * kColumns + v * kLanes);
    for (std::size_t r = 0; r < kRows; ++r) {
      const float query = query_panel[d * kRows + r];
      for (std::size_t v = 0; v < kVectors; ++v) sums[r][v] += query * passages[v];
    }
  }
  for (std::size_t r = 0; r < kRows; ++r)
    for (std::size_t v = 0; v < kVectors; ++v)
      *reinterpret_cast<VectorU*>(scores + r * stride + v * kLanes) = sums[r][v];
}

}  // namespace
