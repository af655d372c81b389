// NEON matmuls for quantized weights, of which this file is the part that both layouts share: a piece of up
// to 64 rows times up to 64 tokens, one step of 256 elements of K after the other; for each group of 8 rows
// its scales are widened once, then tiles of up to 8 tokens use the same unpacked codes. Lanes are rows, so
// there is no horizontal sum. The level defines OneToken and ManyTokens (dot_neon*.inl).
#pragma once
#include <arm_neon.h>

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/formats_neon.inl"
#include "backend/cpu/kernels/pack_neon.inl"

namespace gemmule {
namespace {

namespace quant_neon {

inline constexpr int kPieceRows = 64;
inline constexpr int kPieceTokens = 64;  // even; 16 KB of activations per step

struct alignas(64) Scratch {
  float acc[kPieceTokens][kPieceRows];  // the f32 chains of the piece
  int8_t pairs[kPieceTokens * 256];     // activations of the step for smmla: [pair][element / 8][token][8]
  uint8_t group[2304];                  // a group packed on the way: d where it is apart, then the group
  Factors factors;
};
static_assert(sizeof(Scratch::group) >= 8 * 34 * 8 && sizeof(Scratch::group) >= 8 * 210);

// The activations of a piece at one step; all pointers are those of the first token of the piece.
struct StepTokens {
  const int8_t* a;  // in the form of Dot: the next unit of kTokens tokens is a_stride bytes on
  int64_t a_stride;
  const float* d;  // [token][d_stride]
  int64_t d_stride;
  const int16_t* sums;  // [token][sums_stride]
  int64_t sums_stride;
  int n;         // tokens
  int n_blocks;  // of 32 elements; 8 where blocks have 256

