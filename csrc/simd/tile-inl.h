// The one body of every kernel. An ISA file sets HYBRIDFAST_VECTOR_BYTES, HYBRIDFAST_ROWS and
// HYBRIDFAST_VECTORS, then includes this file; the compiler's vector types do the rest.
//
// Everything here is in an anonymous namespace and nothing but fixed headers is included: an inline function
// compiled for AVX-512 would otherwise be what the linker may pick for every CPU.
#include <cstddef>
#include <cstdint>

#include "simd/tile.h"
#include "simd/vectors-inl.h"

namespace {

using hybridfast::simd::Operands;

constexpr std::size_t kRows = HYBRIDFAST_ROWS;        // queries in a register block
constexpr std::size_t kVectors = HYBRIDFAST_VECTORS;  // passage vectors in a register block
constexpr std::size_t kColumns = kVectors * kLanes;

constexpr int kHalvings = hybridfast::simd::TileKernels::kHalvings;

// One step of a sum: a float times floats, or a pair of bfloat16 times pairs.
template <bool Pairs>
Vector step(Vector sum, float scalar, Vector vector) {
#ifdef __AVX512BF16__
  if constexpr (Pairs)
    return reinterpret_cast<Vector>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                     reinterpret_cast<__m512bh>(_mm512_set1_ps(scalar)),
                                                     reinterpret_cast<__m512bh>(vector)));
#endif
  return sum + scalar * vector;
}

// Rows x kVectors accumulators stay in registers; a step loads kVectors vectors and broadcasts Rows scalars.
template <bool Pairs, std::size_t Rows>
void multiply_rows(const Operands& operands, float* out, std::size_t stride, bool add) {
  Vector sums[Rows][kVectors];  // cleared by loops: an initialiser would be a memset on the stack
  for (std::size_t r = 0; r < Rows; ++r)
    for (std::size_t v = 0; v < kVectors; ++v) sums[r][v] = splat(0.0f);
  const std::size_t row = operands.row;
  for (std::size_t o = 0; o < operands.blocks; ++o) {
    const float* scalars = operands.scalars + o * operands.block;
    const float* panel = operands.panel + o * operands.panel_block;
    for (std::size_t k = 0; k < operands.depth; ++k, scalars += operands.step, panel += kColumns) {
      Vector vectors[kVectors];
      for (std::size_t v = 0; v < kVectors; ++v) vectors[v] = load(panel + v * kLanes);
      for (std::size_t r = 0; r < Rows; ++r) {
        const float scalar = scalars[r * row];
        for (std::size_t v = 0; v < kVectors; ++v) sums[r][v] = step<Pairs>(sums[r][v], scalar, vectors[v]);
      }
    }
  }
  for (std::size_t r = 0; r < Rows; ++r)
    for (std::size_t v = 0; v < kVectors; ++v) {
      float* place = out + r * stride + v * kLanes;
      store(place, add ? load(place) + sums[r][v] : sums[r][v]);
    }
}

template <bool Pairs, std::size_t Rows>
void multiply_rest(const Operands& operands, std::size_t count, float* out, std::size_t stride, bool add) {
  if (count == Rows)
    multiply_rows<Pairs, Rows>(operands, out, stride, add);
  else if constexpr (Rows > 1)
    multiply_rest<Pairs, Rows - 1>(operands, count, out, stride, add);
}

template <bool Pairs>
void multiply(const Operands& operands, std::size_t count, float* out, std::size_t stride, bool add) {
  Operands rest = operands;
  for (; count >= kRows; count -= kRows, rest.scalars += kRows * operands.row, out += kRows * stride)
    multiply_rows<Pairs, kRows>(rest, out, stride, add);
  if (count > 0) multiply_rest<Pairs, kRows - 1>(rest, count, out, stride, add);
}

void score_tile(const float* query_panel, const float* passage_panel, std::size_t depth, float* scores,
                std::size_t stride) {
  multiply_rows<false, kRows>({query_panel, 1, kRows, passage_panel, depth}, scores, stride, false);
}

