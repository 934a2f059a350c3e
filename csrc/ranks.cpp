#include "ranks.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

#include "panels.h"
#include "simd/level.h"
#include "threads.h"
#include "workspace.h"

namespace hybridfast {
namespace {

// Scores the golds of one query panel.
void score_golds(const Block& queries, std::size_t panel, const Embeddings& passages, const Golds& golds,
                 float* gold_scores) {
  const auto& kernels = simd::kernels();
  const std::size_t first = queries.begin + panel * queries.width;
  const std::size_t last = first + queries.panel_rows(panel);
  std::vector<float> gold_panel(kernels.columns * queries.depth);
  std::vector<float> scores(kernels.rows * kernels.columns);
  const auto end = static_cast<std::size_t>(golds.indptr[last]);
  std::size_t query = first;
  for (auto gold = static_cast<std::size_t>(golds.indptr[first]); gold < end; gold += kernels.columns) {
    const std::size_t count = std::min(kernels.columns, end - gold);
    pack_panel(passages, count, kernels.columns, gold_panel.data(),
               [&](std::size_t i) { return static_cast<std::size_t>(golds.rows[gold + i]); });
    kernels.scores(queries.panel(panel), gold_panel.data(), queries.depth, scores.data(), kernels.columns);
    for (std::size_t i = 0; i < count; ++i) {
      while (static_cast<std::size_t>(golds.indptr[query + 1]) <= gold + i) ++query;
      gold_scores[gold + i] = scores[(query - first) * kernels.columns + i];
    }
  }
}

// Some of a query's scores: value i is that of the passage rows[places[i]].
struct Scores {
  std::vector<float> values;
  std::vector<std::int32_t> places;
  std::size_t size = 0;
};

// Keeps the scores that reach `low`, the lowest of the query's golds: few do, so 16 at a time are passed
// over.
void keep_from(const float* scores, std::size_t size, float low, Scores& kept) {
  constexpr std::size_t step = 16;
  kept.size = 0;
  for (std::size_t begin = 0; begin < size; begin += step) {
    const std::size_t end = std::min(begin + step, size);
    if (end == begin + step) {
      int any = 0;
      for (std::size_t i = begin; i < begin + step; ++i) any |= scores[i] >= low;
      if (!any) continue;
    }
    for (std::size_t i = begin; i < end; ++i) {
      kept.values[kept.size] = scores[i];
      kept.places[kept.size] = static_cast<std::int32_t>(i);
      kept.size += scores[i] >= low;  // no branch, which nobody could predict
    }
  }
}

// Adds to one gold's counts what the scores of one group's passages say about it.
void count_scores(const Scores& scores, const std::int64_t* rows, float gold_score, std::int64_t gold_row,
                  std::size_t entry, const RankCounts& counts) {
  std::int32_t greater = 0, equal = 0;
  for (std::size_t i = 0; i < scores.size; ++i) {
    greater += scores.values[i] > gold_score;
    equal += scores.values[i] == gold_score;
  }
  const auto add = [](std::int32_t& total, std::int32_t value) {  // chunks of other threads add here too
    if (value) std::atomic_ref<std::int32_t>(total).fetch_add(value, std::memory_order_relaxed);
  };
  add(counts.greater[entry], greater);
  if (!equal) return;  // rows are looked up for equal scores only, the gold's own among them
  std::int32_t tied = 0, later = 0;
  for (std::size_t i = 0; i < scores.size; ++i) {
    const std::int64_t row = rows[scores.places[i]];
    tied += (scores.values[i] == gold_score) & (row != gold_row);
    later += (scores.values[i] == gold_score) & (row > gold_row);
  }
  add(counts.tied[entry], tied);
  add(counts.later[entry], later);
}

// A run of the passages to rank against, and how each of some queries scores them.
struct Tile {
  std::size_t first, last;  // queries
  std::size_t begin, end;   // places in groups.rows
  const float* scores;      // row q - first, column place - begin
  std::size_t stride;
};

void count_tile(const Tile& tile, const Groups& groups, const Golds& golds, const float* gold_scores,
                const RankCounts& counts) {
  Scores kept{std::vector<float>(tile.stride), std::vector<std::int32_t>(tile.stride)};
  const auto first_place = static_cast<std::int64_t>(tile.begin);
  const auto last_place = static_cast<std::int64_t>(tile.end);
  const auto past = std::upper_bound(groups.starts.begin(), groups.starts.end(), first_place);
  for (auto group = static_cast<std::size_t>(past - groups.starts.begin()) - 1;
       group < groups.count() && groups.starts[group] < last_place; ++group) {
    const std::int64_t from = std::max(groups.starts[group], first_place);
    const std::int64_t to = std::min(groups.starts[group + 1], last_place);
    for (std::size_t query = tile.first; query < tile.last; ++query) {
      const std::int64_t gold_begin = golds.indptr[query], gold_end = golds.indptr[query + 1];
      if (gold_begin == gold_end) continue;
      keep_from(tile.scores + (query - tile.first) * tile.stride + (from - first_place),
                static_cast<std::size_t>(to - from),
                *std::min_element(gold_scores + gold_begin, gold_scores + gold_end), kept);
      for (std::int64_t gold = gold_begin; gold < gold_end; ++gold)
        count_scores(kept, groups.rows.data() + from, gold_scores[gold], golds.rows[gold],
                     static_cast<std::size_t>(gold) * groups.count() + group, counts);
    }
  }
}

// One query panel against the passages [begin, end) of the block, both multiples of a panel from its start.
void count_chunk(const Block& queries, std::size_t query_panel, const Block& passages, std::size_t begin,
                 std::size_t end, const Groups& groups, const Golds& golds, const float* gold_scores,
                 const RankCounts& counts) {
  const std::size_t first = queries.begin + query_panel * queries.width;
  const std::size_t last = first + queries.panel_rows(query_panel);
  if (golds.indptr[first] == golds.indptr[last]) return;
  const auto& kernels = simd::kernels();
  const std::size_t panels = (end - begin + kernels.columns - 1) / kernels.columns;
  const std::size_t stride = panels * kernels.columns;
  Scratch scores(kernels.rows * stride);
  for (std::size_t p = 0; p < panels; ++p)
    kernels.scores(queries.panel(query_panel), passages.panel(begin / kernels.columns + p), queries.depth,
                   scores.data() + p * kernels.columns, stride);
  count_tile({first, last, passages.begin + begin, passages.begin + end, scores.data(), stride}, groups,
             golds, gold_scores, counts);
}

void prefetch_row(const Embeddings& embeddings, std::size_t row) {
  with_elements(embeddings, [&](const auto* data) {
    const auto* bytes = reinterpret_cast<const char*>(data + row * embeddings.depth);
    const std::size_t size = embeddings.depth * sizeof(*data);
    for (std::size_t line = 0; line < size; line += 64) __builtin_prefetch(bytes + line, 0, 2);
  });
}

// One panel of queries or fewer: passages are packed where they are multiplied, for to write a block of them
// and to read it would take longer than all the rest. Sums are as above: one for each entry, d ascending.
void count_few(const Embeddings& queries, const Embeddings& passages, const Groups& groups,
               const Golds& golds, const RankCounts& counts, int threads) {
  const auto& kernels = simd::kernels();
  const std::size_t depth = queries.depth, columns = kernels.columns;
  Scratch query_rows(queries.rows * depth);
  for (std::size_t query = 0; query < queries.rows; ++query)
    widen_row(queries, query, 0, depth, query_rows.data() + query * depth);
  const auto score = [&](std::size_t first, std::size_t many, std::size_t count, float* panel, float* scores,
                         std::size_t stride, auto row_of) {
    pack_panel(passages, count, columns, panel, row_of);
    kernels.multiply({query_rows.data() + first * depth, depth, 1, panel, depth}, many, scores, stride,
                     false);
  };

  std::vector<float> gold_scores(golds.rows.size());
  Scratch gold_panel(columns * depth), panel_scores(columns);
  for (std::size_t query = 0; query < queries.rows; ++query) {
    const auto end = static_cast<std::size_t>(golds.indptr[query + 1]);
    for (auto gold = static_cast<std::size_t>(golds.indptr[query]); gold < end; gold += columns) {
      const std::size_t count = std::min(columns, end - gold);
      score(query, 1, count, gold_panel.data(), panel_scores.data(), columns,
            [&](std::size_t i) { return static_cast<std::size_t>(golds.rows[gold + i]); });
      std::copy_n(panel_scores.data(), count, gold_scores.data() + gold);
    }
  }
  const std::size_t places = groups.rows.size(), step = kChunkRows;
  parallel_for((places + step - 1) / step, threads, [&](std::size_t chunk) {
    const std::size_t begin = chunk * step, end = std::min(begin + step, places);
    const std::size_t stride = (end - begin + columns - 1) / columns * columns;
    Scratch panel(columns * depth), scores(queries.rows * stride);
    for (std::size_t place = begin; place < end; place += columns) {
      // A panel reads rows side by side, which no hardware prefetches: fetch the next one's meanwhile.
      for (std::size_t next = place + columns; next < std::min(place + 2 * columns, end); ++next)
        prefetch_row(passages, static_cast<std::size_t>(groups.rows[next]));
      score(0, queries.rows, std::min(columns, end - place), panel.data(), scores.data() + (place - begin),
            stride, [&](std::size_t i) { return static_cast<std::size_t>(groups.rows[place + i]); });
    }
    count_tile({0, queries.rows, begin, end, scores.data(), stride}, groups, golds, gold_scores.data(),
               counts);
  });
}

}  // namespace

RowNorm largest_norm(const Embeddings& embeddings, int threads) {
  constexpr std::size_t step = 256;
  const std::size_t blocks = (embeddings.rows + step - 1) / step;
  std::vector<RowNorm> largest(blocks);
  const auto& kernels = simd::kernels();
  parallel_for(blocks, threads, [&](std::size_t block) {
    const std::size_t begin = block * step, end = std::min(begin + step, embeddings.rows);
    std::vector<float> widened(embeddings.depth);
    RowNorm& most = largest[block] = {begin, 0.0};
    for (std::size_t row = begin; row < end; ++row) {
      const float* values = float_row(embeddings, row, widened.data());
      const double norm = std::sqrt(kernels.dot(values, values, embeddings.depth));
      if (norm > most.norm || !std::isfinite(norm)) most = {row, norm};
      if (!std::isfinite(norm)) return;
    }
  });
  RowNorm most{0, 0.0};
  for (const RowNorm& one : largest) {
    if (!std::isfinite(one.norm)) return one;
    if (one.norm > most.norm) most = one;
  }
  return most;
}

void count_ranks(const Embeddings& queries, const Embeddings& passages, const Groups& groups,
                 const Golds& golds, const RankCounts& counts, int threads) {
  const auto& kernels = simd::kernels();
  if (queries.rows <= kernels.rows) return count_few(queries, passages, groups, golds, counts, threads);
  const std::size_t depth = queries.depth;
  const std::size_t query_step = rows_in(kBlockBytes, depth, kernels.rows);
  const std::size_t passage_step = rows_in(kBlockBytes, depth, kernels.columns);
  const std::size_t chunk =
      rows_in(std::min(kChunkBytes, kChunkRows * sizeof(float) * depth), depth, kernels.columns);
  Block query_block{0, 0, kernels.rows, depth, {}};
  Block passage_block{0, 0, kernels.columns, depth, {}};
  std::vector<float> gold_scores(golds.rows.size());

  for (std::size_t q = 0; q < queries.rows; q += query_step) {
    pack_block(queries, q, std::min(query_step, queries.rows - q), query_block, threads,
               [](std::size_t place) { return place; });
    parallel_for(query_block.panels(), threads, [&](std::size_t panel) {
      score_golds(query_block, panel, passages, golds, gold_scores.data());
    });
    for (std::size_t n = 0; n < groups.rows.size(); n += passage_step) {
      pack_block(passages, n, std::min(passage_step, groups.rows.size() - n), passage_block, threads,
                 [&](std::size_t place) { return static_cast<std::size_t>(groups.rows[place]); });
      const std::size_t chunks = (passage_block.size + chunk - 1) / chunk;
      parallel_for(chunks * query_block.panels(), threads, [&](std::size_t task) {
        const std::size_t begin = task / query_block.panels() * chunk;  // neighbours share a chunk
        count_chunk(query_block, task % query_block.panels(), passage_block, begin,
                    std::min(begin + chunk, passage_block.size), groups, golds, gold_scores.data(), counts);
      });
    }
  }
}

}  // namespace hybridfast