  // A unit of two may reach past the last token; what it computes there is never looked at.
  int token(int t) const noexcept { return t < n ? t : n - 1; }
};

// sum_s min_s * (sum of the activations of sub-block s), for 4 rows.
template <class F>
[[gnu::always_inline]] inline int32x4_t dot_mins(const Factors& f, int row, const int16_t* sums) noexcept {
  constexpr int kVectors = 32 / F::kSub;  // registers of 8 sums
  int16x8_t s[2] = {vld1q_s16(sums), vld1q_s16(sums + 8)};
  // Sums of 32 activations stay below 2^12, products with mins of up to 63 below 2^18, 16 of them below 2^22.
  if constexpr (F::kSub == 32) s[0] = vpaddq_s16(s[0], s[1]);
  int32x4_t total = vdupq_n_s32(0);
  unroll<0, 8 * kVectors>([&](auto sub_block) {
    constexpr int j = decltype(sub_block)::value;
    total = vmlal_laneq_s16(total, vld1_s16(f.min[j] + row), s[j / 8], j % 8);
  });
  return total;
}

// One group with one block of 256 elements, 4 rows from `row` on, kUnits units of tokens from `first` on.
template <class F, class Dot, int kUnits>
[[gnu::always_inline]] inline void half_group_256(const uint8_t* at, const Factors& f, int row,
                                                  const StepTokens& x, int first,
                                                  float (*acc)[kPieceRows]) noexcept {
  typename Dot::Sum total[kUnits];
#pragma GCC unroll 8
  for (int u = 0; u < kUnits; ++u) total[u] = Dot::zero();
  const int8_t* a = x.a + first / Dot::kTokens * x.a_stride;
  for (int j = 0; j < 256 / F::kSub; ++j) {
    int8x16_t codes[F::kSub / 4];
    F::codes(at, j, codes);
    Dot::arrange(codes);
    const auto scales = Dot::spread(vld1q_s32(f.scale[j] + row));
#pragma GCC unroll 8
    for (int u = 0; u < kUnits; ++u)
      total[u] =
          Dot::add_scaled(total[u], Dot::template dot<F::kMagnitude>(codes, a + u * x.a_stride), scales);
    a += F::kSub * Dot::kTokens;
  }
  const float32x4_t d = vld1q_f32(f.d[0] + row);
#pragma GCC unroll 8
  for (int u = 0; u < kUnits; ++u) {
    int32x4_t dots[Dot::kTokens];
    Dot::rows(total[u], dots);
#pragma GCC unroll 2
    for (int i = 0; i < Dot::kTokens; ++i) {
      const int t = first + u * Dot::kTokens + i, source = x.token(t);
      const float da = x.d[source * x.d_stride];
      float32x4_t sum = vld1q_f32(acc[t] + row);
      sum = vfmaq_f32(sum, vmulq_n_f32(d, da), vcvtq_f32_s32(dots[i]));
      if constexpr (F::kMins) {
        const int32x4_t mins = dot_mins<F>(f, row, x.sums + source * x.sums_stride);
        sum = vfmaq_f32(sum, vmulq_n_f32(vld1q_f32(f.m[0] + row), da), vcvtq_f32_s32(mins));
      }
      vst1q_f32(acc[t] + row, sum);
    }
  }
}

// The same for a group with x.n_blocks blocks of 32 elements.
template <class F, class Dot, int kUnits>
[[gnu::always_inline]] inline void half_group_32(const uint8_t* at, const Factors& f, int row,
                                                 const StepTokens& x, int first,
                                                 float (*acc)[kPieceRows]) noexcept {
  constexpr int kCount = kUnits * Dot::kTokens;
  float32x4_t sum[kCount];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) sum[i] = vld1q_f32(acc[first + i] + row);
  const int8_t* a = x.a + first / Dot::kTokens * x.a_stride;
  for (int j = 0; j < x.n_blocks; ++j) {
    int8x16_t codes[8];
    F::codes(at, j, codes);
    Dot::arrange(codes);
    const float32x4_t d = vld1q_f32(f.d[j] + row);
#pragma GCC unroll 8
    for (int u = 0; u < kUnits; ++u) {
      int32x4_t dots[Dot::kTokens];
      Dot::rows(Dot::template dot<F::kMagnitude>(codes, a + u * x.a_stride), dots);
#pragma GCC unroll 2
      for (int i = 0; i < Dot::kTokens; ++i) {
        const int at_token = u * Dot::kTokens + i, source = x.token(first + at_token);
        const float da = x.d[source * x.d_stride + j];
        sum[at_token] = vfmaq_f32(sum[at_token], vmulq_n_f32(d, da), vcvtq_f32_s32(dots[i]));
        if constexpr (F::kMins) {
          const float32x4_t m = vmulq_n_f32(vld1q_f32(f.m[j] + row), da);
          const float s32 = static_cast<float>(x.sums[source * x.sums_stride + j]);
          sum[at_token] = vfmaq_n_f32(sum[at_token], m, s32);
        }
      }
    }
    a += 32 * Dot::kTokens;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) vst1q_f32(acc[first + i] + row, sum[i]);
}

// acc[t][row] of 8 rows for kUnits units of tokens from `first` on. `codes`: the group's first block.
template <class F, class Dot, int kUnits>
[[gnu::noinline]] void group_tile(const uint8_t* codes, const Factors& f, const StepTokens& x, int first,
                                  float (*acc)[kPieceRows]) noexcept {
  for (int row = 0; row < 8; row += 4) {
    if constexpr (F::kSize == 256) {
      half_group_256<F, Dot, kUnits>(codes + 4 * row, f, row, x, first, acc);
    } else {
      half_group_32<F, Dot, kUnits>(codes + 4 * row, f, row, x, first, acc);
    }
  }
}

// All tokens of the piece, a tile at a time.
template <class F, class Dot>
void group_tokens(const uint8_t* codes, const Factors& f, const StepTokens& x,
                  float (*acc)[kPieceRows]) noexcept {
  constexpr int kTileTokens = Dot::kMostUnits * Dot::kTokens;
  int first = 0;
  for (; x.n - first >= kTileTokens; first += kTileTokens)
    group_tile<F, Dot, Dot::kMostUnits>(codes, f, x, first, acc);
  const int units = (x.n - first + Dot::kTokens - 1) / Dot::kTokens;
  unroll<1, Dot::kMostUnits + 1>([&](auto count) {
    constexpr int n = decltype(count)::value;
    if (units == n) group_tile<F, Dot, n>(codes, f, x, first, acc);
  });
}

// The activations of one step in the form that Dot wants.
template <class Dot>
void stage_activations(const int8_t* q, int64_t k, int n_elements, StepTokens& x, Scratch& scratch) noexcept {
  x.a = q;
  x.a_stride = k;
  if constexpr (Dot::kTokens == 2) {
    x.a = scratch.pairs;
    x.a_stride = 512;
    for (int t = 0; t < x.n; t += 2) {
      const int8_t* even = q + t * k;
      const int8_t* odd = q + x.token(t + 1) * k;
      int8_t* to = scratch.pairs + 256 * t;
      for (int i = 0; i < n_elements; i += 16, to += 32) {
        const int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(even + i)),
                        b = vreinterpretq_s64_s8(vld1q_s8(odd + i));
        vst1q_s8(to, vreinterpretq_s8_s64(vzip1q_s64(a, b)));
        vst1q_s8(to + 16, vreinterpretq_s8_s64(vzip2q_s64(a, b)));
      }
    }
  }
}

// Where a group lies: its own bytes, and those of d where the format keeps them apart.
struct GroupBytes {
  const uint8_t* d;
  const uint8_t* group;
};

// The groups of a packed matrix.
template <class F>
struct PackedGroups {
  const uint8_t* w;
  int64_t n_rows, row_bytes;

