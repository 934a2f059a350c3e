#include "encoder/attention.h"

#include <algorithm>
#include <vector>

#include "simd/level.h"
#include "threads.h"

namespace hybridfast::encoder {
namespace {

using simd::Operands;
using simd::TileKernels;

// Rows of a text's square of shares are so many entries apart, whatever the kernels' width: dropout counts
// its entries along them.
constexpr std::size_t kColumnsMultiple = 32;
// Queries at a time: their scores, shares and gradients stay in the second-level cache. A multiple of 4, so
// that a block begins with a group of dropout's entries.
constexpr std::size_t kBlockFloats = 24 * 1024, kLeastRows = 24;

std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// A thread's memory; grows to what the longest text takes.
struct Workspace {
  std::vector<float> key_columns, value_columns, key_rows, value_rows;  // a text's, packed for `multiply`
  std::vector<float> scores, kept, gradients, query_rows, out_rows, padded, key_sums, value_sums;
};

float* room(std::vector<float>& floats, std::size_t size) {
  if (floats.size() < size) floats.resize(size);
  return floats.data();
}

// One text's heads that share keys and values.
class Text {
 public:
  Text(const Attention& attention, std::size_t text, std::size_t key_head)
      : attention_(attention),
        start_(static_cast<std::size_t>(attention.starts[text])),
        length_(static_cast<std::size_t>(attention.starts[text + 1]) - start_),
        place_(static_cast<std::uint64_t>(attention.places[text])),
        key_head_(key_head),
        stride_(round_up(length_, kColumnsMultiple)),
        wide_(round_up(attention.dim, kernels_.columns)),
        rows_(std::min(round_up(length_, 4), std::max(kLeastRows, kBlockFloats / stride_ / 24 * 24))) {}

  void forward(Heads<float> out) {
    const std::size_t group = attention_.heads / attention_.key_heads;
    pack_columns(attention_.keys, room(work_.key_columns, wide_ * stride_));
    pack_rows(attention_.values, key_head_, 0, length_, stride_, room(work_.value_rows, wide_ * stride_));
    float* scores = room(work_.scores, rows_ * stride_);
    for (std::size_t head = key_head_ * group; head < (key_head_ + 1) * group; ++head)
      for (std::size_t i = 0; i < length_; i += rows_) {
        const Block block = block_from(i);
        shares(head, block, scores);
        drop(head, block, scores, scores);
        product({scores + block.first, stride_, 1, nullptr, block.keys()}, block.count,
                work_.value_rows.data() + block.first * kernels_.columns, stride_ * kernels_.columns,
                out.at(start_ + i, head), out.token);
      }
  }

  void backward(Heads<const float> out_gradient, Heads<float> query_gradient, Heads<float> key_gradient,
                Heads<float> value_gradient) {
    const std::size_t group = attention_.heads / attention_.key_heads, columns = kernels_.columns;
    pack_columns(attention_.keys, room(work_.key_columns, wide_ * stride_));
    pack_columns(attention_.values, room(work_.value_columns, wide_ * stride_));
    pack_rows(attention_.keys, key_head_, 0, length_, stride_, room(work_.key_rows, wide_ * stride_));
    float *scores = room(work_.scores, rows_ * stride_), *kept = room(work_.kept, rows_ * stride_),
          *gradients = room(work_.gradients, rows_ * stride_);
    float *key_sums = room(work_.key_sums, wide_ * length_),
          *value_sums = room(work_.value_sums, wide_ * length_);
    std::fill_n(key_sums, wide_ * length_, 0.0f);
    std::fill_n(value_sums, wide_ * length_, 0.0f);
    for (std::size_t head = key_head_ * group; head < (key_head_ + 1) * group; ++head)
      for (std::size_t i = 0; i < length_; i += rows_) {
        const Block block = block_from(i);
        shares(head, block, scores);
        drop(head, block, nullptr, kept);
        panels(out_gradient, head, block, work_.value_columns.data(), gradients);
        for (std::size_t r = 0; r < block.count; ++r) {
          const std::size_t at = r * stride_ + block.first;
          kernels_.softmax_gradient(scores + at, attention_.dropout ? kept + at : nullptr, gradients + at,
                                    block.end - block.first, attention_.scale);
        }
        product({gradients + block.first, stride_, 1, nullptr, block.keys()}, block.count,
                work_.key_rows.data() + block.first * columns, stride_ * columns,
                query_gradient.at(start_ + i, head), query_gradient.token);
        pack_rows(attention_.queries, head, i, block.count, rows_, room(work_.query_rows, wide_ * rows_));
        pack_rows(out_gradient, head, i, block.count, rows_, room(work_.out_rows, wide_ * rows_));
        for (std::size_t c = 0; c < wide_; c += columns) {  // sums over the block's queries
          Operands of_keys{gradients + block.first, 1, stride_, work_.query_rows.data() + c * rows_,
                           block.count};
          kernels_.multiply(of_keys, block.keys(), key_sums + block.first * wide_ + c, wide_, true);
          Operands of_values{scores + block.first, 1, stride_, work_.out_rows.data() + c * rows_,
                             block.count};
          kernels_.multiply(of_values, block.keys(), value_sums + block.first * wide_ + c, wide_, true);
        }
      }
    for (std::size_t j = 0; j < length_; ++j) {
      std::copy_n(key_sums + j * wide_, attention_.dim, key_gradient.at(start_ + j, key_head_));
      std::copy_n(value_sums + j * wide_, attention_.dim, value_gradient.at(start_ + j, key_head_));
    }
  }

