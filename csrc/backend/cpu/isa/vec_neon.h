// The vocabulary of the kernels on 8 lanes of f32, as two registers of four in the instructions every 64-bit
// ARM processor has. Same names and, per lane, the same results as vec_scalar.h. Included by kernel objects,
// so no standard header beyond <cstddef> and <cstdint>.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

namespace gemmule {
namespace {

struct F8 {
  float32x4_t lo, hi;  // lanes 0..3 and 4..7
};
struct I8 {
  uint32x4_t lo, hi;
};
// Storage of 16-bit floats, as bits.
struct Half {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};

inline F8 load8(const float* p) noexcept { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline F8 load8(const Half* p) noexcept {
  const float16x8_t h = vreinterpretq_f16_u16(vld1q_u16(reinterpret_cast<const uint16_t*>(p)));
  return {vcvt_f32_f16(vget_low_f16(h)), vcvt_high_f32_f16(h)};
}
inline F8 load8(const Bf16* p) noexcept {
  const uint16x8_t h = vld1q_u16(reinterpret_cast<const uint16_t*>(p));
  return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(h), 16)),
          vreinterpretq_f32_u32(vshll_high_n_u16(h, 16))};
}
inline F8 load8(const int8_t* p) noexcept {
  const int16x8_t wide = vmovl_s8(vld1_s8(p));
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), vcvtq_f32_s32(vmovl_high_s16(wide))};
}
inline void store8(float* p, F8 a) noexcept {
  vst1q_f32(p, a.lo);
  vst1q_f32(p + 4, a.hi);
}
inline void store8(Half* p, F8 a) noexcept {
  const float16x8_t h = vcvt_high_f16_f32(vcvt_f16_f32(a.lo), a.hi);
  vst1q_u16(reinterpret_cast<uint16_t*>(p), vreinterpretq_u16_f16(h));
}

// Keeps a value in its registers.
inline void pin(F8& a) noexcept { __asm__("" : "+w"(a.lo), "+w"(a.hi)); }

inline F8 set1(float x) noexcept { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline F8 set1(Half x) noexcept {
  const float32x4_t four = vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(x.bits)));
  return {four, four};
}
inline F8 zero8() noexcept { return set1(0.0f); }
inline F8 add(F8 a, F8 b) noexcept { return {vaddq_f32(a.lo, b.lo), vaddq_f32(a.hi, b.hi)}; }
inline F8 sub(F8 a, F8 b) noexcept { return {vsubq_f32(a.lo, b.lo), vsubq_f32(a.hi, b.hi)}; }
inline F8 mul(F8 a, F8 b) noexcept { return {vmulq_f32(a.lo, b.lo), vmulq_f32(a.hi, b.hi)}; }
inline F8 div(F8 a, F8 b) noexcept { return {vdivq_f32(a.lo, b.lo), vdivq_f32(a.hi, b.hi)}; }
inline F8 sqrt8(F8 a) noexcept { return {vsqrtq_f32(a.lo), vsqrtq_f32(a.hi)}; }
// a * b + c, rounded once
inline F8 fma(F8 a, F8 b, F8 c) noexcept {
  return {vfmaq_f32(c.lo, a.lo, b.lo), vfmaq_f32(c.hi, a.hi, b.hi)};
}
// c - a * b, rounded once
inline F8 fnma(F8 a, F8 b, F8 c) noexcept {
  return {vfmsq_f32(c.lo, a.lo, b.lo), vfmsq_f32(c.hi, a.hi, b.hi)};
}
// b when either is NaN, which the instructions of that name do not promise.
inline float32x4_t larger4(float32x4_t a, float32x4_t b) noexcept { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline float32x4_t smaller4(float32x4_t a, float32x4_t b) noexcept {
  return vbslq_f32(vcltq_f32(a, b), a, b);
}
inline F8 max(F8 a, F8 b) noexcept { return {larger4(a.lo, b.lo), larger4(a.hi, b.hi)}; }
inline F8 min(F8 a, F8 b) noexcept { return {smaller4(a.lo, b.lo), smaller4(a.hi, b.hi)}; }
inline F8 zero_below(F8 y, F8 x, F8 limit) noexcept {
  const auto keep = [](float32x4_t y4, float32x4_t x4, float32x4_t limit4) noexcept {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(y4), vcltq_f32(x4, limit4)));
  };
  return {keep(y.lo, x.lo, limit.lo), keep(y.hi, x.hi, limit.hi)};
}
inline F8 abs8(F8 a) noexcept { return {vabsq_f32(a.lo), vabsq_f32(a.hi)}; }
inline F8 negate(F8 a) noexcept { return {vnegq_f32(a.lo), vnegq_f32(a.hi)}; }
// The magnitude of a (a >= 0 or NaN) with the sign of b.
inline F8 with_sign_of(F8 a, F8 b) noexcept {
  const uint32x4_t sign = vdupq_n_u32(0x80000000u);
  const auto join = [&](float32x4_t x, float32x4_t y) noexcept {
    return vreinterpretq_f32_u32(
        vorrq_u32(vreinterpretq_u32_f32(x), vandq_u32(vreinterpretq_u32_f32(y), sign)));
  };
  return {join(a.lo, b.lo), join(a.hi, b.hi)};
}
inline float sqrt_lane(float x) noexcept { return vget_lane_f32(vsqrt_f32(vdup_n_f32(x)), 0); }
inline float fma_lane(float a, float b, float c) noexcept { return __builtin_fmaf(a, b, c); }

