// The vocabulary of the kernels on 8 lanes of f32, in AVX2 + FMA + F16C instructions. Same names and, per
// lane, the same results as vec_scalar.h. Included by kernel objects, so no standard header beyond <cstddef>
// and <cstdint>.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace gemmule {
namespace {

struct F8 {
  __m256 v;
};
struct I8 {
  __m256i v;
};
// Storage of 16-bit floats, as bits.
struct Half {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};

inline F8 load8(const float* p) noexcept { return {_mm256_loadu_ps(p)}; }
inline F8 load8(const Half* p) noexcept {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline F8 load8(const Bf16* p) noexcept {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
inline F8 load8(const int8_t* p) noexcept {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))};
}
inline void store8(float* p, F8 a) noexcept { _mm256_storeu_ps(p, a.v); }
inline void store8(Half* p, F8 a) noexcept {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// Keeps a value in a register: GCC otherwise repeats a load in every instruction that uses it.
inline void pin(F8& a) noexcept { __asm__("" : "+x"(a.v)); }

inline F8 zero8() noexcept { return {_mm256_setzero_ps()}; }
inline F8 set1(float x) noexcept { return {_mm256_set1_ps(x)}; }
inline F8 set1(Half x) noexcept { return {_mm256_set1_ps(_cvtsh_ss(x.bits))}; }
inline F8 add(F8 a, F8 b) noexcept { return {_mm256_add_ps(a.v, b.v)}; }
inline F8 sub(F8 a, F8 b) noexcept { return {_mm256_sub_ps(a.v, b.v)}; }
inline F8 mul(F8 a, F8 b) noexcept { return {_mm256_mul_ps(a.v, b.v)}; }
inline F8 div(F8 a, F8 b) noexcept { return {_mm256_div_ps(a.v, b.v)}; }
inline F8 sqrt8(F8 a) noexcept { return {_mm256_sqrt_ps(a.v)}; }
// a * b + c, rounded once
inline F8 fma(F8 a, F8 b, F8 c) noexcept { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
// c - a * b, rounded once
inline F8 fnma(F8 a, F8 b, F8 c) noexcept { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
// b when either is NaN.
inline F8 max(F8 a, F8 b) noexcept { return {_mm256_max_ps(a.v, b.v)}; }
inline F8 min(F8 a, F8 b) noexcept { return {_mm256_min_ps(a.v, b.v)}; }
inline F8 zero_below(F8 y, F8 x, F8 limit) noexcept {
  return {_mm256_andnot_ps(_mm256_cmp_ps(x.v, limit.v, _CMP_LT_OQ), y.v)};
}
inline F8 abs8(F8 a) noexcept {
  return {_mm256_and_ps(a.v, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)))};
}
inline F8 negate(F8 a) noexcept { return {_mm256_xor_ps(a.v, _mm256_set1_ps(-0.0f))}; }
// The magnitude of a (a >= 0 or NaN) with the sign of b.
inline F8 with_sign_of(F8 a, F8 b) noexcept {
  return {_mm256_or_ps(a.v, _mm256_and_ps(b.v, _mm256_set1_ps(-0.0f)))};
}
inline float sqrt_lane(float x) noexcept { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }
inline float fma_lane(float a, float b, float c) noexcept {
  return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}

inline I8 bits8(F8 a) noexcept { return {_mm256_castps_si256(a.v)}; }
inline F8 from_bits8(I8 a) noexcept { return {_mm256_castsi256_ps(a.v)}; }
inline I8 set1_int(int32_t x) noexcept { return {_mm256_set1_epi32(x)}; }
inline I8 add(I8 a, I8 b) noexcept { return {_mm256_add_epi32(a.v, b.v)}; }
inline I8 sub(I8 a, I8 b) noexcept { return {_mm256_sub_epi32(a.v, b.v)}; }
template <int kBits>
inline I8 shift_left(I8 a) noexcept {
  return {_mm256_slli_epi32(a.v, kBits)};
}
template <int kBits>
inline I8 shift_right_signed(I8 a) noexcept {
  return {_mm256_srai_epi32(a.v, kBits)};
}

// The tree of every vector sum: ((0+4)+(2+6)) + ((1+5)+(3+7)).
inline float sum8(F8 a) noexcept {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
// Adds the two halves of each operand: the result of `low` in the low half, of `high` in the high half.
inline __m256 fold_halves(__m256 low, __m256 high) noexcept {
  return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
}
inline __m256 fold_pairs(__m256 a, __m256 b) noexcept {  // [a0+a2, a1+a3, b0+b2, b1+b3] in each half
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
}
// Eight such sums: lane i is sum8(a[i]).
inline F8 sum8_of_8(const F8* a) noexcept {
  const __m256 p = fold_pairs(fold_halves(a[0].v, a[4].v), fold_halves(a[1].v, a[5].v));
  const __m256 q = fold_pairs(fold_halves(a[2].v, a[6].v), fold_halves(a[3].v, a[7].v));
  return {_mm256_add_ps(_mm256_shuffle_ps(p, q, 0x88), _mm256_shuffle_ps(p, q, 0xdd))};
}
// Four such sums, in the first four floats of out.
inline void sum8_of_4(const F8* a, float* out) noexcept {
  const __m256 p = fold_pairs(fold_halves(a[0].v, a[2].v), fold_halves(a[1].v, a[3].v));
  // p = [a0, a0, a1, a1 | a2, a2, a3, a3], each a pair of partial sums
  const __m256 s = _mm256_add_ps(p, _mm256_movehdup_ps(p));
  const __m128 low = _mm256_castps256_ps128(s), high = _mm256_extractf128_ps(s, 1);
  _mm_storeu_ps(out, _mm_shuffle_ps(low, high, 0x88));
}
inline float max_lane(F8 a) noexcept {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

}  // namespace
}  // namespace gemmule
