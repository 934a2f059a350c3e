// The certified filter: gradients of the entries that matter, with the share of a query's negatives that is
// left out.
#include <cmath>
#include <numeric>

#include "infonce/work.h"

namespace hybridfast {
namespace {

// Share of a block's pairs up to which the sparse sums are faster; half of that for bfloat16.
constexpr double kSparseShare = 0.2;

}  // namespace

// Entries sorted by the row that they are summed into.
struct InfoNce::ByRow {
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

// Neighbouring blocks are alike: after a dense one the next few are not tried, ever more of them.
bool InfoNce::try_sparsely() {
  const bool sparse = sum_sparsely();
  pause_ = sparse ? 0 : std::min<std::size_t>(2 * pause_ + 1, 7);
  untried_ = pause_;
  return sparse;
}

// The certified filter. Forms the block's gradients from its positives and the negatives above a threshold,
// chosen for each query so that those below sum to at most the tolerance. Returns false, having changed
// nothing, where too many are left for that to pay.
bool InfoNce::sum_sparsely() {
  const auto negatives = static_cast<float>(gradients_->tolerance / static_cast<double>(problem_.passages));
  for_panels([&](std::size_t panel) { choose_thresholds(panel, negatives); });
  if (std::any_of(row_dropped_.begin(), row_dropped_.begin() + size_, [](double x) { return std::isnan(x); }))
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
void InfoNce::choose_thresholds(std::size_t panel, float lowest) {
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
std::vector<double> InfoNce::survey(std::size_t panel, std::size_t step, const float* bounds,
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
std::size_t InfoNce::affordable(const std::vector<double>& totals, std::size_t lane, std::size_t levels,
                                double tolerance) const {
  std::size_t level = 0;
  while (level < levels && totals[level * lanes_ + lane] <= tolerance) ++level;
  return level;
}

// Stops once the block has `kept` more than `most`: all the chunks do then, or none, whatever their order.
void InfoNce::select_entries(std::size_t chunk, std::size_t most, std::atomic<std::size_t>& kept) {
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

void InfoNce::combine_queries(std::size_t chunk) {
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

void InfoNce::combine_passages(std::size_t panel) {
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
    combine(problem_.passage_rows, 0, passage_pairs_, sorted, lane, query_grad(panel * lanes_ + lane), false);
}

// out (+)= the sum of a row's entries, each a weight times one of the embeddings from `first` on, or of
// their `pairs` where those are kept.
void InfoNce::combine(const Embeddings& embeddings, std::size_t first, const float* pairs,
                      const ByRow& sorted, std::size_t row, float* out, bool add) const {
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

}  // namespace hybridfast
