// Rows in GGUF's layout and four tokens or more: 64 rows at a time are packed into thread scratch and
// multiplied by the level's packed kernel, which gives the same bits. Fewer than 8 rows at the end go to the
// level's row kernel, at most three tokens at a time. Generic over the level.
#pragma once
#include "backend/cpu/kernel_table.h"

namespace gemmule {
namespace {

namespace via_pack {

// A type at one level: how it is packed and multiplied, and its GGUF rows with 1 to 3 tokens.
struct Kernels {
  PackFn pack;
  PackedMatmulFn packed;
  MatmulFn rows;
};

// Bytes of a packed panel of the widest type (Q8_0: 34 bytes per 32 elements), a multiple of 64.
constexpr size_t panel_bytes(int64_t k) { return static_cast<size_t>((k + 31) / 32 * 34 * 64); }

// kBlock: elements of a block, which has one scale for the activations and a sum for every 16 (256) or 32
// (32) of them. The scratch is panel_bytes(k) and what the packed kernel wants.
template <int kBlock>
void matmul(const Kernels& kernels, const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end,
            const ActRows& x, float* y, int64_t y_stride, void* scratch) noexcept {
  auto* const panel = static_cast<uint8_t*>(scratch);
  void* const rest = panel + panel_bytes(x.k);
  int64_t row = row_begin;
  while (row_end - row >= 8) {
    const int64_t n_rows = row_end - row >= 64 ? 64 : (row_end - row) / 8 * 8;
    kernels.pack(w + row * w_stride, n_rows, x.k, panel);
    kernels.packed(panel, n_rows, 0, n_rows, x, y + row, y_stride, rest);
    row += n_rows;
  }
  if (row == row_end) return;
  constexpr int kSumLength = kBlock == 256 ? 16 : 32;
  for (int64_t t = 0; t < x.n; t += 3) {
    const ActRows few{x.n - t < 3 ? x.n - t : 3,      x.k, nullptr, x.q + t * x.k, x.d + t * (x.k / kBlock),
                      x.sums + t * (x.k / kSumLength)};
    kernels.rows(w, w_stride, row, row_end, few, y + t * y_stride, y_stride, rest);
  }
}

}  // namespace via_pack

}  // namespace
}  // namespace gemmule