inline I8 bits8(F8 a) noexcept { return {vreinterpretq_u32_f32(a.lo), vreinterpretq_u32_f32(a.hi)}; }
inline F8 from_bits8(I8 a) noexcept { return {vreinterpretq_f32_u32(a.lo), vreinterpretq_f32_u32(a.hi)}; }
inline I8 set1_int(int32_t x) noexcept {
  const uint32x4_t v = vdupq_n_u32(static_cast<uint32_t>(x));
  return {v, v};
}
inline I8 add(I8 a, I8 b) noexcept { return {vaddq_u32(a.lo, b.lo), vaddq_u32(a.hi, b.hi)}; }
inline I8 sub(I8 a, I8 b) noexcept { return {vsubq_u32(a.lo, b.lo), vsubq_u32(a.hi, b.hi)}; }
template <int kBits>
inline I8 shift_left(I8 a) noexcept {
  return {vshlq_n_u32(a.lo, kBits), vshlq_n_u32(a.hi, kBits)};
}
template <int kBits>
inline I8 shift_right_signed(I8 a) noexcept {
  const auto shifted = [](uint32x4_t v) noexcept {
    return vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(v), kBits));
  };
  return {shifted(a.lo), shifted(a.hi)};
}

// The tree of every vector sum: ((0+4)+(2+6)) + ((1+5)+(3+7)).
inline float32x2_t fold_to_pair(F8 a) noexcept {  // [(0+4)+(2+6), (1+5)+(3+7)]
  const float32x4_t four = vaddq_f32(a.lo, a.hi);
  return vadd_f32(vget_low_f32(four), vget_high_f32(four));
}
inline float sum8(F8 a) noexcept {
  const float32x2_t two = fold_to_pair(a);
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
// Four such sums: lane i is sum8(a[i]).
inline float32x4_t sum8_of_4(const F8* a) noexcept {
  const auto folded = [](F8 x, F8 y) noexcept {  // the pairs of x and y
    const float64x2_t p = vreinterpretq_f64_f32(vaddq_f32(x.lo, x.hi));
    const float64x2_t q = vreinterpretq_f64_f32(vaddq_f32(y.lo, y.hi));
    return vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(p, q)), vreinterpretq_f32_f64(vzip2q_f64(p, q)));
  };
  return vpaddq_f32(folded(a[0], a[1]), folded(a[2], a[3]));
}
inline void sum8_of_4(const F8* a, float* out) noexcept { vst1q_f32(out, sum8_of_4(a)); }
// Eight such sums.
inline F8 sum8_of_8(const F8* a) noexcept { return {sum8_of_4(a), sum8_of_4(a + 4)}; }
inline float max_lane(F8 a) noexcept {
  const float32x4_t four = larger4(a.lo, a.hi);
  const float32x4_t two = larger4(four, vextq_f32(four, four, 2));
  return vgetq_lane_f32(larger4(two, vextq_f32(two, two, 1)), 0);
}

}  // namespace
}  // namespace gemmule
