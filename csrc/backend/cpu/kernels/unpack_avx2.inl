// AVX2: GGUF blocks of 8 weight rows to "R8" vectors: 32 bytes = 8 rows x 4 consecutive elements, byte 4 *
// row + i. In that form the 8 dword lanes of a register are 8 outputs, and no dot product needs a horizontal
// sum. The transposition is done on the packed bytes, 16 bytes of each row at a time, before nibbles are
// taken apart.
#pragma once
#include <immintrin.h>

#include "backend/cpu/kernel_table.h"
#include "quant/blocks.h"

namespace gemmule {
namespace {

namespace quant_avx2 {

// Where the 8 rows are now. Rows past the end of a matrix repeat the last one.
struct RowPointers {
  const uint8_t* p[8];

  [[gnu::always_inline]] void advance(int64_t bytes) noexcept {
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
      p[r] += bytes;
      asm("" : "+r"(p[r]));  // eight registers; GCC would rather keep them as vectors in memory
    }
  }
};

// One group of 8 rows, at most 256 elements of K, ready for the dot products.
struct alignas(64) GroupTile {
  uint8_t codes[128]
               [32];  // [k / 4][8 rows x 4]; Q8_0: 8 vectors of low nibbles, 8 of high, for each block of 32
  int16_t scales[16][16];  // [sub-block][8 rows x 2], each scale twice                      (K-quants)
  int16_t pairs[8][16];    // [pair of sub-blocks][8 rows x 2]: mins, or scales for the offset term (K-quants)
  float d[8][8];           // [block][8 rows]; K-quants use block 0 only
  float m[8][8];           // as d: m, or -dmin
};

[[gnu::always_inline]] inline __m256i bytes(int v) noexcept { return _mm256_set1_epi8(static_cast<char>(v)); }

[[gnu::always_inline]] inline void store(void* dst, __m256i v) noexcept {
  _mm256_store_si256(static_cast<__m256i*>(dst), v);
}

// 16 bytes of each row at `offset`, transposed: out[i] = dword i of the 8 rows.
[[gnu::always_inline]] inline void load_16_bytes(const RowPointers& rows, int64_t offset,
                                                 __m256i out[4]) noexcept {
  const auto two_rows = [&](int low, int high) noexcept {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows.p[low] + offset));
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows.p[high] + offset));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
  };
  const __m256i v0 = two_rows(0, 4), v1 = two_rows(1, 5), v2 = two_rows(2, 6), v3 = two_rows(3, 7);
  const __m256i t0 = _mm256_unpacklo_epi32(v0, v1), t1 = _mm256_unpacklo_epi32(v2, v3);
  const __m256i t2 = _mm256_unpackhi_epi32(v0, v1), t3 = _mm256_unpackhi_epi32(v2, v3);
  out[0] = _mm256_unpacklo_epi64(t0, t1);
  out[1] = _mm256_unpackhi_epi64(t0, t1);
  out[2] = _mm256_unpacklo_epi64(t2, t3);
  out[3] = _mm256_unpackhi_epi64(t2, t3);
}

// One dword of each row; broadcast loads and blends keep the shuffle port free.
[[gnu::always_inline]] inline __m256i load_dwords(const RowPointers& rows, int64_t offset) noexcept {
  const auto all = [&](int r) noexcept {
    int32_t v;
    __builtin_memcpy(&v, rows.p[r] + offset, sizeof v);
    return _mm256_set1_epi32(v);
  };
  const __m256i a = _mm256_blend_epi32(all(0), all(1), 0x02), b = _mm256_blend_epi32(all(2), all(3), 0x08);
  const __m256i c = _mm256_blend_epi32(all(4), all(5), 0x20), d = _mm256_blend_epi32(all(6), all(7), 0x80);
  return _mm256_blend_epi32(_mm256_blend_epi32(a, b, 0x0c), _mm256_blend_epi32(c, d, 0xc0), 0xf0);
}

