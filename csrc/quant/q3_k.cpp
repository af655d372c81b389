// Q3_K: 256 elements in 16 sub-blocks of 16, x = (d * scale) * (code - 4), 6-bit scales -32..31, codes 0..7.
// Encoder: symmetric search per sub-block, scales relative to the largest, codes again with the stored
// scales.
#include <cmath>
#include <cstring>

#include "core/half.h"
#include "quant/blocks.h"
#include "quant/row_codecs.h"
#include "quant/scale_search.h"
#include "quant/scales.h"

namespace gemmule {

void dequantize_q3_k(const uint8_t* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n / 256; ++i, dst += 256) {
    const auto block = load_block<BlockQ3_K>(src, i);
    const float d = f16_to_f32(block.d);
    for (int s = 0; s < 16; ++s) {
      const float scale = d * static_cast<float>(unpack_scale_q3(block.scales, s));
      const uint8_t* qs = block.qs + 32 * (s / 8) + 16 * (s % 2);
      const uint8_t* hmask = block.hmask + 16 * (s % 2);
      const int plane = s / 2;
      const int shift = 2 * (plane % 4);
      for (int l = 0; l < 16; ++l) {
        const int code = ((qs[l] >> shift) & 3) | (((hmask[l] >> plane) & 1) << 2);
        dst[16 * s + l] = scale * static_cast<float>(code - 4);
      }
    }
  }
}

void quantize_q3_k(const float* src, uint8_t* dst, int64_t n) {
  for (int64_t i = 0; i < n / 256; ++i, src += 256) {
    BlockQ3_K block;
    std::memset(&block, 0, sizeof(block));
    UnitBlock unit;
    if (make_unit_block(src, unit)) {
      float fits[16];
      float largest = 0;
      for (int s = 0; s < 16; ++s) {
        float w[16];
        search_weights(unit.x + 16 * s, 16, w);
        fits[s] = fit_symmetric(unit.x + 16 * s, w, 16, 4);
        if (std::fabs(fits[s]) > std::fabs(largest)) largest = fits[s];
      }
      block.d = f16_scale_bits(largest / -32.0f * unit.unit);
      const float d = f16_to_f32(block.d);
      int8_t scale_codes[16];
      for (int s = 0; s < 16; ++s)
        scale_codes[s] = static_cast<int8_t>(round_code(fits[s] * unit.unit / d, -32, 31));
      pack_scales_q3(scale_codes, block.scales);
      for (int s = 0; s < 16; ++s) {
        const float scale = d * static_cast<float>(scale_codes[s]);
        uint8_t* qs = block.qs + 32 * (s / 8) + 16 * (s % 2);
        uint8_t* hmask = block.hmask + 16 * (s % 2);
        const int plane = s / 2;
        for (int l = 0; l < 16; ++l) {
          const int code = scale == 0 ? 4 : round_code(src[16 * s + l] / scale, -4, 3) + 4;
          qs[l] = static_cast<uint8_t>(qs[l] | ((code & 3) << (2 * (plane % 4))));
          hmask[l] = static_cast<uint8_t>(hmask[l] | ((code >> 2) << plane));
        }
      }
    }
    store_block(block, dst, i);
  }
}

}  // namespace gemmule
