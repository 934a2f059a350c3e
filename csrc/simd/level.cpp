#include "simd/level.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "simd/amx.h"
#include "workspace.h"

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
  const bool avx512bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (avx512bf16) levels.push_back(&avx512bf16_kernels);
#ifdef HYBRIDFAST_AMX
  if (avx512bf16 && amx_bf16()) levels.push_back(&amx_bf16_kernels);
#endif
#endif
  return levels;
}

std::size_t take_over(const std::vector<double>& rates, double lead) {
  std::size_t chosen = 0;
  for (std::size_t level = 1; level < rates.size(); ++level)
    if (rates[level] >= lead * rates[chosen]) chosen = level;
  return chosen;
}

namespace {

// What runs if two levels are about as fast must not depend on what else the machine does: only a level that
// is faster by this factor is taken against the rule. By the rule the wider vectors serve float32, for what
// is no product is then faster too; and float32 products serve bfloat16, for they round less. Known CPUs
// multiply pairs at half, once or twice the rate of float32, far from it.
constexpr double kMargin = 1.25;

// A chunk of passages against a panel of queries, as the loss multiplies them.
constexpr std::size_t kPassages = 96, kDim = 384, kSkew = 16;
constexpr int kRounds = 20;

// The best of runs of some 20 microseconds each, in turns: whatever else happens only takes time, and a
// change of the clock rate meets all levels.
std::vector<Rate> measure(const std::vector<const TileKernels*>& levels) {
  std::size_t most = 0;
  for (const TileKernels* level : levels) most = std::max(most, level->columns);
  Scratch passages(kPassages * (kDim + kSkew)), queries(kDim * most), out(kPassages * most);
  constexpr float kOne = 1.00193f;  // as a pair of bfloat16 about (1, 1)
  std::fill_n(passages.data(), kPassages * (kDim + kSkew), kOne);
  std::fill_n(queries.data(), kDim * most, kOne);
  std::vector<Rate> rates;
  for (const TileKernels* level : levels) rates.push_back({level, 0});
  for (int round = 0; round < kRounds; ++round)
    for (auto& [level, best] : rates) {
      const bool pairs = level->multiply_pairs;
      const std::size_t depth = pairs ? kDim / 2 : kDim;
      const Operands operands{passages.data(), depth + kSkew, 1, queries.data(), depth};
      const auto begin = std::chrono::steady_clock::now();
      (pairs ? level->multiply_pairs : level->multiply)(operands, kPassages, out.data(), level->columns,
                                                        false);
      const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - begin;
      const auto operations = static_cast<double>(2 * kPassages * kDim * level->columns);
      best = std::max(best, operations / std::max(took.count(), 1.0));
    }
  return rates;
}

Choice fastest(const std::vector<const TileKernels*>& levels, double lead) {
  if (levels.size() == 1) return {levels[0], {}};
  const std::vector<Rate> rates = measure(levels);
  std::vector<double> gflops;
  for (const Rate& rate : rates) gflops.push_back(rate.gflops);
  return {levels[take_over(gflops, lead)], rates};
}

// The level that HYBRIDFAST_SIMD names; null where it is not set.
const TileKernels* forced() {
  const char* wanted = std::getenv("HYBRIDFAST_SIMD");
  if (!wanted || !*wanted) return nullptr;
  std::string names;
  for (const TileKernels* level : supported()) {
    if (std::string(level->name) == wanted) return level;
    names += (names.empty() ? "" : ", ") + std::string(level->name);
  }
  throw std::invalid_argument("HYBRIDFAST_SIMD must be one of " + names + " on this CPU, got '" + wanted +
                              "'");
}

Choice choose_float32() {
  if (const TileKernels* level = forced()) return {level, {}};
  auto levels = supported();
  std::erase_if(levels, [](const TileKernels* level) { return level->multiply_pairs; });
  return fastest(levels, 1 / kMargin);
}

Choice choose_bfloat16() {
  if (const TileKernels* level = forced()) return {level, {}};
  auto levels = supported();
  std::erase_if(levels, [](const TileKernels* level) { return !level->multiply_pairs; });
  levels.insert(levels.begin(), &kernels());
  return fastest(levels, kMargin);
}

}  // namespace

const Choice& float32_choice() {
  static const Choice chosen = choose_float32();  // a throw leaves it unset: the next call reports again
  return chosen;
}

const Choice& bfloat16_choice() {
  static const Choice chosen = choose_bfloat16();
  return chosen;
}

}  // namespace hybridfast::simd
