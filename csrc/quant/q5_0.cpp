// Q5_0: 32 elements, x = d * (code - 16); Q5_1: x = d * code + m. Codes 0..31: four bits as in Q4_0, the
// fifth in qh. Encoders: as those of Q4_0 and Q4_1, with twice as many codes.
#include "core/half.h"
#include "quant/block32.h"
#include "quant/blocks.h"
#include "quant/row_codecs.h"

namespace gemmule {

namespace {

// The little-endian bit field of the fifth bits. qh [4]
uint32_t fifth_bits(const uint8_t* qh) {
  return static_cast<uint32_t>(qh[0]) | static_cast<uint32_t>(qh[1]) << 8 |
         static_cast<uint32_t>(qh[2]) << 16 | static_cast<uint32_t>(qh[3]) << 24;
}

// Codes 0..31 of elements 0..31 into the two bit planes of a block. codes [32], qh [4], qs [16]
void pack_codes(const uint8_t* codes, uint8_t* qh, uint8_t* qs) {
  for (int i = 0; i < 4; ++i) {
    int bits = 0;
    for (int b = 0; b < 8; ++b) bits |= (codes[8 * i + b] >> 4) << b;
    qh[i] = static_cast<uint8_t>(bits);
  }
  for (int j = 0; j < 16; ++j) qs[j] = static_cast<uint8_t>((codes[j] & 15) | ((codes[j + 16] & 15) << 4));
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

void quantize_q5_0(const float* src, uint8_t* dst, int64_t n) {
  for (int64_t i = 0; i < n / 32; ++i, src += 32) {
    const float d = saturate_f16(signed_peak32(src) / -16.0f);
    const float inverse = inverse_or_zero(d);
    uint8_t codes[32];
    for (int j = 0; j < 32; ++j) codes[j] = truncate_code(src[j] * inverse + 16.5f, 31);
    BlockQ5_0 block;
    block.d = f32_to_f16(d);
    pack_codes(codes, block.qh, block.qs);
    store_block(block, dst, i);
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

void quantize_q5_1(const float* src, uint8_t* dst, int64_t n) {
  for (int64_t i = 0; i < n / 32; ++i, src += 32) {
    const Affine32 fit = affine32(src, 31);
    uint8_t codes[32];
    for (int j = 0; j < 32; ++j) codes[j] = truncate_code((src[j] - fit.min) * fit.inverse + 0.5f, 31);
    BlockQ5_1 block;
    block.d = f32_to_f16(fit.d);
    block.m = f32_to_f16(fit.min);
    pack_codes(codes, block.qh, block.qs);
    store_block(block, dst, i);
  }
}

}  // namespace gemmule
