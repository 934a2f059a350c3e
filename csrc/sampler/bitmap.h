// Which groups a cell holds: one bit a group, with the position of the i-th set bit in constant time on
// average.
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace hybridfast::sampler {

class Bitmap {
 public:
  explicit Bitmap(std::uint32_t size) : size_(size), words_((size + 63) / 64) {}

  // Positions 64 w .. 64 w + 63; those beyond the size must be 0.
  void set_word(std::uint32_t w, std::uint64_t bits) { words_[w] = bits; }

  // Call once, after the last set_word().
  void index() {
    std::uint32_t ones = 0;
    for (std::size_t w = 0; w < words_.size(); ++w) {
      if (w % kBlock == 0) before_.push_back(ones);
      ones += static_cast<std::uint32_t>(std::popcount(words_[w]));
    }
    count_ = ones;
    before_.push_back(ones);
    for (std::uint32_t block = 0; block + 1 < before_.size(); ++block) {
      while (hints_.size() * kHint < before_[block + 1]) hints_.push_back(block);
    }
    if (full()) words_.clear(), before_.clear(), hints_.clear();
  }

  // The positions set in both; neither may be full().
  Bitmap intersect(const Bitmap& other) const {
    Bitmap both(size_);
    for (std::size_t w = 0; w < words_.size(); ++w) both.words_[w] = words_[w] & other.words_[w];
    both.index();
    return both;
  }

  std::uint32_t count() const { return count_; }
  bool full() const { return count_ == size_; }

  // How many set bits lie below position i.
  std::uint32_t rank(std::uint32_t i) const {
    if (full()) return i;
    std::uint32_t ones = before_[i / (64 * kBlock)];
    for (std::uint32_t w = i / (64 * kBlock) * kBlock; w < i / 64; ++w) ones += popcount(words_[w]);
    return i % 64 ? ones + popcount(words_[i / 64] << (64 - i % 64)) : ones;
  }

  // The position of the i-th set bit, i < count().
  std::uint32_t select(std::uint32_t i) const {
    if (full()) return i;
    std::uint32_t block = hints_[i / kHint];
    while (before_[block + 1] <= i) ++block;
    i -= before_[block];
    std::uint32_t w = block * kBlock;
    for (std::uint32_t ones; (ones = popcount(words_[w])) <= i; ++w) i -= ones;
    std::uint64_t bits = words_[w];
    std::uint32_t shift = 0;
    for (std::uint32_t half = 32; half; half /= 2) {
      const std::uint32_t ones = popcount(bits >> shift & ((std::uint64_t{1} << half) - 1));
      if (i >= ones) i -= ones, shift += half;
    }
    return w * 64 + shift;
  }

 private:
  static constexpr std::uint32_t kBlock = 8;   // words to a count
  static constexpr std::uint32_t kHint = 512;  // set bits to a hint
  static std::uint32_t popcount(std::uint64_t x) { return static_cast<std::uint32_t>(std::popcount(x)); }

  std::uint32_t size_, count_ = 0;
  std::vector<std::uint64_t> words_;
  std::vector<std::uint32_t> before_, hints_;  // set bits before a block; the block a hint's set bit lies in
};

}  // namespace hybridfast::sampler
