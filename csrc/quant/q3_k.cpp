// Q3_K: 256 elements in 16 sub-blocks of 16, x = (d * scale) * (code - 4), 6-bit scales -32..31, codes
// 0..7.
#include "core/half.h"
#include "quant/blocks.h"
#include "quant/row_codecs.h"
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

}  // namespace gemmule
