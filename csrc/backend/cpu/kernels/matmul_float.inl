// Matmuls with F32, F16 and BF16 weights: y[t * y_stride + r] = dot(weight row r, activation row t).
// One output is 8 lanes of ascending fma (element i in lane i mod 8, the tail padded with zeros) and the
// fixed tree, so its bits do not depend on the blocking: 4 weight rows x 3 tokens in registers, tokens cut so
// that their activations stay in the second-level cache while all weight rows pass by.
#pragma once

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/tail.inl"

namespace gemmule {
namespace {

inline constexpr int64_t kFloatRows = 4;
inline constexpr int64_t kFloatTokens = 3;
inline constexpr int64_t kFloatTokenBytes = 256 * 1024;

// w: kRows rows of k weights, w_stride bytes apart; x f32 [kTokens][k]; y[t * y_stride + r].
template <int kRows, int kTokens, class Weight>
inline void dot_block(const uint8_t* w, int64_t w_stride, const float* x, int64_t k, float* y,
                      int64_t y_stride) noexcept {
  const Weight* row[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) row[r] = reinterpret_cast<const Weight*>(w + r * w_stride);
  F8 acc[kRows][kTokens];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) acc[r][t] = zero8();
  }
  int64_t i = 0;
  for (; i + 8 <= k; i += 8) {
    F8 a[kTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) a[t] = load8(x + t * k + i);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      F8 b = load8(row[r] + i);
      pin(b);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) acc[r][t] = fma(b, a[t], acc[r][t]);
    }
  }
  if (i < k) {
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const F8 b = load_tail(row[r] + i, k - i);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) acc[r][t] = fma(b, load_tail(x + t * k + i, k - i), acc[r][t]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) y[t * y_stride + r] = sum8(acc[r][t]);
  }
}

template <int kTokens, class Weight>
inline void dot_rows(const uint8_t* w, int64_t w_stride, int64_t n_rows, const float* x, int64_t k, float* y,
                     int64_t y_stride) noexcept {
  if (n_rows == kFloatRows) {
    dot_block<kFloatRows, kTokens, Weight>(w, w_stride, x, k, y, y_stride);
  } else {
    for (int64_t r = 0; r < n_rows; ++r) {
      dot_block<1, kTokens, Weight>(w + r * w_stride, w_stride, x, k, y + r, y_stride);
    }
  }
}

template <class Weight>
inline void matmul_float(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end,
                         const ActRows& x, float* y, int64_t y_stride) noexcept {
  const int64_t k = x.k;
  int64_t per_pass = kFloatTokenBytes / (4 * k) / kFloatTokens * kFloatTokens;
  if (per_pass < kFloatTokens) per_pass = kFloatTokens;
  for (int64_t t0 = 0; t0 < x.n; t0 += per_pass) {
    const int64_t t_end = t0 + per_pass < x.n ? t0 + per_pass : x.n;
    for (int64_t r = row_begin; r < row_end; r += kFloatRows) {
      const int64_t n_rows = row_end - r < kFloatRows ? row_end - r : kFloatRows;
      const uint8_t* rows = w + r * w_stride;
      int64_t t = t0;
      for (; t + 3 <= t_end; t += 3) {
        dot_rows<3, Weight>(rows, w_stride, n_rows, x.f32 + t * k, k, y + t * y_stride + r, y_stride);
      }
      if (t_end - t == 2) {
        dot_rows<2, Weight>(rows, w_stride, n_rows, x.f32 + t * k, k, y + t * y_stride + r, y_stride);
      } else if (t_end - t == 1) {
        dot_rows<1, Weight>(rows, w_stride, n_rows, x.f32 + t * k, k, y + t * y_stride + r, y_stride);
      }
    }
  }
}

inline void matmul_f32(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end,
                       const ActRows& x, float* y, int64_t y_stride, void*) noexcept {
  matmul_float<float>(w, w_stride, row_begin, row_end, x, y, y_stride);
}
inline void matmul_f16(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end,
                       const ActRows& x, float* y, int64_t y_stride, void*) noexcept {
  matmul_float<Half>(w, w_stride, row_begin, row_end, x, y, y_stride);
}
inline void matmul_bf16(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end,
                        const ActRows& x, float* y, int64_t y_stride, void*) noexcept {
  matmul_float<Bf16>(w, w_stride, row_begin, row_end, x, y, y_stride);
}

}  // namespace
}  // namespace gemmule
