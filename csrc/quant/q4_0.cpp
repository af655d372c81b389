// Q4_0: 32 elements, x = d * (code - 8); Q4_1: x = d * code + m. Codes 0..15, two in a byte.
#include "core/half.h"
#include "quant/blocks.h"
#include "quant/row_codecs.h"

namespace gemmule {

void dequantize_q4_0(const uint8_t* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n / 32; ++i, dst += 32) {
    const auto block = load_block<BlockQ4_0>(src, i);
    const float d = f16_to_f32(block.d);
    for (int j = 0; j < 16; ++j) {
      dst[j] = d * static_cast<float>((block.qs[j] & 15) - 8);
      dst[j + 16] = d * static_cast<float>((block.qs[j] >> 4) - 8);
    }
  }
}

void dequantize_q4_1(const uint8_t* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n / 32; ++i, dst += 32) {
    const auto block = load_block<BlockQ4_1>(src, i);
    const float d = f16_to_f32(block.d);
    const float m = f16_to_f32(block.m);
    for (int j = 0; j < 16; ++j) {
      dst[j] = d * static_cast<float>(block.qs[j] & 15) + m;
      dst[j + 16] = d * static_cast<float>(block.qs[j] >> 4) + m;
    }
  }
}

}  // namespace gemmule
