// Which instruction set the kernels use: what a measurement finds fastest when a process first needs them, or
// what HYBRIDFAST_SIMD names.
#pragma once

#include <cstddef>
#include <vector>

#include "simd/tile.h"

namespace hybridfast::simd {

// The tables compiled in that this CPU can run, those of the wider or later instructions last.
std::vector<const TileKernels*> supported();

// What one thread made of a product of two matrices: multiply_pairs where a level has it, else multiply.
struct Rate {
  const TileKernels* level;
  double gflops;
};

struct Choice {
  const TileKernels* level;
  std::vector<Rate> rates;  // none where HYBRIDFAST_SIMD names the level, or there is but one
};

// Of levels by their rates, each of which comes in for the one chosen so far if it is at least `lead` times
// as fast.
std::size_t take_over(const std::vector<double>& rates, double lead);

// Made once in a process, in a few milliseconds; other threads wait for it. Both throw std::invalid_argument,
// naming the supported levels, where HYBRIDFAST_SIMD names none of these.
const Choice& float32_choice();
const Choice& bfloat16_choice();

// The table in use; and the one for products whose factors may be bfloat16, which has multiply_pairs only
// where that was faster.
inline const TileKernels& kernels() {
  return *float32_choice().level;
}
inline const TileKernels& bfloat16_kernels() {
  return *bfloat16_choice().level;
}

}  // namespace hybridfast::simd
