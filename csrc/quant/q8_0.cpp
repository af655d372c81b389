// Q8_0: 32 elements, x = d * q with q in -127..127.
#include "core/half.h"
#include "quant/blocks.h"
#include "quant/row_codecs.h"

namespace gemmule {

void dequantize_q8_0(const uint8_t* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n / 32; ++i, dst += 32) {
    const auto block = load_block<BlockQ8_0>(src, i);
    const float d = f16_to_f32(block.d);
    for (int j = 0; j < 32; ++j) dst[j] = d * static_cast<float>(block.q[j]);
  }
}

}  // namespace gemmule
