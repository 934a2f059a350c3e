#include "infonce.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "positives.h"
#include "simd/level.h"
#include "threads.h"
#include "workspace.h"

namespace hybridfast {
namespace {

using simd::Operands;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::size_t kTileFloats = 14u << 20;        // the softmax of a block of queries: 56 MB
constexpr std::size_t kFilterTileFloats = 15u << 19;  // 30 MB, where the entries kept need room too
constexpr std::size_t kPairFloats = 4u << 20;         // 16 MB: all passages as bfloat16, where they fit
constexpr std::size_t kMostQueries = 512;             // in a block: their weights for a chunk fit in an L2
// Share of a block's pairs up to which the sparse sums are faster; half of that for bfloat16.
constexpr double kSparseShare = 0.2;
constexpr std::size_t kDepthBlock = 480;  // passages per step of the query gradients' sum
constexpr float kFar = 50;                // see find_shifts: e^50 times the rest stays far from overflow

constexpr std::size_t blocks_of(std::size_t count, std::size_t block) {
  return (count + block - 1) / block;
}

// Passages in a chunk: enough for a kernel's sums to be long, few enough for every thread to get several.
constexpr std::size_t chunk_of(std::size_t passages) {
  if (passages < 2048) return 48;
  return passages < 8192 ? 96 : 240;
}

double softplus(double x) {
  return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
}
double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
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
  InfoNce(const InfoNceProblem& problem, float* losses, const InfoNceGradients* gradients, int threads)
      : problem_(problem),
        losses_(losses),
        gradients_(gradients),
        threads_(threads),
        kernels_(simd::kernels()),
        lanes_(kernels_.columns),
        lane_bits_(std::countr_zero(kernels_.columns)),
        pairs_(problem.bfloat16 && kernels_.multiply_pairs),
        multiply_(pairs_ ? kernels_.multiply_pairs : kernels_.multiply),
        units_(pairs_ ? blocks_of(problem.dim, 2) : problem.dim),
        score_stride_(blocks_of(units_, 16) * 16 + 16),
        chunk_(chunk_of(problem.passages)),
        chunks_(blocks_of(problem.passages, chunk_)),
        samples_(std::min(problem.passages, std::clamp<std::size_t>(problem.passages / 64, 8, 64))),
        sample_step_(problem.passages / samples_),
        dim_panels_(blocks_of(problem.dim, lanes_)),
        positives_(problem, chunk_),
        scale_(problem.passages),
        bias_(problem.passages),
        negatives_(problem.queries),
        shift_(padded(problem.queries)),
        weight_(padded(problem.queries)),
        pair_(positives_.pairs()),
        ones_(chunk_, 1.0f) {
    filtering_ = gradients && gradients->tolerance > 0 && !problem.bidirectional;
    const std::size_t tile_floats = filtering_ ? kFilterTileFloats : kTileFloats;
    slab_ = std::min(chunks_, tile_floats / lanes_ / chunk_);
    at_once_ = gradients && !problem.bidirectional && slab_ == chunks_;
    filtering_ = filtering_ && at_once_;
    const std::size_t most = pairs_ ? 2 * kMostQueries : kMostQueries;  // pairs take half the room
    panels_ = std::clamp<std::size_t>(tile_floats / (slab_ * chunk_) / lanes_, 1, most / lanes_);
    panels_ = std::min(panels_, blocks_of(problem.queries, lanes_));
    block_ = panels_ * lanes_;
    norm_.resize(block_);
    groups_.resize(block_);
    const std::size_t rows = gradients ? dim_panels_ * block_ * lanes_ / (pairs_ ? 2 : 1) : 0;
    const std::size_t sums = gradients ? panels_ * problem.dim * lanes_ : 0;
    keep_pairs_ = filtering_ && pairs_ && problem.passages * score_stride_ <= kPairFloats;
    const std::pair<float**, std::size_t> arrays[] = {
        {&packed_, panels_ * units_ * lanes_},
        {&query_pairs_, keep_pairs_ ? block_ * score_stride_ : 0},
        {&passage_pairs_, keep_pairs_ ? problem.passages * score_stride_ : 0},
        {&tile_, gradients ? panels_ * slab_ * chunk_ * lanes_ : 0},
        {&chunk_max_, panels_ * chunks_ * lanes_},
        {&chunk_sum_, panels_ * chunks_ * lanes_},
        {&rows_, rows},
        {&query_sums_, sums}};
    std::size_t floats = 0;
    for (const auto& [array, count] : arrays) floats += Workspace::rounded(count);
    workspace_.reserve(floats);
    for (const auto& [array, count] : arrays) *array = workspace_.take(count);
    if (problem.bidirectional) {
      column_max_.assign(problem.passages, -kInfinity);
      column_sum_.resize(problem.passages);
      column_negatives_.resize(problem.passages);
    }
    column_shift_.assign(problem.passages, kInfinity);
    column_weight_.resize(problem.passages);
    if (!gradients) return;
    along_.resize(block_);
    if (at_once_) pair_weight_.resize(positives_.pairs());
    if (!filtering_) return;
    share_.resize(block_);
    threshold_.resize(block_);
    row_dropped_.resize(block_);
    entries_.resize(chunks_);
  }

