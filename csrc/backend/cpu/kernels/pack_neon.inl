// NEON: GGUF blocks of 8 rows to groups of the packed layout (quant/packed.h). 16 bytes of each row are
// transposed to four vectors of 8 rows x 4 bytes; what is left is to move bit fields between vectors, with
// the instructions that shift and insert.
#pragma once
#include <arm_neon.h>

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/formats_neon.inl"
#include "quant/blocks.h"

namespace gemmule {
namespace {

namespace quant_neon {

// Where the 8 rows of a group are now.
struct RowPointers {
  const uint8_t* p[8];
};
// 8 rows x 4 bytes.
struct Vector {
  uint8x16_t half[2];

  template <class Fn>
  static Vector join(const Vector& a, const Vector& b, Fn fn) noexcept {
    return {{fn(a.half[0], b.half[0]), fn(a.half[1], b.half[1])}};
  }
  void store(uint8_t* to) const noexcept {
    vst1q_u8(to, half[0]);
    vst1q_u8(to + 16, half[1]);
  }
};

// 16 bytes of each row at `offset`, transposed: out[i] = bytes 4 i .. 4 i + 3 of the 8 rows.
inline void load_16_bytes(const RowPointers& rows, int64_t offset, Vector* out) noexcept {
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const auto row = [&](int r) noexcept {
      return vreinterpretq_u32_u8(vld1q_u8(rows.p[4 * h + r] + offset));
    };
    const uint32x4_t a = row(0), b = row(1), c = row(2), d = row(3);
    const uint32x4_t even_low = vzip1q_u32(a, c), odd_low = vzip1q_u32(b, d);
    const uint32x4_t even_high = vzip2q_u32(a, c), odd_high = vzip2q_u32(b, d);
    out[0].half[h] = vreinterpretq_u8_u32(vzip1q_u32(even_low, odd_low));
    out[1].half[h] = vreinterpretq_u8_u32(vzip2q_u32(even_low, odd_low));
    out[2].half[h] = vreinterpretq_u8_u32(vzip1q_u32(even_high, odd_high));
    out[3].half[h] = vreinterpretq_u8_u32(vzip2q_u32(even_high, odd_high));
  }
}
// 16 bytes of each row, byte by byte: out[i][r] = byte i of row r.
inline void load_byte_planes(const RowPointers& rows, int64_t offset, uint8_t (&out)[16][8]) noexcept {
  Vector v[4];
  load_16_bytes(rows, offset, v);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const uint8x16_t even = vuzp1q_u8(v[i].half[0], v[i].half[1]),
                     odd = vuzp2q_u8(v[i].half[0], v[i].half[1]);
    vst1q_u8(out[4 * i], vuzp1q_u8(even, odd));
    vst1q_u8(out[4 * i + 2], vuzp2q_u8(even, odd));
  }
}
// The half floats at `offset` of each row.
inline void copy_halves(const RowPointers& rows, int64_t offset, uint8_t* to) noexcept {
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r) __builtin_memcpy(to + 2 * r, rows.p[r] + offset, 2);
}

// Exchanges two bits of the index of each bit of a 32-bit field.
template <int kHigh, int kLow>
inline uint32x4_t swap_index_bits(uint32x4_t v) noexcept {
  constexpr uint32_t kWithLow[5] = {0xaaaaaaaau, 0xccccccccu, 0xf0f0f0f0u, 0xff00ff00u, 0xffff0000u};
  constexpr int kShift = (1 << kHigh) - (1 << kLow);
  const uint32x4_t mask = vdupq_n_u32(kWithLow[kLow] & ~kWithLow[kHigh]);
  const uint32x4_t changed = vandq_u32(veorq_u32(vshrq_n_u32(v, kShift), v), mask);
  return veorq_u32(v, veorq_u32(changed, vshlq_n_u32(changed, kShift)));
}
// The fifth bits of a block of 32: bit 4 g + i of the field of row r becomes bit g of byte 4 r + i.
inline void pack_fifth_field(const RowPointers& rows, int64_t offset, uint8_t* to) noexcept {
  uint32_t field[8];
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r) __builtin_memcpy(&field[r], rows.p[r] + offset, 4);
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    // The index of a bit, from the highest bit on: g2 g1 g0 i1 i0; wanted: i1 i0 g2 g1 g0.
    uint32x4_t v = vld1q_u32(field + 4 * h);
    v = swap_index_bits<4, 1>(v);
    v = swap_index_bits<3, 0>(v);
    v = swap_index_bits<2, 1>(v);
    v = swap_index_bits<1, 0>(v);
    vst1q_u8(to + 16 * h, vreinterpretq_u8_u32(v));
  }
}

