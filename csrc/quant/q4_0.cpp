// Q4_0: 32 elements, x = d * (code - 8); Q4_1: x = d * code + m. Codes 0..15, two in a byte.
// Encoders: Q4_0 maps the element of largest magnitude to code 0 (d = x_max / -8), Q4_1 spreads the codes
// over min..max; both round half up.
#include "core/half.h"
#include "quant/block32.h"
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

void quantize_q4_0(const float* src, uint8_t* dst, int64_t n) {
  for (int64_t i = 0; i < n / 32; ++i, src += 32) {
    const float d = saturate_f16(signed_peak32(src) / -8.0f);
    const float inverse = inverse_or_zero(d);
    BlockQ4_0 block;
    block.d = f32_to_f16(d);
    for (int j = 0; j < 16; ++j) {
      const int low = truncate_code(src[j] * inverse + 8.5f, 15);
      const int high = truncate_code(src[j + 16] * inverse + 8.5f, 15);
      block.qs[j] = static_cast<uint8_t>(low | (high << 4));
    }
    store_block(block, dst, i);
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

void quantize_q4_1(const float* src, uint8_t* dst, int64_t n) {
  for (int64_t i = 0; i < n / 32; ++i, src += 32) {
    const Affine32 fit = affine32(src, 15);
    BlockQ4_1 block;
    block.d = f32_to_f16(fit.d);
    block.m = f32_to_f16(fit.min);
    for (int j = 0; j < 16; ++j) {
      const int low = truncate_code((src[j] - fit.min) * fit.inverse + 0.5f, 15);
      const int high = truncate_code((src[j + 16] - fit.min) * fit.inverse + 0.5f, 15);
      block.qs[j] = static_cast<uint8_t>(low | (high << 4));
    }
    store_block(block, dst, i);
  }
}

}  // namespace gemmule