  InfoNceStats run() {
    prepare_passages();
    for (std::size_t first = 0; first < problem_.queries; first += block_) {
      open_block(first);
      trying_ = filtering_ && untried_ == 0;
      if (untried_ > 0) --untried_;
      sum_block();
      if (!gradients_ || problem_.bidirectional) continue;
      const bool sparsely = trying_ && try_sparsely();
      if (!sparsely) form_gradients();
      finish_queries(sparsely);
    }
    if (problem_.bidirectional) close_columns();
    for (std::size_t first = 0; gradients_ && problem_.bidirectional && first < problem_.queries;
         first += block_) {
      open_block(first);
      for_panels([this](std::size_t panel) { pack_queries(panel); });
      form_gradients();
      finish_queries(false);
    }
    const double pairs = static_cast<double>(problem_.queries) * static_cast<double>(problem_.passages);
    return {1 - skipped_ / pairs, dropped_};
  }

 private:
  std::size_t padded(std::size_t queries) const { return blocks_of(queries, lanes_) * lanes_; }
  std::size_t chunk_size(std::size_t chunk) const {
    return std::min(chunk_, problem_.passages - chunk * chunk_);
  }
  float* tile(std::size_t panel, std::size_t passage) const {
    return &tile_[(panel * slab_ * chunk_ + passage - slab_first_ * chunk_) * lanes_];
  }
  // 1 / |row|, or 0 for a zero row. NaN for a row that is not finite, so that it reaches every loss it
  // touches.
  float inverse_norm(const float* row) const {
    const double square = kernels_.dot(row, row, problem_.dim);
    if (!std::isfinite(square)) return std::numeric_limits<float>::quiet_NaN();
    if (!problem_.normalize) return 1.0f;
    return square > 0 ? static_cast<float>(1 / std::sqrt(square)) : 0.0f;
  }
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

  void prepare_passages() {
    parallel_for(chunks_, threads_, [this](std::size_t chunk) {
      Scratch store(problem_.dim);
      for (std::size_t j = chunk * chunk_, end = j + chunk_size(chunk); j < end; ++j)
        scale_[j] = static_cast<float>(inverse_norm(passage(j, store)) / problem_.temperature);
      if (keep_pairs_)
        copy_passages(chunk * chunk_, chunk_size(chunk), &passage_pairs_[chunk * chunk_ * score_stride_]);
    });
    for (std::size_t i = 0; !problem_.in_batch && i < problem_.queries; ++i)
      for (const std::int64_t j : positives_.of(i)) bias_[j] = -kInfinity;
    sample_.reset(samples_ * score_stride_);
    for (std::size_t k = 0; k < samples_; ++k) {
      const std::size_t j = k * sample_step_;
      copy_passages(j, 1, &sample_[k * score_stride_]);
      sample_scale_.push_back(scale_[j]);
      sample_bias_.push_back(bias_[j]);
      if (problem_.passage_groups) sample_groups_.push_back(problem_.passage_groups[j]);
    }
  }

  void open_block(std::size_t first) {
    first_ = first;
    size_ = std::min(block_, problem_.queries - first);
    active_ = blocks_of(size_, lanes_);
  }

  // Lays a panel's unit queries out as dim x lanes, for the scores. Lanes beyond the last query hold zeros.
  void pack_queries(std::size_t panel) {
    Scratch own(pairs_ && !keep_pairs_ ? lanes_ * score_stride_ : 0);
    float* pairs = keep_pairs_ ? &query_pairs_[panel * lanes_ * score_stride_] : own.data();
    Scratch units(lanes_ * row_width()), store(problem_.dim);
    for (std::size_t lane = 0; lane < lanes_; ++lane) {
      const std::size_t slot = panel * lanes_ + lane;
      const bool used = slot < size_;
      norm_[slot] = used ? inverse_norm(query(first_ + slot, store)) : 0.0f;
      if (problem_.query_groups) groups_[slot] = problem_.query_groups[first_ + (used ? slot : 0)];
      float* unit = &units[lane * row_width()];
      scale_query(slot, norm_[slot], unit, store);
      if (pairs_) kernels_.pair_neighbours(unit, problem_.dim, &pairs[lane * score_stride_]);
    }
    kernels_.transpose(pairs_ ? pairs : units.data(), pairs_ ? score_stride_ : row_width(), lanes_, units_,
                       &packed_[panel * units_ * lanes_], lanes_);
  }

  std::size_t row_width() const { return dim_panels_ * lanes_; }

  // A query times a factor, and zeros up to the width of a row.
  void scale_query(std::size_t slot, float factor, float* out, Scratch& store) const {
    const float* row = slot < size_ ? query(first_ + slot, store) : nullptr;
    const std::size_t filled = row ? problem_.dim : 0;
    for (std::size_t d = 0; d < filled; ++d) out[d] = row[d] * factor;
    std::fill(out + filled, out + row_width(), 0.0f);
  }

  // What a panel's tiles leave out of d(objective)/d(product), a factor of the query's.
  float tile_factor(std::size_t slot) const { return at_once_ ? weight_[first_ + slot] : 1.0f; }

  // Lays a panel's unit queries, times that factor, out as panels of dim, for the passage gradients.
  void pack_rows(std::size_t panel) {
    const std::size_t width = row_width(), depth = panel_depth();
    Scratch rows(lanes_ * width), store(problem_.dim);
    for (std::size_t lane = 0; lane < lanes_; ++lane) {
      const std::size_t slot = panel * lanes_ + lane;
      scale_query(slot, slot < size_ ? norm_[slot] * tile_factor(slot) : 0.0f, &rows[lane * width], store);
    }
    for (std::size_t p = 0; p < dim_panels_; ++p) {
      float* out = &rows_[(p * panels_ + panel) * depth * lanes_];
      const float* in = &rows[p * lanes_];
      for (std::size_t k = 0; k < depth; ++k) {
        if (pairs_)
          kernels_.pair_rows(in + 2 * k * width, in + (2 * k + 1) * width, lanes_, out + k * lanes_);
        else
          std::copy_n(in + k * width, lanes_, out + k * lanes_);
      }
    }
  }

