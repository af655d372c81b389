// Q5_0: 32 elements, x = d * (code - 16); Q5_1: x = d * code + m. Codes 0..31: four bits as in Q4_0, the
// fifth in qh.
#include "core/half.h"
#include "quant/blocks.h"
#include "quant/row_codecs.h"

namespace gemmule {

namespace {

// The little-endian bit field of the fifth bits. qh [4]
uint32_t fifth_bits(const uint8_t* qh) {
  return static_cast<uint32_t>(qh[0]) | static_cast<uint32_t>(qh[1]) << 8 |
         static_cast<uint32_t>(qh[2]) << 16 | static_cast<uint32_t>(qh[3]) << 24;
}

}  // namespace

void dequantize_q5_0(const uint8_t* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n / 32; ++i, dst += 32) {
    const auto block = load_block<BlockQ5_0>(src, i);
    const float d = f16_to_f32(block.d);
    const uint32_t fifth = fifth_bits(block.qh);
    for (int j = 0; j < 16; ++j) {
      const int low = (block.qs[j] & 15) | static_cast<int>((fifth >> j) & 1u) << 4;
      const int high = (block.qs[j] >> 4) | static_cast<int>((fifth >> (j + 16)) & 1u) << 4;
      dst[j] = d * static_cast<float>(low - 16);
      dst[j + 16] = d * static_cast<float>(high - 16);
    }
  }
}

void dequantize_q5_1(const uint8_t* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n / 32; ++i, dst += 32) {
    const auto block = load_block<BlockQ5_1>(src, i);
    const float d = f16_to_f32(block.d);
    const float m = f16_to_f32(block.m);
    const uint32_t fifth = fifth_bits(block.qh);
    for (int j = 0; j < 16; ++j) {
      const int low = (block.qs[j] & 15) | static_cast<int>((fifth >> j) & 1u) << 4;
      const int high = (block.qs[j] >> 4) | static_cast<int>((fifth >> (j + 16)) & 1u) << 4;
      dst[j] = d * static_cast<float>(low) + m;
      dst[j + 16] = d * static_cast<float>(high) + m;
    }
  }
}

}  // namespace gemmule
