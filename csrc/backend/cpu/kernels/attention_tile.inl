// The two products of attention on small tiles: scores of some query rows against a tile of keys, and the
// weighted sum of a tile of values. Keys and values come through a source, either widened to f32 beforehand,
// in the orders in which the tiles read them, or straight from the cache:
//   keys    f32 [pairs of keys][padded(dim) / 8][2][8]   both keys of a pair side by side, one register of 16
//   lanes values  f32 [positions][32]                          32 dims of every position
// Sums are those of the contract (attention.inl): a score has 8 lanes, an output is one chain over positions.
#pragma once

#include "backend/cpu/kernel_table.h"
#include "quant/blocks.h"

namespace gemmule {
namespace {

inline constexpr int64_t kScoreStride =
    kAttendChunk + 8;                    // not a power of two: rows spread over the cache sets
inline constexpr int64_t kPanel = 32;    // dims of a tile of values
inline constexpr int64_t kRowGroup = 6;  // most rows of one micro-tile

// Key pairs beside kRows rows, so that the sums stay in registers.
template <int kRows>
inline constexpr int kPairs = kWideSums / kRows >= 4   ? 4
                              : kWideSums / kRows >= 2 ? 2
                                                       : 1;
// Runs of 16 dims beside kRows rows: at most what a panel has, or whatever the cache has.
template <int kRows>
inline constexpr int kPanelWides = 2 * kRows <= kWideSums ? 2 : 1;
template <int kRows>
inline constexpr int kSlotWides = kRows <= 2 && kWideSums >= 24 ? 8
                                  : kWideSums / kRows >= 4      ? 4
                                                                : kPanelWides<kRows>;

// Rows of a power of two would all lie in the same few sets of the first cache.
inline int64_t padded(int64_t dim) noexcept { return dim + 16; }

// Numbers [d, d + 8) of both keys of a pair; those of kRun dims have one scale.
struct NoScale {};
struct TileKeys {
  static constexpr int64_t kRun = 8;
  const float* at;
  int64_t stride;  // of a pair
  NoScale scale(int64_t, int64_t) const noexcept { return {}; }
  Wide get(NoScale, int64_t pair, int64_t d) const noexcept { return wide_load(at + pair * stride + 2 * d); }
  TileKeys from(int64_t pair) const noexcept { return {at + pair * stride, stride}; }
};
// row: from one key to the next. partner: from the first key of a pair to the second, 0 for a key without
// one.
template <class Kv>
struct SlotKeys {
  static constexpr int64_t kRun = 8;
  const Kv* at;
  int64_t row, partner;
  NoScale scale(int64_t, int64_t) const noexcept { return {}; }
  Wide get(NoScale, int64_t pair, int64_t d) const noexcept {
    const Kv* key = at + 2 * pair * row + d;
    return wide_widen(key, key + partner);
  }
  SlotKeys from(int64_t pair) const noexcept { return {at + 2 * pair * row, row, partner}; }
};
template <>
struct SlotKeys<BlockQ8_0> {
  static constexpr int64_t kRun = 32;
  const BlockQ8_0* at;
  int64_t row, partner;  // in blocks
  Wide scale(int64_t pair, int64_t d) const noexcept {
    const BlockQ8_0* block = at + 2 * pair * row + d / 32;
    return wide_scales(Half{block->d}, Half{block[partner].d});
  }
  Wide get(Wide scale, int64_t pair, int64_t d) const noexcept {
    const BlockQ8_0* block = at + 2 * pair * row + d / 32;
    return wide_mul(scale, wide_widen(block->q + d % 32, block[partner].q + d % 32));
  }
  SlotKeys from(int64_t pair) const noexcept { return {at + 2 * pair * row, row, partner}; }
};

// 16 numbers of a position.
struct PanelValues {
  const float* at;
  Wide get(int64_t position, int w) const noexcept { return wide_load(at + position * kPanel + 16 * w); }
  PanelValues from(int64_t position, int64_t d) const noexcept { return {at + position * kPanel + d}; }
};
template <class Kv>
struct SlotValues {
  const Kv* at;
  int64_t row;  // from one position to the next
  Wide get(int64_t position, int w) const noexcept { return wide_widen(at + position * row + 16 * w); }
  SlotValues from(int64_t position, int64_t d) const noexcept { return {at + position * row + d, row}; }
};
template <>
struct SlotValues<BlockQ8_0> {
  const BlockQ8_0* at;
  int64_t row;       // in blocks
  int64_t half = 0;  // the number of a block at which the first 16 begin: 16 only where no others follow
  Wide get(int64_t position, int w) const noexcept {
    const BlockQ8_0& block = at[position * row + w / 2];
    return wide_mul(wide_scales(Half{block.d}, Half{block.d}), wide_widen(block.q + half + w % 2 * 16));
  }
  SlotValues from(int64_t position, int64_t d) const noexcept {
    return {at + position * row + d / 32, row, d % 32};
  }
};

// out[i] = sum8(a[i]), eight at a time where possible.
template <int kCount>
inline void sum_lanes(const F8 (&a)[kCount], float* out) noexcept {
  constexpr int kEights = kCount / 8 * 8, kFours = kCount / 4 * 4;
#pragma GCC unroll 8
  for (int i = 0; i < kEights; i += 8) store8(out + i, sum8_of_8(a + i));
  if constexpr (kFours > kEights) sum8_of_4(a + kEights, out + kEights);
#pragma GCC unroll 4
  for (int i = kFours; i < kCount; ++i) out[i] = sum8(a[i]);
}

// s[r * kScoreStride + j] = q[r] . key j for kRows rows and 2 * kWides keys.
template <int kRows, int kWides, class Keys>
inline void score_tile(const float* const* q, const Keys& keys, int64_t dim, float* s) noexcept {
  const float* row[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) row[r] = q[r];
  Wide acc[kRows][kWides];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int w = 0; w < kWides; ++w) acc[r][w] = wide_zero();
  }
  for (int64_t run = 0; run < dim; run += Keys::kRun) {
    decltype(keys.scale(0, 0)) scale[kWides];
#pragma GCC unroll 8
    for (int w = 0; w < kWides; ++w) scale[w] = keys.scale(w, run);
#pragma GCC unroll 4
    for (int64_t d = run; d < run + Keys::kRun; d += 8) {
      Wide key[kWides];
#pragma GCC unroll 8
      for (int w = 0; w < kWides; ++w) key[w] = keys.get(scale[w], w, d);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Wide a = wide_twice(row[r] + d);
#pragma GCC unroll 8
        for (int w = 0; w < kWides; ++w) acc[r][w] = wide_fma(a, key[w], acc[r][w]);
      }
    }
  }
  F8 lanes[kRows * kWides * 2];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int w = 0; w < kWides; ++w) {
      lanes[2 * (r * kWides + w)] = low8(acc[r][w]);
      lanes[2 * (r * kWides + w) + 1] = high8(acc[r][w]);
    }
  }
  float total[kRows * kWides * 2];
  sum_lanes(lanes, total);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) __builtin_memcpy(s + r * kScoreStride, total + r * kWides * 2, 8 * kWides);
}