  // Steps that a sum over the queries of a panel takes.
  std::size_t panel_depth() const { return pairs_ ? lanes_ / 2 : lanes_; }

  // A chunk's passages as scalars for the scores. The skew keeps the rows that a kernel reads side by side
  // from falling into the same lines of the L1 cache, as those of 1,024 dimensions would.
  void copy_passages(std::size_t first, std::size_t count, float* copies) const {
    Scratch wide(problem_.dim);
    for (std::size_t j = 0; j < count; ++j) {
      float* out = &copies[j * score_stride_];
      const float* row = passage(first + j, wide);
      if (pairs_)
        kernels_.pair_neighbours(row, problem_.dim, out);
      else
        std::copy_n(row, problem_.dim, out);
    }
  }

  // Such copies of a chunk: those that are kept, or some in `store`.
  const float* scalars_of(std::size_t chunk, Scratch& store) const {
    if (keep_pairs_) return &passage_pairs_[chunk * chunk_ * score_stride_];
    store.reset(chunk_size(chunk) * score_stride_);
    copy_passages(chunk * chunk_, chunk_size(chunk), store.data());
    return store.data();
  }

  // The logits of a chunk's negatives; -inf elsewhere. Leaves those of the positives in pair_.
  void score(std::size_t panel, std::size_t chunk, const float* passages, float* logits) {
    const std::size_t first = chunk * chunk_, count = chunk_size(chunk);
    multiply_({passages, score_stride_, 1, &packed_[panel * units_ * lanes_], units_}, count, logits, lanes_,
              false);
    const double margin = problem_.margin / problem_.temperature;
    const auto positives = positives_in(panel, chunk);
    for (const auto& pair : positives)
      pair_[pair.index] =
          static_cast<float>(logits[place_of(pair, panel, first)] * scale_[pair.passage] - margin);
    const std::int32_t* groups = problem_.passage_groups ? problem_.passage_groups + first : nullptr;
    kernels_.logits(logits, count, &scale_[first], &bias_[first], groups, &groups_[panel * lanes_]);
    for (const auto& pair : positives) logits[place_of(pair, panel, first)] = -kInfinity;
  }

  std::span<const Positives::Pair> positives_in(std::size_t panel, std::size_t chunk) const {
    const std::size_t query = first_ + panel * lanes_;
    return positives_.among(query, query + lanes_, chunk);
  }
  // In the tile of a panel and the chunk that begins with passage `first`.
  std::size_t place_of(const Positives::Pair& pair, std::size_t panel, std::size_t first) const {
    return (pair.passage - first) * lanes_ + pair.query - first_ - panel * lanes_;
  }

  // Each query's sum of exp(logit - shift) over its negatives, and what follows from it. The shift is any
  // number near the largest logit: the largest of a sample's, or, where that is far from the largest of all,
  // that one in a second round.
  void sum_block() {
    for_panels([this](std::size_t panel) {
      pack_queries(panel);
      find_shifts(panel);
    });
    std::vector<std::size_t> panels(active_);
    std::iota(panels.begin(), panels.end(), std::size_t{0});
    for (bool first_round : {true, false}) {
      for (slab_first_ = 0; slab_first_ < chunks_; slab_first_ += slab_)
        for_chunks([&](std::size_t chunk) { sum_chunk(chunk, panels, first_round); });
      if (first_round) std::erase_if(panels, [this](std::size_t panel) { return !move_shifts(panel); });
      if (panels.empty()) break;
    }
    slab_first_ = 0;
    std::fill(share_.begin(), share_.end(), 0.0f);
    for_panels([this](std::size_t panel) { close_rows(panel); });
  }

  void find_shifts(std::size_t panel) {
    Scratch store(samples_ * lanes_);
    float* logits = store.data();
    multiply_({sample_.data(), score_stride_, 1, &packed_[panel * units_ * lanes_], units_}, samples_, logits,
              lanes_, false);
    kernels_.logits(logits, samples_, sample_scale_.data(), sample_bias_.data(),
                    problem_.passage_groups ? sample_groups_.data() : nullptr, &groups_[panel * lanes_]);
    const std::size_t begin = panel * lanes_, end = std::min(begin + lanes_, size_);
    for (std::size_t slot = begin; slot < end; ++slot)
      for (const std::int64_t j : positives_.of(first_ + slot)) {
        const std::size_t k = static_cast<std::size_t>(j) / sample_step_;
        if (k < samples_ && k * sample_step_ == static_cast<std::size_t>(j))
          logits[k * lanes_ + slot - begin] = -kInfinity;
      }
    for (std::size_t lane = 0; lane < lanes_; ++lane) {
      float top = -kInfinity;
      for (std::size_t k = 0; k < samples_; ++k) top = std::max(top, logits[k * lanes_ + lane]);
      shift_[first_ + begin + lane] = std::isfinite(top) ? top : 0.0f;
    }
  }

