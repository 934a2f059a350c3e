#include <cstring>
#include <utility>

#include "infonce/work.h"

namespace hybridfast {
namespace {

using simd::Operands;

constexpr std::size_t kSharedStride = 1024;  // floats: a page, and every set of an L1 once
constexpr std::size_t kDepthBlock = 480;     // passages per step of the query gradients' sum; even, for pairs

// Of an array of pairs, its half at a place.
void put_half(float* pairs, std::size_t place, Brain value) {
  std::memcpy(reinterpret_cast<char*>(pairs) + place * sizeof value, &value, sizeof value);
}

}  // namespace

void InfoNce::form_gradients() {
  if (trying_ && pairs_) {  // pairs do not fit into the tiles that the filter was tried on: form them anew
    trying_ = false;
    for_chunks([this, panels = all_panels()](std::size_t chunk) { sum_chunk(chunk, panels, false); });
  }
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

// Lays a panel's unit queries, times what its tiles leave out, out as panels of dim, for the passage
// gradients.
void InfoNce::pack_rows(std::size_t panel) {
  const std::size_t width = row_width(), depth = panel_depth();
  Scratch rows(lanes_ * width), store(problem_.dim);
  for (std::size_t lane = 0; lane < lanes_; ++lane) {
    const std::size_t slot = panel * lanes_ + lane;
    scale_query(slot, slot < size_ ? tile_factor(slot) : 0.0f, &rows[lane * width], store);
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

// Forms a chunk's d(objective)/d(product), from products once more.
void InfoNce::weigh_chunk(std::size_t chunk) {
  const std::size_t first = chunk * chunk_, count = chunk_size(chunk);
  Scratch copies, logits(count * lanes_);
  const float* passages = scalars_of(chunk, copies);
  for (std::size_t panel = 0; panel < active_; ++panel) {
    const std::size_t row = first_ + panel * lanes_;
    score(panel, chunk, passages, logits.data());
    kernels_.weigh(logits.data(), count, &scale_[first], &shift_[row], &weight_[row], &column_shift_[first],
                   &column_weight_[first], pairs_ ? logits.data() : tile(panel, first));
    if (pairs_)
      kernels_.pair_tile(logits.data(), count, row_pairs(panel, first), neighbours(panel, first),
                         neighbour_stride_);
  }
}

// Finishes the exponentials that the filter was tried on.
void InfoNce::scale_chunk(std::size_t chunk) {
  const std::size_t first = chunk * chunk_, count = chunk_size(chunk);
  const std::vector<float> zeros(count);
  for (std::size_t panel = 0; panel < active_; ++panel)
    kernels_.logits(tile(panel, first), count, &scale_[first], zeros.data(), nullptr, nullptr);
}

void InfoNce::place_positives(std::size_t chunk) {
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
      put_half(row_pairs(panel, first), 2 * (row / 2 * lanes_ + lane) + row % 2, narrow(value));
      put_half(neighbours(panel, pair.passage), lane, narrow(value));
    }
}

void InfoNce::sum_passages(std::size_t chunk) {
  if (!gradients_->passage_grads) return;
  const std::size_t first = chunk * chunk_, count = chunk_size(chunk), depth = panel_depth();
  Scratch edge;
  const bool add = first_ > 0;
  for (std::size_t p = 0; p < dim_panels_; ++p) {
    float* out = gradients_->passage_grads + first * problem_.dim + p * lanes_;
    const std::size_t width = std::min(lanes_, problem_.dim - p * lanes_);
    const float* panel = &rows_[p * panels_ * depth * lanes_];
    const Operands operands =
        pairs_ ? Operands{neighbours(0, first), neighbour_stride_, 1, panel, active_ * depth}
               : Operands{tile(0, first),          lanes_,        1, panel, lanes_, active_,
                          slab_ * chunk_ * lanes_, depth * lanes_};
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
void InfoNce::sum_queries() {
  if (!gradients_->query_grads) return;
  const std::size_t slices = std::min<std::size_t>(2 * threads_, blocks_of(problem_.dim, 96));
  const std::size_t last = std::min((slab_first_ + slab_) * chunk_, problem_.passages);
  parallel_for(slices, threads_, [&](std::size_t slice) {
    const std::size_t begin = problem_.dim * slice / slices, end = problem_.dim * (slice + 1) / slices;
    for (std::size_t first = slab_first_ * chunk_; first < last; first += kDepthBlock)
      sum_slice(begin, end, first, std::min(kDepthBlock, last - first));
  });
}

void InfoNce::sum_slice(std::size_t begin, std::size_t end, std::size_t first, std::size_t count) {
  const std::size_t width = end - begin;
  Scratch store;
  Operands operands = slice_scalars(begin, width, first, count, store);
  for (std::size_t panel = 0; panel < active_; ++panel) {
    operands.panel = pairs_ ? row_pairs(panel, first) : tile(panel, first);
    multiply_(operands, width, &query_sums_[(panel * problem_.dim + begin) * lanes_], lanes_, first > 0);
  }
}

// A slice of the passages' dimensions as scalars of that sum; in `store`, unless they stand as floats
// already, so far apart that they do not share a few lines of the caches.
Operands InfoNce::slice_scalars(std::size_t begin, std::size_t width, std::size_t first, std::size_t count,
                                Scratch& store) const {
  const Embeddings& rows = problem_.passage_rows;
  Scratch even(width), odd(width);
  if (!pairs_ && rows.element == Element::float32 && problem_.dim % kSharedStride != 0)
    return {row_of(rows, first, even, begin, width), 1, problem_.dim, nullptr, count};
  const std::size_t steps = pairs_ ? blocks_of(count, 2) : count;
  const std::vector<float> zeros(width);
  store.reset(steps * width);
  for (std::size_t j = 0; j < count; j += pairs_ ? 2 : 1) {
    const float* row = row_of(rows, first + j, even, begin, width);
    if (!pairs_) {
      std::copy_n(row, width, &store[j * width]);
      continue;
    }
    const float* next = j + 1 < count ? row_of(rows, first + j + 1, odd, begin, width) : zeros.data();
    kernels_.pair_rows(row, next, width, &store[j / 2 * width]);
  }
  if (!pairs_ || !kernels_.pairs_by_row) return {store.data(), 1, width, nullptr, steps};
  Scratch turned(steps * width);
  kernels_.transpose(store.data(), width, steps, width, turned.data(), steps);
  store = std::move(turned);
  return {store.data(), steps, 1, nullptr, steps};
}

// Lays the sums out as gradients, unless `sparsely` they are formed there, and takes them back through the
// normalisation. As a sum of weights times products, <u, g> of the queries is also the temperature's
// gradient, but for the margin.
void InfoNce::finish_queries(bool sparsely) {
  if (!gradients_->query_grads) return;
  for_panels([this, sparsely](std::size_t panel) {
    const std::size_t begin = panel * lanes_, end = std::min(begin + lanes_, size_);
    Scratch store(problem_.dim);
    if (!sparsely)
      kernels_.transpose(&query_sums_[panel * problem_.dim * lanes_], lanes_, problem_.dim, end - begin,
                         query_grad(begin), problem_.dim);
    for (std::size_t slot = begin; slot < end; ++slot) {
      const std::size_t i = first_ + slot;
      const float* row = query(i, store);
      float factor = tile_factor(slot);
      if (norm_[slot] > kMostScale) {  // in two steps, since the product of the two could overflow
        kernels_.project(query_grad(slot), row, 0.0f, factor, problem_.dim);
        factor = 1.0f;
      }
      double along = factor * finish_row(row, norm_[slot], query_grad(slot), norm_[slot] * factor);
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
void InfoNce::finish_passages(std::size_t chunk) {
  if (!gradients_->passage_grads || !problem_.normalize || first_ + size_ < problem_.queries) return;
  Scratch store(problem_.dim);
  for (std::size_t j = chunk * chunk_, end = j + chunk_size(chunk); j < end; ++j)
    finish_row(passage(j, store), scale_[j] * problem_.temperature,
               gradients_->passage_grads + j * problem_.dim, 1.0f);
}

// Takes a gradient back through the normalisation, u = row / |row|: g = (g - u <u, g>) * factor. Returns
// <u, g>.
double InfoNce::finish_row(const float* row, double inverse, float* grad, float factor) const {
  const double along = kernels_.dot(row, grad, problem_.dim) * inverse;
  const double radial = problem_.normalize ? along * inverse : 0.0;
  kernels_.project(grad, row, static_cast<float>(radial), factor, problem_.dim);
  return along;
}

}  // namespace hybridfast
