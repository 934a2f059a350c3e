// AMX's instructions on any x86 CPU, for tests: to be included before all else (-include), so that the
// intrinsics of what follows are these functions. They do what Intel's manual says for tdpbf16ps and the
// instructions about tiles, and end the program where the CPU would raise an exception.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

// Nothing here is inline for others: what is compiled for AVX-512 must not be what the linker keeps for all.
namespace {
namespace amx_on_cpu {

struct Tile {
  unsigned rows = 0, bytes = 0;  // as configured; of a row
  std::uint8_t data[16][64] = {};

  float number(unsigned row, unsigned column) const {
    float value;
    std::memcpy(&value, &data[row][4 * column], sizeof value);
    return value;
  }
};

struct Tiles {
  bool configured = false;
  Tile tile[8];
};

Tiles& tiles() {
  thread_local Tiles own;
  return own;
}

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "amx_on_cpu: %s\n", what);
  std::abort();
}

Tile& in_use(unsigned name) {
  require(tiles().configured && tiles().tile[name].rows > 0, "a tile that is not configured");
  return tiles().tile[name];
}

void load_config(const void* place) {
  std::uint8_t config[64];
  std::memcpy(config, place, sizeof config);
  require(config[0] == 1, "a palette other than 1");
  for (unsigned i = 1; i < 16; ++i) require(config[i] == 0, "start_row or reserved bytes that are not 0");
  tiles() = {true, {}};
  for (unsigned name = 0; name < 16; ++name) {
    std::uint16_t bytes;
    std::memcpy(&bytes, &config[16 + 2 * name], sizeof bytes);
    const unsigned rows = config[48 + name];
    require(rows <= 16 && bytes <= 64, "a tile that is too large");
    require((rows == 0) == (bytes == 0), "a tile of no rows or no bytes");
    require(name < 8 || rows == 0, "a ninth tile");
    if (rows == 0) continue;
    tiles().tile[name].rows = rows;
    tiles().tile[name].bytes = bytes;
  }
}

void release() {
  tiles() = {};
}

void zero(unsigned name) {
  std::memset(in_use(name).data, 0, sizeof in_use(name).data);
}

void load(unsigned name, const void* place, std::size_t stride) {
  Tile& tile = in_use(name);
  zero(name);
  for (unsigned row = 0; row < tile.rows; ++row)
    std::memcpy(tile.data[row], static_cast<const std::uint8_t*>(place) + row * stride, tile.bytes);
}

void store(unsigned name, void* place, std::size_t stride) {
  const Tile& tile = in_use(name);
  for (unsigned row = 0; row < tile.rows; ++row)
    std::memcpy(static_cast<std::uint8_t*>(place) + row * stride, tile.data[row], tile.bytes);
}

// Denormal numbers count as zeros, where they are read and where they would be written.
float flushed(float value) {
  return __builtin_fabsf(value) < 0x1p-126f ? __builtin_copysignf(0.0f, value) : value;
}

float widened(const Tile& tile, unsigned row, unsigned place) {
  std::uint16_t bits;
  std::memcpy(&bits, &tile.data[row][2 * place], sizeof bits);
  const std::uint32_t wide = std::uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return flushed(value);
}

// Products of first and of second halves of pairs have a sum each, which begins at 0; then these two are
// added, and what they give to `to`.
void multiply(unsigned to, unsigned a, unsigned b) {
  Tile &sums = in_use(to), &left = in_use(a), &right = in_use(b);
  require(to != a && to != b && a != b, "a tile that is named twice");
  require(left.rows == sums.rows && right.bytes == sums.bytes && left.bytes == 4 * right.rows,
          "tiles whose shapes do not fit");
  for (unsigned m = 0; m < sums.rows; ++m)
    for (unsigned n = 0; n < sums.bytes / 4; ++n) {
      float halves[2] = {0, 0};
      for (unsigned k = 0; k < right.rows; ++k)
        for (unsigned h = 0; h < 2; ++h)
          halves[h] =
              flushed(__builtin_fmaf(widened(left, m, 2 * k + h), widened(right, k, 2 * n + h), halves[h]));
      const float sum = flushed(flushed(sums.number(m, n)) + flushed(halves[0] + halves[1]));
      std::memcpy(&sums.data[m][4 * n], &sum, sizeof sum);
    }
}

}  // namespace amx_on_cpu
}  // namespace

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(place) amx_on_cpu::load_config(place)
#define _tile_release() amx_on_cpu::release()
#define _tile_zero(name) amx_on_cpu::zero(name)
#define _tile_loadd(name, place, stride) amx_on_cpu::load(name, place, stride)
#define _tile_stored(name, place, stride) amx_on_cpu::store(name, place, stride)
#define _tile_dpbf16ps(to, a, b) amx_on_cpu::multiply(to, a, b)
