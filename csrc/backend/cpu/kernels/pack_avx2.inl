// AVX2: GGUF rows to a panel of the packed layout (quant/packed.h). 16 bytes of each of 8 rows are transposed
// at a time, before codes are taken apart (unpack_avx2.inl); what then remains is to put bits together again.
#pragma once
#include <immintrin.h>

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/unpack_avx2.inl"

namespace gemmule {
namespace {

namespace pack_avx2 {

using quant_avx2::bytes;
using quant_avx2::high_nibbles;
using quant_avx2::load_16_bytes;
using quant_avx2::load_dword_pairs;
using quant_avx2::load_dwords;
using quant_avx2::low_nibbles;
using quant_avx2::RowPointers;

[[gnu::always_inline]] inline void put(uint8_t* dst, __m256i v) noexcept {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), v);
}
// The low or the high 16 bits of 8 dwords: 16 bytes.
[[gnu::always_inline]] inline void put_low_halves(uint8_t* dst, __m256i v) noexcept {
  const __m256i low = _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), _mm256_castsi256_si128(packed));
}
[[gnu::always_inline]] inline void put_high_halves(uint8_t* dst, __m256i v) noexcept {
  put_low_halves(dst, _mm256_srli_epi32(v, 16));
}
// Four bytes of each of 8 rows to [byte][row].
[[gnu::always_inline]] inline __m256i by_bytes(__m256i v) noexcept {
  const __m256i fours =
      _mm256_shuffle_epi8(v, _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8,
                                              12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return _mm256_permutevar8x32_epi32(fours, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
[[gnu::always_inline]] inline __m256i high_bits(__m256i v) noexcept {
  return _mm256_and_si256(v, bytes(0xf0));
}
template <int kBits>
[[gnu::always_inline]] inline __m256i up(__m256i v) noexcept {
  return _mm256_slli_epi16(v, kBits);
}

// Blocks of 32 elements: block `b` of `n` of the group at dst.
//   kFactors   f16 numbers at the start of a block;  kFifth   whether 32 fifth bits follow
template <int kFactors, bool kFifth>
[[gnu::always_inline]] inline void pack_nibbles_32(const RowPointers& rows, int b, int n,
                                                   uint8_t* dst) noexcept {
  constexpr int kCodes = kFifth ? 160 : 128;
  uint8_t* codes = dst + 16 * kFactors * n + kCodes * b;
  __m256i raw[4], high = _mm256_setzero_si256();
  if constexpr (kFactors == 1 && kFifth) {
    __m256i start[2];  // d, qh, two bytes of qs
    load_dword_pairs(rows, 0, start);
    put_low_halves(dst + 16 * b, start[0]);
    high = _mm256_blend_epi16(_mm256_srli_epi32(start[0], 16), _mm256_slli_epi32(start[1], 16), 0xaa);
  } else if constexpr (kFactors == 2 && kFifth) {
    __m256i start[2];
    load_dword_pairs(rows, 0, start);
    put_low_halves(dst + 16 * b, start[0]);
    put_high_halves(dst + 16 * (n + b), start[0]);
    high = start[1];
  } else {
    const __m256i factors = load_dwords(rows, 0);
    put_low_halves(dst + 16 * b, factors);
    if constexpr (kFactors == 2) put_high_halves(dst + 16 * (n + b), factors);
  }
  if constexpr (kFifth) {
    __m256i fifth[8];  // 16 in the bytes whose bit is set
    quant_avx2::spread_fifth_bits(high, fifth);
    __m256i all = fifth[4];
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) all = _mm256_or_si256(all, _mm256_srli_epi16(fifth[g], 4 - g));
#pragma GCC unroll 4
    for (int g = 5; g < 8; ++g) all = _mm256_or_si256(all, _mm256_slli_epi16(fifth[g], g - 4));
    put(codes, all);
    codes += 32;
  }
  load_16_bytes(rows, 2 * kFactors + (kFifth ? 4 : 0), raw);
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) put(codes + 32 * v, raw[v]);
}

struct Q8_0 {
  static constexpr int kSize = 32, kBytes = sizeof(BlockQ8_0);
  [[gnu::always_inline]] static void block(const RowPointers& rows, int b, int n, uint8_t* dst) noexcept {
    put_low_halves(dst + 16 * b, load_dwords(rows, 0));
    uint8_t* const codes = dst + 16 * n + 256 * b;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m256i raw[4];
      load_16_bytes(rows, 2 + 16 * half, raw);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) put(codes + 128 * half + 32 * v, raw[v]);
    }
  }
};
struct Q4_0 {
  static constexpr int kSize = 32, kBytes = sizeof(BlockQ4_0);
  [[gnu::always_inline]] static void block(const RowPointers& rows, int b, int n, uint8_t* dst) noexcept {
    pack_nibbles_32<1, false>(rows, b, n, dst);
  }
};
struct Q4_1 {
  static constexpr int kSize = 32, kBytes = sizeof(BlockQ4_1);
  [[gnu::always_inline]] static void block(const RowPointers& rows, int b, int n, uint8_t* dst) noexcept {
    pack_nibbles_32<2, false>(rows, b, n, dst);
  }
};
struct Q5_0 {
  static constexpr int kSize = 32, kBytes = sizeof(BlockQ5_0);
  [[gnu::always_inline]] static void block(const RowPointers& rows, int b, int n, uint8_t* dst) noexcept {
    pack_nibbles_32<1, true>(rows, b, n, dst);
  }
};
struct Q5_1 {
  static constexpr int kSize = 32, kBytes = sizeof(BlockQ5_1);
  [[gnu::always_inline]] static void block(const RowPointers& rows, int b, int n, uint8_t* dst) noexcept {
    pack_nibbles_32<2, true>(rows, b, n, dst);
  }
};

