// AVX-512: matmuls of Q4_K and Q6_K in the packed layout for one or two tokens: the passes of decoding, which
// should wait for memory and for nothing else.
//
// A register holds two vectors of codes of one group of 8 rows, [vector][row][4], so a panel is read as one
// stream from its beginning to its end. The activations of a step are laid out once in that order, as
// operands from memory. The two halves of a register are added at the end of the step, where sums of integers
// are still exact; from there on the arithmetic is that of the other kernels.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "backend/cpu/kernels/matmul_packed_vnni.inl"

namespace gemmule {
namespace {

namespace packed_few {

using packed_vnni::choose;
using packed_vnni::dot_bytes;
using packed_vnni::dot_words;
using packed_vnni::Int;
using packed_vnni::load;
using packed_vnni::masked;
using packed_vnni::moved;
using packed_vnni::repeat;
using packed_vnni::store;
using packed_vnni::Vec;
using packed_vnni::with_bits;
using packed_vnni::zero;

constexpr int kMost = 2;          // tokens
constexpr int64_t kPanel = 64;    // rows
constexpr int64_t kAhead = 4608;  // bytes from what is used to what is prefetched

// One token, one step of 256 elements, as operands.
struct alignas(64) Step {
  int8_t q[32][64];      // [32 elements of K][operand of 8 of them]
  int32_t start[8][16];  // Q6_K: -32 * sums of activations, of each pair of sub-blocks
  int16_t pairs[2][32];  // Q4_K: sums of activations of the sub-blocks (0, 1) and (2, 3); (4, 5) and (6, 7)
  float d;
};

struct Scratch {
  Step steps[kMost];
  float acc[8][kMost][8];  // [group][token][row]
};
static_assert(sizeof(Scratch) <= sizeof(packed_vnni::Scratch));

[[gnu::always_inline]] inline __m256i load_256(const void* p) noexcept {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
[[gnu::always_inline]] inline Vec joined(__m256i low, __m256i high) noexcept {
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
[[gnu::always_inline]] inline Vec both_at(const uint8_t* low, const uint8_t* high) noexcept {
  return joined(load_256(low), load_256(high));
}
// Four bytes eight times, then four others.
[[gnu::always_inline]] inline Vec eight_times(const void* low, const void* high) noexcept {
  using packed_vnni::Dword;
  return _mm512_mask_set1_epi32(_mm512_set1_epi32(*static_cast<const Dword*>(low)), 0xff00,
                                *static_cast<const Dword*>(high));
}
[[gnu::always_inline]] inline __m256i lower(Vec v) noexcept { return _mm512_castsi512_si256(v); }
[[gnu::always_inline]] inline __m256i upper(Vec v) noexcept { return _mm512_extracti64x4_epi64(v, 1); }
[[gnu::always_inline]] inline __m256i folded(Vec v) noexcept { return _mm256_add_epi32(lower(v), upper(v)); }
// d * da * sums + acc
[[gnu::always_inline]] inline __m256 scaled(__m256 d, __m256 da, __m256i sums, __m256 acc) noexcept {
  return _mm256_fmadd_ps(_mm256_mul_ps(d, da), _mm256_cvtepi32_ps(sums), acc);
}
template <int Bytes>
[[gnu::always_inline]] inline void prefetch(const uint8_t* used) noexcept {
  packed_vnni::prefetch<Bytes>(used + kAhead, 0, 1);
}

// Each type:
//   prepare   the operands of a token at one step, from its codes and their sums of 16
//   group     acc[token] += 8 rows times one step. `at`: the group; `d`: its factors

struct Q4_K {
  static constexpr int64_t kBytes = sizeof(BlockQ4_K);
  static constexpr bool kFactorsFirst = packed_avx2::Q4_K::kFactorsFirst;
  static_assert(16 * 15 * 127 <= 32767, "half the sum of a sub-block is the 16-bit factor of vpdpwssd");

  static void prepare(const int8_t* q, const int16_t* sums, Step& to) noexcept {
    for (int i = 0; i < 32; ++i, q += 8) store(to.q[i], eight_times(q, q + 4));
    alignas(32) int16_t sums_32[16];
    const __m256i s32 = _mm256_madd_epi16(load_256(sums), _mm256_set1_epi16(1));
    quant_avx2::store(sums_32, _mm256_permute4x64_epi64(_mm256_packs_epi32(s32, s32), 0xd8));
    for (int i = 0; i < 2; ++i) store(to.pairs[i], eight_times(sums_32 + 4 * i, sums_32 + 4 * i + 2));
  }

  template <int T>
  [[gnu::always_inline]] static void group(const uint8_t* at, const uint8_t* d, const Step* x,
                                           float (*acc)[8]) noexcept {
    // Scales and mins: bytes [sub-block][row]; in pairs of sub-blocks [pair][row][2]; as 16-bit numbers.
    const __m256i hi = load_256(at + 96);
    const Vec low = _mm512_loadu_si512(at + 32), high = joined(hi, _mm256_srli_epi16(hi, 4));
    const Vec in_pairs =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
    const Vec scale = _mm512_shuffle_epi8(with_bits(masked(low, 15), moved<4>(high), 0x30), in_pairs);
    const Vec min =
        _mm512_shuffle_epi8(with_bits(masked(moved<-4>(low), 15), moved<2>(high), 0x30), in_pairs);
    const Vec scales[2] = {_mm512_cvtepu8_epi16(lower(scale)), _mm512_cvtepu8_epi16(upper(scale))};
    Vec total[T];
    repeat<T>([&]<int J>(Int<J>) noexcept __attribute__((always_inline)) { total[J] = zero(); });
    repeat<4>([&]<int Pair>(Int<Pair>) noexcept __attribute__((always_inline)) {
      Vec run[2][T];  // of two sub-blocks
      repeat<2>([&]<int H>(Int<H>) noexcept __attribute__((always_inline)) {
        constexpr int kUnit = 2 * Pair + H;
        const uint8_t* unit = at + 128 + 128 * kUnit;
        prefetch<128>(unit);
        const Vec first = _mm512_loadu_si512(unit), second = _mm512_loadu_si512(unit + 64);
        const Vec w[4] = {masked(first, 15), masked(second, 15), masked(moved<-4>(first), 15),
                          masked(moved<-4>(second), 15)};
        repeat<T>([&]<int J>(Int<J>) noexcept __attribute__((always_inline)) { run[H][J] = zero(); });
        repeat<4>([&]<int I>(Int<I>) noexcept __attribute__((always_inline)) {
          repeat<T>([&]<int J>(Int<J>) noexcept __attribute__((always_inline)) {
            dot_bytes(run[H][J], w[I], load(x[J].q[4 * kUnit + I]));
          });
        });
      });
      const Vec factors =
          _mm512_shuffle_i64x2(scales[Pair / 2], scales[Pair / 2], Pair % 2 == 0 ? 0x44 : 0xee);
      repeat<T>([&]<int J>(Int<J>) noexcept __attribute__((always_inline)) {
        const Vec both = _mm512_mask_mov_epi16(run[0][J], 0xaaaaaaaa, _mm512_slli_epi32(run[1][J], 16));
        dot_words(total[J], both, factors);
      });
    });
    prefetch<128>(at);
    const Vec mins[2] = {_mm512_cvtepu8_epi16(lower(min)), _mm512_cvtepu8_epi16(upper(min))};
    const __m256 scale_d = packed_avx2::load_halves(d), min_d = packed_avx2::load_halves(d + 16);
    repeat<T>([&]<int J>(Int<J>) noexcept __attribute__((always_inline)) {
      Vec offset = zero();
      dot_words(offset, mins[0], load(x[J].pairs[0]));
      dot_words(offset, mins[1], load(x[J].pairs[1]));
      const __m256 da = _mm256_set1_ps(x[J].d);
      const __m256 sum = scaled(scale_d, da, folded(total[J]), _mm256_load_ps(acc[J]));
      _mm256_store_ps(acc[J], scaled(quant_avx2::negate(min_d), da, folded(offset), sum));
    });
  }
};

struct Q6_K {
  static constexpr int64_t kBytes = sizeof(BlockQ6_K);
  static constexpr bool kFactorsFirst = packed_avx2::Q6_K::kFactorsFirst;

  // A register has the same k-group of two sub-blocks of 16.
  static void prepare(const int8_t* q, const int16_t* sums, Step& to) noexcept {
    for (int pair = 0; pair < 8; ++pair) {
      for (int i = 0; i < 4; ++i)
        store(to.q[4 * pair + i], eight_times(q + 32 * pair + 4 * i, q + 32 * pair + 16 + 4 * i));
      const int32_t first = -32 * sums[2 * pair], second = -32 * sums[2 * pair + 1];
      store(to.start[pair], eight_times(&first, &second));
    }
  }

  template <int T>
  [[gnu::always_inline]] static void group(const uint8_t* at, const uint8_t* d, const Step* x,
                                           float (*acc)[8]) noexcept {
    Vec total[T];
    repeat<T>([&]<int J>(Int<J>) noexcept __attribute__((always_inline)) { total[J] = zero(); });
    repeat<8>([&]<int Pair>(Int<Pair>) noexcept __attribute__((always_inline)) {
      const uint8_t* one = at + 128 + 192 * Pair;
      prefetch<192>(one);
      const Vec b0 = both_at(one, one + 96), b1 = both_at(one + 32, one + 128),
                b2 = both_at(one + 64, one + 160);
      const Vec fourth = choose(0x30, moved<-2>(b2), choose(3, moved<-6>(b0), moved<-4>(b1)));
      const Vec w[4] = {masked(b0, 63), masked(b1, 63), masked(b2, 63), masked(fourth, 63)};
      const Vec scale =
          _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 16 * Pair)));
      Vec run[T];
      repeat<T>([&]<int J>(Int<J>) noexcept
                __attribute__((always_inline)) { run[J] = load(x[J].start[Pair]); });
      repeat<4>([&]<int I>(Int<I>) noexcept __attribute__((always_inline)) {
        repeat<T>([&]<int J>(Int<J>) noexcept
                  __attribute__((always_inline)) { dot_bytes(run[J], w[I], load(x[J].q[4 * Pair + I])); });
      });
      repeat<T>([&]<int J>(Int<J>) noexcept __attribute__((always_inline)) {
        total[J] = _mm512_add_epi32(total[J], _mm512_mullo_epi32(run[J], scale));
      });
    });
    prefetch<128>(at);
    const __m256 scale_d = packed_avx2::load_halves(d);
    repeat<T>([&]<int J>(Int<J>) noexcept __attribute__((always_inline)) {
      const __m256 da = _mm256_set1_ps(x[J].d);
      _mm256_store_ps(acc[J], scaled(scale_d, da, folded(total[J]), _mm256_load_ps(acc[J])));
    });
  }
};

// Rows `begin` to `end` of one panel, which begins at w and has `groups` groups of rows.
template <class F, int T>
void panel_matmul(const uint8_t* w, int64_t groups, int64_t begin, int64_t end, const ActRows& x, float* y,
                  int64_t y_stride, Scratch& scratch) noexcept {
  constexpr int64_t kFirst = F::kFactorsFirst ? 16 : 0, kNext = 8 * F::kBytes - kFirst;
  __builtin_memset(scratch.acc, 0, sizeof scratch.acc);
  for (int64_t step = 0; step < x.k / 256; ++step, w += 8 * F::kBytes * groups) {
    for (int64_t t = 0; t < T; ++t) {
      const int64_t block = t * (x.k / 256) + step;
      F::prepare(x.q + 256 * block, x.sums + 16 * block, scratch.steps[t]);
      scratch.steps[t].d = x.d[block];
    }
    for (int64_t g = begin; g < end; ++g) {
      const uint8_t* at = w + kFirst * groups + kNext * g;
      F::template group<T>(at, F::kFactorsFirst ? w + 16 * g : at, scratch.steps, scratch.acc[g]);
    }
  }
  for (int64_t t = 0; t < T; ++t)
    for (int64_t g = begin; g < end; ++g)
      _mm256_storeu_ps(y + t * y_stride + 8 * (g - begin), _mm256_load_ps(scratch.acc[g][t]));
}

template <class F, int T>
void matmul(const uint8_t* w, int64_t n_rows, int64_t row_begin, int64_t row_end, const ActRows& x, float* y,
            int64_t y_stride, void* scratch) noexcept {
  for (int64_t row = row_begin, end; row < row_end; row = end) {
    const int64_t panel = row / kPanel * kPanel, last = panel + kPanel;
    end = last < row_end ? last : row_end;
    panel_matmul<F, T>(w + panel * (x.k / 256) * F::kBytes, ((last < n_rows ? last : n_rows) - panel) / 8,
                       (row - panel) / 8, (end - panel) / 8, x, y + row, y_stride,
                       *static_cast<Scratch*>(scratch));
  }
}

}  // namespace packed_few

namespace packed_vnni {
template <int T>
constexpr PackedMatmulFn kFewest<Q4_K, T> = packed_few::matmul<packed_few::Q4_K, T>;
template <int T>
constexpr PackedMatmulFn kFewest<Q6_K, T> = packed_few::matmul<packed_few::Q6_K, T>;
}  // namespace packed_vnni

}  // namespace
}  // namespace gemmule
