// Stress tests of the sampler's hand-off, for ThreadSanitizer and AddressSanitizer; tests/native/run_sampler
// builds them. None of them measures time: what hangs is ended by the caller's limit.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "sampler/gather.h"
#include "sampler/pipeline.h"
#include "sampler/plan.h"

using namespace hybridfast::sampler;

#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                        \
    }                                                                      \
  } while (false)

namespace {

constexpr std::size_t kRows = 64;

// Every element depends on the index, so a torn or recycled batch shows.
void fill(std::uint32_t index, Batch& out) {
  out.index = index;
  out.rows = kRows;
  auto* groups = out.groups.resize<std::int64_t>(kRows);
  for (std::size_t i = 0; i < kRows; ++i) groups[i] = static_cast<std::int64_t>(index * kRows + i);
}

void check(std::uint32_t index, const Batch& batch) {
  CHECK(batch.index == index && batch.rows == kRows);
  for (std::size_t i = 0; i < kRows; ++i) {
    CHECK(batch.groups.as<std::int64_t>()[i] == static_cast<std::int64_t>(index * kRows + i));
  }
}

struct Harness {
  std::shared_ptr<BatchPool> pool = std::make_shared<BatchPool>();
  std::shared_ptr<Stats> stats = std::make_shared<Stats>(1);

