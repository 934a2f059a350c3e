// Tiles of products on Hopper: wgmma by two groups of four warps, out of what one thread copies through TMA.
#pragma once

#include <cstdint>

#include "cuda/infonce.h"
#include "cuda/ptx.h"
#include "cuda/tile.h"

namespace hybridfast::cuda {

// 128 x 256 pairs at a time, of 64 dimensions each; a group has 64 of the queries. Two blocks make a cluster:
// they have different queries and the same passages, of which each copies one half for both. At full rate of
// the products that reads 32 bytes a cycle from the second-level cache, where a block alone would read 48.
struct Hopper {
  static constexpr int kI = 1, kJ = 32, kColumns = 8 * kJ;
  static constexpr int kGroups = 2, kThreads = (1 + kGroups) * kGroupThreads, kCluster = 2;
  static constexpr int kStages = 4, kDims = 64, kRowBytes = 2 * kDims, kBoxRows = kTileRows;
  static constexpr int kBoxBytes = kBoxRows * kRowBytes, kStageBytes = 3 * kBoxBytes;
  static constexpr int kBarrierBytes = 2 * kStages * 8;

  static constexpr int shared_bytes(int floats) {
    return kStages * kStageBytes + kBarrierBytes + 4 * kGroups * floats;
  }
};
static_assert(Hopper::kColumns == Hopper::kCluster * Hopper::kBoxRows, "each block copies a box of passages");

// Where a copier or a group is in the ring of stages.
struct Turn {
  int stage = 0;
  std::uint32_t parity = 0;

  __device__ void advance() {
    if (++stage < Hopper::kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

struct Ring {
  std::uint32_t memory;

  __device__ std::uint32_t queries(int stage) const { return memory + stage * Hopper::kStageBytes; }
  __device__ std::uint32_t passages(int stage) const { return queries(stage) + Hopper::kBoxBytes; }
  __device__ std::uint32_t full(int stage) const {
    return memory + Hopper::kStages * Hopper::kStageBytes + 8 * stage;
  }
  __device__ std::uint32_t empty(int stage) const { return full(Hopper::kStages + stage); }
};

__device__ inline void copy_on_hopper(const Ring& ring, const CUtensorMap& queries,
                                      const CUtensorMap& passages, int dim, int row, int first, int last) {
  constexpr std::uint16_t kBoth = (1 << Hopper::kCluster) - 1;
  const int rank = static_cast<int>(ptx::rank_in_cluster());
  Turn turn;
  for (int column = first; column < last; column += Hopper::kColumns)
    for (int at = 0; at < dim; at += Hopper::kDims, turn.advance()) {
      ptx::wait_for_phase(ring.empty(turn.stage), turn.parity ^ 1);
      const std::uint32_t full = ring.full(turn.stage);
      ptx::arrive_expecting(full, Hopper::kStageBytes);
      ptx::copy_box(ring.queries(turn.stage), queries, at, row, full);
      ptx::copy_box_to(kBoth, ring.passages(turn.stage) + rank * Hopper::kBoxBytes, passages, at,
                       column + rank * Hopper::kBoxRows, full);
    }
}

template <Element E, class Epilogue>
__device__ inline void multiply_on_hopper(const Ring& ring, int group, int dim, int first, int last,
                                          Epilogue& epilogue) {
  const auto release = [&](int stage) {  // one lane a warp tells both blocks, since each copies to both
    const std::uint32_t lane = threadIdx.x % 32;
    if (lane < Hopper::kCluster) ptx::arrive_at(ring.empty(stage), lane);
  };
  Turn turn;
  for (int column = first; column < last; column += Hopper::kColumns) {
    float products[Hopper::kI][Hopper::kJ][4];
    int before = -1;  // the stage whose products may still be under way
    for (int at = 0; at < dim; at += Hopper::kDims, turn.advance()) {
      ptx::wait_for_phase(ring.full(turn.stage), turn.parity);
      const std::uint64_t a = ptx::rows_at(ring.queries(turn.stage) + group * 64 * Hopper::kRowBytes);
      const std::uint64_t b = ptx::rows_at(ring.passages(turn.stage));
      ptx::begin_products();
#pragma unroll
      for (int k = 0; k < Hopper::kDims / 16; ++k)  // 32 bytes on
        ptx::multiply_in_background<E>(products[0], a + 2 * k, b + 2 * k, at + k > 0);
      ptx::commit_products();
      if (before >= 0) {
        ptx::wait_for_products<1>(products[0]);
        release(before);
      }
      before = turn.stage;
    }
    ptx::wait_for_products<0>(products[0]);
    release(before);
    epilogue.take(products, column);
  }
  epilogue.finish();
}

// A block's tile of queries with its split of the passages.
template <Element E, class Epilogue>
__device__ inline void walk_on_hopper(const CUtensorMap& queries, const CUtensorMap& passages, int count,
                                      int dim, const Sweep& sweep,
                                      const typename Epilogue::Arguments& arguments) {
  unsigned char* memory = ptx::shared_memory();
  const Ring ring{ptx::shared_address(memory)};
  const int cluster = blockIdx.x / Hopper::kCluster, rank = static_cast<int>(ptx::rank_in_cluster());
  const int tile = cluster / sweep.splits * Hopper::kCluster + rank;
  const int split = cluster % sweep.splits, row = sweep.first + tile * kTileRows;
  if (idle(sweep, row - rank * kTileRows, Hopper::kCluster * kTileRows, Hopper::kThreads)) return;
  const int first = split * sweep.tiles_each * Hopper::kColumns;
  const int last = min(first + sweep.tiles_each * Hopper::kColumns, count);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Hopper::kStages; ++stage) {
      ptx::make_barrier(ring.full(stage), 1);
      ptx::make_barrier(ring.empty(stage), Hopper::kCluster * Hopper::kGroups * kWarps);
    }
    ptx::publish_barriers();
  }
  ptx::meet_cluster();
  if (threadIdx.x < kGroupThreads) {
    ptx::give_registers<40>();  // 128 x 40 and 256 x 232: all but 1,024 of the multiprocessor's 65,536
    if (threadIdx.x == 0) copy_on_hopper(ring, queries, passages, dim, row, first, last);
  } else {
    ptx::take_registers<232>();
    const int group = threadIdx.x / kGroupThreads - 1;
    const Place place{
        sweep,
        row + 64 * group,
        row < sweep.last ? Hopper::kGroups * tile + group : -1,  // a cluster's last tile may be past the end
        split,
        group,
        reinterpret_cast<float*>(memory + Hopper::kStages * Hopper::kStageBytes + Hopper::kBarrierBytes) +
            group * Epilogue::kSharedFloats,
    };
    Epilogue epilogue(arguments, place);
    multiply_on_hopper<E>(ring, group, dim, first, last, epilogue);
  }
  ptx::meet_cluster();  // until nobody writes into this block any more
}

}  // namespace hybridfast::cuda