// Two dwords of each row.
[[gnu::always_inline]] inline void load_dword_pairs(const RowPointers& rows, int64_t offset,
                                                    __m256i out[2]) noexcept {
  const auto all = [&](int r) noexcept {
    int64_t v;
    __builtin_memcpy(&v, rows.p[r] + offset, sizeof v);
    return _mm256_set1_epi64x(v);
  };
  const auto four_rows = [&](int a, int b, int c, int d) noexcept {
    return _mm256_blend_epi32(_mm256_blend_epi32(all(a), all(b), 0x0c),
                              _mm256_blend_epi32(all(c), all(d), 0xc0), 0xf0);
  };
  const __m256 first = _mm256_castsi256_ps(four_rows(0, 1, 4, 5)),
               second = _mm256_castsi256_ps(four_rows(2, 3, 6, 7));
  out[0] = _mm256_castps_si256(_mm256_shuffle_ps(first, second, 0x88));
  out[1] = _mm256_castps_si256(_mm256_shuffle_ps(first, second, 0xdd));
}

// The half floats in the low or the high 16 bits of 8 dwords.
[[gnu::always_inline]] inline __m256 halves_to_float(__m256i low) noexcept {
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
  return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
}
[[gnu::always_inline]] inline __m256 low_halves(__m256i v) noexcept {
  return halves_to_float(_mm256_and_si256(v, _mm256_set1_epi32(0xffff)));
}
[[gnu::always_inline]] inline __m256 high_halves(__m256i v) noexcept {
  return halves_to_float(_mm256_srli_epi32(v, 16));
}
[[gnu::always_inline]] inline __m256 negate(__m256 v) noexcept {
  return _mm256_xor_ps(v, _mm256_set1_ps(-0.0f));
}

[[gnu::always_inline]] inline __m256i low_nibbles(__m256i v) noexcept {
  return _mm256_and_si256(v, bytes(15));
}
[[gnu::always_inline]] inline __m256i high_nibbles(__m256i v) noexcept {
  return _mm256_and_si256(_mm256_srli_epi16(v, 4), bytes(15));
}

// Bytes `first` and `second` of each dword as two 16-bit numbers.
[[gnu::always_inline]] inline __m256i unsigned_pair(__m256i v, int first, int second) noexcept {
  const int lane = static_cast<int>(0x80008000u) | first | second << 16;
  const __m256i mask = _mm256_setr_epi32(lane, lane + 0x00040004, lane + 0x00080008, lane + 0x000c000c, lane,
                                         lane + 0x00040004, lane + 0x00080008, lane + 0x000c000c);
  return _mm256_shuffle_epi8(v, mask);
}
[[gnu::always_inline]] inline __m256i signed_pair(__m256i v, int first, int second) noexcept {
  const int lane = 0x00800080 | first << 8 | second << 24;
  const __m256i mask = _mm256_setr_epi32(lane, lane + 0x04000400, lane + 0x08000800, lane + 0x0c000c00, lane,
                                         lane + 0x04000400, lane + 0x08000800, lane + 0x0c000c00);
  return _mm256_srai_epi16(_mm256_shuffle_epi8(v, mask), 8);
}

// The 32-bit fields `high`, bit by bit: bit 4v + j of a field becomes bit 4 of byte j of out[v].
[[gnu::always_inline]] inline void spread_fifth_bits(__m256i high, __m256i out[8]) noexcept {
  const __m256i bit = _mm256_set1_epi32(static_cast<int>(0x80402010u));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const int byte = 0x01010101 * i;
    const __m256i copies = _mm256_shuffle_epi8(
        high, _mm256_setr_epi32(byte, byte + 0x04040404, byte + 0x08080808, byte + 0x0c0c0c0c, byte,
                                byte + 0x04040404, byte + 0x08080808, byte + 0x0c0c0c0c));
    // A set bit is 16 or more, so the minimum with 16 moves it to bit 4.
    out[2 * i] = _mm256_min_epu8(_mm256_and_si256(_mm256_slli_epi16(copies, 4), bit), bytes(16));
    out[2 * i + 1] = _mm256_min_epu8(_mm256_and_si256(copies, bit), bytes(16));
  }
}