  std::unique_ptr<Pipeline> start(Pipeline::Build build, std::uint32_t end, std::size_t threads,
                                  std::size_t prefetch) const {
    return std::make_unique<Pipeline>([build] { return build; }, 0, end, threads, prefetch, pool, stats);
  }
};

void yield_sometimes(std::uint32_t index) {
  static std::atomic<std::uint32_t> seed{1};
  std::minstd_rand random(seed.fetch_add(index + 1));
  for (auto n = random() % 4; n; --n) std::this_thread::yield();
  if (random() % 64 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
}

void in_order_with_yields() {
  for (const std::size_t threads : {0, 1, 2, 7}) {
    for (const std::size_t prefetch : {1, 2, 5, 64}) {
      const Harness harness;
      const auto build = [](std::uint32_t index, Batch& out) {
        yield_sometimes(index);
        fill(index, out);
        yield_sometimes(index);
      };
      auto pipeline = harness.start(build, 600, threads, prefetch);
      for (std::uint32_t index = 0; index < 600; ++index) {
        if (index % 50 == 0) yield_sometimes(index);
        const auto batch = pipeline->next();
        CHECK(batch);
        check(index, *batch);
      }
      CHECK(!pipeline->next());
      CHECK(harness.stats->batches == 600);
    }
  }
}

// Workers that never come back, in any phase of building; the consumer gets all batches without them.
void stalled_workers() {
  for (const bool after_filling : {false, true}) {
    const Harness harness;
    std::mutex mutex;
    std::condition_variable wake;
    bool released = false;
    const std::thread::id consumer = std::this_thread::get_id();
    std::atomic<int> stalled{0};
    const auto build = [&](std::uint32_t index, Batch& out) {
      if (after_filling) fill(index, out);
      if (index % 40 == 20 && std::this_thread::get_id() != consumer) {
        ++stalled;
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, [&] { return released; });
      }
      fill(index, out);
    };
    auto pipeline = harness.start(build, 400, 4, 8);
    for (std::uint32_t index = 0; index < 400; ++index) {
      // Wait until a worker has taken the ticket that stalls it, so that each of the four does.
      if (index % 40 == 20 && index < 180) {
        while (stalled < static_cast<int>(index / 40 + 1)) std::this_thread::yield();
      }
      check(index, *pipeline->next());
    }
    CHECK(stalled == 4);
    CHECK(harness.stats->helped >= 4);
    {
      const std::lock_guard<std::mutex> lock(mutex);
      released = true;
    }
    wake.notify_all();
    pipeline->close();
    CHECK(harness.stats->discarded >= 4);
  }
}

void exceptions_in_any_slot() {
  const Harness harness;
  const auto build = [](std::uint32_t index, Batch& out) {
    yield_sometimes(index);
    if (index % 3 == 1) throw std::runtime_error(std::to_string(index));
    fill(index, out);
  };
  auto pipeline = harness.start(build, 900, 3, 4);
  for (std::uint32_t index = 0; index < 900; ++index) {
    std::string message;
    try {
      check(index, *pipeline->next());
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    CHECK(message == (index % 3 == 1 ? std::to_string(index) : ""));
  }
}

// A thread's builder that cannot be made is an error of the batch, not the end of the process.
void factory_that_throws() {
  const Harness harness;
  Pipeline pipeline([]() -> Pipeline::Build { throw std::runtime_error("no builder"); }, 0, 10, 2, 4,
                    harness.pool, harness.stats);
  for (int i = 0; i < 10; ++i) {
    bool thrown = false;
    try {
      pipeline.next();
    } catch (const std::runtime_error&) {
      thrown = true;
    }
    CHECK(thrown);
  }
  CHECK(!pipeline.next());
}

void create_and_destroy() {
  const Harness harness;
  for (std::uint32_t round = 0; round < 3000; ++round) {
    auto pipeline = harness.start(fill, 50, 1 + round % 3, 1 + round % 5);
    std::vector<std::shared_ptr<Batch>> held;
    for (std::uint32_t index = 0; index < round % 7; ++index) held.push_back(pipeline->next());
    if (round % 2) pipeline->close();
    if (round % 2) CHECK(!pipeline->next());
    if (round % 3) pipeline.reset();
    for (std::uint32_t index = 0; index < held.size(); ++index) check(index, *held[index]);
  }
}

// Batches are let go by other threads than the one that took them.
void batches_outlive_pipelines() {
  std::vector<std::thread> readers;
  {
    const Harness harness;
    auto pipeline = harness.start(fill, 400, 2, 8);
    std::vector<std::vector<std::shared_ptr<Batch>>> shares(4);
    for (std::uint32_t index = 0; index < 400; ++index) shares[index % 4].push_back(pipeline->next());
    for (std::uint32_t share = 0; share < 4; ++share) {
      readers.emplace_back([share, batches = std::move(shares[share])]() mutable {
        for (std::uint32_t i = 0; i < batches.size(); ++i) {
          check(4 * i + share, *batches[i]);
          batches[i].reset();
        }
      });
    }
  }
  for (std::thread& reader : readers) reader.join();
}

// The real plan and gatherer, shared by all workers, against the same built one at a time.
void real_batches() {
  constexpr std::uint32_t kGroups = 3000, kLanguages = 3;
  std::vector<std::int32_t> version_GL, source_G;
  std::vector<std::uint64_t> hashes;
  std::vector<std::int64_t> version_indptr{0}, text_indptr{0};
  std::vector<std::int32_t> token_ids;
  std::minstd_rand random(1);
  for (std::uint32_t g = 0; g < kGroups; ++g) {
    source_G.push_back(static_cast<std::int32_t>(random() % 3));
    for (std::uint32_t l = 0; l < kLanguages; ++l) {
      const bool missing = l != g % kLanguages && random() % 5 == 0;
      version_GL.push_back(missing ? -1 : static_cast<std::int32_t>(hashes.size()));
      if (missing) continue;
      hashes.push_back((std::uint64_t{g / 4} * kLanguages + l + 1) * 0xBF58476D1CE4E5B9);
      const auto texts = 2 + random() % 3;
      version_indptr.push_back(version_indptr.back() + static_cast<std::int64_t>(texts));
      for (std::uint32_t t = 0; t < texts; ++t) {
        for (auto tokens = 1 + random() % 20; tokens; --tokens)
          token_ids.push_back(static_cast<int>(random() % 999));
        text_indptr.push_back(static_cast<std::int64_t>(token_ids.size()));
      }
    }
  }
  std::vector<std::int32_t> order_G(kGroups);
  std::iota(order_G.begin(), order_G.end(), 0);
  std::stable_sort(order_G.begin(), order_G.end(), [&](auto a, auto b) { return source_G[a] < source_G[b]; });
  std::vector<std::int64_t> source_indptr(4);
  for (const std::int32_t source : source_G) ++source_indptr[source + 1];
  std::partial_sum(source_indptr.begin(), source_indptr.end(), source_indptr.begin());
  constexpr std::uint32_t kWords = (kGroups + 63) / 64;
  std::vector<std::uint64_t> present_LW(kLanguages * kWords);
  for (std::uint32_t place = 0; place < kGroups; ++place) {
    for (std::uint32_t l = 0; l < kLanguages; ++l) {
      const bool there = version_GL[order_G[place] * kLanguages + l] >= 0;
      present_LW[l * kWords + place / 64] |= std::uint64_t{there} << place % 64;
    }
  }
  Corpus corpus;
  corpus.version_GL = version_GL.data();
  corpus.source_indptr = source_indptr.data();
  corpus.order_G = order_G.data();
  corpus.present_LW = present_LW.data();
  corpus.passage_hash_V = hashes.data();
  corpus.groups = kGroups;
  corpus.languages = kLanguages;
  corpus.sources = 3;
  corpus.versions = static_cast<std::uint32_t>(hashes.size());
  corpus.version_indptr = version_indptr.data();
  corpus.text_indptr = text_indptr.data();
  corpus.token_ids = token_ids.data();
  corpus.texts = static_cast<std::int64_t>(text_indptr.size()) - 1;
  corpus.tokens = static_cast<std::int64_t>(token_ids.size());

  std::vector<float> vectors_G3(std::size_t{kGroups} * 3);
  for (float& value : vectors_G3) value = static_cast<float>(random() % 999);

  struct Kind {
    Cross cross;
    bool mix_rows;
  };
  for (const Kind kind : {Kind{Cross::kMixed, false}, Kind{Cross::kPaired, false}, Kind{Cross::kSame, false},
                          Kind{Cross::kMixed, true}}) {
    for (const std::uint32_t buckets : {1U, 4U}) {
      Options options;
      options.batch_size = 96;
      options.cross = kind.cross;
      options.mix_rows = kind.mix_rows;
      options.languages = {0, 1, 2};
      options.language_names = {"a", "b", "c"};
      options.language_weights = {1, 2, 3};
      options.source_names = {"x", "y", "z"};
      options.temperature = 2;
      options.dedup = Dedup::kText;
      options.dedup_window = 4;
      options.length_buckets = buckets;
      options.batches_per_epoch = 200;
      const Plan plan(corpus, options);
      const Schedule schedule(plan, 1, {0.5});
      GatherOptions gather;
      gather.negatives = 2;
      gather.second = Second::kBoth;
      gather.group_vectors = {{reinterpret_cast<const std::byte*>(vectors_G3.data()), 3 * sizeof(float)}};
      const Harness harness;
      Harness with_languages;
      with_languages.stats = std::make_shared<Stats>(kLanguages);
      Pipeline pipeline(
          [&]() -> Pipeline::Build {
            return [&schedule, gatherer = std::make_shared<Gatherer>(plan, gather)](
                       std::uint32_t index, Batch& out) { gatherer->build(schedule, index, out); };
          },
          0, 200, 3, 4, with_languages.pool, with_languages.stats);
      Gatherer alone(plan, gather);
      Batch expected;
      for (std::uint32_t index = 0; index < 200; ++index) {
        const auto batch = pipeline.next();
        alone.build(schedule, index, expected);
        CHECK(batch->mode == expected.mode);
        for (std::size_t i = 0; i < expected.rows; ++i) {
          CHECK(batch->groups.as<std::int64_t>()[i] == expected.groups.as<std::int64_t>()[i]);
          CHECK(batch->mask_groups.as<std::int64_t>()[i] == expected.mask_groups.as<std::int64_t>()[i]);
        }
        CHECK(batch->passages.length == expected.passages.length);
        for (std::size_t i = 0; i < expected.passages.texts * expected.passages.length; ++i) {
          CHECK(batch->passages.ids.as<std::int64_t>()[i] == expected.passages.ids.as<std::int64_t>()[i]);
        }
        CHECK(batch->negatives_found == expected.negatives_found);
        CHECK(batch->second_queries.length == expected.second_queries.length);
        for (std::size_t i = 0; i < expected.second_queries.texts * expected.second_queries.length; ++i) {
          CHECK(batch->second_queries.ids.as<std::int64_t>()[i] ==
                expected.second_queries.ids.as<std::int64_t>()[i]);
        }
        CHECK(batch->second_passages.tokens == expected.second_passages.tokens);
        for (std::size_t i = 0; i < 3 * expected.rows; ++i) {
          const auto group = static_cast<std::size_t>(batch->groups.as<std::int64_t>()[i / 3]);
          CHECK(batch->group_vectors[0].as<float>()[i] == vectors_G3[3 * group + i % 3]);
        }
      }
    }
  }
}

}  // namespace

int main() {
  const struct {
    const char* name;
    void (*run)();
  } tests[] = {{"in order with yields", in_order_with_yields},
               {"stalled workers", stalled_workers},
               {"exceptions in any slot", exceptions_in_any_slot},
               {"factory that throws", factory_that_throws},
               {"create and destroy", create_and_destroy},
               {"batches outlive pipelines", batches_outlive_pipelines},
               {"real batches", real_batches}};
  for (const auto& test : tests) {
    std::printf("%s\n", test.name);
    std::fflush(stdout);
    test.run();
  }
  return 0;
}
