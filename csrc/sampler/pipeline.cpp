#include "sampler/pipeline.h"

#include <pthread.h>
#include <time.h>

#include <algorithm>
#include <new>
#include <utility>

#include "pause.h"
#include "sampler/courtesy.h"

namespace hybridfast::sampler {
namespace {

constexpr int kMinSpins = 16, kMaxSpins = 4096;
constexpr std::int64_t kLeastPatience = 50'000;  // ns; a thread's wake-up alone may take this long

std::atomic<std::uint64_t> fork_count{0};

std::uint64_t forks() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { ++fork_count; });
  (void)registered;
  return fork_count.load(std::memory_order_relaxed);
}

// Spent by this thread: a builder that others keep from its core has not built for longer.
std::int64_t cpu_ns() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

void add(std::atomic<std::uint64_t>& counter, std::uint64_t amount = 1) {
  counter.fetch_add(amount, std::memory_order_relaxed);
}

}  // namespace

Pipeline::Pipeline(std::function<Build()> make_build, std::uint32_t first, std::uint32_t end,
                   std::size_t threads, std::size_t prefetch, std::shared_ptr<BatchPool> pool,
                   std::shared_ptr<Stats> stats)
    : make_build_(std::move(make_build)),
      first_(first),
      tickets_(end > first ? end - first : 0),
      pool_(std::move(pool)),
      stats_(std::move(stats)),
      forks_(forks()),
      wake_every_(std::max<std::size_t>(prefetch / 2, 1)),
      ring_(prefetch, threads + 1),
      workers_(std::make_unique<std::vector<std::thread>>()) {
  threads = std::min<std::size_t>(threads, tickets_);
  try {
    for (std::size_t builder = 0; builder < threads; ++builder) {
      workers_->emplace_back([this, builder] { work(builder); });
    }
  } catch (...) {  // no more threads to be had
    close();
    throw;
  }
}

Pipeline::~Pipeline() {
  close();
}

void Pipeline::close() {
  closed_.store(true);
  taken_.raise();
  if (!workers_) return;
  if (workers_live()) {
    for (std::thread& worker : *workers_) hurry(worker);
    for (std::thread& worker : *workers_) worker.join();
    workers_.reset();
    for (; ticket_ < tickets_ && ring_.state(ticket_) == Ring<Batch>::State::kPublished; ++ticket_) {
      pool_->put(std::unique_ptr<Batch>(ring_.take(ticket_)));
    }
    // What lies behind a gap in the sequence: published, but its predecessor never came.
    for (std::uint64_t t = ticket_; t < std::min(tickets_, ticket_ + ring_.slots()); ++t) {
      if (ring_.state(t) == Ring<Batch>::State::kPublished) pool_->put(std::unique_ptr<Batch>(ring_.take(t)));
    }
  } else {
    workers_.release();  // they exist only in the parent: neither join nor detach means anything here
  }
  ticket_ = tickets_;
}

bool Pipeline::workers_live() const {
  return forks_ == forks();
}

std::unique_ptr<Batch> Pipeline::spare() {
  auto batch = pool_->get();
  return batch ? std::move(batch) : std::make_unique<Batch>();
}

// Leaves either a built batch or its error.
void Pipeline::run(Build& build, std::uint64_t ticket, Batch& batch) {
  batch.error = nullptr;
  const std::int64_t start = cpu_ns();
  try {
    if (!build) build = make_build_();
    build(static_cast<std::uint32_t>(first_ + ticket), batch);
  } catch (...) {
    batch.error = std::current_exception();
  }
  const std::int64_t took = cpu_ns() - start;
  const std::int64_t before = build_ns_.load(std::memory_order_relaxed);
  // A mean in which the last eight or so count most; builders may lose each other's, which is no matter.
  build_ns_.store(before ? before + (took - before) / 8 : took, std::memory_order_relaxed);
}

