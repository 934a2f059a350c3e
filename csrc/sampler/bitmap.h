// Which groups a cell holds: one bit a group, with the position of the i-th set bit in constant time on
// average.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

namespace hybridfast::sampler {

class Bitmap {
 public:
  // Views the bits: position i is bit i % 64 of word i / 64. Those beyond the size must be 0.
  Bitmap(std::uint32_t size, const std::uint64_t* words) : size_(size), words_(words) {
    if (size % 64 && words[size / 64] >> size % 64)
      throw std::invalid_argument("present_LW has bits behind the last group");
    index();
  }

  // The positions that are set in `least` of these or more, which is 1 or 2.
  static Bitmap common(std::uint32_t size, const std::vector<const Bitmap*>& all, std::uint32_t least) {
    std::vector<const std::uint64_t*> words;
    for (const Bitmap* bitmap : all) {
      if (!bitmap->full())
        words.push_back(bitmap->words_);
      else if (least)
        --least;
    }
    Bitmap result(size);
    if (!least) {
      result.count_ = size;
      return result;
    }
    const std::uint32_t count = (size + 63) / 64;
    result.own_ = std::make_unique_for_overwrite<std::uint64_t[]>(count);
    result.words_ = result.own_.get();
    constexpr std::uint32_t kAtOnce = 512;  // words, for the compiler to vectorise
    for (std::uint32_t from = 0; from < count; from += kAtOnce) {
      const std::uint32_t some = std::min(kAtOnce, count - from);
      std::uint64_t once[kAtOnce] = {}, twice[kAtOnce] = {};
      for (const std::uint64_t* of : words) {
        for (std::uint32_t i = 0; i < some; ++i) twice[i] |= once[i] & of[from + i], once[i] |= of[from + i];
      }
      std::copy_n(least == 1 ? once : twice, some, result.own_.get() + from);
    }
    result.index();
    return result;
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
    const std::uint32_t end = std::min(w + kBlock, (size_ + 63) / 64);
    for (std::uint32_t ones; (ones = popcount(words_[w])) <= i; i -= ones) {
      if (++w == end) throw std::runtime_error("present_LW changed after the sampler was made");
    }
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

  explicit Bitmap(std::uint32_t size) : size_(size) {}

  void index() {
    const std::uint32_t words = (size_ + 63) / 64, whole = words / kBlock;
    before_.resize((words + kBlock - 1) / kBlock + 1);
    for (std::uint32_t block = 0; block < whole; ++block) {
      before_[block + 1] = before_[block] + ones_in_block(words_ + std::size_t{block} * kBlock);
    }
    if (whole + 1 < before_.size()) {
      before_.back() = before_[whole];
      for (std::uint32_t w = whole * kBlock; w < words; ++w) before_.back() += popcount(words_[w]);
    }
    count_ = before_.back();
    if (full()) {
      before_.clear();
      return;
    }
    hints_.reserve(count_ / kHint + 1);
    for (std::uint32_t block = 0; block + 1 < before_.size(); ++block) {
      while (hints_.size() * kHint < before_[block + 1]) hints_.push_back(block);
    }
  }

  // Without an instruction that counts bits, which the first x86-64 lack: of eight words together.
  static std::uint32_t ones_in_block(const std::uint64_t* words) {
    std::uint64_t sums = 0;  // of each byte's place in the words; 64 at most
    for (std::uint32_t w = 0; w < kBlock; ++w) {
      std::uint64_t x = words[w];
      x -= x >> 1 & 0x5555555555555555;
      x = (x & 0x3333333333333333) + (x >> 2 & 0x3333333333333333);
      sums += (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F;
    }
    constexpr std::uint64_t kEven = 0x00FF00FF00FF00FF;
    return static_cast<std::uint32_t>(((sums & kEven) + (sums >> 8 & kEven)) * 0x0001000100010001 >> 48);
  }

  std::uint32_t size_, count_ = 0;
  std::unique_ptr<std::uint64_t[]> own_;
  const std::uint64_t* words_ = nullptr;       // not read where all bits are set
  std::vector<std::uint32_t> before_, hints_;  // set bits before a block; the block a hint's set bit lies in
};

}  // namespace hybridfast::sampler
