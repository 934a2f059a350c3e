#include "simd/level.h"

#include <cstdlib>
#include <stdexcept>

namespace hybridfast::simd {

std::vector<const TileKernels*> supported() {
  std::vector<const TileKernels*> levels{&baseline_kernels};
#ifdef HYBRIDFAST_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2) levels.push_back(&avx2_kernels);
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) levels.push_back(&avx512_kernels);
  if (avx512 && __builtin_cpu_supports("avx512bf16")) levels.push_back(&avx512bf16_kernels);
#endif
  return levels;
}

namespace {

const TileKernels& choose() {
  const auto levels = supported();
  const char* forced = std::getenv("HYBRIDFAST_SIMD");
  if (!forced || !*forced) return *levels.back();
  std::string names;
  for (const TileKernels* level : levels) {
    if (std::string(level->name) == forced) return *level;
    names += (names.empty() ? "" : ", ") + std::string(level->name);
  }
  throw std::invalid_argument("HYBRIDFAST_SIMD must be one of " + names + " on this CPU, got '" + forced +
                              "'");
}

}  // namespace

const TileKernels& kernels() {
  static const TileKernels& chosen = choose();  // a throw leaves it unset: the next call reports again
  return chosen;
}

}  // namespace hybridfast::simd
