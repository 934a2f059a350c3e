// What becomes of a tile of products, first: log-sum-exps of the negatives.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/infonce.h"
#include "cuda/ptx.h"
#include "cuda/tile.h"

namespace hybridfast::cuda {

// Below this a sum may miss terms, since exp2 ends at 2^-126. Only the lowest temperatures get there.
constexpr float kFaded = 0x1p-96f;

struct SumsArguments {
  Pairs pairs;
  const float* inverse;
  float *row_parts, *column_parts;
};

// Log-sum-exps of the negatives, in units of log 2 until they are stored. One exp2 a logit serves both
// directions: 2^(s_ij - top_i) is summed over j, and times 2^(top_i - peak) over i.
template <class Engine, bool COLUMNS>
struct Sums {
  using Arguments = SumsArguments;
  static constexpr int I = Engine::kI, J = Engine::kJ, kColumns = Engine::kColumns;
  static constexpr int kSharedFloats = COLUMNS ? 2 * kWarps * kColumns + kWarps : 0;

  const Arguments& arguments;
  const Place& place;
  Tile<I, J> tile;
  float scale;
  float top[I][2], total[I][2];  // of a query over the columns so far; the total over the thread's own

  __device__ Sums(const Arguments& given, const Place& where)
      : arguments(given), place(where), tile(given.pairs, where), scale(*given.inverse * kLog2E) {
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) top[i][h] = -INFINITY, total[i][h] = 0;
  }

