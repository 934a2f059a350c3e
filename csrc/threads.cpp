#include "threads.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

#include "pause.h"

namespace hybridfast {
namespace {

// Looks at what another thread is about to do before sleeping until it is done: some 50 us, about what a
// sleep and a wake-up cost. An op's parallel loops follow each other faster than that.
constexpr int kLooks = 2000;

template <typename Done>
void look_for(Done done) {
  for (int look = 0; look < kLooks && !done(); ++look) pause();
}

// One parallel_for call. Blocks are handed out by `next`; a worker that joins late finds none left and
// leaves.
struct Job {
  Job(std::size_t block_count, const std::function<void(std::size_t)>& block_body)
      : blocks(block_count), body(block_body) {}

  void work() {
    for (;;) {
      const std::size_t block = next.fetch_add(1, std::memory_order_relaxed);
      if (block >= blocks) return;
      try {
        body(block);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (!error) error = std::current_exception();
        next.store(blocks, std::memory_order_relaxed);  // start no further block
      }
    }
  }

  const std::size_t blocks;
  const std::function<void(std::size_t)>& body;
  std::atomic<std::size_t> next{0};
  std::mutex mutex;
  std::condition_variable idle;
  std::atomic<int> running{0};  // workers inside work(); written under mutex
  bool closed = false;          // the caller is leaving; guarded by mutex
  std::exception_ptr error;
};

class Pool {
 public:
  void run(std::size_t blocks, int threads, const std::function<void(std::size_t)>& body) {
    const std::size_t helpers = std::min<std::size_t>(threads - 1, blocks - 1);
    const auto job = std::make_shared<Job>(blocks, body);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      while (workers_ < helpers) {
        std::thread([this] { serve(); }).detach();
        ++workers_;
      }
      queue_.insert(queue_.end(), helpers, job);
      queued_.store(queue_.size(), std::memory_order_relaxed);
    }
    for (std::size_t i = 0; i < helpers; ++i) wake_.notify_one();
    job->work();
    look_for([&] { return job->running.load(std::memory_order_relaxed) == 0; });
    std::unique_lock<std::mutex> lock(job->mutex);
    job->closed = true;
    job->idle.wait(lock, [&] { return job->running == 0; });
    if (job->error) std::rethrow_exception(job->error);
  }

 private:
  void serve() {
    for (;;) {
      std::shared_ptr<Job> job;
      look_for([this] { return queued_.load(std::memory_order_relaxed) > 0; });
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return !queue_.empty(); });
        job = std::move(queue_.front());
        queue_.pop_front();
        queued_.store(queue_.size(), std::memory_order_relaxed);
      }
      {
        const std::lock_guard<std::mutex> lock(job->mutex);
        if (job->closed) continue;  // its body is gone with the caller's stack
        ++job->running;
      }
      job->work();
      const std::lock_guard<std::mutex> lock(job->mutex);
      if (--job->running == 0) job->idle.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::shared_ptr<Job>> queue_;
  std::atomic<std::size_t> queued_{0};  // queue_.size(), to look at without the mutex
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
// that neither building nor importing needs it.
using OpenMp = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

OpenMp torch_threads() {
  static const auto found = reinterpret_cast<OpenMp>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return forked.load(std::memory_order_relaxed) ? nullptr : found;
}

}  // namespace

void parallel_for(std::size_t blocks, int threads, const std::function<void(std::size_t)>& body) {
  if (threads <= 1 || blocks <= 1) {
    for (std::size_t block = 0; block < blocks; ++block) body(block);
    return;
  }
  if (const OpenMp run = torch_threads()) {
    Job job(blocks, body);
    // Always as many as torch uses: a smaller team would end the threads left over.
    run([](void* data) { static_cast<Job*>(data)->work(); }, &job, static_cast<unsigned>(threads), 0);
    if (job.error) std::rethrow_exception(job.error);
    return;
  }
  current_pool().run(blocks, threads, body);
}

}  // namespace hybridfast