// The first 16 bytes of Q4_K and Q5_K: d, dmin and 12 bytes of 6-bit scales and mins.
[[gnu::always_inline]] inline void pack_six_bits(const RowPointers& rows, uint8_t* dst) noexcept {
  __m256i raw[4];
  load_16_bytes(rows, 0, raw);
  put_low_halves(dst, raw[0]);
  put_high_halves(dst + 16, raw[0]);
  // Pairs 0..3: scales in raw[1], mins in raw[2], six bits each; their two spare bits are the high bits of
  // pairs 4..7, whose low bits share raw[3].
  const __m256i scale = raw[1], min = raw[2], two = bytes(3);
  put(dst + 32, by_bytes(_mm256_or_si256(low_nibbles(scale), up<4>(low_nibbles(min)))));
  put(dst + 64, by_bytes(raw[3]));
  const __m256i low = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(scale, 4), two),
                                      up<2>(_mm256_and_si256(_mm256_srli_epi16(min, 4), two)));
  const __m256i high = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(scale, 6), two),
                                       up<2>(_mm256_and_si256(_mm256_srli_epi16(min, 6), two)));
  put(dst + 96, by_bytes(_mm256_or_si256(low, up<4>(high))));
}

// 32 bytes of qs are two sub-blocks, in low and high nibbles: 4 vectors each.
[[gnu::always_inline]] inline void pack_two_sub_blocks(const RowPointers& rows, int64_t offset,
                                                       uint8_t* first, uint8_t* second) noexcept {
  __m256i a[4], b[4];
  load_16_bytes(rows, offset, a);
  load_16_bytes(rows, offset + 16, b);
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    put(first + 32 * v, _mm256_or_si256(low_nibbles(a[v]), up<4>(low_nibbles(b[v]))));
    put(second + 32 * v, _mm256_or_si256(high_nibbles(a[v]), high_bits(b[v])));
  }
}

