// Rows of embeddings cut into panels, as the kernels of simd/tile.h stream them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "embeddings.h"
#include "simd/level.h"
#include "threads.h"

namespace hybridfast {

// A row as it is, or widened into `widened`.
inline const float* float_row(const Embeddings& embeddings, std::size_t row, float* widened) {
  if (embeddings.element == Element::float32)
    return static_cast<const float*>(embeddings.data) + row * embeddings.depth;
  widen_row(embeddings, row, 0, embeddings.depth, widened);
  return widened;
}

// panel[d * width + i] = element d of the i-th of `count` rows, row_of(i); zero for the i beyond.
template <class RowOf>
void pack_panel(const Embeddings& embeddings, std::size_t count, std::size_t width, float* panel,
                RowOf row_of) {
  constexpr std::size_t most = 32;   // columns of the widest panel
  constexpr std::size_t step = 512;  // elements at a time, so that the rows stay in a near cache
  const auto& kernels = simd::kernels();
  const std::size_t depth = embeddings.depth;
  std::fill_n(panel, count < width ? width * depth : 0, 0.0f);
  std::size_t in_order = 1;
  while (in_order < count && row_of(in_order) == row_of(0) + in_order) ++in_order;
  if (embeddings.element == Element::float32 && in_order >= count && count > 0) {
    const float* rows = static_cast<const float*>(embeddings.data) + row_of(0) * depth;
    return kernels.transpose(rows, depth, count, depth, panel, width);
  }
  alignas(64) float rows[most * step];
  for (std::size_t begin = 0; begin < depth; begin += step) {
    const std::size_t size = std::min(step, depth - begin);
    for (std::size_t i = 0; i < count; ++i) widen_row(embeddings, row_of(i), begin, size, rows + i * step);
    kernels.transpose(rows, step, count, size, panel + begin * width, width);
  }
}

// A run of rows [begin, begin + size) packed as consecutive panels.
struct Block {
  std::size_t begin;
  std::size_t size;
  std::size_t width;
  std::size_t depth;  // floats of a row
  std::vector<float> data;

  std::size_t panels() const { return (size + width - 1) / width; }
  std::size_t panel_rows(std::size_t panel) const { return std::min(width, size - panel * width); }
  const float* panel(std::size_t index) const { return data.data() + index * width * depth; }
  float* panel(std::size_t index) { return data.data() + index * width * depth; }
  void hold(std::size_t first, std::size_t rows) {
    begin = first;
    size = rows;
    data.resize(panels() * width * depth);
  }
};

template <class RowOf>
void pack_block(const Embeddings& embeddings, std::size_t begin, std::size_t size, Block& block, int threads,
                RowOf row_of) {
  block.hold(begin, size);
  parallel_for(block.panels(), threads, [&](std::size_t p) {
    const std::size_t first = begin + p * block.width;
    pack_panel(embeddings, block.panel_rows(p), block.width, block.panel(p),
               [&](std::size_t i) { return row_of(first + i); });
  });
}

// Rows of `depth` floats that fill at most `bytes`: whole panels, at least one.
inline std::size_t rows_in(std::size_t bytes, std::size_t depth, std::size_t width) {
  const std::size_t rows = bytes / (sizeof(float) * std::max<std::size_t>(depth, 1));
  return std::max(rows / width, std::size_t{1}) * width;
}

constexpr std::size_t kBlockBytes = std::size_t{8} << 20;    // packed queries, packed passages
constexpr std::size_t kChunkBytes = std::size_t{384} << 10;  // passages that stay in a core's L2 cache
constexpr std::size_t kChunkRows = 512;                      // and whose scores stay there too

}  // namespace hybridfast
