// NEON: the formats of the packed layout (quant/packed.h): from one group of 8 rows and one step of K to
// codes, scales and factors ready for the dot products.
//   kSize, kSub  elements of a block, elements that share a scale
//   kBytes       of one row in one block; a group has 8 times as many
//   kMagnitude   no code is larger (its offset subtracted) in magnitude
//   kMins        a second factor m times the sums of the activations
//   kApart       d is not part of the group: those of all groups begin the step
//   factors      fills d and m, and for the blocks of 256 scale and min
//   first        where the codes of a group begin
//   codes        the k-groups of sub-block (or block of 32) j for 4 rows: `at` is what first gives for rows
//                0..3, and 16 bytes more for rows 4..7
#pragma once
#include <arm_neon.h>

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/dot_neon.inl"

namespace gemmule {
namespace {

namespace quant_neon {

// What one group has besides its codes, widened once for all tokens.
struct alignas(64) Factors {
  int32_t scale[16][8];  // [sub-block][row]
  int16_t min[16][8];    // [sub-block][row]
  float d[8][8];         // [block][row]; blocks of 256 use row 0 only
  float m[8][8];         // as d: m, or -dmin
};

inline int8x16_t as_signed(uint8x16_t v) noexcept { return vreinterpretq_s8_u8(v); }
inline int8x16_t minus(uint8x16_t v, int offset) noexcept {
  return vsubq_s8(as_signed(v), vdupq_n_s8(static_cast<int8_t>(offset)));
}
inline uint8x16_t masked(uint8x16_t v, int mask) noexcept {
  return vandq_u8(v, vdupq_n_u8(static_cast<uint8_t>(mask)));
}
// v >> kBits, also for no shift at all.
template <int kBits>
inline uint8x16_t right(uint8x16_t v) noexcept {
  if constexpr (kBits == 0) {
    return v;
  } else {
    return vshrq_n_u8(v, kBits);
  }
}

// 8 half floats.
inline void widen_halves(const uint8_t* src, float (&out)[8], bool negative = false) noexcept {
  const float16x8_t h = vreinterpretq_f16_u8(vld1q_u8(src));
  const float32x4_t low = vcvt_f32_f16(vget_low_f16(h)), high = vcvt_high_f32_f16(h);
  vst1q_f32(out, negative ? vnegq_f32(low) : low);
  vst1q_f32(out + 4, negative ? vnegq_f32(high) : high);
}
inline void store_scales(int16x8_t v, int32_t (&out)[8]) noexcept {
  vst1q_s32(out, vmovl_s16(vget_low_s16(v)));
  vst1q_s32(out + 4, vmovl_high_s16(v));
}
// Two sub-blocks of 8 rows each.
inline void widen_scales(int8x16_t v, int32_t (*out)[8]) noexcept {
  store_scales(vmovl_s8(vget_low_s8(v)), out[0]);
  store_scales(vmovl_high_s8(v), out[1]);
}
inline void widen_mins(uint8x16_t v, int16_t (*out)[8]) noexcept {
  vst1q_s16(out[0], vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(v))));
  vst1q_s16(out[1], vreinterpretq_s16_u16(vmovl_high_u8(v)));
}

// 32 codes of four bits, four vectors 32 bytes apart.
template <int kOffset>
[[gnu::always_inline]] inline void nibble_codes(const uint8_t* at, int8x16_t (&codes)[8]) noexcept {
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    const uint8x16_t both = vld1q_u8(at + 32 * v);
    const uint8x16_t low = masked(both, 15), high = vshrq_n_u8(both, 4);
    codes[v] = kOffset == 0 ? as_signed(low) : minus(low, kOffset);
    codes[v + 4] = kOffset == 0 ? as_signed(high) : minus(high, kOffset);
  }
}
// 32 codes of five bits: the vector of fifth bits before those of nibbles.
template <int kOffset>
[[gnu::always_inline]] inline void five_bit_codes(const uint8_t* at, int8x16_t (&codes)[8]) noexcept {
  const uint8x16_t fifth = vld1q_u8(at);
  unroll<0, 4>([&](auto group) {
    constexpr int v = decltype(group)::value;
    const uint8x16_t both = vld1q_u8(at + 32 + 32 * v);
    const uint8x16_t low = masked(vsliq_n_u8(both, right<v>(fifth), 4), 31);
    const uint8x16_t high = masked(vsliq_n_u8(vshrq_n_u8(both, 4), right<v + 4>(fifth), 4), 31);
    codes[v] = kOffset == 0 ? as_signed(low) : minus(low, kOffset);
    codes[v + 4] = kOffset == 0 ? as_signed(high) : minus(high, kOffset);
  });
}

