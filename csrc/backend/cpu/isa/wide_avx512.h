// Sixteen lanes of f32 in one register. Included after vec_avx2.h; see wide_pair.h. Memory that is read or
// written whole lies at multiples of 64 bytes.
#pragma once

#include <immintrin.h>

namespace gemmule {
namespace {

struct Wide {
  __m512 v;
};
inline constexpr int kWideSums = 24;

inline Wide wide_zero() noexcept { return {_mm512_set1_ps(0.0f)}; }
inline Wide wide_load(const float* p) noexcept { return {_mm512_load_ps(p)}; }
// Sixteen numbers of the cache, or eight of each of two rows.
inline __m128i wide_bits(const Half* p) noexcept {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
inline __m128i wide_bits(const int8_t* p) noexcept {
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
}
inline Wide wide_widen(const float* a, const float* b) noexcept {
  return {_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(a)), _mm256_loadu_ps(b), 1)};
}
inline Wide wide_widen(const Half* a, const Half* b) noexcept {
  return {_mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(wide_bits(a)), wide_bits(b), 1))};
}
inline Wide wide_widen(const int8_t* a, const int8_t* b) noexcept {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_unpacklo_epi64(wide_bits(a), wide_bits(b))))};
}
inline Wide wide_widen(const float* p) noexcept { return wide_widen(p, p + 8); }
inline Wide wide_widen(const Half* p) noexcept {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Wide wide_widen(const int8_t* p) noexcept {
  const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))};
}
inline Wide wide_scales(Half a, Half b) noexcept {
  const __m128i eight_a = _mm_set1_epi16(static_cast<int16_t>(a.bits));
  const __m128i eight_b = _mm_set1_epi16(static_cast<int16_t>(b.bits));
  return {_mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(eight_a), eight_b, 1))};
}
inline Wide wide_mul(Wide a, Wide b) noexcept { return {_mm512_mul_ps(a.v, b.v)}; }
inline void wide_store(float* p, Wide a) noexcept { _mm512_store_ps(p, a.v); }
// Keeps a value in a register: GCC otherwise repeats a load in every instruction that uses it.
inline void wide_pin([[maybe_unused]] __m512& v) noexcept {
#ifdef __AVX512F__
  __asm__("" : "+v"(v));
#endif
}
inline Wide wide_twice(const float* p) noexcept {
  __m512 v = _mm512_broadcast_f32x8(_mm256_loadu_ps(p));
  wide_pin(v);
  return {v};
}
inline Wide wide_set1(const float* p) noexcept {
  __m512 v = _mm512_set1_ps(*p);
  wide_pin(v);
  return {v};
}
inline Wide wide_fma(Wide a, Wide b, Wide c) noexcept { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F8 low8(Wide a) noexcept { return {_mm512_castps512_ps256(a.v)}; }
inline F8 high8(Wide a) noexcept { return {_mm512_extractf32x8_ps(a.v, 1)}; }

}  // namespace
}  // namespace gemmule
