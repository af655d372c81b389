// Quantized matmuls for AVX2. 8 or 16 weight rows by up to 256 elements of K are unpacked once to R8 form in
// thread scratch (see unpack_avx2.inl) and multiplied with all tokens, two at a time: an activation dword is
// broadcast from memory, products are summed in 16 bits as long as they cannot overflow, vpmaddwd applies the
// sub-block scales, and one f32 chain per output (8 outputs per register, kept in scratch between blocks of
// K) ends in y.
#include <immintrin.h>

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/unpack_avx2.inl"
#include "quant/blocks.h"

namespace gemmule {
namespace {

namespace quant_avx2 {

constexpr int kTokenTile = 512;  // tokens that share one unpacking of the weights

struct Scratch {
  GroupTile tiles[2];
  alignas(64) float acc[kTokenTile][2][8];  // [token][group][row]
};

// Two tokens (or one) at the current block of K; the second is `*_step` behind the first.
struct Tokens {
  const int8_t* q;
  int64_t q_step;
  const float* d;
  int64_t d_step;
  const int16_t* sums;
  int64_t sums_step;
};

template <class T>
[[gnu::always_inline]] inline __m256i broadcast_dword(const T* p) noexcept {
  int32_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return _mm256_set1_epi32(v);
}
[[gnu::always_inline]] inline __m256i load(const void* p) noexcept {
  return _mm256_load_si256(static_cast<const __m256i*>(p));
}

// Keeps a value in its register at this place: without it GCC rebuilds the sums as trees and spills the products.
[[gnu::always_inline]] inline void pin(__m256i& v) noexcept { asm volatile("" : "+x"(v)); }

// acc[g][t] = pairwise 16-bit sums of N code vectors of each group with the activations of each token.
template <int G, int T, int N>
[[gnu::always_inline]] inline void dot_16(const uint8_t* const (&codes)[G], const int8_t* const (&a)[T],
                                          __m256i (&acc)[G][T]) noexcept {
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) {
    __m256i w[G];
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) w[g] = load(codes[g] + 32 * v);
#pragma GCC unroll 2
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
#pragma GCC unroll 2
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
#pragma GCC unroll 2
      for (int t = 0; t < T; ++t) at[t] = a[t] + 4 * first;
      dot_16<G, T, F::kSumLength>(codes, at, acc);
#pragma GCC unroll 2
      for (int g = 0; g < G; ++g) {
#pragma GCC unroll 2
        for (int t = 0; t < T; ++t)
          total[g][t] = _mm256_add_epi32(total[g][t], _mm256_madd_epi16(acc[g][t], load(tiles[g].scales[s])));
      }
    }
  }
#pragma GCC unroll 2
  for (int t = 0; t < T; ++t) {
    // Pairs of sums, one for each vector of GroupTile::pairs: of 16 codes as they are, of 32 codes added up
    // first.
    constexpr int kPairs = 128 / F::kSub;
    alignas(16) int16_t sums_32[8];
    const int16_t* pairs = sums[t];
    if constexpr (F::kSub == 32) {
      const __m256i s32 = _mm256_madd_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums[t])),
                                            _mm256_set1_epi16(1));
      _mm_store_si128(reinterpret_cast<__m128i*>(sums_32),
                      _mm_packs_epi32(_mm256_castsi256_si128(s32), _mm256_extracti128_si256(s32, 1)));
      pairs = sums_32;
    }
    const __m256 da = _mm256_broadcast_ss(x.d + t * x.d_step);
#pragma GCC unroll 2
    for (int g = 0; g < G; ++g) {
      __m256i extra = _mm256_madd_epi16(load(tiles[g].pairs[0]), broadcast_dword(pairs));
#pragma GCC unroll 8
      for (int p = 1; p < kPairs; ++p)
        extra = _mm256_add_epi32(extra,
                                 _mm256_madd_epi16(load(tiles[g].pairs[p]), broadcast_dword(pairs + 2 * p)));
      __m256i dot = total[g][t];
      if constexpr (!F::kMins) {
        constexpr int kShift = __builtin_ctz(F::kOffset);
        dot = _mm256_sub_epi32(dot, _mm256_slli_epi32(extra, kShift));
      }
      float* const acc_row = acc_rows[t][g];
      __m256 acc = _mm256_load_ps(acc_row);
      acc = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_load_ps(tiles[g].d[0]), da), _mm256_cvtepi32_ps(dot), acc);
      if constexpr (F::kMins)
        acc =
            _mm256_fmadd_ps(_mm256_mul_ps(_mm256_load_ps(tiles[g].m[0]), da), _mm256_cvtepi32_ps(extra), acc);
      _mm256_store_ps(acc_row, acc);
    }
  }
}

