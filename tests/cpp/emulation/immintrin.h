// Stands in front of the compiler's <immintrin.h> for the emulated levels: AVX2 as it is, and the AVX-512 and
// VNNI intrinsics that the kernels use, exactly, as pairs of AVX2 registers. Only what the kernels need; any
// other AVX-512 intrinsic stays a compile error.
#pragma once
#include_next <immintrin.h>

// Apart from the functions, which the kernels' own names must not meet by argument-dependent lookup.
namespace emulated_types {
namespace {
struct Int512 {
  __m256i low, high;
};
struct Float512 {
  __m256 low, high;
};
}  // namespace
}  // namespace emulated_types

namespace emulated {
namespace {

using emulated_types::Float512;
using emulated_types::Int512;

// Products of unsigned and signed bytes, four to a lane. Bytes are widened first: nothing saturates.
inline __m256i dpbusd(__m256i sum, __m256i a, __m256i b) {
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(255)),
                                         _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}
inline __m256i dpwssd(__m256i sum, __m256i a, __m256i b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
inline Int512 dpbusd(Int512 sum, Int512 a, Int512 b) {
  return {dpbusd(sum.low, a.low, b.low), dpbusd(sum.high, a.high, b.high)};
}
inline Int512 dpwssd(Int512 sum, Int512 a, Int512 b) {
  return {dpwssd(sum.low, a.low, b.low), dpwssd(sum.high, a.high, b.high)};
}

inline Int512 both(__m256i v) { return {v, v}; }
inline Int512 load(const void* p) {
  const auto* v = static_cast<const __m256i*>(p);
  return {_mm256_load_si256(v), _mm256_load_si256(v + 1)};
}
inline void store(void* p, Int512 v) {
  auto* to = static_cast<__m256i*>(p);
  _mm256_store_si256(to, v.low);
  _mm256_store_si256(to + 1, v.high);
}
inline Float512 load_f32(const float* p) { return {_mm256_load_ps(p), _mm256_load_ps(p + 8)}; }
inline void store_f32(float* p, Float512 v) {
  _mm256_store_ps(p, v.low);
  _mm256_store_ps(p + 8, v.high);
}
inline Int512 bit_and(Int512 a, Int512 b) {
  return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)};
}
inline Int512 bit_or(Int512 a, Int512 b) {
  return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
}
inline Int512 bit_xor(Int512 a, Int512 b) {
  return {_mm256_xor_si256(a.low, b.low), _mm256_xor_si256(a.high, b.high)};
}
// Bit (4 a + 2 b + c) of `table` for the bits a, b and c.
inline __m256i ternary(__m256i a, __m256i b, __m256i c, int table) {
  const __m256i ones = _mm256_set1_epi32(-1);
  __m256i result = _mm256_setzero_si256();
  for (int i = 0; i < 8; ++i) {
    if ((table >> i & 1) == 0) continue;
    const __m256i x = i & 4 ? a : _mm256_xor_si256(a, ones), y = i & 2 ? b : _mm256_xor_si256(b, ones),
                  z = i & 1 ? c : _mm256_xor_si256(c, ones);
    result = _mm256_or_si256(result, _mm256_and_si256(x, _mm256_and_si256(y, z)));
  }
  return result;
}
inline Int512 ternary(Int512 a, Int512 b, Int512 c, int table) {
  return {ternary(a.low, b.low, c.low, table), ternary(a.high, b.high, c.high, table)};
}
inline Int512 shift_left_16(Int512 v, int n) {
  return {_mm256_slli_epi16(v.low, n), _mm256_slli_epi16(v.high, n)};
}
inline Int512 shift_right_16(Int512 v, int n) {
  return {_mm256_srli_epi16(v.low, n), _mm256_srli_epi16(v.high, n)};
}
inline Int512 shift_left_32(Int512 v, int n) {
  return {_mm256_slli_epi32(v.low, n), _mm256_slli_epi32(v.high, n)};
}
inline Int512 widen(__m256i v) { return {v, _mm256_setzero_si256()}; }
inline Int512 insert(Int512 v, __m256i part, int at) {
  return at == 0 ? Int512{part, v.high} : Int512{v.low, part};
}
inline Int512 signed_bytes(__m128i v) {
  return {_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))};
}
inline Int512 unsigned_bytes(__m128i v) {
  return {_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))};
}
inline Float512 halves(__m256i v) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(v)), _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1))};
}
inline Float512 to_f32(Int512 v) { return {_mm256_cvtepi32_ps(v.low), _mm256_cvtepi32_ps(v.high)}; }
inline Float512 twice(__m256 v) { return {v, v}; }
inline Float512 lengthen(__m256 v) { return {v, _mm256_setzero_ps()}; }
inline Float512 insert(Float512 v, __m256 part, int at) {
  return at == 0 ? Float512{part, v.high} : Float512{v.low, part};
}
inline __m256i lower(Int512 v) { return v.low; }
inline __m256i part(Int512 v, int at) { return at == 0 ? v.low : v.high; }
inline Int512 load_any(const void* p) {
  const auto* v = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
}
inline Int512 add(Int512 a, Int512 b) {
  return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
inline Int512 product(Int512 a, Int512 b) {
  return {_mm256_mullo_epi32(a.low, b.low), _mm256_mullo_epi32(a.high, b.high)};
}
inline Int512 shuffle(Int512 v, Int512 order) {
  return {_mm256_shuffle_epi8(v.low, order.low), _mm256_shuffle_epi8(v.high, order.high)};
}
inline Int512 unsigned_words(__m256i v) {
  return {_mm256_cvtepu8_epi16(_mm256_castsi256_si128(v)),
          _mm256_cvtepu8_epi16(_mm256_extracti128_si256(v, 1))};
}
// Only where the mask takes every second word, or the upper half of the lanes.
inline Int512 odd_words(Int512 other, unsigned, Int512 v) {
  return {_mm256_blend_epi16(other.low, v.low, 0xaa), _mm256_blend_epi16(other.high, v.high, 0xaa)};
}
inline Int512 upper_lanes(Int512 other, unsigned, int x) { return {other.low, _mm256_set1_epi32(x)}; }
// Only one half twice: 0x44 or 0xee.
inline Int512 half_twice(Int512 v, Int512, int which) {
  return which == 0x44 ? Int512{v.low, v.low} : Int512{v.high, v.high};
}
inline __m256 lower(Float512 v) { return v.low; }
inline __m256 part(Float512 v, int at) { return at == 0 ? v.low : v.high; }
inline Float512 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Float512 mul(Float512 a, Float512 b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Float512 bit_xor(Float512 a, Float512 b) {
  return {_mm256_xor_ps(a.low, b.low), _mm256_xor_ps(a.high, b.high)};
}
inline Float512 fma(Float512 a, Float512 b, Float512 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

}  // namespace
}  // namespace emulated

// Some of these are macros of the compiler's header, some of them only without optimization.
#undef _mm256_dpbusd_epi32
#undef _mm256_dpwssd_epi32
#undef _mm512_ternarylogic_epi32
#undef _mm512_slli_epi16
#undef _mm512_srli_epi16
#undef _mm512_slli_epi32
#undef _mm512_inserti64x4
#undef _mm512_extractf32x8_ps
#undef _mm512_extracti64x4_epi64
#undef _mm512_shuffle_i64x2
#undef _mm512_insertf32x8
#define __m512i emulated::Int512
#define __m512 emulated::Float512
#define _mm256_dpbusd_epi32 emulated::dpbusd
#define _mm256_dpwssd_epi32 emulated::dpwssd
#define _mm512_dpbusd_epi32 emulated::dpbusd
#define _mm512_dpwssd_epi32 emulated::dpwssd
#define _mm512_and_si512 emulated::bit_and
#define _mm512_or_si512 emulated::bit_or
#define _mm512_xor_si512 emulated::bit_xor
#define _mm512_xor_ps emulated::bit_xor
#define _mm512_ternarylogic_epi32 emulated::ternary
#define _mm512_slli_epi16 emulated::shift_left_16
#define _mm512_srli_epi16 emulated::shift_right_16
#define _mm512_slli_epi32 emulated::shift_left_32
#define _mm512_castsi256_si512 emulated::widen
#define _mm512_inserti64x4 emulated::insert
#define _mm512_cvtepi8_epi32 emulated::signed_bytes
#define _mm512_cvtepu8_epi32 emulated::unsigned_bytes
#define _mm512_cvtepi32_ps emulated::to_f32
#define _mm512_cvtph_ps emulated::halves
#define _mm512_load_si512 emulated::load
#define _mm512_store_si512 emulated::store
#define _mm512_load_ps emulated::load_f32
#define _mm512_store_ps emulated::store_f32
#define _mm512_mul_ps emulated::mul
#define _mm512_fmadd_ps emulated::fma
#define _mm512_set1_ps emulated::set1
#define _mm512_broadcast_f32x8 emulated::twice
#define _mm512_castps256_ps512 emulated::lengthen
#define _mm512_insertf32x8 emulated::insert
#define _mm512_castps512_ps256 emulated::lower
#define _mm512_extractf32x8_ps emulated::part
#define _mm512_castsi512_si256 emulated::lower
#define _mm512_extracti64x4_epi64 emulated::part
#define _mm512_loadu_si512 emulated::load_any
#define _mm512_add_epi32 emulated::add
#define _mm512_mullo_epi32 emulated::product
#define _mm512_shuffle_epi8 emulated::shuffle
#define _mm512_cvtepu8_epi16 emulated::unsigned_words
#define _mm512_mask_mov_epi16 emulated::odd_words
#define _mm512_mask_set1_epi32 emulated::upper_lanes
#define _mm512_shuffle_i64x2 emulated::half_twice
#define _mm512_broadcast_i32x4(x) emulated::both(_mm256_broadcastsi128_si256(x))
#define _mm512_set1_epi8(x) emulated::both(_mm256_set1_epi8(x))
#define _mm512_set1_epi32(x) emulated::both(_mm256_set1_epi32(x))
#define _mm512_setzero_si512() emulated::both(_mm256_setzero_si256())