void Pipeline::work(std::size_t builder) try {
  become_worker();
  using State = Ring<Batch>::State;
  Build build;
  std::unique_ptr<Batch> batch;
  while (!closed_.load(std::memory_order_relaxed)) {
    const std::uint64_t ticket = drawn_.fetch_add(1);
    if (ticket >= tickets_) break;
    State state;
    for (;;) {
      const std::uint32_t seen = taken_.now();
      state = ring_.state(ticket);
      if (state != State::kEarly || closed_.load(std::memory_order_relaxed)) break;
      taken_.wait(seen, std::chrono::seconds(1));
    }
    if (state != State::kOpen) continue;
    if (!batch) batch = spare();
    run(build, ticket, *batch);
    if (ring_.publish(ticket, builder, batch.get())) {
      batch.release();
      published_.raise();
    } else {
      add(stats_->discarded);
    }
  }
  if (batch) pool_->put(std::move(batch));
} catch (const std::bad_alloc&) {
  // No memory for a batch to hold even the error: leave the work to the consumer, who can report it.
}

std::shared_ptr<Batch> Pipeline::next() {
  if (ticket_ >= tickets_ || closed_.load(std::memory_order_relaxed)) return nullptr;
  const std::uint64_t ticket = ticket_++;
  std::unique_ptr<Batch> batch;
  if (ring_.state(ticket) == Ring<Batch>::State::kPublished) {
    batch.reset(ring_.take(ticket));
    // Waking costs a system call, and on busy cores the consumer its turn: one for half a ring of free slots.
    ticket_ % wake_every_ ? taken_.note() : taken_.raise();
  } else {
    const auto start = Clock::now();
    taken_.raise();
    batch = late(ticket);
    taken_.raise();
    add(stats_->late);
    add(stats_->wait_ns, static_cast<std::uint64_t>(std::chrono::nanoseconds(Clock::now() - start).count()));
  }
  if (batch->error) {
    const std::exception_ptr error = std::exchange(batch->error, nullptr);
    pool_->put(std::move(batch));
    std::rethrow_exception(error);
  }
  count(*batch);
  return {batch.release(), [pool = pool_](Batch* returned) { pool->put(std::unique_ptr<Batch>(returned)); }};
}

void Pipeline::count(const Batch& batch) {
  add(stats_->batches);
  add(stats_->modes[static_cast<std::size_t>(batch.mode)]);
  add(stats_->flagged, batch.flagged_found);
  for (const Texts* texts :
       {&batch.queries, &batch.passages, &batch.negatives, &batch.second_queries, &batch.second_passages}) {
    add(stats_->tokens, texts->tokens);
    add(stats_->padding, texts->padding);
  }
  for (std::size_t l = 0; l < batch.query_language_rows.size(); ++l) {
    add(stats_->query_languages[l], batch.query_language_rows[l]);
    add(stats_->passage_languages[l], batch.passage_language_rows[l]);
  }
}

// A batch nobody has begun is the consumer's; for one in progress it waits, but not for long.
std::unique_ptr<Batch> Pipeline::late(std::uint64_t ticket) {
  std::uint64_t next = ticket;
  const bool begun = !drawn_.compare_exchange_strong(next, ticket + 1);
  if (begun && workers_live() && !workers_->empty() && wait_published(ticket)) {
    return std::unique_ptr<Batch>(ring_.take(ticket));
  }
  return build_here(ticket);
}

std::unique_ptr<Batch> Pipeline::build_here(std::uint64_t ticket) {
  auto batch = spare();
  run(build_, ticket, *batch);
  if (ring_.publish(ticket, ring_.builders() - 1, batch.get())) {
    batch.release();
    add(stats_->helped);
  } else {
    pool_->put(std::move(batch));
    add(stats_->discarded);
  }
  return std::unique_ptr<Batch>(ring_.take(ticket));
}

// Spins, then sleeps; the budget follows what would have been enough. False: the patience is over.
bool Pipeline::wait_published(std::uint64_t ticket) {
  const auto there = [&] { return ring_.state(ticket) == Ring<Batch>::State::kPublished; };
  for (int spin = 0; spin < spins_; ++spin) {
    if (there()) {
      spins_ = std::min(2 * spins_, kMaxSpins);
      return true;
    }
    pause();
  }
  spins_ = std::max(spins_ / 2, kMinSpins);
  const auto patience = std::max(build_ns_.load(std::memory_order_relaxed), kLeastPatience);
  const auto end = Clock::now() + std::chrono::nanoseconds(patience);
  for (;;) {
    const std::uint32_t seen = published_.now();
    if (there()) return true;
    const auto left = std::chrono::nanoseconds(end - Clock::now());
    if (left.count() <= 0) return false;
    add(stats_->waits);
    published_.wait(seen, left);
  }
}

}  // namespace hybridfast::sampler