struct Q4_K {
  static constexpr int kSize = 256, kBytes = sizeof(BlockQ4_K);
  static constexpr bool kFactorsFirst = false;
  [[gnu::always_inline]] static void block(const RowPointers& rows, uint8_t*, uint8_t* dst) noexcept {
    pack_six_bits(rows, dst);
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; ++pair) {
      uint8_t* const codes = dst + 128 + 256 * pair;
      pack_two_sub_blocks(rows, 16 + 32 * pair, codes, codes + 128);
    }
  }
};

// The bits `mask` of b and those `kBits` above of a change places.
template <int kBits>
[[gnu::always_inline]] inline void swap_bits(__m256i& a, __m256i& b, int mask) noexcept {
  const __m256i t = _mm256_and_si256(_mm256_xor_si256(_mm256_srli_epi16(a, kBits), b), bytes(mask));
  b = _mm256_xor_si256(b, t);
  a = _mm256_xor_si256(a, up<kBits>(t));
}

struct Q5_K {
  static constexpr int kSize = 256, kBytes = sizeof(BlockQ5_K);
  static constexpr bool kFactorsFirst = false;
  [[gnu::always_inline]] static void block(const RowPointers& rows, uint8_t*, uint8_t* dst) noexcept {
    pack_six_bits(rows, dst);
    // h[g]: byte (row, i), bit s = fifth bit of element 4 g + i of sub-block s. An 8 x 8 transposition of
    // bits makes it h[s], bit g.
    __m256i h[8];
    load_16_bytes(rows, 16, h);
    load_16_bytes(rows, 32, h + 4);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) swap_bits<4>(h[g], h[g + 4], 0x0f);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) swap_bits<2>(h[g % 2 + g / 2 * 4], h[g % 2 + g / 2 * 4 + 2], 0x33);
#pragma GCC unroll 4
    for (int g = 0; g < 8; g += 2) swap_bits<1>(h[g], h[g + 1], 0x55);
    uint8_t* const codes = dst + 128;
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; ++pair) {
      put(codes + 320 * pair, h[2 * pair]);
      put(codes + 320 * pair + 160, h[2 * pair + 1]);
      pack_two_sub_blocks(rows, 48 + 32 * pair, codes + 320 * pair + 32, codes + 320 * pair + 192);
    }
  }
};

struct Q2_K {
  static constexpr int kSize = 256, kBytes = sizeof(BlockQ2_K);
  static constexpr bool kFactorsFirst = false;
  [[gnu::always_inline]] static void block(const RowPointers& rows, uint8_t*, uint8_t* dst) noexcept {
    const __m256i factors = load_dwords(rows, 80);
    put_low_halves(dst, factors);
    put_high_halves(dst + 16, factors);
    __m256i scales[4];
    load_16_bytes(rows, 0, scales);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) put(dst + 32 + 32 * i, by_bytes(scales[i]));
    quant_avx2::Q2_K::unpack_codes(rows, [&](int first, const __m256i(&w)[4]) noexcept {
      put(dst + 160 + 8 * first, four_of_two_bits(w));
    });
  }
  // 4 code vectors as one, two bits each.
  [[gnu::always_inline]] static __m256i four_of_two_bits(const __m256i (&w)[4]) noexcept {
    return _mm256_or_si256(_mm256_or_si256(w[0], up<2>(w[1])), _mm256_or_si256(up<4>(w[2]), up<6>(w[3])));
  }
};

