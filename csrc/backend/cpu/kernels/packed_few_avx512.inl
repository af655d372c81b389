// AVX-512: matmuls of Q4_K, Q6_K, Q8_0 and Q4_0 in the packed layout for one or two tokens: the passes of
// decoding, which should wait for memory and for nothing else.
//
// A register holds two vectors of codes of one group of 8 rows, [vector][row][4], so a group is read from its
// beginning to its end. The activations of a step are laid out once in that order, as operands from memory.
// The two halves of a register are added at the end of a step or block, where sums of integers are still
// exact; from there on the arithmetic is that of the other kernels.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "backend/cpu/kernels/matmul_packed_avx2.inl"
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

constexpr int kMost = 2;        // tokens
constexpr int64_t kPanel = 64;  // rows
constexpr int kPanels = 2;      // walked side by side, at most
constexpr int64_t kAhead = 4;   // groups, of all panels together, from what is used to what is prefetched

// One token, one step of 256 elements, as operands.
struct alignas(64) Step {
  int8_t q[32][64];      // [32 elements of K][operand of 8 of them]
  int32_t start[8][16];  // -offset * sums of activations: of pairs of sub-blocks, or of blocks
  int16_t pairs[2][32];  // Q4_K: sums of activations of the sub-blocks (0, 1) and (2, 3); (4, 5) and (6, 7)
  float d[8];            // of the blocks; K types use the first
};

struct Scratch {
  Step steps[kMost];
  float acc[kPanels][8][kMost][8];  // [panel][group][token][row]
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
[[gnu::always_inline]] inline void prefetch(const uint8_t* at) noexcept {
  packed_vnni::prefetch<Bytes>(at, 0, 1);
}

// Neighbouring k-groups, as they lie in the halves of a register.
inline void side_by_side(const int8_t* q, int n, Step& to) noexcept {
  for (int i = 0; i < n; ++i, q += 8) store(to.q[i], eight_times(q, q + 4));
}

// Each type:
//   kElements, kBytes   of a block of one row
//   kFactorsFirst       d lies before all groups of a step
//   prepare   the operands of a token at one step, from its codes and their sums of 16 or 32
//   group     acc[token] += 8 rows times one step. `at`: the group; `d`: its factors; `n_blocks`: of 32
//             elements, in this step; `ahead`: bytes to what is prefetched, a little with every piece of work

struct Q4_K {
  static constexpr int64_t kElements = 256, kBytes = sizeof(BlockQ4_K);
  static constexpr bool kFactorsFirst = packed_avx2::Q4_K::kFactorsFirst;
  static_assert(16 * 15 * 127 <= 32767, "half the sum of a sub-block is the 16-bit factor of vpdpwssd");

  static void prepare(const int8_t* q, const int16_t* sums, int, Step& to) noexcept {
    side_by_side(q, 32, to);
    alignas(32) int16_t sums_32[16];
    const __m256i s32 = _mm256_madd_epi16(load_256(sums), _mm256_set1_epi16(1));
    quant_avx2::store(sums_32, _mm256_permute4x64_epi64(_mm256_packs_epi32(s32, s32), 0xd8));
    for (int i = 0; i < 2; ++i) store(to.pairs[i], eight_times(sums_32 + 4 * i, sums_32 + 4 * i + 2));
  }

  template <int T>
  [[gnu::always_inline]] static void group(const uint8_t* at, const uint8_t* d, int, int64_t ahead,
                                           const Step* x, float (*acc)[8]) noexcept {
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
        prefetch<128>(unit + ahead);
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
    prefetch<128>(at + ahead);
    const Vec mins[2] = {_mm512_cvtepu8_epi16(lower(min)), _mm512_cvtepu8_epi16(upper(min))};
    const __m256 scale_d = packed_avx2::load_halves(d), min_d = packed_avx2::load_halves(d + 16);
    repeat<T>([&]<int J>(Int<J>) noexcept __attribute__((always_inline)) {
      Vec offset = zero();
      dot_words(offset, mins[0], load(x[J].pairs[0]));
      dot_words(offset, mins[1], load(x[J].pairs[1]));
      const __m256 da = _mm256_set1_ps(x[J].d[0]);
      const __m256 sum = scaled(scale_d, da, folded(total[J]), _mm256_load_ps(acc[J]));
      _mm256_store_ps(acc[J], scaled(quant_avx2::negate(min_d), da, folded(offset), sum));
    });
  }
};

struct Q6_K {
  static constexpr int64_t kElements = 256, kBytes = sizeof(BlockQ6_K);
  static constexpr bool kFactorsFirst = packed_avx2::Q6_K::kFactorsFirst;

