// VNNI: one tile of the packed matmuls, two registers of rows by up to kTile tokens, and one step of 256
// elements of K. Every activation is broadcast by a load and used twice, so that neither the load ports nor
// the issue slots hold up the multipliers.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/packed_formats_vnni.inl"

namespace gemmule {
namespace {

namespace packed_vnni {

// One token, one step of 256 elements.
struct alignas(64) TokenStep {
  int8_t q[256];
  int32_t start[32];  // of each run or block: -offset * sum of its activations
  float d[8];         // of each block; K types use the first
  union {
    int16_t pairs[16];  // K types. Sub-blocks of 32: their sums, then 8 times their sums; of 16: their sums
    float sums[8];      // types with blocks of 32
  };
};
static_assert(sizeof(TokenStep) == 448);

// The sums of 16 activations, or of 32, as the type wants them.
template <class F>
[[gnu::always_inline]] inline void prepare_256(const int16_t* sums, TokenStep& out) noexcept {
  const auto put = [](void* p, __m256i v) noexcept { _mm256_store_si256(static_cast<__m256i*>(p), v); };
  const __m256i s16 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums));
  const __m256i s32 = _mm256_madd_epi16(s16, _mm256_set1_epi16(1));
  const __m256i offset = _mm256_set1_epi32(-F::kOffset);
  if constexpr (F::kRun == 8) {
    put(out.start, _mm256_mullo_epi32(s32, offset));
  } else if constexpr (F::kRun == 4) {
    const __m256i low = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(s16));
    const __m256i high = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(s16, 1));
    put(out.start, _mm256_mullo_epi32(low, offset));
    put(out.start + 8, _mm256_mullo_epi32(high, offset));
  } else {                                   // sums of 8, from the codes themselves
    const auto four = [&](int i) noexcept {  // -offset * sum of 4, eight times
      const __m256i codes = _mm256_load_si256(reinterpret_cast<const __m256i*>(out.q + 32 * i));
      return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), codes),
                               _mm256_set1_epi16(-F::kOffset));
    };
    for (int i = 0; i < 4; ++i)
      put(out.start + 8 * i, _mm256_permute4x64_epi64(_mm256_hadd_epi32(four(2 * i), four(2 * i + 1)), 0xd8));
  }
  if constexpr (F::kFix) {  // 8 * 32 * 127 = 32,512 fits 16 bits
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(s32, _mm256_slli_epi32(s32, 3)), 0xd8);
    put(out.pairs, words);
  } else if constexpr (F::Base::kMins) {
    put(out.pairs, s16);
  }
}

// Step `step` of tokens `first` to `first + n - 1` of x.
template <class F>
void prepare(const ActRows& x, int64_t first, int64_t n, int64_t step, TokenStep* out) noexcept {
  const int64_t left = x.k - 256 * step;
  for (int64_t t = 0; t < n; ++t) {
    TokenStep& to = out[t];
    const int8_t* q = x.q + (first + t) * x.k + 256 * step;
    if (left >= 256) {
      for (int i = 0; i < 256; i += 32)
        _mm256_store_si256(reinterpret_cast<__m256i*>(to.q + i),
                           _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q + i)));
    } else {
      __builtin_memcpy(to.q, q, static_cast<size_t>(left));
    }
    if constexpr (F::Base::kSize == 256) {
      const int64_t block = (first + t) * (x.k / 256) + step;
      to.d[0] = x.d[block];
      prepare_256<F>(x.sums + 16 * block, to);
    } else {
      const int64_t block = (first + t) * (x.k / 32) + 8 * step;
      const int n_blocks = left >= 256 ? 8 : static_cast<int>(left / 32);
      if (n_blocks == 8) {
        const __m256i sums =
            _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x.sums + block)));
        _mm256_store_ps(to.d, _mm256_loadu_ps(x.d + block));
        _mm256_store_si256(reinterpret_cast<__m256i*>(to.start),
                           _mm256_mullo_epi32(sums, _mm256_set1_epi32(-F::kOffset)));
        _mm256_store_ps(to.sums, _mm256_cvtepi32_ps(sums));
      } else {
        for (int b = 0; b < n_blocks; ++b) {
          to.d[b] = x.d[block + b];
          to.start[b] = -F::kOffset * x.sums[block + b];
          to.sums[b] = static_cast<float>(x.sums[block + b]);
        }
      }
    }
  }
}