  // Takes the largest logit for the shift of those queries of a panel where the two are far from each other.
  bool move_shifts(std::size_t panel) {
    bool moved = false;
    for (std::size_t slot = panel * lanes_; slot < std::min((panel + 1) * lanes_, size_); ++slot) {
      float top = -kInfinity;
      for (std::size_t chunk = 0; chunk < chunks_; ++chunk)
        top = std::max(top, chunk_max_[(panel * chunks_ + chunk) * lanes_ + slot % lanes_]);
      if (!std::isfinite(top) || std::abs(top - shift_[first_ + slot]) <= kFar) continue;
      shift_[first_ + slot] = top;
      moved = true;
    }
    return moved;
  }

  // Leaves exponentials in the tiles where gradients follow at once: as they are if the filter is to be
  // tried, else finished but for the positives.
  void sum_chunk(std::size_t chunk, const std::vector<std::size_t>& panels, bool first_round) {
    const std::size_t first = chunk * chunk_, count = chunk_size(chunk);
    const bool finish = at_once_ && !trying_;
    Scratch copies, logits(count * lanes_);
    const float* passages = scalars_of(chunk, copies);
    for (const std::size_t panel : panels) {
      score(panel, chunk, passages, logits.data());
      if (problem_.bidirectional && first_round)
        kernels_.add_rows(logits.data(), count, std::min(lanes_, size_ - panel * lanes_), &column_max_[first],
                          &column_sum_[first]);
      const float* shift = &shift_[first_ + panel * lanes_];
      const float* scale = finish ? &scale_[first] : ones_.data();
      float* max = &chunk_max_[(panel * chunks_ + chunk) * lanes_];
      float* sum = &chunk_sum_[(panel * chunks_ + chunk) * lanes_];
      if (finish && pairs_)
        kernels_.paired_exponentials(logits.data(), count, shift, scale, max, sum, tile(panel, first),
                                     neighbours(panel, first));
      else
        kernels_.exponentials(logits.data(), count, shift, scale, max, sum,
                              at_once_ ? tile(panel, first) : logits.data());
    }
  }

  // Joins the chunks' sums into the log-sum-exp of each query's negatives. After it, weight_ says that a
  // negative's gradient is weight * exp(logit - shift).
  void close_rows(std::size_t panel) {
    for (std::size_t lane = 0; lane < lanes_ && panel * lanes_ + lane < size_; ++lane) {
      double total = 0;
      for (std::size_t chunk = 0; chunk < chunks_; ++chunk)
        total += chunk_sum_[(panel * chunks_ + chunk) * lanes_ + lane];
      close_row(panel * lanes_ + lane, total);
    }
  }

  void close_row(std::size_t slot, double total) {
    const std::size_t i = first_ + slot;
    const std::size_t begin = positives_.first_pair(i), end = positives_.first_pair(i + 1);
    const double share = direction() / static_cast<double>(end - begin);
    negatives_[i] = shift_[i] + std::log(total);
    double loss = 0, off = 0;
    for (std::size_t pair = begin; pair < end; ++pair) {
      loss += share * softplus(negatives_[i] - pair_[pair]);
      off += share * sigmoid(negatives_[i] - pair_[pair]);
    }
    losses_[i] = static_cast<float>(loss);
    if (!gradients_) return;
    weight_[i] = total == 0 ? 0.0f : static_cast<float>(gradients_->weights[i] * off / total);
    for (std::size_t pair = begin; at_once_ && pair < end; ++pair)
      pair_weight_[pair] =
          off == 0 ? 0.0f : static_cast<float>(-total * share / off * sigmoid(negatives_[i] - pair_[pair]));
    if (trying_) share_[slot] = total == 0 ? 0.0f : static_cast<float>(1 / total);
  }

  // Where there is no negative, exp(logit - shift) has to be 0 rather than exp(-inf + inf).
  static float finite_shift(float top) { return top == -kInfinity ? kInfinity : top; }

  double direction() const { return problem_.bidirectional ? 0.5 : 1.0; }

  // The same for the other direction, a row of which is a passage and its queries: every positive pair has a
  // row.
  void close_columns() {
    for (std::size_t j = 0; j < problem_.passages; ++j) {
      column_negatives_[j] = column_max_[j] + std::log(static_cast<double>(column_sum_[j]));
      column_shift_[j] = finite_shift(column_max_[j]);
    }
    std::vector<double> weights(gradients_ ? problem_.passages : 0);
    for (std::size_t i = 0; i < problem_.queries; ++i) {
      const auto passages = positives_.of(i);
      const double share = direction() / static_cast<double>(passages.size());
      double loss = 0;
      for (std::size_t k = 0; k < passages.size(); ++k) {
        const double gap = column_negatives_[passages[k]] - pair_[positives_.first_pair(i) + k];
        loss += share * softplus(gap);
        if (gradients_) weights[passages[k]] += share * gradients_->weights[i] * sigmoid(gap);
      }
      losses_[i] += static_cast<float>(loss);
    }
    for (std::size_t j = 0; j < weights.size(); ++j)
      column_weight_[j] = column_sum_[j] == 0 ? 0.0f : static_cast<float>(weights[j] / column_sum_[j]);
  }

  // d(objective)/d(logit) of a positive pair.
  double pair_gradient(const Positives::Pair& pair) const {
    const auto count = static_cast<double>(positives_.of(pair.query).size());
    double off = sigmoid(negatives_[pair.query] - pair_[pair.index]);
    if (problem_.bidirectional) off += sigmoid(column_negatives_[pair.passage] - pair_[pair.index]);
    return -direction() * off * gradients_->weights[pair.query] / count;
  }

