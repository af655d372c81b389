// Where each field of a GGUF block lies in the packed layout (packed.h): the `move` of a format names pairs
// of fields, once for both directions, and the Mover it is given copies them into the panel or out of it.
// Shared with the kernel objects, so it includes nothing else and everything is in an unnamed namespace.
#pragma once

#include <cstdint>

#include "quant/blocks.h"

namespace gemmule {
namespace {
namespace packed_bits {

constexpr int64_t kPanel = 64, kGroup = 8, kStep = 256;  // rows, rows, elements

// Joins a field into `to`, which was zero there. The mask is that of a byte, after the shift: a word moves
// the fields of four neighbouring bytes.
template <class Word>
inline void join(const uint8_t* from, int from_bit, uint8_t* to, int to_bit, uint32_t mask) noexcept {
  Word source, target;
  __builtin_memcpy(&source, from, sizeof source);
  __builtin_memcpy(&target, to, sizeof target);
  const Word field = static_cast<Word>((source >> from_bit) & (mask * 0x01010101u));
  target = static_cast<Word>(target | (field << to_bit));
  __builtin_memcpy(to, &target, sizeof target);
}

// The places in a panel of one block of one row.
template <class Byte>
struct Place {
  Byte* d;      // the row's first f16 factor
  Byte* m;      // the row's second f16 factor, in formats with two
  Byte* body;   // what follows the factors, of all 8 rows of the group
  int64_t row;  // in the group
};

// One block of one row on its way: Mover<const uint8_t, uint8_t> packs, Mover<uint8_t, const uint8_t>
// unpacks. `at` is a byte of the block, `to` a byte of the body where an array [8] (byte) or a vector (bytes,
// bit) begins; `bit` and `to_bit` are the lowest bits of the field in its byte.
template <class GgufByte, class PackedByte>
struct Mover {
  GgufByte* gguf;
  Place<PackedByte> packed;

  void d(int at) const noexcept { copy<uint16_t>(gguf + at, 0, packed.d, 0, 255); }
  void m(int at) const noexcept { copy<uint16_t>(gguf + at, 0, packed.m, 0, 255); }
  void byte(int at, int bit, int to, int to_bit, uint32_t mask) const noexcept {
    copy<uint8_t>(gguf + at, bit, packed.body + to + packed.row, to_bit, mask);
  }
  void bytes(int at, int bit, int to, int to_bit, uint32_t mask) const noexcept {
    copy<uint32_t>(gguf + at, bit, packed.body + to + 4 * packed.row, to_bit, mask);
  }
  // One bit, of element i (0..3) of the vector's k-groups.
  void bit(int at, int bit, int to, int i, int to_bit) const noexcept {
    copy<uint8_t>(gguf + at, bit, packed.body + to + 4 * packed.row + i, to_bit, 1);
  }