// The formats. Each gives its factors (d, m) or scales, and hands its codes to `visit(first, w)`: four
// vectors w[0..3] of the elements 4 * first .. 4 * first + 15 of the block, in an order of its own.
//   kSub        elements that share a scale
//   kMaxCode    largest code; kSumLength vpmaddubsw results (each two products) are added in 16 bits
//   kOffset     subtracted from every code

template <class Visit>
[[gnu::always_inline]] inline void visit_nibbles_32(const RowPointers& rows, int64_t offset,
                                                    Visit&& visit) noexcept {
  __m256i raw[4];
  load_16_bytes(rows, offset, raw);
  const __m256i low[4] = {low_nibbles(raw[0]), low_nibbles(raw[1]), low_nibbles(raw[2]), low_nibbles(raw[3])};
  visit(0, low);
  const __m256i high[4] = {high_nibbles(raw[0]), high_nibbles(raw[1]), high_nibbles(raw[2]),
                           high_nibbles(raw[3])};
  visit(4, high);
}

template <class Visit>
[[gnu::always_inline]] inline void visit_five_bits_32(const RowPointers& rows, int64_t offset, __m256i high,
                                                      Visit&& visit) noexcept {
  __m256i raw[4], fifth[8], w[4];
  load_16_bytes(rows, offset, raw);
  spread_fifth_bits(high, fifth);
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) w[v] = _mm256_or_si256(low_nibbles(raw[v]), fifth[v]);
  visit(0, w);
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) w[v] = _mm256_or_si256(high_nibbles(raw[v]), fifth[v + 4]);
  visit(4, w);
}

struct Q8_0 {  // visits the signed weights; the tiles hold w + 128 as two nibbles
  static constexpr int kSize = 32, kSub = 32, kBytes = sizeof(BlockQ8_0);
  static constexpr int kMaxCode = 15, kSumLength = 8, kOffset = 128;  // of each nibble of the code
  static constexpr bool kMins = false, kEightBits = true;

  template <class Visit>
  [[gnu::always_inline]] static void unpack(const RowPointers& rows, int64_t at, __m256& d, __m256&,
                                            Visit&& visit) noexcept {
    d = low_halves(load_dwords(rows, at));
    __m256i w[4];
    load_16_bytes(rows, at + 2, w);
    visit(0, w);
    load_16_bytes(rows, at + 18, w);
    visit(4, w);
  }
};

struct Q4_0 {
  static constexpr int kSize = 32, kSub = 32, kBytes = sizeof(BlockQ4_0);
  static constexpr int kMaxCode = 15, kSumLength = 8, kOffset = 8;
  static constexpr bool kMins = false, kEightBits = false;

  template <class Visit>
  [[gnu::always_inline]] static void unpack(const RowPointers& rows, int64_t at, __m256& d, __m256&,
                                            Visit&& visit) noexcept {
    d = low_halves(load_dwords(rows, at));
    visit_nibbles_32(rows, at + 2, visit);
  }
};

struct Q4_1 {
  static constexpr int kSize = 32, kSub = 32, kBytes = sizeof(BlockQ4_1);
  static constexpr int kMaxCode = 15, kSumLength = 8, kOffset = 0;
  static constexpr bool kMins = true, kEightBits = false;

  template <class Visit>
  [[gnu::always_inline]] static void unpack(const RowPointers& rows, int64_t at, __m256& d, __m256& m,
                                            Visit&& visit) noexcept {
    const __m256i factors = load_dwords(rows, at);
    d = low_halves(factors);
    m = high_halves(factors);
    visit_nibbles_32(rows, at + 4, visit);
  }
};

struct Q5_0 {
  static constexpr int kSize = 32, kSub = 32, kBytes = sizeof(BlockQ5_0);
  static constexpr int kMaxCode = 31, kSumLength = 4, kOffset = 16;
  static constexpr bool kMins = false, kEightBits = false;

  template <class Visit>
  [[gnu::always_inline]] static void unpack(const RowPointers& rows, int64_t at, __m256& d, __m256&,
                                            Visit&& visit) noexcept {
    __m256i start[2];  // d, qh, two bytes of qs
    load_dword_pairs(rows, at, start);
    d = low_halves(start[0]);
    const __m256i high =
        _mm256_blend_epi16(_mm256_srli_epi32(start[0], 16), _mm256_slli_epi32(start[1], 16), 0xaa);
    visit_five_bits_32(rows, at + 6, high, visit);
  }
};

