// What the encoders of the 32-element formats share: the scale of a block and the rounding of its codes.
// As in the reference encoders the codes come from the f32 scale, while the block stores it rounded to f16.
// A scale beyond the f16 range is held at 65504, so that far too large numbers saturate instead of becoming
// NaN.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/half.h"

namespace gemmule {

inline constexpr float kMaxF16 = 65504.0f;

// `value` if its f16 form is finite, else the largest f16 with its sign.
static inline float saturate_f16(float value) {
  if ((f32_to_f16(value) & 0x7fffu) < 0x7c00u) return value;
  return value < 0 ? -kMaxF16 : kMaxF16;
}

// 1/d, or 0 for a d so small that there is no finite inverse (its f16 form is zero).
static inline float inverse_or_zero(float d) {
  const float inverse = 1.0f / d;
  return std::fabs(inverse) <= 3.402823466e+38f ? inverse : 0.0f;
}

// The integer part of `value` held in 0..max; clamped first, because only then the conversion is defined.
static inline uint8_t truncate_code(float value, int max) {
  const float top = static_cast<float>(max);
  if (!(value > 0.0f)) return 0;
  return static_cast<uint8_t>(static_cast<int>(value < top ? value : top));
}

// The element of largest magnitude with its sign; the first of equals. x [32]
static inline float signed_peak32(const float* x) {
  float peak = x[0];
  for (int j = 1; j < 32; ++j)
    if (std::fabs(x[j]) > std::fabs(peak)) peak = x[j];
  return peak;
}

struct Affine32 {
  float d;        // (max - min) / n_max
  float min;      // smallest element
  float inverse;  // 1 / d, or 0
};

// x [32] ~ d * code + min with codes 0..n_max.
static inline Affine32 affine32(const float* x, int n_max) {
  float lo = x[0];
  float hi = x[0];
  for (int j = 1; j < 32; ++j) {
    if (x[j] < lo) lo = x[j];
    if (x[j] > hi) hi = x[j];
  }
  const float d = saturate_f16((hi - lo) / static_cast<float>(n_max));
  return {d, saturate_f16(lo), inverse_or_zero(d)};
}

}  // namespace gemmule