  // A register has the same k-group of two sub-blocks of 16.
  static void prepare(const int8_t* q, const int16_t* sums, int, Step& to) noexcept {
    for (int pair = 0; pair < 8; ++pair) {
      for (int i = 0; i < 4; ++i)
        store(to.q[4 * pair + i], eight_times(q + 32 * pair + 4 * i, q + 32 * pair + 16 + 4 * i));
      const int32_t first = -32 * sums[2 * pair], second = -32 * sums[2 * pair + 1];
      store(to.start[pair], eight_times(&first, &second));
    }
  }

  template <int T>
  [[gnu::always_inline]] static void group(const uint8_t* at, const uint8_t* d, int, int64_t ahead,
                                           const Step* x, float (*acc)[8]) noexcept {
    Vec total[T];
    repeat<T>([&]<int J>(Int<J>) noexcept __attribute__((always_inline)) { total[J] = zero(); });
    repeat<8>([&]<int Pair>(Int<Pair>) noexcept __attribute__((always_inline)) {
      const uint8_t* one = at + 128 + 192 * Pair;
      prefetch<192>(one + ahead);
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
    prefetch<128>(at + ahead);
    const __m256 scale_d = packed_avx2::load_halves(d);
    repeat<T>([&]<int J>(Int<J>) noexcept __attribute__((always_inline)) {
      const __m256 da = _mm256_set1_ps(x[J].d[0]);
      _mm256_store_ps(acc[J], scaled(scale_d, da, folded(total[J]), _mm256_load_ps(acc[J])));
    });
  }
};

// Blocks of 32 elements with a factor each.
template <class Base, int kOffset>
struct Block32 {
  static constexpr int64_t kElements = Base::kSize, kBytes = Base::kBytes;
  static constexpr bool kFactorsFirst = Base::kFactorsFirst;

  static void prepare(const int8_t* q, const int16_t* sums, int n_blocks, Step& to) noexcept {
    side_by_side(q, 4 * n_blocks, to);
    for (int b = 0; b < n_blocks; ++b)
      store(to.start[b], joined(_mm256_set1_epi32(-kOffset * sums[b]), _mm256_setzero_si256()));
  }

  template <int T>
  [[gnu::always_inline]] static void group(const uint8_t* at, const uint8_t* d, int n_blocks, int64_t ahead,
                                           const Step* x, float (*acc)[8]) noexcept {
    __m256 sum[T];
    repeat<T>([&]<int J>(Int<J>) noexcept
              __attribute__((always_inline)) { sum[J] = _mm256_load_ps(acc[J]); });
    const uint8_t* block = at + 16 * n_blocks;
    for (int b = 0; b < n_blocks; ++b, block += Base::kCodeBytes) {
      prefetch<Base::kCodeBytes + 16>(block + ahead);
      Vec w[4];
      if constexpr (Base::kEightBits) {
        repeat<4>([&]<int I>(Int<I>) noexcept __attribute__((always_inline)) {
          w[I] = packed_vnni::flipped(_mm512_loadu_si512(block + 64 * I), 0x80);
        });
      } else {
        repeat<2>([&]<int I>(Int<I>) noexcept __attribute__((always_inline)) {
          const Vec raw = _mm512_loadu_si512(block + 64 * I);
          w[I] = masked(raw, 15);
          w[I + 2] = masked(moved<-4>(raw), 15);
        });
      }
      Vec run[T];
      repeat<T>([&]<int J>(Int<J>) noexcept __attribute__((always_inline)) { run[J] = load(x[J].start[b]); });
      repeat<4>([&]<int I>(Int<I>) noexcept __attribute__((always_inline)) {
        repeat<T>([&]<int J>(Int<J>) noexcept
                  __attribute__((always_inline)) { dot_bytes(run[J], w[I], load(x[J].q[4 * b + I])); });
      });
      const __m256 factor = packed_avx2::load_halves(d + 16 * b);
      repeat<T>([&]<int J>(Int<J>) noexcept __attribute__((always_inline)) {
        sum[J] = scaled(factor, _mm256_set1_ps(x[J].d[b]), folded(run[J]), sum[J]);
      });
    }
    repeat<T>([&]<int J>(Int<J>) noexcept
              __attribute__((always_inline)) { _mm256_store_ps(acc[J], sum[J]); });
  }
};
using Q8_0 = Block32<packed_avx2::Q8_0, 128>;
using Q4_0 = Block32<packed_avx2::Q4_0, 8>;

// Rows of one panel.
struct View {
  const uint8_t* at;  // the step
  int groups;         // of 8 rows in the panel
  int begin, end;     // those of this product
};

// Rows `begin` to `end` of a matrix, in up to kPanels panels, which take turns group by group.
template <class F, int T>
void panels_matmul(const uint8_t* w, int64_t n_rows, int64_t begin, int64_t end, const ActRows& x, float* y,
                   int64_t y_stride, Scratch& scratch) noexcept {
  constexpr int64_t kFirst = F::kFactorsFirst ? 16 : 0;
  constexpr int64_t kBlock = F::kElements, kSums = kBlock == 256 ? 16 : 32;  // elements of a factor, of a sum
  const int64_t row_bytes = x.k / kBlock * F::kBytes;
  View views[kPanels];
  int n_views = 0;
  for (int64_t row = begin; row < end; ++n_views) {
    const int64_t panel = row / kPanel * kPanel;
    const int64_t rows = n_rows - panel < kPanel ? n_rows - panel : kPanel;
    const int64_t last = end - panel < rows ? end - panel : rows;
    views[n_views] = {w + panel * row_bytes, static_cast<int>(rows / 8), static_cast<int>((row - panel) / 8),
                      static_cast<int>(last / 8)};
    row = panel + last;
  }
  __builtin_memset(scratch.acc, 0, sizeof scratch.acc);
  for (int64_t first = 0; first < x.k; first += 256) {
    const int64_t left = x.k - first < 256 ? x.k - first : 256;
    const int n_blocks = static_cast<int>(left / 32);
    for (int64_t t = 0; t < T; ++t) {
      const int64_t at = t * x.k + first;
      F::prepare(x.q + at, x.sums + at / kSums, n_blocks, scratch.steps[t]);
      for (int64_t b = 0; b < left / kBlock; ++b) scratch.steps[t].d[b] = x.d[at / kBlock + b];
    }
    const int64_t group_bytes = 8 * (left / kBlock) * F::kBytes, next = group_bytes - kFirst;
    const int64_t ahead = kAhead / n_views * next;
    for (int g = 0; g < 8; ++g) {
      for (int i = 0; i < n_views; ++i) {
        const View& view = views[i];
        if (g < view.begin || g >= view.end) continue;
        const uint8_t* at = view.at + kFirst * view.groups + next * g;
        F::template group<T>(at, F::kFactorsFirst ? view.at + 16 * g : at, n_blocks, ahead, scratch.steps,
                             scratch.acc[i][g]);
      }
    }
    for (int i = 0; i < n_views; ++i) views[i].at += group_bytes * views[i].groups;
  }
  y += begin;
  for (int i = 0; i < n_views; ++i)
    for (int g = views[i].begin; g < views[i].end; ++g, y += 8)
      for (int64_t t = 0; t < T; ++t)
        _mm256_storeu_ps(y + t * y_stride, _mm256_load_ps(scratch.acc[i][g][t]));
}

template <class F, int T>
void matmul(const uint8_t* w, int64_t n_rows, int64_t row_begin, int64_t row_end, const ActRows& x, float* y,
            int64_t y_stride, void* scratch) noexcept {
  const int64_t n_panels = packed_avx2::streams(T);
  for (int64_t row = row_begin, end; row < row_end; row = end) {
    end = row / kPanel * kPanel + n_panels * kPanel;
    end = end < row_end ? end : row_end;
    panels_matmul<F, T>(w, n_rows, row, end, x, y, y_stride, *static_cast<Scratch*>(scratch));
  }
}

}  // namespace packed_few

namespace packed_vnni {
template <int T>
constexpr PackedMatmulFn kFewest<Q4_K, T> = packed_few::matmul<packed_few::Q4_K, T>;
template <int T>
constexpr PackedMatmulFn kFewest<Q6_K, T> = packed_few::matmul<packed_few::Q6_K, T>;
template <int T>
constexpr PackedMatmulFn kFewest<Q8_0, T> = packed_few::matmul<packed_few::Q8_0, T>;
template <int T>
constexpr PackedMatmulFn kFewest<Q4_0, T> = packed_few::matmul<packed_few::Q4_0, T>;
}  // namespace packed_vnni

}  // namespace
}  // namespace gemmule