#ifdef __AVX512BF16__
// The halves of one register after another, `odd` above, brought side by side.
__m512 interleave(__m512 even, __m512 odd) {
  alignas(64) static constexpr std::uint16_t kPlaces[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                            21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                            11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512bh halves = _mm512_cvtne2ps_pbh(odd, even);
  return _mm512_castsi512_ps(
      _mm512_permutexvar_epi16(_mm512_load_si512(kPlaces), reinterpret_cast<__m512i>(halves)));
}

void pair_rows(const float* even, const float* odd, std::size_t count, float* pairs) {
  std::size_t c = 0;
  for (; c + kLanes <= count; c += kLanes)
    _mm512_storeu_ps(pairs + c, interleave(_mm512_loadu_ps(even + c), _mm512_loadu_ps(odd + c)));
  if (c == count) return;
  const auto rest = static_cast<__mmask16>((1u << (count - c)) - 1);
  _mm512_mask_storeu_ps(
      pairs + c, rest,
      interleave(_mm512_maskz_loadu_ps(rest, even + c), _mm512_maskz_loadu_ps(rest, odd + c)));
}

void pair_neighbours(const float* row, std::size_t count, float* pairs) {
  std::size_t c = 0;
  for (; c + kLanes <= count; c += kLanes)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs + c / 2),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(row + c))));
  if (c == count) return;
  const auto rest = static_cast<__mmask16>((1u << (count - c)) - 1);
  const auto units = static_cast<__mmask8>((1u << (count - c + 1) / 2) - 1);
  const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(rest, row + c));
  _mm256_mask_storeu_epi32(pairs + c / 2, units, reinterpret_cast<__m256i>(rounded));
}

// Rows j and j + 1 of a tile, from column v on: as pairs of rows, and each as pairs of neighbours.
void store_pairs(Vector even, Vector odd, std::size_t j, std::size_t v, float* rows, float* neighbours,
                 std::size_t stride) {
  const auto first = reinterpret_cast<__m512>(even), second = reinterpret_cast<__m512>(odd);
  float* place = neighbours + j * stride + v / 2;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(place),
                      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(first)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(place + stride),
                      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(second)));
  _mm512_storeu_ps(rows + j / 2 * kColumns + v, interleave(first, second));
}

void pair_tile(const float* tile, std::size_t count, float* rows, float* neighbours, std::size_t stride) {
  for (std::size_t j = 0; j < count; j += 2)
    for (std::size_t v = 0; v < kColumns; v += kLanes) {
      const float* place = tile + j * kColumns + v;
      store_pairs(load(place), j + 1 < count ? load(place + kColumns) : splat(0.0f), j, v, rows, neighbours,
                  stride);
    }
}
#endif

void logits(float* tile, std::size_t count, const float* scale, const float* bias,
            const std::int32_t* passage_groups, const std::int32_t* query_groups) {
  for (std::size_t v = 0; v < kColumns; v += kLanes) {
    for (std::size_t j = 0; j < count; ++j) {
      float* place = tile + j * kColumns + v;
      Vector value = load(place) * scale[j] + bias[j];
      if (passage_groups) {
        const Ints same = *reinterpret_cast<const IntsU*>(query_groups + v) == passage_groups[j];
        value = same ? splat(kMinusInfinity) : value;
      }
      store(place, value);
    }
  }
}

// One row of `exponentials` and its column sums.
struct Exponentials {
  Vector shift, top, total;

  explicit Exponentials(const float* shifts)
      : shift(load(shifts)), top(splat(kMinusInfinity)), total(splat(0.0f)) {}

  Vector operator()(Vector logit) {
    const Vector most = splat(80.0f + kHalvings * 0.69314718f);
    top = logit > top ? logit : top;
    const Vector exponent = logit - shift;
    const Vector value = scaled_exp<kHalvings>(most < exponent ? most : exponent);
    total += value;
    return value;
  }
};

void exponentials(const float* tile, std::size_t count, const float* shift, const float* scale, float* max,
                  float* sum, float* out) {
  for (std::size_t v = 0; v < kColumns; v += kLanes) {
    Exponentials column(shift + v);
    for (std::size_t j = 0; j < count; ++j) {
      const std::size_t place = j * kColumns + v;
      store(out + place, column(load(tile + place)) * scale[j]);
    }
    store(max + v, column.top);
    store(sum + v, column.total);
  }
}

