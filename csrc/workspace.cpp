#include "workspace.h"

#include <atomic>
#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace hybridfast {

struct alignas(64) Workspace::Block {
  std::size_t size;  // floats that follow
  float* floats() { return reinterpret_cast<float*>(this + 1); }
};

namespace {

constexpr std::size_t kHugePage = 2u << 20;
constexpr std::size_t kKept = 16u << 20;  // bytes of the largest block that waits for the next op

std::atomic<void*> kept{nullptr};

void* allocate(std::size_t bytes) {
  const std::size_t align = bytes < 2 * kHugePage ? 64 : kHugePage;
  bytes = (bytes + align - 1) / align * align;
  void* memory = std::aligned_alloc(align, bytes);
  if (!memory) throw std::bad_alloc();
#ifdef __linux__
  if (align == kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);  // refused where there are none: no matter
#endif
  return memory;
}

}  // namespace

void Workspace::reserve(std::size_t floats) {
  auto* last = static_cast<Block*>(kept.exchange(nullptr));
  if (last && last->size >= floats) {
    block_ = last;
    return;
  }
  std::free(last);
  block_ = new (allocate(sizeof(Block) + floats * sizeof(float))) Block{floats};
}

Workspace::~Workspace() {
  const bool keep = block_ && block_->size * sizeof(float) <= kKept;
  std::free(keep ? kept.exchange(block_) : block_);
}

float* Workspace::take(std::size_t count) {
  float* place = block_->floats() + taken_;
  taken_ += rounded(count);
  return place;
}

}  // namespace hybridfast
