// AVX2: matmuls of matrices in the packed layout (quant/packed.h), for any number of tokens. One tile of
// tokens: one or two panels at a time are read front to back, once. More: a few panels at a time, so that the
// weights of a step stay in L2 while the tiles pass by, with the f32 chains in scratch until K is done.
#pragma once
#include <immintrin.h>

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/packed_tile_avx2.inl"

namespace gemmule {
namespace {

namespace packed_avx2 {

constexpr int kMaxTokens = 256;  // tokens that share one reading of the weights
constexpr int kMaxPanels = 4;
// Panels that take turns when the weights are read once. For so few tokens that reading is all, AMD's
// prefetchers follow one stream best (on Zen 5 two lose a fifth), Intel's keep memory busier with two (on
// Cascade Lake one loses a twentieth).
inline int streams(int64_t n_tokens) noexcept { return n_tokens <= 2 && __builtin_cpu_is("amd") ? 1 : 2; }

struct Scratch {
  Tile tile;
  alignas(64) float acc[kMaxPanels * 8 * kMaxTokens][8];  // [tile][group][token][row]
};

// Groups first..last-1 of a panel of n_groups.
struct Panel {
  const uint8_t* at;
  int n_groups, first, last;
};

template <class F>
Panel panel_of(const uint8_t* w, int64_t n_rows, int64_t k, int64_t panel, int64_t row_begin,
               int64_t row_end) noexcept {
  const int64_t top = 64 * panel, rows = n_rows - top < 64 ? n_rows - top : 64;
  const int64_t from = row_begin > top ? row_begin - top : 0;
  const int64_t to = row_end - top < rows ? row_end - top : rows;
  return {w + top * (k / F::kSize) * F::kBytes, static_cast<int>(rows / 8), static_cast<int>(from / 8),
          static_cast<int>(to / 8)};
}

// Group g of a panel at one step and with one tile; `acc` is its chains. Prefetched is the same much `ahead`
// bytes further on in the panel.
template <class F, bool kOne>
[[gnu::always_inline]] inline void group_step(const Panel& panel, int g, int64_t step, const ActRows& x,
                                              int64_t token, Tile& tile, float* acc,
                                              int64_t ahead_bytes) noexcept {
  const int64_t step_bytes = int64_t{8 * F::kBytes * (256 / F::kSize)} * panel.n_groups;
  const int64_t group_bytes =
      F::kSize == 32 ? 8 * F::kBytes * tile.n_blocks : 8 * F::kBytes - (F::kFactorsFirst ? 16 : 0);
  const uint8_t* const start = panel.at + step * step_bytes;
  const uint8_t* const group = start + (F::kFactorsFirst ? 16 * panel.n_groups : 0) + g * group_bytes;
  const uint8_t* const ahead = group + ahead_bytes;
  if constexpr (F::kSize == 256)
    group_256<F, kOne>(group, start + 16 * g, tile, acc, ahead);
  else if constexpr (!F::kEightBits)
    group_32<F, kOne>(group, tile, acc, ahead);
  else if constexpr (kOne)
    group_q8_0_one(group, x.q + token * x.k + 256 * step, x.d + token * (x.k / 32) + 8 * step,
                   x.sums + token * (x.k / 32) + 8 * step, tile.n_blocks, acc, ahead_bytes);
  else
    group_q8_0(group, tile, acc, ahead);
}

// All groups of some panels at one step and with one tile; their chains follow each other from `acc` on. When
// the weights are read this once only, the panels take turns group by group and the fourth group from
// there on is prefetched: memory sees a stream for each panel. Else the step of the next tile comes from L2,
// and what is prefetched is the next step.
template <class F, bool kOne>
void panels_step(const Panel* panels, int n_panels, int64_t step, const ActRows& x, int64_t token, Tile& tile,
                 float* acc, bool in_one_go) noexcept {
  const int64_t step_bytes = 64 * F::kBytes * (256 / F::kSize), chains = 8 * tile.n;
  if (!in_one_go) {
    for (int p = 0; p < n_panels; ++p)
      for (int g = panels[p].first; g < panels[p].last; ++g, acc += chains)
        group_step<F, kOne>(panels[p], g, step, x, token, tile, acc, step_bytes);
    return;
  }
  float* first[kMaxPanels];
  for (int p = 0; p < n_panels; ++p) {
    first[p] = acc;
    acc += (panels[p].last - panels[p].first) * chains;
  }
  for (int i = 0; i < 8; ++i)
    for (int p = 0; p < n_panels; ++p)
      if (panels[p].first + i < panels[p].last)
        group_step<F, kOne>(panels[p], panels[p].first + i, step, x, token, tile, first[p] + i * chains,
                            step_bytes / (2 * n_panels));
}

// `n_tokens` (at most kMaxTokens) tokens from `token` on with n_panels panels, whose first group is rows
// first_row.. of y.
template <class F>
void multiply(const Panel* panels, int n_panels, int64_t first_row, const ActRows& x, int64_t token,
              int64_t n_tokens, float* y, int64_t y_stride, Scratch& scratch) noexcept {
  int n_groups = 0;
  for (int p = 0; p < n_panels; ++p) n_groups += panels[p].last - panels[p].first;
  float* const acc = scratch.acc[0];
  __builtin_memset(acc, 0, static_cast<size_t>(n_groups * n_tokens) * sizeof scratch.acc[0]);
  // Tiles of about the same size cost less than full ones and a small rest.
  const int64_t n_tiles = (n_tokens + max_tile<F>() - 1) / max_tile<F>();
  const auto first_token = [&](int64_t i) noexcept { return n_tokens * i / n_tiles; };
  Tile& tile = scratch.tile;
  const int64_t n_steps = (x.k + 255) / 256;
  for (int64_t step = 0; step < n_steps; ++step) {
    tile.n_blocks = static_cast<int>(x.k - 256 * step < 256 ? (x.k - 256 * step) / 32 : 8);
    for (int64_t i = 0; i < n_tiles; ++i) {
      const int64_t begin = first_token(i);
      tile.n = static_cast<int>(first_token(i + 1) - begin);
      const bool one = tile.n == 1, in_one_go = n_tiles == 1;
      if (!(one && F::kEightBits)) expand<F>(x, token + begin, step, tile);
      float* const at = acc + 8 * n_groups * begin;
      (one ? panels_step<F, true> : panels_step<F, false>)(panels, n_panels, step, x, token + begin, tile, at,
                                                           in_one_go);
    }
  }
  const float* from = acc;
  for (int64_t i = 0; i < n_tiles; ++i) {
    const int64_t begin = first_token(i), end = first_token(i + 1);
    for (int g = 0; g < n_groups; ++g)
      for (int64_t t = begin; t < end; ++t, from += 8)
        _mm256_storeu_ps(y + (token + t) * y_stride + first_row + 8 * g, _mm256_load_ps(from));
  }
}

template <class F>
void matmul(const uint8_t* w, int64_t n_rows, int64_t row_begin, int64_t row_end, const ActRows& x, float* y,
            int64_t y_stride, void* scratch_memory) noexcept {
  Scratch& scratch = *static_cast<Scratch*>(scratch_memory);
  for (int64_t token = 0; token < x.n; token += kMaxTokens) {
    const int64_t n_tokens = x.n - token < kMaxTokens ? x.n - token : kMaxTokens;
    const int at_once = n_tokens <= max_tile<F>() ? streams(n_tokens) : kMaxPanels;
    for (int64_t row = row_begin; row < row_end;) {
      Panel panels[kMaxPanels];
      const int64_t first_row = row;
      int n_panels = 0;
      for (; n_panels < at_once && row < row_end; ++n_panels) {
        panels[n_panels] = panel_of<F>(w, n_rows, x.k, row / 64, row, row_end);
        row = (row / 64 + 1) * 64;
      }
      multiply<F>(panels, n_panels, first_row, x, token, n_tokens, y, y_stride, scratch);
    }
  }
}

// Of the scratch, with as many chains as n_tokens need.
constexpr size_t scratch_bytes(int64_t n_tokens) {
  const int64_t tokens = n_tokens < kMaxTokens ? n_tokens : kMaxTokens;
  return sizeof(Scratch) - sizeof(Scratch::acc) +
         static_cast<size_t>(tokens) * (kMaxPanels * 8 * 8 * sizeof(float));
}

}  // namespace packed_avx2

}  // namespace
}  // namespace gemmule
