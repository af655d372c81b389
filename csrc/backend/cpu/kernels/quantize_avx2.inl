// AVX2: activations to int8 blocks with one f32 scale each and the sums of their codes.
#pragma once
#include <immintrin.h>

#include "backend/cpu/kernels/unpack_avx2.inl"

namespace gemmule {
namespace {

namespace quant_avx2 {

// Blocks of Size activations to int8; one sum per Group codes. The same rule as the scalar level: a block
// whose largest magnitude m is zero, so small that 127 / m overflows, infinite or NaN gets codes 0, with d =
// m / 127.
template <int Size, int Group>
void quantize(const float* x, int64_t k, int8_t* q, float* d, int16_t* sums) noexcept {
  const __m256i magnitude_mask = _mm256_set1_epi32(0x7fffffff);
  for (int64_t b = 0; b < k / Size; ++b) {
    const float* src = x + b * Size;
    __m256i max = _mm256_setzero_si256();
    for (int i = 0; i < Size; i += 8) {  // magnitudes order as integers, with NaN above infinity
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src + i));
      max = _mm256_max_epi32(max, _mm256_and_si256(bits, magnitude_mask));
    }
    __m128i m4 = _mm_max_epi32(_mm256_castsi256_si128(max), _mm256_extracti128_si256(max, 1));
    m4 = _mm_max_epi32(m4, _mm_shuffle_epi32(m4, 0x4e));
    m4 = _mm_max_epi32(m4, _mm_shuffle_epi32(m4, 0xb1));
    const float m = _mm_cvtss_f32(_mm_castsi128_ps(m4));
    const float inv = m > 0.0f ? 127.0f / m : 0.0f;
    d[b] = m / 127.0f;
    const bool usable = inv > 0.0f && inv < __builtin_inff();
    const __m256 factor = _mm256_set1_ps(inv);
    for (int i = 0; i < Size; i += 32) {
      __m256i codes = _mm256_setzero_si256();
      if (usable) {
        const auto eight = [&](int at) noexcept {
          return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(src + i + at), factor));
        };
        const __m256i a = _mm256_packs_epi32(eight(0), eight(8)),
                      c = _mm256_packs_epi32(eight(16), eight(24));
        codes =
            _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, c), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + b * Size + i), codes);
      const __m256i quads = _mm256_madd_epi16(_mm256_maddubs_epi16(bytes(1), codes),
                                              _mm256_set1_epi16(1));  // 8 sums of 4 codes
      __m128i low = _mm256_castsi256_si128(quads), high = _mm256_extracti128_si256(quads, 1);
      const __m128i pairs = _mm_hadd_epi32(low, high);        // 4 sums of 8
      const __m128i sixteens = _mm_hadd_epi32(pairs, pairs);  // 2 sums of 16, twice
      int16_t* out = sums + (b * Size + i) / Group;
      const int32_t first = _mm_cvtsi128_si32(sixteens), second = _mm_extract_epi32(sixteens, 1);
      if constexpr (Group == 32) {
        out[0] = static_cast<int16_t>(first + second);
      } else {
        out[0] = static_cast<int16_t>(first);
        out[1] = static_cast<int16_t>(second);
      }
    }
  }
}

}  // namespace quant_avx2

}  // namespace
}  // namespace gemmule
