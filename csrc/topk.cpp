#include "topk.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "panels.h"
#include "simd/level.h"
#include "threads.h"
#include "workspace.h"

namespace hybridfast {
namespace {

constexpr std::size_t kCandidateBytes = std::size_t{64} << 20;
constexpr std::size_t kRoom = 64;  // for candidates, at least, after each settling
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// A passage by its place among those searched; as ~place while its score is that of rounded embeddings.
struct Candidate {
  float score;
  std::int32_t place;
};

bool better(const Candidate& a, const Candidate& b) {
  return a.score > b.score || (a.score == b.score && a.place < b.place);
}

// How far an inner product of embeddings rounded to bfloat16, summed in float32, may be from the float32
// score, as a share of the product of the norms: both factors of every product are off by 2^-9 of themselves
// at most (the absolute products sum up to no more than that of the norms, by Cauchy and Schwarz), and either
// sum by 2^-24 of that for every addition.
double rounding(std::size_t depth) {
  return 0x1p-8 + 0x1p-16 + 2.5 * 0x1p-24 * static_cast<double>(depth + 8);
}

class Search {
 public:
  Search(const Embeddings& queries, const Embeddings& passages, std::span<const std::int64_t> rows,
         const Excluded& excluded, const TopK& best, bool filter, int threads)
      : queries_(queries),
        passages_(passages),
        rows_(rows),
        excluded_(excluded),
        best_(best),
        threads_(threads),
        kernels_(filter ? simd::bfloat16_kernels() : simd::kernels()),
        filter_(filter && kernels_.multiply_pairs),
        capacity_(3 * best.count + kRoom),
        half_((queries.depth + 1) / 2),
        query_block_{0, 0, kernels_.rows, queries.depth, {}},
        passage_block_{0, 0, kernels_.columns, filter_ ? half_ : queries.depth, {}} {}

  void run() {
    const std::size_t depth = queries_.depth;
    const std::size_t most =
        std::min(rows_in(kBlockBytes, depth, kernels_.rows),
                 std::max(kCandidateBytes / (capacity_ * sizeof(Candidate)) / kernels_.rows, std::size_t{1}) *
                     kernels_.rows);
    const std::size_t blocks = (queries_.rows + most - 1) / most;
    const std::size_t panels = (queries_.rows + kernels_.rows - 1) / kernels_.rows;
    const std::size_t step = blocks ? (panels + blocks - 1) / blocks * kernels_.rows : 0;  // of like size
    for (std::size_t q = 0; q < queries_.rows; q += step) search(q, std::min(step, queries_.rows - q));
  }

 private:
  // The queries [begin, begin + size) against all passages.
  void search(std::size_t begin, std::size_t size) {
    pack_block(queries_, begin, size, query_block_, threads_, [](std::size_t row) { return row; });
    candidates_.resize(size * capacity_);
    sizes_.assign(size, 0);
    bounds_.assign(size, kLowest);
    dense_.assign(query_block_.panels(), 1);
    largest_norm_ = 0.0;
    if (filter_) round_queries();
    const std::size_t width = passage_block_.width, depth = passage_block_.depth;
    const std::size_t step = rows_in(kBlockBytes, depth, width);
    const std::size_t chunk =
        rows_in(std::min(kChunkBytes, kChunkRows * sizeof(float) * depth), depth, width);
    for (std::size_t n = 0; n < rows_.size(); n += step) {
      pack_passages(n, std::min(step, rows_.size() - n));
      // One chunk after another: a query's candidates are at hand for one thread only.
      for (std::size_t from = 0; from < passage_block_.size; from += chunk)
        parallel_for(query_block_.panels(), threads_, [&](std::size_t panel) {
          see(panel, from, std::min(from + chunk, passage_block_.size));
        });
    }
    parallel_for(query_block_.panels(), threads_, [&](std::size_t panel) {
      for (std::size_t i = 0; i < query_block_.panel_rows(panel); ++i) finish(panel * kernels_.rows + i);
    });
  }

  void round_queries() {
    query_pairs_.resize(query_block_.size * half_);
    query_norms_.resize(query_block_.size);
    parallel_for(query_block_.panels(), threads_, [&](std::size_t panel) {
      std::vector<float> widened(queries_.depth);
      for (std::size_t i = 0; i < query_block_.panel_rows(panel); ++i) {
        const std::size_t query = panel * kernels_.rows + i;
        const float* row = float_row(queries_, query_block_.begin + query, widened.data());
        kernels_.pair_neighbours(row, queries_.depth, query_pairs_.data() + query * half_);
        query_norms_[query] = std::sqrt(kernels_.dot(row, row, queries_.depth));
      }
    });
  }

