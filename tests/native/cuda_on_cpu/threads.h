// CUDA's threads on a CPU, for tests: every thread of a cluster is a fiber, and they take turns where they
// wait.
//
// Background copies and products are done at once, or with HYBRIDFAST_CPU_LATE=1 as late as the waits allow,
// and threads then take turns in reverse: what reads too early, and what overwrites too early, gives wrong
// numbers.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

namespace cuda_on_cpu {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "cuda_on_cpu: %s\n", what);
  std::abort();
}

inline bool late() {
  const char* setting = std::getenv("HYBRIDFAST_CPU_LATE");
  return setting && *setting == '1';
}

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// Threads that meet: the last to come acts for all.
struct Meeting {
  int arrived = 0;
  unsigned generation = 0;
  void* slots[32] = {};
};

// A barrier of shared memory: a phase ends when nobody and no byte is missing.
struct PhaseBarrier {
  int arrivals = 0, missing = 0, bytes = 0;
  std::uint32_t parity = 0;

  void settle() {
    if (missing != 0 || bytes != 0) return;
    missing = arrivals;
    parity ^= 1;
  }
};

struct Cluster;

struct Block {
  static constexpr std::uint32_t kBase = 1024;  // where a GPU's shared memory begins as well

  Index index;
  unsigned rank = 0;
  std::size_t bytes = 0;
  std::size_t threads = 0;  // that have not ended
  unsigned char* shared = nullptr;
  Cluster* cluster = nullptr;
  std::vector<Meeting> warps;
  Meeting named[16];
  std::map<std::uint32_t, PhaseBarrier> barriers;

  unsigned char* at(std::uint32_t address, std::size_t size) {
    if (address < kBase || address - kBase + size > bytes) fail("outside of shared memory");
    return shared + (address - kBase);
  }

  PhaseBarrier& barrier(std::uint32_t address) {
    at(address, 8);
    if (threads == 0) fail("the block has ended");
    if (address % 8 || !barriers.count(address)) fail("no barrier was made here");
    return barriers[address];
  }
};

struct Fiber {
  ucontext_t context;  // where it begins
  jmp_buf place;       // where it waits
  bool begun = false;
  std::vector<char> stack = std::vector<char>(1 << 17);
  Index thread;
  Block* block = nullptr;
  std::function<bool()> ready;
  bool done = false;
  std::deque<std::vector<std::function<void()>>> copies, products;  // by group, the last one open
};

struct Cluster {
  std::deque<Block> blocks;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::deque<std::function<void()>> boxes;  // copies that no thread waits for in person
  Meeting all;
};

inline Fiber* running = nullptr;
inline jmp_buf scheduler;
inline std::function<void()> body;

inline Fiber& self() {
  return *running;
}
inline int lane() {
  return self().thread.x % 32;
}
inline Meeting& warp() {
  return self().block->warps[self().thread.x / 32];
}

// Jumps, which unlike swapcontext make no system call: fibers share their signal mask.
inline void leave() {
  if (_setjmp(running->place) == 0) _longjmp(scheduler, 1);
}

inline void go_on() {
  if (_setjmp(scheduler) != 0) return;
  if (running->begun) _longjmp(running->place, 1);
  running->begun = true;
  setcontext(&running->context);
}

inline void wait(std::function<bool()> ready) {
  self().ready = std::move(ready);
  leave();
}

template <class Act>
void meet(Meeting& meeting, int expected, Act act) {
  if (++meeting.arrived == expected) {
    act();
    meeting.arrived = 0;
    ++meeting.generation;
    return;
  }
  wait([&meeting, before = meeting.generation] { return meeting.generation != before; });
}

// A warp's instruction: `act` sees what each lane brought.
template <class Brought, class Act>
void together(Brought& brought, Act act) {
  Meeting& meeting = warp();
  meeting.slots[lane()] = &brought;
  meet(meeting, 32,
       [&] { act([&](int of) -> Brought& { return *static_cast<Brought*>(meeting.slots[of]); }); });
}

using Groups = std::deque<std::vector<std::function<void()>>>;

inline void in_background(Groups& groups, std::function<void()> act) {
  if (!late()) return act();
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(std::move(act));
}

inline void commit(Groups& groups) {
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}

inline void settle(Groups& groups, std::size_t pending) {
  for (; groups.size() > pending + 1; groups.pop_front())
    for (const auto& act : groups.front()) act();
}

inline void enter() {
  body();
  running->done = true;
  --running->block->threads;
  leave();
}

inline void prepare(Fiber& fiber, Block& block, unsigned x) {
  fiber.thread.x = x;
  fiber.block = &block;
  fiber.ready = nullptr;
  fiber.done = fiber.begun = false;
  fiber.copies.clear();
  fiber.products.clear();
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.data();
  fiber.context.uc_stack.ss_size = fiber.stack.size();
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
}

// Gives every fiber from `first` on that can go on a turn; false when none can.
inline bool take_turns(Cluster& cluster, std::size_t first, std::size_t count) {
  bool moved = false;
  for (std::size_t i = 0; i < count; ++i) {
    Fiber& fiber = *cluster.fibers[first + (late() ? count - 1 - i : i)];
    if (fiber.done || (fiber.ready && !fiber.ready())) continue;
    moved = true;
    fiber.ready = nullptr;
    running = &fiber;
    go_on();
  }
  return moved;
}

// A block goes on for as long as it can before the next does, so that blocks of a cluster drift apart.
inline void run(Cluster& cluster) {
  const std::size_t blocks = cluster.blocks.size(), threads = cluster.fibers.size() / blocks;
  const auto done = [](const std::unique_ptr<Fiber>& fiber) { return fiber->done; };
  while (!std::all_of(cluster.fibers.begin(), cluster.fibers.end(), done)) {
    bool moved = false;
    for (std::size_t i = 0; i < blocks; ++i)
      while (take_turns(cluster, (late() ? blocks - 1 - i : i) * threads, threads)) moved = true;
    if (moved) continue;
    if (cluster.boxes.empty()) fail("every thread waits");
    const auto box = std::move(cluster.boxes.front());
    cluster.boxes.pop_front();
    box();
  }
}

inline void launch(unsigned blocks, unsigned threads, std::size_t shared_bytes, unsigned cluster_size,
                   std::function<void()> kernel) {
  if (blocks == 0 || blocks % cluster_size) fail("clusters must divide the blocks");
  body = std::move(kernel);
  std::vector<std::vector<unsigned char>> memory(cluster_size);
  Cluster cluster;
  for (unsigned i = 0; i < cluster_size * threads; ++i) cluster.fibers.push_back(std::make_unique<Fiber>());
  for (unsigned first = 0; first < blocks; first += cluster_size) {
    cluster.blocks.clear();
    cluster.all = {};
    for (unsigned rank = 0; rank < cluster_size; ++rank) {
      memory[rank].assign(shared_bytes + 1024, 0xff);  // NaN, whatever the type
      Block& block = cluster.blocks.emplace_back();
      block.index.x = first + rank;
      block.rank = rank;
      block.bytes = shared_bytes;
      block.shared =
          memory[rank].data() + (1024 - reinterpret_cast<std::uintptr_t>(memory[rank].data()) % 1024);
      block.cluster = &cluster;
      block.threads = threads;
      block.warps.resize(threads / 32);
      for (unsigned x = 0; x < threads; ++x) {
        prepare(*cluster.fibers[rank * threads + x], block, x);
      }
    }
    run(cluster);
    if (!cluster.boxes.empty()) fail("a copy is under way after the end");
  }
}

}  // namespace cuda_on_cpu
