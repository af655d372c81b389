// The vocabulary of the VNNI kernels on 256-bit registers: 8 rows = one group. Same names as ops_avx512.inl.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace gemmule {
namespace {

namespace packed_vnni {

using Vec = __m256i;
using VecF = __m256;
constexpr int kGroups = 1;  // of 8 rows, in a register
constexpr int kTile = 3;    // tokens for which two registers of rows, with two sums each, fit 16 registers

// Four activations, or two sums of activations, at any address.
using Dword [[gnu::may_alias, gnu::aligned(1)]] = int32_t;

[[gnu::always_inline]] inline Vec bytes(int v) noexcept { return _mm256_set1_epi8(static_cast<char>(v)); }
[[gnu::always_inline]] inline Vec zero() noexcept { return _mm256_setzero_si256(); }
[[gnu::always_inline]] inline Vec load(const void* p) noexcept {
  return _mm256_load_si256(static_cast<const __m256i*>(p));
}
[[gnu::always_inline]] inline void store(void* p, Vec v) noexcept {
  _mm256_store_si256(static_cast<__m256i*>(p), v);
}
[[gnu::always_inline]] inline VecF load_f32(const float* p) noexcept { return _mm256_load_ps(p); }
[[gnu::always_inline]] inline void store_f32(float* p, VecF v) noexcept { _mm256_store_ps(p, v); }
[[gnu::always_inline]] inline VecF broadcast_f32(const void* p) noexcept {
  return _mm256_set1_ps(*static_cast<const float*>(p));
}
[[gnu::always_inline]] inline VecF mul(VecF a, VecF b) noexcept { return _mm256_mul_ps(a, b); }
[[gnu::always_inline]] inline VecF fma(VecF a, VecF b, VecF c) noexcept { return _mm256_fmadd_ps(a, b, c); }
[[gnu::always_inline]] inline VecF to_f32(Vec v) noexcept { return _mm256_cvtepi32_ps(v); }

// Written as instructions for the reason given in ops_avx512.inl. {vex} is the encoding of AVX-VNNI; compiled
// for AVX-512 VNNI instead, as the tests do, the same kernels run on processors that have only that.
[[gnu::always_inline]] inline Vec broadcast(const void* p) noexcept {
#if defined(__AVXVNNI__) || defined(__AVX512VNNI__)
  Vec v;
  asm volatile("vpbroadcastd %1, %0" : "=x"(v) : "m"(*static_cast<const Dword*>(p)));
  return v;
#else
  return _mm256_set1_epi32(*static_cast<const Dword*>(p));
#endif
}
// sum += (4 unsigned bytes of each lane of w) . (4 signed bytes of a)
[[gnu::always_inline]] inline void dot_bytes(Vec& sum, Vec w, Vec a) noexcept {
#if defined(__AVXVNNI__)
  asm volatile("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(w), "x"(a));
#elif defined(__AVX512VNNI__)
  asm volatile("vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(w), "x"(a));
#else
  sum = _mm256_dpbusd_epi32(sum, w, a);
#endif
}
// sum += (2 signed 16-bit numbers of each lane of w) . (2 of a)
[[gnu::always_inline]] inline void dot_words(Vec& sum, Vec w, Vec a) noexcept {
#if defined(__AVXVNNI__)
  asm volatile("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(w), "x"(a));
#elif defined(__AVX512VNNI__)
  asm volatile("vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(w), "x"(a));
#else
  sum = _mm256_dpwssd_epi32(sum, w, a);
#endif
}

// The groups of a register, in the order of rows.
struct Rows {
  const uint8_t* group[kGroups];
};
[[gnu::always_inline]] inline Vec load_32(const Rows& r, int64_t at) noexcept {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(r.group[0] + at));
}
// 8 half floats.
[[gnu::always_inline]] inline VecF load_halves(const Rows& r, int64_t at) noexcept {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(r.group[0] + at)));
}
// 8 bytes as 32-bit numbers.
template <bool Signed>
[[gnu::always_inline]] inline Vec load_bytes(const uint8_t* p, int64_t) noexcept {
  const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return Signed ? _mm256_cvtepi8_epi32(eight) : _mm256_cvtepu8_epi32(eight);
}
// low | high << 16: two 16-bit numbers to a lane; `low` may be negative.
[[gnu::always_inline]] inline Vec as_pairs(Vec low, Vec high) noexcept {
  return _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(0xffff)), _mm256_slli_epi32(high, 16));
}
[[gnu::always_inline]] inline VecF negate(VecF v) noexcept { return _mm256_xor_ps(v, _mm256_set1_ps(-0.0f)); }

// On bytes. Bits of `one` where the mask is set, bits of `other` elsewhere.
[[gnu::always_inline]] inline Vec choose(int mask, Vec one, Vec other) noexcept {
  return _mm256_or_si256(_mm256_and_si256(bytes(mask), one), _mm256_andnot_si256(bytes(mask), other));
}
// base | (bits & mask)
[[gnu::always_inline]] inline Vec with_bits(Vec base, Vec bits, int mask) noexcept {
  return _mm256_or_si256(base, _mm256_and_si256(bits, bytes(mask)));
}
[[gnu::always_inline]] inline Vec masked(Vec v, int mask) noexcept {
  return _mm256_and_si256(v, bytes(mask));
}
[[gnu::always_inline]] inline Vec flipped(Vec v, int mask) noexcept {
  return _mm256_xor_si256(v, bytes(mask));
}
// Moved to the left, or to the right where Bits is negative; what crosses the border of a byte is for the
// caller to mask.
template <int Bits>
[[gnu::always_inline]] inline Vec moved(Vec v) noexcept {
  if constexpr (Bits == 0)
    return v;
  else if constexpr (Bits > 0)
    return _mm256_slli_epi16(v, Bits);
  else
    return _mm256_srli_epi16(v, -Bits);
}

}  // namespace packed_vnni

}  // namespace
}  // namespace gemmule
