// AVX2 pieces that the quantized matmuls for few and for many tokens share: broadcasts of activations, the
// last step of a K-quant block, rows past the end.
#pragma once
#include <immintrin.h>

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/unpack_avx2.inl"

namespace gemmule {
namespace {

namespace quant_avx2 {

template <class T>
[[gnu::always_inline]] inline __m256i broadcast_dword(const T* p) noexcept {
  int32_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return _mm256_set1_epi32(v);
}
[[gnu::always_inline]] inline __m256i load(const void* p) noexcept {
  return _mm256_load_si256(static_cast<const __m256i*>(p));
}

// Keeps a value in its register at this place: without it GCC rebuilds the sums as trees and spills the
// products.
[[gnu::always_inline]] inline void pin(__m256i& v) noexcept { asm volatile("" : "+x"(v)); }

// Sixteen sums of 16 codes as the pairs that GroupTile::pairs wants: as they are, or added up to eight sums
// of 32.
template <class F>
[[gnu::always_inline]] inline const int16_t* paired_sums(const int16_t* sums,
                                                         int16_t (&sums_32)[8]) noexcept {
  if constexpr (F::kSub == 16) return sums;
  const __m256i s32 =
      _mm256_madd_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums)), _mm256_set1_epi16(1));
  _mm_store_si128(reinterpret_cast<__m128i*>(sums_32),
                  _mm_packs_epi32(_mm256_castsi256_si128(s32), _mm256_extracti128_si256(s32, 1)));
  return sums_32;
}

// The f32 steps of one block of a K-quant, for 8 rows and one token; `dot` is sum_s scale_s * sum(q a).
template <class F>
[[gnu::always_inline]] inline __m256 finish_256(const GroupTile& tile, const int16_t* pairs, float d,
                                                __m256i dot, __m256 acc) noexcept {
  __m256i extra = _mm256_madd_epi16(load(tile.pairs[0]), broadcast_dword(pairs));
#pragma GCC unroll 8
  for (int p = 1; p < 128 / F::kSub; ++p)
    extra = _mm256_add_epi32(extra, _mm256_madd_epi16(load(tile.pairs[p]), broadcast_dword(pairs + 2 * p)));
  if constexpr (!F::kMins) dot = _mm256_sub_epi32(dot, _mm256_slli_epi32(extra, __builtin_ctz(F::kOffset)));
  const __m256 da = _mm256_set1_ps(d);
  acc = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_load_ps(tile.d[0]), da), _mm256_cvtepi32_ps(dot), acc);
  if constexpr (F::kMins)
    acc = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_load_ps(tile.m[0]), da), _mm256_cvtepi32_ps(extra), acc);
  return acc;
}

// Rows from `row` on; those at and past `row_end` repeat the last one.
[[gnu::always_inline]] inline RowPointers row_pointers(const uint8_t* w, int64_t w_stride, int64_t row,
                                                       int64_t row_end) noexcept {
  RowPointers rows;
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r) {
    rows.p[r] = w + (row + r < row_end ? row + r : row_end - 1) * w_stride;
    asm("" : "+r"(rows.p[r]));  // as in advance()
  }
  return rows;
}

// The first `left` (at most 8) of the outputs.
[[gnu::always_inline]] inline void store_outputs(float* dst, __m256 outputs, int64_t left) noexcept {
  if (left >= 8) {
    _mm256_storeu_ps(dst, outputs);
  } else {
    alignas(32) float some[8];
    _mm256_store_ps(some, outputs);
    for (int64_t r = 0; r < left; ++r) dst[r] = some[r];
  }
}

}  // namespace quant_avx2

}  // namespace
}  // namespace gemmule
