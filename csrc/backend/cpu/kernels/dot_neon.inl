// The dot products of the quantized NEON matmuls, three ways with one interface. An operand of codes is 16
// bytes: 4 rows x one k-group (4 consecutive elements of K), half of a vector of the packed layout.
//   kTokens   tokens of one Sum; kMostUnits Sums are worked on together, as registers allow
//   arrange   turns the codes of N k-groups of 4 rows into the form that dot wants
//   dot       Sum of N k-groups; `a` holds their activations, 4 N kTokens bytes, of two tokens in turns of 8.
//             kMagnitude: no code is larger.
//   spread    the scales of the 4 rows in the form of a Sum
//   rows      one register per token, lane = row
// Here the way of every 64-bit ARM processor; the other two in dot_neon_dotprod.inl and dot_neon_i8mm.inl.
#pragma once
#include <arm_neon.h>

#include <cstdint>

namespace gemmule {
namespace {

namespace quant_neon {

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};
// fn(Constant<kBegin>), ..., fn(Constant<kEnd - 1>): a loop whose counter can be the lane number of an
// instruction.
template <int kBegin, int kEnd, class Fn>
[[gnu::always_inline]] inline void unroll(Fn&& fn) noexcept {
  if constexpr (kBegin < kEnd) {
    fn(Constant<kBegin>{});
    unroll<kBegin + 1, kEnd>(fn);
  }
}

inline constexpr int kMaxActivation = 127;  // never -128

// One token at a time: everything about its Sum that does not depend on the multiplication.
struct OneTokenSums {
  static constexpr int kTokens = 1, kMostUnits = 8;
  using Sum = int32x4_t;  // lane = row

  static Sum zero() noexcept { return vdupq_n_s32(0); }
  template <int N>
  static void arrange(int8x16_t (&)[N]) noexcept {}
  static int32x4_t spread(int32x4_t scales) noexcept { return scales; }
  static Sum add_scaled(Sum total, Sum sum, int32x4_t scales) noexcept {
    return vmlaq_s32(total, sum, scales);
  }
  static void rows(Sum sum, int32x4_t (&out)[1]) noexcept { out[0] = sum; }
};

// 16-bit sums of as many products as cannot overflow, then widened.
struct Smull : OneTokenSums {
  static constexpr int kMostUnits = 4;  // copies of activations need the registers

  template <int kMagnitude, int N>
  [[gnu::always_inline]] static Sum dot(const int8x16_t (&codes)[N], const int8_t* a) noexcept {
    constexpr int kSafe = 32767 / (kMagnitude * kMaxActivation);
    constexpr int kRun = kSafe >= 8 ? (N < 8 ? N : 8) : kSafe >= 4 ? 4 : 2;  // products in one 16-bit lane
    static_assert(kRun * kMagnitude * kMaxActivation <= 32767 && N % kRun == 0);
    int8x16_t x[N / 4];
#pragma GCC unroll 2
    for (int i = 0; i < N / 4; ++i) x[i] = vld1q_s8(a + 16 * i);
    int32x4_t low = zero(), high = zero();  // pairs of partial sums of rows 0 and 1, and of rows 2 and 3
    int16x8_t low16, high16;
    unroll<0, N>([&](auto group) {
      constexpr int g = decltype(group)::value;
      const int8x16_t same = vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(x[g / 4]), g % 4));
      if constexpr (g % kRun == 0) {
        low16 = vmull_s8(vget_low_s8(codes[g]), vget_low_s8(same));
        high16 = vmull_high_s8(codes[g], same);
      } else {
        low16 = vmlal_s8(low16, vget_low_s8(codes[g]), vget_low_s8(same));
        high16 = vmlal_high_s8(high16, codes[g], same);
      }
      if constexpr (g % kRun == kRun - 1) {
        low = vpadalq_s16(low, low16);
        high = vpadalq_s16(high, high16);
      }
    });
    return vpaddq_s32(low, high);
  }
};

}  // namespace quant_neon

}  // namespace
}  // namespace gemmule
