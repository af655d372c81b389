// AVX2: how each type's part of the packed layout (quant/packed.h) becomes operands of vpmaddubsw. `unpack`
// gives the codes of 32 elements of K: w[g] = k-group g, 8 rows x 4 elements. Sub-block scales and mins of
// the K-quants become bytes [sub-block][row].
#pragma once
#include <immintrin.h>

#include "backend/cpu/kernels/dot_avx2.inl"
#include "quant/blocks.h"

namespace gemmule {
namespace {

namespace packed_avx2 {

using quant_avx2::bytes;
using quant_avx2::high_nibbles;
using quant_avx2::low_nibbles;
using quant_avx2::store;

[[gnu::always_inline]] inline __m256i load_u(const void* p) noexcept {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
[[gnu::always_inline]] inline __m256 load_halves(const uint8_t* p) noexcept {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// Shifts left by `n`, or right by -n: on bytes, where a mask follows that drops the bits of the neighbour.
[[gnu::always_inline]] inline __m256i shift(__m256i v, int n) noexcept {
  return n >= 0 ? _mm256_slli_epi16(v, n) : _mm256_srli_epi16(v, -n);
}

// Sub-block scales (unsigned or signed) and mins of one group and step, a byte each.
struct alignas(32) SubScales {
  uint8_t scale[16][8];
  uint8_t min[16][8];
};

// 8 bytes, row after row, as 16-bit pairs: each row's number twice.
[[gnu::always_inline]] inline __m256i eight_bytes(const uint8_t* p) noexcept {
  int64_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return _mm256_set1_epi64x(v);
}
[[gnu::always_inline]] inline __m256i unsigned_twice(const uint8_t* p) noexcept {
  const __m256i mask = _mm256_setr_epi32(static_cast<int>(0x80008000u), static_cast<int>(0x80018001u),
                                         static_cast<int>(0x80028002u), static_cast<int>(0x80038003u),
                                         static_cast<int>(0x80048004u), static_cast<int>(0x80058005u),
                                         static_cast<int>(0x80068006u), static_cast<int>(0x80078007u));
  return _mm256_shuffle_epi8(eight_bytes(p), mask);
}
[[gnu::always_inline]] inline __m256i signed_twice(const uint8_t* p) noexcept {
  const __m256i mask = _mm256_setr_epi32(0x00800080, 0x01800180, 0x02800280, 0x03800380, 0x04800480,
                                         0x05800580, 0x06800680, 0x07800780);
  return _mm256_srai_epi16(_mm256_shuffle_epi8(eight_bytes(p), mask), 8);
}
// 2 x 8 bytes as 16-bit pairs: the numbers of two sub-blocks.
[[gnu::always_inline]] inline __m256i unsigned_pairs(const uint8_t* p) noexcept {
  const __m256i mask = _mm256_setr_epi32(static_cast<int>(0x80088000u), static_cast<int>(0x80098001u),
                                         static_cast<int>(0x800a8002u), static_cast<int>(0x800b8003u),
                                         static_cast<int>(0x800c8004u), static_cast<int>(0x800d8005u),
                                         static_cast<int>(0x800e8006u), static_cast<int>(0x800f8007u));
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(v), mask);
}

// 4 vectors of nibbles.
[[gnu::always_inline]] inline void unpack_nibbles(const uint8_t* codes, __m256i (&w)[8]) noexcept {
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    const __m256i raw = load_u(codes + 32 * v);
    w[v] = low_nibbles(raw);
    w[v + 4] = high_nibbles(raw);
  }
}
// The vector of fifth bits, then 4 vectors of nibbles.
[[gnu::always_inline]] inline void unpack_five_bits(const uint8_t* codes, __m256i (&w)[8]) noexcept {
  unpack_nibbles(codes + 32, w);
  const __m256i fifth = load_u(codes);
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) w[g] = _mm256_or_si256(w[g], _mm256_and_si256(shift(fifth, 4 - g), bytes(16)));
}

// What the types have in common, by name:
//   kSize, kBytes   elements and bytes of a GGUF block; kSub elements share a scale
//   kCodeBytes      bytes of 32 elements of a group's codes
//   kSumLength      products of vpmaddubsw that are added in 16 bits
//   kOffset         subtracted from every code: by adding -kOffset * (sum of activations) to the 16-bit sums.
//   They
//                   may wrap on the way, but what counts is that the sum of centred products fits
//   kFactorsFirst   d lies before all groups of a step
template <int kMaxCode, int kSumLength, int kOffset>
constexpr bool sums_fit() {
  constexpr int kLargest = kOffset == 0 ? kMaxCode : kOffset;
  return 2 * kMaxCode * 127 <= 32767 && 2 * kSumLength * kLargest * 127 <= 32767;
}

struct Q4_0 {
  static constexpr int kSize = 32, kSub = 32, kBytes = sizeof(BlockQ4_0), kCodeBytes = 128;
  static constexpr int kSumLength = 8, kOffset = 8;
  static constexpr bool kMins = false, kEightBits = false, kFactorsFirst = false;
  static_assert(sums_fit<15, kSumLength, kOffset>());
  [[gnu::always_inline]] static void unpack(const uint8_t* codes, __m256i (&w)[8]) noexcept {
    unpack_nibbles(codes, w);
  }
};
struct Q4_1 {
  static constexpr int kSize = 32, kSub = 32, kBytes = sizeof(BlockQ4_1), kCodeBytes = 128;
  static constexpr int kSumLength = 8, kOffset = 0;
  static constexpr bool kMins = true, kEightBits = false, kFactorsFirst = false;
  static_assert(sums_fit<15, kSumLength, kOffset>());
  [[gnu::always_inline]] static void unpack(const uint8_t* codes, __m256i (&w)[8]) noexcept {
    unpack_nibbles(codes, w);
  }
};
struct Q5_0 {
  static constexpr int kSize = 32, kSub = 32, kBytes = sizeof(BlockQ5_0), kCodeBytes = 160;
  static constexpr int kSumLength = 8, kOffset = 16;
  static constexpr bool kMins = false, kEightBits = false, kFactorsFirst = false;
  static_assert(sums_fit<31, kSumLength, kOffset>());
  [[gnu::always_inline]] static void unpack(const uint8_t* codes, __m256i (&w)[8]) noexcept {
    unpack_five_bits(codes, w);
  }
};
struct Q5_1 {
  static constexpr int kSize = 32, kSub = 32, kBytes = sizeof(BlockQ5_1), kCodeBytes = 160;
  static constexpr int kSumLength = 4, kOffset = 0;
  static constexpr bool kMins = true, kEightBits = false, kFactorsFirst = false;
  static_assert(sums_fit<31, kSumLength, kOffset>());
  [[gnu::always_inline]] static void unpack(const uint8_t* codes, __m256i (&w)[8]) noexcept {
    unpack_five_bits(codes, w);
  }
};
struct Q8_0 {  // has kernels of its own
  static constexpr int kSize = 32, kSub = 32, kBytes = sizeof(BlockQ8_0), kCodeBytes = 256;
  static constexpr int kSumLength = 1, kOffset = 0;
  static constexpr bool kMins = false, kEightBits = true, kFactorsFirst = false;
};

// `scales` leaves the bytes of scales and mins in `s` and returns where the codes begin; `factors` gives d
// and m of 8 rows, from the group or from what lies before all groups of the step.

// Q4_K and Q5_K: f16 d[8], dmin[8], then lo[8][8] and hi[4][8].
[[gnu::always_inline]] inline const uint8_t* six_bit_scales(const uint8_t* group, SubScales& s) noexcept {
  const __m256i first = load_u(group + 32), second = load_u(group + 64), high = load_u(group + 96);
  const __m256i two = bytes(0x30);
  const auto with = [&](__m256i low, int by) noexcept {
    return _mm256_or_si256(low, _mm256_and_si256(shift(high, by), two));
  };
  store(s.scale[0], with(low_nibbles(first), 4));
  store(s.scale[4], with(low_nibbles(second), 0));
  store(s.min[0], with(high_nibbles(first), 2));
  store(s.min[4], with(high_nibbles(second), -2));
  return group + 128;
}
[[gnu::always_inline]] inline void two_factors(const uint8_t* group, __m256& d, __m256& m) noexcept {
  d = load_halves(group);
  m = quant_avx2::negate(load_halves(group + 16));
}

struct Q4_K {
  static constexpr int kSize = 256, kSub = 32, kBytes = sizeof(BlockQ4_K), kCodeBytes = 128;
  static constexpr int kSumLength = 8, kOffset = 0;
  static constexpr bool kMins = true, kEightBits = false, kFactorsFirst = false, kSignedScales = false;
  static_assert(sums_fit<15, kSumLength, kOffset>());
  [[gnu::always_inline]] static const uint8_t* scales(const uint8_t* group, SubScales& s) noexcept {
    return six_bit_scales(group, s);
  }
  [[gnu::always_inline]] static void factors(const uint8_t* group, const uint8_t*, __m256& d,
                                             __m256& m) noexcept {
    two_factors(group, d, m);
  }
  [[gnu::always_inline]] static void unpack(const uint8_t* codes, __m256i (&w)[8]) noexcept {
    unpack_nibbles(codes, w);
  }
};
struct Q5_K {
  static constexpr int kSize = 256, kSub = 32, kBytes = sizeof(BlockQ5_K), kCodeBytes = 160;
  static constexpr int kSumLength = 4, kOffset = 0;
  static constexpr bool kMins = true, kEightBits = false, kFactorsFirst = false, kSignedScales = false;
  static_assert(sums_fit<31, kSumLength, kOffset>());
  [[gnu::always_inline]] static const uint8_t* scales(const uint8_t* group, SubScales& s) noexcept {
    return six_bit_scales(group, s);
  }
  [[gnu::always_inline]] static void factors(const uint8_t* group, const uint8_t*, __m256& d,
                                             __m256& m) noexcept {
    two_factors(group, d, m);
  }
  [[gnu::always_inline]] static void unpack(const uint8_t* codes, __m256i (&w)[8]) noexcept {
    unpack_five_bits(codes, w);
  }
};
struct Q2_K {
  static constexpr int kSize = 256, kSub = 16, kBytes = sizeof(BlockQ2_K), kCodeBytes = 64;
  static constexpr int kSumLength = 4, kOffset = 0;
  static constexpr bool kMins = true, kEightBits = false, kFactorsFirst = false, kSignedScales = false;
  static_assert(sums_fit<3, kSumLength, kOffset>());
  [[gnu::always_inline]] static void factors(const uint8_t* group, const uint8_t*, __m256& d,
                                             __m256& m) noexcept {
    two_factors(group, d, m);
  }
  [[gnu::always_inline]] static const uint8_t* scales(const uint8_t* group, SubScales& s) noexcept {
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      const __m256i raw = load_u(group + 32 + 8 * i);
      store(s.scale[i], low_nibbles(raw));
      store(s.min[i], high_nibbles(raw));
    }
    return group + 160;
  }
  [[gnu::always_inline]] static void unpack(const uint8_t* codes, __m256i (&w)[8]) noexcept {
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g)
      w[g] = _mm256_and_si256(shift(load_u(codes + 32 * (g / 4)), -2 * (g % 4)), bytes(3));
  }
};
struct Q6_K {
  static constexpr int kSize = 256, kSub = 16, kBytes = sizeof(BlockQ6_K), kCodeBytes = 192;
  static constexpr int kSumLength = 4, kOffset = 32;
  static constexpr bool kMins = false, kEightBits = false, kFactorsFirst = true, kSignedScales = true;
  static_assert(sums_fit<63, kSumLength, kOffset>());
  [[gnu::always_inline]] static void factors(const uint8_t*, const uint8_t* first, __m256& d,
                                             __m256&) noexcept {
    d = load_halves(first);
  }
  [[gnu::always_inline]] static const uint8_t* scales(const uint8_t* group, SubScales& s) noexcept {
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) store(s.scale[i], load_u(group + 8 * i));
    return group + 128;
  }
  [[gnu::always_inline]] static void unpack(const uint8_t* codes, __m256i (&w)[8]) noexcept {
    const __m256i six = bytes(63), two = bytes(3);
#pragma GCC unroll 2
    for (int s = 0; s < 2; ++s) {
      const __m256i b0 = load_u(codes + 96 * s), b1 = load_u(codes + 96 * s + 32),
                    b2 = load_u(codes + 96 * s + 64);
      w[4 * s] = _mm256_and_si256(b0, six);
      w[4 * s + 1] = _mm256_and_si256(b1, six);
      w[4 * s + 2] = _mm256_and_si256(b2, six);
      const __m256i low = _mm256_and_si256(shift(b0, -6), two);
      const __m256i middle = _mm256_and_si256(shift(b1, -4), _mm256_slli_epi16(two, 2));
      const __m256i high = _mm256_and_si256(shift(b2, -2), _mm256_slli_epi16(two, 4));
      w[4 * s + 3] = _mm256_or_si256(_mm256_or_si256(low, middle), high);
    }
  }
};
struct Q3_K {
  static constexpr int kSize = 256, kSub = 16, kBytes = sizeof(BlockQ3_K), kCodeBytes = 96;
  static constexpr int kSumLength = 4, kOffset = 4;
  static constexpr bool kMins = false, kEightBits = false, kFactorsFirst = true, kSignedScales = true;
  static_assert(sums_fit<7, kSumLength, kOffset>());
  [[gnu::always_inline]] static void factors(const uint8_t*, const uint8_t* first, __m256& d,
                                             __m256&) noexcept {
    d = load_halves(first);
  }
  [[gnu::always_inline]] static const uint8_t* scales(const uint8_t* group, SubScales& s) noexcept {
    const __m256i first = load_u(group), second = load_u(group + 32), high = load_u(group + 64);
    const auto centred = [&](__m256i low, int by) noexcept {
      const __m256i scale = _mm256_or_si256(low, _mm256_and_si256(shift(high, by), bytes(0x30)));
      return _mm256_sub_epi8(scale, bytes(32));
    };
    store(s.scale[0], centred(low_nibbles(first), 4));
    store(s.scale[4], centred(low_nibbles(second), 2));
    store(s.scale[8], centred(high_nibbles(first), 0));
    store(s.scale[12], centred(high_nibbles(second), -2));
    return group + 96;
  }
  [[gnu::always_inline]] static void unpack(const uint8_t* codes, __m256i (&w)[8]) noexcept {
    const __m256i third = load_u(codes);
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
      const __m256i low = _mm256_and_si256(shift(load_u(codes + 32 + 32 * (g / 4)), -2 * (g % 4)), bytes(3));
      w[g] = _mm256_or_si256(low, _mm256_and_si256(shift(third, 2 - g), bytes(4)));
    }
  }
};

}  // namespace packed_avx2

}  // namespace
}  // namespace gemmule
