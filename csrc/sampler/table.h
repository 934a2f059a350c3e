// A hash table that is emptied for every use: from 64-bit keys to numbers that begin as 0.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace hybridfast::sampler {

class Table {
 public:
  // Empty, with room for so many different keys.
  void reset(std::size_t keys) {
    const std::size_t size = std::bit_ceil(keys + keys / 2 + 2);
    slots_.assign(size, {0, 0});
    mask_ = size - 1;
    value_of_zero_ = 0;
  }
  void prefetch(std::uint64_t key) const { __builtin_prefetch(&slots_[key & mask_], 1); }
  // The key's number, to change; enters the key.
  std::uint64_t& operator[](std::uint64_t key) {
    if (key == 0) return value_of_zero_;
    Slot& slot = slots_[place(key)];
    slot.key = key;
    return slot.value;
  }
  // The key's number, or 0 for one that was never entered.
  std::uint64_t find(std::uint64_t key) const { return key == 0 ? value_of_zero_ : slots_[place(key)].value; }

 private:
  // Open addressing; key 0 marks a free slot, so its own value lives beside them.
  struct Slot {
    std::uint64_t key, value;
  };
  // Where the key is, or the free slot that it would take; more keys than there is room for never end.
  std::size_t place(std::uint64_t key) const {
    std::size_t at = key & mask_;
    while (slots_[at].key != key && slots_[at].key != 0) at = (at + 1) & mask_;
    return at;
  }
  std::vector<Slot> slots_;
  std::uint64_t mask_ = 0;
  std::uint64_t value_of_zero_ = 0;
};

}  // namespace hybridfast::sampler
