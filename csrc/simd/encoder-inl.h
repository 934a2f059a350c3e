// Kernels of an encoder's layers: softmax along a row of attention scores, and dropout. Included by the ISA
// files beside tile-inl.h.
#include <cstddef>
#include <cstdint>

#include "simd/tile.h"
#include "simd/vectors-inl.h"

namespace {

using hybridfast::simd::Dropout;

// All lanes in the first, halving by halving: the same order of additions for a given width.
float lanes_sum(Vector value) {
  float parts[kLanes];
  store(parts, value);
  for (std::size_t width = kLanes / 2; width > 0; width /= 2)
    for (std::size_t i = 0; i < width; ++i) parts[i] += parts[i + width];
  return parts[0];
}

void softmax(float* row, std::size_t first, std::size_t end, std::size_t count, float scale) {
  for (std::size_t c = 0; c < first; ++c) row[c] = kMinusInfinity;
  for (std::size_t c = end; c < count; ++c) row[c] = kMinusInfinity;
  Vector tops = splat(kMinusInfinity);
  for (std::size_t c = 0; c < count; c += kLanes) {
    const Vector value = load(row + c);
    tops = value > tops ? value : tops;
  }
  float parts[kLanes], top = kMinusInfinity;
  store(parts, tops);
  for (std::size_t i = 0; i < kLanes; ++i) top = parts[i] > top ? parts[i] : top;
  Vector sums = splat(0.0f);
  for (std::size_t c = 0; c < count; c += kLanes) {
    const Vector value = scaled_exp<0>((load(row + c) - top) * scale);
    sums += value;
    store(row + c, value);
  }
  const float inverse = 1.0f / lanes_sum(sums);
  for (std::size_t c = 0; c < count; c += kLanes) store(row + c, load(row + c) * inverse);
}

void softmax_gradient(float* shares, const float* kept, float* gradient, std::size_t count, float scale) {
  Vector sums = splat(0.0f);
  for (std::size_t c = 0; c < count; c += kLanes) {
    Vector value = load(gradient + c);
    if (kept) value *= load(kept + c);
    sums += value * load(shares + c);
    store(gradient + c, value);
  }
  const float mean = lanes_sum(sums);
  for (std::size_t c = 0; c < count; c += kLanes) {
    const Vector share = load(shares + c);
    store(gradient + c, (load(gradient + c) - mean) * share * scale);
    if (kept) store(shares + c, share * load(kept + c));
  }
}

constexpr std::size_t kCounters = 16, kHalves = 128;  // of a group: counters, and the 16 bits' of their words

typedef std::uint32_t Words __attribute__((vector_size(HYBRIDFAST_VECTOR_BYTES), may_alias));
typedef std::uint64_t Longs __attribute__((vector_size(HYBRIDFAST_VECTOR_BYTES)));

// Products of the even lanes. GCC makes three instructions of a product of 64 bits where AVX-512 has one.
Longs half_product(Longs value, std::uint32_t factor) {
#ifdef __AVX512F__
  return reinterpret_cast<Longs>(_mm512_maskz_mul_epu32(0xFF, reinterpret_cast<__m512i>(value),
                                                        _mm512_set1_epi64(std::int64_t{factor})));
#else
  return (value & 0xFFFFFFFF) * factor;
#endif
}

// The high and low words of products, lane by lane.
void widening_product(Words value, std::uint32_t factor, Words& high, Words& low) {
  const Longs even = half_product(reinterpret_cast<Longs>(value), factor);
  const Longs odd = half_product(reinterpret_cast<Longs>(value) >> 32, factor);
  low = reinterpret_cast<Words>((even & 0xFFFFFFFF) | (odd << 32));
  high = reinterpret_cast<Words>((even >> 32) | (odd & 0xFFFFFFFF00000000));
}

// What a group's entries are multiplied by: entry 64 h + 16 w + l by half h of word w of Philox4x32-10
// (Salmon et al., 2011) of the counter (16 group + l, head, row).
void multipliers(const Dropout& dropout, std::uint64_t row, std::uint32_t head, std::uint32_t group,
                 float* out) {
  alignas(64) static constexpr std::uint32_t kOrder[kCounters] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                                  8, 9, 10, 11, 12, 13, 14, 15};
  for (std::size_t lane = 0; lane < kCounters; lane += kLanes) {
    Words c[4] = {*reinterpret_cast<const Words*>(kOrder + lane) + group * 16, Words{} + head,
                  Words{} + static_cast<std::uint32_t>(row), Words{} + static_cast<std::uint32_t>(row >> 32)};
    auto key0 = static_cast<std::uint32_t>(dropout.key), key1 = static_cast<std::uint32_t>(dropout.key >> 32);
    for (int round = 0; round < 10; ++round) {
      Words high0, low0, high2, low2;
      widening_product(c[0], 0xD2511F53, high0, low0);
      widening_product(c[2], 0xCD9E8D57, high2, low2);
      c[0] = high2 ^ c[1] ^ key0;
      c[1] = low2;
      c[2] = high0 ^ c[3] ^ key1;
      c[3] = low0;
      key0 += 0x9E3779B9;
      key1 += 0xBB67AE85;
    }
    const Ints threshold = Ints{} + static_cast<std::int32_t>(dropout.threshold);
    const Vector scale = splat(dropout.scale), zero = splat(0.0f);
    for (std::size_t w = 0; w < 4; ++w) {
      const Ints low = reinterpret_cast<Ints>(c[w] & 0xFFFF), high = reinterpret_cast<Ints>(c[w] >> 16);
      store(out + 16 * w + lane, low >= threshold ? scale : zero);
      store(out + 64 + 16 * w + lane, high >= threshold ? scale : zero);
    }
  }
}

void drop(const Dropout& dropout, std::uint64_t row, std::uint32_t head, std::uint64_t first, const float* in,
          std::size_t count, float* out) {
  float group[kHalves];
  for (std::size_t done = 0; done < count;) {
    const std::uint64_t entry = first + done;
    const std::size_t begin = entry % kHalves, room = kHalves - begin;
    const std::size_t here = room < count - done ? room : count - done;
    multipliers(dropout, row, head, static_cast<std::uint32_t>(entry / kHalves), group);
    const float* factors = group + begin;
    const float* from = in ? in + done : nullptr;
    float* to = out + done;
    std::size_t c = 0;
    for (; c + kLanes <= here; c += kLanes)
      store(to + c, from ? load(from + c) * load(factors + c) : load(factors + c));
    for (; c < here; ++c) to[c] = from ? from[c] * factors[c] : factors[c];
    done += here;
  }
}

}  // namespace
