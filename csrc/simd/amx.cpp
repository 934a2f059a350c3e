#include "simd/amx.h"

#ifdef __linux__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace hybridfast::simd {
namespace {

#ifdef __linux__

constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM and XFEATURE_XTILEDATA

struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

// Zeros for what this CPU does not know.
Registers cpuid(unsigned leaf, unsigned part) {
  Registers r;
  if (!__get_cpuid_count(leaf, part, &r.a, &r.b, &r.c, &r.d)) return {};
  return r;
}

bool has_tiles() {
  constexpr unsigned kSaved = 1u << 27, kBfloat16 = 1u << 22, kTiles = 1u << 24;
  const unsigned features = cpuid(7, 0).d;
  if (!(cpuid(1, 0).c & kSaved) || !(features & kBfloat16) || !(features & kTiles)) return false;
  const Registers palette = cpuid(0x1d, 1);
  const unsigned names = palette.b >> 16, row_bytes = palette.b & 0xffff, rows = palette.c & 0xffff;
  return names >= 8 && row_bytes == 64 && rows == 16;
}

// Configuration and data of tiles, by XCR0.
bool system_saves_tiles() {
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low >> 17 & 3) == 3;
}

bool ask() {
  return has_tiles() && system_saves_tiles() && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

#else

bool ask() {
  return false;
}

#endif

}  // namespace

bool amx_bf16() {
  static const bool granted = ask();
  return granted;
}

}  // namespace hybridfast::simd
