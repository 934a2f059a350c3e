#include "simd/amx.h"

bool hybridfast::simd::amx_bf16() {
  return true;
}
