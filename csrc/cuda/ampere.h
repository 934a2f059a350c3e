// Tiles of products on any GPU from Ampere on: four warps, mma.sync, copies through cp.async.
#pragma once

#include <cstdint>

#include "cuda/infonce.h"
#include "cuda/ptx.h"
#include "cuda/tile.h"

namespace hybridfast::cuda {

// 128 x 128 pairs at a time, of 32 dimensions each. Two blocks share a multiprocessor, so that one's epilogue
// runs beside the other's products.
struct Ampere {
  static constexpr int kI = 2, kJ = 16, kColumns = 8 * kJ;
  static constexpr int kGroups = 1, kThreads = kGroupThreads, kBlocks = 2;
  static constexpr int kStages = 4, kDims = 32;
  static constexpr int kRowBytes = 2 * kDims, kMatrixBytes = kTileRows * kRowBytes;

  static constexpr int shared_bytes(int floats) { return kStages * 2 * kMatrixBytes + 4 * floats; }
};
static_assert(Ampere::kColumns == kTileRows, "one loader serves both");

// Where 8 dimensions of a row lie in shared memory: neighbouring rows' in different banks.
__device__ inline std::uint32_t swizzled(int row, int eighth) {
  return row * Ampere::kRowBytes + 16 * (eighth ^ (row / 2 % 4));
}

__device__ inline void load_rows(std::uint32_t to, const Rows& rows, int dim, int first, int first_dim) {
  const int eighth = threadIdx.x % 4, at = first_dim + 8 * eighth;
  const auto* data = static_cast<const std::uint16_t*>(rows.data);
#pragma unroll
  for (int row = threadIdx.x / 4; row < kTileRows; row += Ampere::kThreads / 4) {
    const bool inside = first + row < rows.count && at < dim;
    const std::int64_t offset = inside ? (first + row) * rows.stride + at : 0;
    ptx::copy(to + swizzled(row, eighth), data + offset, inside);
  }
}

template <Element E>
__device__ inline void multiply_stage(float (&products)[Ampere::kI][Ampere::kJ][4], std::uint32_t queries,
                                      std::uint32_t passages) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int k = 0; k < Ampere::kDims / 8; k += 2) {
    std::uint32_t a[Ampere::kI][4];
#pragma unroll
    for (int i = 0; i < Ampere::kI; ++i)
      ptx::load_matrices(a[i], queries + swizzled(64 * i + 16 * warp + lane % 16, k + lane / 16));
#pragma unroll
    for (int j = 0; j < Ampere::kJ; j += 2) {
      std::uint32_t b[4];
      ptx::load_matrices(b, passages + swizzled(8 * j + lane % 8 + lane / 16 * 8, k + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < Ampere::kI; ++i) {
        ptx::multiply<E>(products[i][j], a[i], b[0], b[1]);
        ptx::multiply<E>(products[i][j + 1], a[i], b[2], b[3]);
      }
    }
  }
}

// A block's tile of queries with its split of the passages: each tile's products go to the epilogue, while
// the next one's first dimensions are on their way.
template <Element E, class Epilogue>
__device__ inline void walk_on_ampere(const Rows& queries, const Rows& passages, int dim, const Sweep& sweep,
                                      const typename Epilogue::Arguments& arguments) {
  constexpr int kStages = Ampere::kStages;
  const std::uint32_t memory = ptx::shared_address(ptx::shared_memory());
  const int tile = blockIdx.x / sweep.splits, split = blockIdx.x % sweep.splits;
  const Place place{
      sweep, sweep.first + tile * kTileRows,
      tile,  split,
      0,     reinterpret_cast<float*>(ptx::shared_memory() + kStages * 2 * Ampere::kMatrixBytes),
  };
  if (idle(sweep, place.row, kTileRows, Ampere::kThreads)) return;
  Epilogue epilogue(arguments, place);
  const int first = split * sweep.tiles_each * Ampere::kColumns;
  const int last = min(first + sweep.tiles_each * Ampere::kColumns, passages.count);
  const int steps = (dim + Ampere::kDims - 1) / Ampere::kDims;
  const auto stage_at = [&](int step) { return memory + step % kStages * 2 * Ampere::kMatrixBytes; };

  int loading_step = 0, loading_dim = 0, loading_column = first;
  const auto load = [&] {
    if (loading_column < last) {
      const std::uint32_t to = stage_at(loading_step);
      load_rows(to, queries, dim, place.row, loading_dim);
      load_rows(to + Ampere::kMatrixBytes, passages, dim, loading_column, loading_dim);
    }
    ptx::commit_copies();
    ++loading_step;
    loading_dim += Ampere::kDims;
    if (loading_dim >= dim) loading_dim = 0, loading_column += Ampere::kColumns;
  };

  for (int stage = 0; stage < kStages - 1; ++stage) load();
  int step = 0;
  for (int column = first; column < last; column += Ampere::kColumns) {
    float products[Ampere::kI][Ampere::kJ][4] = {};
    for (const int end = step + steps; step < end; ++step) {
      ptx::wait_for_copies<kStages - 2>();
      __syncthreads();
      load();
      multiply_stage<E>(products, stage_at(step), stage_at(step) + Ampere::kMatrixBytes);
    }
    epilogue.take(products, column);
  }
  epilogue.finish();
}

}  // namespace hybridfast::cuda