#ifdef __AVX512BF16__
void paired_exponentials(const float* tile, std::size_t count, const float* shift, const float* scale,
                         float* max, float* sum, float* rows, float* neighbours, std::size_t stride) {
  for (std::size_t v = 0; v < kColumns; v += kLanes) {
    Exponentials column(shift + v);
    for (std::size_t j = 0; j < count; j += 2) {
      const float* place = tile + j * kColumns + v;
      const Vector even = column(load(place)) * scale[j];
      const Vector odd = j + 1 < count ? column(load(place + kColumns)) * scale[j + 1] : splat(0.0f);
      store_pairs(even, odd, j, v, rows, neighbours, stride);
    }
    store(max + v, column.top);
    store(sum + v, column.total);
  }
}
#endif

void weigh(const float* tile, std::size_t count, const float* scale, const float* shift, const float* weight,
           const float* row_shift, const float* row_weight, float* out) {
  for (std::size_t v = 0; v < kColumns; v += kLanes) {
    const Vector shifts = load(shift + v), weights = load(weight + v);
    for (std::size_t j = 0; j < count; ++j) {
      const std::size_t place = j * kColumns + v;
      const Vector logit = load(tile + place);
      const Vector sum = weights * scaled_exp<kHalvings>(logit - shifts) +
                         row_weight[j] * scaled_exp<kHalvings>(logit - row_shift[j]);
      store(out + place, sum * scale[j]);
    }
  }
}

void add_rows(const float* tile, std::size_t count, std::size_t columns, float* max, float* sum) {
  for (std::size_t j = 0; j < count; ++j) {
    float padded[kColumns];
    for (std::size_t c = 0; c < kColumns; ++c)
      padded[c] = c < columns ? tile[j * kColumns + c] : kMinusInfinity;
    Vector tops = load(padded);
    for (std::size_t v = kLanes; v < kColumns; v += kLanes) {
      const Vector value = load(padded + v);
      tops = value > tops ? value : tops;
    }
    float top = max[j];
    for (std::size_t c = 0; c < kLanes; ++c) top = tops[c] > top ? tops[c] : top;
    const float shift = top == kMinusInfinity ? 0.0f : top;
    Vector total = splat(0.0f);
    for (std::size_t v = 0; v < kColumns; v += kLanes) total += scaled_exp<0>(load(padded + v) - shift);
    float add = 0.0f;
    for (std::size_t c = 0; c < kLanes; ++c) add += total[c];
    sum[j] = sum[j] * scaled_exp<0>(splat(max[j] - shift))[0] + add;
    max[j] = top;
  }
}

template <std::size_t Levels>
void survey_levels(const float* tile, std::size_t count, std::size_t step, const float* factor,
                   const float* first, float* dropped) {
  for (std::size_t v = 0; v < kColumns; v += kLanes) {
    const Vector factors = load(factor + v), bounds = load(first + v);
    Vector sums[Levels];
    for (std::size_t l = 0; l < Levels; ++l) sums[l] = load(dropped + l * kColumns + v);
    for (std::size_t j = 0; j < count; j += step) {
      const Vector share = load(tile + j * kColumns + v) * factors;
      Vector bound = bounds;
      for (std::size_t l = 0; l < Levels; ++l, bound *= 2)
        sums[l] += share >= bound ? splat(0.0f) : share;  // NaN counts as dropped, so that it is seen
    }
    for (std::size_t l = 0; l < Levels; ++l) store(dropped + l * kColumns + v, sums[l]);
  }
}

void survey(const float* tile, std::size_t count, std::size_t step, const float* factor, const float* first,
            std::size_t levels, float* dropped) {
  using Kernels = hybridfast::simd::TileKernels;
  if (levels == Kernels::kLevels)
    survey_levels<Kernels::kLevels>(tile, count, step, factor, first, dropped);
  else
    survey_levels<Kernels::kNearLevels>(tile, count, step, factor, first, dropped);
}

