// What kernels are written in: vectors of one register, as wide as the ISA file that includes this says, and
// the exponential function. Included where tile-inl.h is, and for the same reason in an anonymous namespace.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr std::size_t kLanes = HYBRIDFAST_VECTOR_BYTES / sizeof(float);

typedef float Vector __attribute__((vector_size(HYBRIDFAST_VECTOR_BYTES)));
typedef float VectorU __attribute__((vector_size(HYBRIDFAST_VECTOR_BYTES), aligned(4), may_alias));
typedef std::int32_t Ints __attribute__((vector_size(HYBRIDFAST_VECTOR_BYTES)));
typedef std::int32_t IntsU __attribute__((vector_size(HYBRIDFAST_VECTOR_BYTES), aligned(4), may_alias));
typedef float HalfU __attribute__((vector_size(HYBRIDFAST_VECTOR_BYTES / 2), aligned(4), may_alias));
typedef double Doubles __attribute__((vector_size(HYBRIDFAST_VECTOR_BYTES)));

constexpr float kMinusInfinity = -__builtin_inff();

Vector load(const float* place) {
  return *reinterpret_cast<const VectorU*>(place);
}
void store(float* place, Vector value) {
  *reinterpret_cast<VectorU*>(place) = value;
}
Vector splat(float value) {
  return value - Vector{};  // x - 0 is x in every bit, unlike x + 0: no instruction is spent on it
}

// exp(x) / 2^Halvings, of at most 2^127, to 1 ulp: Cody-Waite reduction to |r| <= ln(2)/2, then a degree-6
// polynomial whose upper four coefficients minimise the largest relative error, 4e-9. Results below the least
// normal number are 0; NaN stays NaN.
template <int Halvings>
Vector scaled_exp(Vector x) {
  const Vector least = splat(-87.33654f + Halvings * 0.69314718f);  // log(2^-126), the least normal number
  const Vector clamped = x < least ? least : x;
  const float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const Vector shifted = clamped * 1.44269504f + shifter;
  const Vector n = shifted - shifter;
  // log(2) in two parts, the first of so few bits that n times it is exact.
  const Vector r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  Vector p = splat(1.3863757e-3f);
  p = p * r + 8.3675091e-3f;
  p = p * r + 4.16672388e-2f;
  p = p * r + 1.66665338e-1f;
  p = p * r + 0.5f;
  p = ((p * r) * r + r) + 1.0f;
  const Ints power = (reinterpret_cast<Ints>(shifted) + (127 - Halvings)) << 23;
  const Vector value = p * reinterpret_cast<Vector>(power);
  return x < least ? splat(0.0f) : value;
}

}  // namespace
