// Q4_K and Q5_K: 256 elements in 8 sub-blocks of 32, x = (d * scale6) * code - dmin * min6, codes 0..15 or
// 0..31.
#include "core/half.h"
#include "quant/blocks.h"
#include "quant/row_codecs.h"
#include "quant/scales.h"

namespace gemmule {

void dequantize_q4_k(const uint8_t* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n / 256; ++i, dst += 256) {
    const auto block = load_block<BlockQ4_K>(src, i);
    const float d = f16_to_f32(block.d);
    const float dmin = f16_to_f32(block.dmin);
    for (int s = 0; s < 8; ++s) {
      const ScaleMin pair = unpack_scale_min(block.scales, s);
      const float scale = d * static_cast<float>(pair.scale);
      const float min = dmin * static_cast<float>(pair.min);
      const uint8_t* qs = block.qs + 32 * (s / 2);
      const int shift = 4 * (s % 2);
      for (int l = 0; l < 32; ++l) dst[32 * s + l] = scale * static_cast<float>((qs[l] >> shift) & 15) - min;
    }
  }
}

void dequantize_q5_k(const uint8_t* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n / 256; ++i, dst += 256) {
    const auto block = load_block<BlockQ5_K>(src, i);
    const float d = f16_to_f32(block.d);
    const float dmin = f16_to_f32(block.dmin);
    for (int s = 0; s < 8; ++s) {
      const ScaleMin pair = unpack_scale_min(block.scales, s);
      const float scale = d * static_cast<float>(pair.scale);
      const float min = dmin * static_cast<float>(pair.min);
      const uint8_t* qs = block.qs + 32 * (s / 2);
      const int shift = 4 * (s % 2);
      for (int l = 0; l < 32; ++l) {
        const int code = ((qs[l] >> shift) & 15) | (((block.qh[l] >> s) & 1) << 4);
        dst[32 * s + l] = scale * static_cast<float>(code) - min;
      }
    }
  }
}

}  // namespace gemmule
