// Q8_0: 32 elements, x = d * q with q in -127..127. Encoder: d = max|x| / 127, q = x / d rounded half away
// from 0.
#include <cmath>

#include "core/half.h"
#include "quant/block32.h"
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

void quantize_q8_0(const float* src, uint8_t* dst, int64_t n) {
  for (int64_t i = 0; i < n / 32; ++i, src += 32) {
    const float d = saturate_f16(std::fabs(signed_peak32(src)) / 127.0f);
    const float inverse = inverse_or_zero(d);
    BlockQ8_0 block;
    block.d = f32_to_f16(d);
    for (int j = 0; j < 32; ++j) {
      const float scaled = src[j] * inverse;
      const float magnitude = std::fabs(scaled) < 127.0f ? std::fabs(scaled) : 127.0f;
      const int whole = static_cast<int>(magnitude);
      const int code = whole + (magnitude - static_cast<float>(whole) >= 0.5f ? 1 : 0);
      block.q[j] = static_cast<int8_t>(scaled < 0 ? -code : code);
    }
    store_block(block, dst, i);
  }
}

}  // namespace gemmule