  void form_gradients() {
    if (gradients_->passage_grads) for_panels([this](std::size_t panel) { pack_rows(panel); });
    for (slab_first_ = 0; slab_first_ < chunks_; slab_first_ += slab_) {
      for_chunks([this](std::size_t chunk) {
        if (!at_once_)
          weigh_chunk(chunk);
        else if (trying_)
          scale_chunk(chunk);
        place_positives(chunk);
        sum_passages(chunk);
        finish_passages(chunk);
      });
      sum_queries();
    }
    slab_first_ = 0;
  }

  // Forms a chunk's d(objective)/d(product), from products once more.
  void weigh_chunk(std::size_t chunk) {
    const std::size_t first = chunk * chunk_, count = chunk_size(chunk);
    Scratch copies, logits(count * lanes_);
    const float* passages = scalars_of(chunk, copies);
    for (std::size_t panel = 0; panel < active_; ++panel) {
      const std::size_t row = first_ + panel * lanes_;
      score(panel, chunk, passages, logits.data());
      kernels_.weigh(logits.data(), count, &scale_[first], &shift_[row], &weight_[row], &column_shift_[first],
                     &column_weight_[first], pairs_ ? logits.data() : tile(panel, first));
      if (pairs_) pair_tile(panel, chunk, logits.data());
    }
  }

  // Finishes the exponentials that the filter was tried on.
  void scale_chunk(std::size_t chunk) {
    const std::size_t first = chunk * chunk_, count = chunk_size(chunk);
    const std::vector<float> zeros(count);
    Scratch scratch(pairs_ ? count * lanes_ : 0);
    for (std::size_t panel = 0; panel < active_; ++panel) {
      float* weights = tile(panel, first);
      kernels_.logits(weights, count, &scale_[first], zeros.data(), nullptr, nullptr);
      if (!pairs_) continue;
      std::copy_n(weights, count * lanes_, scratch.data());
      pair_tile(panel, chunk, scratch.data());
    }
  }

  // As pairs, a tile is kept twice: its rows', for the query gradients, and in the second half of its place
  // those of neighbours in a row, for the passages'.
  void pair_tile(std::size_t panel, std::size_t chunk, const float* weights) {
    const std::size_t first = chunk * chunk_;
    kernels_.pair_tile(weights, chunk_size(chunk), tile(panel, first), neighbours(panel, first));
  }
  float* neighbours(std::size_t panel, std::size_t first) const {
    return tile(panel, first) + chunk_ / 2 * lanes_;
  }

  void place_positives(std::size_t chunk) {
    const std::size_t first = chunk * chunk_;
    for (std::size_t panel = 0; panel < active_; ++panel)
      for (const auto& pair : positives_in(panel, chunk)) {
        const double weight = at_once_ ? pair_weight_[pair.index] : pair_gradient(pair);
        const auto value = static_cast<float>(weight * scale_[pair.passage]);
        const std::size_t place = place_of(pair, panel, first);
        if (!pairs_) {
          tile(panel, first)[place] = value;
          continue;
        }
        const std::size_t row = place / lanes_, lane = place % lanes_;
        const Brain rounded = narrow(value);
        reinterpret_cast<Brain*>(tile(panel, first))[2 * (row / 2 * lanes_ + lane) + row % 2] = rounded;
        reinterpret_cast<Brain*>(neighbours(panel, first))[place] = rounded;
      }
  }

  void sum_passages(std::size_t chunk) {
    if (!gradients_->passage_grads) return;
    const std::size_t first = chunk * chunk_, count = chunk_size(chunk), depth = panel_depth();
    const float* weights = pairs_ ? neighbours(0, first) : tile(0, first);
    const std::size_t panel_stride = slab_ * chunk_ * lanes_;
    Scratch edge;
    const bool add = first_ > 0;
    for (std::size_t p = 0; p < dim_panels_; ++p) {
      float* out = gradients_->passage_grads + first * problem_.dim + p * lanes_;
      const std::size_t width = std::min(lanes_, problem_.dim - p * lanes_);
      const float* panel = &rows_[p * panels_ * depth * lanes_];
      const Operands operands{weights, depth, 1, panel, depth, active_, panel_stride, depth * lanes_};
      if (width == lanes_) {
        multiply_(operands, count, out, problem_.dim, add);
        continue;
      }
      edge.reset(count * lanes_);
      multiply_(operands, count, edge.data(), lanes_, false);
      for (std::size_t j = 0; j < count; ++j)
        for (std::size_t c = 0; c < width; ++c)
          out[j * problem_.dim + c] = edge[j * lanes_ + c] + (add ? out[j * problem_.dim + c] : 0.0f);
    }
  }

  // query_sums_[panel] (dim x lanes) += the sum over the slab's passages of weight times passage.
  void sum_queries() {
    if (!gradients_->query_grads) return;
    const std::size_t slices = std::min<std::size_t>(2 * threads_, blocks_of(problem_.dim, 96));
    const std::size_t last = std::min((slab_first_ + slab_) * chunk_, problem_.passages);
    parallel_for(slices, threads_, [&](std::size_t slice) {
      const std::size_t begin = problem_.dim * slice / slices, end = problem_.dim * (slice + 1) / slices;
      for (std::size_t first = slab_first_ * chunk_; first < last;) {
        const std::size_t chunks = std::min(kDepthBlock / chunk_, (last - first) / chunk_);
        const std::size_t count = chunks > 0 ? chunks * chunk_ : last - first;  // the last chunk may be short
        sum_slice(begin, end, first, count, chunks > 0 ? chunks : 1);
        first += count;
      }
    });
  }