// The same for n pairs of keys.
template <int kRows, class Keys>
inline void score_rows(const float* const* q, const Keys& keys, int64_t n, int64_t dim, float* s) noexcept {
  int64_t i = 0;
  for (; i + kPairs<kRows> <= n; i += kPairs<kRows>)
    score_tile<kRows, kPairs<kRows>>(q, keys.from(i), dim, s + 2 * i);
  for (; i < n; ++i) score_tile<kRows, 1>(q, keys.from(i), dim, s + 2 * i);
}

// The micro-tile for the next of n rows: 6, 4, 3, 2 or 1 rows.
inline int64_t group_of(int64_t n) noexcept { return n >= kRowGroup ? kRowGroup : n < 4 ? n : 4; }

template <class Keys>
inline void score_group(int64_t group, const float* const* q, const Keys& keys, int64_t n, int64_t dim,
                        float* s) noexcept {
  switch (group) {
    case 1:
      score_rows<1>(q, keys, n, dim, s);
      break;
    case 2:
      score_rows<2>(q, keys, n, dim, s);
      break;
    case 3:
      score_rows<3>(q, keys, n, dim, s);
      break;
    case 4:
      score_rows<4>(q, keys, n, dim, s);
      break;
    default:
      score_rows<6>(q, keys, n, dim, s);
      break;
  }
}

// o[r][0..16w) += sum over n positions, ascending, of p[r][i] * v[i][0..16w).
template <int kRows, int kWides, class Values>
inline void value_tile(const float* p, const Values& v, int64_t n, float* o, int64_t o_stride) noexcept {
  Wide acc[kRows][kWides];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int w = 0; w < kWides; ++w) acc[r][w] = wide_load(o + r * o_stride + 16 * w);
  }
  for (int64_t i = 0; i < n; ++i) {
    Wide value[kWides];
#pragma GCC unroll 8
    for (int w = 0; w < kWides; ++w) value[w] = v.get(i, w);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Wide weight = wide_set1(p + r * kScoreStride + i);
#pragma GCC unroll 8
      for (int w = 0; w < kWides; ++w) acc[r][w] = wide_fma(weight, value[w], acc[r][w]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int w = 0; w < kWides; ++w) wide_store(o + r * o_stride + 16 * w, acc[r][w]);
  }
}

// The same for dims [0, n_dims), a multiple of 16.
template <int kRows, int kWides, class Values>
inline void value_dims(const float* p, const Values& v, int64_t n, int64_t n_dims, float* o,
                       int64_t o_stride) noexcept {
  int64_t d = 0;
  for (; d + 16 * kWides <= n_dims; d += 16 * kWides)
    value_tile<kRows, kWides>(p, v.from(0, d), n, o + d, o_stride);
  for (; d < n_dims; d += 16) value_tile<kRows, 1>(p, v.from(0, d), n, o + d, o_stride);
}
template <int kRows>
inline void value_all(const float* p, const PanelValues& v, int64_t n, int64_t, float* o,
                      int64_t o_stride) noexcept {
  value_dims<kRows, kPanelWides<kRows>>(p, v, n, kPanel, o, o_stride);
}
template <int kRows, class Kv>
inline void value_all(const float* p, const SlotValues<Kv>& v, int64_t n, int64_t n_dims, float* o,
                      int64_t o_stride) noexcept {
  value_dims<kRows, kSlotWides<kRows>>(p, v, n, n_dims, o, o_stride);
}

}  // namespace
}  // namespace gemmule