// Sums of T tokens for two registers of rows.
template <int T>
using Sums = Vec[2][T];
constexpr int64_t kNext = sizeof(TokenStep);  // from a token to the next

template <int T>
[[gnu::always_inline]] inline void clear(Sums<T>& sums) noexcept {
  repeat<T>([&]<int I>(Int<I>) noexcept __attribute__((always_inline)) {
    sums[0][I] = zero();
    sums[1][I] = zero();
  });
}
// Loaded twice: a copy of a register would take the place of a multiplication.
template <int T>
[[gnu::always_inline]] inline void start_at(Sums<T>& sums, const uint8_t* start) noexcept {
  repeat<T>([&]<int I>(Int<I>) noexcept __attribute__((always_inline)) {
    sums[0][I] = broadcast(start + I * kNext);
    sums[1][I] = broadcast(start + I * kNext);
  });
}
// One k-group.
template <int T>
[[gnu::always_inline]] inline void add_codes(Sums<T>& sums, const Codes& w, const int8_t* q) noexcept {
  repeat<T>([&]<int I>(Int<I>) noexcept __attribute__((always_inline)) {
    const Vec a = broadcast(q + I * kNext);
    dot_bytes(sums[0][I], w.v[0], a);
    dot_bytes(sums[1][I], w.v[1], a);
  });
}
template <int T>
[[gnu::always_inline]] inline void add_scaled_runs(Sums<T>& sums, const Sums<T>& runs, const int32_t* scale,
                                                   int64_t other) noexcept {
  const Vec s0 = load(scale), s1 = load(scale + other);
  repeat<T>([&]<int I>(Int<I>) noexcept __attribute__((always_inline)) {
    dot_words(sums[0][I], runs[0][I], s0);
    dot_words(sums[1][I], runs[1][I], s1);
  });
}
// Pairs of sub-block factors times pairs of sums of activations.
template <int T, int Pairs>
[[gnu::always_inline]] inline void add_pairs(Sums<T>& sums, const int32_t (*first)[kRows],
                                             const int32_t (*second)[kRows], const int16_t* pairs) noexcept {
  repeat<Pairs>([&]<int P>(Int<P>) noexcept __attribute__((always_inline)) {
    const Vec w0 = load(first[P]), w1 = load(second[P]);
    repeat<T>([&]<int I>(Int<I>) noexcept __attribute__((always_inline)) {
      const Vec a = broadcast(reinterpret_cast<const uint8_t*>(pairs) + I * kNext + 4 * P);
      dot_words(sums[0][I], w0, a);
      dot_words(sums[1][I], w1, a);
    });
  });
}

