// Which instruction set the kernels use: detected once, or forced by HYBRIDFAST_SIMD.
#pragma once

#include <string>
#include <vector>

#include "simd/tile.h"

namespace hybridfast::simd {

// The tables compiled in that this CPU can run, slowest first.
std::vector<const TileKernels*> supported();

// The table in use: the fastest supported one, or the one HYBRIDFAST_SIMD names.
// Throws std::invalid_argument, naming the supported levels, for an unknown or unsupported name.
const TileKernels& kernels();

}  // namespace hybridfast::simd
