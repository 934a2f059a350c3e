// A random order of 0..n-1 whose i-th element is computed, not stored.
//
// Above kTable elements: a Feistel network on pairs (left, right) in Z_a x Z_b with a = ceil(sqrt(n)) and
// b = ceil(n / a). Each round adds a keyed hash of one half to the other, modulo that half's size, which is a
// bijection of a * b values; the fewer than a values beyond n are walked over (applied again until one is
// below n), which leaves a bijection of n. Halves of any size, not powers of two, make that walk a rarity
// (less than one in sqrt(n)). At or below kTable elements a Feistel network has too few keys' worth of rounds
// to look random, and a Fisher-Yates table fits into a few kilobytes.
#pragma once

#include <algorithm>
#include <array>
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
    for (std::uint32_t done = 0; done < count; done += kLanes) {
      Lanes left, right;
      std::uint32_t l = (first + done) / right_, r = (first + done) % right_;
      for (std::uint32_t i = 0; i < kLanes; ++i) {
        left[i] = l, right[i] = r;
        if (++r == right_) r = 0, ++l;
      }
      rounds(left, right);
      for (std::uint32_t i = 0; i < std::min(kLanes, count - done); ++i)
        out[done + i] = left[i] * right_ + right[i];
    }
    for (std::uint32_t i = 0; i < count; ++i) {
      while (out[i] >= n_) out[i] = walk(out[i]);
    }
  }

 private:
  static constexpr std::uint32_t kLanes = 32;  // side by side, for the compiler to vectorise
  using Lanes = std::array<std::uint32_t, kLanes>;

  // MurmurHash3's finalizer without its first step.
  static std::uint32_t mix(std::uint32_t x) {
    x *= 0x85EBCA6B;
    x ^= x >> 13;
    x *= 0xC2B2AE35;
    return x ^ (x >> 16);
  }

  // to + f, modulo `size`; both are below it, and it is below 2^31.
  static std::uint32_t add(std::uint32_t to, std::uint32_t from, std::uint32_t key, std::uint32_t size) {
    const std::uint32_t sum = to + scale(mix(from ^ key), size);
    return sum >= size ? sum - size : sum;
  }

  template <class Halves>
  void rounds(Halves& left, Halves& right) const {
    const auto keys = keys_;  // copies, which the stores to the halves cannot change
    const std::uint32_t a = left_, b = right_;
    for (int round = 0; round < kRounds; round += 2) {
      for (std::size_t i = 0; i < left.size(); ++i) left[i] = add(left[i], right[i], keys[round], a);
      for (std::size_t i = 0; i < left.size(); ++i) right[i] = add(right[i], left[i], keys[round + 1], b);
    }
  }

  std::uint32_t walk(std::uint32_t x) const {
    std::array<std::uint32_t, 1> left{x / right_}, right{x % right_};
    rounds(left, right);
    return left[0] * right_ + right[0];
  }

  std::uint32_t n_, left_ = 0, right_ = 0;
  std::array<std::uint32_t, kRounds> keys_{};
  std::vector<std::uint16_t> table_;
};

}  // namespace hybridfast::sampler
