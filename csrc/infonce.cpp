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
// chunks; the tile of (panel, chunk) holds first products, then exponentials, at last
// d(objective)/d(product).
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
        dim_panels_(blocks_of(problem.dim, lanes_)),
        positives_(problem, chunk_),
        scale_(problem.passages),
        bias_(problem.passages),
        negatives_(problem.queries),
        shift_(padded(problem.queries)),
        weight_(padded(problem.queries)),
        pair_(positives_.pairs()) {
    filtering_ = gradients && gradients->tolerance > 0 && !problem.bidirectional;
    const std::size_t tile_floats = filtering_ ? kFilterTileFloats : kTileFloats;
    slab_ = std::min(chunks_, tile_floats / lanes_ / chunk_);
    filtering_ = filtering_ && slab_ == chunks_;
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
        {&tile_, panels_ * slab_ * chunk_ * lanes_},
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
    if (!filtering_) return;
    threshold_.resize(block_);
    row_dropped_.resize(block_);
    entries_.resize(chunks_);
  }

  InfoNceStats run() {
    prepare_passages();
    const bool one_stage = !problem_.bidirectional && slab_ == chunks_;
    for (std::size_t first = 0; first < problem_.queries; first += block_) {
      open_block(first);
      for (slab_first_ = 0; slab_first_ < chunks_; slab_first_ += slab_)
        for_chunks([this](std::size_t chunk) { sum_chunk(chunk); });
      for_panels([this](std::size_t panel) { close_rows(panel); });
      if (!gradients_ || !one_stage) continue;
      slab_first_ = 0;
      if (filtering_ && try_sparsely()) {
        finish_queries();
        continue;
      }
      for_chunks([this](std::size_t chunk) { rescale_chunk(chunk); });
      sum_queries();
      transpose_queries();
      finish_queries();
    }
    if (problem_.bidirectional) close_columns();
    for (std::size_t first = 0; gradients_ && !one_stage && first < problem_.queries; first += block_) {
      open_block(first);
      for (slab_first_ = 0; slab_first_ < chunks_; slab_first_ += slab_) {
        for_chunks([this](std::size_t chunk) { weigh_chunk(chunk); });
        sum_queries();
      }
      transpose_queries();
      finish_queries();
    }
    if (gradients_) finish_passages();
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
    if (problem_.in_batch) return;
    for (std::size_t i = 0; i < problem_.queries; ++i)
      for (const std::int64_t j : positives_.of(i)) bias_[j] = -kInfinity;
  }

  void open_block(std::size_t first) {
    first_ = first;
    size_ = std::min(block_, problem_.queries - first);
    active_ = blocks_of(size_, lanes_);
    for_panels([this](std::size_t panel) { pack_queries(panel); });
  }

  // Lays a panel's unit queries out twice: as dim x lanes for the scores and, in rows_, as panels of dim for
  // the passage gradients. Lanes beyond the last query hold zeros and weigh nothing.
  void pack_queries(std::size_t panel) {
    const std::size_t width = dim_panels_ * lanes_;
    std::vector<float> units(lanes_ * width), own(pairs_ && !keep_pairs_ ? lanes_ * score_stride_ : 0);
    float* pairs = keep_pairs_ ? &query_pairs_[panel * lanes_ * score_stride_] : own.data();
    Scratch store(problem_.dim);
    for (std::size_t lane = 0; lane < lanes_; ++lane) {
      const std::size_t slot = panel * lanes_ + lane;
      const bool used = slot < size_;
      const float* row = used ? query(first_ + slot, store) : nullptr;
      norm_[slot] = used ? inverse_norm(row) : 0.0f;
      if (problem_.query_groups) groups_[slot] = problem_.query_groups[first_ + (used ? slot : 0)];
      float* unit = &units[lane * width];
      for (std::size_t d = 0; used && d < problem_.dim; ++d) unit[d] = row[d] * norm_[slot];
      if (pairs_) kernels_.pair_neighbours(unit, problem_.dim, &pairs[lane * score_stride_]);
    }
    kernels_.transpose(pairs_ ? pairs : units.data(), pairs_ ? score_stride_ : width, lanes_, units_,
                       &packed_[panel * units_ * lanes_], lanes_);
    const std::size_t depth = panel_depth();
    for (std::size_t p = 0; gradients_ && p < dim_panels_; ++p) {
      float* out = &rows_[(p * panels_ + panel) * depth * lanes_];
      const float* in = &units[p * lanes_];
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
  void score(std::size_t panel, std::size_t chunk, const float* passages) {
    const std::size_t first = chunk * chunk_, count = chunk_size(chunk);
    float* logits = tile(panel, first);
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

  // Leaves exp(logit - the chunk's maximum) in the tiles.
  void sum_chunk(std::size_t chunk) {
    const std::size_t first = chunk * chunk_, count = chunk_size(chunk);
    Scratch store;
    const float* passages = scalars_of(chunk, store);
    for (std::size_t panel = 0; panel < active_; ++panel) {
      float* logits = tile(panel, first);
      score(panel, chunk, passages);
      if (problem_.bidirectional)
        kernels_.add_rows(logits, count, std::min(lanes_, size_ - panel * lanes_), &column_max_[first],
                          &column_sum_[first]);
      const std::size_t sums = (panel * chunks_ + chunk) * lanes_;
      kernels_.softmax(logits, count, &chunk_max_[sums], &chunk_sum_[sums]);
    }
  }

  // Joins the chunks' sums into the log-sum-exp of each query's negatives. After it, shift_ and weight_ say
  // that a negative's gradient is weight * exp(logit - shift).
  void close_rows(std::size_t panel) {
    std::vector<float> top(lanes_);
    std::vector<double> total(lanes_);
    kernels_.join(&chunk_max_[panel * chunks_ * lanes_], &chunk_sum_[panel * chunks_ * lanes_], chunks_,
                  top.data(), total.data());
    for (std::size_t lane = 0; lane < lanes_ && panel * lanes_ + lane < size_; ++lane)
      close_row(first_ + panel * lanes_ + lane, top[lane], total[lane]);
  }

  // The shift is the largest logit, which a float holds exactly, and the weight takes the rest: a rounded
  // log-sum-exp would put an error of its own magnitude into every exponential.
  void close_row(std::size_t i, float top, double total) {
    const std::size_t begin = positives_.first_pair(i), end = positives_.first_pair(i + 1);
    const double share = direction() / static_cast<double>(end - begin);
    negatives_[i] = top + std::log(total);
    double loss = 0, off = 0;
    for (std::size_t pair = begin; pair < end; ++pair) {
      loss += share * softplus(negatives_[i] - pair_[pair]);
      off += share * sigmoid(negatives_[i] - pair_[pair]);
    }
    losses_[i] = static_cast<float>(loss);
    if (!gradients_) return;
    shift_[i] = finite_shift(top);
    weight_[i] = total == 0 ? 0.0f : static_cast<float>(gradients_->weights[i] * off / total);
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

  // Turns a chunk's exponentials into weights, d(objective)/d(product), and adds its passages' gradients.
  void rescale_chunk(std::size_t chunk) {
    const std::size_t first = chunk * chunk_, count = chunk_size(chunk);
    Scratch store(pair_floats(count));
    for (std::size_t panel = 0; panel < active_; ++panel) {
      const std::size_t row = first_ + panel * lanes_;
      kernels_.rescale(tile(panel, first), count, &scale_[first],
                       &chunk_max_[(panel * chunks_ + chunk) * lanes_], &shift_[row], &weight_[row]);
      finish_tile(panel, chunk, store);
    }
    sum_passages(chunk, store);
  }

  // The same from the products, which it forms again.
  void weigh_chunk(std::size_t chunk) {
    const std::size_t first = chunk * chunk_, count = chunk_size(chunk);
    Scratch copies, store(pair_floats(count));
    const float* passages = scalars_of(chunk, copies);
    for (std::size_t panel = 0; panel < active_; ++panel) {
      const std::size_t row = first_ + panel * lanes_;
      score(panel, chunk, passages);
      kernels_.weigh(tile(panel, first), count, &scale_[first], &shift_[row], &weight_[row],
                     &column_shift_[first], &column_weight_[first]);
      finish_tile(panel, chunk, store);
    }
    sum_passages(chunk, store);
  }

  // What a chunk's weights take as pairs of queries.
  std::size_t pair_floats(std::size_t count) const { return pairs_ ? active_ * count * lanes_ / 2 : 0; }

  // Puts the positives' weights in. As pairs, the weights are kept twice: of neighbouring passages in the
  // tile, for the query gradients, and of neighbouring queries in `store`, for those of the passages.
  void finish_tile(std::size_t panel, std::size_t chunk, Scratch& store) {
    const std::size_t first = chunk * chunk_, count = chunk_size(chunk);
    float* weights = tile(panel, first);
    for (const auto& pair : positives_in(panel, chunk))
      weights[place_of(pair, panel, first)] = static_cast<float>(pair_gradient(pair) * scale_[pair.passage]);
    if (pairs_) kernels_.pair_tile(weights, count, &store[panel * count * lanes_ / 2]);
  }

  void sum_passages(std::size_t chunk, Scratch& store) {
    if (!gradients_->passage_grads) return;
    const std::size_t first = chunk * chunk_, count = chunk_size(chunk), depth = panel_depth();
    const float* weights = pairs_ ? store.data() : tile(0, first);
    const std::size_t panel_stride = pairs_ ? count * depth : slab_ * chunk_ * lanes_;
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

  void transpose_queries() {
    if (!gradients_->query_grads) return;
    for_panels([this](std::size_t panel) {
      kernels_.transpose(&query_sums_[panel * problem_.dim * lanes_], lanes_, problem_.dim,
                         std::min(lanes_, size_ - panel * lanes_), query_grad(panel * lanes_), problem_.dim);
    });
  }

  float* query_grad(std::size_t slot) const {
    return gradients_->query_grads + (first_ + slot) * problem_.dim;
  }

  // Neighbouring blocks are alike: after a dense one the next few are not tried, ever more of them.
  bool try_sparsely() {
    if (untried_ > 0) {
      --untried_;
      return false;
    }
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
    if (gradients_->passage_grads) for_chunks([this](std::size_t chunk) { combine_queries(chunk); });
    if (gradients_->query_grads) for_panels([this](std::size_t panel) { combine_passages(panel); });
    return true;
  }

  // Takes a high level that each query can afford to lose. A sample of the passages tells which levels are
  // near the highest, and only these are summed over all passages; if one of the queries cannot afford the
  // lowest of them, all levels. Entries below tolerance / passages always can be dropped.
  void choose_thresholds(std::size_t panel, float lowest) {
    constexpr std::size_t kLevels = simd::TileKernels::kLevels, kNear = simd::TileKernels::kNearLevels;
    constexpr std::size_t kSampled = 8;  // one passage of so many
    for (std::size_t chunk = 0; chunk < chunks_; ++chunk) find_shares(panel, chunk);
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
      kernels_.survey(tile(panel, chunk * chunk_), chunk_size(chunk), step, shares(panel, chunk), bounds,
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

  // What turns a tile's exponentials into shares of their query's negatives; in the place of the chunk's
  // sums, which their queries have had.
  float* shares(std::size_t panel, std::size_t chunk) const {
    return &chunk_sum_[(panel * chunks_ + chunk) * lanes_];
  }
  void find_shares(std::size_t panel, std::size_t chunk) {
    float* factor = shares(panel, chunk);
    for (std::size_t lane = 0; lane < lanes_; ++lane) {
      const std::size_t slot = panel * lanes_ + lane;
      const float max = chunk_max_[(panel * chunks_ + chunk) * lanes_ + lane];
      factor[lane] = slot < size_ && max != -kInfinity
                         ? static_cast<float>(std::exp(max - negatives_[first_ + slot]))
                         : 0.0f;
    }
  }

  // The block's entries in one chunk, panel by panel, the positives last: `place` is row * lanes_ + lane in
  // the panel's tile, `weight` is d(objective)/d(product).
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
    std::vector<float> factor(lanes_), threshold(lanes_);
    for (std::size_t panel = 0; panel < active_; ++panel) {
      const float* exponentials = tile(panel, first);
      const float* share = shares(panel, chunk);
      for (std::size_t lane = 0; lane < lanes_; ++lane)
        threshold[lane] = share[lane] > 0 ? threshold_[panel * lanes_ + lane] / share[lane] : kInfinity;
      const std::size_t found = kernels_.select(exponentials, count, threshold.data(), limit, places.data());
      if ((kept += found) > most) return;
      const float* max = &chunk_max_[(panel * chunks_ + chunk) * lanes_];
      for (std::size_t lane = 0; lane < lanes_; ++lane) {
        const std::size_t i = first_ + panel * lanes_ + lane;
        factor[lane] = weight_[i] * std::exp(max[lane] - shift_[i]);
      }
      for (std::size_t k = 0; k < found; ++k) {
        entries.place.push_back(places[k]);
        entries.weight.push_back(exponentials[places[k]] * factor[lane_in_tile(places[k])] *
                                 scale_[first + row_in_tile(places[k])]);
      }
      for (const auto& pair : positives_in(panel, chunk)) {
        entries.place.push_back(static_cast<std::uint32_t>(place_of(pair, panel, first)));
        entries.weight.push_back(static_cast<float>(pair_gradient(pair) * scale_[pair.passage]));
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
    const Entries& entries = entries_[chunk];
    ByRow sorted(chunk_size(chunk));
    for (const std::uint32_t place : entries.place) sorted.count(row_in_tile(place));
    sorted.reserve();
    for (std::size_t panel = 0, k = 0; panel < active_; ++panel)
      for (; k < entries.panel_end[panel]; ++k) {
        const std::size_t slot = panel * lanes_ + lane_in_tile(entries.place[k]);
        sorted.add(row_in_tile(entries.place[k]), slot,
                   entries.weight[k] * (keep_pairs_ ? 1.0f : norm_[slot]));
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

  // As a sum of weights times products, <u, g> of the queries is also the temperature's gradient, but for the
  // margin.
  void finish_queries() {
    if (!gradients_->query_grads) return;
    for_panels([this](std::size_t panel) {
      const std::size_t begin = panel * lanes_, end = std::min(begin + lanes_, size_);
      Scratch store(problem_.dim);
      for (std::size_t slot = begin; slot < end; ++slot) {
        const std::size_t i = first_ + slot;
        float* grad = query_grad(slot);
        double along = finish_row(query(i, store), norm_[slot], grad, norm_[slot]);
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

  void finish_passages() {
    if (!gradients_->passage_grads || !problem_.normalize) return;
    parallel_for(chunks_, threads_, [this](std::size_t chunk) {
      Scratch store(problem_.dim);
      for (std::size_t j = chunk * chunk_, end = j + chunk_size(chunk); j < end; ++j)
        finish_row(passage(j, store), scale_[j] * problem_.temperature,
                   gradients_->passage_grads + j * problem_.dim, 1.0f);
    });
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
  const std::size_t dim_panels_;
  std::size_t slab_;                   // chunks that the tiles have room for
  std::size_t panels_, block_;         // of a full block of queries
  std::size_t first_, size_, active_;  // the block at hand: its first query, its queries, its panels
  std::size_t slab_first_;             // first chunk of the slab at hand

  const Positives positives_;
  std::vector<float> scale_, bias_;                  // (passages,): logit = product * scale + bias
  std::vector<double> negatives_;                    // (queries,): log-sum-exp of the negatives
  std::vector<float> shift_, weight_;                // (queries,), see close_rows
  std::vector<float> pair_;                          // logits of the positive pairs
  std::vector<float> column_max_, column_sum_;       // (passages,): running sums of the other direction
  std::vector<double> column_negatives_;             // (passages,): as negatives_
  std::vector<float> column_shift_, column_weight_;  // (passages,): as shift_ and weight_
  std::vector<float> norm_;                          // (block,): 1 / |q|
  std::vector<std::int32_t> groups_;                 // (block,)
  Workspace workspace_;
  float *packed_, *rows_, *query_sums_;  // see pack_queries, sum_queries
  bool keep_pairs_;                      // whether the next two have the pairs that products are made of
  float *query_pairs_, *passage_pairs_;  // (block, score_stride), (passages, score_stride)
  float* tile_;                          // [panel][passage of the slab][lane]
  float *chunk_max_, *chunk_sum_;        // [panel][chunk][lane]
  bool filtering_;
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
