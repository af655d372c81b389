// The quantized part of the AVX2 kernel table: matmuls for few tokens (matmul_rows_avx2.inl) and many
// (matmul_tile_avx2.inl) with equal bits, and the quantizers of the activations.
#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/matmul_rows_avx2.inl"
#include "backend/cpu/kernels/matmul_tile_avx2.inl"
#include "backend/cpu/kernels/quantize_avx2.inl"

namespace gemmule {
namespace {

namespace quant_avx2 {

template <class F>
void matmul(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
            float* y, int64_t y_stride, void* scratch_memory) noexcept {
  Scratch& scratch = *static_cast<Scratch*>(scratch_memory);
  GroupTile& tile = scratch.tiles[0];
  if constexpr (F::kEightBits) {  // tiles hold 8-bit weights as twice as many vectors, so they pay off later
    if (x.n == 4) return matmul_rows<F, 4>(w, w_stride, row_begin, row_end, x, y, y_stride, tile);
  }
  switch (x.n) {
    case 1:
      return matmul_rows<F, 1>(w, w_stride, row_begin, row_end, x, y, y_stride, tile);
    case 2:
      return matmul_rows<F, 2>(w, w_stride, row_begin, row_end, x, y, y_stride, tile);
    case 3:
      return matmul_rows<F, 3>(w, w_stride, row_begin, row_end, x, y, y_stride, tile);
    default:
      return matmul_tiles<F>(w, w_stride, row_begin, row_end, x, y, y_stride, scratch);
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

constexpr void add_packed_kernels(KernelTable&) {}

}  // namespace
}  // namespace gemmule
