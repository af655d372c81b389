// VNNI: how the types of the packed layout (quant/packed.h) become operands, for the two registers of rows of
// a tile: sub-block scales as the multipliers that vpdpwssd wants, and codes as unsigned bytes, k-group by
// k-group. The including level has defined the vocabulary (ops_*.inl).
//
// A *run* is a row of k-groups whose products are added by vpdpbusd before the scale is applied. It begins
// with -offset * (sum of its activations), so its sum is that of signed codes and, as asserted in
// packed_tile_vnni.inl, fits 16 bits: then vpdpwssd with (scale, 0) multiplies by the scale and adds in one
// instruction, where a 32-bit multiplication takes two and an addition.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/packed_formats_avx2.inl"
#include "quant/blocks.h"

namespace gemmule {
namespace {

namespace packed_vnni {

template <int V>
struct Int {};

// f(Int<0>), ..., f(Int<N - 1>): a loop whose counter is a constant, as the counts of shifts have to be.
template <int N, int I = 0, class F>
[[gnu::always_inline]] inline void repeat(F&& f) noexcept {
  if constexpr (I < N) {
    f(Int<I>{});
    repeat<N, I + 1>(f);
  }
}

constexpr int kRows = 8 * kGroups;  // of a register
constexpr int kRegisterBytes = 4 * kRows;

// The rows of a tile, and codes of them: two registers.
struct TileRows {
  Rows half[2];
};
struct Codes {
  Vec v[2];
};
[[gnu::always_inline]] inline Codes load_32(const TileRows& r, int64_t at) noexcept {
  return {{load_32(r.half[0], at), load_32(r.half[1], at)}};
}
[[gnu::always_inline]] inline Codes choose(int mask, const Codes& one, const Codes& other) noexcept {
  return {{choose(mask, one.v[0], other.v[0]), choose(mask, one.v[1], other.v[1])}};
}
[[gnu::always_inline]] inline Codes with_bits(const Codes& base, const Codes& bits, int mask) noexcept {
  return {{with_bits(base.v[0], bits.v[0], mask), with_bits(base.v[1], bits.v[1], mask)}};
}
template <int Bits>
[[gnu::always_inline]] inline Codes moved(const Codes& c) noexcept {
  return {{moved<Bits>(c.v[0]), moved<Bits>(c.v[1])}};
}
[[gnu::always_inline]] inline Codes masked(const Codes& c, int mask) noexcept {
  return {{masked(c.v[0], mask), masked(c.v[1], mask)}};
}
[[gnu::always_inline]] inline Codes flipped(const Codes& c, int mask) noexcept {
  return {{flipped(c.v[0], mask), flipped(c.v[1], mask)}};
}

// The factors of one register of rows and one step of 256 elements.
struct alignas(64) StepScales {
  int32_t scale[16][kRows];  // [sub-block][row]: as 16-bit pairs (scale, 0)
  int32_t fix[4][kRows];     // [pair of sub-blocks][row]: 16-bit pairs of scales, see kFix
  int32_t min[8][kRows];     // [pair of sub-blocks][row]: 16-bit pairs of mins
  float d[8][kRows];         // [block][row]; K types use block 0
  float m[8][kRows];         // as d: m, or -dmin
};

// Codes of a block of 32 with four bits, or with a fifth in vector H: visit(number in order, k-group, codes).
template <class Visit>
[[gnu::always_inline]] inline void visit_nibbles(const TileRows& p, int64_t at, Visit&& visit) noexcept {
  repeat<4>([&]<int V>(Int<V>) noexcept __attribute__((always_inline)) {
    const Codes raw = load_32(p, at + 32 * V);
    visit(Int<2 * V>{}, V, masked(raw, 15));
    visit(Int<2 * V + 1>{}, V + 4, masked(moved<-4>(raw), 15));
  });
}
template <class Visit>
[[gnu::always_inline]] inline void visit_five_bits(const TileRows& p, int64_t at, Visit&& visit) noexcept {
  const Codes fifth = load_32(p, at);
  repeat<4>([&]<int V>(Int<V>) noexcept __attribute__((always_inline)) {
    visit(Int<V>{}, V, with_bits(masked(load_32(p, at + 32 + 32 * V), 15), moved<4 - V>(fifth), 0x10));
  });
  repeat<4>([&]<int V>(Int<V>) noexcept __attribute__((always_inline)) {
    const Codes high = masked(moved<-4>(load_32(p, at + 32 + 32 * V)), 15);
    visit(Int<V + 4>{}, V + 4, with_bits(high, moved<-V>(fifth), 0x10));
  });
}

// What a level has of its own for T tokens of a type, where it leads the kernels for any number.
template <class F, int T>
constexpr PackedMatmulFn kFewest = nullptr;

// Each type:
//   Base      its part of the AVX2 level: sizes, and scales and mins as bytes
//   kUnit     k-groups that codes() hands out together, with their number in order and their place in K
//   kRun      k-groups of a run
//   kOffset   subtracted from every code by the start of a run. kFix: not so in the type, so kOffset * sum of
//             scale * activations is added again
//   kLargest  the largest magnitude of a code minus kOffset

struct Q4_K {
  using Base = packed_avx2::Q4_K;
  static constexpr int kUnit = 8, kRun = 8, kOffset = 8, kLargest = 8;
  static constexpr bool kFix = true;
  template <class Visit>
  [[gnu::always_inline]] static void codes(const TileRows& p, int64_t unit, Visit&& visit) noexcept {
    visit_nibbles(p, 128 + 128 * unit, visit);
  }
};

struct Q5_K {
  using Base = packed_avx2::Q5_K;
  static constexpr int kUnit = 8, kRun = 4, kOffset = 16, kLargest = 16;
  static constexpr bool kFix = true;
  template <class Visit>
  [[gnu::always_inline]] static void codes(const TileRows& p, int64_t unit, Visit&& visit) noexcept {
    visit_five_bits(p, 128 + 160 * unit, visit);
  }
};

struct Q6_K {
  using Base = packed_avx2::Q6_K;
  static constexpr int kUnit = 4, kRun = 2, kOffset = 32, kLargest = 32;
  static constexpr bool kFix = false;
  template <class Visit>
  [[gnu::always_inline]] static void codes(const TileRows& p, int64_t unit, Visit&& visit) noexcept {
    const int64_t at = 128 + 96 * unit;
    const Codes b0 = load_32(p, at), b1 = load_32(p, at + 32), b2 = load_32(p, at + 64);
    visit(Int<0>{}, 0, masked(b0, 63));
    visit(Int<1>{}, 1, masked(b1, 63));
    visit(Int<2>{}, 2, masked(b2, 63));
    const Codes low = choose(3, moved<-6>(b0), moved<-4>(b1));
    visit(Int<3>{}, 3, masked(choose(0x30, moved<-2>(b2), low), 63));
  }
};

struct Q3_K {
  using Base = packed_avx2::Q3_K;
  static constexpr int kUnit = 8, kRun = 4, kOffset = 4, kLargest = 4;
  static constexpr bool kFix = false;
  template <class Visit>
  [[gnu::always_inline]] static void codes(const TileRows& p, int64_t unit, Visit&& visit) noexcept {
    const int64_t at = 96 + 96 * unit;
    const Codes third = load_32(p, at);
    repeat<2>([&]<int S>(Int<S>) noexcept __attribute__((always_inline)) {
      const Codes raw = load_32(p, at + 32 + 32 * S);
      repeat<4>([&]<int V>(Int<V>) noexcept __attribute__((always_inline)) {
        constexpr int kGroup = 4 * S + V;
        const Codes low = masked(moved<-2 * V>(raw), 3);
        visit(Int<kGroup>{}, kGroup, with_bits(low, moved<2 - kGroup>(third), 4));
      });
    });
  }
};

struct Q2_K {
  using Base = packed_avx2::Q2_K;
  static constexpr int kUnit = 4, kRun = 4, kOffset = 0, kLargest = 3;
  static constexpr bool kFix = false;
  template <class Visit>
  [[gnu::always_inline]] static void codes(const TileRows& p, int64_t unit, Visit&& visit) noexcept {
    const Codes raw = load_32(p, 160 + 32 * unit);
    repeat<4>([&]<int V>(Int<V>) noexcept
              __attribute__((always_inline)) { visit(Int<V>{}, V, masked(moved<-2 * V>(raw), 3)); });
  }
};

// Types with blocks of 32: a unit is a block and a run, without a scale inside; `n` is the number of blocks
// of the step.

struct Q8_0 {
  using Base = packed_avx2::Q8_0;
  static constexpr int kUnit = 8, kOffset = 128;
  template <class Visit>
  [[gnu::always_inline]] static void codes(const TileRows& p, int64_t block, int n, Visit&& visit) noexcept {
    repeat<8>([&]<int V>(Int<V>) noexcept __attribute__((always_inline)) {
      visit(Int<V>{}, V, flipped(load_32(p, 16 * n + 256 * block + 32 * V), 0x80));
    });
  }
};

struct Q4_0 {
  using Base = packed_avx2::Q4_0;
  static constexpr int kUnit = 8, kOffset = 8;
  template <class Visit>
  [[gnu::always_inline]] static void codes(const TileRows& p, int64_t block, int n, Visit&& visit) noexcept {
    visit_nibbles(p, 16 * n + 128 * block, visit);
  }
};

struct Q4_1 {
  using Base = packed_avx2::Q4_1;
  static constexpr int kUnit = 8, kOffset = 0;
  template <class Visit>
  [[gnu::always_inline]] static void codes(const TileRows& p, int64_t block, int n, Visit&& visit) noexcept {
    visit_nibbles(p, 32 * n + 128 * block, visit);
  }
};

struct Q5_0 {
  using Base = packed_avx2::Q5_0;
  static constexpr int kUnit = 8, kOffset = 16;
  template <class Visit>
  [[gnu::always_inline]] static void codes(const TileRows& p, int64_t block, int n, Visit&& visit) noexcept {
    visit_five_bits(p, 16 * n + 160 * block, visit);
  }
};

struct Q5_1 {
  using Base = packed_avx2::Q5_1;
  static constexpr int kUnit = 8, kOffset = 0;
  template <class Visit>
  [[gnu::always_inline]] static void codes(const TileRows& p, int64_t block, int n, Visit&& visit) noexcept {
    visit_five_bits(p, 32 * n + 160 * block, visit);
  }
};

// The factors of the groups of one register at one step. `apart` points to their d where these stand before
// all groups of the step.
template <class F>
inline void load_scales(const Rows& r, const Rows& apart, int n_blocks, StepScales& out) noexcept {
  using Base = typename F::Base;
  if constexpr (Base::kSize == 32) {
    for (int b = 0; b < n_blocks; ++b) {
      store_f32(out.d[b], load_halves(r, 16 * b));
      if constexpr (Base::kMins) store_f32(out.m[b], load_halves(r, 16 * (n_blocks + b)));
    }
  } else {
    constexpr int kSubs = 256 / Base::kSub;
    store_f32(out.d[0], load_halves(Base::kFactorsFirst ? apart : r, 0));
    if constexpr (Base::kMins) store_f32(out.m[0], negate(load_halves(r, 16)));
    packed_avx2::SubScales bytes[kGroups];
    for (int g = 0; g < kGroups; ++g) Base::scales(r.group[g], bytes[g]);
    constexpr int64_t kNext = sizeof bytes[0];
    repeat<kSubs / 2>([&]<int I>(Int<I>) noexcept __attribute__((always_inline)) {
      const Vec even = load_bytes<Base::kSignedScales>(bytes[0].scale[2 * I], kNext);
      const Vec odd = load_bytes<Base::kSignedScales>(bytes[0].scale[2 * I + 1], kNext);
      store(out.scale[2 * I], as_pairs(even, zero()));
      store(out.scale[2 * I + 1], as_pairs(odd, zero()));
      if constexpr (F::kFix) {  // times kOffset / 8, see TokenStep::pairs
        const Vec pairs = as_pairs(even, odd);
        store(out.fix[I], F::kOffset == 16 ? moved<1>(pairs) : pairs);
      }
      if constexpr (Base::kMins)
        store(out.min[I], as_pairs(load_bytes<false>(bytes[0].min[2 * I], kNext),
                                   load_bytes<false>(bytes[0].min[2 * I + 1], kNext)));
    });
  }
}

}  // namespace packed_vnni

}  // namespace
}  // namespace gemmule