// T tokens, one step of a K type; `codes` calls a visitor as the types do; acc is [T][rows of the tile].
template <class F, int T, class Visit>
[[gnu::always_inline]] inline void tile_256(const Visit& codes, const StepScales (&scales)[2],
                                            const TokenStep* x, float* acc) noexcept {
  static_assert(4 * F::kRun * F::kLargest * 127 <= 32767,
                "the sum of a run is the 16-bit factor of vpdpwssd");
  Sums<T> total, run;
  clear<T>(total);
  const int8_t* q = x->q;
  const uint8_t* start = reinterpret_cast<const uint8_t*>(x->start);
  const int32_t* scale = scales[0].scale[0];
  constexpr int64_t kOther = sizeof(StepScales) / sizeof(int32_t);
  for (int unit = 0; unit < 64 / F::kUnit; ++unit) {
    codes(
        unit, [&]<int Order>(Int<Order>, int place, const Codes& w) noexcept __attribute__((always_inline)) {
          if constexpr (Order % F::kRun == 0) {
            if constexpr (F::kOffset == 0)
              clear<T>(run);
            else
              start_at<T>(run, start + 4 * (Order / F::kRun));
          }
          add_codes<T>(run, w, q + 4 * place);
          if constexpr (Order % F::kRun == F::kRun - 1)
            add_scaled_runs<T>(total, run, scale + kRows * (Order / (F::Base::kSub / 4)), kOther);
        });
    q += 4 * F::kUnit;
    start += 4 * (F::kUnit / F::kRun);
    scale += kRows * (F::kUnit / (F::Base::kSub / 4));
    asm("" : "+r"(q), "+r"(start), "+r"(scale));  // three registers, whatever the number of tokens
  }
  if constexpr (F::kFix) add_pairs<T, 4>(total, scales[0].fix, scales[1].fix, x->pairs + 8);
  if constexpr (F::Base::kMins) {
    clear<T>(run);
    add_pairs<T, 128 / F::Base::kSub>(run, scales[0].min, scales[1].min, x->pairs);
  }
  repeat<2>([&]<int H>(Int<H>) noexcept __attribute__((always_inline)) {
    const VecF d = load_f32(scales[H].d[0]);
    repeat<T>([&]<int I>(Int<I>) noexcept __attribute__((always_inline)) {
      const VecF da = broadcast_f32(x[I].d);
      VecF a = load_f32(acc + kRows * (2 * I + H));
      a = fma(mul(d, da), to_f32(total[H][I]), a);
      if constexpr (F::Base::kMins) a = fma(mul(load_f32(scales[H].m[0]), da), to_f32(run[H][I]), a);
      store_f32(acc + kRows * (2 * I + H), a);
    });
  });
}

// The same for n blocks of 32.
template <class F, int T, class Visit>
[[gnu::always_inline]] inline void tile_32(const Visit& codes, const StepScales (&scales)[2], int n,
                                           const TokenStep* x, float* acc) noexcept {
  Sums<T> run;
  VecF a[2][T];
  repeat<T>([&]<int I>(Int<I>) noexcept __attribute__((always_inline)) {
    a[0][I] = load_f32(acc + 2 * kRows * I);
    a[1][I] = load_f32(acc + kRows * (2 * I + 1));
  });
  const int8_t* q = x->q;
  const uint8_t* factors =
      reinterpret_cast<const uint8_t*>(x->start);  // start, d and sums: 128 and 160 bytes on
  for (int b = 0; b < n; ++b) {
    if constexpr (F::kOffset == 0)
      clear<T>(run);
    else
      start_at<T>(run, factors);
    codes(
        b, [&]<int Order>(Int<Order>, int place, const Codes& w) noexcept
        __attribute__((always_inline)) { add_codes<T>(run, w, q + 4 * place); });
    repeat<2>([&]<int H>(Int<H>) noexcept __attribute__((always_inline)) {
      const VecF d = load_f32(scales[H].d[b]);
      repeat<T>([&]<int I>(Int<I>) noexcept __attribute__((always_inline)) {
        const VecF da = broadcast_f32(factors + I * kNext + 128);
        a[H][I] = fma(mul(d, da), to_f32(run[H][I]), a[H][I]);
        if constexpr (F::Base::kMins) {
          const VecF sum = broadcast_f32(factors + I * kNext + 160);
          a[H][I] = fma(mul(load_f32(scales[H].m[b]), da), sum, a[H][I]);
        }
      });
    });
    q += 32;
    factors += 4;
    asm("" : "+r"(q), "+r"(factors));
  }
  repeat<T>([&]<int I>(Int<I>) noexcept __attribute__((always_inline)) {
    store_f32(acc + 2 * kRows * I, a[0][I]);
    store_f32(acc + kRows * (2 * I + 1), a[1][I]);
  });
}

}  // namespace packed_vnni

}  // namespace
}  // namespace gemmule