  void sum_slice(std::size_t begin, std::size_t end, std::size_t first, std::size_t count,
                 std::size_t chunks) {
    const std::size_t width = end - begin;
    Scratch store;
    Operands operands = slice_scalars(begin, width, first, count, chunks, store);
    for (std::size_t panel = 0; panel < active_; ++panel) {
      operands.panel = tile(panel, first);
      multiply_(operands, width, &query_sums_[(panel * problem_.dim + begin) * lanes_], lanes_, first > 0);
    }
  }

  // A slice of the passages' dimensions as scalars of that sum; in `store`, unless they stand as floats
  // already.
  Operands slice_scalars(std::size_t begin, std::size_t width, std::size_t first, std::size_t count,
                         std::size_t chunks, Scratch& store) const {
    const Embeddings& rows = problem_.passage_rows;
    const std::size_t depth = count / chunks, panel_block = chunk_ * lanes_;
    Scratch even(width), odd(width);
    if (!pairs_ && rows.element == Element::float32)
      return {row_of(rows, first, even, begin, width),
              1,
              problem_.dim,
              nullptr,
              depth,
              chunks,
              depth * problem_.dim,
              panel_block};
    const std::size_t steps = pairs_ ? blocks_of(depth, 2) : depth;
    const std::vector<float> zeros(width);
    store.reset(chunks * steps * width);
    for (std::size_t j = 0; j < count; j += pairs_ ? 2 : 1) {
      const float* row = row_of(rows, first + j, even, begin, width);
      if (!pairs_) {
        std::copy_n(row, width, &store[j * width]);
        continue;
      }
      const float* next = j + 1 < count ? row_of(rows, first + j + 1, odd, begin, width) : zeros.data();
      kernels_.pair_rows(row, next, width, &store[j / 2 * width]);
    }
    return {store.data(), 1, width, nullptr, steps, chunks, steps * width, panel_block};
  }

  float* query_grad(std::size_t slot) const {
    return gradients_->query_grads + (first_ + slot) * problem_.dim;
  }

  // Neighbouring blocks are alike: after a dense one the next few are not tried, ever more of them.
  bool try_sparsely() {
    const bool sparse = sum_sparsely();
    pause_ = sparse ? 0 : std::min<std::size_t>(2 * pause_ + 1, 7);
    untried_ = pause_;
    return sparse;
  }

  // The certified filter. Forms the block's gradients from its positives and the negatives above a threshold,
  // chosen for each query so that those below sum to at most the tolerance. Returns false, having changed
  // nothing, where too many are left for that to pay.
  bool sum_sparsely() {
    const auto negatives = static_cast<float>(gradients_->tolerance / static_cast<double>(problem_.passages));
    for_panels([&](std::size_t panel) { choose_thresholds(panel, negatives); });
    if (std::any_of(row_dropped_.begin(), row_dropped_.begin() + size_,
                    [](double x) { return std::isnan(x); }))
      return false;
    const double pairs = static_cast<double>(size_) * static_cast<double>(problem_.passages);
    const auto most = static_cast<std::size_t>((pairs_ ? kSparseShare / 2 : kSparseShare) * pairs);
    std::atomic<std::size_t> kept{0};
    for_chunks([&](std::size_t chunk) { select_entries(chunk, most, kept); });
    if (kept > most) return false;
    skipped_ += pairs - static_cast<double>(kept.load());
    for (std::size_t slot = 0; slot < size_; ++slot) dropped_ = std::max(dropped_, row_dropped_[slot]);
    for_chunks([this](std::size_t chunk) {
      combine_queries(chunk);
      finish_passages(chunk);
    });
    if (gradients_->query_grads) for_panels([this](std::size_t panel) { combine_passages(panel); });
    return true;
  }

  // Takes a high level that each query can afford to lose. A sample of the passages tells which levels are
  // near the highest, and only these are summed over all passages; if one of the queries cannot afford the
  // lowest of them, all levels. Entries below tolerance / passages always can be dropped.
  void choose_thresholds(std::size_t panel, float lowest) {
    constexpr std::size_t kLevels = simd::TileKernels::kLevels, kNear = simd::TileKernels::kNearLevels;
    constexpr std::size_t kSampled = 8;  // one passage of so many
    std::vector<float> bounds(lanes_, 2 * lowest);
    std::vector<double> totals = survey(panel, kSampled, bounds.data(), kLevels);
    std::vector<std::size_t> start(lanes_);
    for (std::size_t lane = 0; lane < lanes_; ++lane) {
      const std::size_t level = affordable(totals, lane, kLevels, gradients_->tolerance / kSampled);
      start[lane] = std::clamp(level, kNear - 1, kLevels - 1) - (kNear - 1);
      bounds[lane] = lowest * static_cast<float>(2u << start[lane]);
    }
    totals = survey(panel, 1, bounds.data(), kNear);
    std::size_t levels = kNear;
    for (std::size_t lane = 0; lane < lanes_; ++lane)
      if (start[lane] > 0 && affordable(totals, lane, 1, gradients_->tolerance) == 0) levels = kLevels;
    if (levels == kLevels) {
      std::fill(start.begin(), start.end(), 0);
      std::fill(bounds.begin(), bounds.end(), 2 * lowest);
      totals = survey(panel, 1, bounds.data(), kLevels);
    }
    for (std::size_t lane = 0; lane < lanes_ && panel * lanes_ + lane < size_; ++lane) {
      const std::size_t slot = panel * lanes_ + lane;
      const std::size_t level = affordable(totals, lane, levels, gradients_->tolerance);
      threshold_[slot] = lowest * static_cast<float>(1u << (level > 0 ? start[lane] + level : 0));
      row_dropped_[slot] = level > 0 ? totals[(level - 1) * lanes_ + lane]
                                     : std::min(totals[lane], gradients_->tolerance);  // NaN stays NaN
    }
  }

