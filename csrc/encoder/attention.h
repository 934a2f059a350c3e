// Attention and dropout of an encoder's layers, for texts side by side without padding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "simd/tile.h"

namespace hybridfast::encoder {

// One vector a token and head, `token` and `head` floats apart.
template <class Float>
struct Heads {
  Float* data;
  std::size_t token;
  std::size_t head;

  Float* at(std::size_t row, std::size_t h) const { return data + row * token + h * head; }
};

// Each text's tokens attend to the text's own: token i to j where i - before <= j <= i + after. Queries have
// `heads` heads, keys and values one for each heads / key_heads of them.
struct Attention {
  Heads<const float> queries, keys, values;
  std::size_t heads, key_heads, dim;
  std::span<const std::int64_t> starts;  // one more than texts
  std::span<const std::int64_t> places;  // of the texts' first tokens, which dropout's rows are
  std::size_t before, after;
  float scale;                   // of the products
  const simd::Dropout* dropout;  // null: none
};

// out = dropout(softmax(scale Q K')) V.
void attend(const Attention& attention, Heads<float> out, int threads);

// The gradients of queries, keys and values, given that of `out`; the shares are computed again.
void attend_gradients(const Attention& attention, Heads<const float> out_gradient,
                      Heads<float> query_gradient, Heads<float> key_gradient, Heads<float> value_gradient,
                      int threads);

// Rows of `columns` floats: out = dropout(in), where row r is (rows[r], heads[r], first[r] ...). Entries
// below 0, of padding, are kept as they are.
void drop_rows(const simd::Dropout& dropout, const float* in, std::size_t columns,
               std::span<const std::int64_t> rows, std::span<const std::int64_t> heads,
               std::span<const std::int64_t> first, float* out, int threads);

}  // namespace hybridfast::encoder