struct Q5_1 {
  static constexpr int kSize = 32, kSub = 32, kBytes = sizeof(BlockQ5_1);
  static constexpr int kMaxCode = 31, kSumLength = 4, kOffset = 0;
  static constexpr bool kMins = true, kEightBits = false;

  template <class Visit>
  [[gnu::always_inline]] static void unpack(const RowPointers& rows, int64_t at, __m256& d, __m256& m,
                                            Visit&& visit) noexcept {
    __m256i start[2];  // d and m, qh
    load_dword_pairs(rows, at, start);
    d = low_halves(start[0]);
    m = high_halves(start[0]);
    visit_five_bits_32(rows, at + 8, start[1], visit);
  }
};

struct Q2_K {
  static constexpr int kSize = 256, kSub = 16, kBytes = sizeof(BlockQ2_K);
  static constexpr int kMaxCode = 3, kSumLength = 4, kOffset = 0;
  static constexpr bool kMins = true, kEightBits = false;

  [[gnu::always_inline]] static void unpack_scales(const RowPointers& rows, GroupTile& tile) noexcept {
    __m256i raw[4];
    load_16_bytes(rows, 0, raw);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i scales = low_nibbles(raw[i]), mins = high_nibbles(raw[i]);
#pragma GCC unroll 4
      for (int s = 0; s < 4; ++s) store(tile.scales[4 * i + s], unsigned_pair(scales, s, s));
      store(tile.pairs[2 * i], unsigned_pair(mins, 0, 1));
      store(tile.pairs[2 * i + 1], unsigned_pair(mins, 2, 3));
    }
    const __m256i factors = load_dwords(rows, 80);
    _mm256_store_ps(tile.d[0], low_halves(factors));
    _mm256_store_ps(tile.m[0], negate(high_halves(factors)));
  }

  template <class Visit>
  [[gnu::always_inline]] static void unpack_codes(const RowPointers& rows, Visit&& visit) noexcept {
    const __m256i two_bits = bytes(3);
#pragma GCC unroll 4
    for (int unit = 0; unit < 4; ++unit) {  // 16 bytes of qs = 4 x 16 elements
      const int first = 32 * (unit / 2) + 4 * (unit % 2);
      __m256i raw[4], w[4];
      load_16_bytes(rows, 16 + 16 * unit, raw);
#pragma GCC unroll 4
      for (int part = 0; part < 4; ++part) {
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) w[v] = _mm256_and_si256(_mm256_srli_epi16(raw[v], 2 * part), two_bits);
        visit(first + 8 * part, w);
      }
    }
  }
};

struct Q3_K {
  static constexpr int kSize = 256, kSub = 16, kBytes = sizeof(BlockQ3_K);
  static constexpr int kMaxCode = 7, kSumLength = 4, kOffset = 4;
  static constexpr bool kMins = false, kEightBits = false;

