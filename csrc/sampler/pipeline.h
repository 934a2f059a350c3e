// Worker threads that build an epoch's batches ahead of the consumer, and a consumer that never depends on
// them.
//
// What is guaranteed, and why:
// - The consumer's next() is wait-free apart from one wait with a time limit and from building: it takes no
//   lock, waits for a late batch at most `patience` (the usual building time, or 50 us), and then builds that
//   batch itself. Batches are pure, so both results are equal; one compare-and-swap decides which is
//   delivered and the other is recycled. Workers stopped for ever, at any line of this code, therefore delay
//   each batch by at most patience and one building.
// - Workers do not wait for one another: each builds the tickets it drew, and waits only for the consumer to
//   make room. With room, the ring is lock-free: a worker that publishes loses only to another that has
//   published.
// - Outside of it: the memory allocator's locks (touched when a batch outgrows all its buffer held before, so
//   not in the steady state), page faults on the corpus, and close(), which joins the workers and so waits
//   for what they are building.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "sampler/gather.h"
#include "sampler/ring.h"
#include "sampler/signal.h"

namespace hybridfast::sampler {

// Counts of all of a sampler's pipelines.
struct Stats {
  using Count = std::atomic<std::uint64_t>;
  explicit Stats(std::size_t languages) : query_languages(languages), passage_languages(languages) {}

  Count batches{0};    // delivered
  Count helped{0};     // of them, built by the consumer
  Count late{0};       // of them, not ready when asked for
  Count waits{0};      // times the consumer slept
  Count wait_ns{0};    // from asking for a late batch to having it
  Count discarded{0};  // built twice
  Count flagged{0};    // rows
  Count tokens{0}, padding{0};
  Count modes[4] = {};                                    // batches of each Mode
  std::vector<Count> query_languages, passage_languages;  // rows
};

using BatchPool = Pool<Batch>;

class Pipeline {
 public:
  using Build = std::function<void(std::uint32_t index, Batch&)>;

  // Delivers batches first .. end - 1. `make_build` is called once for each thread, in that thread.
  Pipeline(std::function<Build()> make_build, std::uint32_t first, std::uint32_t end, std::size_t threads,
           std::size_t prefetch, std::shared_ptr<BatchPool> pool, std::shared_ptr<Stats> stats);
  ~Pipeline();
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  // The next batch; null after the last. Rethrows what building it threw. One thread at a time.
  std::shared_ptr<Batch> next();

  // Ends and joins the workers; next() returns null from then on. Not while another thread is in next().
  void close();

 private:
  using Clock = std::chrono::steady_clock;

  void work(std::size_t builder);
  std::unique_ptr<Batch> spare();
  void run(Build& build, std::uint64_t ticket, Batch& batch);
  std::unique_ptr<Batch> late(std::uint64_t ticket);
  void count(const Batch& batch);
  std::unique_ptr<Batch> build_here(std::uint64_t ticket);
  bool wait_published(std::uint64_t ticket);
  bool workers_live() const;

  const std::function<Build()> make_build_;
  const std::uint64_t first_, tickets_;
  const std::shared_ptr<BatchPool> pool_;
  const std::shared_ptr<Stats> stats_;
  const std::uint64_t forks_;  // of this process before it was made: a fork leaves the workers behind

  const std::uint64_t wake_every_;  // batches

  Ring<Batch> ring_;
  Signal published_, taken_;
  std::atomic<std::uint64_t> drawn_{0};    // tickets given out
  std::atomic<std::int64_t> build_ns_{0};  // usual building time, of a core
  std::atomic<bool> closed_{false};
  std::uint64_t ticket_ = 0;  // the consumer's next
  int spins_ = 64;            // the consumer's budget before it sleeps
  Build build_;               // the consumer's, made when first needed
  std::unique_ptr<std::vector<std::thread>> workers_;
};

}  // namespace hybridfast::sampler