// Exchanges bit fields of a and b: those of b at `mask` with those of a kShift bits above.
template <int kShift>
inline void exchange_fields(uint8x16_t& a, uint8x16_t& b, uint8_t mask) noexcept {
  const uint8x16_t low = vdupq_n_u8(mask);
  const uint8x16_t changed = vandq_u8(veorq_u8(vshrq_n_u8(a, kShift), b), low);
  b = veorq_u8(b, changed);
  a = veorq_u8(a, vshlq_n_u8(changed, kShift));
}
// 32 bytes of each row at `offset` hold a bit per element in each of eight bit positions: bit j of byte 4 g +
// i becomes bit g of byte i of out[j].
inline void transpose_bits(const RowPointers& rows, int64_t offset, Vector (&v)[8]) noexcept {
  load_16_bytes(rows, offset, v);
  load_16_bytes(rows, offset + 16, v + 4);
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) exchange_fields<4>(v[i].half[h], v[i + 4].half[h], 0x0f);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int a = 4 * (i / 2) + i % 2;
      exchange_fields<2>(v[a].half[h], v[a + 2].half[h], 0x33);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) exchange_fields<1>(v[2 * i].half[h], v[2 * i + 1].half[h], 0x55);
  }
}
// 16 bytes of each row at `offset` hold four two-bit fields: field c of byte 4 g + i becomes field g of byte
// i of out[c].
inline void transpose_two_bits(const RowPointers& rows, int64_t offset, Vector (&v)[4]) noexcept {
  load_16_bytes(rows, offset, v);
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    exchange_fields<4>(v[0].half[h], v[2].half[h], 0x0f);
    exchange_fields<4>(v[1].half[h], v[3].half[h], 0x0f);
    exchange_fields<2>(v[0].half[h], v[1].half[h], 0x33);
    exchange_fields<2>(v[2].half[h], v[3].half[h], 0x33);
  }
}

// pack: one step of 8 rows, which point to its first block, as one group; d goes to `apart` where F keeps it
// apart.
template <class F>
struct Packer;

// Blocks of 32 other than Q8_0: the nibbles of GGUF's 16 bytes lie as the group wants them.
template <class F, bool kFifth>
struct NibblePacker {
  static void pack(const RowPointers& start, int n_blocks, uint8_t*, uint8_t* group) noexcept {
    constexpr int kHead = F::kMins ? 4 : 2;
    RowPointers rows = start;
    uint8_t* to = group + 8 * kHead * n_blocks;
    for (int j = 0; j < n_blocks; ++j) {
      copy_halves(rows, 0, group + 16 * j);
      if constexpr (F::kMins) copy_halves(rows, 2, group + 16 * (n_blocks + j));
      if constexpr (kFifth) {
        pack_fifth_field(rows, kHead, to);
        to += 32;
      }
      Vector v[4];
      load_16_bytes(rows, kHead + (kFifth ? 4 : 0), v);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) v[i].store(to + 32 * i);
      to += 128;
      for (int r = 0; r < 8; ++r) rows.p[r] += F::kBytes;
    }
  }
};
template <>
struct Packer<Q4_0> : NibblePacker<Q4_0, false> {};
template <>
struct Packer<Q4_1> : NibblePacker<Q4_1, false> {};
template <>
struct Packer<Q5_0> : NibblePacker<Q5_0, true> {};
template <>
struct Packer<Q5_1> : NibblePacker<Q5_1, true> {};

template <>
struct Packer<Q8_0> {
  static void pack(const RowPointers& start, int n_blocks, uint8_t*, uint8_t* group) noexcept {
    RowPointers rows = start;
    uint8_t* to = group + 16 * n_blocks;
    for (int j = 0; j < n_blocks; ++j, to += 256) {
      copy_halves(rows, 0, group + 16 * j);
      Vector v[8];
      load_16_bytes(rows, 2, v);
      load_16_bytes(rows, 18, v + 4);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) v[i].store(to + 32 * i);
      for (int r = 0; r < 8; ++r) rows.p[r] += Q8_0::kBytes;
    }
  }
};