 private:
  template <class Word>
  static void copy(const uint8_t* g, int bit, uint8_t* p, int to_bit, uint32_t mask) noexcept {
    join<Word>(g, bit, p, to_bit, mask);
  }
  template <class Word>
  static void copy(uint8_t* g, int bit, const uint8_t* p, int to_bit, uint32_t mask) noexcept {
    join<Word>(p, to_bit, g, bit, mask);
  }
};

// A format: its block, how many f16 factors a block has, and whether the factors of all groups of a step come
// before its groups (kStepHead) instead of before each group.
template <class BlockType, int kSizeOf, int kFactorsOf, bool kStepHeadOf = false>
struct Shape {
  using Block = BlockType;
  static constexpr int64_t kSize = kSizeOf, kBytes = sizeof(Block), kFactors = kFactorsOf;
  static constexpr bool kStepHead = kStepHeadOf;
};

struct Q8_0 : Shape<BlockQ8_0, 32, 1> {
  template <class M>
  static void move(const M& b) noexcept {
    b.d(__builtin_offsetof(Block, d));
    for (int v = 0; v < 8; ++v) b.bytes(__builtin_offsetof(Block, q) + 4 * v, 0, 32 * v, 0, 255);
  }
};

// The 16 bytes of nibbles of a block of 32 as they are: byte i holds the elements i and i + 16.
template <class M>
inline void move_nibbles(const M& b, int qs, int to) noexcept {
  for (int v = 0; v < 4; ++v) b.bytes(qs + 4 * v, 0, to + 32 * v, 0, 255);
}
// The 32-bit field of fifth bits.
template <class M>
inline void move_fifth_bits(const M& b, int qh) noexcept {
  for (int e = 0; e < 32; ++e) b.bit(qh + e / 8, e % 8, 0, e % 4, e / 4);
}

struct Q4_0 : Shape<BlockQ4_0, 32, 1> {
  template <class M>
  static void move(const M& b) noexcept {
    b.d(__builtin_offsetof(Block, d));
    move_nibbles(b, __builtin_offsetof(Block, qs), 0);
  }
};
struct Q4_1 : Shape<BlockQ4_1, 32, 2> {
  template <class M>
  static void move(const M& b) noexcept {
    b.d(__builtin_offsetof(Block, d));
    b.m(__builtin_offsetof(Block, m));
    move_nibbles(b, __builtin_offsetof(Block, qs), 0);
  }
};
struct Q5_0 : Shape<BlockQ5_0, 32, 1> {
  template <class M>
  static void move(const M& b) noexcept {
    b.d(__builtin_offsetof(Block, d));
    move_fifth_bits(b, __builtin_offsetof(Block, qh));
    move_nibbles(b, __builtin_offsetof(Block, qs), 32);
  }
};
struct Q5_1 : Shape<BlockQ5_1, 32, 2> {
  template <class M>
  static void move(const M& b) noexcept {
    b.d(__builtin_offsetof(Block, d));
    b.m(__builtin_offsetof(Block, m));
    move_fifth_bits(b, __builtin_offsetof(Block, qh));
    move_nibbles(b, __builtin_offsetof(Block, qs), 32);
  }
};

// The 8 pairs of 6-bit scales and mins of Q4_K and Q5_K, 96 bytes of the body.
template <class M>
inline void move_scale_pairs(const M& b, int at) noexcept {
  for (int j = 0; j < 4; ++j) {
    const int hi = 64 + 8 * j;
    b.byte(at + j, 0, 8 * j, 0, 15);
    b.byte(at + 4 + j, 0, 8 * j, 4, 15);
    b.byte(at + 8 + j, 0, 32 + 8 * j, 0, 255);
    b.byte(at + j, 4, hi, 0, 3);
    b.byte(at + 4 + j, 4, hi, 2, 3);
    b.byte(at + j, 6, hi, 4, 3);
    b.byte(at + 4 + j, 6, hi, 6, 3);
  }
}
// The nibbles of sub-block j: one half of each of 32 bytes.
template <class M>
inline void move_half_nibbles(const M& b, int qs, int j, int to) noexcept {
  const int at = qs + 32 * (j / 2), bit = 4 * (j % 2);
  for (int v = 0; v < 4; ++v) {
    b.bytes(at + 4 * v, bit, to + 32 * v, 0, 15);
    b.bytes(at + 16 + 4 * v, bit, to + 32 * v, 4, 15);
  }
}

struct Q4_K : Shape<BlockQ4_K, 256, 2> {
  template <class M>
  static void move(const M& b) noexcept {
    b.d(__builtin_offsetof(Block, d));
    b.m(__builtin_offsetof(Block, dmin));
    move_scale_pairs(b, __builtin_offsetof(Block, scales));
    for (int j = 0; j < 8; ++j) move_half_nibbles(b, __builtin_offsetof(Block, qs), j, 96 + 128 * j);
  }
};
struct Q5_K : Shape<BlockQ5_K, 256, 2> {
  template <class M>
  static void move(const M& b) noexcept {
    b.d(__builtin_offsetof(Block, d));
    b.m(__builtin_offsetof(Block, dmin));
    move_scale_pairs(b, __builtin_offsetof(Block, scales));
    for (int j = 0; j < 8; ++j) {
      const int to = 96 + 160 * j;
      for (int g = 0; g < 8; ++g) b.bytes(__builtin_offsetof(Block, qh) + 4 * g, j, to, g, 1);
      move_half_nibbles(b, __builtin_offsetof(Block, qs), j, to + 32);
    }
  }
};

struct Q6_K : Shape<BlockQ6_K, 256, 1, true> {
  static constexpr int kLow = __builtin_offsetof(Block, ql), kHigh = __builtin_offsetof(Block, qh);
  template <class M>
  static void move(const M& b) noexcept {
    b.d(__builtin_offsetof(Block, d));
    for (int s = 0; s < 16; ++s) b.byte(__builtin_offsetof(Block, scales) + s, 0, 8 * s, 0, 255);
    for (int s = 0; s < 16; ++s) {
      const int half = s / 8, quarter = s / 2 % 4, l = 16 * (s % 2), to = 128 + 96 * s;
      const int low = kLow + 64 * half + 32 * (quarter % 2) + l;
      const int high = kHigh + 32 * half + l;
      const int low_bit = 4 * (quarter / 2), high_bit = 2 * quarter;
      for (int v = 0; v < 3; ++v) {
        b.bytes(low + 4 * v, low_bit, to + 32 * v, 0, 15);
        b.bytes(high + 4 * v, high_bit, to + 32 * v, 4, 3);
      }
      b.bytes(low + 12, low_bit, to, 6, 3);
      b.bytes(low + 12, low_bit + 2, to + 32, 6, 3);
      b.bytes(high + 12, high_bit, to + 64, 6, 3);
    }
  }
};

// The two bits of the 4 k-groups of sub-block s of 16: one field in each of 16 bytes.
template <class M>
inline void move_two_bits(const M& b, int qs, int s, int to) noexcept {
  const int at = qs + 32 * (s / 8) + 16 * (s % 2), bit = 2 * (s / 2 % 4);
  for (int v = 0; v < 4; ++v) b.bytes(at + 4 * v, bit, to, 2 * v, 3);
}

struct Q3_K : Shape<BlockQ3_K, 256, 1, true> {
  template <class M>
  static void move(const M& b) noexcept {
    b.d(__builtin_offsetof(Block, d));
    for (int j = 0; j < 12; ++j) b.byte(__builtin_offsetof(Block, scales) + j, 0, 8 * j, 0, 255);
    for (int p = 0; p < 8; ++p) {
      const int to = 96 + 96 * p;
      for (int g = 0; g < 8; ++g) b.bytes(__builtin_offsetof(Block, hmask) + 4 * g, p, to, g, 1);
      for (int s = 0; s < 2; ++s)
        move_two_bits(b, __builtin_offsetof(Block, qs), 2 * p + s, to + 32 + 32 * s);
    }
  }
};
struct Q2_K : Shape<BlockQ2_K, 256, 2> {
  template <class M>
  static void move(const M& b) noexcept {
    b.d(__builtin_offsetof(Block, d));
    b.m(__builtin_offsetof(Block, dmin));
    for (int s = 0; s < 16; ++s) b.byte(__builtin_offsetof(Block, scales) + s, 0, 8 * s, 0, 255);
    for (int s = 0; s < 16; ++s) move_two_bits(b, __builtin_offsetof(Block, qs), s, 128 + 32 * s);
  }
};

// Block `block` of row `row` of a panel of n_rows rows of k elements.
template <class F, class Byte>
inline Place<Byte> place(Byte* panel, int64_t n_rows, int64_t k, int64_t row, int64_t block) noexcept {
  constexpr int64_t kPerStep = kStep / F::kSize;
  const int64_t first = block / kPerStep * kPerStep, b = block - first, rest = k / F::kSize - first;
  const int64_t n = rest < kPerStep ? rest : kPerStep;  // blocks of a row in this step
  const int64_t group = row / kGroup, r = row % kGroup;
  Byte* step = panel + first * n_rows * F::kBytes;
  if constexpr (F::kStepHead) {
    constexpr int64_t kBody = kGroup * (F::kBytes - 2);
    return {step + 2 * row, nullptr, step + 2 * n_rows + group * kBody, r};
  } else {
    constexpr int64_t kFactor = 2 * kGroup, kBody = kGroup * (F::kBytes - 2 * F::kFactors);
    Byte* d = step + group * n * kGroup * F::kBytes;
    Byte* m = d + n * kFactor;
    return {d + b * kFactor + 2 * r, m + b * kFactor + 2 * r, d + n * kFactor * F::kFactors + b * kBody, r};
  }
}

// n_rows GGUF rows of k elements to a panel, and back. Both hold n_rows * k / kSize * kBytes bytes.
template <class F>
inline void pack_panel(const uint8_t* rows, int64_t n_rows, int64_t k, uint8_t* panel) noexcept {
  const int64_t n = k / F::kSize;
  __builtin_memset(panel, 0, static_cast<uint64_t>(n_rows * n * F::kBytes));
  for (int64_t row = 0; row < n_rows; ++row)
    for (int64_t b = 0; b < n; ++b)
      F::move(Mover<const uint8_t, uint8_t>{rows + (row * n + b) * F::kBytes,
                                            place<F>(panel, n_rows, k, row, b)});
}
// Block `block` of row `row` of a panel as GGUF has it.
template <class F>
inline void unpack_block(const uint8_t* panel, int64_t n_rows, int64_t k, int64_t row, int64_t block,
                         uint8_t* to) noexcept {
  __builtin_memset(to, 0, static_cast<uint64_t>(F::kBytes));
  F::move(Mover<uint8_t, const uint8_t>{to, place<F>(panel, n_rows, k, row, block)});
}

}  // namespace packed_bits
}  // namespace
}  // namespace gemmule
