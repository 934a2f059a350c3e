// The passages that score highest for each query, kept while the scores stream by.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "embeddings.h"

namespace hybridfast {

// What a query may not get: of query q the rows rows[indptr[g]] ... rows[indptr[g + 1] - 1], which ascend,
// with g = groups[q].
struct Excluded {
  std::span<const std::int64_t> groups;
  std::span<const std::int64_t> indptr;
  std::span<const std::int64_t> rows;
};

// Q x K each: the best of each query in descending order, equal scores in ascending order of their rows;
// where there are fewer, minus infinity and row -1.
struct TopK {
  std::size_t count;
  float* scores;
  std::int64_t* rows;
};

// Searches the passages `rows`, which ascend. Embeddings are finite, and their inner products too.
//
// Scores are float32, summed as in ranks.h. Where the CPU is faster with bfloat16, most passages are left out
// by products of rounded embeddings: such a product is off by no more than a known share of the norms, and
// what could reach the k-th best by that is scored anew in float32. So the result does not depend on that,
// nor on the number of threads. `filter` false: never so.
//
// Workspace: two packed blocks of at most 8 MB (or one panel) each, at most 64 MB of candidates (or those of
// one panel of queries), and per thread a tile of scores.
void top_k(const Embeddings& queries, const Embeddings& passages, std::span<const std::int64_t> rows,
           const Excluded& excluded, const TopK& best, bool filter, int threads);

}  // namespace hybridfast