std::size_t select(const float* tile, std::size_t count, const float* threshold, std::size_t limit,
                   std::uint32_t* places) {
  std::size_t found = 0;
  for (std::size_t j = 0; j < count && found <= limit; ++j) {
    const float* row = tile + j * kColumns;
#ifdef __AVX512F__
    for (std::size_t v = 0; v < kColumns; v += kLanes) {
      const __mmask16 kept =
          _mm512_cmp_ps_mask(_mm512_loadu_ps(row + v), _mm512_loadu_ps(threshold + v), _CMP_GE_OQ);
      const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      const __m512i place = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(j * kColumns + v)));
      _mm512_storeu_si512(places + found, _mm512_maskz_compress_epi32(kept, place));
      found += static_cast<std::size_t>(__builtin_popcount(kept));
    }
#else
    for (std::size_t c = 0; c < kColumns; ++c) {
      places[found] = static_cast<std::uint32_t>(j * kColumns + c);
      found += row[c] >= threshold[c];
    }
#endif
  }
  return found;
}

template <std::size_t Vectors>
void combine_span(const float* rows, std::size_t dim, const std::uint32_t* index, const float* weight,
                  std::size_t count, float* out, bool add) {
  Vector sums[Vectors];
  for (std::size_t v = 0; v < Vectors; ++v) sums[v] = add ? load(out + v * kLanes) : splat(0.0f);
  for (std::size_t k = 0; k < count; ++k) {
    const float* row = rows + index[k] * dim;
    for (std::size_t v = 0; v < Vectors; ++v) sums[v] += weight[k] * load(row + v * kLanes);
  }
  for (std::size_t v = 0; v < Vectors; ++v) store(out + v * kLanes, sums[v]);
}

void combine_rows(const float* rows, std::size_t dim, const std::uint32_t* index, const float* weight,
                  std::size_t count, float* out, bool add) {
  constexpr std::size_t kSpan = 12;  // accumulators that fit into 16 registers
  std::size_t d = 0;
  for (; d + kSpan * kLanes <= dim; d += kSpan * kLanes)
    combine_span<kSpan>(rows + d, dim, index, weight, count, out + d, add);
  for (; d + kLanes <= dim; d += kLanes) combine_span<1>(rows + d, dim, index, weight, count, out + d, add);
  for (; d < dim; ++d) {
    float sum = add ? out[d] : 0.0f;
    for (std::size_t k = 0; k < count; ++k) sum += weight[k] * rows[index[k] * dim + d];
    out[d] = sum;
  }
}

#ifdef __AVX512BF16__
// A bfloat16 is the upper half of a float: a register of pairs holds 16 even dimensions, once shifted, and 16
// odd ones, once masked. They are summed apart and brought side by side at the end.
template <std::size_t Groups>
void combine_pairs_span(const float* pairs, std::size_t stride, const std::uint32_t* index,
                        const float* weight, std::size_t count, float* out, bool add) {
  Vector even[Groups], odd[Groups];
  for (std::size_t g = 0; g < Groups; ++g) even[g] = odd[g] = splat(0.0f);
  for (std::size_t k = 0; k < count; ++k) {
    const float* row = pairs + index[k] * stride;
    for (std::size_t g = 0; g < Groups; ++g) {
      const Ints both = *reinterpret_cast<const IntsU*>(row + g * kLanes);
      even[g] += weight[k] * reinterpret_cast<Vector>(both << 16);
      odd[g] += weight[k] * reinterpret_cast<Vector>(both & ~0xffff);
    }
  }
  const Ints low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}, high = low + 8;
  for (std::size_t g = 0; g < Groups; ++g) {
    float* place = out + 2 * g * kLanes;
    const Vector first = __builtin_shuffle(even[g], odd[g], low);
    const Vector second = __builtin_shuffle(even[g], odd[g], high);
    store(place, add ? load(place) + first : first);
    store(place + kLanes, add ? load(place + kLanes) + second : second);
  }
}