 private:
  // Queries from `row` on, and the keys that any of them attends to, the first and the end rounded to 32.
  struct Block {
    std::size_t row, count, first, end, last;
    std::size_t keys() const { return last - first; }
  };

  Block block_from(std::size_t row) const {
    const std::size_t count = std::min(rows_, length_ - row);
    const std::size_t first = row - std::min(row, attention_.before),
                      last = row + count - 1 + std::min(length_ - row - count, attention_.after) + 1;
    return {row, count, first / kColumnsMultiple * kColumnsMultiple, round_up(last, kColumnsMultiple), last};
  }

  // Dropout, if there is any, of a block's shares, or its factors where `in` is null. Entry i * stride + j is
  // of query i and key j; heads count from 1, for 0 is for rows that have none.
  void drop(std::size_t head, const Block& block, const float* in, float* out) const {
    if (!attention_.dropout) return;
    const auto entries = [&](std::size_t r, std::size_t first, std::size_t count) {
      const std::size_t at = r * stride_ + first;
      kernels_.drop(*attention_.dropout, place_, static_cast<std::uint32_t>(head + 1),
                    block.row * stride_ + at, in ? in + at : nullptr, count, out + at);
    };
    if (block.end - block.first == stride_) return entries(0, 0, block.count * stride_);
    for (std::size_t r = 0; r < block.count; ++r) entries(r, block.first, block.end - block.first);
  }

  void shares(std::size_t head, const Block& block, float* scores) {
    panels(attention_.queries, head, block, work_.key_columns.data(), scores);
    for (std::size_t r = 0; r < block.count; ++r) {
      const std::size_t i = block.row + r, first = i - std::min(i, attention_.before),
                        end = i + 1 + std::min(length_ - i - 1, attention_.after);
      kernels_.softmax(scores + r * stride_ + block.first, first - block.first, end - block.first,
                       block.end - block.first, attention_.scale);
    }
  }

  // out[r, j] = the product of row r of the block and packed column j.
  void panels(Heads<const float> rows, std::size_t head, const Block& block, const float* columns,
              float* out) {
    for (std::size_t c = block.first; c < block.end; c += kernels_.columns)
      kernels_.multiply(
          {rows.at(start_ + block.row, head), rows.token, 1, columns + c * attention_.dim, attention_.dim},
          block.count, out + c, stride_, false);
  }

  // Vectors of a text's head as columns: panels of `columns` tokens, dim x columns each, zero beyond the
  // text.
  void pack_columns(Heads<const float> heads, float* out) const {
    const std::size_t columns = kernels_.columns, dim = attention_.dim;
    for (std::size_t j = 0; j < stride_; j += columns, out += columns * dim) {
      const std::size_t count = j < length_ ? std::min(columns, length_ - j) : 0;
      if (count < columns) std::fill_n(out, columns * dim, 0.0f);
      if (count) kernels_.transpose(heads.at(start_ + j, key_head_), heads.token, count, dim, out, columns);
    }
  }

