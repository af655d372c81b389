// NEON: activations to int8 blocks with one f32 scale each and the sums of their codes.
#pragma once
#include <arm_neon.h>

#include <cstdint>

namespace gemmule {
namespace {

namespace quant_neon {

// The nearest integers (ties to even) of 16 products src[i] * inv, all within +-127.
inline int8x16_t quantize_16(const float* src, float inv) noexcept {
  const auto eight = [&](const float* p) noexcept {
    const int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(p), inv));
    const int32x4_t b = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(p + 4), inv));
    return vcombine_s16(vmovn_s32(a), vmovn_s32(b));
  };
  return vcombine_s8(vmovn_s16(eight(src)), vmovn_s16(eight(src + 8)));
}

// Blocks of Size activations to int8; one sum per Group codes. The same rule as the scalar level: a block
// whose largest magnitude m is zero, so small that 127 / m overflows, infinite or NaN gets codes 0, with d =
// m / 127.
template <int Size, int Group>
void quantize(const float* x, int64_t k, int8_t* q, float* d, int16_t* sums) noexcept {
  const uint32x4_t magnitude_mask = vdupq_n_u32(0x7fffffffu);
  for (int64_t b = 0; b < k / Size; ++b) {
    const float* src = x + b * Size;
    uint32x4_t max = vdupq_n_u32(0);
    for (int i = 0; i < Size; i += 4) {  // magnitudes order as integers, with NaN above infinity
      max = vmaxq_u32(max, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(src + i)), magnitude_mask));
    }
    const float m = __builtin_bit_cast(float, vmaxvq_u32(max));
    const float inv = m > 0.0f ? 127.0f / m : 0.0f;
    d[b] = m / 127.0f;
    const bool usable = inv > 0.0f && inv < __builtin_inff();
    for (int i = 0; i < Size; i += 32) {
      int8x16_t first = vdupq_n_s8(0), second = vdupq_n_s8(0);
      if (usable) {
        first = quantize_16(src + i, inv);
        second = quantize_16(src + i + 16, inv);
      }
      vst1q_s8(q + b * Size + i, first);
      vst1q_s8(q + b * Size + i + 16, second);
      const int16_t a = vaddlvq_s8(first), c = vaddlvq_s8(second);
      int16_t* out = sums + (b * Size + i) / Group;
      if constexpr (Group == 32) {
        out[0] = static_cast<int16_t>(a + c);
      } else {
        out[0] = a;
        out[1] = c;
      }
    }
  }
}

}  // namespace quant_neon

}  // namespace
}  // namespace gemmule
