// Which pairs of a problem are positives.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "infonce/infonce.h"

namespace hybridfast {

// The passages that are positives of each query, ascending, and the pairs that these make: by query, and by
// chunk of passages.
class Positives {
 public:
  struct Pair {
    std::uint32_t index;  // by query and then by passage
    std::uint32_t query;
    std::uint32_t passage;
  };

  Positives(const InfoNceProblem& problem, std::size_t chunk)
      : problem_(problem), targets_(problem.targets), first_pair_(problem.queries + 1) {
    if (!targets_ && !problem.group_positives) {
      same_rows_.resize(problem.queries);
      std::iota(same_rows_.begin(), same_rows_.end(), std::int64_t{0});
      targets_ = same_rows_.data();
    }
    if (problem.group_positives) {
      const std::int32_t* groups = problem.passage_groups;
      std::int32_t last = *std::max_element(groups, groups + problem.passages);
      last = std::max(last, *std::max_element(problem.query_groups, problem.query_groups + problem.queries));
      group_start_.resize(static_cast<std::size_t>(last) + 2);
      for (std::size_t j = 0; j < problem.passages; ++j) ++group_start_[groups[j] + 1];
      for (std::size_t g = 1; g < group_start_.size(); ++g) group_start_[g] += group_start_[g - 1];
      members_.resize(problem.passages);
      std::vector<std::size_t> next(group_start_);
      for (std::size_t j = 0; j < problem.passages; ++j)
        members_[next[groups[j]]++] = static_cast<std::int64_t>(j);
    }
    chunk_start_.resize((problem.passages + chunk - 1) / chunk + 1);
    for (std::size_t i = 0; i < problem.queries; ++i) {
      const auto passages = of(i);
      first_pair_[i + 1] = first_pair_[i] + passages.size();
      for (const std::int64_t j : passages) ++chunk_start_[static_cast<std::size_t>(j) / chunk + 1];
    }
    for (std::size_t c = 1; c < chunk_start_.size(); ++c) chunk_start_[c] += chunk_start_[c - 1];
    by_chunk_.resize(pairs());
    std::vector<std::size_t> next(chunk_start_);
    std::uint32_t index = 0;
    for (std::size_t i = 0; i < problem.queries; ++i)
      for (const std::int64_t j : of(i)) {
        const auto passage = static_cast<std::uint32_t>(j);
        by_chunk_[next[passage / chunk]++] = {index++, static_cast<std::uint32_t>(i), passage};
      }
  }

  Positives(const Positives&) = delete;
  Positives& operator=(const Positives&) = delete;

  std::span<const std::int64_t> of(std::size_t query) const {
    if (!problem_.group_positives) return {targets_ + query, 1};
    const std::int32_t group = problem_.query_groups[query];
    return {members_.data() + group_start_[group], members_.data() + group_start_[group + 1]};
  }

  std::size_t first_pair(std::size_t query) const { return first_pair_[query]; }
  std::size_t pairs() const { return first_pair_.back(); }

  // The pairs of queries [first, last) with a chunk's passages.
  std::span<const Pair> among(std::size_t first, std::size_t last, std::size_t chunk) const {
    const Pair* begin = by_chunk_.data() + chunk_start_[chunk];
    const Pair* end = by_chunk_.data() + chunk_start_[chunk + 1];
    const auto before = [](const Pair& pair, std::size_t query) { return pair.query < query; };
    begin = std::lower_bound(begin, end, first, before);
    return {begin, std::lower_bound(begin, end, last, before)};
  }

 private:
  const InfoNceProblem& problem_;
  const std::int64_t* targets_;
  std::vector<std::int64_t> same_rows_;   // the targets where none are given
  std::vector<std::size_t> group_start_;  // members_[group_start_[g] .. group_start_[g + 1]) are of group g
  std::vector<std::int64_t> members_;
  std::vector<std::size_t> first_pair_;
  std::vector<std::size_t> chunk_start_;
  std::vector<Pair> by_chunk_;  // ascending by query within a chunk
};

}  // namespace hybridfast
