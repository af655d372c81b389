// AVX2, packed layout: one step (up to 256 elements of K) of one group of 8 rows against a tile of tokens.
// The activations of the tile lie expanded in L1, every dword eight times, so that vpmaddubsw takes them from
// memory: 8 vectors of weights stay in registers while all tokens of the tile pass by.
#pragma once
#include <immintrin.h>

#include "backend/cpu/kernels/packed_expand_avx2.inl"

namespace gemmule {
namespace {

namespace packed_avx2 {

using quant_avx2::load;
using quant_avx2::pin;

// 4 or 8 products, with two chains of 16-bit sums.
template <int N>
[[gnu::always_inline]] inline __m256i dot_16(const __m256i* w, const uint8_t* x) noexcept {
  __m256i even = _mm256_maddubs_epi16(w[0], load(x)), odd = _mm256_maddubs_epi16(w[1], load(x + 32));
#pragma GCC unroll 4
  for (int v = 2; v < N; v += 2) {
    even = _mm256_add_epi16(even, _mm256_maddubs_epi16(w[v], load(x + 32 * v)));
    pin(even);
    odd = _mm256_add_epi16(odd, _mm256_maddubs_epi16(w[v + 1], load(x + 32 * v + 32)));
    pin(odd);
  }
  return _mm256_add_epi16(even, odd);
}

// The scaled sum of 32 elements of a K-quant.
template <class F>
[[gnu::always_inline]] inline __m256i dot_32(const __m256i (&w)[8], const __m256i (&scale)[2],
                                             const uint8_t* record) noexcept {
  if constexpr (F::kSumLength == 8) {
    return _mm256_madd_epi16(dot_16<8>(w, record), scale[0]);
  } else {
    __m256i first = dot_16<4>(w, record), second = dot_16<4>(w + 4, record + 128);
    if constexpr (F::kOffset != 0) {
      first = _mm256_add_epi16(first, load(record + 256));
      second = _mm256_add_epi16(second, load(record + 288));
    }
    return _mm256_add_epi32(_mm256_madd_epi16(first, scale[0]),
                            _mm256_madd_epi16(second, scale[F::kSub == 32 ? 0 : 1]));
  }
}

// Eighth `part` of the prefetching of `bytes` bytes from `ahead` on, which accompanies the work on as many
// others. Never more than a few lines at once: a burst of prefetches fills the line buffers and then holds up
// everything behind it.
template <int Bytes>
[[gnu::always_inline]] inline void prefetch_eighth(const uint8_t* ahead, int part) noexcept {
  constexpr int kEach = Bytes / 512;
#pragma GCC unroll 8
  for (int i = 0; i < kEach; ++i)
    _mm_prefetch(reinterpret_cast<const char*>(ahead + 64 * (kEach * part + i)), _MM_HINT_T0);
  if (Bytes % 512 > 0)
    _mm_prefetch(reinterpret_cast<const char*>(ahead + 64 * (8 * kEach + part)), _MM_HINT_T0);
}

// A K-quant: acc [n][8 rows] goes on by one block of 256.
template <class F, bool kOne>
[[gnu::always_inline]] inline void group_256(const uint8_t* group, const uint8_t* factors, Tile& tile,
                                             float* acc, const uint8_t* ahead) noexcept {
  constexpr int kRecord = 32 * record_vectors<F>(), kTail = 32 * tail_vectors<F>();
  const int64_t n = kOne ? 1 : tile.n;
  const uint8_t* codes = F::scales(group, tile.scales);
  const uint8_t* record = tile.records;
  __m256i total = _mm256_setzero_si256();
  for (int j = 0; j < 8; ++j) {
    __m256i w[8], scale[2];
    F::unpack(codes, w);
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) pin(w[g]);
#pragma GCC unroll 2
    for (int s = 0; s < 32 / F::kSub; ++s) {
      const uint8_t* at = tile.scales.scale[32 / F::kSub * j + s];
      scale[s] = F::kSignedScales ? signed_twice(at) : unsigned_twice(at);
      pin(scale[s]);
    }
    prefetch_eighth<8 * F::kBytes>(ahead, j);
    if constexpr (kOne) {
      total = _mm256_add_epi32(total, dot_32<F>(w, scale, record));
      record += kRecord;
    } else {
      uint8_t* result = tile.results + 32 * j;
      const uint8_t* const end = record + n * kRecord;
      do {
        store(result, dot_32<F>(w, scale, record));
        record += kRecord;
        result += kRecord;
      } while (record != end);
    }
    codes += F::kCodeBytes;
  }
  __m256 d, m = _mm256_setzero_ps();
  F::factors(group, factors, d, m);
  __m256i mins[F::kMins ? 128 / F::kSub : 1];
  if constexpr (F::kMins) {
#pragma GCC unroll 8
    for (int p = 0; p < 128 / F::kSub; ++p) mins[p] = unsigned_pairs(tile.scales.min[2 * p]);
  }
  const uint8_t* tail = tile.tails;
  const uint8_t* result = tile.results;
  float* const acc_end = acc + 8 * n;
  do {
    if constexpr (!kOne) {
      __m256i even = load(result), odd = load(result + 32);
#pragma GCC unroll 4
      for (int j = 2; j < 8; j += 2) {
        even = _mm256_add_epi32(even, load(result + 32 * j));
        odd = _mm256_add_epi32(odd, load(result + 32 * j + 32));
      }
      total = _mm256_add_epi32(even, odd);
      result += kRecord;
    }
    const __m256 da = _mm256_load_ps(reinterpret_cast<const float*>(tail));
    __m256 sum = _mm256_fmadd_ps(_mm256_mul_ps(d, da), _mm256_cvtepi32_ps(total), _mm256_load_ps(acc));
    if constexpr (F::kMins) {
      __m256i extra = _mm256_madd_epi16(mins[0], load(tail + 32));
#pragma GCC unroll 8
      for (int p = 1; p < 128 / F::kSub; ++p)
        extra = _mm256_add_epi32(extra, _mm256_madd_epi16(mins[p], load(tail + 32 + 32 * p)));
      sum = _mm256_fmadd_ps(_mm256_mul_ps(m, da), _mm256_cvtepi32_ps(extra), sum);
    }
    _mm256_store_ps(acc, sum);
    acc += 8;
    tail += kTail;
  } while (acc != acc_end);
}

// A type with blocks of 32: acc goes on by the blocks of one step.
template <class F, bool kOne>
[[gnu::always_inline]] inline void group_32(const uint8_t* group, Tile& tile, float* acc,
                                            const uint8_t* ahead) noexcept {
  constexpr int kRecord = 32 * record_vectors<F>();
  const int n = kOne ? 1 : tile.n, n_blocks = tile.n_blocks;
  const uint8_t* codes = group + (F::kMins ? 32 : 16) * n_blocks;
  const uint8_t* record = tile.records;
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 one_sum = _mm256_load_ps(acc);
  for (int b = 0; b < n_blocks; ++b) {
    __m256i w[8];
    F::unpack(codes, w);
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) pin(w[g]);
    const __m256 d = load_halves(group + 16 * b);
    __m256 m = _mm256_setzero_ps();
    if constexpr (F::kMins) m = load_halves(group + 16 * (n_blocks + b));
    prefetch_eighth<64 * F::kBytes>(ahead, b);
    float* sum_at = acc;
    const uint8_t* const end = record + n * kRecord;
    do {
      __m256i dot;
      if constexpr (F::kSumLength == 8) {
        dot = dot_16<8>(w, record);
        if constexpr (F::kOffset != 0) dot = _mm256_add_epi16(dot, load(record + 256));
        dot = _mm256_madd_epi16(dot, ones);
      } else {
        dot = _mm256_add_epi32(_mm256_madd_epi16(dot_16<4>(w, record), ones),
                               _mm256_madd_epi16(dot_16<4>(w + 4, record + 128), ones));
      }
      const __m256 da = _mm256_load_ps(reinterpret_cast<const float*>(record + kRecord - 32));
      __m256 sum = kOne ? one_sum : _mm256_load_ps(sum_at);
      sum = _mm256_fmadd_ps(_mm256_mul_ps(d, da), _mm256_cvtepi32_ps(dot), sum);
      if constexpr (F::kMins)
        sum = _mm256_fmadd_ps(_mm256_mul_ps(m, da),
                              _mm256_load_ps(reinterpret_cast<const float*>(record + 256)), sum);
      if constexpr (kOne)
        one_sum = sum;
      else
        _mm256_store_ps(sum_at, sum);
      sum_at += 8;
      record += kRecord;
    } while (record != end);
    codes += F::kCodeBytes;
  }
  if constexpr (kOne) _mm256_store_ps(acc, one_sum);
}

// Q8_0 for several tokens: weights and activations as 16-bit numbers, even and odd elements apart.
[[gnu::always_inline]] inline void group_q8_0(const uint8_t* group, Tile& tile, float* acc,
                                              const uint8_t* ahead) noexcept {
  constexpr int kRecord = 32 * record_vectors<Q8_0>();
  const int n = tile.n, n_blocks = tile.n_blocks;
  const uint8_t* codes = group + 16 * n_blocks;
  const uint8_t* records = tile.records;
  for (int b = 0; b < n_blocks; ++b) {
    const __m256 d = load_halves(group + 16 * b);
    prefetch_eighth<64 * Q8_0::kBytes>(ahead, b);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m256i w[8];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const __m256i raw = load_u(codes + 128 * half + 32 * v);
        w[2 * v] = _mm256_srai_epi16(_mm256_slli_epi16(raw, 8), 8);
        w[2 * v + 1] = _mm256_srai_epi16(raw, 8);
      }
#pragma GCC unroll 8
      for (int v = 0; v < 8; ++v) pin(w[v]);
      const uint8_t* record = records;
      const uint8_t* const end = record + n * kRecord;
      uint8_t* total = tile.results;
      float* sum_at = acc;
      do {
        const uint8_t* x = record + 256 * half;
        __m256i even = _mm256_madd_epi16(w[0], load(x)), odd = _mm256_madd_epi16(w[1], load(x + 32));
#pragma GCC unroll 4
        for (int v = 2; v < 8; v += 2) {
          even = _mm256_add_epi32(even, _mm256_madd_epi16(w[v], load(x + 32 * v)));
          pin(even);
          odd = _mm256_add_epi32(odd, _mm256_madd_epi16(w[v + 1], load(x + 32 * v + 32)));
          pin(odd);
        }
        const __m256i sum = _mm256_add_epi32(even, odd);
        if (half == 0) {
          store(total, sum);
        } else {
          const __m256 da = _mm256_load_ps(reinterpret_cast<const float*>(record + kRecord - 32));
          const __m256 dot = _mm256_cvtepi32_ps(_mm256_add_epi32(sum, load(total)));
          _mm256_store_ps(sum_at, _mm256_fmadd_ps(_mm256_mul_ps(d, da), dot, _mm256_load_ps(sum_at)));
          sum_at += 8;
        }
        total += 32;
        record += kRecord;
      } while (record != end);
    }
    records += n * kRecord;
    codes += Q8_0::kCodeBytes;
  }
}

