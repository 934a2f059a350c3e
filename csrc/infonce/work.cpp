#include "infonce/work.h"

#include <bit>
#include <cmath>
#include <utility>

#include "simd/level.h"

namespace hybridfast {
namespace {

constexpr std::size_t kTileFloats = 14u << 20;        // the softmax of a block of queries: 56 MB
constexpr std::size_t kFilterTileFloats = 15u << 19;  // 30 MB, where the entries kept need room too
constexpr std::size_t kPairFloats = 4u << 20;         // 16 MB: all passages as bfloat16, where they fit
constexpr std::size_t kMostQueries = 512;             // in a block: their weights for a chunk fit in an L2

// Passages in a chunk: enough for a kernel's sums to be long, few enough for every thread to get several.
// Multiples of the 6 or 12 rows of a register block; even, since pairs are of two.
constexpr std::size_t chunk_of(std::size_t passages) {
  if (passages < 2048) return 48;
  return passages < 8192 ? 96 : 240;
}

}  // namespace

InfoNce::InfoNce(const InfoNceProblem& problem, float* losses, const InfoNceGradients* gradients, int threads)
    : problem_(problem),
      losses_(losses),
      gradients_(gradients),
      threads_(threads),
      kernels_(problem.bfloat16 ? simd::bfloat16_kernels() : simd::kernels()),
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
  // As pairs, half of the tiles' floats move to rows of their own. Those that were a multiple of a kilobyte
  // apart would fall into a few sets of the L1 cache.
  const std::size_t tiles = gradients ? panels_ * slab_ * chunk_ * lanes_ : 0;
  neighbour_stride_ = block_ / 2 + (block_ / 2 % 256 == 0 ? 16 : 0);
  const std::size_t neighbours = gradients && pairs_ ? slab_ * chunk_ * neighbour_stride_ : 0;
  const std::pair<float**, std::size_t> arrays[] = {
      {&packed_, panels_ * units_ * lanes_},
      {&query_pairs_, keep_pairs_ ? block_ * score_stride_ : 0},
      {&passage_pairs_, keep_pairs_ ? problem.passages * score_stride_ : 0},
      {&tile_, pairs_ ? tiles / 2 + neighbours : tiles},
      {&chunk_max_, panels_ * chunks_ * lanes_},
      {&chunk_sum_, panels_ * chunks_ * lanes_},
      {&rows_, rows},
      {&query_sums_, sums}};
  std::size_t floats = 0;
  for (const auto& [array, count] : arrays) floats += Workspace::rounded(count);
  workspace_.reserve(floats);
  for (const auto& [array, count] : arrays) *array = workspace_.take(count);
  neighbours_ = tile_ + tiles / 2;
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

InfoNceStats InfoNce::run() {
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

void InfoNce::prepare_passages() {
  parallel_for(chunks_, threads_, [this](std::size_t chunk) {
    Scratch store(problem_.dim);
    for (std::size_t j = chunk * chunk_, end = j + chunk_size(chunk); j < end; ++j)
      scale_[j] = static_cast<float>(inverse_norm(passage(j, store)) / problem_.temperature);
    if (keep_pairs_)
      copy_passages(chunk * chunk_, chunk_size(chunk), &passage_pairs_[chunk * chunk_ * score_stride_]);
  });
  // Exponentials times scales, before any weight, have to stay in a float's range.
  if (std::any_of(scale_.begin(), scale_.end(),
                  [](float x) { return x > kMostScale || (x > 0 && x < kLeastScale); }))
    at_once_ = filtering_ = false;
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

// 1 / |row|, or 0 for a zero row. NaN for a row that is not finite, so that it reaches every loss it
// touches.
float InfoNce::inverse_norm(const float* row) const {
  const double square = kernels_.dot(row, row, problem_.dim);
  if (!std::isfinite(square)) return std::numeric_limits<float>::quiet_NaN();
  if (!problem_.normalize) return 1.0f;
  return square > 0 ? static_cast<float>(1 / std::sqrt(square)) : 0.0f;
}

void InfoNce::open_block(std::size_t first) {
  first_ = first;
  size_ = std::min(block_, problem_.queries - first);
  active_ = blocks_of(size_, lanes_);
}

// Lays a panel's unit queries out as dim x lanes, for the scores. Lanes beyond the last query hold zeros.
void InfoNce::pack_queries(std::size_t panel) {
  Scratch own(pairs_ && !keep_pairs_ ? lanes_ * score_stride_ : 0);
  float* pairs = keep_pairs_ ? &query_pairs_[panel * lanes_ * score_stride_] : own.data();
  Scratch units(lanes_ * row_width()), store(problem_.dim);
  for (std::size_t lane = 0; lane < lanes_; ++lane) {
    const std::size_t slot = panel * lanes_ + lane;
    const bool used = slot < size_;
    norm_[slot] = used ? inverse_norm(query(first_ + slot, store)) : 0.0f;
    if (problem_.query_groups) groups_[slot] = problem_.query_groups[first_ + (used ? slot : 0)];
    float* unit = &units[lane * row_width()];
    scale_query(slot, 1.0f, unit, store);
    if (pairs_) kernels_.pair_neighbours(unit, problem_.dim, &pairs[lane * score_stride_]);
  }
  kernels_.transpose(pairs_ ? pairs : units.data(), pairs_ ? score_stride_ : row_width(), lanes_, units_,
                     &packed_[panel * units_ * lanes_], lanes_);
}

// A unit query times a factor, and zeros up to the width of a row.
void InfoNce::scale_query(std::size_t slot, float factor, float* out, Scratch& store) const {
  const float* row = slot < size_ ? query(first_ + slot, store) : nullptr;
  const std::size_t filled = row ? problem_.dim : 0;
  for (std::size_t d = 0; d < filled; ++d) out[d] = row[d] * norm_[slot] * factor;
  std::fill(out + filled, out + row_width(), 0.0f);
}

// A chunk's passages as scalars for the scores. The skew keeps the rows that a kernel reads side by side
// from falling into the same lines of the L1 cache, as those of 1,024 dimensions would.
void InfoNce::copy_passages(std::size_t first, std::size_t count, float* copies) const {
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
const float* InfoNce::scalars_of(std::size_t chunk, Scratch& store) const {
  if (keep_pairs_) return &passage_pairs_[chunk * chunk_ * score_stride_];
  store.reset(chunk_size(chunk) * score_stride_);
  copy_passages(chunk * chunk_, chunk_size(chunk), store.data());
  return store.data();
}

InfoNceStats info_nce(const InfoNceProblem& problem, float* losses, const InfoNceGradients* gradients,
                      int threads) {
  InfoNceStats stats;
  with_threads(threads, [&] { stats = InfoNce(problem, losses, gradients, threads).run(); });
  return stats;
}

}  // namespace hybridfast
