#include "infonce.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "simd/level.h"
#include "threads.h"

namespace hybridfast {
namespace {

using simd::Operand;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::size_t kTileFloats = 10u << 20;       // the weights of one query block: 40 MB
constexpr std::size_t kQueryBlockFloats = 1u << 17;  // a packed query block: 512 KB, half of a usual L2
constexpr std::size_t kDepthBlock = 240;             // passages per step of the query gradients' sum

constexpr std::size_t blocks_of(std::size_t count, std::size_t block) {
  return (count + block - 1) / block;
}

// 1 / |row|, or 0 for a zero row. NaN for a row that is not finite, so that it reaches every loss it touches.
float inverse_norm(const float* row, std::size_t dim, bool normalize) {
  double sums[8] = {};
  std::size_t d = 0;
  for (; d + 8 <= dim; d += 8)
    for (std::size_t k = 0; k < 8; ++k) sums[k] += static_cast<double>(row[d + k]) * row[d + k];
  for (; d < dim; ++d) sums[0] += static_cast<double>(row[d]) * row[d];
  double square = 0;
  for (const double sum : sums) square += sum;
  if (!std::isfinite(square)) return std::numeric_limits<float>::quiet_NaN();
  if (!normalize) return 1.0f;
  return square > 0 ? static_cast<float>(1 / std::sqrt(square)) : 0.0f;
}

class Pass {
 public:
  Pass(const InfoNceProblem& problem, float* losses, const InfoNceGradients* gradients, int threads)
      : problem_(problem),
        losses_(losses),
        gradients_(gradients),
        threads_(threads),
        kernels_(simd::kernels()),
        lanes_(kernels_.columns),
        chunk_(problem.passages < 4096 ? 48 : 240),
        chunks_(blocks_of(problem.passages, chunk_)),
        dim_panels_(blocks_of(problem.dim, lanes_)),
        scale_(problem.passages),
        bias_(problem.passages, 0.0f) {
    const std::size_t by_cache = kQueryBlockFloats / problem.dim / lanes_;
    const std::size_t by_workspace = kTileFloats / problem.passages / lanes_;
    panels_ = std::clamp<std::size_t>(std::min(by_cache, by_workspace), 1, 16);
    panels_ = std::min(panels_, blocks_of(problem.queries, lanes_));
    block_ = panels_ * lanes_;
    packed_.resize(panels_ * problem.dim * lanes_);
    tile_.reset(new float[panels_ * problem.passages * lanes_]);
    chunk_max_.resize(panels_ * chunks_ * lanes_);
    chunk_sum_.resize(panels_ * chunks_ * lanes_);
    for (auto* lane : {&norm_, &target_logit_, &shift_, &weight_, &target_weight_}) lane->resize(block_);
    query_groups_.resize(block_);
    target_.resize(block_);
    if (!gradients) return;
    rows_.resize(dim_panels_ * block_ * lanes_);
    query_sums_.resize(panels_ * problem.dim * lanes_);
    temperature_parts_.resize(block_);
  }

  void run() {
    prepare_passages();
    double temperature_sum = 0;
    for (std::size_t first = 0; first < problem_.queries; first += block_) {
      first_ = first;
      size_ = std::min(block_, problem_.queries - first);
      active_ = blocks_of(size_, lanes_);
      parallel_for(active_, threads_, [this](std::size_t panel) { pack_queries(panel); });
      parallel_for(chunks_, threads_, [this](std::size_t chunk) { score(chunk); });
      parallel_for(active_, threads_, [this](std::size_t panel) { combine(panel); });
      if (!gradients_) continue;
      parallel_for(chunks_, threads_, [this](std::size_t chunk) { form_weights(chunk); });
      if (!gradients_->query_grads) continue;
      const std::size_t slices = std::min<std::size_t>(2 * threads_, blocks_of(problem_.dim, 96));
      parallel_for(slices, threads_, [this, slices](std::size_t slice) {
        sum_queries(problem_.dim * slice / slices, problem_.dim * (slice + 1) / slices);
      });
      parallel_for(active_, threads_, [this](std::size_t panel) { finish_queries(panel); });
      for (std::size_t slot = 0; slot < size_; ++slot) temperature_sum += temperature_parts_[slot];
    }
    if (gradients_ && gradients_->temperature_grad)
      *gradients_->temperature_grad = -temperature_sum / problem_.temperature;
    if (gradients_ && gradients_->passage_grads && problem_.normalize) project_passages();
  }