  [[gnu::always_inline]] static void unpack_scales(const RowPointers& rows, GroupTile& tile) noexcept {
    __m256i raw[4];
    load_16_bytes(rows, 94, raw);  // 2 bytes of qs, 12 of scales, d
    _mm256_store_ps(tile.d[0], high_halves(raw[3]));
    const auto joined = [&](int i) noexcept {
      return _mm256_or_si256(_mm256_srli_epi32(raw[i], 16), _mm256_slli_epi32(raw[i + 1], 16));
    };
    const __m256i low[2] = {joined(0), joined(1)};
    const __m256i high = joined(2);
    const __m256i two_bits = bytes(0x30);
    const __m256i scales[4] = {
        _mm256_or_si256(low_nibbles(low[0]), _mm256_and_si256(_mm256_slli_epi16(high, 4), two_bits)),
        _mm256_or_si256(low_nibbles(low[1]), _mm256_and_si256(_mm256_slli_epi16(high, 2), two_bits)),
        _mm256_or_si256(high_nibbles(low[0]), _mm256_and_si256(high, two_bits)),
        _mm256_or_si256(high_nibbles(low[1]), _mm256_and_si256(_mm256_srli_epi16(high, 2), two_bits)),
    };
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i centred = _mm256_sub_epi8(scales[i], bytes(32));
#pragma GCC unroll 4
      for (int s = 0; s < 4; ++s) store(tile.scales[4 * i + s], signed_pair(centred, s, s));
      store(tile.pairs[2 * i], signed_pair(centred, 0, 1));
      store(tile.pairs[2 * i + 1], signed_pair(centred, 2, 3));
    }
  }

  template <class Visit>
  [[gnu::always_inline]] static void unpack_codes(const RowPointers& rows, Visit&& visit) noexcept {
    const __m256i two_bits = bytes(3), third_bit = bytes(4);
    for (int side = 0; side < 2;
         ++side) {  // 16 of the 32 bytes of hmask, in which bit 4 * half + part counts
      __m256i third[4];
      load_16_bytes(rows, 16 * side, third);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        __m256i raw[4], w[4];
        load_16_bytes(rows, 32 + 32 * half + 16 * side, raw);
#pragma GCC unroll 4
        for (int part = 0; part < 4; ++part) {
          const int bit = 4 * half + part;
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) {
            const __m256i moved =
                bit < 2 ? _mm256_slli_epi16(third[v], 2 - bit) : _mm256_srli_epi16(third[v], bit - 2);
            w[v] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(raw[v], 2 * part), two_bits),
                                   _mm256_and_si256(moved, third_bit));
          }
          visit(32 * half + 8 * part + 4 * side, w);
        }
      }
    }
  }
};

// Bytes 0..15 of a Q4_K or Q5_K block: d, dmin and the 6-bit scales and mins.
[[gnu::always_inline]] inline void unpack_six_bit_pairs(const RowPointers& rows, GroupTile& tile) noexcept {
  __m256i raw[4];
  load_16_bytes(rows, 0, raw);
  _mm256_store_ps(tile.d[0], low_halves(raw[0]));
  _mm256_store_ps(tile.m[0], negate(high_halves(raw[0])));
  const __m256i six = bytes(63), two = bytes(0x30);
  const __m256i scales[2] = {
      _mm256_and_si256(raw[1], six),
      _mm256_or_si256(low_nibbles(raw[3]), _mm256_and_si256(_mm256_srli_epi16(raw[1], 2), two))};
  const __m256i mins[2] = {
      _mm256_and_si256(raw[2], six),
      _mm256_or_si256(high_nibbles(raw[3]), _mm256_and_si256(_mm256_srli_epi16(raw[2], 2), two))};
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) store(tile.scales[4 * i + s], unsigned_pair(scales[i], s, s));
    store(tile.pairs[2 * i], unsigned_pair(mins[i], 0, 1));
    store(tile.pairs[2 * i + 1], unsigned_pair(mins[i], 2, 3));
  }
}

struct Q4_K {
  static constexpr int kSize = 256, kSub = 32, kBytes = sizeof(BlockQ4_K);
  static constexpr int kMaxCode = 15, kSumLength = 8, kOffset = 0;
  static constexpr bool kMins = true, kEightBits = false;

  [[gnu::always_inline]] static void unpack_scales(const RowPointers& rows, GroupTile& tile) noexcept {
    unpack_six_bit_pairs(rows, tile);
  }

  template <class Visit>
  [[gnu::always_inline]] static void unpack_codes(const RowPointers& rows, Visit&& visit) noexcept {
#pragma GCC unroll 8
    for (int unit = 0; unit < 8; ++unit) {  // 16 bytes of qs; two units are 32 low, then 32 high nibbles
      __m256i raw[4], w[4];
      load_16_bytes(rows, 16 + 16 * unit, raw);
      const int first = 16 * (unit / 2) + 4 * (unit % 2);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) w[v] = low_nibbles(raw[v]);
      visit(first, w);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) w[v] = high_nibbles(raw[v]);
      visit(first + 8, w);
    }
  }
};

