// Quantized matmuls for AVX2, few tokens (decode, speculation): the weights are read once, in the order of
// memory for each group of 8 rows, and go from their blocks through R8 form (unpack_avx2.inl) straight into
// the products of all tokens; only sub-block scales pass through scratch. The next group is prefetched
// meanwhile.
#pragma once
#include <immintrin.h>

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/dot_avx2.inl"
#include "backend/cpu/kernels/unpack_avx2.inl"

namespace gemmule {
namespace {

namespace quant_avx2 {

// Part `part` of Parts of the cache lines in the Bytes from `at` on. Spread over the work on a block, because
// a burst of prefetches fills the line buffers and then holds up everything behind it.
template <int Bytes, int Parts>
[[gnu::always_inline]] inline void prefetch_part(const uint8_t* at, int part) noexcept {
#pragma GCC unroll 32
  for (int i = 0; i < Bytes; i += 64)
    if (i >= Bytes * part / Parts && i < Bytes * (part + 1) / Parts)
      _mm_prefetch(reinterpret_cast<const char*>(at + i), _MM_HINT_T0);
}

// total[t] += codes of 16 elements (4 vectors) times activations, with the scale of their sub-block.
template <class F, int T>
[[gnu::always_inline]] inline void add_16_elements(const __m256i (&w)[4], const int8_t* a, int64_t a_step,
                                                   __m256i scale, __m256i (&total)[T]) noexcept {
  constexpr int kLength = F::kSumLength < 4 ? F::kSumLength : 4;
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 2
    for (int part = 0; part < 4; part += kLength) {
      __m256i sum = _mm256_maddubs_epi16(w[part], broadcast_dword(a + t * a_step + 4 * part));
#pragma GCC unroll 4
      for (int v = part + 1; v < part + kLength; ++v)
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w[v], broadcast_dword(a + t * a_step + 4 * v)));
      total[t] = _mm256_add_epi32(total[t], _mm256_madd_epi16(sum, scale));
    }
    pin(total[t]);
  }
}

// The same for signed 8-bit weights: |w| * (a with the sign of w). |w| may be 128; a pair of products fits 16
// bits.
template <int T>
[[gnu::always_inline]] inline void add_16_signed(const __m256i (&w)[4], const int8_t* a, int64_t a_step,
                                                 __m256i (&total)[T]) noexcept {
  static_assert(128 * 2 * 127 <= 32767);
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    const __m256i magnitude = _mm256_abs_epi8(w[v]);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      const __m256i x = _mm256_sign_epi8(broadcast_dword(a + t * a_step + 4 * v), w[v]);
      total[t] = _mm256_add_epi32(total[t], _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, x), ones));
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) pin(total[t]);
}

// 8 rows (`rows`) and T tokens: acc[t] becomes their outputs.
template <class F, int T>
[[gnu::always_inline]] inline void rows_256(RowPointers rows, const ActRows& x, const uint8_t* next,
                                            GroupTile& tile, __m256 (&acc)[T]) noexcept {
  const int64_t n_blocks = x.k / 256;
  for (int64_t b = 0; b < n_blocks; ++b) {
    const int8_t* a = x.q + 256 * b;
    __m256i total[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) total[t] = _mm256_setzero_si256();
    F::unpack_scales(rows, tile);
    F::unpack_codes(rows, [&](int first, const __m256i(&w)[4]) noexcept {
      prefetch_part<8 * F::kBytes, 16>(next, first / 4);
      add_16_elements<F, T>(w, a + 4 * first, x.k, load(tile.scales[4 * first / F::kSub]), total);
    });
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      alignas(16) int16_t sums_32[8];
      const int16_t* pairs = paired_sums<F>(x.sums + (t * n_blocks + b) * 16, sums_32);
      acc[t] = finish_256<F>(tile, pairs, x.d[t * n_blocks + b], total[t], acc[t]);
    }
    rows.advance(F::kBytes);
    next += 8 * F::kBytes;
  }
}

template <class F, int T>
[[gnu::always_inline]] inline void rows_32(RowPointers rows, const ActRows& x, const uint8_t* next,
                                           __m256 (&acc)[T]) noexcept {
  const int64_t n_blocks = x.k / 32;
  for (int64_t b = 0; b < n_blocks; ++b) {
    const int8_t* a = x.q + 32 * b;
    __m256i total[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      const int sum = x.sums[t * n_blocks + b];
      total[t] = F::kMins || F::kEightBits ? _mm256_setzero_si256() : _mm256_set1_epi32(-F::kOffset * sum);
    }
    __m256 d, m = _mm256_setzero_ps();
    F::unpack(rows, 0, d, m, [&](int first, const __m256i(&w)[4]) noexcept {
      prefetch_part<8 * F::kBytes, 2>(next, first / 4);
      if constexpr (F::kEightBits)
        add_16_signed<T>(w, a + 4 * first, x.k, total);
      else
        add_16_elements<F, T>(w, a + 4 * first, x.k, _mm256_set1_epi16(1), total);
    });
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      const __m256 da = _mm256_set1_ps(x.d[t * n_blocks + b]);
      acc[t] = _mm256_fmadd_ps(_mm256_mul_ps(d, da), _mm256_cvtepi32_ps(total[t]), acc[t]);
      if constexpr (F::kMins) {
        const auto sum = static_cast<float>(x.sums[t * n_blocks + b]);
        acc[t] = _mm256_fmadd_ps(_mm256_mul_ps(m, da), _mm256_set1_ps(sum), acc[t]);
      }
    }
    rows.advance(F::kBytes);
    next += 8 * F::kBytes;
  }
}

// All rows of the range for exactly T tokens.
template <class F, int T>
void matmul_rows(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, GroupTile& tile) noexcept {
  for (int64_t row = row_begin; row < row_end; row += 8) {
    RowPointers rows = row_pointers(w, w_stride, row, row_end);
    const int64_t left = row_end - row;
    const uint8_t* next = w + (left > 8 ? row + 8 : row) * w_stride;
    __m256 acc[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) acc[t] = _mm256_setzero_ps();
    if constexpr (F::kSize == 256)
      rows_256<F, T>(rows, x, next, tile, acc);
    else
      rows_32<F, T>(rows, x, next, acc);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) store_outputs(y + t * y_stride + row, acc[t], left);
  }
}

}  // namespace quant_avx2

}  // namespace
}  // namespace gemmule
