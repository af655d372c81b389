// NEON 8-bit matrix products (FEAT_I8MM): smmla multiplies 2 rows x 8 elements with 2 tokens x 8 elements.
// Codes of two neighbouring k-groups are zipped to that form; activations come from pairs of tokens
// interleaved by 8 bytes. Interface: dot_neon.inl.
#pragma once
#include <arm_neon.h>

#include "backend/cpu/kernels/dot_neon.inl"

namespace gemmule {
namespace {

namespace quant_neon {

struct Smmla {
  static constexpr int kTokens = 2, kMostUnits = 4;
  struct Sum {  // [rows 0 and 1, rows 2 and 3]: lane 2 * (row % 2) + token
    int32x4_t pair[2];
  };

  static Sum zero() noexcept { return {{vdupq_n_s32(0), vdupq_n_s32(0)}}; }
  template <int N>
  [[gnu::always_inline]] static void arrange(int8x16_t (&codes)[N]) noexcept {
    static_assert(N % 2 == 0);
#pragma GCC unroll 4
    for (int i = 0; i < N; i += 2) {
      const int32x4_t first = vreinterpretq_s32_s8(codes[i]), second = vreinterpretq_s32_s8(codes[i + 1]);
      codes[i] = vreinterpretq_s8_s32(vzip1q_s32(first, second));
      codes[i + 1] = vreinterpretq_s8_s32(vzip2q_s32(first, second));
    }
  }
  template <int kMagnitude, int N>
  [[gnu::always_inline]] static Sum dot(const int8x16_t (&codes)[N], const int8_t* a) noexcept {
    Sum sum = zero();
#pragma GCC unroll 4
    for (int i = 0; i < N; i += 2) {
      const int8x16_t x = vld1q_s8(a + 8 * i);
      sum.pair[0] = vmmlaq_s32(sum.pair[0], codes[i], x);
      sum.pair[1] = vmmlaq_s32(sum.pair[1], codes[i + 1], x);
    }
    return sum;
  }
  static Sum spread(int32x4_t scales) noexcept {
    return {{vzip1q_s32(scales, scales), vzip2q_s32(scales, scales)}};
  }
  static Sum add_scaled(Sum total, Sum sum, Sum scales) noexcept {
    return {{vmlaq_s32(total.pair[0], sum.pair[0], scales.pair[0]),
             vmlaq_s32(total.pair[1], sum.pair[1], scales.pair[1])}};
  }
  static void rows(Sum sum, int32x4_t (&out)[2]) noexcept {
    out[0] = vuzp1q_s32(sum.pair[0], sum.pair[1]);
    out[1] = vuzp2q_s32(sum.pair[0], sum.pair[1]);
  }
};

}  // namespace quant_neon

}  // namespace
}  // namespace gemmule