  void pack_passages(std::size_t begin, std::size_t size) {
    if (!filter_)
      return pack_block(passages_, begin, size, passage_block_, threads_,
                        [&](std::size_t place) { return row_at(place); });
    passage_block_.hold(begin, size);
    std::vector<double> squares(passage_block_.panels());
    parallel_for(passage_block_.panels(), threads_, [&](std::size_t panel) {
      const std::size_t width = passage_block_.width, count = passage_block_.panel_rows(panel);
      std::vector<float> widened(passages_.depth), pairs(width * half_);
      for (std::size_t i = 0; i < count; ++i) {
        const float* row = float_row(passages_, row_at(begin + panel * width + i), widened.data());
        kernels_.pair_neighbours(row, passages_.depth, pairs.data() + i * half_);
        squares[panel] = std::max(squares[panel], kernels_.dot(row, row, passages_.depth));
      }
      kernels_.transpose(pairs.data(), half_, width, half_, passage_block_.panel(panel), width);
    });
    largest_norm_ = std::max(largest_norm_, std::sqrt(*std::max_element(squares.begin(), squares.end())));
  }

  // A panel of queries against the passages [from, to) of the block, whole panels from a panel's edge on.
  void see(std::size_t query_panel, std::size_t from, std::size_t to) {
    const std::size_t first = query_panel * kernels_.rows, count = query_block_.panel_rows(query_panel);
    const std::size_t size = to - from, place = passage_block_.begin + from;
    const std::size_t panels = (size + kernels_.columns - 1) / kernels_.columns;
    const std::size_t stride =
        panels * kernels_.columns + 16;  // rows a power of two apart would share cache sets
    Scratch scores(kernels_.rows * stride);
    const bool rounded = filter_ && !dense_[query_panel];
    if (rounded)
      for (std::size_t p = 0; p < panels; ++p)
        kernels_.multiply_pairs({query_pairs_.data() + first * half_, half_, 1,
                                 passage_block_.panel(from / kernels_.columns + p), half_},
                                count, scores.data() + p * kernels_.columns, stride, false);
    else
      score(query_panel, from, to, scores.data(), stride);
    std::size_t found = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const float* own = scores.data() + i * stride;
      const float slack = filter_ ? slack_of(first + i) : 0.0f;
      if (filter_ && !rounded) found += above(own, size, bounds_[first + i] - slack);
      const std::size_t kept = keep(first + i, own, size, place, rounded ? slack : 0.0f, rounded);
      if (rounded) found += kept;
    }
    // To keep a candidate takes so many times longer than to score it in a tile.
    if (filter_) dense_[query_panel] = found * 8 > count * size;
  }

  // Their float32 scores, at any place of which only those of the block are packed.
  void score(std::size_t query_panel, std::size_t from, std::size_t to, float* scores, std::size_t stride) {
    const std::size_t columns = kernels_.columns;
    Scratch packed(filter_ ? columns * queries_.depth : 0);
    for (; from < to; from += columns, scores += columns) {
      if (filter_)
        pack_panel(passages_, std::min(columns, to - from), columns, packed.data(),
                   [&](std::size_t i) { return row_at(passage_block_.begin + from + i); });
      kernels_.scores(query_block_.panel(query_panel),
                      filter_ ? packed.data() : passage_block_.panel(from / columns), queries_.depth, scores,
                      stride);
    }
  }

  static std::size_t above(const float* scores, std::size_t size, float bound) {
    std::int32_t found = 0;  // as wide as a score, for vectors
    for (std::size_t j = 0; j < size; ++j) found += scores[j] > bound;
    return static_cast<std::size_t>(found);
  }

  // Adds to a query's candidates those whose score may lie above its k-th best, and returns how many there
  // are. Places rise from call to call, so that of equal scores the first stay.
  std::size_t keep(std::size_t query, const float* scores, std::size_t size, std::size_t place, float slack,
                   bool rounded) {
    const std::size_t columns = kernels_.columns, step = 4 * columns;
    std::size_t found = 0;
    float bounds[64];
    std::uint32_t places[6 * 64];
    for (std::size_t begin = 0; begin < size; begin += step) {  // most hold nothing
      const float bound = bounds_[query] - slack;
      if (begin + step <= size) {
        int any = 0;
        for (std::size_t j = begin; j < begin + step; ++j) any |= scores[j] > bound;
        if (!any) continue;
      }
      std::fill_n(bounds, columns, bound);
      const std::size_t rows = (std::min(step, size - begin) + columns - 1) / columns;
      const std::size_t some = kernels_.select(scores + begin, rows, bounds, step, places);
      for (std::size_t i = 0; i < some; ++i) {
        const std::size_t j = begin + places[i];
        if (j >= size || !(scores[j] > bounds_[query] - slack)) continue;
        ++found;
        if (is_excluded(query, row_at(place + j))) continue;
        if (sizes_[query] == capacity_) {
          settle(query);
          if (!(scores[j] > bounds_[query] - slack)) continue;
        }
        const auto at = static_cast<std::int32_t>(place + j);
        candidates_[query * capacity_ + sizes_[query]++] = {scores[j], rounded ? ~at : at};
      }
    }
    return found;
  }

