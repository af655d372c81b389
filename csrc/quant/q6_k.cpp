// Q6_K: 256 elements in 16 sub-blocks of 16, x = (d * scale8) * (code - 32), codes 0..63: four bits in ql,
// two in qh.
#include "core/half.h"
#include "quant/blocks.h"
#include "quant/row_codecs.h"

namespace gemmule {

// Sub-block s = 8h + 2c + u (half h, quarter c, 16 elements from l = 16u) lives in
//   ql[64h + 32(c % 2) + 16u ..], nibble c / 2,   and   qh[32h + 16u ..], bits 2c..2c+1.

void dequantize_q6_k(const uint8_t* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n / 256; ++i, dst += 256) {
    const auto block = load_block<BlockQ6_K>(src, i);
    const float d = f16_to_f32(block.d);
    for (int s = 0; s < 16; ++s) {
      const int h = s / 8;
      const int c = (s % 8) / 2;
      const int u = s % 2;
      const float scale = d * static_cast<float>(block.scales[s]);
      const uint8_t* ql = block.ql + 64 * h + 32 * (c % 2) + 16 * u;
      const uint8_t* qh = block.qh + 32 * h + 16 * u;
      for (int l = 0; l < 16; ++l) {
        const int code = ((ql[l] >> (4 * (c / 2))) & 15) | (((qh[l] >> (2 * c)) & 3) << 4);
        dst[16 * s + l] = scale * static_cast<float>(code - 32);
      }
    }
  }
}

}  // namespace gemmule
