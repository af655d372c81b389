// The vocabulary of the VNNI kernels on 512-bit registers: 16 rows = two groups of 8 side by side.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace gemmule {
namespace {

namespace packed_vnni {

using Vec = __m512i;
using VecF = __m512;
constexpr int kGroups = 2;  // of 8 rows, in a register
constexpr int kTile = 6;    // tokens for which two registers of rows, with two sums each, fit 32 registers

// Four activations, or two sums of activations, at any address.
using Dword [[gnu::may_alias, gnu::aligned(1)]] = int32_t;

[[gnu::always_inline]] inline Vec bytes(int v) noexcept { return _mm512_set1_epi8(static_cast<char>(v)); }
[[gnu::always_inline]] inline Vec zero() noexcept { return _mm512_setzero_si512(); }
[[gnu::always_inline]] inline Vec load(const void* p) noexcept { return _mm512_load_si512(p); }
[[gnu::always_inline]] inline void store(void* p, Vec v) noexcept { _mm512_store_si512(p, v); }
[[gnu::always_inline]] inline VecF load_f32(const float* p) noexcept { return _mm512_load_ps(p); }
[[gnu::always_inline]] inline void store_f32(float* p, VecF v) noexcept { _mm512_store_ps(p, v); }
[[gnu::always_inline]] inline VecF broadcast_f32(const void* p) noexcept {
  return _mm512_set1_ps(*static_cast<const float*>(p));
}
[[gnu::always_inline]] inline VecF mul(VecF a, VecF b) noexcept { return _mm512_mul_ps(a, b); }
[[gnu::always_inline]] inline VecF fma(VecF a, VecF b, VecF c) noexcept { return _mm512_fmadd_ps(a, b, c); }
[[gnu::always_inline]] inline VecF to_f32(Vec v) noexcept { return _mm512_cvtepi32_ps(v); }

// The dot products and what feeds them are written as instructions, in this order: GCC 12 otherwise moves
// sums from register to register, and a move takes the place of a multiplication. The emulation of the tests
// is compiled without VNNI and takes the intrinsics.
[[gnu::always_inline]] inline Vec broadcast(const void* p) noexcept {
#ifdef __AVX512VNNI__
  Vec v;
  asm volatile("vpbroadcastd %1, %0" : "=v"(v) : "m"(*static_cast<const Dword*>(p)));
  return v;
#else
  return _mm512_set1_epi32(*static_cast<const Dword*>(p));
#endif
}
// sum += (4 unsigned bytes of each lane of w) . (4 signed bytes of a)
[[gnu::always_inline]] inline void dot_bytes(Vec& sum, Vec w, Vec a) noexcept {
#ifdef __AVX512VNNI__
  asm volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(a));
#else
  sum = _mm512_dpbusd_epi32(sum, w, a);
#endif
}
// sum += (2 signed 16-bit numbers of each lane of w) . (2 of a)
[[gnu::always_inline]] inline void dot_words(Vec& sum, Vec w, Vec a) noexcept {
#ifdef __AVX512VNNI__
  asm volatile("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(a));
#else
  sum = _mm512_dpwssd_epi32(sum, w, a);
#endif
}

// The groups of a register, in the order of rows.
struct Rows {
  const uint8_t* group[kGroups];
};
[[gnu::always_inline]] inline Vec load_32(const Rows& r, int64_t at) noexcept {
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(r.group[0] + at));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(r.group[1] + at));
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
// 8 half floats of each group.
[[gnu::always_inline]] inline VecF load_halves(const Rows& r, int64_t at) noexcept {
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(r.group[0] + at));
  const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(r.group[1] + at));
  return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
}
// 8 bytes of each group, `next` bytes apart, as 32-bit numbers.
template <bool Signed>
[[gnu::always_inline]] inline Vec load_bytes(const uint8_t* p, int64_t next) noexcept {
  const __m128i both = _mm_unpacklo_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)),
                                          _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + next)));
  return Signed ? _mm512_cvtepi8_epi32(both) : _mm512_cvtepu8_epi32(both);
}
// low | high << 16: two 16-bit numbers to a lane; `low` may be negative.
[[gnu::always_inline]] inline Vec as_pairs(Vec low, Vec high) noexcept {
  return _mm512_or_si512(_mm512_and_si512(low, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(high, 16));
}
[[gnu::always_inline]] inline VecF negate(VecF v) noexcept { return _mm512_xor_ps(v, _mm512_set1_ps(-0.0f)); }

// On bytes. Bits of `one` where the mask is set, bits of `other` elsewhere.
[[gnu::always_inline]] inline Vec choose(int mask, Vec one, Vec other) noexcept {
  return _mm512_ternarylogic_epi32(bytes(mask), one, other, 0xca);
}
// base | (bits & mask)
[[gnu::always_inline]] inline Vec with_bits(Vec base, Vec bits, int mask) noexcept {
  return _mm512_ternarylogic_epi32(base, bits, bytes(mask), 0xf8);
}
[[gnu::always_inline]] inline Vec masked(Vec v, int mask) noexcept {
  return _mm512_and_si512(v, bytes(mask));
}
[[gnu::always_inline]] inline Vec flipped(Vec v, int mask) noexcept {
  return _mm512_xor_si512(v, bytes(mask));
}
// Moved to the left, or to the right where Bits is negative; what crosses the border of a byte is for the
// caller to mask.
template <int Bits>
[[gnu::always_inline]] inline Vec moved(Vec v) noexcept {
  if constexpr (Bits == 0)
    return v;
  else if constexpr (Bits > 0)
    return _mm512_slli_epi16(v, Bits);
  else
    return _mm512_srli_epi16(v, -Bits);
}

}  // namespace packed_vnni

}  // namespace
}  // namespace gemmule
