#include <cmath>
#include <numeric>

#include "infonce/work.h"

namespace hybridfast {
namespace {

// In nats, how far the largest logit may lie from the shift: the kernels' exponentials have most of their
// range above it, since a sample's largest is the least that the largest of all can be. They reach further,
// but are multiplied.
constexpr float kFarAbove = 110, kFarBelow = 10;
constexpr double kUnit = 0x1p-72;  // what the kernels make of e^0
static_assert(simd::TileKernels::kHalvings == 72);

double softplus(double x) {
  return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
}
double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}

// Where there is no negative, exp(logit - shift) has to be 0 rather than exp(-inf + inf).
float finite_shift(float top) {
  return top == -kInfinity ? kInfinity : top;
}

}  // namespace

// Each query's sum of exp(logit - shift) over its negatives, and what follows from it. The shift is any
// number near the largest logit: one that a sample tells, or, where that turns out to be far from the largest
// of all, the largest itself in a second round.
void InfoNce::sum_block() {
  for_panels([this](std::size_t panel) {
    pack_queries(panel);
    find_shifts(panel);
  });
  std::vector<std::size_t> panels = all_panels();
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

std::vector<std::size_t> InfoNce::all_panels() const {
  std::vector<std::size_t> panels(active_);
  std::iota(panels.begin(), panels.end(), std::size_t{0});
  return panels;
}

void InfoNce::find_shifts(std::size_t panel) {
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
bool InfoNce::move_shifts(std::size_t panel) {
  bool moved = false;
  for (std::size_t slot = panel * lanes_; slot < std::min((panel + 1) * lanes_, size_); ++slot) {
    float top = -kInfinity;
    for (std::size_t chunk = 0; chunk < chunks_; ++chunk)
      top = std::max(top, chunk_max_[(panel * chunks_ + chunk) * lanes_ + slot % lanes_]);
    const float above = top - shift_[first_ + slot];
    if (top == -kInfinity || (above <= kFarAbove && above >= -kFarBelow)) continue;
    shift_[first_ + slot] = top;
    moved = true;
  }
  return moved;
}

// Leaves exponentials in the tiles where gradients follow at once: as they are if the filter is to be
// tried, else finished but for the positives.
void InfoNce::sum_chunk(std::size_t chunk, const std::vector<std::size_t>& panels, bool first_round) {
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
      kernels_.paired_exponentials(logits.data(), count, shift, scale, max, sum, row_pairs(panel, first),
                                   neighbours(panel, first), neighbour_stride_);
    else
      kernels_.exponentials(logits.data(), count, shift, scale, max, sum,
                            at_once_ ? tile(panel, first) : logits.data());
  }
}

// The logits of a chunk's negatives; -inf elsewhere. Leaves those of the positives in pair_.
void InfoNce::score(std::size_t panel, std::size_t chunk, const float* passages, float* logits) {
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

// Joins the chunks' sums into the log-sum-exp of each query's negatives. After it, weight_ says that a
// negative's gradient is weight * E(logit - shift), with the kernels' E.
void InfoNce::close_rows(std::size_t panel) {
  for (std::size_t lane = 0; lane < lanes_ && panel * lanes_ + lane < size_; ++lane) {
    double total = 0;
    for (std::size_t chunk = 0; chunk < chunks_; ++chunk)
      total += chunk_sum_[(panel * chunks_ + chunk) * lanes_ + lane];
    close_row(panel * lanes_ + lane, total);
  }
}

void InfoNce::close_row(std::size_t slot, double total) {
  const std::size_t i = first_ + slot;
  const std::size_t begin = positives_.first_pair(i), end = positives_.first_pair(i + 1);
  const double share = direction() / static_cast<double>(end - begin);
  negatives_[i] = shift_[i] + std::log(total / kUnit);
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

// The same for the other direction, a row of which is a passage and its queries: every positive pair has a
// row.
void InfoNce::close_columns() {
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
    column_weight_[j] = column_sum_[j] == 0 ? 0.0f : static_cast<float>(weights[j] / column_sum_[j] / kUnit);
}

// d(objective)/d(logit) of a positive pair.
double InfoNce::pair_gradient(const Positives::Pair& pair) const {
  const auto count = static_cast<double>(positives_.of(pair.query).size());
  double off = sigmoid(negatives_[pair.query] - pair_[pair.index]);
  if (problem_.bidirectional) off += sigmoid(column_negatives_[pair.passage] - pair_[pair.index]);
  return -direction() * off * gradients_->weights[pair.query] / count;
}

}  // namespace hybridfast
