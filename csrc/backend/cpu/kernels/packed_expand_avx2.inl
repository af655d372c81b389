// AVX2, packed layout: the activations of a tile of tokens at one step of K, expanded: every dword eight
// times, as vpmaddubsw wants it from memory beside 8 rows of weights, with what else a group needs of each
// token.
#pragma once
#include <immintrin.h>

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/packed_formats_avx2.inl"

namespace gemmule {
namespace {

namespace packed_avx2 {

using quant_avx2::broadcast_dword;

// Vectors per token and 32 elements of K ("record"), and per token and step ("tail").
//   K-quants  record: 8 activations, two offsets of sub-blocks of 16 if kOffset; tail: da, pairs of sums if
//   kMins 32 elements   record: 8 activations, offset or f32 sum if the type has one of them, da Q8_0 record:
//   8 k-groups as 16-bit (k0, k2) and (k1, k3), da
template <class F>
constexpr int record_vectors() {
  if (F::kEightBits) return 17;
  if (F::kSize == 32) return 10;
  return F::kOffset != 0 ? 10 : 8;
}
template <class F>
constexpr int tail_vectors() {
  return F::kSize == 32 ? 0 : F::kMins ? 1 + 128 / F::kSub : 1;
}

constexpr int kMaxTile = 12;  // tokens of a tile; their expanded activations take at most kTileBytes of L1
constexpr int kTileBytes = 24 * 1024;
template <class F>
constexpr int max_tile() {
  constexpr int kFit = kTileBytes / (32 * (8 * record_vectors<F>() + tail_vectors<F>()));
  return kFit < kMaxTile ? kFit : kMaxTile;
}

// A tile of n tokens at one step.
struct Tile {
  alignas(64) uint8_t records[kTileBytes];          // [32 elements][n][record]
  alignas(64) uint8_t results[kMaxTile * 10 * 32];  // [n][record]: scaled sums of each 32 elements
  alignas(64) uint8_t tails[kMaxTile * 9 * 32];     // [n][tail]
  SubScales scales;
  int n;
  int n_blocks;  // blocks of 32 elements of this step
};

template <class F>
void expand_256(const ActRows& x, int64_t token, int64_t step, Tile& tile) noexcept {
  constexpr int kRecord = 32 * record_vectors<F>(), kTail = 32 * tail_vectors<F>();
  const int64_t n_blocks = x.k / 256;
  for (int t = 0; t < tile.n; ++t) {
    const int8_t* q = x.q + (token + t) * x.k + 256 * step;
    const int16_t* sums = x.sums + ((token + t) * n_blocks + step) * 16;
    uint8_t* record = tile.records + t * kRecord;
    for (int j = 0; j < 8; ++j) {
#pragma GCC unroll 8
      for (int g = 0; g < 8; ++g) store(record + 32 * g, broadcast_dword(q + 4 * g));
      if constexpr (F::kOffset != 0) {  // -kOffset * (a0 + a1, a2 + a3), over the 4 k-groups of a sub-block
        const __m256i pairs = _mm256_maddubs_epi16(bytes(1), load_u(q));
        const __m256i two = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0x4e));
        const __m256i four = _mm256_add_epi16(two, _mm256_shuffle_epi32(two, 0xb1));
        const __m256i offset = _mm256_mullo_epi16(four, _mm256_set1_epi16(-F::kOffset));
        store(record + 256, _mm256_permute2x128_si256(offset, offset, 0x00));
        store(record + 288, _mm256_permute2x128_si256(offset, offset, 0x11));
      }
      q += 32;
      record += tile.n * kRecord;
    }
    uint8_t* tail = tile.tails + t * kTail;
    store(tail, broadcast_dword(x.d + (token + t) * n_blocks + step));
    if constexpr (F::kMins) {
      alignas(16) int16_t sums_32[8];
      const int16_t* pairs = quant_avx2::paired_sums<F>(sums, sums_32);
#pragma GCC unroll 8
      for (int p = 0; p < 128 / F::kSub; ++p) store(tail + 32 + 32 * p, broadcast_dword(pairs + 2 * p));
    }
  }
}

template <class F>
void expand_32(const ActRows& x, int64_t token, int64_t step, Tile& tile) noexcept {
  constexpr int kRecord = 32 * record_vectors<F>();
  const int64_t n_blocks = x.k / 32;
  for (int t = 0; t < tile.n; ++t) {
    const int8_t* q = x.q + (token + t) * x.k + 256 * step;
    const float* d = x.d + (token + t) * n_blocks + 8 * step;
    const int16_t* sums = x.sums + (token + t) * n_blocks + 8 * step;
    uint8_t* record = tile.records + t * kRecord;
    for (int b = 0; b < tile.n_blocks; ++b) {
      if constexpr (F::kEightBits) {
#pragma GCC unroll 8
        for (int g = 0; g < 8; ++g) {
          const __m256i a = broadcast_dword(q + 4 * g);
          store(record + 64 * g, _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8));
          store(record + 64 * g + 32, _mm256_srai_epi16(a, 8));
        }
      } else {
#pragma GCC unroll 8
        for (int g = 0; g < 8; ++g) store(record + 32 * g, broadcast_dword(q + 4 * g));
      }
      if constexpr (F::kOffset != 0) {
        const __m256i pairs = _mm256_maddubs_epi16(bytes(1), load_u(q));
        const __m256i two = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0x4e));
        const __m256i four = _mm256_add_epi16(two, _mm256_shuffle_epi32(two, 0xb1));
        const __m256i eight = _mm256_add_epi16(four, _mm256_permute2x128_si256(four, four, 0x01));
        store(record + 256, _mm256_mullo_epi16(eight, _mm256_set1_epi16(-F::kOffset)));
      } else if constexpr (F::kMins) {
        _mm256_store_ps(reinterpret_cast<float*>(record + 256), _mm256_set1_ps(static_cast<float>(sums[b])));
      }
      store(record + kRecord - 32, broadcast_dword(d + b));
      q += 32;
      record += tile.n * kRecord;
    }
  }
}

template <class F>
[[gnu::always_inline]] inline void expand(const ActRows& x, int64_t token, int64_t step,
                                          Tile& tile) noexcept {
  if constexpr (F::kSize == 256)
    expand_256<F>(x, token, step, tile);
  else
    expand_32<F>(x, token, step, tile);
}

}  // namespace packed_avx2

}  // namespace
}  // namespace gemmule
