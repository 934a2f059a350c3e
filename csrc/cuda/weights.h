// What becomes of a tile of products, second: exponentials and weights, rounded and stored for library
// products.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/infonce.h"
#include "cuda/ptx.h"
#include "cuda/tile.h"

namespace hybridfast::cuda {

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
