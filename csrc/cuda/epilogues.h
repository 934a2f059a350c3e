// What becomes of a tile of products while it is in registers.
//
// A group of four warps holds it, in the layout of the matrix instructions: of row 64 i + 16 warp + 8 h +
// lane / 4 and column 8 j + 2 (lane % 4) + c the product is products[i][j][2 h + c].
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/infonce.h"
#include "cuda/ptx.h"

namespace hybridfast::cuda {

constexpr int kGroupThreads = 128, kWarps = 4;
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
// Below this a sum may miss terms, since exp2 ends at 2^-126. Only the lowest temperatures get there.
constexpr float kFaded = 0x1p-96f;

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

// Where rounded values go: a row a query from the sweep's first on, at multiples of 16 bytes.
struct Out {
  unsigned char* data;
  std::int64_t stride;
};

template <Element E, int I, int J>
struct Writer {
  const Out& out;
  const Place& place;
  const Tile<I, J>& tile;

  // Of 32 columns from `first` on, those of a query that the thread has: two of every eight. Together with
  // its neighbours it writes eight next to each other instead.
  __device__ void write(float (&values)[4][2], int i, int h, int first) const {
    std::uint32_t words[4];
#pragma unroll
    for (int at = 0; at < 4; ++at) words[at] = ptx::pack<E>(values[at][0], values[at][1]);
    transpose(words);
    const int column = first + 8 * static_cast<int>(threadIdx.x % 4);
    if (column >= tile.pairs.passages || !tile.counts(i, h)) return;
    const std::int64_t row = tile.row(i, h) - place.sweep.first;
    *reinterpret_cast<uint4*>(out.data + 2 * (row * out.stride + column)) =
        make_uint4(words[0], words[1], words[2], words[3]);
  }

 private:
  // Of four lanes next to each other, lane k gets the k-th word of each, in their order.
  __device__ static void transpose(std::uint32_t (&words)[4]) {
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {
      const bool upper = threadIdx.x & distance;
#pragma unroll
      for (int at = 0; at < 4; ++at) {
        if (at & distance) continue;
        const std::uint32_t lower = words[at], higher = words[at + distance];
        const std::uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? lower : higher, distance);
        words[at] = upper ? got : lower;
        words[at + distance] = upper ? higher : got;
      }
    }
  }
};

struct ExpsArguments {
  Pairs pairs;
  const float *inverse, *wanted;
  Out out;
  float* row_parts;
};

// e^(logit - wanted) of negatives, and 0 of others: rounded and stored, and summed as they were.
template <Element E, class Engine>
struct Exps {
  using Arguments = ExpsArguments;
  static constexpr int I = Engine::kI, J = Engine::kJ, kColumns = Engine::kColumns;
  static constexpr int kSharedFloats = 0;

  const Arguments& arguments;
  const Place& place;
  Tile<I, J> tile;
  float inverse;
  float wanted[I][2], total[I][2] = {};

  __device__ Exps(const Arguments& given, const Place& where)
      : arguments(given), place(where), tile(given.pairs, where), inverse(*given.inverse) {
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) wanted[i][h] = given.wanted[tile.at(i, h)];
  }

  __device__ void take(float (&products)[I][J][4], int first) {
    const bool plain = tile.plain(first);
    const Writer<E, I, J> writer{arguments.out, place, tile};
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int j = 0; j < J; j += 4) {
          float exps[4][2];
#pragma unroll
          for (int at = 0; at < 8; ++at) {
            float& exp = exps[at / 2][at % 2];
            const float product = products[i][j + at / 2][2 * h + at % 2];
            exp = ptx::exp2(fmaf(product, inverse, -wanted[i][h]) * kLog2E);  // the difference rounded once
            if (!plain && tile.kind(i, h, tile.column(first, j + at / 2, at % 2)) != tile.kNegative) exp = 0;
            total[i][h] += exp;
          }
          writer.write(exps, i, h, first + 8 * j);
        }
  }

  __device__ void finish() {
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        tile.store_part(arguments.row_parts, place.split, i, h, sum_of_four(total[i][h]));
  }
};

struct FormedArguments {
  Pairs pairs;
  const float* inverse;
  Weights given;
  Out out;
};

// d(objective)/d(product), rounded and stored.
template <Element E, class Engine, bool COLUMNS>
struct Formed {
  using Arguments = FormedArguments;
  static constexpr int I = Engine::kI, J = Engine::kJ, kColumns = Engine::kColumns;
  static constexpr int kSharedFloats = 0;

  const Arguments& arguments;
  const Place& place;
  Tile<I, J> tile;
  float inverse, scale;
  float row_sum[I][2], row_weight[I][2],
      weight[I][2];  // sums in units of log 2, weights over the temperature

  __device__ Formed(const Arguments& given, const Place& where)
      : arguments(given),
        place(where),
        tile(given.pairs, where),
        inverse(*given.inverse),
        scale(inverse * kLog2E) {
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = tile.at(i, h);
        row_sum[i][h] = given.given.row_sums[row] * kLog2E;
        row_weight[i][h] = given.given.row_weights[row] * inverse;
        weight[i][h] = given.given.weights[row] * inverse;
      }
  }

  __device__ void take(float (&products)[I][J][4], int first) {
    const bool plain = tile.plain(first);
    const Weights& given = arguments.given;
    const Writer<E, I, J> writer{arguments.out, place, tile};
#pragma unroll
    for (int j = 0; j < J; j += 4) {  // 32 columns, of which each lane of four has 8
      float column_sum[4][2], column_weight[4][2];
      if constexpr (COLUMNS) {
#pragma unroll
        for (int at = 0; at < 8; ++at) {
          const int column = min(tile.column(first, j + at / 2, at % 2), arguments.pairs.passages - 1);
          column_sum[at / 2][at % 2] = given.column_sums[column] * kLog2E;
          column_weight[at / 2][at % 2] = given.column_weights[column] * inverse;
        }
      }
#pragma unroll
      for (int i = 0; i < I; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float values[4][2];
#pragma unroll
          for (int n = 0; n < 8; ++n) {
            const int at = n / 2, c = n % 2;
            const float product = products[i][j + at][2 * h + c];
            float& formed = values[at][c];
            formed = row_weight[i][h] * ptx::exp2(fmaf(product, scale, -row_sum[i][h]));
            if constexpr (COLUMNS) {
              const float of_column = ptx::exp2(fmaf(product, scale, -column_sum[at][c]));
              formed = fmaf(column_weight[at][c], of_column, formed);
            }
            if (plain) continue;
            const auto kind = tile.kind(i, h, tile.column(first, j + at, c));
            if (kind != tile.kNegative) formed = 0;
            if (kind != tile.kPositive) continue;
            float off = 1;
            if (arguments.pairs.by_group) {
              const float wanted = (product - given.margin) * scale;
              off = 1 / (1 + ptx::exp2(wanted - row_sum[i][h]));
              if constexpr (COLUMNS) off += 1 / (1 + ptx::exp2(wanted - column_sum[at][c]));
            }
            formed = -weight[i][h] * off;
          }
          writer.write(values, i, h, first + 8 * j);
        }
    }
  }

  __device__ void finish() {}
};

}  // namespace hybridfast::cuda