void combine_pairs(const float* pairs, std::size_t stride, std::size_t dim, const std::uint32_t* index,
                   const float* weight, std::size_t count, float* out, bool add) {
  constexpr std::size_t kSpan = 12, kDims = 2 * kLanes;  // 24 of 32 registers
  std::size_t d = 0;
  for (; d + kSpan * kDims <= dim; d += kSpan * kDims)
    combine_pairs_span<kSpan>(pairs + d / 2, stride, index, weight, count, out + d, add);
  for (; d + kDims <= dim; d += kDims)
    combine_pairs_span<1>(pairs + d / 2, stride, index, weight, count, out + d, add);
  if (d == dim) return;
  float rest[kDims];
  combine_pairs_span<1>(pairs + d / 2, stride, index, weight, count, rest, false);
  for (std::size_t c = 0; d + c < dim; ++c) out[d + c] = rest[c] + (add ? out[d + c] : 0.0f);
}
#endif

Doubles load_doubles(const float* place) {
  return __builtin_convertvector(*reinterpret_cast<const HalfU*>(place), Doubles);
}

double dot(const float* a, const float* b, std::size_t count) {
  constexpr std::size_t kSums = 4, kHalf = kLanes / 2;
  Doubles sums[kSums];
  for (std::size_t s = 0; s < kSums; ++s) sums[s] = Doubles{};
  std::size_t d = 0;
  for (; d + kSums * kHalf <= count; d += kSums * kHalf)
    for (std::size_t s = 0; s < kSums; ++s)
      sums[s] += load_doubles(a + d + s * kHalf) * load_doubles(b + d + s * kHalf);
  const Doubles total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  double sum = 0;
  for (std::size_t c = 0; c < kHalf; ++c) sum += total[c];
  for (; d < count; ++d) sum += static_cast<double>(a[d]) * b[d];
  return sum;
}

void project(float* grad, const float* row, float radial, float factor, std::size_t count) {
  std::size_t d = 0;
  for (; d + kLanes <= count; d += kLanes) {
    const Vector value = (load(grad + d) - load(row + d) * radial) * factor;
    store(grad + d, value);
  }
  for (; d < count; ++d) grad[d] = (grad[d] - row[d] * radial) * factor;
}

// log2(kLanes) rounds, each of which interleaves the first half of the rows with the second.
void transpose_square(const float* in, std::size_t in_stride, float* out, std::size_t out_stride) {
  constexpr std::size_t kHalf = kLanes / 2;
  Ints low{}, high{};
  for (std::size_t c = 0; c < kLanes; ++c) {
    low[c] = static_cast<std::int32_t>(c / 2 + c % 2 * kLanes);
    high[c] = static_cast<std::int32_t>(c / 2 + c % 2 * kLanes + kHalf);
  }
  Vector rows[kLanes], mixed[kLanes];
  for (std::size_t r = 0; r < kLanes; ++r) rows[r] = load(in + r * in_stride);
  for (std::size_t round = 1; round < kLanes; round *= 2) {
    for (std::size_t r = 0; r < kHalf; ++r) {
      mixed[2 * r] = __builtin_shuffle(rows[r], rows[r + kHalf], low);
      mixed[2 * r + 1] = __builtin_shuffle(rows[r], rows[r + kHalf], high);
    }
    for (std::size_t r = 0; r < kLanes; ++r) rows[r] = mixed[r];
  }
  for (std::size_t r = 0; r < kLanes; ++r) store(out + r * out_stride, rows[r]);
}

void transpose(const float* in, std::size_t in_stride, std::size_t rows, std::size_t columns, float* out,
               std::size_t out_stride) {
  const std::size_t whole_rows = rows / kLanes * kLanes, whole_columns = columns / kLanes * kLanes;
  for (std::size_t c = 0; c < whole_columns; c += kLanes)
    for (std::size_t r = 0; r < whole_rows; r += kLanes)
      transpose_square(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride);
  for (std::size_t c = 0; c < columns; ++c)
    for (std::size_t r = c < whole_columns ? whole_rows : 0; r < rows; ++r)
      out[c * out_stride + r] = in[r * in_stride + c];
}

}  // namespace
