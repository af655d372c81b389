// Quantized matmuls for AVX2, many tokens (prefill). 8 or 16 weight rows by up to 256 elements of K are
// unpacked once to R8 form in thread scratch (see unpack_avx2.inl) and multiplied with all tokens, two at a
// time: an activation dword is broadcast from memory, products are summed in 16 bits as long as they cannot
// overflow, vpmaddwd applies the sub-block scales, and one f32 chain per output (8 outputs per register, kept
// in scratch between blocks of K) ends in y.
#pragma once
#include <immintrin.h>

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/dot_avx2.inl"
#include "backend/cpu/kernels/unpack_avx2.inl"

namespace gemmule {
namespace {

namespace quant_avx2 {

constexpr int kTokenTile = 512;  // tokens that share one unpacking of the weights

struct Scratch {
  GroupTile tiles[2];
  alignas(64) float acc[kTokenTile][2][8];  // [token][group][row]
};

// One to four tokens at the current block of K; each is `*_step` behind the one before.
struct Tokens {
  const int8_t* q;
  int64_t q_step;
  const float* d;
  int64_t d_step;
  const int16_t* sums;
  int64_t sums_step;
};

// acc[g][t] = pairwise 16-bit sums of N code vectors of each group with the activations of each token.
template <int G, int T, int N>
[[gnu::always_inline]] inline void dot_16(const uint8_t* const (&codes)[G], const int8_t* const (&a)[T],
                                          __m256i (&acc)[G][T]) noexcept {
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) {
    __m256i w[G];
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) w[g] = load(codes[g] + 32 * v);
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      const __m256i x = broadcast_dword(a[t] + 4 * v);
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
        const __m256i products = _mm256_maddubs_epi16(w[g], x);
        acc[g][t] = v == 0 ? products : _mm256_add_epi16(acc[g][t], products);
        pin(acc[g][t]);
      }
    }
  }
}

template <class F>
constexpr bool sums_fit_16_bits() {
  return F::kSumLength * 2 * F::kMaxCode * 127 <= 32767;
}

// One block of 256 of a K-quant for G groups of rows and T tokens.
template <class F, int G, int T>
inline void step_256(const GroupTile* tiles, const Tokens& x, float (*acc_rows)[2][8]) noexcept {
  static_assert(sums_fit_16_bits<F>());
  constexpr int kVectors = F::kSub / 4;
  const int8_t* a[T];
  const int16_t* sums[T];
  __m256i total[G][T];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    a[t] = x.q + t * x.q_step;
    sums[t] = x.sums + t * x.sums_step;
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) total[g][t] = _mm256_setzero_si256();
  }
  for (int s = 0; s < 256 / F::kSub; ++s) {
#pragma GCC unroll 4
    for (int part = 0; part < kVectors / F::kSumLength; ++part) {
      const int first = kVectors * s + F::kSumLength * part;
      const uint8_t* codes[G];
      const int8_t* at[T];
      __m256i acc[G][T];
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) codes[g] = tiles[g].codes[first];
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) at[t] = a[t] + 4 * first;
      dot_16<G, T, F::kSumLength>(codes, at, acc);
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t)
          total[g][t] = _mm256_add_epi32(total[g][t], _mm256_madd_epi16(acc[g][t], load(tiles[g].scales[s])));
      }
    }
  }
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    alignas(16) int16_t sums_32[8];
    const int16_t* pairs = paired_sums<F>(sums[t], sums_32);
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) {
      float* const acc_row = acc_rows[t][g];
      _mm256_store_ps(
          acc_row, finish_256<F>(tiles[g], pairs, x.d[t * x.d_step], total[g][t], _mm256_load_ps(acc_row)));
    }
  }
}

