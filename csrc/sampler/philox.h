// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
// (2011).
#pragma once

#include <array>
#include <cstdint>
#include <utility>

namespace hybridfast::sampler {

using Counter = std::array<std::uint32_t, 4>;

inline Counter philox(Counter counter, std::uint64_t seed) {
  auto key0 = static_cast<std::uint32_t>(seed);
  auto key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    // Multipliers and, below, what the key grows by: the paper's.
    const std::uint64_t a = std::uint64_t{0xD2511F53} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key0, static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key1, static_cast<std::uint32_t>(a)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

// philox of (a, b, first + i, high) for i below kLanes, words[w][i]; side by side, for the compiler to
// vectorise.
constexpr std::uint32_t kPhiloxLanes = 16;
using PhiloxLanes = std::array<std::array<std::uint32_t, kPhiloxLanes>, 4>;

inline PhiloxLanes philox_lanes(std::uint32_t a, std::uint32_t b, std::uint64_t first, std::uint64_t seed) {
  PhiloxLanes c;
  for (std::uint32_t i = 0; i < kPhiloxLanes; ++i) {
    c[0][i] = a, c[1][i] = b;
    c[2][i] = static_cast<std::uint32_t>(first + i);
    c[3][i] = static_cast<std::uint32_t>((first + i) >> 32);
  }
  auto key0 = static_cast<std::uint32_t>(seed);
  auto key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (std::uint32_t i = 0; i < kPhiloxLanes; ++i) {
      const std::uint64_t x = std::uint64_t{0xD2511F53} * c[0][i];
      const std::uint64_t y = std::uint64_t{0xCD9E8D57} * c[2][i];
      c[0][i] = static_cast<std::uint32_t>(y >> 32) ^ c[1][i] ^ key0;
      c[1][i] = static_cast<std::uint32_t>(y);
      c[2][i] = static_cast<std::uint32_t>(x >> 32) ^ c[3][i] ^ key1;
      c[3][i] = static_cast<std::uint32_t>(x);
    }
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return c;
}

// [0, n) from 32 random bits; a value's probability is off by less than n / 2^32 of itself.
inline std::uint32_t scale(std::uint32_t bits, std::uint32_t n) {
  return static_cast<std::uint32_t>((std::uint64_t{bits} * n) >> 32);
}

// [0, 1) from 53 random bits.
inline double unit(std::uint32_t high, std::uint32_t low) {
  return static_cast<double>((std::uint64_t{high} << 21) | (low >> 11)) * 0x1p-53;
}

// What a draw is for; the first word of the counter, together with the cell it belongs to.
enum class Purpose : std::uint32_t {
  kStream,
  kDeal,
  kOrder,
  kLanguages,
  kShuffle,
  kPartner,
  kNegatives,
  kSecond
};

inline std::uint32_t word(Purpose purpose, std::uint32_t cell = 0) {
  // Three bits: no room for one more purpose. A further draw takes cells that one of these does not use.
  return static_cast<std::uint32_t>(purpose) | (cell << 3);
}

// The words of counters (a, b, c, 0), (a, b, c, 1), ... one after the other.
class Random {
 public:
  Random(std::uint64_t seed, std::uint32_t a, std::uint32_t b, std::uint32_t c)
      : seed_(seed), counter_{a, b, c, 0} {}

  std::uint32_t bits() {
    if (used_ == 4) {
      words_ = philox(counter_, seed_);
      ++counter_[3];
      used_ = 0;
    }
    return words_[used_++];
  }

  std::uint32_t below(std::uint32_t n) { return scale(bits(), n); }

  double unit() {
    const std::uint32_t high = bits();
    return sampler::unit(high, bits());
  }

 private:
  std::uint64_t seed_;
  Counter counter_;
  Counter words_{};
  int used_ = 4;
};

// Fisher-Yates, through swap(i, j).
template <class Swap>
void shuffle(std::uint32_t n, Random& random, Swap swap) {
  for (std::uint32_t i = n; i > 1; --i) swap(i - 1, random.below(i));
}

}  // namespace hybridfast::sampler
