// The products of csrc/simd/amx-inl.h by a model of AMX's instructions, which the compiler is told to include
// first; tests/test_simd.py builds and runs it. Operands end where their memory ends.

#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "embeddings.h"
#include "simd/amx-inl.h"

using hybridfast::Brain;
using hybridfast::narrow;
using hybridfast::widen;
using hybridfast::simd::Operands;

namespace {

struct Shape {
  std::size_t count, depth, blocks;
};

[[noreturn]] void fail(const char* what, const Shape& shape, double got, double wanted) {
  std::fprintf(stderr, "%s, %zu rows, depth %zu, %zu blocks: got %.9g, wanted %.9g\n", what, shape.count,
               shape.depth, shape.blocks, got, wanted);
  std::exit(1);
}

// Pairs of bfloat16 in floats, with what they stand for.
class Pairs {
 public:
  explicit Pairs(std::size_t count) : floats_(count, std::numeric_limits<float>::quiet_NaN()) {}
  void put(std::size_t place, std::size_t half, float value) {
    const Brain rounded = narrow(value);
    std::memcpy(reinterpret_cast<char*>(&floats_[place]) + 2 * half, &rounded, sizeof rounded);
  }
  double at(std::size_t place, std::size_t half) const {
    Brain value;
    std::memcpy(&value, reinterpret_cast<const char*>(&floats_[place]) + 2 * half, sizeof value);
    return widen(value);
  }
  const float* data() const { return floats_.data(); }

 private:
  std::vector<float> floats_;
};

// Of integers the sums are exact, so that every bit counts; of others they are off by no more than rounding.
void check(const Shape& shape, bool integers, bool add, std::mt19937& random) {
  const std::size_t columns = kTileColumns, gap = 3;
  const std::size_t block = shape.depth + gap, row = shape.blocks * block + gap, stride = columns + gap;
  const std::size_t panel_block = shape.depth * columns + gap;
  // The floats between rows and blocks stay NaN.
  Pairs scalars((shape.count - 1) * row + (shape.blocks - 1) * block + shape.depth);
  Pairs panel((shape.blocks - 1) * panel_block + shape.depth * columns);
  std::normal_distribution<float> normal;
  const auto value = [&] { return integers ? static_cast<float>(random() % 17) - 8 : normal(random); };
  for (std::size_t o = 0; o < shape.blocks; ++o)
    for (std::size_t k = 0; k < shape.depth; ++k)
      for (std::size_t half = 0; half < 2; ++half) {
        for (std::size_t r = 0; r < shape.count; ++r) scalars.put(r * row + o * block + k, half, value());
        for (std::size_t c = 0; c < columns; ++c) panel.put(o * panel_block + k * columns + c, half, value());
      }
  std::vector<float> out((shape.count - 1) * stride + columns), before;
  for (float& entry : out) entry = value();
  before = out;
  multiply_tiles({scalars.data(), row, 1, panel.data(), shape.depth, shape.blocks, block, panel_block},
                 shape.count, out.data(), stride, add);
  if (amx_on_cpu::tiles().configured) fail("tiles left configured", shape, 1, 0);
  for (std::size_t place = 0; place < out.size(); ++place) {
    const std::size_t r = place / stride, c = place % stride;
    if (c >= columns) {
      if (out[place] != before[place]) fail("between rows", shape, out[place], before[place]);
      continue;
    }
    double wanted = add ? before[place] : 0, size = std::abs(wanted);
    for (std::size_t o = 0; o < shape.blocks; ++o)
      for (std::size_t k = 0; k < shape.depth; ++k)
        for (std::size_t half = 0; half < 2; ++half) {
          const double product =
              scalars.at(r * row + o * block + k, half) * panel.at(o * panel_block + k * columns + c, half);
          wanted += product;
          size += std::abs(product);
        }
    const auto steps = static_cast<double>(shape.blocks * (shape.depth + 2));
    if (std::abs(out[place] - wanted) > (integers ? 0 : 0x1p-24 * steps * size))
      fail(integers ? "integers" : "normals", shape, out[place], wanted);
  }
}

// By hand: 3 + (2 * 5 + 0.5 * 8); a denormal number counts as 0; NaN and infinity come through.
void check_model() {
  const float infinity = std::numeric_limits<float>::infinity();
  const struct {
    float a[2], b[2], sum, wanted;
  } cases[] = {{{2, 0.5f}, {5, 8}, 3, 17},
               {{0x1p-127f, 1}, {0x1p100f, 4}, 1, 5},
               {{1, 1}, {infinity, 1}, 0, infinity},
               {{1, 0}, {1, infinity}, 0, NAN}};
  for (const auto& [a, b, sum, wanted] : cases) {
    Pairs scalars(1), panel(kTileColumns);
    for (std::size_t half = 0; half < 2; ++half) {
      scalars.put(0, half, a[half]);
      for (std::size_t c = 0; c < kTileColumns; ++c) panel.put(c, half, b[half]);
    }
    std::vector<float> out(kTileColumns, sum);
    multiply_tiles({scalars.data(), 1, 1, panel.data(), 1}, 1, out.data(), kTileColumns, true);
    for (const float got : out)
      if (!(got == wanted || (std::isnan(got) && std::isnan(wanted))))
        fail("by hand", {1, 1, 1}, got, wanted);
  }
}

}  // namespace

int main() {
  check_model();
  std::mt19937 random(0);
  for (std::size_t count : {1, 2, 15, 16, 17, 31, 32, 33, 48, 49, 70})  // around one tile, two, and a block
    for (std::size_t depth : {1, 15, 16, 17, 40})
      for (std::size_t blocks : {1, 3})
        for (int options = 0; options < 4; ++options)
          check({count, depth, blocks}, options & 1, options & 2, random);
  std::puts("ok");
}
