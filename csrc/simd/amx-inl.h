// Products of pairs of bfloat16 on AMX's tiles, for the table of tile_amx_bf16.cpp. Tests compile it with a
// model of the instructions (tests/native/amx_on_cpu).
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "simd/tile.h"

namespace {

constexpr std::size_t kTileRows = 16, kTileFloats = 16;  // of the largest tile: 16 rows of 64 bytes
constexpr std::size_t kTileColumns = 2 * kTileFloats;    // of a register block, and so of a panel

// Tiles 0 to 3 hold sums, those of 16 rows in 0 and 1, of 16 more in 2 and 3; 4 and 5 these rows' scalars,
// and 6 and 7 the halves of 16 steps of a panel: as it is laid out, a tile's row is a step, one pair for a
// column. An instruction adds the products of 16 x 16 pairs with 16 x 16 pairs.

// What ldtilecfg reads.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// GCC's intrinsics do not tell it that they read memory: what has been written there must be there.
void settle(const void* written) {
  asm volatile("" : : "r"(written) : "memory");
}

// For a block of up to 32 rows. A tile without rows has none of the bytes either, and is not used.
void configure(std::size_t rows) {
  TileConfig config;
  const std::size_t first = rows < kTileRows ? rows : kTileRows;
  const std::size_t rows_of[8] = {first, first,        rows - first, rows - first,
                                  first, rows - first, kTileRows,    kTileRows};
  for (std::size_t tile = 0; tile < 8; ++tile) {
    config.rows[tile] = static_cast<std::uint8_t>(rows_of[tile]);
    config.row_bytes[tile] = rows_of[tile] ? kTileFloats * sizeof(float) : 0;
  }
  settle(&config);
  _tile_loadconfig(&config);
}

template <bool Two>
void add_products(const float* scalars, std::size_t row, const float* panel) {
  _tile_loadd(6, panel, kTileColumns * sizeof(float));
  _tile_loadd(7, panel + kTileFloats, kTileColumns * sizeof(float));
  _tile_loadd(4, scalars, row * sizeof(float));
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (Two) {
    _tile_loadd(5, scalars + kTileRows * row, row * sizeof(float));
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// The same of the `depth` steps that are left, fewer than a tile's: with zeros in place of the others, since
// what lies there may be NaN, or not ours.
template <bool Two>
void add_rest(const float* scalars, std::size_t row, const float* panel, std::size_t rows,
              std::size_t depth) {
  alignas(64) float own_scalars[2 * kTileRows * kTileFloats], own_panel[kTileFloats * kTileColumns];
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t k = 0; k < kTileFloats; ++k)
      own_scalars[r * kTileFloats + k] = k < depth ? scalars[r * row + k] : 0.0f;
  for (std::size_t k = 0; k < kTileFloats; ++k)
    for (std::size_t c = 0; c < kTileColumns; ++c)
      own_panel[k * kTileColumns + c] = k < depth ? panel[k * kTileColumns + c] : 0.0f;
  settle(own_scalars);
  settle(own_panel);
  add_products<Two>(own_scalars, kTileFloats, own_panel);
}

// Up to 16 rows, or as `Two` up to 32.
template <bool Two>
void multiply_block(const hybridfast::simd::Operands& operands, std::size_t rows, float* out,
                    std::size_t stride, bool add) {
  const std::size_t bytes = stride * sizeof(float);
  if (add) {
    _tile_loadd(0, out, bytes);
    _tile_loadd(1, out + kTileFloats, bytes);
    if constexpr (Two) {
      _tile_loadd(2, out + kTileRows * stride, bytes);
      _tile_loadd(3, out + kTileRows * stride + kTileFloats, bytes);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (Two) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  for (std::size_t o = 0; o < operands.blocks; ++o) {
    const float* scalars = operands.scalars + o * operands.block;
    const float* panel = operands.panel + o * operands.panel_block;
    std::size_t k = 0;
    for (; k + kTileFloats <= operands.depth; k += kTileFloats)
      add_products<Two>(scalars + k, operands.row, panel + k * kTileColumns);
    if (k < operands.depth)
      add_rest<Two>(scalars + k, operands.row, panel + k * kTileColumns, rows, operands.depth - k);
  }
  _tile_stored(0, out, bytes);
  _tile_stored(1, out + kTileFloats, bytes);
  if constexpr (Two) {
    _tile_stored(2, out + kTileRows * stride, bytes);
    _tile_stored(3, out + kTileRows * stride + kTileFloats, bytes);
  }
}

// The tiles belong to the thread, which gets them configured here and gives them back, so that no switch of
// threads has 8 KB more to save.
void multiply_tiles(const hybridfast::simd::Operands& operands, std::size_t count, float* out,
                    std::size_t stride, bool add) {
  hybridfast::simd::Operands rest = operands;
  std::size_t configured = 0;
  while (count > 0) {
    const std::size_t rows = count < 2 * kTileRows ? count : 2 * kTileRows;
    if (rows != configured) configure(rows);
    configured = rows;
    if (rows > kTileRows)
      multiply_block<true>(rest, rows, out, stride, add);
    else
      multiply_block<false>(rest, rows, out, stride, add);
    rest.scalars += rows * operands.row;
    out += rows * stride;
    count -= rows;
  }
  if (configured) _tile_release();
}

}  // namespace