// `n_blocks` (1..8) blocks of 32 for G groups of rows and T tokens.
template <class F, int G, int T>
inline void step_32(const GroupTile* tiles, int n_blocks, const Tokens& x, float (*acc_rows)[2][8]) noexcept {
  static_assert(sums_fit_16_bits<F>());
  constexpr bool kTwoNibbles = F::kEightBits;
  // The term that depends on the activations only: -kOffset * sum (integers), or f32(sum) for the mins.
  alignas(32) int32_t offset[T][8];
  alignas(32) float sum_f32[T][8];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t) {
    const int16_t* sums = x.sums + t * x.sums_step;
    __m256i wide;
    if (n_blocks == 8) {
      wide = _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sums)));
    } else {
      alignas(32) int32_t some[8] = {};
      for (int b = 0; b < n_blocks; ++b) some[b] = sums[b];
      wide = load(some);
    }
    if constexpr (F::kMins)
      _mm256_store_ps(sum_f32[t], _mm256_cvtepi32_ps(wide));
    else
      store(offset[t], _mm256_mullo_epi32(wide, _mm256_set1_epi32(-F::kOffset)));
  }
  constexpr int kGroupsAtOnce = kTwoNibbles ? 1 : G;
  for (int first = 0; first < G; first += kGroupsAtOnce) {
    __m256 acc[kGroupsAtOnce][T];
#pragma GCC unroll 2
    for (int g = 0; g < kGroupsAtOnce; ++g) {
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) acc[g][t] = _mm256_load_ps(acc_rows[t][first + g]);
    }
    for (int b = 0; b < n_blocks; ++b) {
      __m256i total[kGroupsAtOnce][T];
      const int8_t* a[T];
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) a[t] = x.q + t * x.q_step + 32 * b;
      if constexpr (kTwoNibbles) {  // the two nibbles take the place of two groups of rows
        const uint8_t* codes[2] = {tiles[first].codes[16 * b], tiles[first].codes[16 * b + 8]};
        __m256i sums[2][T];
        dot_16<2, T, 8>(codes, a, sums);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t)
          total[0][t] = _mm256_add_epi32(_mm256_madd_epi16(sums[0][t], _mm256_set1_epi16(1)),
                                         _mm256_madd_epi16(sums[1][t], _mm256_set1_epi16(16)));
      } else {
#pragma GCC unroll 2
        for (int part = 0; part < 8 / F::kSumLength; ++part) {
          const uint8_t* codes[kGroupsAtOnce];
          const int8_t* at[T];
          __m256i sums[kGroupsAtOnce][T];
#pragma GCC unroll 2
          for (int g = 0; g < kGroupsAtOnce; ++g) codes[g] = tiles[g].codes[8 * b + F::kSumLength * part];
#pragma GCC unroll 4
          for (int t = 0; t < T; ++t) at[t] = a[t] + 4 * F::kSumLength * part;
          dot_16<kGroupsAtOnce, T, F::kSumLength>(codes, at, sums);
#pragma GCC unroll 2
          for (int g = 0; g < kGroupsAtOnce; ++g) {
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) {
              const __m256i wide = _mm256_madd_epi16(sums[g][t], _mm256_set1_epi16(1));
              total[g][t] = part == 0 ? wide : _mm256_add_epi32(total[g][t], wide);
            }
          }
        }
      }
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const __m256 da = _mm256_broadcast_ss(x.d + t * x.d_step + b);
#pragma GCC unroll 2
        for (int g = 0; g < kGroupsAtOnce; ++g) {
          const GroupTile& tile = tiles[first + g];
          __m256i dot = total[g][t];
          if constexpr (!F::kMins) dot = _mm256_add_epi32(dot, broadcast_dword(&offset[t][b]));
          acc[g][t] = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_load_ps(tile.d[b]), da), _mm256_cvtepi32_ps(dot),
                                      acc[g][t]);
          if constexpr (F::kMins)
            acc[g][t] = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_load_ps(tile.m[b]), da),
                                        _mm256_broadcast_ss(&sum_f32[t][b]), acc[g][t]);
        }
      }
    }
#pragma GCC unroll 2
    for (int g = 0; g < kGroupsAtOnce; ++g) {
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) _mm256_store_ps(acc_rows[t][first + g], acc[g][t]);
    }
  }
}

template <class F, int G, int T>
[[gnu::always_inline]] inline void step(const GroupTile* tiles, int n_blocks, const Tokens& x,
                                        float (*acc_rows)[2][8]) noexcept {
  if constexpr (F::kSize == 256)
    step_256<F, G, T>(tiles, x, acc_rows);
  else
    step_32<F, G, T>(tiles, n_blocks, x, acc_rows);
}

// One step for T tokens; then `x` moves on to the next ones.
template <class F, int G, int T>
[[gnu::always_inline]] inline void several_tokens(const GroupTile* tiles, int n_blocks, Tokens& x,
                                                  float (*acc_rows)[2][8]) noexcept {
#pragma GCC unroll 4
  for (int t = T; t < 2 * T; ++t) {  // the next rows of codes, too far apart for the hardware to foresee
#pragma GCC unroll 4
    for (int line = 0; line < 256; line += 64)
      _mm_prefetch(reinterpret_cast<const char*>(x.q + t * x.q_step + line), _MM_HINT_T0);
  }
  step<F, G, T>(tiles, n_blocks, x, acc_rows);
  x.q += T * x.q_step;
  x.d += T * x.d_step;
  x.sums += T * x.sums_step;
}

