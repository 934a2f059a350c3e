// A thread's part of a tile of products, and which of its pairs are what.
//
// A group of four warps holds a tile in registers, in the layout of the matrix instructions: products[i][j][2
// h + c] is that of row 64 i + 16 warp + 8 h + lane / 4 and column 8 j + 2 (lane % 4) + c.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/infonce.h"
#include "cuda/ptx.h"

namespace hybridfast::cuda {

constexpr int kGroupThreads = 128, kWarps = 4;
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// Where a group works: its first query, its column part or -1, its split of the passages; which group of the
// block it is, and shared memory of its own.
struct Place {
  const Sweep& sweep;
  int row, part, split, group;
  float* shared;
};

// Whether the sweep asks for none of so many queries; all threads of the block must ask.
__device__ inline bool idle(const Sweep& sweep, int first, int rows, int threads) {
  if (!sweep.only) return false;
  int some = 0;
  for (int row = first + static_cast<int>(threadIdx.x); row < min(first + rows, sweep.last); row += threads)
    some |= sweep.only[row];
  return !__syncthreads_or(some);
}

__device__ inline float from_lane(float value, int distance) {
  return __shfl_xor_sync(0xffffffffu, value, distance);
}

// Over the four lanes that share a query.
__device__ inline float sum_of_four(float value) {
  value += from_lane(value, 1);
  return value + from_lane(value, 2);
}

// The maximum to subtract before exp2: 0 for that of nothing.
__device__ inline float finite(float top) {
  return top == -INFINITY ? 0.0f : top;
}

// A thread's part of a group's tile: its queries, and which of its pairs are what.
template <int I, int J>
struct Tile {
  static constexpr int kColumns = 8 * J, kUnasked = -2;

  const Pairs& pairs;
  int first_row;
  int targets[I][2];  // -1 where it is no passage, kUnasked where the query is not asked for

  __device__ Tile(const Pairs& given, const Place& place)
      : pairs(given),
        first_row(place.row + 16 * static_cast<int>(threadIdx.x / 32 % kWarps) +
                  static_cast<int>(threadIdx.x % 32 / 4)) {
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const std::int64_t target = pairs.targets[at(i, h)];
        targets[i][h] = target >= 0 && target < pairs.passages ? static_cast<int>(target) : -1;
        const Sweep& sweep = place.sweep;
        if (row(i, h) >= sweep.last || (sweep.only && !sweep.only[row(i, h)])) targets[i][h] = kUnasked;
      }
  }

  __device__ int row(int i, int h) const { return first_row + 64 * i + 8 * h; }

  // The query to read of: rows past the last are read as the last.
  __device__ int at(int i, int h) const { return min(row(i, h), pairs.queries - 1); }

  __device__ bool counts(int i, int h) const { return targets[i][h] != kUnasked; }

  __device__ static int column(int first, int j, int c) {
    return first + 8 * j + 2 * static_cast<int>(threadIdx.x % 4) + c;
  }

  // Whether all the thread's pairs are negatives.
  __device__ bool plain(int first) const {
    bool special = first + kColumns > pairs.passages || pairs.query_groups || pairs.excluded;
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        special |= !counts(i, h) || static_cast<unsigned>(targets[i][h] - first) < kColumns;
    return !special;
  }

  // Of a query in a split of the passages: row_parts (splits, queries).
  __device__ void store_part(float* row_parts, int split, int i, int h, float value) const {
    if (threadIdx.x % 4 == 0 && counts(i, h))
      row_parts[static_cast<std::int64_t>(split) * pairs.queries + row(i, h)] = value;
  }

  enum Kind { kNegative, kPositive, kNeither };

  __device__ Kind kind(int i, int h, int at_column) const {
    if (at_column >= pairs.passages || !counts(i, h)) return kNeither;
    const bool alike = pairs.query_groups && pairs.query_groups[at(i, h)] == pairs.passage_groups[at_column];
    if (pairs.by_group ? alike : at_column == targets[i][h]) return kPositive;
    return alike || (pairs.excluded && pairs.excluded[at_column]) ? kNeither : kNegative;
  }
};

}  // namespace hybridfast::cuda
