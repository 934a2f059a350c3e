// The table of kernels that every instruction set fills in.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hybridfast::simd {

// The scalar operand of `multiply`: entry (r, k) of its block o is data[r * row + k * step + o * block].
struct Operand {
  const float* data;
  std::size_t row;
  std::size_t step;
  std::size_t depth;  // k runs over [0, depth) in each block
  std::size_t block;
  std::size_t blocks;  // o runs over [0, blocks)
};

// Matrices are cut into panels, so that a kernel streams them with unit stride. For `scores`, a query panel
// holds `rows` queries as D x rows and a passage panel `columns` passages as D x columns (zero-padded).
//
// The loss turns it round. Its panels hold `columns` queries, one query to a lane, so that everything along a
// softmax row is vertical; a tile is (passages, columns), row-major, with one passage to a tile row.
struct TileKernels {
  const char* name;
  std::size_t rows;     // rows of a register block
  std::size_t columns;  // columns of a register block

  // scores[r * stride + c] = sum_d query_panel[d * rows + r] * passage_panel[d * columns + c], summed over
  // d in ascending order in one accumulator per entry, so that a score never depends on its neighbours.
  void (*scores)(const float* query_panel, const float* passage_panel, std::size_t depth, float* scores,
                 std::size_t stride);

  // out[r * stride + c] (+)= sum_(o, k) scalars(r, k, o) * panel[(o * depth + k) * columns + c], for `count`
  // rows.
  void (*multiply)(const Operand& scalars, const float* panel, std::size_t count, float* out,
                   std::size_t stride, bool add);

  // Turns products into logits: tile[j, c] = tile[j, c] * scale[j] + bias[j]. Where both kinds of groups are
  // given, an entry whose passage and query share one becomes -inf.
  void (*logits)(float* tile, std::size_t count, const float* scale, const float* bias,
                 const std::int32_t* passage_groups, const std::int32_t* query_groups);

  // tile = exp(tile - max), with the maximum and the sum of each column; a column of -inf gives (-inf, 0).
  void (*softmax)(float* tile, std::size_t count, float* max, float* sum);

  // tile[j, c] *= weight[c] * exp(max[c] - shift[c]) * scale[j].
  void (*rescale)(float* tile, std::size_t count, const float* scale, const float* max, const float* shift,
                  const float* weight);
};

extern const TileKernels baseline_kernels;
#ifdef HYBRIDFAST_X86
extern const TileKernels avx2_kernels;
extern const TileKernels avx512_kernels;
#endif

}  // namespace hybridfast::simd
