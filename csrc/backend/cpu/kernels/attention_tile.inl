// The two products of attention on small tiles: scores of some query rows against a tile of keys, and the
// weighted sum of a tile of values. Keys and values have been widened to f32 by what includes this, in the
// orders in which the tiles read them:
//   keys    f32 [pairs of keys][dim / 8][2][8]   both keys of a pair side by side, one register of 16 lanes
//   values  f32 [positions][32]                  32 dims of every position
// Sums are those of the contract (attention.inl): a score has 8 lanes, an output is one chain over positions.
#pragma once

#include "backend/cpu/kernel_table.h"

namespace gemmule {
namespace {

inline constexpr int64_t kScoreStride =
    kAttendChunk + 8;                    // not a power of two: rows spread over the cache sets
inline constexpr int64_t kPanel = 32;    // dims of a tile of values
inline constexpr int64_t kRowGroup = 6;  // most rows of one micro-tile

// Key pairs beside kRows rows, and halves of a panel, so that the sums stay in registers.
template <int kRows>
inline constexpr int kPairs = kWideSums / kRows >= 4   ? 4
                              : kWideSums / kRows >= 2 ? 2
                                                       : 1;
template <int kRows>
inline constexpr int kHalves = 2 * kRows <= kWideSums ? 2 : 1;

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
template <int kRows, int kWides>
inline void score_tile(const float* const* q, const float* keys, int64_t dim, float* s) noexcept {
  const float* row[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) row[r] = q[r];
  Wide acc[kRows][kWides];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int w = 0; w < kWides; ++w) acc[r][w] = wide_zero();
  }
  for (int64_t d = 0; d < dim; d += 8) {
    Wide key[kWides];
#pragma GCC unroll 8
    for (int w = 0; w < kWides; ++w) key[w] = wide_load(keys + 2 * (w * dim + d));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Wide a = wide_twice(row[r] + d);
#pragma GCC unroll 8
      for (int w = 0; w < kWides; ++w) acc[r][w] = wide_fma(a, key[w], acc[r][w]);
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
template <int kRows>
inline void score_rows(const float* const* q, const float* keys, int64_t n, int64_t dim, float* s) noexcept {
  int64_t i = 0;
  for (; i + kPairs<kRows> <= n; i += kPairs<kRows>)
    score_tile<kRows, kPairs<kRows>>(q, keys + 2 * i * dim, dim, s + 2 * i);
  for (; i < n; ++i) score_tile<kRows, 1>(q, keys + 2 * i * dim, dim, s + 2 * i);
}

// The micro-tile for the next of n rows: 6, 4, 3, 2 or 1 rows.
inline int64_t group_of(int64_t n) noexcept { return n >= kRowGroup ? kRowGroup : n < 4 ? n : 4; }

inline void score_group(int64_t group, const float* const* q, const float* keys, int64_t n, int64_t dim,
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
template <int kRows, int kWides>
inline void value_tile(const float* p, const float* v, int64_t n, float* o, int64_t o_stride) noexcept {
  Wide acc[kRows][kWides];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int w = 0; w < kWides; ++w) acc[r][w] = wide_load(o + r * o_stride + 16 * w);
  }
  for (int64_t i = 0; i < n; ++i) {
    Wide value[kWides];
#pragma GCC unroll 8
    for (int w = 0; w < kWides; ++w) value[w] = wide_load(v + i * kPanel + 16 * w);
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

// The same for all 32 dims of the panel.
template <int kRows>
inline void value_panel(const float* p, const float* v, int64_t n, float* o, int64_t o_stride) noexcept {
#pragma GCC unroll 2
  for (int64_t d = 0; d < kPanel; d += 16 * kHalves<kRows>)
    value_tile<kRows, kHalves<kRows>>(p, v + d, n, o + d, o_stride);
}

}  // namespace
}  // namespace gemmule