// `n_blocks` blocks of one group, or one block of a K-quant; moves the pointers behind them.
template <class F>
inline void unpack_group(RowPointers& rows, int n_blocks, GroupTile& tile) noexcept {
  if constexpr (F::kSize == 256) {
    F::unpack_scales(rows, tile);
    F::unpack_codes(rows, [&](int first, const __m256i(&w)[4]) noexcept {
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) store(tile.codes[first + v], w[v]);
    });
  } else {
    for (int b = 0; b < n_blocks; ++b) {
      __m256 d, m = _mm256_setzero_ps();
      F::unpack(rows, b * F::kBytes, d, m, [&](int first, const __m256i(&w)[4]) noexcept {
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          if constexpr (F::kEightBits) {
            const __m256i code = _mm256_xor_si256(w[v], bytes(0x80));
            store(tile.codes[16 * b + first + v], low_nibbles(code));
            store(tile.codes[16 * b + first + v + 8], high_nibbles(code));
          } else {
            store(tile.codes[8 * b + first + v], w[v]);
          }
        }
      });
      _mm256_store_ps(tile.d[b], d);
      if constexpr (F::kMins) _mm256_store_ps(tile.m[b], m);
    }
  }
  rows.advance(n_blocks * F::kBytes);
}

// G groups of rows from `row` on (the last may have fewer than 8) with up to kTokenTile tokens from `token`
// on.
template <class F, int G>
void row_groups(const uint8_t* w, int64_t w_stride, int64_t row, int64_t row_end, const ActRows& x,
                int64_t token, int64_t n_tokens, float* y, int64_t y_stride, Scratch& scratch) noexcept {
  RowPointers rows[G];
  for (int g = 0; g < G; ++g) rows[g] = row_pointers(w, w_stride, row + 8 * g, row_end);
  __builtin_memset(scratch.acc, 0, static_cast<size_t>(n_tokens) * sizeof scratch.acc[0]);
  constexpr int kBlocksPerStep = 256 / F::kSize;
  constexpr int kSumsPerBlock = F::kSize == 32 ? 1 : 16;
  const int64_t n_blocks = x.k / F::kSize;
  for (int64_t b = 0; b < n_blocks; b += kBlocksPerStep) {
    const int count = static_cast<int>(n_blocks - b < kBlocksPerStep ? n_blocks - b : kBlocksPerStep);
    for (int g = 0; g < G; ++g) unpack_group<F>(rows[g], count, scratch.tiles[g]);
    Tokens at{x.q + token * x.k + b * F::kSize,
              x.k,
              x.d + token * n_blocks + b,
              n_blocks,
              x.sums + (token * n_blocks + b) * kSumsPerBlock,
              n_blocks * kSumsPerBlock};
    int64_t t = 0;
    // 8-bit weights take one group at a time (their two nibbles count as two), which leaves room for four
    // tokens.
    if constexpr (F::kEightBits)
      for (; t + 4 <= n_tokens; t += 4) several_tokens<F, G, 4>(scratch.tiles, count, at, scratch.acc + t);
    for (; t + 2 <= n_tokens; t += 2) several_tokens<F, G, 2>(scratch.tiles, count, at, scratch.acc + t);
    if (t < n_tokens) step<F, G, 1>(scratch.tiles, count, at, scratch.acc + t);
  }
  for (int g = 0; g < G; ++g) {
    const int64_t first = row + 8 * g;
    for (int64_t t = 0; t < n_tokens; ++t)
      store_outputs(y + (token + t) * y_stride + first, _mm256_load_ps(scratch.acc[t][g]), row_end - first);
  }
}

// All rows of the range, kTokenTile tokens at a time.
template <class F>
void matmul_tiles(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                  float* y, int64_t y_stride, Scratch& scratch) noexcept {
  for (int64_t token = 0; token < x.n; token += kTokenTile) {
    const int64_t n_tokens = x.n - token < kTokenTile ? x.n - token : kTokenTile;
    int64_t row = row_begin;
    for (; row_end - row > 8; row += 16)
      row_groups<F, 2>(w, w_stride, row, row_end, x, token, n_tokens, y, y_stride, scratch);
    if (row < row_end) row_groups<F, 1>(w, w_stride, row, row_end, x, token, n_tokens, y, y_stride, scratch);
  }
}

}  // namespace quant_avx2

}  // namespace
}  // namespace gemmule
