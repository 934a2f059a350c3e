// The table of kernels that every instruction set fills in.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hybridfast::simd {

// The operands of `multiply`: sums run over `blocks` blocks of `depth` steps. Step k of block o takes the
// scalar scalars[r * row + k * step + o * block] for row r and the vector at panel[(k * columns) + o *
// panel_block].
struct Operands {
  const float* scalars;
  std::size_t row;
  std::size_t step;
  const float* panel;
  std::size_t depth;
  std::size_t blocks = 1;
  std::size_t block = 0;
  std::size_t panel_block = 0;
};

// Which entries are dropped: one is where the 16 random bits of its place under `key` are below `threshold`,
// of 65536; others are multiplied by `scale`.
struct Dropout {
  std::uint64_t key;
  std::uint32_t threshold;
  float scale;
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

  // out[r * stride + c] (+)= the sum over blocks and steps of scalar r times vector entry c, for `count`
  // rows.
  void (*multiply)(const Operands& operands, std::size_t count, float* out, std::size_t stride, bool add);

  // The same, with two bfloat16 in the place of every float, whose two products go to one float32 sum. Null
  // where the instruction set has no such product.
  void (*multiply_pairs)(const Operands& operands, std::size_t count, float* out, std::size_t stride,
                         bool add);

  // Rounding to such pairs, null alike: pairs[c] = (even[c], odd[c]) for c < count; and pairs[c] = (row[2c],
  // row[2c + 1]), where an entry beyond `count` is 0.
  void (*pair_rows)(const float* even, const float* odd, std::size_t count, float* pairs);
  void (*pair_neighbours)(const float* row, std::size_t count, float* pairs);

  // Both for a tile, null alike: pairs of its rows to `rows`, where the last of an odd number is paired with
  // zeros, and pairs of neighbours in a row to `neighbours`, whose rows are `stride` floats apart. Both have
  // room for an even number of rows.
  void (*pair_tile)(const float* tile, std::size_t count, float* rows, float* neighbours, std::size_t stride);

  // Turns products into logits: tile[j, c] = tile[j, c] * scale[j] + bias[j]. Where groups are given, an
  // entry whose passage and query share one becomes -inf.
  void (*logits)(float* tile, std::size_t count, const float* scale, const float* bias,
                 const std::int32_t* passage_groups, const std::int32_t* query_groups);

  // out[j, c] = E(tile[j, c] - shift[c]) * scale[j] with E(x) = exp(x) / 2^kHalvings, and of each column the
  // sum of E and the largest entry. E has a float's range for x from -37 to 130; above, it is as at 130.
  void (*exponentials)(const float* tile, std::size_t count, const float* shift, const float* scale,
                       float* max, float* sum, float* out);

  // The same, but what would be `out` goes to `rows` and `neighbours` as by pair_tile; null alike.
  void (*paired_exponentials)(const float* tile, std::size_t count, const float* shift, const float* scale,
                              float* max, float* sum, float* rows, float* neighbours, std::size_t stride);

  // Adds each row of the tile to a running sum: with m the new maximum of row j,
  // sum[j] = sum[j] * exp(max[j] - m) + sum_c exp(tile[j, c] - m), and max[j] = m.
  void (*add_rows)(const float* tile, std::size_t count, std::size_t columns, float* max, float* sum);

  // out[j, c] = (weight[c] * E(tile[j, c] - shift[c]) + row_weight[j] * E(tile[j, c] - row_shift[j])) *
  // scale[j], with the same E.
  void (*weigh)(const float* tile, std::size_t count, const float* scale, const float* shift,
                const float* weight, const float* row_shift, const float* row_weight, float* out);

  // For levels l < `levels`, kLevels or kNearLevels, and each column, adds to dropped[l * columns + c] what
  // the entries below a share of first[c] * 2^l sum to, where an entry's share is tile[j, c] * factor[c]. Of
  // the tile's rows it sees every step-th.
  void (*survey)(const float* tile, std::size_t count, std::size_t step, const float* factor,
                 const float* first, std::size_t levels, float* dropped);

  // Writes the places of the tile's entries that are at least threshold[c], in order, and returns how many
  // there are; gives up beyond `limit`. `places` has room for limit + 2 * columns.
  std::size_t (*select)(const float* tile, std::size_t count, const float* threshold, std::size_t limit,
                        std::uint32_t* places);

  // out (+)= the sum over k < count of weight[k] * rows[index[k] * dim ...], rows of `dim` floats.
  void (*combine_rows)(const float* rows, std::size_t dim, const std::uint32_t* index, const float* weight,
                       std::size_t count, float* out, bool add);

  // The same of rows of bfloat16, `stride` pairs of neighbours apart as pair_neighbours makes them. Null
  // where there are no pairs.
  void (*combine_pairs)(const float* pairs, std::size_t stride, std::size_t dim, const std::uint32_t* index,
                        const float* weight, std::size_t count, float* out, bool add);

  // Rows of floats: <a, b>, summed in double; and grad = (grad - radial * row) * factor.
  double (*dot)(const float* a, const float* b, std::size_t count);
  void (*project)(float* grad, const float* row, float radial, float factor, std::size_t count);

  // out[c * out_stride + r] = in[r * in_stride + c].
  void (*transpose)(const float* in, std::size_t in_stride, std::size_t rows, std::size_t columns, float* out,
                    std::size_t out_stride);

  // For an encoder. `count` is a multiple of 32. A row of products becomes the softmax of `scale` times its
  // entries from `first` to `end`, the others 0.
  void (*softmax)(float* row, std::size_t first, std::size_t end, std::size_t count, float scale);

  // With a row of softmax's shares s, what dropout multiplied them by (or null) as k, and the gradient g of
  // s k: the gradient of the products that became s, in the place of g; and s k in the place of s.
  void (*softmax_gradient)(float* shares, const float* kept, float* gradient, std::size_t count, float scale);

  // out[e] = in[e], or 1 where `in` is null, times what entry first + e of (row, head) is multiplied by.
  void (*drop)(const Dropout& dropout, std::uint64_t row, std::uint32_t head, std::uint64_t first,
               const float* in, std::size_t count, float* out);

  // Whether multiply_pairs takes scalars only by a step of 1, those of a row side by side.
  bool pairs_by_row;

  static constexpr std::size_t kLevels = 12, kNearLevels = 4;
  static constexpr int kHalvings = 72;
};

extern const TileKernels baseline_kernels;
#ifdef HYBRIDFAST_X86
extern const TileKernels avx2_kernels;
extern const TileKernels avx512_kernels;
extern const TileKernels avx512bf16_kernels;
#ifdef HYBRIDFAST_AMX
extern const TileKernels amx_bf16_kernels;
#endif
#endif

}  // namespace hybridfast::simd
