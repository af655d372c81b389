// NEON dot products (FEAT_DotProd): sdot multiplies each of the 4 rows with the same 4 activations, which it
// takes from one lane of the second operand. Interface: dot_neon.inl.
#pragma once
#include <arm_neon.h>

#include "backend/cpu/kernels/dot_neon.inl"

namespace gemmule {
namespace {

namespace quant_neon {

struct Sdot : OneTokenSums {
  template <int kMagnitude, int N>
  [[gnu::always_inline]] static Sum dot(const int8x16_t (&codes)[N], const int8_t* a) noexcept {
    int8x16_t x[N / 4];
#pragma GCC unroll 2
    for (int i = 0; i < N / 4; ++i) x[i] = vld1q_s8(a + 16 * i);
    Sum sum = zero();
    unroll<0, N>([&](auto group) {
      constexpr int g = decltype(group)::value;
      sum = vdotq_laneq_s32(sum, codes[g], x[g / 4], g % 4);
    });
    return sum;
  }
};

}  // namespace quant_neon

}  // namespace
}  // namespace gemmule
