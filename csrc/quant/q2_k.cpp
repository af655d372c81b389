// Q2_K: 256 elements in 16 sub-blocks of 16, x = (d * scale4) * code - dmin * min4, codes 0..3.
// Encoder: affine search per sub-block, 4-bit scales and mins of the largest, codes again with the stored
// numbers.
#include <cstring>

#include "core/half.h"
#include "quant/blocks.h"
#include "quant/row_codecs.h"
#include "quant/scale_search.h"

namespace gemmule {

void dequantize_q2_k(const uint8_t* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n / 256; ++i, dst += 256) {
    const auto block = load_block<BlockQ2_K>(src, i);
    const float d = f16_to_f32(block.d);
    const float dmin = f16_to_f32(block.dmin);
    for (int s = 0; s < 16; ++s) {
      const float scale = d * static_cast<float>(block.scales[s] & 15);
      const float min = dmin * static_cast<float>(block.scales[s] >> 4);
      const uint8_t* qs = block.qs + 32 * (s / 8) + 16 * (s % 2);
      const int shift = 2 * ((s % 8) / 2);
      for (int l = 0; l < 16; ++l) dst[16 * s + l] = scale * static_cast<float>((qs[l] >> shift) & 3) - min;
    }
  }
}

void quantize_q2_k(const float* src, uint8_t* dst, int64_t n) {
  for (int64_t i = 0; i < n / 256; ++i, src += 256) {
    BlockQ2_K block;
    std::memset(&block, 0, sizeof(block));
    UnitBlock unit;
    if (make_unit_block(src, unit)) {
      AffineFit fits[16];
      float max_scale = 0;
      float max_min = 0;
      for (int s = 0; s < 16; ++s) {
        float w[16];
        search_weights(unit.x + 16 * s, 16, w);
        fits[s] = fit_affine(unit.x + 16 * s, w, 16, 3, {-0.5f, 0.1f, 15});
        max_scale = fits[s].scale > max_scale ? fits[s].scale : max_scale;
        max_min = fits[s].min > max_min ? fits[s].min : max_min;
      }
      block.d = f16_scale_bits(max_scale / 15.0f * unit.unit);
      block.dmin = f16_scale_bits(max_min / 15.0f * unit.unit);
      const float d = f16_to_f32(block.d);
      const float dmin = f16_to_f32(block.dmin);
      for (int s = 0; s < 16; ++s) {
        const int scale_code = round_code(fits[s].scale * unit.unit / d, 0, 15);
        const int min_code = round_code(fits[s].min * unit.unit / dmin, 0, 15);
        block.scales[s] = static_cast<uint8_t>(scale_code | (min_code << 4));
        const float scale = d * static_cast<float>(scale_code);
        const float min = dmin * static_cast<float>(min_code);
        if (scale == 0) continue;
        uint8_t* qs = block.qs + 32 * (s / 8) + 16 * (s % 2);
        const int shift = 2 * ((s % 8) / 2);
        for (int l = 0; l < 16; ++l) {
          const int code = round_code((src[16 * s + l] + min) / scale, 0, 3);
          qs[l] = static_cast<uint8_t>(qs[l] | (code << shift));
        }
      }
    }
    store_block(block, dst, i);
  }
}

}  // namespace gemmule