 private:
  std::size_t chunk_size(std::size_t chunk) const {
    return std::min(chunk_, problem_.passages - chunk * chunk_);
  }
  float* tile(std::size_t panel, std::size_t passage) {
    return &tile_[(panel * problem_.passages + passage) * lanes_];
  }
  const float* passage(std::size_t j) const { return problem_.passage_rows + j * problem_.dim; }

  void prepare_passages() {
    parallel_for(chunks_, threads_, [this](std::size_t chunk) {
      for (std::size_t j = chunk * chunk_, end = j + chunk_size(chunk); j < end; ++j)
        scale_[j] = static_cast<float>(inverse_norm(passage(j), problem_.dim, problem_.normalize) /
                                       problem_.temperature);
    });
    if (problem_.in_batch) return;
    for (std::size_t i = 0; i < problem_.queries; ++i) bias_[problem_.targets[i]] = -kInfinity;
  }

  // Lays a panel's unit queries out twice: as dim x lanes for the scores and, in rows_, as panels of dim for
  // the passage gradients. Lanes beyond the last query hold zeros and weigh nothing.
  void pack_queries(std::size_t panel) {
    float* packed = &packed_[panel * problem_.dim * lanes_];
    for (std::size_t lane = 0; lane < lanes_; ++lane) {
      const std::size_t slot = panel * lanes_ + lane;
      const bool used = slot < size_;
      const float* row = problem_.query_rows + (first_ + (used ? slot : 0)) * problem_.dim;
      const float norm = used ? inverse_norm(row, problem_.dim, problem_.normalize) : 0.0f;
      norm_[slot] = norm;
      target_[slot] = used ? static_cast<std::size_t>(problem_.targets[first_ + slot]) : problem_.passages;
      if (problem_.query_groups) query_groups_[slot] = problem_.query_groups[first_ + (used ? slot : 0)];
      for (std::size_t d = 0; d < problem_.dim; ++d) packed[d * lanes_ + lane] = used ? row[d] * norm : 0.0f;
      if (!gradients_) continue;
      for (std::size_t p = 0; p < dim_panels_; ++p) {
        float* out = &rows_[(p * block_ + slot) * lanes_];
        for (std::size_t c = 0; c < lanes_; ++c) {
          const std::size_t d = p * lanes_ + c;
          out[c] = used && d < problem_.dim ? row[d] * norm : 0.0f;
        }
      }
    }
  }

  // Scores one chunk of passages against the block, and leaves exp(logit - the chunk's maximum) in the tile.
  void score(std::size_t chunk) {
    const std::size_t first = chunk * chunk_, count = chunk_size(chunk);
    const Operand rows{passage(first), problem_.dim, 1, problem_.dim, 0, 1};
    for (std::size_t panel = 0; panel < active_; ++panel) {
      float* weights = tile(panel, first);
      kernels_.multiply(rows, &packed_[panel * problem_.dim * lanes_], count, weights, lanes_, false);
      const std::int32_t* groups = problem_.passage_groups ? problem_.passage_groups + first : nullptr;
      take_targets(panel, first, count, weights);
      kernels_.logits(weights, count, &scale_[first], &bias_[first], groups, &query_groups_[panel * lanes_]);
      drop_targets(panel, first, count, weights);
      const std::size_t slot = (panel * chunks_ + chunk) * lanes_;
      kernels_.softmax(weights, count, &chunk_max_[slot], &chunk_sum_[slot]);
    }
  }

