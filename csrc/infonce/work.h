// The work of one call of info_nce: what its parts in sums.cpp, gradients.cpp and filter.cpp share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "infonce/infonce.h"
#include "infonce/positives.h"
#include "simd/tile.h"
#include "threads.h"
#include "workspace.h"

namespace hybridfast {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Of rows: within these, exponentials times scales stay in a float's range before any weight is in them.
constexpr float kLeastScale = 1e-6f, kMostScale = 1e6f;

constexpr std::size_t blocks_of(std::size_t count, std::size_t block) {
  return (count + block - 1) / block;
}

// With n the log-sum-exp of a query's negatives and t the logit of a positive, that pair costs log(1 + exp(n
// - t)). Its gradient is sigmoid(n - t), taken from t and shared out among the negatives in proportion to
// exp(logit). Positives stay out of every sum: the loss is then exact where the negatives are negligible.
//
// Work runs by blocks of queries. A block is cut into panels of `lanes_` queries and the passages into
// chunks; the tile of (panel, chunk) holds first products, then exponentials, and at last what is summed into
// gradients. Where a block's tiles all have room, and each query has one softmax, that is at once:
// exp(logit - shift) * scale needs nothing but a factor of its query's, which enters where the sums end. Else
// tiles are formed twice, for the sums and then as d(objective)/d(product).
class InfoNce {
 public:
  InfoNce(const InfoNceProblem& problem, float* losses, const InfoNceGradients* gradients, int threads);

  InfoNceStats run();

 private:
  struct ByRow;
  // The block's entries in one chunk, panel by panel, the positives last: `place` is row * lanes_ + lane in
  // the panel's tile, `weight` is d(objective)/d(product) but for the query's factor.
  struct Entries {
    std::vector<std::uint32_t> place;
    std::vector<float> weight;
    std::vector<std::size_t> panel_end;  // where each panel's end
  };

  // Layouts of rows, in work.cpp.
  void prepare_passages();
  float inverse_norm(const float* row) const;
  void open_block(std::size_t first);
  void pack_queries(std::size_t panel);
  void scale_query(std::size_t slot, float factor, float* out, Scratch& store) const;
  void copy_passages(std::size_t first, std::size_t count, float* copies) const;
  const float* scalars_of(std::size_t chunk, Scratch& store) const;

  // Sums of exponentials and what the losses are, in sums.cpp.
  void sum_block();
  std::vector<std::size_t> all_panels() const;
  void find_shifts(std::size_t panel);
  bool move_shifts(std::size_t panel);
  void sum_chunk(std::size_t chunk, const std::vector<std::size_t>& panels, bool first_round);
  void score(std::size_t panel, std::size_t chunk, const float* passages, float* logits);
  void close_rows(std::size_t panel);
  void close_row(std::size_t slot, double total);
  void close_columns();
  double pair_gradient(const Positives::Pair& pair) const;
  double direction() const { return problem_.bidirectional ? 0.5 : 1.0; }

  // Gradients of whole blocks, and how all gradients end, in gradients.cpp.
  void form_gradients();
  void pack_rows(std::size_t panel);
  void weigh_chunk(std::size_t chunk);
  void scale_chunk(std::size_t chunk);
  void place_positives(std::size_t chunk);
  void sum_passages(std::size_t chunk);
  void sum_queries();
  void sum_slice(std::size_t begin, std::size_t end, std::size_t first, std::size_t count);
  simd::Operands slice_scalars(std::size_t begin, std::size_t width, std::size_t first, std::size_t count,
                               Scratch& store) const;
  void finish_queries(bool sparsely);
  void finish_passages(std::size_t chunk);
  double finish_row(const float* row, double inverse, float* grad, float factor) const;

  // The filter, in filter.cpp.
  bool try_sparsely();
  bool sum_sparsely();
  void choose_thresholds(std::size_t panel, float lowest);
  std::vector<double> survey(std::size_t panel, std::size_t step, const float* bounds,
                             std::size_t levels) const;
  std::size_t affordable(const std::vector<double>& totals, std::size_t lane, std::size_t levels,
                         double tolerance) const;
  void select_entries(std::size_t chunk, std::size_t most, std::atomic<std::size_t>& kept);
  void combine_queries(std::size_t chunk);
  void combine_passages(std::size_t panel);
  void combine(const Embeddings& embeddings, std::size_t first, const float* pairs, const ByRow& sorted,
               std::size_t row, float* out, bool add) const;

  std::size_t padded(std::size_t queries) const { return blocks_of(queries, lanes_) * lanes_; }
  std::size_t chunk_size(std::size_t chunk) const {
    return std::min(chunk_, problem_.passages - chunk * chunk_);
  }
  std::size_t slab_row(std::size_t passage) const { return passage - slab_first_ * chunk_; }
  float* tile(std::size_t panel, std::size_t passage) const {
    return &tile_[(panel * slab_ * chunk_ + slab_row(passage)) * lanes_];
  }
  // As pairs, what is in the tiles is kept twice: pairs of rows, where the tiles are, for the query
  // gradients; and pairs of neighbours in a row, all panels' side by side, for the passages'.
  float* row_pairs(std::size_t panel, std::size_t passage) const {
    return &tile_[(panel * slab_ * chunk_ + slab_row(passage)) / 2 * lanes_];
  }
  float* neighbours(std::size_t panel, std::size_t passage) const {
    return &neighbours_[slab_row(passage) * neighbour_stride_ + panel * lanes_ / 2];
  }
  std::span<const Positives::Pair> positives_in(std::size_t panel, std::size_t chunk) const {
    const std::size_t query = first_ + panel * lanes_;
    return positives_.among(query, query + lanes_, chunk);
  }
  // In the tile of a panel and the chunk that begins with passage `first`.
  std::size_t place_of(const Positives::Pair& pair, std::size_t panel, std::size_t first) const {
    return (pair.passage - first) * lanes_ + pair.query - first_ - panel * lanes_;
  }
  std::size_t row_width() const { return dim_panels_ * lanes_; }
  // What a panel's tiles leave out of d(objective)/d(product), a factor of the query's.
  float tile_factor(std::size_t slot) const { return at_once_ ? weight_[first_ + slot] : 1.0f; }
  // Steps that a sum over the queries of a panel takes.
  std::size_t panel_depth() const { return pairs_ ? lanes_ / 2 : lanes_; }
  float* query_grad(std::size_t slot) const {
    return gradients_->query_grads + (first_ + slot) * problem_.dim;
  }
  // Of a place, by bits: lanes are a power of two, and a division would cost as much as the entry's sum.
  std::uint32_t lane_in_tile(std::uint32_t place) const {
    return place & (static_cast<std::uint32_t>(lanes_) - 1);
  }
  std::uint32_t row_in_tile(std::uint32_t place) const { return place >> lane_bits_; }

