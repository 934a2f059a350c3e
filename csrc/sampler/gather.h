// From planned rows to the arrays that a training step reads: one rank's slice, with its token ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "sampler/plan.h"

namespace hybridfast::sampler {

// Memory that is kept, and only grows, from one batch to the next.
class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory(Memory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Memory& operator=(const Memory&) = delete;
  ~Memory() { std::free(data_); }

  // At least `count` of T; what was there before is lost.
  template <class T>
  T* resize(std::size_t count) {
    grow(count * sizeof(T));
    return as<T>();
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void grow(std::size_t bytes);

  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

struct Texts {
  std::size_t texts = 0, tokens = 0;
  std::size_t length = 0, padding = 0;  // of the padded rows, and the places there without a token
  Memory ids;                           // padded: texts x length; flat: tokens
  Memory mask;                          // padded: 1 for tokens, 0 for padding; flat: each text's first token
};

struct Batch {
  std::uint32_t epoch = 0, index = 0;
  Mode mode = Mode::kMono;
  std::size_t rows = 0, negatives_found = 0, flagged_found = 0;
  Memory groups, query_languages, passage_languages, mask_groups;         // int64
  Memory negative_rows, negative_mask_groups;                             // int64
  Memory flagged;                                                         // uint8
  std::vector<std::uint32_t> query_language_rows, passage_language_rows;  // of each language
  Memory second_query_languages, second_passage_languages;                // int64
  Texts queries, passages, negatives, second_queries, second_passages;
  std::vector<Memory> group_vectors;  // of each array, a row for each row
  std::exception_ptr error;           // set in place of all else where building failed
};

enum class Second : std::uint8_t { kNone = 0, kQueries = 1, kPassages = 2, kBoth = 3 };

// Rows of so many bytes, one of each group.
struct GroupVectors {
  const std::byte* rows;
  std::size_t bytes;
};

struct GatherOptions {
  std::uint32_t rank = 0, world_size = 1;
  std::uint32_t negatives = 0;
  bool flat = false;
  bool wide = true;  // int64 token ids; else int32
  std::uint32_t pad_to_multiple_of = 1;
  Second second = Second::kNone;
  std::vector<GroupVectors> group_vectors;

  bool wants(Second side) const { return static_cast<int>(second) & static_cast<int>(side); }
};

// Builds batches; one per thread.
class Gatherer {
 public:
  Gatherer(const Plan& plan, const GatherOptions& options) : plan_(plan), options_(options), planner_(plan) {}

  // Throws std::runtime_error where the corpus is not what it was.
  void build(const Schedule& schedule, std::uint32_t index, Batch& out);

 private:
  void check_files() const;
  void prefetch(const Span& span) const;
  std::uint32_t mask_group(std::size_t i) const;
  void find_passages();
  void choose_negatives(Batch& out);
  void choose_seconds(std::uint32_t epoch, std::uint32_t index, std::size_t first, std::size_t rows);
  void copy_vectors(const Row* row, Batch& out) const;
  void write(const std::vector<Span>& spans, Texts& out);
  template <class Int>
  void write_padded(const std::vector<Span>& spans, Texts& out) const;
  template <class Int>
  void write_flat(const std::vector<Span>& spans, Texts& out) const;

  const Plan& plan_;
  const GatherOptions& options_;
  Planner planner_;
  PlannedBatch planned_;
  Located located_;
  std::vector<Row> seconds_;              // each row with its second languages
  std::vector<std::uint16_t> languages_;  // of a group
  Table passages_;                        // of the global batch: their mask groups plus 1
  std::vector<std::pair<std::int64_t, std::int64_t>> candidates_;  // texts and their mask groups
  std::vector<std::int64_t> negative_texts_;
  std::vector<Span> negative_spans_;
};

}  // namespace hybridfast::sampler