  // Leaves out the candidates of a query that cannot be among its k best, by the least and the most that a
  // rounded score may stand for; where too many are left, by their float32 scores.
  void settle(std::size_t query) {
    Candidate* own = candidates_.data() + query * capacity_;
    std::size_t& size = sizes_[query];
    if (size < best_.count) return;
    if (!filter_) return cut(query);
    const float slack = slack_of(query);
    const auto below = [&](const Candidate& c) { return c.place < 0 ? c.score - slack : c.score; };
    std::nth_element(own, own + best_.count - 1, own + size,
                     [&](const Candidate& a, const Candidate& b) { return below(a) > below(b); });
    bounds_[query] = std::max(bounds_[query], below(own[best_.count - 1]));
    const float bound = bounds_[query], rounded_bound = bound - slack;
    const Candidate* kept = std::partition(own, own + size, [&](const Candidate& c) {
      return c.score >= (c.place < 0 ? rounded_bound : bound);
    });
    size = static_cast<std::size_t>(kept - own);
    if (capacity_ - size >= kRoom) return;
    score_anew(query);
    cut(query);
  }

  // Leaves the k best of candidates whose scores are float32 ones, in no order.
  void cut(std::size_t query) {
    Candidate* own = candidates_.data() + query * capacity_;
    if (sizes_[query] < best_.count) return;
    std::nth_element(own, own + best_.count - 1, own + sizes_[query], better);
    sizes_[query] = best_.count;
    bounds_[query] = std::max(bounds_[query], own[best_.count - 1].score);
  }

  void score_anew(std::size_t query) {
    Candidate* candidates = candidates_.data() + query * capacity_;
    const std::size_t size = sizes_[query];
    const std::size_t columns = kernels_.columns, depth = queries_.depth;
    Scratch panel(columns * depth), widened(depth), scores(columns);
    const float* row = float_row(queries_, query_block_.begin + query, widened.data());
    std::size_t places[64];
    for (std::size_t next = 0; next < size;) {
      std::size_t count = 0;
      for (; next < size && count < columns; ++next)
        if (candidates[next].place < 0) places[count++] = next;
      if (!count) return;
      pack_panel(passages_, count, columns, panel.data(), [&](std::size_t i) {
        return row_at(static_cast<std::size_t>(~candidates[places[i]].place));
      });
      kernels_.multiply({row, depth, 1, panel.data(), depth}, 1, scores.data(), columns, false);
      for (std::size_t i = 0; i < count; ++i)
        candidates[places[i]] = {scores[i], ~candidates[places[i]].place};
    }
  }

  void finish(std::size_t query) {
    settle(query);
    if (filter_) score_anew(query);
    cut(query);
    Candidate* own = candidates_.data() + query * capacity_;
    std::sort(own, own + sizes_[query], better);
    float* scores = best_.scores + (query_block_.begin + query) * best_.count;
    std::int64_t* rows = best_.rows + (query_block_.begin + query) * best_.count;
    for (std::size_t i = 0; i < best_.count; ++i) {
      scores[i] = i < sizes_[query] ? own[i].score : kLowest;
      rows[i] = i < sizes_[query] ? rows_[static_cast<std::size_t>(own[i].place)] : -1;
    }
  }

  bool is_excluded(std::size_t query, std::size_t row) const {
    if (excluded_.groups.empty()) return false;
    const auto group = static_cast<std::size_t>(excluded_.groups[query_block_.begin + query]);
    return std::binary_search(excluded_.rows.begin() + excluded_.indptr[group],
                              excluded_.rows.begin() + excluded_.indptr[group + 1],
                              static_cast<std::int64_t>(row));
  }

  // What a rounded score may be off by; products below a float's normal range vanish, hence the last term.
  float slack_of(std::size_t query) const {
    const double norm = query_norms_[query];
    return static_cast<float>(norm * largest_norm_ * rounding(queries_.depth) +
                              0x1p-120 * (1.0 + norm + largest_norm_) * static_cast<double>(queries_.depth));
  }

  std::size_t row_at(std::size_t place) const { return static_cast<std::size_t>(rows_[place]); }

  const Embeddings &queries_, &passages_;
  const std::span<const std::int64_t> rows_;
  const Excluded& excluded_;
  const TopK& best_;
  const int threads_;
  const simd::TileKernels& kernels_;
  const bool filter_;
  const std::size_t capacity_;         // candidates of a query between one settling and the next
  const std::size_t half_;             // pairs of a row
  Block query_block_, passage_block_;  // the latter of pairs, with the filter
  std::vector<float> query_pairs_;
  std::vector<double> query_norms_;
  double largest_norm_ = 0.0;  // of the passages so far
  std::vector<Candidate> candidates_;
  std::vector<std::size_t> sizes_;
  std::vector<char> dense_;    // whether rounded embeddings left out too little of a query panel's last chunk
  std::vector<float> bounds_;  // the k-th best scores; minus infinity before there are k
};

}  // namespace

void top_k(const Embeddings& queries, const Embeddings& passages, std::span<const std::int64_t> rows,
           const Excluded& excluded, const TopK& best, bool filter, int threads) {
  Search(queries, passages, rows, excluded, best, filter, threads).run();
}

}  // namespace hybridfast