  // A row's elements [begin, begin + count); in `store`, which has room for them, unless they are floats.
  static const float* row_of(const Embeddings& rows, std::size_t row, Scratch& store, std::size_t begin,
                             std::size_t count) {
    if (rows.element == Element::float32)
      return static_cast<const float*>(rows.data) + row * rows.depth + begin;
    widen_row(rows, row, begin, count, store.data());
    return store.data();
  }
  const float* query(std::size_t i, Scratch& store) const {
    return row_of(problem_.query_rows, i, store, 0, problem_.dim);
  }
  const float* passage(std::size_t j, Scratch& store) const {
    return row_of(problem_.passage_rows, j, store, 0, problem_.dim);
  }

  template <typename Body>
  void for_panels(Body body) {
    parallel_for(active_, threads_, body);
  }
  template <typename Body>
  void for_chunks(Body body) {
    const std::size_t count = std::min(slab_, chunks_ - slab_first_);
    parallel_for(count, threads_, [&](std::size_t chunk) { body(slab_first_ + chunk); });
  }

  const InfoNceProblem& problem_;
  float* losses_;
  const InfoNceGradients* gradients_;
  const int threads_;
  const simd::TileKernels& kernels_;
  const std::size_t lanes_;
  const int lane_bits_;
  const bool
      pairs_;  // products of bfloat16: then everything a product reads is made of pairs, a pair to a float
  const decltype(simd::TileKernels::multiply) multiply_;
  const std::size_t units_;         // floats that hold a row: dim, or half as many pairs
  const std::size_t score_stride_;  // see copy_passages
  const std::size_t chunk_;  // passages in a chunk: a function of their number alone, as sums run by chunk
  const std::size_t chunks_;
  const std::size_t samples_, sample_step_;  // passages that tell of the rest, and how far apart they are
  const std::size_t dim_panels_;
  std::size_t slab_;                   // chunks that the tiles have room for
  std::size_t panels_, block_;         // of a full block of queries
  std::size_t first_, size_, active_;  // the block at hand: its first query, its queries, its panels
  std::size_t slab_first_ = 0;         // first chunk of the slab at hand

  const Positives positives_;
  std::vector<float> scale_, bias_;                  // (passages,): logit = product * scale + bias
  std::vector<double> negatives_;                    // (queries,): log-sum-exp of the negatives
  std::vector<float> shift_, weight_;                // (queries,), see sum_block and close_rows
  std::vector<float> pair_;                          // logits of the positive pairs
  std::vector<float> pair_weight_;                   // what stands for them among the exponentials
  std::vector<float> ones_;                          // (chunk,)
  std::vector<float> column_max_, column_sum_;       // (passages,): running sums of the other direction
  std::vector<double> column_negatives_;             // (passages,): as negatives_
  std::vector<float> column_shift_, column_weight_;  // (passages,): as shift_ and weight_
  std::vector<float> norm_;                          // (block,): 1 / |q|
  std::vector<std::int32_t> groups_;                 // (block,)
  Scratch sample_;  // (samples, score_stride), and what else `logits` takes of these passages
  std::vector<float> sample_scale_, sample_bias_;
  std::vector<std::int32_t> sample_groups_;
  Workspace workspace_;
  float *packed_, *rows_, *query_sums_;  // see pack_queries, sum_queries
  bool keep_pairs_;                      // whether the next two have the pairs that products are made of
  float *query_pairs_, *passage_pairs_;  // (block, score_stride), (passages, score_stride)
  float* tile_;                          // [panel][passage of the slab][lane]
  float* neighbours_;                    // [passage of the slab][pair of the block's queries]
  std::size_t neighbour_stride_;         // floats between its rows
  float *chunk_max_, *chunk_sum_;        // [panel][chunk][lane]
  bool at_once_;                         // whether gradients are formed from the exponentials of the sums
  bool filtering_;  // whether the filter may be tried, and whether it is in the block at hand
  bool trying_ = false;
  std::vector<float> share_;  // (block,): an exponential times it is a share of its query's negatives
  std::size_t pause_ = 0, untried_ = 0;  // see try_sparsely
  std::vector<float> threshold_;         // (block,), see choose_thresholds
  std::vector<double> row_dropped_;
  std::vector<Entries> entries_;      // (chunks,)
  double skipped_ = 0, dropped_ = 0;  // pairs left out; see InfoNceStats
  std::vector<double> along_;         // (block,): <u, g>
};

}  // namespace hybridfast
