// Exact ranks of the relevant passages, counted while the scores stream by.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "embeddings.h"

namespace hybridfast {

// The largest Euclidean norm of a row, with its row; the first row whose norm is not finite wins.
struct RowNorm {
  std::size_t row;
  double norm;
};
RowNorm largest_norm(const Embeddings& embeddings, int threads);

// Golds of query q: rows[indptr[q]] ... rows[indptr[q + 1] - 1] of the passages.
struct Golds {
  std::span<const std::int64_t> indptr;
  std::span<const std::int64_t> rows;
};

// Passage rows to rank against, sorted by group: group l is rows[starts[l]] ... rows[starts[l + 1] - 1].
struct Groups {
  std::span<const std::int64_t> starts;
  std::span<const std::int64_t> rows;

  std::size_t count() const { return starts.size() - 1; }
};

// G x L each, zero on entry. Entry (g, l) counts the passages of group l, gold g itself excepted, that score
// more than gold g (greater), the same (tied), and the same from a later row than gold g's (later).
struct RankCounts {
  std::int32_t* greater;
  std::int32_t* tied;
  std::int32_t* later;
};

// Workspace: two packed blocks of at most 8 MB (or one panel) each, and per thread a tile of scores.
// Gold scores come from the same kernel as all others, so equal passages tie bitwise. The counts are
// integers: they do not depend on the number of threads or on the blocks.
void count_ranks(const Embeddings& queries, const Embeddings& passages, const Groups& groups,
                 const Golds& golds, const RankCounts& counts, int threads);

}  // namespace hybridfast
