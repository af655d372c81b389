// The encoders of one instruction-set level. Everything is static: an object exports its table and nothing
// else.
#include "quant/blocks.h"
#include "quant/encode_kernels.h"
#include "quant/kernels/lanes.inl"
#include "quant/kernels/search.inl"
#include "quant/scales.h"

#include "quant/kernels/k_blocks.inl"
#include "quant/kernels/k_formats.inl"
#include "quant/kernels/small_blocks.inl"

namespace gemmule {
namespace {

static bool all_finite(const float* x, int64_t n) {
  I bad{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) bad |= (bits_of(load(x + i)) & 0x7f800000) == 0x7f800000;
  int32_t any = 0;
  for (int lane = 0; lane < kLanes; ++lane) any |= bad[lane];
  for (; i < n; ++i) any |= (__builtin_fabsf(x[i]) <= 3.402823466e+38f) ? 0 : 1;
  return any == 0;
}

static void widen_bf16(const uint8_t* src, float* dst, int64_t n) {
  typedef uint16_t H __attribute__((vector_size(2 * kLanes)));
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    H h;
    __builtin_memcpy(&h, src + 2 * i, sizeof h);
    store(float_of(__builtin_convertvector(h, I) << 16), dst + i);
  }
  for (; i < n; ++i) {
    const uint16_t h[2] = {0, static_cast<uint16_t>(src[2 * i] | src[2 * i + 1] << 8)};
    __builtin_memcpy(dst + i, h, sizeof h);
  }
}

constexpr EncodeKernels make_table(const char* name) {
  return {name,        all_finite,  widen_bf16,  encode_q8_0, encode_q4_0, encode_q4_1, encode_q5_0,
          encode_q5_1, encode_q2_k, encode_q3_k, encode_q4_k, encode_q5_k, encode_q6_k};
}

}  // namespace
}  // namespace gemmule
