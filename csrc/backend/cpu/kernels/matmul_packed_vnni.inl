// VNNI: matmuls of matrices in the packed layout (quant/packed.h), for any number of tokens.
//
// Up to four panels are walked side by side, step by step: the activations of a step are laid out once for
// all of them (constant distances, and no two tokens of a tile on the same cache lines), and memory sees
// several streams. Few tokens (kDirect) take the codes straight from their packed form; for more, the codes
// of the rows of a tile are widened once to bytes in L1 and multiplied with all tokens. One f32 chain per
// output waits in scratch between steps.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/packed_tile_vnni.inl"

namespace gemmule {
namespace {

namespace packed_vnni {

constexpr int kDirect = 2 * kTile - 1;  // up to here codes are not widened
constexpr int64_t kChunk = 252;         // tokens that share one widening
constexpr int64_t kPanel = 64;          // rows
constexpr int kPanels = 4;              // walked side by side
constexpr int kStreams = 2;             // of them, when the weights are read once
constexpr int kTileGroups = 2 * kGroups;
constexpr int kPanelTiles = 8 / kTileGroups;
constexpr int kPrefetch = 4608;  // bytes ahead of the codes in use

struct Scratch {
  alignas(64) uint8_t codes[64][2][kRegisterBytes];  // [k-group][register][row][4]
  StepScales scales[2];                              // [register]
  TokenStep tokens[kChunk];
  alignas(64) float acc[kPanels][kPanelTiles][kChunk][2][kRows];  // [panel][tile][token][register][row]
};

// Groups `begin` to `end` of one step of a panel.
struct StepView {
  const uint8_t* at;  // the step
  int groups;         // in the panel
  int begin, end;
  int n_blocks;  // of 32 elements, for types with such blocks
};

// The rows of the tile that begins with `group`, where groups are `next` bytes apart. The last group stands
// in for those past the end; their results are dropped.
[[gnu::always_inline]] inline TileRows rows_at(const StepView& s, const uint8_t* first, int64_t next,
                                               int group) noexcept {
  TileRows rows;
  for (int i = 0; i < kTileGroups; ++i)
    rows.half[i / kGroups].group[i % kGroups] = first + (group + i < s.end ? group + i : s.end - 1) * next;
  return rows;
}

// Part `part` of `parts` of the cache lines of Bytes: little at a time, because a burst of prefetches fills
// the line buffers and then holds up everything behind it.
template <int Bytes>
[[gnu::always_inline]] inline void prefetch(const uint8_t* at, int part, int parts) noexcept {
  constexpr int kLines = (Bytes + 63) / 64;
#pragma GCC unroll 16
  for (int i = kLines * part / parts; i < kLines * (part + 1) / parts; ++i)
    _mm_prefetch(reinterpret_cast<const char*>(at + 64 * i), _MM_HINT_T0);
}

// T tokens, codes as they are packed. `ahead`: where to prefetch, or null.
template <class F, int T>
void direct_tile(const TileRows& p, const StepScales (&scales)[2], int n_blocks, const TokenStep* x,
                 float* acc, const uint8_t* ahead) noexcept {
  constexpr int kBytes = 8 * kTileGroups * F::Base::kBytes * 4 * F::kUnit / F::Base::kSize;
  const auto prefetching = [](auto& visit, const uint8_t* at) noexcept __attribute__((always_inline)) {
    return [&visit, at ]<int Order>(Int<Order> order, int place, const Codes& w) noexcept
        __attribute__((always_inline)) {
      prefetch<kBytes>(at, Order, F::kUnit);
      visit(order, place, w);
    };
  };
  if constexpr (F::Base::kSize == 32) {
    tile_32<F, T>(
        [&](int block, auto&& visit) noexcept __attribute__((always_inline)) {
          F::codes(p, block, n_blocks, prefetching(visit, ahead + kBytes * block));
        },
        scales, n_blocks, x, acc);
  } else {
    tile_256<F, T>(
        [&](int unit, auto&& visit) noexcept
        __attribute__((always_inline)) { F::codes(p, unit, prefetching(visit, ahead + kBytes * unit)); },
        scales, x, acc);
  }
}

// T tokens, codes widened.
template <class F, int T>
void widened_tile(const uint8_t (*widened)[2][kRegisterBytes], const StepScales (&scales)[2], int n_blocks,
                  const TokenStep* x, float* acc) noexcept {
  const auto codes = [&](int unit, auto&& visit) noexcept __attribute__((always_inline)) {
    constexpr int kUnit = F::kUnit;
    repeat<kUnit>([&]<int I>(Int<I> i) noexcept __attribute__((always_inline)) {
      visit(i, I, Codes{{load(widened[kUnit * unit + I][0]), load(widened[kUnit * unit + I][1])}});
    });
  };
  if constexpr (F::Base::kSize == 32)
    tile_32<F, T>(codes, scales, n_blocks, x, acc);
  else
    tile_256<F, T>(codes, scales, x, acc);
}

template <class F>
void widen(const TileRows& p, int n_blocks, uint8_t (*out)[2][kRegisterBytes],
           const uint8_t* ahead) noexcept {
  constexpr int kBytes = 8 * kTileGroups * F::Base::kBytes * 4 * F::kUnit / F::Base::kSize;
  const int n_units = F::Base::kSize == 32 ? n_blocks : 64 / F::kUnit;
  for (int unit = 0; unit < n_units; ++unit, out += F::kUnit) {
    const auto keep = [&]<int Order>(Int<Order>, int place, const Codes& w) noexcept
        __attribute__((always_inline)) {
      prefetch<kBytes>(ahead + kBytes * unit, Order, F::kUnit);
      store(out[place][0], w.v[0]);
      store(out[place][1], w.v[1]);
    };
    if constexpr (F::Base::kSize == 32)
      F::codes(p, unit, n_blocks, keep);
    else
      F::codes(p, unit, keep);
  }
}

using DirectFn = void (*)(const TileRows&, const StepScales (&)[2], int, const TokenStep*, float*,
                          const uint8_t*) noexcept;
using WidenedFn = void (*)(const uint8_t (*)[2][kRegisterBytes], const StepScales (&)[2], int,
                           const TokenStep*, float*) noexcept;

// The tiles of one type, by number of tokens.
template <class F>
struct TileTable {
  DirectFn direct[kTile + 1]{};
  WidenedFn widened[kTile + 1]{};
  constexpr TileTable() { add<kTile>(); }
  template <int T>
  constexpr void add() {
    direct[T] = direct_tile<F, T>;
    if constexpr (T > kTile / 2)
      widened[T] = widened_tile<F, T>;  // 2 kTile tokens and more have no smaller tile
    if constexpr (T > 1) add<T - 1>();
  }
};

// One step of the groups of a panel for n tokens, in tiles of equal size, give or take one.
template <class F>
void panel_step(const StepView& s, int64_t n, Scratch& scratch, float (*acc)[kChunk][2][kRows]) noexcept {
  const int64_t next =
      8 * F::Base::kBytes * (F::Base::kSize == 32 ? s.n_blocks : 1) - (F::Base::kFactorsFirst ? 16 : 0);
  const uint8_t* const first_group = s.at + (F::Base::kFactorsFirst ? 16 * s.groups : 0);
  static constexpr TileTable<F> tiles;
  const int64_t n_tiles = (n + kTile - 1) / kTile;
  for (int g = s.begin; g < s.end; g += kTileGroups, ++acc) {
    const TileRows p = rows_at(s, first_group, next, g), apart = rows_at(s, s.at, 16, g);
    for (int h = 0; h < 2; ++h) load_scales<F>(p.half[h], apart.half[h], s.n_blocks, scratch.scales[h]);
    const uint8_t* ahead = p.half[0].group[0] + kPrefetch;
    if (n > kDirect) widen<F>(p, s.n_blocks, scratch.codes, ahead);
    for (int64_t tile = 0; tile < n_tiles; ++tile) {
      const int64_t first = n * tile / n_tiles, size = n * (tile + 1) / n_tiles - first;
      if (n > kDirect)
        tiles.widened[size](scratch.codes, scratch.scales, s.n_blocks, scratch.tokens + first,
                            (*acc)[first][0]);
      else
        tiles.direct[size](p, scratch.scales, s.n_blocks, scratch.tokens + first, (*acc)[first][0], ahead);
    }
  }
}

// Rows `begin` to `end` of a matrix, in up to kPanels panels, for n tokens from `token` on.
template <class F>
void panels_matmul(const uint8_t* w, int64_t n_rows, int64_t begin, int64_t end, const ActRows& x,
                   int64_t token, int64_t n, float* y, int64_t y_stride, Scratch& scratch) noexcept {
  const int64_t row_bytes = x.k / F::Base::kSize * F::Base::kBytes;
  StepView panels[kPanels];
  int n_panels = 0;
  for (int64_t row = begin; row < end; ++n_panels) {
    const int64_t panel = row / kPanel * kPanel;
    const int64_t panel_rows = n_rows - panel < kPanel ? n_rows - panel : kPanel;
    const int64_t last = end - panel < panel_rows ? end - panel : panel_rows;
    panels[n_panels] = {w + panel * row_bytes, static_cast<int>(panel_rows / 8),
                        static_cast<int>((row - panel) / 8), static_cast<int>(last / 8), 8};
    row = panel + last;
  }
  if (x.k == 0) __builtin_memset(scratch.acc, 0, sizeof scratch.acc);
  for (int64_t step = 0; 256 * step < x.k; ++step) {
    prepare<F>(x, token, n, step, scratch.tokens);
    const int64_t blocks_left = x.k / 32 - 8 * step;
    const int n_blocks = blocks_left < 8 ? static_cast<int>(blocks_left) : 8;
    // Panels take turns tile by tile, so that memory sees several streams.
    for (int tile = 0; tile < kPanelTiles; ++tile) {
      for (int i = 0; i < n_panels; ++i) {
        StepView s = panels[i];
        s.n_blocks = n_blocks;
        s.begin += kTileGroups * tile;
        if (s.begin >= s.end) continue;
        if (s.end > s.begin + kTileGroups) s.end = s.begin + kTileGroups;
        auto* const acc = scratch.acc[i] + tile;
        if (step == 0)  // here, where it stays in L1
          __builtin_memset(acc, 0, static_cast<size_t>(n) * sizeof(*acc)[0]);
        panel_step<F>(s, n, scratch, acc);
      }
    }
    for (int i = 0; i < n_panels; ++i)
      panels[i].at += 8 * panels[i].groups * F::Base::kBytes * (F::Base::kSize == 32 ? n_blocks : 1);
  }
  float* out = y + token * y_stride + begin;
  for (int i = 0; i < n_panels; ++i) {
    const int n_groups = panels[i].end - panels[i].begin;
    for (int g = 0; g < n_groups; ++g, out += 8)
      for (int64_t t = 0; t < n; ++t)
        _mm256_storeu_ps(out + t * y_stride,
                         _mm256_load_ps(scratch.acc[i][g / kTileGroups][t][0] + g % kTileGroups * 8));
  }
}

template <class F>
void matmul(const uint8_t* w, int64_t n_rows, int64_t row_begin, int64_t row_end, const ActRows& x, float* y,
            int64_t y_stride, void* scratch_memory) noexcept {
  Scratch& scratch = *static_cast<Scratch*>(scratch_memory);
  const int64_t n_chunks = (x.n + kChunk - 1) / kChunk;
  for (int64_t token = 0; token < x.n;) {
    const int64_t left = x.n - token;
    int64_t n = ((x.n + n_chunks - 1) / n_chunks + kTile - 1) / kTile * kTile;  // equal chunks of whole tiles
    n = n < left ? n : left;
    for (int64_t row = row_begin; row < row_end;) {
      int64_t end = row / kPanel * kPanel + (n <= kDirect ? kStreams : kPanels) * kPanel;
      end = end < row_end ? end : row_end;
      panels_matmul<F>(w, n_rows, row, end, x, token, n, y, y_stride, scratch);
      row = end;
    }
    token += n;
  }
}

}  // namespace packed_vnni

}  // namespace
}  // namespace gemmule