// The first 16 bytes of Q4_K and Q5_K: d, dmin, and 12 bytes of scales and mins of six bits.
inline void pack_six_bit_factors(const RowPointers& rows, uint8_t* group) noexcept {
  copy_halves(rows, 0, group);
  copy_halves(rows, 2, group + 16);
  uint8_t planes[16][8];  // [byte of the block][row]
  load_byte_planes(rows, 0, planes);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const uint8x16_t scales = vld1q_u8(planes[4 + 2 * i]), mins = vld1q_u8(planes[8 + 2 * i]);
    vst1q_u8(group + 32 + 16 * i, vsliq_n_u8(scales, mins, 4));
    vst1q_u8(group + 64 + 16 * i, vld1q_u8(planes[12 + 2 * i]));
    // Bits 4 and 5 belong to sub-block j, 6 and 7 to j + 4.
    const uint8x16_t here = vsliq_n_u8(masked(vshrq_n_u8(scales, 4), 3), vshrq_n_u8(mins, 4), 2);
    const uint8x16_t later = vsliq_n_u8(vshrq_n_u8(scales, 6), vshrq_n_u8(mins, 6), 2);
    vst1q_u8(group + 96 + 16 * i, vsliq_n_u8(here, later, 4));
  }
}
// 64 nibbles of each row in GGUF's order, as two sub-blocks of 32: low nibbles, then high nibbles.
inline void pack_nibble_pair(const RowPointers& rows, int64_t offset, uint8_t* low, uint8_t* high) noexcept {
  Vector v[8];
  load_16_bytes(rows, offset, v);
  load_16_bytes(rows, offset + 16, v + 4);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const auto lows = [](uint8x16_t a, uint8x16_t b) noexcept { return vsliq_n_u8(a, b, 4); };
    const auto highs = [](uint8x16_t a, uint8x16_t b) noexcept { return vsriq_n_u8(b, a, 4); };
    Vector::join(v[i], v[i + 4], lows).store(low + 32 * i);
    Vector::join(v[i], v[i + 4], highs).store(high + 32 * i);
  }
}
template <>
struct Packer<Q4_K> {
  static void pack(const RowPointers& rows, int, uint8_t*, uint8_t* group) noexcept {
    pack_six_bit_factors(rows, group);
    uint8_t* to = group + Q4_K::kHead;
    for (int c = 0; c < 4; ++c, to += 256)
      pack_nibble_pair(rows, offsetof(BlockQ4_K, qs) + 32 * c, to, to + 128);
  }
};
template <>
struct Packer<Q5_K> {
  static void pack(const RowPointers& rows, int, uint8_t*, uint8_t* group) noexcept {
    pack_six_bit_factors(rows, group);
    uint8_t* to = group + Q5_K::kHead;
    Vector fifth[8];  // [sub-block]
    transpose_bits(rows, offsetof(BlockQ5_K, qh), fifth);
    for (int c = 0; c < 4; ++c, to += 320) {
      fifth[2 * c].store(to);
      fifth[2 * c + 1].store(to + 160);
      pack_nibble_pair(rows, offsetof(BlockQ5_K, qs) + 32 * c, to + 32, to + 192);
    }
  }
};