  // What each query of a panel would lose at levels from its bound on: totals[level * lanes + lane].
  std::vector<double> survey(std::size_t panel, std::size_t step, const float* bounds,
                             std::size_t levels) const {
    std::vector<double> totals(levels * lanes_);
    std::vector<float> dropped(levels * lanes_);
    for (std::size_t chunk = 0; chunk < chunks_; ++chunk) {
      std::fill(dropped.begin(), dropped.end(), 0.0f);
      kernels_.survey(tile(panel, chunk * chunk_), chunk_size(chunk), step, &share_[panel * lanes_], bounds,
                      levels, dropped.data());
      for (std::size_t k = 0; k < totals.size(); ++k) totals[k] += dropped[k];
    }
    return totals;
  }

  // How many levels, from the lowest on, a query can afford.
  std::size_t affordable(const std::vector<double>& totals, std::size_t lane, std::size_t levels,
                         double tolerance) const {
    std::size_t level = 0;
    while (level < levels && totals[level * lanes_ + lane] <= tolerance) ++level;
    return level;
  }

  // The block's entries in one chunk, panel by panel, the positives last: `place` is row * lanes_ + lane in
  // the panel's tile, `weight` is d(objective)/d(product) but for the query's factor.
  struct Entries {
    std::vector<std::uint32_t> place;
    std::vector<float> weight;
    std::vector<std::size_t> panel_end;  // where each panel's end
  };

  // Of a place, by bits: lanes are a power of two, and a division would cost as much as the entry's sum.
  std::uint32_t lane_in_tile(std::uint32_t place) const {
    return place & (static_cast<std::uint32_t>(lanes_) - 1);
  }
  std::uint32_t row_in_tile(std::uint32_t place) const { return place >> lane_bits_; }

  // Stops once the block has `kept` more than `most`: all the chunks do then, or none, whatever their order.
  void select_entries(std::size_t chunk, std::size_t most, std::atomic<std::size_t>& kept) {
    const std::size_t first = chunk * chunk_, count = chunk_size(chunk), limit = count * lanes_;
    Entries& entries = entries_[chunk];
    entries.place.clear();
    entries.weight.clear();
    entries.panel_end.clear();
    std::vector<std::uint32_t> places(limit + 2 * lanes_);
    std::vector<float> threshold(lanes_);
    for (std::size_t panel = 0; panel < active_; ++panel) {
      const float* exponentials = tile(panel, first);
      for (std::size_t lane = 0; lane < lanes_; ++lane) {
        const std::size_t slot = panel * lanes_ + lane;
        threshold[lane] = share_[slot] > 0 ? threshold_[slot] / share_[slot] : kInfinity;
      }
      const std::size_t found = kernels_.select(exponentials, count, threshold.data(), limit, places.data());
      if ((kept += found) > most) return;
      for (std::size_t k = 0; k < found; ++k) {
        entries.place.push_back(places[k]);
        entries.weight.push_back(exponentials[places[k]] * scale_[first + row_in_tile(places[k])]);
      }
      for (const auto& pair : positives_in(panel, chunk)) {
        entries.place.push_back(static_cast<std::uint32_t>(place_of(pair, panel, first)));
        entries.weight.push_back(pair_weight_[pair.index] * scale_[pair.passage]);
      }
      entries.panel_end.push_back(entries.place.size());
    }
  }

  // Entries sorted by the row that they are summed into.
  struct ByRow {
    explicit ByRow(std::size_t rows) : end(rows + 1) {}
    void count(std::size_t row) { ++end[row + 1]; }
    void reserve() {
      for (std::size_t row = 1; row < end.size(); ++row) end[row] += end[row - 1];
      index.resize(end.back());
      weight.resize(end.back());
    }
    void add(std::size_t row, std::size_t other, float w) {
      index[end[row]] = static_cast<std::uint32_t>(other);
      weight[end[row]++] = w;
    }
    std::size_t begin(std::size_t row) const { return row == 0 ? 0 : end[row - 1]; }

    std::vector<std::size_t> end;
    std::vector<std::uint32_t> index;
    std::vector<float> weight;
  };

  void combine_queries(std::size_t chunk) {
    if (!gradients_->passage_grads) return;
    const Entries& entries = entries_[chunk];
    ByRow sorted(chunk_size(chunk));
    for (const std::uint32_t place : entries.place) sorted.count(row_in_tile(place));
    sorted.reserve();
    for (std::size_t panel = 0, k = 0; panel < active_; ++panel)
      for (; k < entries.panel_end[panel]; ++k) {
        const std::size_t slot = panel * lanes_ + lane_in_tile(entries.place[k]);
        sorted.add(row_in_tile(entries.place[k]), slot,
                   entries.weight[k] * tile_factor(slot) * (keep_pairs_ ? 1.0f : norm_[slot]));
      }
    for (std::size_t row = 0; row < chunk_size(chunk); ++row)
      combine(problem_.query_rows, first_, query_pairs_, sorted, row,
              gradients_->passage_grads + (chunk * chunk_ + row) * problem_.dim, first_ > 0);
  }

