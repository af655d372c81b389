// AVX2: GGUF blocks of 8 weight rows to "R8" vectors: 32 bytes = 8 rows x 4 consecutive elements, byte 4 *
// row + i. In that form the 8 dword lanes of a register are 8 outputs, and no dot product needs a horizontal
// sum. The transposition is done on the packed bytes, 16 bytes of each row at a time, before nibbles are
// taken apart.
#include <immintrin.h>

#include "backend/cpu/kernel_table.h"
#include "quant/blocks.h"

namespace gemmule {
namespace {

namespace quant_avx2 {

// Where the 8 rows are now. Rows past the end of a matrix repeat the last one.
struct RowPointers {
  const uint8_t* p[8];
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

// Bits 4v .. 4v + 3 of each dword of `high` as bit 4 of the bytes 0..3.
[[gnu::always_inline]] inline __m256i fifth_bits(__m256i high, int v) noexcept {
  const int byte = 0x01010101 * (v / 2);
  const __m256i spread = _mm256_setr_epi32(byte, byte + 0x04040404, byte + 0x08080808, byte + 0x0c0c0c0c,
                                           byte, byte + 0x04040404, byte + 0x08080808, byte + 0x0c0c0c0c);
  const __m256i bit = _mm256_set1_epi32(v % 2 == 0 ? 0x08040201 : static_cast<int>(0x80402010u));
  const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(high, spread), bit), bit);
  return _mm256_and_si256(set, bytes(16));
}

[[gnu::always_inline]] inline void unpack_nibbles_32(const RowPointers& rows, int64_t offset,
                                                     uint8_t (*codes)[32]) noexcept {
  __m256i raw[4];
  load_16_bytes(rows, offset, raw);
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    store(codes[v], low_nibbles(raw[v]));
    store(codes[v + 4], high_nibbles(raw[v]));
  }
}

[[gnu::always_inline]] inline void unpack_five_bits_32(const RowPointers& rows, int64_t offset, __m256i high,
                                                       uint8_t (*codes)[32]) noexcept {
  __m256i raw[4];
  load_16_bytes(rows, offset, raw);
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    store(codes[v], _mm256_or_si256(low_nibbles(raw[v]), fifth_bits(high, v)));
    store(codes[v + 4], _mm256_or_si256(high_nibbles(raw[v]), fifth_bits(high, v + 4)));
  }
}

// The formats. kSub: elements that share a scale. kMaxCode and kSumLength say how many vpmaddubsw results
// (pairs of products) are added in 16 bits. kOffset: subtracted from every code. unpack() takes block `b` of
// the tile.
struct Q8_0 {
  static constexpr int kSize = 32, kSub = 32, kBytes = sizeof(BlockQ8_0);
  static constexpr int kMaxCode = 15, kSumLength = 8, kOffset = 128;
  static constexpr bool kMins = false;
  static constexpr int kVectors = 16;  // code vectors per block: w + 128 is cut in two nibbles

  [[gnu::always_inline]] static void unpack(const RowPointers& rows, int b, GroupTile& tile) noexcept {
    const int64_t at = static_cast<int64_t>(b) * kBytes;
    _mm256_store_ps(tile.d[b], low_halves(load_dwords(rows, at)));
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m256i raw[4];
      load_16_bytes(rows, at + 2 + 16 * half, raw);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const __m256i code = _mm256_xor_si256(raw[v], bytes(0x80));
        store(tile.codes[16 * b + 4 * half + v], low_nibbles(code));
        store(tile.codes[16 * b + 4 * half + v + 8], high_nibbles(code));
      }
    }
  }
};

struct Q4_0 {
  static constexpr int kSize = 32, kSub = 32, kBytes = sizeof(BlockQ4_0);
  static constexpr int kMaxCode = 15, kSumLength = 8, kOffset = 8;
  static constexpr bool kMins = false;
  static constexpr int kVectors = 8;

  [[gnu::always_inline]] static void unpack(const RowPointers& rows, int b, GroupTile& tile) noexcept {
    const int64_t at = static_cast<int64_t>(b) * kBytes;
    _mm256_store_ps(tile.d[b], low_halves(load_dwords(rows, at)));
    unpack_nibbles_32(rows, at + 2, tile.codes + 8 * b);
  }
};

