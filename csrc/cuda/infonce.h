// The two large kernels of the loss on NVIDIA GPUs: log-sum-exps of the negatives, and the weights that
// gradients sum. hybridfast/infonce/cuda_kernels.py says how they make up a backend, blocks.py beside it
// what a block is. Pointers are of the block's device; nothing here waits for it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace hybridfast::cuda {

enum class Element { bfloat16, float16 };

// Rows on a GPU, each at a multiple of 16 bytes, so many elements apart.
struct Rows {
  const void* data;
  std::int64_t stride;
  int count;
};

// Which pairs are positive and which negative; ids and flags that are absent are null.
struct Pairs {
  const std::int64_t* targets;  // of queries
  const std::int64_t* query_groups;
  const std::int64_t* passage_groups;
  const unsigned char* excluded;  // of passages
  int queries, passages;
  bool by_group;
};

struct Block {
  int device;
  Rows queries, passages;
  int dim;
  Element element;
  const float* inverse;  // 1 / temperature
  Pairs pairs;
};

// The queries first to last - 1, in tiles of kTileRows, each with every split of the passages, which is so
// many tiles of them. Unless null, `only` tells for each query of the block whether it is asked for.
struct Sweep {
  int first, last, splits, tiles_each;
  const unsigned char* only;
};

constexpr int kTileRows = 128;

// What depends on the device.
struct Shape {
  int columns;          // passages of a tile
  int rows_per_column;  // queries that a column part sums; a tile has one or two such parts
};

Shape shape(int device);

// Over each query's negatives in a split: row_parts (splits, queries). Over the negatives of each passage in
// every `rows_per_column` queries of the sweep: column_parts (parts, passages), unless null.
void negative_sums(const Block& block, const Sweep& sweep, float* row_parts, float* column_parts,
                   cudaStream_t stream);

// e^(logit - wanted) of the sweep's negatives and 0 of other pairs, as form_weights writes; over each query's
// split the sums of what is not yet rounded: row_parts (splits, queries). bfloat16 only, for its range.
void form_exps(const Block& block, const Sweep& sweep, const float* wanted, void* out,
               std::int64_t out_stride, float* row_parts, cudaStream_t stream);

struct Weights {
  float margin;
  const float* row_sums;
  const float* row_weights;
  const float* column_sums;     // null in one direction
  const float* column_weights;  // likewise
  const float* weights;         // of a query's positives
};

// d(objective)/d(product) of the sweep's queries, in the dtype of the products. Rows of `out` begin at
// multiples of 16 bytes; passages past the last, up to a multiple of 8, are written as well.
void form_weights(const Block& block, const Sweep& sweep, const Weights& weights, void* out,
                  std::int64_t out_stride, cudaStream_t stream);

}  // namespace hybridfast::cuda