  GroupBytes find(int64_t row, int64_t step, int n_blocks, Scratch&) const noexcept {
    const int64_t panel = row / kPieceRows * kPieceRows, in_panel = (row - panel) / 8;
    const int64_t n_groups = (n_rows - panel < kPieceRows ? n_rows - panel : kPieceRows) / 8;
    constexpr int64_t kStepBytes =
        F::kSize == 256 ? 8 * F::kBytes : 64 * F::kBytes;  // of a group in a whole step
    const uint8_t* at = w + panel * row_bytes + step * n_groups * kStepBytes;
    if constexpr (F::kApart) {
      return {at + 16 * in_panel, at + 16 * n_groups + in_panel * (kStepBytes - 16)};
    } else {
      return {nullptr, at + in_panel * 8 * F::kBytes * (F::kSize == 256 ? 1 : n_blocks)};
    }
  }
  // Asks for the group that is two further on: hardware alone loses the stream at the end of a page.
  void prefetch(GroupBytes bytes) const noexcept {
    constexpr int kGroupBytes = F::kSize == 256 ? 8 * F::kBytes : 64 * F::kBytes;
#pragma GCC unroll 4
    for (int i = 0; i < kGroupBytes; i += 64) __builtin_prefetch(bytes.group + 2 * kGroupBytes + i);
  }
};

// The groups of a matrix in GGUF's layout, packed one by one. Rows from `row_end` on repeat the last one.
template <class F>
struct RowGroups {
  const uint8_t* w;
  int64_t w_stride, row_end;

  GroupBytes find(int64_t row, int64_t step, int n_blocks, Scratch& scratch) const noexcept {
    constexpr int64_t kStepBytes = F::kSize == 256 ? F::kBytes : 8 * F::kBytes;
    RowPointers rows;
    for (int r = 0; r < 8; ++r) {
      rows.p[r] = w + (row + r < row_end ? row + r : row_end - 1) * w_stride + step * kStepBytes;
      // The next step of these rows, for which the other groups of the piece leave time.
      for (int i = 0; i < kStepBytes; i += 64) __builtin_prefetch(rows.p[r] + kStepBytes + i);
    }
    uint8_t* group = scratch.group + (F::kApart ? 16 : 0);
    Packer<F>::pack(rows, n_blocks, scratch.group, group);
    return {scratch.group, group};
  }
  void prefetch(GroupBytes) const noexcept {}
};

// y of at most 64 rows from `row` on, for the tokens of the piece.
template <class F, class Dot, class Groups>
void multiply_piece(const Groups& groups, int64_t row, int64_t n_rows, const ActRows& x, int64_t token,
                    int n_tokens, float* y, int64_t y_stride, Scratch& scratch) noexcept {
  const int64_t d_stride = x.k / F::kSize, sums_stride = x.k / (F::kSize == 256 ? 16 : 32);
  __builtin_memset(scratch.acc, 0, sizeof(scratch.acc[0]) * static_cast<size_t>((n_tokens + 1) / 2 * 2));
  for (int64_t k = 0; k < x.k; k += 256) {
    const int n_elements = x.k - k < 256 ? static_cast<int>(x.k - k) : 256, n_blocks = n_elements / 32;
    StepTokens tokens{};
    tokens.d = x.d + token * d_stride + k / F::kSize;
    tokens.d_stride = d_stride;
    tokens.sums = x.sums + token * sums_stride + k / (F::kSize == 256 ? 16 : 32);
    tokens.sums_stride = sums_stride;
    tokens.n = n_tokens;
    tokens.n_blocks = n_blocks;
    stage_activations<Dot>(x.q + token * x.k + k, x.k, n_elements, tokens, scratch);
    for (int64_t r = 0; r < n_rows; r += 8) {
      const GroupBytes bytes = groups.find(row + r, k / 256, n_blocks, scratch);
      groups.prefetch(bytes);
      F::factors(bytes.d, bytes.group, n_blocks, scratch.factors);
      group_tokens<F, Dot>(F::first(bytes.group, n_blocks), scratch.factors, tokens,
                           reinterpret_cast<float(*)[kPieceRows]>(scratch.acc[0] + r));
    }
  }
  for (int t = 0; t < n_tokens; ++t)
    __builtin_memcpy(y + (token + t) * y_stride + row, scratch.acc[t],
                     sizeof(float) * static_cast<size_t>(n_rows));
}

// All rows and tokens. Pieces end where panels do.
template <class F, class Groups>
void multiply(const Groups& groups, int64_t row_begin, int64_t row_end, const ActRows& x, float* y,
              int64_t y_stride, void* scratch_memory) noexcept {
  Scratch& scratch = *static_cast<Scratch*>(scratch_memory);
  for (int64_t row = row_begin, next; row < row_end; row = next) {
    next = (row / kPieceRows + 1) * kPieceRows;
    if (next > row_end) next = row_end;
    for (int64_t token = 0; token < x.n; token += kPieceTokens) {
      const int n = x.n - token < kPieceTokens ? static_cast<int>(x.n - token) : kPieceTokens;
      if (n == 1) {
        multiply_piece<F, OneToken>(groups, row, next - row, x, token, n, y, y_stride, scratch);
      } else {
        multiply_piece<F, ManyTokens>(groups, row, next - row, x, token, n, y, y_stride, scratch);
      }
    }
  }
}

}  // namespace quant_neon

}  // namespace
}  // namespace gemmule
