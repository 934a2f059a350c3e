// A random order of 0..n-1 whose i-th element is computed, not stored.
//
// Above kTable elements: a Feistel network on pairs (left, right) in Z_a x Z_b with a = ceil(sqrt(n)) and
// b = ceil(n / a). Each round adds a keyed hash of one half to the other, modulo that half's size, which is a
// bijection of a * b values; the fewer than a values beyond n are walked over (applied again until one is
// below n), which leaves a bijection of n. Halves of any size, not powers of two, make that walk a rarity
// (less than one in sqrt(n)). At or below kTable elements a Feistel network has too few keys' worth of rounds
// to look random, and a Fisher-Yates table fits into a few kilobytes.
#pragma once

#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "sampler/philox.h"

namespace hybridfast::sampler {

class Permutation {
 public:
  static constexpr std::uint32_t kTable = 4096;
  static constexpr int kRounds = 8;

  // Keys come from the words of (a, b, c, 0), (a, b, c, 1), ...
  Permutation(std::uint32_t n, std::uint64_t seed, std::uint32_t a, std::uint32_t b, std::uint32_t c)
      : n_(n) {
    Random random(seed, a, b, c);
    if (n <= kTable) {
      table_.resize(n);
      std::iota(table_.begin(), table_.end(), std::uint16_t{0});
      shuffle(n, random, [this](std::uint32_t i, std::uint32_t j) { std::swap(table_[i], table_[j]); });
      return;
    }
    left_ = static_cast<std::uint32_t>(std::ceil(std::sqrt(static_cast<double>(n))));
    right_ = (n + left_ - 1) / left_;
    for (auto& key : keys_) key = random.bits();
  }

  // The elements at positions first .. first + count - 1, which must lie below n.
  void range(std::uint32_t first, std::uint32_t count, std::uint32_t* out) const {
    if (!table_.empty()) {
      for (std::uint32_t i = 0; i < count; ++i) out[i] = table_[first + i];
      return;
    }
    for (std::uint32_t i = 0; i < count; ++i) out[i] = feistel(first + i);
    for (std::uint32_t i = 0; i < count; ++i) {
      while (out[i] >= n_) out[i] = feistel(out[i]);
    }
  }

 private:
  static std::uint32_t mix(std::uint32_t x) {
    x *= 0x85EBCA6B;
    x ^= x >> 13;
    x *= 0xC2B2AE35;
    return x ^ (x >> 16);
  }

  // a * b may exceed 2^32 - 1 only for n above it; n is a count of groups, which are 32-bit signed.
  std::uint32_t feistel(std::uint32_t x) const {
    std::uint32_t left = x / right_, right = x % right_;
    for (int round = 0; round < kRounds; round += 2) {
      left += scale(mix(right ^ keys_[round]), left_);
      left -= left >= left_ ? left_ : 0;
      right += scale(mix(left ^ keys_[round + 1]), right_);
      right -= right >= right_ ? right_ : 0;
    }
    return left * right_ + right;
  }

  std::uint32_t n_, left_ = 0, right_ = 0;
  std::array<std::uint32_t, kRounds> keys_{};
  std::vector<std::uint16_t> table_;
};

}  // namespace hybridfast::sampler
