// The table of kernels that every instruction set fills in.
#pragma once

#include <cstddef>

namespace hybridfast::simd {

// Matrices are cut into panels: a query panel holds `rows` queries as D x rows, a passage panel holds
// `columns` passages as D x columns (zero-padded), so that a kernel streams both with unit stride.
struct TileKernels {
  const char* name;
  std::size_t rows;     // queries in a panel
  std::size_t columns;  // passages in a panel

  // scores[r * stride + c] = sum_d query_panel[d * rows + r] * passage_panel[d * columns + c], summed over
  // d in ascending order in one accumulator per entry, so that a score never depends on its neighbours.
  void (*scores)(const float* query_panel, const float* passage_panel, std::size_t depth, float* scores,
                 std::size_t stride);
};

extern const TileKernels baseline_kernels;
#ifdef HYBRIDFAST_X86
extern const TileKernels avx2_kernels;
extern const TileKernels avx512_kernels;
#endif

}  // namespace hybridfast::simd
