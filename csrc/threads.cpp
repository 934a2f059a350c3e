#include "threads.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "pause.h"

namespace hybridfast {
namespace {

// Looks at what another thread is about to do for some 50 us, then lets others have the core between looks.
class Patience {
 public:
  void look() {
    if (++looks_ < 2000)
      pause();
    else
      std::this_thread::yield();
  }

 private:
  int looks_ = 0;
};

// The threads of one op: a leader, who runs the op, and helpers, who take blocks of its loops. The leader
// waits for blocks that were taken, never for a helper that has none.
class Team {
 public:
  void lead(std::size_t blocks, const std::function<void(std::size_t)>& body) {
    blocks_ = blocks;
    body_ = &body;
    done_.store(0, std::memory_order_relaxed);
    const std::uint64_t loop = (left_.load(std::memory_order_relaxed) >> 32) + 1;
    left_.store(loop << 32 | blocks, std::memory_order_release);
    while (take()) {
    }
    for (Patience patience; done_.load(std::memory_order_acquire) < blocks;) patience.look();
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  void help() {
    for (Patience patience; !closed_.load(std::memory_order_acquire);)
      if (take())
        patience = {};
      else
        patience.look();
  }

  void close() { closed_.store(true, std::memory_order_release); }

 private:
  // Runs one block, if one is left. To take it is to change `left_`, whose upper half tells this loop from
  // the next: while a block of a loop is taken and not done, the loop's other members stand.
  bool take() {
    std::uint64_t left = left_.load(std::memory_order_relaxed);
    do {
      if (static_cast<std::uint32_t>(left) == 0) return false;
    } while (
        !left_.compare_exchange_weak(left, left - 1, std::memory_order_acquire, std::memory_order_relaxed));
    try {
      (*body_)(blocks_ - static_cast<std::uint32_t>(left));
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
    done_.fetch_add(1, std::memory_order_release);
    return true;
  }

  std::atomic<std::uint64_t> left_{0};  // which loop << 32 | its blocks that nobody has taken
  std::atomic<std::size_t> done_{0};
  std::atomic<bool> closed_{false};
  std::size_t blocks_ = 0;
  const std::function<void(std::size_t)>* body_ = nullptr;
  std::mutex mutex_;
  std::exception_ptr error_;  // written under mutex_ before a block is done, read after all are
};

// Threads that help one team after another.
class Pool {
 public:
  void run(int threads, const std::function<void(Team&)>& body) {
    const auto helpers = static_cast<std::size_t>(threads - 1);
    const auto team = std::make_shared<Team>();  // a helper may come late and find it closed
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      while (workers_ < helpers) {
        std::thread([this] { serve(); }).detach();
        ++workers_;
      }
      queue_.insert(queue_.end(), helpers, team);
    }
    for (std::size_t i = 0; i < helpers; ++i) wake_.notify_one();
    body(*team);
    team->close();
  }

 private:
  void serve() {
    for (;;) {
      std::shared_ptr<Team> team;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return !queue_.empty(); });
        team = std::move(queue_.front());
        queue_.pop_front();
      }
      team->help();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<Team>> queue_;
  std::size_t workers_ = 0;
};

// Never destroyed: its detached workers may outlive main.
std::atomic<Pool*> pool{nullptr};

Pool& current_pool() {
  Pool* existing = pool.load(std::memory_order_acquire);
  if (existing) return *existing;
  auto* fresh = new Pool;
  if (pool.compare_exchange_strong(existing, fresh)) return *fresh;
  delete fresh;
  return *existing;
}

// A forked child has none of its parent's threads and perhaps a locked mutex: it starts a pool of its own and
// leaves what it inherited alone. Set up as the module is loaded, for torch may fork before we first run.
std::atomic<bool> forked{false};
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] {
  forked.store(true);
  pool.store(nullptr);
});

// The OpenMP runtime that torch has brought into the process, if it has: after each of torch's parallel loops
// its threads spin for milliseconds, and threads of our own would wait for their cores. Looked up by name, so
// that neither building nor importing needs it; LLVM's runtime has GCC's entry point too.
using OpenMp = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

OpenMp torch_threads() {
  static const auto found = reinterpret_cast<OpenMp>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return forked.load(std::memory_order_relaxed) ? nullptr : found;
}

// Always as many threads as torch uses: a smaller team would end those left over.
void run_on_torch(OpenMp run, int threads, const std::function<void(Team&)>& body) {
  struct Shared {
    const std::function<void(Team&)>& body;
    std::thread::id leader;
    Team team;
  } shared{body, std::this_thread::get_id(), {}};
  const auto enter = [](void* data) {
    auto& [lead, leader, team] = *static_cast<Shared*>(data);
    if (std::this_thread::get_id() != leader) return team.help();
    lead(team);
    team.close();
  };
  run(enter, &shared, static_cast<unsigned>(threads), 0);
}

thread_local Team* at_hand = nullptr;

}  // namespace

void with_threads(int threads, const std::function<void()>& body) {
  if (threads <= 1 || at_hand) return body();
  std::exception_ptr error;  // none may pass through OpenMP's frames
  const auto lead = [&](Team& team) {
    at_hand = &team;
    try {
      body();
    } catch (...) {
      error = std::current_exception();
    }
    at_hand = nullptr;
  };
  if (const OpenMp run = torch_threads())
    run_on_torch(run, threads, lead);
  else
    current_pool().run(threads, lead);
  if (error) std::rethrow_exception(error);
}

void parallel_for(std::size_t blocks, int threads, const std::function<void(std::size_t)>& body) {
  if (threads <= 1 || blocks <= 1) {
    for (std::size_t block = 0; block < blocks; ++block) body(block);
    return;
  }
  with_threads(threads, [&] { at_hand->lead(blocks, body); });
}

}  // namespace hybridfast