template <>
struct Packer<Q6_K> {
  static void pack(const RowPointers& rows, int, uint8_t* apart, uint8_t* group) noexcept {
    copy_halves(rows, offsetof(BlockQ6_K, d), apart);
    uint8_t planes[16][8];
    load_byte_planes(rows, offsetof(BlockQ6_K, scales), planes);
    __builtin_memcpy(group, planes, sizeof planes);
    for (int part = 0; part < 4; ++part) {  // (half of 128 elements, 16 of the 32 elements of each quarter)
      const int half = part / 2, side = part % 2;
      Vector low[2][4], high[4];
      load_16_bytes(rows, offsetof(BlockQ6_K, ql) + 64 * half + 16 * side, low[0]);
      load_16_bytes(rows, offsetof(BlockQ6_K, ql) + 64 * half + 32 + 16 * side, low[1]);
      load_16_bytes(rows, offsetof(BlockQ6_K, qh) + 32 * half + 16 * side, high);
      unroll<0, 4>([&](auto index) {
        constexpr int quarter = decltype(index)::value;
        uint8_t* to = group + Q6_K::kHead + 96 * (8 * half + 2 * quarter + side);
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          uint8x16_t code[4];
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) {
            const uint8x16_t four = right<quarter / 2 * 4>(low[quarter % 2][v].half[h]);
            code[v] = masked(vsliq_n_u8(four, right<2 * quarter>(high[v].half[h]), 4), 63);
          }
          vst1q_u8(to + 16 * h, vsliq_n_u8(code[0], code[3], 6));
          vst1q_u8(to + 16 * h + 32, vsliq_n_u8(code[1], vshrq_n_u8(code[3], 2), 6));
          vst1q_u8(to + 16 * h + 64, vsliq_n_u8(code[2], vshrq_n_u8(code[3], 4), 6));
        }
      });
    }
  }
};

// The two-bit fields of Q2_K and Q3_K: sub-block 8 half + 2 c + side is field c of 16 of GGUF's 64 bytes.
// `place(s)`: where sub-block s goes.
template <class Place>
inline void pack_two_bits(const RowPointers& rows, int64_t offset, Place&& place) noexcept {
  for (int part = 0; part < 4; ++part) {
    Vector v[4];
    transpose_two_bits(rows, offset + 16 * part, v);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) v[c].store(place(8 * (part / 2) + 2 * c + part % 2));
  }
}
template <>
struct Packer<Q3_K> {
  static void pack(const RowPointers& rows, int, uint8_t* apart, uint8_t* group) noexcept {
    copy_halves(rows, offsetof(BlockQ3_K, d), apart);
    uint8_t planes[16][8];  // two bytes of qs, 12 of scales, d
    load_byte_planes(rows, offsetof(BlockQ3_K, scales) - 2, planes);
    __builtin_memcpy(group, planes[2], 96);  // as they are: lo[8][8], hi[4][8]
    Vector third[8];                         // [pair of sub-blocks]
    transpose_bits(rows, offsetof(BlockQ3_K, hmask), third);
    uint8_t* codes = group + Q3_K::kHead;
    for (int pair = 0; pair < 8; ++pair) third[pair].store(codes + 96 * pair);
    pack_two_bits(rows, offsetof(BlockQ3_K, qs),
                  [&](int s) noexcept { return codes + 96 * (s / 2) + 32 + 32 * (s % 2); });
  }
};
template <>
struct Packer<Q2_K> {
  static void pack(const RowPointers& rows, int, uint8_t*, uint8_t* group) noexcept {
    copy_halves(rows, offsetof(BlockQ2_K, d), group);
    copy_halves(rows, offsetof(BlockQ2_K, dmin), group + 16);
    uint8_t planes[16][8];
    load_byte_planes(rows, offsetof(BlockQ2_K, scales), planes);
    __builtin_memcpy(group + 32, planes, sizeof planes);
    pack_two_bits(rows, offsetof(BlockQ2_K, qs),
                  [&](int s) noexcept { return group + Q2_K::kHead + 32 * s; });
  }
};

// A whole panel: PackFn of kernel_table.h.
template <class F>
void pack_panel(const uint8_t* rows, int64_t n_rows, int64_t k, uint8_t* panel) noexcept {
  const int64_t row_bytes = k / F::kSize * F::kBytes;
  uint8_t* to = panel;
  for (int64_t at = 0; at < k; at += 256) {
    const int n_blocks = k - at < 256 ? static_cast<int>((k - at) / 32) : 8;
    const int64_t group_bytes = 8 * F::kBytes * (F::kSize == 256 ? 1 : n_blocks) - (F::kApart ? 16 : 0);
    uint8_t* apart = to;
    if constexpr (F::kApart) to += 2 * n_rows;
    for (int64_t r = 0; r < n_rows; r += 8, apart += 16, to += group_bytes) {
      RowPointers group;
      for (int i = 0; i < 8; ++i) group.p[i] = rows + (r + i) * row_bytes + at / F::kSize * F::kBytes;
      Packer<F>::pack(group, n_blocks, apart, to);
    }
  }
}

}  // namespace quant_neon

}  // namespace
}  // namespace gemmule