  // The positive is kept apart from the negatives: its logit has the margin, and the loss is exact where the
  // negatives are negligible.
  void take_targets(std::size_t panel, std::size_t first, std::size_t count, const float* weights) {
    const auto margin = static_cast<float>(problem_.margin / problem_.temperature);
    for (std::size_t lane = 0; lane < lanes_; ++lane) {
      const std::size_t j = target_[panel * lanes_ + lane] - first;
      if (j < count)
        target_logit_[panel * lanes_ + lane] = weights[j * lanes_ + lane] * scale_[first + j] - margin;
    }
  }

  void drop_targets(std::size_t panel, std::size_t first, std::size_t count, float* weights) const {
    for (std::size_t lane = 0; lane < lanes_; ++lane) {
      const std::size_t j = target_[panel * lanes_ + lane] - first;
      if (j < count) weights[j * lanes_ + lane] = -kInfinity;
    }
  }

  // Joins the chunks' sums: with n = log(sum of the negatives) and s the target's logit, the loss is
  // log(1 + exp(n - s)), the target's share of the gradient -1 / (1 + exp(s - n)).
  void combine(std::size_t panel) {
    const float* max = &chunk_max_[panel * chunks_ * lanes_];
    const float* sum = &chunk_sum_[panel * chunks_ * lanes_];
    for (std::size_t lane = 0; lane < lanes_; ++lane) {
      const std::size_t slot = panel * lanes_ + lane;
      weight_[slot] = target_weight_[slot] = shift_[slot] = 0.0f;
      if (slot >= size_) continue;
      float top = -kInfinity;
      for (std::size_t c = 0; c < chunks_; ++c) top = std::max(top, max[c * lanes_ + lane]);
      double total = 0;
      for (std::size_t c = 0; c < chunks_; ++c) {
        const double part = sum[c * lanes_ + lane];
        if (part != 0) total += part * std::exp(max[c * lanes_ + lane] - top);
      }
      const double gap = top - static_cast<double>(target_logit_[slot]) + std::log(total);
      const double loss = gap > 0 ? gap + std::log1p(std::exp(-gap)) : std::log1p(std::exp(gap));
      losses_[first_ + slot] = static_cast<float>(loss);
      if (!gradients_) continue;
      shift_[slot] = static_cast<float>(target_logit_[slot] + loss);
      weight_[slot] = gradients_->weights[first_ + slot];
      target_weight_[slot] = static_cast<float>(-weight_[slot] / (1 + std::exp(-gap)));
    }
  }

  // Turns the chunk's exponentials into d(objective)/d(product) and sums its passages' gradients.
  void form_weights(std::size_t chunk) {
    const std::size_t first = chunk * chunk_, count = chunk_size(chunk);
    for (std::size_t panel = 0; panel < active_; ++panel) {
      float* weights = tile(panel, first);
      const std::size_t lanes = panel * lanes_;
      kernels_.rescale(weights, count, &scale_[first], &chunk_max_[(panel * chunks_ + chunk) * lanes_],
                       &shift_[lanes], &weight_[lanes]);
      for (std::size_t lane = 0; lane < lanes_; ++lane) {
        const std::size_t j = target_[lanes + lane] - first;
        if (j < count) weights[j * lanes_ + lane] = target_weight_[lanes + lane] * scale_[first + j];
      }
    }
    if (!gradients_->passage_grads) return;
    const bool add = first_ > 0;
    std::vector<float> edge(kernels_.rows * lanes_);
    for (std::size_t row = 0; row < count; row += kernels_.rows) {
      const std::size_t rows = std::min(kernels_.rows, count - row);
      const Operand weights{tile(0, first + row), lanes_, 1, lanes_, problem_.passages * lanes_, active_};
      for (std::size_t p = 0; p < dim_panels_; ++p) {
        float* out = gradients_->passage_grads + (first + row) * problem_.dim + p * lanes_;
        const std::size_t width = std::min(lanes_, problem_.dim - p * lanes_);
        const float* panel = &rows_[p * block_ * lanes_];
        if (width == lanes_) {
          kernels_.multiply(weights, panel, rows, out, problem_.dim, add);
          continue;
        }
        kernels_.multiply(weights, panel, rows, edge.data(), lanes_, false);
        for (std::size_t r = 0; r < rows; ++r)
          for (std::size_t c = 0; c < width; ++c)
            out[r * problem_.dim + c] = edge[r * lanes_ + c] + (add ? out[r * problem_.dim + c] : 0.0f);
      }
    }
  }