struct Q3_K {
  static constexpr int kSize = 256, kBytes = sizeof(BlockQ3_K);
  static constexpr bool kFactorsFirst = true;
  [[gnu::always_inline]] static void block(const RowPointers& rows, uint8_t* factors, uint8_t* dst) noexcept {
    __m256i raw[4];
    load_16_bytes(rows, 94, raw);  // 2 bytes of qs, 12 of scales, d
    put_high_halves(factors, raw[3]);
#pragma GCC unroll 4
    for (int i = 0; i < 3; ++i)
      put(dst + 32 * i,
          by_bytes(_mm256_or_si256(_mm256_srli_epi32(raw[i], 16), _mm256_slli_epi32(raw[i + 1], 16))));
    uint8_t* const codes = dst + 96;
    for (int pair = 0; pair < 8; ++pair) put(codes + 96 * pair, _mm256_setzero_si256());
    quant_avx2::Q3_K::unpack_codes(rows, [&](int first, const __m256i(&w)[4]) noexcept {
      const int sub = first / 4;
      uint8_t* const pair = codes + 96 * (sub / 2);
      const __m256i two = bytes(3), one = bytes(4);
      const __m256i low[4] = {_mm256_and_si256(w[0], two), _mm256_and_si256(w[1], two),
                              _mm256_and_si256(w[2], two), _mm256_and_si256(w[3], two)};
      put(pair + 32 + 32 * (sub % 2), Q2_K::four_of_two_bits(low));
      const __m256i h0 = _mm256_srli_epi16(_mm256_and_si256(w[0], one), 2);
      const __m256i h1 = _mm256_srli_epi16(_mm256_and_si256(w[1], one), 1);
      const __m256i h2 = _mm256_and_si256(w[2], one), h3 = up<1>(_mm256_and_si256(w[3], one));
      const __m256i h = _mm256_or_si256(_mm256_or_si256(h0, h1), _mm256_or_si256(h2, h3));
      const __m256i old = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pair));
      put(pair, _mm256_or_si256(old, sub % 2 == 0 ? h : up<4>(h)));
    });
  }
};

struct Q6_K {
  static constexpr int kSize = 256, kBytes = sizeof(BlockQ6_K);
  static constexpr bool kFactorsFirst = true;
  [[gnu::always_inline]] static void block(const RowPointers& rows, uint8_t* factors, uint8_t* dst) noexcept {
    put_high_halves(factors, load_dwords(rows, 206));
    __m256i scales[4];
    load_16_bytes(rows, 192, scales);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) put(dst + 32 * i, by_bytes(scales[i]));
    quant_avx2::Q6_K::unpack_codes(rows, [&](int first, const __m256i(&w)[4]) noexcept {
      uint8_t* const codes = dst + 128 + 24 * first;
      const __m256i top = bytes(0xc0);
      put(codes, _mm256_or_si256(w[0], _mm256_and_si256(up<6>(w[3]), top)));
      put(codes + 32, _mm256_or_si256(w[1], _mm256_and_si256(up<4>(w[3]), top)));
      put(codes + 64, _mm256_or_si256(w[2], _mm256_and_si256(up<2>(w[3]), top)));
    });
  }
};

// One panel: n_rows (8 to 64, a multiple of 8) consecutive rows of k elements.
template <class F>
void pack(const uint8_t* src, int64_t n_rows, int64_t k, uint8_t* panel) noexcept {
  const int64_t n_groups = n_rows / 8, n_blocks = k / F::kSize, row_bytes = n_blocks * F::kBytes;
  for (int64_t g = 0; g < n_groups; ++g) {
    RowPointers rows;
    for (int r = 0; r < 8; ++r) rows.p[r] = src + (8 * g + r) * row_bytes;
    for (int64_t b = 0; b < n_blocks;) {
      uint8_t* const step = panel + b * F::kBytes * n_rows;
      if constexpr (F::kSize == 256) {
        constexpr int kFactors = F::kFactorsFirst ? 16 : 0;
        F::block(rows, step + 16 * g, step + kFactors * n_groups + (8 * F::kBytes - kFactors) * g);
        rows.advance(F::kBytes);
        ++b;
      } else {
        const int n = static_cast<int>(n_blocks - b < 8 ? n_blocks - b : 8);
        for (int i = 0; i < n; ++i) {
          F::block(rows, i, n, step + int64_t{8} * F::kBytes * n * g);
          rows.advance(F::kBytes);
        }
        b += n;
      }
    }
  }
}

}  // namespace pack_avx2

}  // namespace
}  // namespace gemmule