// Formats with blocks of 32: f16 d[n][8], with mins f16 m[n][8], then n blocks of kBlockBytes.
template <int Bytes, bool Mins>
struct Blocks32 {
  static constexpr int kSize = 32, kSub = 32, kBytes = Bytes;
  static constexpr int kBlockBytes = 8 * Bytes - (Mins ? 32 : 16);
  static constexpr bool kMins = Mins, kApart = false;

  // The first block of a group of n.
  static const uint8_t* first(const uint8_t* group, int n) noexcept { return group + (Mins ? 32 : 16) * n; }
  static void factors(const uint8_t*, const uint8_t* group, int n, Factors& f) noexcept {
    for (int j = 0; j < n; ++j) {
      widen_halves(group + 16 * j, f.d[j]);
      if constexpr (Mins) widen_halves(group + 16 * (n + j), f.m[j]);
    }
  }
};
struct Q8_0 : Blocks32<34, false> {
  static constexpr int kMagnitude = 128;
  [[gnu::always_inline]] static void codes(const uint8_t* at, int j, int8x16_t (&codes)[8]) noexcept {
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) codes[g] = as_signed(vld1q_u8(at + kBlockBytes * j + 32 * g));
  }
};
struct Q4_0 : Blocks32<18, false> {
  static constexpr int kMagnitude = 8;
  [[gnu::always_inline]] static void codes(const uint8_t* at, int j, int8x16_t (&codes)[8]) noexcept {
    nibble_codes<8>(at + kBlockBytes * j, codes);
  }
};
struct Q4_1 : Blocks32<20, true> {
  static constexpr int kMagnitude = 15;
  [[gnu::always_inline]] static void codes(const uint8_t* at, int j, int8x16_t (&codes)[8]) noexcept {
    nibble_codes<0>(at + kBlockBytes * j, codes);
  }
};
struct Q5_0 : Blocks32<22, false> {
  static constexpr int kMagnitude = 16;
  [[gnu::always_inline]] static void codes(const uint8_t* at, int j, int8x16_t (&codes)[8]) noexcept {
    five_bit_codes<16>(at + kBlockBytes * j, codes);
  }
};
struct Q5_1 : Blocks32<24, true> {
  static constexpr int kMagnitude = 31;
  [[gnu::always_inline]] static void codes(const uint8_t* at, int j, int8x16_t (&codes)[8]) noexcept {
    five_bit_codes<0>(at + kBlockBytes * j, codes);
  }
};

// Formats with blocks of 256, of which a group has one: kHead bytes before the codes.
template <int Bytes, int Sub, int Head, bool Mins, bool Apart>
struct Block256 {
  static constexpr int kSize = 256, kSub = Sub, kBytes = Bytes, kHead = Head;
  static constexpr bool kMins = Mins, kApart = Apart;

  static const uint8_t* first(const uint8_t* group, int) noexcept { return group + Head; }
};