  void combine_passages(std::size_t panel) {
    ByRow sorted(lanes_);
    const auto each = [&](auto visit) {
      for (std::size_t chunk = 0; chunk < chunks_; ++chunk) {
        const Entries& entries = entries_[chunk];
        for (std::size_t k = panel == 0 ? 0 : entries.panel_end[panel - 1]; k < entries.panel_end[panel]; ++k)
          visit(lane_in_tile(entries.place[k]), chunk * chunk_ + row_in_tile(entries.place[k]),
                entries.weight[k]);
      }
    };
    each([&](std::size_t lane, std::size_t, float) { sorted.count(lane); });
    sorted.reserve();
    each([&](std::size_t lane, std::size_t j, float weight) { sorted.add(lane, j, weight); });
    for (std::size_t lane = 0; lane < lanes_ && panel * lanes_ + lane < size_; ++lane)
      combine(problem_.passage_rows, 0, passage_pairs_, sorted, lane, query_grad(panel * lanes_ + lane),
              false);
  }

  // out (+)= the sum of a row's entries, each a weight times one of the embeddings from `first` on, or of
  // their `pairs` where those are kept.
  void combine(const Embeddings& embeddings, std::size_t first, const float* pairs, const ByRow& sorted,
               std::size_t row, float* out, bool add) const {
    const std::uint32_t* index = &sorted.index[sorted.begin(row)];
    const float* weight = &sorted.weight[sorted.begin(row)];
    const std::size_t count = sorted.end[row] - sorted.begin(row), dim = problem_.dim;
    if (keep_pairs_) {
      kernels_.combine_pairs(pairs, score_stride_, dim, index, weight, count, out, add);
      return;
    }
    Scratch wide;
    if (embeddings.element == Element::float32) {
      kernels_.combine_rows(row_of(embeddings, first, wide, 0, dim), dim, index, weight, count, out, add);
      return;
    }
    constexpr std::uint32_t kSpan = 32;  // entries whose embeddings are widened at a time
    std::uint32_t places[kSpan];
    std::iota(places, places + kSpan, 0u);
    wide.reset(kSpan * dim);
    for (std::size_t k = 0; k == 0 || k < count; k += kSpan) {
      const std::size_t span = std::min<std::size_t>(kSpan, count - k);
      for (std::size_t i = 0; i < span; ++i)
        widen_row(embeddings, first + index[k + i], 0, dim, &wide[i * dim]);
      kernels_.combine_rows(wide.data(), dim, places, weight + k, span, out, add || k > 0);
    }
  }

  // Lays the sums out as gradients, unless `sparsely` they are formed there, and takes them back through the
  // normalisation. As a sum of weights times products, <u, g> of the queries is also the temperature's
  // gradient, but for the margin.
  void finish_queries(bool sparsely) {
    if (!gradients_->query_grads) return;
    for_panels([this, sparsely](std::size_t panel) {
      const std::size_t begin = panel * lanes_, end = std::min(begin + lanes_, size_);
      Scratch store(problem_.dim);
      if (!sparsely)
        kernels_.transpose(&query_sums_[panel * problem_.dim * lanes_], lanes_, problem_.dim, end - begin,
                           query_grad(begin), problem_.dim);
      for (std::size_t slot = begin; slot < end; ++slot) {
        const std::size_t i = first_ + slot;
        const float factor = tile_factor(slot);
        double along =
            factor * finish_row(query(i, store), norm_[slot], query_grad(slot), norm_[slot] * factor);
        const auto passages = positives_.of(i);
        auto index = static_cast<std::uint32_t>(positives_.first_pair(i));
        for (std::size_t k = 0; problem_.margin != 0 && k < passages.size(); ++k, ++index)
          along -=
              pair_gradient({index, static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(passages[k])}) *
              problem_.margin / problem_.temperature;
        along_[slot] = along;
      }
    });
    for (std::size_t slot = 0; slot < size_; ++slot)
      *gradients_->temperature_grad -= along_[slot] / problem_.temperature;
  }

  // The same for a chunk's passages, once the last block is in their gradients.
  void finish_passages(std::size_t chunk) {
    if (!gradients_->passage_grads || !problem_.normalize || first_ + size_ < problem_.queries) return;
    Scratch store(problem_.dim);
    for (std::size_t j = chunk * chunk_, end = j + chunk_size(chunk); j < end; ++j)
      finish_row(passage(j, store), scale_[j] * problem_.temperature,
                 gradients_->passage_grads + j * problem_.dim, 1.0f);
  }

  // Takes a gradient back through the normalisation, u = row / |row|: g = (g - u <u, g>) * factor. Returns
  // <u, g>.
  double finish_row(const float* row, double inverse, float* grad, float factor) const {
    const double along = kernels_.dot(row, grad, problem_.dim) * inverse;
    const double radial = problem_.normalize ? along * inverse : 0.0;
    kernels_.project(grad, row, static_cast<float>(radial), factor, problem_.dim);
    return along;
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

}  // namespace

InfoNceStats info_nce(const InfoNceProblem& problem, float* losses, const InfoNceGradients* gradients,
                      int threads) {
  InfoNceStats stats;
  with_threads(threads, [&] { stats = InfoNce(problem, losses, gradients, threads).run(); });
  return stats;
}

}  // namespace hybridfast