struct Q5_K {
  static constexpr int kSize = 256, kSub = 32, kBytes = sizeof(BlockQ5_K);
  static constexpr int kMaxCode = 31, kSumLength = 4, kOffset = 0;
  static constexpr bool kMins = true, kEightBits = false;

  [[gnu::always_inline]] static void unpack_scales(const RowPointers& rows, GroupTile& tile) noexcept {
    unpack_six_bit_pairs(rows, tile);
  }

  template <class Visit>
  [[gnu::always_inline]] static void unpack_codes(const RowPointers& rows, Visit&& visit) noexcept {
    const __m256i sixteen = bytes(16);
#pragma GCC unroll 2
    for (int side = 0; side < 2; ++side) {  // 16 of the 32 bytes of qh, shifted to bits 0 and 1 of each part
      __m256i fifth[4];
      load_16_bytes(rows, 16 + 16 * side, fifth);
#pragma GCC unroll 4
      for (int part = 0; part < 4; ++part) {
        __m256i raw[4], w[4];
        load_16_bytes(rows, 48 + 32 * part + 16 * side, raw);
        const int first = 16 * part + 4 * side;
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v)
          w[v] =
              _mm256_or_si256(low_nibbles(raw[v]), _mm256_and_si256(_mm256_slli_epi16(fifth[v], 4), sixteen));
        visit(first, w);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v)
          w[v] = _mm256_or_si256(high_nibbles(raw[v]),
                                 _mm256_and_si256(_mm256_slli_epi16(fifth[v], 3), sixteen));
        visit(first + 8, w);
        // The bits of the neighbour byte come in from the left and never get as far as bits 0 and 1.
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) fifth[v] = _mm256_srli_epi16(fifth[v], 2);
      }
    }
  }
};

struct Q6_K {
  static constexpr int kSize = 256, kSub = 16, kBytes = sizeof(BlockQ6_K);
  static constexpr int kMaxCode = 63, kSumLength = 2, kOffset = 32;
  static constexpr bool kMins = false, kEightBits = false;

  [[gnu::always_inline]] static void unpack_scales(const RowPointers& rows, GroupTile& tile) noexcept {
    __m256i scales[4];
    load_16_bytes(rows, 192, scales);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 4
      for (int s = 0; s < 4; ++s) store(tile.scales[4 * i + s], signed_pair(scales[i], s, s));
      store(tile.pairs[2 * i], signed_pair(scales[i], 0, 1));
      store(tile.pairs[2 * i + 1], signed_pair(scales[i], 2, 3));
    }
    _mm256_store_ps(tile.d[0], high_halves(load_dwords(rows, 206)));
  }

  template <class Visit>
  [[gnu::always_inline]] static void unpack_codes(const RowPointers& rows, Visit&& visit) noexcept {
    const __m256i two = bytes(0x30);
#pragma GCC unroll 4
    for (int unit = 0; unit < 4; ++unit) {  // 16 bytes of qh = 16 elements of each quarter of a half
      const int half = unit / 2, side = unit % 2;
      const int first = 32 * half + 4 * side;
      __m256i high[4], raw[4], w[4];
      load_16_bytes(rows, 128 + 16 * unit, high);
      load_16_bytes(rows, 64 * half + 16 * side, raw);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v)
        w[v] = _mm256_or_si256(low_nibbles(raw[v]), _mm256_and_si256(_mm256_slli_epi16(high[v], 4), two));
      visit(first, w);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v)
        w[v] = _mm256_or_si256(high_nibbles(raw[v]), _mm256_and_si256(high[v], two));
      visit(first + 16, w);
      load_16_bytes(rows, 64 * half + 32 + 16 * side, raw);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v)
        w[v] = _mm256_or_si256(low_nibbles(raw[v]), _mm256_and_si256(_mm256_slli_epi16(high[v], 2), two));
      visit(first + 8, w);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v)
        w[v] = _mm256_or_si256(high_nibbles(raw[v]), _mm256_and_si256(_mm256_srli_epi16(high[v], 2), two));
      visit(first + 24, w);
    }
  }
};

}  // namespace quant_avx2

}  // namespace
}  // namespace gemmule