struct Q4_1 {
  static constexpr int kSize = 32, kSub = 32, kBytes = sizeof(BlockQ4_1);
  static constexpr int kMaxCode = 15, kSumLength = 8, kOffset = 0;
  static constexpr bool kMins = true;
  static constexpr int kVectors = 8;

  [[gnu::always_inline]] static void unpack(const RowPointers& rows, int b, GroupTile& tile) noexcept {
    const int64_t at = static_cast<int64_t>(b) * kBytes;
    const __m256i factors = load_dwords(rows, at);
    _mm256_store_ps(tile.d[b], low_halves(factors));
    _mm256_store_ps(tile.m[b], high_halves(factors));
    unpack_nibbles_32(rows, at + 4, tile.codes + 8 * b);
  }
};

struct Q5_0 {
  static constexpr int kSize = 32, kSub = 32, kBytes = sizeof(BlockQ5_0);
  static constexpr int kMaxCode = 31, kSumLength = 4, kOffset = 16;
  static constexpr bool kMins = false;
  static constexpr int kVectors = 8;

  [[gnu::always_inline]] static void unpack(const RowPointers& rows, int b, GroupTile& tile) noexcept {
    const int64_t at = static_cast<int64_t>(b) * kBytes;
    _mm256_store_ps(tile.d[b], low_halves(load_dwords(rows, at)));
    unpack_five_bits_32(rows, at + 6, load_dwords(rows, at + 2), tile.codes + 8 * b);
  }
};

struct Q5_1 {
  static constexpr int kSize = 32, kSub = 32, kBytes = sizeof(BlockQ5_1);
  static constexpr int kMaxCode = 31, kSumLength = 4, kOffset = 0;
  static constexpr bool kMins = true;
  static constexpr int kVectors = 8;

  [[gnu::always_inline]] static void unpack(const RowPointers& rows, int b, GroupTile& tile) noexcept {
    const int64_t at = static_cast<int64_t>(b) * kBytes;
    const __m256i factors = load_dwords(rows, at);
    _mm256_store_ps(tile.d[b], low_halves(factors));
    _mm256_store_ps(tile.m[b], high_halves(factors));
    unpack_five_bits_32(rows, at + 8, load_dwords(rows, at + 4), tile.codes + 8 * b);
  }
};

struct Q2_K {
  static constexpr int kSize = 256, kSub = 16, kBytes = sizeof(BlockQ2_K);
  static constexpr int kMaxCode = 3, kSumLength = 4, kOffset = 0;
  static constexpr bool kMins = true;

  [[gnu::always_inline]] static void unpack(const RowPointers& rows, GroupTile& tile) noexcept {
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
    const __m256i two_bits = bytes(3);
    for (int unit = 0; unit < 4; ++unit) {  // 16 bytes of qs = 4 x 16 elements
      load_16_bytes(rows, 16 + 16 * unit, raw);
      uint8_t(*codes)[32] = tile.codes + 32 * (unit / 2) + 4 * (unit % 2);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        store(codes[v], _mm256_and_si256(raw[v], two_bits));
        store(codes[v + 8], _mm256_and_si256(_mm256_srli_epi16(raw[v], 2), two_bits));
        store(codes[v + 16], _mm256_and_si256(_mm256_srli_epi16(raw[v], 4), two_bits));
        store(codes[v + 24], _mm256_and_si256(_mm256_srli_epi16(raw[v], 6), two_bits));
      }
    }
  }
};

struct Q3_K {
  static constexpr int kSize = 256, kSub = 16, kBytes = sizeof(BlockQ3_K);
  static constexpr int kMaxCode = 7, kSumLength = 4, kOffset = 4;
  static constexpr bool kMins = false;