// `n_blocks` (1..8) blocks of 32 for G groups of rows and T tokens.
template <class F, int G, int T>
inline void step_32(const GroupTile* tiles, int n_blocks, const Tokens& x, float (*acc_rows)[2][8]) noexcept {
  static_assert(sums_fit_16_bits<F>());
  constexpr bool kTwoNibbles = F::kVectors == 16;
  // The term that depends on the activations only: -kOffset * sum (integers), or f32(sum) for the mins.
  alignas(32) int32_t offset[T][8];
  alignas(32) float sum_f32[T][8];
#pragma GCC unroll 2
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
#pragma GCC unroll 2
      for (int t = 0; t < T; ++t) acc[g][t] = _mm256_load_ps(acc_rows[t][first + g]);
    }
    for (int b = 0; b < n_blocks; ++b) {
      __m256i total[kGroupsAtOnce][T];
      const int8_t* a[T];
#pragma GCC unroll 2
      for (int t = 0; t < T; ++t) a[t] = x.q + t * x.q_step + 32 * b;
      if constexpr (kTwoNibbles) {  // the two nibbles take the place of two groups of rows
        const uint8_t* codes[2] = {tiles[first].codes[16 * b], tiles[first].codes[16 * b + 8]};
        __m256i sums[2][T];
        dot_16<2, T, 8>(codes, a, sums);
#pragma GCC unroll 2
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
#pragma GCC unroll 2
          for (int t = 0; t < T; ++t) at[t] = a[t] + 4 * F::kSumLength * part;
          dot_16<kGroupsAtOnce, T, F::kSumLength>(codes, at, sums);
#pragma GCC unroll 2
          for (int g = 0; g < kGroupsAtOnce; ++g) {
#pragma GCC unroll 2
            for (int t = 0; t < T; ++t) {
              const __m256i wide = _mm256_madd_epi16(sums[g][t], _mm256_set1_epi16(1));
              total[g][t] = part == 0 ? wide : _mm256_add_epi32(total[g][t], wide);
            }
          }
        }
      }
#pragma GCC unroll 2
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
#pragma GCC unroll 2
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

// `n_blocks` blocks of one group, or one block of a K-quant; moves the pointers behind them.
template <class F>
inline void unpack_group(RowPointers& rows, int n_blocks, GroupTile& tile) noexcept {
  if constexpr (F::kSize == 256) {
    F::unpack(rows, tile);
  } else {
    for (int b = 0; b < n_blocks; ++b) F::unpack(rows, b, tile);
  }
  for (int r = 0; r < 8; ++r) rows.p[r] += n_blocks * F::kBytes;
}

// G groups of rows from `row` on (the last may have fewer than 8) with up to kTokenTile tokens from `token`
// on.
template <class F, int G>
void row_groups(const uint8_t* w, int64_t w_stride, int64_t row, int64_t row_end, const ActRows& x,
                int64_t token, int64_t n_tokens, float* y, int64_t y_stride, Scratch& scratch) noexcept {
  RowPointers rows[G];
  for (int g = 0; g < G; ++g) {
    for (int r = 0; r < 8; ++r) {
      const int64_t wanted = row + 8 * g + r;
      rows[g].p[r] = w + (wanted < row_end ? wanted : row_end - 1) * w_stride;
    }
  }
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
    for (; t + 2 <= n_tokens; t += 2) {
      step<F, G, 2>(scratch.tiles, count, at, scratch.acc + t);
      at.q += 2 * at.q_step;
      at.d += 2 * at.d_step;
      at.sums += 2 * at.sums_step;
    }
    if (t < n_tokens) step<F, G, 1>(scratch.tiles, count, at, scratch.acc + t);
  }
  for (int g = 0; g < G; ++g) {
    const int64_t first = row + 8 * g;
    const int64_t left = row_end - first;
    for (int64_t t = 0; t < n_tokens; ++t) {
      float* dst = y + (token + t) * y_stride + first;
      const float* src = scratch.acc[t][g];
      if (left >= 8) {
        _mm256_storeu_ps(dst, _mm256_load_ps(src));
      } else {
        for (int64_t r = 0; r < left; ++r) dst[r] = src[r];
      }
    }
  }
}

template <class F>
void matmul(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
            float* y, int64_t y_stride, void* scratch_memory) noexcept {
  Scratch& scratch = *static_cast<Scratch*>(scratch_memory);
  for (int64_t token = 0; token < x.n; token += kTokenTile) {
    const int64_t n_tokens = x.n - token < kTokenTile ? x.n - token : kTokenTile;
    int64_t row = row_begin;
    for (; row_end - row > 8; row += 16)
      row_groups<F, 2>(w, w_stride, row, row_end, x, token, n_tokens, y, y_stride, scratch);
    if (row < row_end) row_groups<F, 1>(w, w_stride, row, row_end, x, token, n_tokens, y, y_stride, scratch);
  }
}

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

void matmul_q8_0(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q8_0>(w, w_stride, row_begin, row_end, x, y, y_stride, scratch);
}
void matmul_q4_0(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q4_0>(w, w_stride, row_begin, row_end, x, y, y_stride, scratch);
}
void matmul_q4_1(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q4_1>(w, w_stride, row_begin, row_end, x, y, y_stride, scratch);
}
void matmul_q5_0(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q5_0>(w, w_stride, row_begin, row_end, x, y, y_stride, scratch);
}
void matmul_q5_1(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q5_1>(w, w_stride, row_begin, row_end, x, y, y_stride, scratch);
}
void matmul_q2_k(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q2_K>(w, w_stride, row_begin, row_end, x, y, y_stride, scratch);
}
void matmul_q3_k(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q3_K>(w, w_stride, row_begin, row_end, x, y, y_stride, scratch);
}
void matmul_q4_k(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q4_K>(w, w_stride, row_begin, row_end, x, y, y_stride, scratch);
}
void matmul_q5_k(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q5_K>(w, w_stride, row_begin, row_end, x, y, y_stride, scratch);
}
void matmul_q6_k(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q6_K>(w, w_stride, row_begin, row_end, x, y, y_stride, scratch);
}

void quantize_q8_32(const float* x, int64_t k, int8_t* q, float* d, int16_t* sums) noexcept {
  quant_avx2::quantize<32, 32>(x, k, q, d, sums);
}
void quantize_q8_256(const float* x, int64_t k, int8_t* q, float* d, int16_t* sums) noexcept {
  quant_avx2::quantize<256, 16>(x, k, q, d, sums);
}

size_t matmul_scratch_bytes(int64_t, int64_t) noexcept { return sizeof(quant_avx2::Scratch); }

}  // namespace
}  // namespace gemmule
