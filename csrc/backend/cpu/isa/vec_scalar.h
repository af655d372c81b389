// The vocabulary of the kernels on 8 lanes of f32, in plain C++: the reference that vec_avx2.h repeats with
// instructions. Every function does per lane what the IEEE instruction does, NaN rules of min/max included.
// Included by kernel objects, so no standard header beyond <cstddef> and <cstdint>.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gemmule {
namespace {

struct F8 {
  float v[8];
};
struct I8 {
  uint32_t v[8];  // unsigned, so that wrapping is defined
};
// Storage of 16-bit floats, as bits.
struct Half {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};

inline uint32_t lane_bits(float x) noexcept {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}
inline float lane_float(uint32_t u) noexcept {
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}

template <class Fn>
inline F8 each_lane(Fn fn) noexcept {
  F8 r;
  for (int i = 0; i < 8; ++i) r.v[i] = fn(i);
  return r;
}
template <class Fn>
inline I8 each_int_lane(Fn fn) noexcept {
  I8 r;
  for (int i = 0; i < 8; ++i) r.v[i] = fn(i);
  return r;
}

// As the F16C instructions: exact, and a signalling NaN becomes quiet.
inline float half_lane(uint16_t h) noexcept {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1fu;
  const uint32_t mantissa = h & 0x3ffu;
  if (exponent == 0) return lane_float(lane_bits(static_cast<float>(mantissa) * 0x1p-24f) | sign);
  if (exponent != 31) return lane_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
  return lane_float(sign | 0x7f800000u | (mantissa << 13) | (mantissa ? 0x400000u : 0u));
}
// To the nearest f16, ties to even, as the F16C instructions.
inline uint16_t lane_half(float x) noexcept {
  const uint32_t bits = lane_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t r;
  if (magnitude > 0x7f800000u) {
    r = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // half way above the largest f16
    r = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // the unit of 0.5f is 2^-24, the f16 subnormal step: the sum rounds
    r = lane_bits(lane_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    r = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return static_cast<uint16_t>(sign | r);
}

inline F8 load8(const float* p) noexcept {
  F8 r;
  __builtin_memcpy(r.v, p, 32);
  return r;
}
inline F8 load8(const Half* p) noexcept {
  uint16_t h[8];
  __builtin_memcpy(h, p, 16);
  return each_lane([&](int i) noexcept { return half_lane(h[i]); });
}
inline F8 load8(const Bf16* p) noexcept {
  uint16_t h[8];
  __builtin_memcpy(h, p, 16);
  return each_lane([&](int i) noexcept { return lane_float(static_cast<uint32_t>(h[i]) << 16); });
}
inline F8 load8(const int8_t* p) noexcept {
  return each_lane([&](int i) noexcept { return static_cast<float>(p[i]); });
}
inline void store8(float* p, F8 a) noexcept { __builtin_memcpy(p, a.v, 32); }
inline void store8(Half* p, F8 a) noexcept {
  uint16_t h[8];
  for (int i = 0; i < 8; ++i) h[i] = lane_half(a.v[i]);
  __builtin_memcpy(p, h, 16);
}

// Keeps a value in a register where there are 8-lane registers.
inline void pin(F8&) noexcept {}

inline F8 zero8() noexcept { return F8{}; }
inline F8 set1(float x) noexcept {
  return each_lane([&](int) noexcept { return x; });
}
inline F8 set1(Half x) noexcept { return set1(half_lane(x.bits)); }
inline F8 add(F8 a, F8 b) noexcept {
  return each_lane([&](int i) noexcept { return a.v[i] + b.v[i]; });
}
inline F8 sub(F8 a, F8 b) noexcept {
  return each_lane([&](int i) noexcept { return a.v[i] - b.v[i]; });
}
inline F8 mul(F8 a, F8 b) noexcept {
  return each_lane([&](int i) noexcept { return a.v[i] * b.v[i]; });
}
inline F8 div(F8 a, F8 b) noexcept {
  return each_lane([&](int i) noexcept { return a.v[i] / b.v[i]; });
}
inline F8 sqrt8(F8 a) noexcept {
  return each_lane([&](int i) noexcept { return __builtin_sqrtf(a.v[i]); });
}
inline F8 fma(F8 a, F8 b, F8 c) noexcept {  // a * b + c, rounded once
  return each_lane([&](int i) noexcept { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
inline F8 fnma(F8 a, F8 b, F8 c) noexcept {  // c - a * b, rounded once
  return each_lane([&](int i) noexcept { return __builtin_fmaf(-a.v[i], b.v[i], c.v[i]); });
}
// b when either is NaN.
inline F8 max(F8 a, F8 b) noexcept {
  return each_lane([&](int i) noexcept { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline F8 min(F8 a, F8 b) noexcept {
  return each_lane([&](int i) noexcept { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
// y, and +0 where x < limit.
inline F8 zero_below(F8 y, F8 x, F8 limit) noexcept {
  return each_lane([&](int i) noexcept { return x.v[i] < limit.v[i] ? 0.0f : y.v[i]; });
}
inline F8 abs8(F8 a) noexcept {
  return each_lane([&](int i) noexcept { return lane_float(lane_bits(a.v[i]) & 0x7fffffffu); });
}
inline F8 negate(F8 a) noexcept {
  return each_lane([&](int i) noexcept { return lane_float(lane_bits(a.v[i]) ^ 0x80000000u); });
}
// The magnitude of a (a >= 0 or NaN) with the sign of b.
inline F8 with_sign_of(F8 a, F8 b) noexcept {
  return each_lane(
      [&](int i) noexcept { return lane_float(lane_bits(a.v[i]) | (lane_bits(b.v[i]) & 0x80000000u)); });
}
inline float sqrt_lane(float x) noexcept { return __builtin_sqrtf(x); }
inline float fma_lane(float a, float b, float c) noexcept { return __builtin_fmaf(a, b, c); }

inline I8 bits8(F8 a) noexcept {
  return each_int_lane([&](int i) noexcept { return lane_bits(a.v[i]); });
}
inline F8 from_bits8(I8 a) noexcept {
  return each_lane([&](int i) noexcept { return lane_float(a.v[i]); });
}
inline I8 set1_int(int32_t x) noexcept {
  return each_int_lane([&](int) noexcept { return static_cast<uint32_t>(x); });
}
inline I8 add(I8 a, I8 b) noexcept {
  return each_int_lane([&](int i) noexcept { return a.v[i] + b.v[i]; });
}
inline I8 sub(I8 a, I8 b) noexcept {
  return each_int_lane([&](int i) noexcept { return a.v[i] - b.v[i]; });
}
template <int kBits>
inline I8 shift_left(I8 a) noexcept {
  return each_int_lane([&](int i) noexcept { return a.v[i] << kBits; });
}
template <int kBits>
inline I8 shift_right_signed(I8 a) noexcept {
  return each_int_lane(
      [&](int i) noexcept { return static_cast<uint32_t>(static_cast<int32_t>(a.v[i]) >> kBits); });
}

// The tree of every vector sum: ((0+4)+(2+6)) + ((1+5)+(3+7)).
inline float sum8(F8 a) noexcept {
  return ((a.v[0] + a.v[4]) + (a.v[2] + a.v[6])) + ((a.v[1] + a.v[5]) + (a.v[3] + a.v[7]));
}
// Eight such sums: lane i is sum8(a[i]).
inline F8 sum8_of_8(const F8* a) noexcept {
  return each_lane([&](int i) noexcept { return sum8(a[i]); });
}
// Four such sums, in the first four floats of out.
inline void sum8_of_4(const F8* a, float* out) noexcept {
  for (int i = 0; i < 4; ++i) out[i] = sum8(a[i]);
}
inline float max_lane(F8 a) noexcept {
  const auto larger = [](float x, float y) noexcept { return x > y ? x : y; };
  return larger(larger(larger(a.v[0], a.v[4]), larger(a.v[2], a.v[6])),
                larger(larger(a.v[1], a.v[5]), larger(a.v[3], a.v[7])));
}

}  // namespace
}  // namespace gemmule
