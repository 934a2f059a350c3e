// Memory that an op works in.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace hybridfast {

// Floats to be written before they are read, on a cache line's edge. Large blocks come in huge pages where
// the system has them, and one block of moderate size is kept for the next op: to touch fresh pages would
// take a small batch's loss a third of its time.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace();

  // Once. Throws std::bad_alloc.
  void reserve(std::size_t floats);

  // The next `count` floats of those reserved.
  float* take(std::size_t count);

  // What `take` makes of them with what it leaves free up to the next line.
  static std::size_t rounded(std::size_t count) { return (count + 15) / 16 * 16; }

 private:
  struct Block;
  Block* block_ = nullptr;
  std::size_t taken_ = 0;
};

// The same for a part of an op that works in little: a vector would clear its floats.
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(std::size_t count) { reset(count); }
  void reset(std::size_t count) {
    floats_.reset(static_cast<float*>(operator new[](count * sizeof(float), kLine)));
  }
  float* data() { return floats_.get(); }
  float& operator[](std::size_t i) { return floats_[i]; }
  const float& operator[](std::size_t i) const { return floats_[i]; }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(float* floats) const { operator delete[](floats, kLine); }
  };
  std::unique_ptr<float[], Free> floats_;
};

}  // namespace hybridfast