  // Vectors as rows: panels of `columns` dimensions, zero beyond the last, with room for `rows` of them.
  void pack_rows(Heads<const float> heads, std::size_t head, std::size_t first, std::size_t count,
                 std::size_t rows, float* out) const {
    const std::size_t columns = kernels_.columns, dim = attention_.dim;
    for (std::size_t c = 0; c < wide_; c += columns, out += rows * columns)
      for (std::size_t r = 0; r < count; ++r) {
        const std::size_t here = std::min(columns, dim - c);
        std::copy_n(heads.at(start_ + first + r, head) + c, here, out + r * columns);
        std::fill_n(out + r * columns + here, columns - here, 0.0f);
      }
  }

  // out = scalars times packed rows, of which only `dim` columns are written.
  void product(Operands operands, std::size_t count, const float* packed, std::size_t panel, float* out,
               std::size_t stride) {
    const std::size_t columns = kernels_.columns, dim = attention_.dim;
    for (std::size_t c = 0; c < wide_; c += columns) {
      operands.panel = packed + c / columns * panel;
      if (c + columns <= dim) {
        kernels_.multiply(operands, count, out + c, stride, false);
        continue;
      }
      float* padded = room(work_.padded, count * columns);
      kernels_.multiply(operands, count, padded, columns, false);
      for (std::size_t r = 0; r < count; ++r)
        std::copy_n(padded + r * columns, dim - c, out + r * stride + c);
    }
  }

  static Workspace& own_workspace() {
    thread_local Workspace workspace;
    return workspace;
  }

  const TileKernels& kernels_ = simd::kernels();
  Workspace& work_ = own_workspace();
  const Attention& attention_;
  std::size_t start_, length_;
  std::uint64_t place_;
  std::size_t key_head_, stride_, wide_, rows_;
};

template <class Body>
void for_texts(const Attention& attention, int threads, Body body) {
  const std::size_t texts = attention.starts.size() - 1;
  parallel_for(texts * attention.key_heads, threads, [&](std::size_t job) {
    const std::size_t text = job / attention.key_heads;
    if (attention.starts[text] == attention.starts[text + 1]) return;
    body(Text(attention, text, job % attention.key_heads));
  });
}

}  // namespace

void attend(const Attention& attention, Heads<float> out, int threads) {
  for_texts(attention, threads, [&](Text text) { text.forward(out); });
}

void attend_gradients(const Attention& attention, Heads<const float> out_gradient,
                      Heads<float> query_gradient, Heads<float> key_gradient, Heads<float> value_gradient,
                      int threads) {
  for_texts(attention, threads,
            [&](Text text) { text.backward(out_gradient, query_gradient, key_gradient, value_gradient); });
}

void drop_rows(const simd::Dropout& dropout, const float* in, std::size_t columns,
               std::span<const std::int64_t> rows, std::span<const std::int64_t> heads,
               std::span<const std::int64_t> first, float* out, int threads) {
  const simd::TileKernels& kernels = simd::kernels();
  constexpr std::size_t kRows = 16;
  parallel_for((rows.size() + kRows - 1) / kRows, threads, [&](std::size_t block) {
    for (std::size_t r = block * kRows; r < std::min(rows.size(), (block + 1) * kRows); ++r) {
      const float* from = in + r * columns;
      float* to = out + r * columns;
      const std::int64_t begin = first.empty() ? 0 : first[r];
      const std::size_t none = std::min(columns, static_cast<std::size_t>(std::max<std::int64_t>(0, -begin)));
      std::copy_n(from, none, to);
      kernels.drop(dropout, static_cast<std::uint64_t>(rows[r]),
                   heads.empty() ? 0 : static_cast<std::uint32_t>(heads[r]),
                   static_cast<std::uint64_t>(std::max<std::int64_t>(0, begin)), from + none, columns - none,
                   to + none);
    }
  });
}

}  // namespace hybridfast::encoder
