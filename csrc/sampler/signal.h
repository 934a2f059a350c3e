// A counter to wait on: futex on Linux, short sleeps elsewhere (atomic waits have no time limit).
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#endif

namespace hybridfast::sampler {

class Signal {
 public:
  using Nanoseconds = std::chrono::nanoseconds;

  std::uint32_t now() const { return count_.load(std::memory_order_acquire); }

  // Counts without waking those asleep; a raise() must follow in time.
  void note() { count_.fetch_add(1); }

  // Sequentially consistent with wait(): either raise() sees the sleeper, or the sleeper sees the new count.
  void raise() {
    count_.fetch_add(1);
    if (sleepers_.load() == 0) return;
#ifdef __linux__
    syscall(SYS_futex, &count_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#endif
  }

  // Until the count is no longer `seen`, or the time is over, or for no reason: callers look again at what
  // they need.
  void wait(std::uint32_t seen, Nanoseconds limit) {
    sleepers_.fetch_add(1);
#ifdef __linux__
    static_assert(sizeof(count_) == 4);
    const timespec time{static_cast<time_t>(limit.count() / 1'000'000'000),
                        static_cast<long>(limit.count() % 1'000'000'000)};
    syscall(SYS_futex, &count_, FUTEX_WAIT_PRIVATE, seen, &time, nullptr, 0);
#else
    if (now() == seen) std::this_thread::sleep_for(std::min(limit, Nanoseconds(50'000)));
#endif
    sleepers_.fetch_sub(1);
  }

 private:
  std::atomic<std::uint32_t> count_{0}, sleepers_{0};
};

}  // namespace hybridfast::sampler