// f16 d[8], f16 dmin[8], lo[8][8], hi[4][8]: six bits each of scale and min.
inline void six_bit_factors(const uint8_t* group, Factors& f) noexcept {
  widen_halves(group, f.d[0]);
  widen_halves(group + 16, f.m[0], true);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // sub-blocks 2 i and 2 i + 1
    const uint8x16_t low = vld1q_u8(group + 32 + 16 * i);
    uint8x16_t high = vld1q_u8(group + 96 + 16 * (i % 2));
    if (i >= 2) high = vshrq_n_u8(high, 4);
    const uint8x16_t scale = masked(vsliq_n_u8(low, high, 4), 63);
    const uint8x16_t min = masked(vsliq_n_u8(vshrq_n_u8(low, 4), vshrq_n_u8(high, 2), 4), 63);
    widen_scales(as_signed(scale), f.scale + 2 * i);
    widen_mins(min, f.min + 2 * i);
  }
}
struct Q4_K : Block256<144, 32, 128, true, false> {
  static constexpr int kMagnitude = 15;
  static void factors(const uint8_t*, const uint8_t* group, int, Factors& f) noexcept {
    six_bit_factors(group, f);
  }
  [[gnu::always_inline]] static void codes(const uint8_t* at, int j, int8x16_t (&codes)[8]) noexcept {
    nibble_codes<0>(at + 128 * j, codes);
  }
};
struct Q5_K : Block256<176, 32, 128, true, false> {
  static constexpr int kMagnitude = 31;
  static void factors(const uint8_t*, const uint8_t* group, int, Factors& f) noexcept {
    six_bit_factors(group, f);
  }
  [[gnu::always_inline]] static void codes(const uint8_t* at, int j, int8x16_t (&codes)[8]) noexcept {
    five_bit_codes<0>(at + 160 * j, codes);
  }
};
struct Q6_K : Block256<210, 16, 128, false, true> {
  static constexpr int kMagnitude = 32;
  static void factors(const uint8_t* d, const uint8_t* group, int, Factors& f) noexcept {
    widen_halves(d, f.d[0]);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) widen_scales(as_signed(vld1q_u8(group + 16 * i)), f.scale + 2 * i);
  }
  [[gnu::always_inline]] static void codes(const uint8_t* at, int j, int8x16_t (&codes)[4]) noexcept {
    const uint8_t* p = at + 96 * j;
    const uint8x16_t b0 = vld1q_u8(p), b1 = vld1q_u8(p + 32), b2 = vld1q_u8(p + 64);
    const uint8x16_t high = vsliq_n_u8(vshrq_n_u8(b1, 6), vshrq_n_u8(b2, 6), 2);
    codes[0] = minus(masked(b0, 63), 32);
    codes[1] = minus(masked(b1, 63), 32);
    codes[2] = minus(masked(b2, 63), 32);
    codes[3] = minus(vsliq_n_u8(vshrq_n_u8(b0, 6), high, 2), 32);
  }
};
struct Q3_K : Block256<110, 16, 96, false, true> {
  static constexpr int kMagnitude = 4;
  static void factors(const uint8_t* d, const uint8_t* group, int, Factors& f) noexcept {
    widen_halves(d, f.d[0]);
    unroll<0, 4>([&](auto pair) {  // sub-blocks 2 i, 2 i + 1 and those 8 further
      constexpr int i = decltype(pair)::value;
      const uint8x16_t low = vld1q_u8(group + 16 * i), high = vld1q_u8(group + 64 + 16 * (i % 2));
      const uint8x16_t here = vsliq_n_u8(low, right<2 * (i / 2)>(high), 4);
      const uint8x16_t later = vsliq_n_u8(vshrq_n_u8(low, 4), right<4 + 2 * (i / 2)>(high), 4);
      widen_scales(minus(masked(here, 63), 32), f.scale + 2 * i);
      widen_scales(minus(masked(later, 63), 32), f.scale + 2 * i + 8);
    });
  }
  [[gnu::always_inline]] static void codes(const uint8_t* at, int j, int8x16_t (&codes)[4]) noexcept {
    const uint8_t* pair = at + 96 * (j / 2);
    const uint8x16_t low = vld1q_u8(pair + 32 + 32 * (j % 2));
    const uint8x16_t third = vshlq_u8(vld1q_u8(pair), vdupq_n_s8(static_cast<int8_t>(-4 * (j % 2))));
    unroll<0, 4>([&](auto group) {
      constexpr int v = decltype(group)::value;
      codes[v] = minus(masked(vsliq_n_u8(right<2 * v>(low), right<v>(third), 2), 7), 4);
    });
  }
};
struct Q2_K : Block256<84, 16, 160, true, false> {
  static constexpr int kMagnitude = 3;
  static void factors(const uint8_t*, const uint8_t* group, int, Factors& f) noexcept {
    widen_halves(group, f.d[0]);
    widen_halves(group + 16, f.m[0], true);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const uint8x16_t both = vld1q_u8(group + 32 + 16 * i);
      widen_scales(as_signed(masked(both, 15)), f.scale + 2 * i);
      widen_mins(vshrq_n_u8(both, 4), f.min + 2 * i);
    }
  }
  [[gnu::always_inline]] static void codes(const uint8_t* at, int j, int8x16_t (&codes)[4]) noexcept {
    const uint8x16_t four = vld1q_u8(at + 32 * j);
    unroll<0, 4>([&](auto group) {
      constexpr int v = decltype(group)::value;
      codes[v] = as_signed(masked(right<2 * v>(four), 3));
    });
  }
};

}  // namespace quant_neon

}  // namespace
}  // namespace gemmule