  // query_sums_[panel] (dim x lanes), rows [begin, end): the sum over passages of weight times passage.
  void sum_queries(std::size_t begin, std::size_t end) {
    for (std::size_t first = 0; first < problem_.passages; first += kDepthBlock) {
      const std::size_t depth = std::min(kDepthBlock, problem_.passages - first);
      const Operand columns{passage(first) + begin, 1, problem_.dim, depth, 0, 1};
      for (std::size_t panel = 0; panel < active_; ++panel)
        kernels_.multiply(columns, tile(panel, first), end - begin,
                          &query_sums_[(panel * problem_.dim + begin) * lanes_], lanes_, first > 0);
    }
  }

  // Takes a panel's sums back through the normalisation: dq = (g - u <u, g>) / |q| with u = q / |q|.
  void finish_queries(std::size_t panel) {
    const float* sums = &query_sums_[panel * problem_.dim * lanes_];
    const float* packed = &packed_[panel * problem_.dim * lanes_];
    for (std::size_t lane = 0; lane < lanes_ && panel * lanes_ + lane < size_; ++lane) {
      const std::size_t slot = panel * lanes_ + lane;
      double along = 0;
      for (std::size_t d = 0; d < problem_.dim; ++d)
        along += static_cast<double>(packed[d * lanes_ + lane]) * sums[d * lanes_ + lane];
      temperature_parts_[slot] = along - target_weight_[slot] * problem_.margin / problem_.temperature;
      const float radial = problem_.normalize ? static_cast<float>(along) : 0.0f;
      float* out = gradients_->query_grads + (first_ + slot) * problem_.dim;
      for (std::size_t d = 0; d < problem_.dim; ++d)
        out[d] = (sums[d * lanes_ + lane] - packed[d * lanes_ + lane] * radial) * norm_[slot];
    }
  }

  void project_passages() {
    const double temperature = problem_.temperature;
    parallel_for(chunks_, threads_, [this, temperature](std::size_t chunk) {
      for (std::size_t j = chunk * chunk_, end = j + chunk_size(chunk); j < end; ++j) {
        const double inverse = scale_[j] * temperature;
        const float* row = passage(j);
        float* grad = gradients_->passage_grads + j * problem_.dim;
        double along = 0;
        for (std::size_t d = 0; d < problem_.dim; ++d) along += static_cast<double>(row[d]) * grad[d];
        const auto radial = static_cast<float>(along * inverse * inverse);
        for (std::size_t d = 0; d < problem_.dim; ++d) grad[d] -= row[d] * radial;
      }
    });
  }

  const InfoNceProblem& problem_;
  float* losses_;
  const InfoNceGradients* gradients_;
  const int threads_;
  const simd::TileKernels& kernels_;
  const std::size_t lanes_;
  const std::size_t chunk_;  // passages in a chunk: a function of their number alone, as sums run by chunk
  const std::size_t chunks_;
  const std::size_t dim_panels_;
  std::size_t panels_, block_;         // of a full query block
  std::size_t first_, size_, active_;  // the block at hand: its first query, its queries, its panels

  std::vector<float> scale_, bias_;                                          // (passages,)
  std::vector<float> packed_, rows_, query_sums_;                            // see pack_queries, sum_queries
  std::unique_ptr<float[]> tile_;                                            // [panel][passage][lane]
  std::vector<float> chunk_max_, chunk_sum_;                                 // [panel][chunk][lane]
  std::vector<float> norm_, target_logit_, shift_, weight_, target_weight_;  // (block,)
  std::vector<std::int32_t> query_groups_;
  std::vector<std::size_t> target_;
  std::vector<double> temperature_parts_;
};

}  // namespace

void info_nce(const InfoNceProblem& problem, float* losses, const InfoNceGradients* gradients, int threads) {
  Pass(problem, losses, gradients, threads).run();
}

}  // namespace hybridfast
