// Q4_K and Q5_K: 256 elements in 8 sub-blocks of 32, x = (d * scale6) * code - dmin * min6, codes 0..15 or
// 0..31. Encoder: affine search per sub-block, 6-bit scales and mins of the largest, codes again with the
// stored numbers.
#include <cstring>

#include "core/half.h"
#include "quant/blocks.h"
#include "quant/row_codecs.h"
#include "quant/scale_search.h"
#include "quant/scales.h"

namespace gemmule {

namespace {

// Scales of src [256] into the block and its codes 0..n_max into codes [256]; the block is zeroed by the
// caller.
template <class Block>
void encode_affine(const float* src, int n_max, const AffineSteps& steps, Block& block, uint8_t* codes) {
  UnitBlock unit;
  if (!make_unit_block(src, unit)) return;
  AffineFit fits[8];
  float max_scale = 0;
  float max_min = 0;
  for (int s = 0; s < 8; ++s) {
    float w[32];
    search_weights(unit.x + 32 * s, 32, w);
    fits[s] = fit_affine(unit.x + 32 * s, w, 32, n_max, steps);
    max_scale = fits[s].scale > max_scale ? fits[s].scale : max_scale;
    max_min = fits[s].min > max_min ? fits[s].min : max_min;
  }
  block.d = f16_scale_bits(max_scale / 63.0f * unit.unit);
  block.dmin = f16_scale_bits(max_min / 63.0f * unit.unit);
  const float d = f16_to_f32(block.d);
  const float dmin = f16_to_f32(block.dmin);
  ScaleMin pairs[8];
  for (int s = 0; s < 8; ++s) {
    pairs[s].scale = static_cast<uint8_t>(round_code(fits[s].scale * unit.unit / d, 0, 63));
    pairs[s].min = static_cast<uint8_t>(round_code(fits[s].min * unit.unit / dmin, 0, 63));
    const float scale = d * static_cast<float>(pairs[s].scale);
    const float min = dmin * static_cast<float>(pairs[s].min);
    if (scale == 0) continue;
    for (int l = 0; l < 32; ++l)
      codes[32 * s + l] = static_cast<uint8_t>(round_code((src[32 * s + l] + min) / scale, 0, n_max));
  }
  pack_scale_mins(pairs, block.scales);
}

// The low four bits of codes [256] into qs [128].
void pack_nibbles(const uint8_t* codes, uint8_t* qs) {
  for (int c = 0; c < 4; ++c)
    for (int l = 0; l < 32; ++l)
      qs[32 * c + l] = static_cast<uint8_t>((codes[64 * c + l] & 15) | ((codes[64 * c + 32 + l] & 15) << 4));
}

}  // namespace

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

void quantize_q4_k(const float* src, uint8_t* dst, int64_t n) {
  for (int64_t i = 0; i < n / 256; ++i, src += 256) {
    BlockQ4_K block;
    std::memset(&block, 0, sizeof(block));
    uint8_t codes[256] = {};
    encode_affine(src, 15, {-1.0f, 0.1f, 20}, block, codes);
    pack_nibbles(codes, block.qs);
    store_block(block, dst, i);
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

void quantize_q5_k(const float* src, uint8_t* dst, int64_t n) {
  for (int64_t i = 0; i < n / 256; ++i, src += 256) {
    BlockQ5_K block;
    std::memset(&block, 0, sizeof(block));
    uint8_t codes[256] = {};
    encode_affine(src, 31, {-0.5f, 0.1f, 15}, block, codes);
    pack_nibbles(codes, block.qs);
    for (int s = 0; s < 8; ++s)
      for (int l = 0; l < 32; ++l)
        block.qh[l] = static_cast<uint8_t>(block.qh[l] | ((codes[32 * s + l] >> 4) << s));
    store_block(block, dst, i);
  }
}

}  // namespace gemmule
