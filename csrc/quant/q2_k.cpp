// Q2_K: 256 elements in 16 sub-blocks of 16, x = (d * scale4) * code - dmin * min4, codes 0..3.
#include "core/half.h"
#include "quant/blocks.h"
#include "quant/row_codecs.h"

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

}  // namespace gemmule