// 32 elements of 8 rows of Q8_0 with one token, whose activations add up to sum_q. The cache line `ahead` of
// each line in use is prefetched with it: Q8_0 has little to compute between its lines, and even a burst of
// four prefetches costs a tenth of the bandwidth.
[[gnu::always_inline]] inline __m256i dot_q8_0(const uint8_t* codes, const int8_t* q,
                                               [[maybe_unused]] int sum_q, int64_t ahead) noexcept {
  __m256i total[2];
#if defined(__AVXVNNI__) || defined(__AVX512VNNI__)
  total[0] = _mm256_set1_epi32(-128 * sum_q);  // vpdpbusd takes w + 128
  total[1] = _mm256_setzero_si256();
#else
  static_assert(128 * 2 * 127 <= 32767, "|w| * (a with the sign of w): a pair of products fits 16 bits");
  total[0] = total[1] = _mm256_setzero_si256();
#endif
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
    if (g % 2 == 0) _mm_prefetch(reinterpret_cast<const char*>(codes + 32 * g + ahead), _MM_HINT_T0);
    const __m256i w = load_u(codes + 32 * g), a = broadcast_dword(q + 4 * g);
#if defined(__AVX512VNNI__)
    total[g % 2] = _mm256_dpbusd_epi32(total[g % 2], _mm256_xor_si256(w, _mm256_set1_epi8(-128)), a);
#elif defined(__AVXVNNI__)
    total[g % 2] = _mm256_dpbusd_avx_epi32(total[g % 2], _mm256_xor_si256(w, _mm256_set1_epi8(-128)), a);
#else
    const __m256i products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
    total[g % 2] = _mm256_add_epi32(total[g % 2], _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
    pin(total[g % 2]);
#endif
  }
  return _mm256_add_epi32(total[0], total[1]);
}

// A group of Q8_0 for one token, whose blocks begin at q, d and sums.
[[gnu::always_inline]] inline void group_q8_0_one(const uint8_t* group, const int8_t* q, const float* d,
                                                  const int16_t* sums, int n_blocks, float* acc,
                                                  int64_t ahead) noexcept {
  const uint8_t* codes = group + 16 * n_blocks;
  __m256 sum = _mm256_load_ps(acc);
  for (int i = 0; i < 128; i += 64)
    _mm_prefetch(reinterpret_cast<const char*>(group + ahead + i), _MM_HINT_T0);
  for (int b = 0; b < n_blocks; ++b) {
    const __m256i dot = dot_q8_0(codes, q, sums[b], ahead);
    const __m256 scale = _mm256_mul_ps(load_halves(group + 16 * b), _mm256_broadcast_ss(d + b));
    sum = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), sum);
    codes += Q8_0::kCodeBytes;
    q += 32;
  }
  _mm256_store_ps(acc, sum);
}

}  // namespace packed_avx2

}  // namespace
}  // namespace gemmule