  [[gnu::always_inline]] static void unpack(const RowPointers& rows, GroupTile& tile) noexcept {
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
    __m256i third[8];  // [l / 4]: byte l of hmask
    load_16_bytes(rows, 0, third);
    load_16_bytes(rows, 16, third + 4);
#pragma GCC unroll 4
    for (int unit = 0; unit < 4; ++unit) {
      load_16_bytes(rows, 32 + 16 * unit, raw);
      uint8_t(*codes)[32] = tile.codes + 32 * (unit / 2) + 4 * (unit % 2);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const __m256i mask = third[4 * (unit % 2) + v];
        const __m256i bits = unit / 2 == 0 ? mask : _mm256_srli_epi16(mask, 4);  // bit c belongs to part c
        const __m256i two = bytes(3), four = bytes(4);
        store(codes[v], _mm256_or_si256(_mm256_and_si256(raw[v], two),
                                        _mm256_and_si256(_mm256_slli_epi16(bits, 2), four)));
        store(codes[v + 8], _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(raw[v], 2), two),
                                            _mm256_and_si256(_mm256_slli_epi16(bits, 1), four)));
        store(codes[v + 16], _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(raw[v], 4), two),
                                             _mm256_and_si256(bits, four)));
        store(codes[v + 24], _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(raw[v], 6), two),
                                             _mm256_and_si256(_mm256_srli_epi16(bits, 1), four)));
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
  static constexpr bool kMins = true;

  [[gnu::always_inline]] static void unpack(const RowPointers& rows, GroupTile& tile) noexcept {
    unpack_six_bit_pairs(rows, tile);
    for (int part = 0; part < 4; ++part) {  // 32 bytes of qs: low nibbles, then high nibbles
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        __m256i raw[4];
        load_16_bytes(rows, 16 + 32 * part + 16 * half, raw);
        uint8_t(*codes)[32] = tile.codes + 16 * part + 4 * half;
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          store(codes[v], low_nibbles(raw[v]));
          store(codes[v + 8], high_nibbles(raw[v]));
        }
      }
    }
  }
};

struct Q5_K {
  static constexpr int kSize = 256, kSub = 32, kBytes = sizeof(BlockQ5_K);
  static constexpr int kMaxCode = 31, kSumLength = 4, kOffset = 0;
  static constexpr bool kMins = true;

  [[gnu::always_inline]] static void unpack(const RowPointers& rows, GroupTile& tile) noexcept {
    unpack_six_bit_pairs(rows, tile);
    __m256i fifth[8];  // [l / 4]: byte l of qh, shifted so that bits 0 and 1 are those of the current part
    load_16_bytes(rows, 16, fifth);
    load_16_bytes(rows, 32, fifth + 4);
    for (int part = 0; part < 4; ++part) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        __m256i raw[4];
        load_16_bytes(rows, 48 + 32 * part + 16 * half, raw);
        uint8_t(*codes)[32] = tile.codes + 16 * part + 4 * half;
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          __m256i& bits = fifth[4 * half + v];
          const __m256i sixteen = bytes(16);
          store(codes[v],
                _mm256_or_si256(low_nibbles(raw[v]), _mm256_and_si256(_mm256_slli_epi16(bits, 4), sixteen)));
          store(codes[v + 8],
                _mm256_or_si256(high_nibbles(raw[v]), _mm256_and_si256(_mm256_slli_epi16(bits, 3), sixteen)));
          bits = _mm256_srli_epi16(
              bits, 2);  // bits of the neighbour byte come in from the left, never down to 0..1
        }
      }
    }
  }
};

struct Q6_K {
  static constexpr int kSize = 256, kSub = 16, kBytes = sizeof(BlockQ6_K);
  static constexpr int kMaxCode = 63, kSumLength = 2, kOffset = 32;
  static constexpr bool kMins = false;

  [[gnu::always_inline]] static void unpack(const RowPointers& rows, GroupTile& tile) noexcept {
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
    const __m256i two = bytes(0x30);
    for (int unit = 0; unit < 4; ++unit) {  // 16 bytes of qh = 16 elements of each quarter of a half
      const int half = unit / 2, side = unit % 2;
      __m256i high[4], raw[4];
      load_16_bytes(rows, 128 + 16 * unit, high);
      uint8_t(*codes)[32] = tile.codes + 32 * half + 4 * side;
      load_16_bytes(rows, 64 * half + 16 * side, raw);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        store(codes[v],
              _mm256_or_si256(low_nibbles(raw[v]), _mm256_and_si256(_mm256_slli_epi16(high[v], 4), two)));
        store(codes[v + 16], _mm256_or_si256(high_nibbles(raw[v]), _mm256_and_si256(high[v], two)));
      }
      load_16_bytes(rows, 64 * half + 32 + 16 * side, raw);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        store(codes[v + 8],
              _mm256_or_si256(low_nibbles(raw[v]), _mm256_and_si256(_mm256_slli_epi16(high[v], 2), two)));
        store(codes[v + 24],
              _mm256_or_si256(high_nibbles(raw[v]), _mm256_and_si256(_mm256_srli_epi16(high[v], 2), two)));
      }
    }
  }
};

}  // namespace quant_avx2

}  // namespace
}  // namespace gemmule