  __device__ void take(float (&products)[I][J][4], int first) {
    if (!tile.plain(first)) mask(products, first);
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float most = -INFINITY;
#pragma unroll
        for (int j = 0; j < J; ++j)
          most = fmaxf(most, fmaxf(products[i][j][2 * h], products[i][j][2 * h + 1]));
        most = fmaxf(most, from_lane(most, 1));
        most = fmaxf(most, from_lane(most, 2)) * scale;
        const float before = top[i][h];
        top[i][h] = fmaxf(before, most);
        total[i][h] *= ptx::exp2(before - finite(top[i][h]));
      }
    if constexpr (COLUMNS) {
      take_columns(products, first);
    } else {
#pragma unroll
      for (int i = 0; i < I; ++i)
#pragma unroll
        for (int j = 0; j < J; ++j)
#pragma unroll
          for (int at = 0; at < 4; ++at) total[i][at / 2] += exp_off_top(products[i][j][at], i, at / 2);
    }
  }

  __device__ void finish() {
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float sum = sum_of_four(total[i][h]);
        tile.store_part(arguments.row_parts, place.split, i, h, (top[i][h] + log2f(sum)) * kLn2);
      }
  }

 private:
  // -infinity for what is no negative. A loop that is not unrolled finds those first: unrolled, all ids that
  // it reads would take registers at once.
  __device__ void mask(float (&products)[I][J][4], int first) const {
    std::uint64_t masked[I][2] = {};
#pragma unroll 4
    for (int n = 0; n < 2 * J; ++n)
#pragma unroll
      for (int i = 0; i < I; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          if (tile.kind(i, h, tile.column(first, n / 2, n % 2)) != tile.kNegative)
            masked[i][h] |= std::uint64_t{1} << n;
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int j = 0; j < J; ++j)
#pragma unroll
        for (int at = 0; at < 4; ++at)
          if (masked[i][at / 2] >> (2 * j + at % 2) & 1) products[i][j][at] = -INFINITY;
  }

  // The threads of a group meet; of several, each at a barrier of its own.
  __device__ void meet() const {
    if constexpr (Engine::kGroups == 1)
      __syncthreads();
    else
      ptx::meet(1 + place.group, kGroupThreads);
  }

  __device__ bool any(bool value) const {
    if constexpr (Engine::kGroups == 1)
      return __syncthreads_or(value);
    else
      return ptx::any(1 + place.group, kGroupThreads, value);
  }

  __device__ float exp_off_top(float product, int i, int h) const {
    return ptx::exp2(fmaf(product, scale, -finite(top[i][h])));
  }

  __device__ void take_columns(const float (&products)[I][J][4], int first) {
    const int thread = threadIdx.x % kGroupThreads, warp = thread / 32;
    float *sums = place.shared, *tops = sums + kWarps * kColumns, *peaks = tops + kWarps * kColumns;
    float peak = -INFINITY;
#pragma unroll
    for (int i = 0; i < I; ++i) peak = fmaxf(peak, fmaxf(top[i][0], top[i][1]));
    for (int distance = 4; distance < 32; distance *= 2) peak = fmaxf(peak, from_lane(peak, distance));
    float share[I][2];
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) share[i][h] = ptx::exp2(top[i][h] - finite(peak));
    const auto add = [](float a, float b) { return a + b; };
    by_columns(sums, products, add, [&](float product, int i, int h, int) {
      const float term = exp_off_top(product, i, h);
      total[i][h] += term;
      return term * share[i][h];
    });
    if (thread % 32 == 0) peaks[warp] = peak;
    meet();
    bool faded = false;
    for (int column = thread; column < kColumns; column += kGroupThreads) {
      const float most = finite(fmaxf(fmaxf(peaks[0], peaks[1]), fmaxf(peaks[2], peaks[3])));
      float sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += sums[w * kColumns + column] * ptx::exp2(peaks[w] - most);
      faded |= sum < kFaded && has_negatives(first + column);
      store(first + column, most + log2f(sum));
    }
    if (!any(faded)) return;

    // Off the columns' own maxima.
    by_columns(
        tops, products, [](float a, float b) { return fmaxf(a, b); },
        [&](float product, int, int, int) { return product * scale; });
    meet();
    const auto own_top = [&](int column) {
      float most = -INFINITY;
      for (int w = 0; w < kWarps; ++w) most = fmaxf(most, tops[w * kColumns + column]);
      return finite(most);
    };
    by_columns(sums, products, add, [&](float product, int, int, int column) {
      return ptx::exp2(fmaf(product, scale, -own_top(column)));
    });
    meet();
    for (int column = thread; column < kColumns; column += kGroupThreads) {
      float sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += sums[w * kColumns + column];
      store(first + column, own_top(column) + log2f(sum));
    }
    meet();
  }

  __device__ bool has_negatives(int column) const {
    return column < arguments.pairs.passages &&
           !(arguments.pairs.excluded && arguments.pairs.excluded[column]);
  }

  __device__ void store(int column, float logsumexp) const {
    if (column < arguments.pairs.passages && place.part >= 0)
      arguments.column_parts[static_cast<std::int64_t>(place.part) * arguments.pairs.passages + column] =
          logsumexp * kLn2;
  }

  // Of two lanes so far apart, the lower one merges the first values of both, the upper one the others.
  template <int HALF, class Merge>
  __device__ static void halve(float (&values)[16], Merge merge) {
    const bool upper = threadIdx.x & 2 * HALF;
#pragma unroll
    for (int at = 0; at < HALF; ++at) {
      const float low = values[at], high = values[at + HALF];
      values[at] = merge(upper ? high : low, from_lane(upper ? low : high, 2 * HALF));
    }
  }

  // to[warp][column] = a warp's values merged: in a thread over its rows, then between lanes, each of which
  // ends up with two neighbours of every 64 columns.
  template <class Merge, class Value>
  __device__ void by_columns(float* to, const float (&products)[I][J][4], Merge merge, Value value) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % kWarps;
#pragma unroll
    for (int j = 0; j < J; j += 8) {
      float merged[16];
#pragma unroll
      for (int at = 0; at < 16; ++at) {
        const int column = tile.column(0, j + at / 2, at % 2);
#pragma unroll
        for (int i = 0; i < I; ++i)
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const float own = value(products[i][j + at / 2][2 * h + at % 2], i, h, column);
            merged[at] = i + h == 0 ? own : merge(merged[at], own);
          }
      }
      halve<8>(merged, merge);
      halve<4>(merged, merge);
      halve<2>(merged, merge);
      float* place_of_two = to + warp * kColumns + 8 * j + 2 * lane;
      place_of_two[0] = merged[0];
      place_of_two[1] = merged[1];
    }
  }
};

}  // namespace hybridfast::cuda
