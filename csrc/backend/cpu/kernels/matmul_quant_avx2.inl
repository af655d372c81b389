// The quantized part of the AVX2 kernel table: GGUF rows for few tokens (matmul_rows_avx2.inl), the packed
// layout for any number (pack_avx2.inl, matmul_packed_avx2.inl), GGUF rows for many tokens through both
// (matmul_via_pack.inl), all with equal bits, and the quantizers of the activations.
#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/matmul_packed_avx2.inl"
#include "backend/cpu/kernels/matmul_rows_avx2.inl"
#include "backend/cpu/kernels/matmul_via_pack.inl"
#include "backend/cpu/kernels/pack_avx2.inl"
#include "backend/cpu/kernels/quantize_avx2.inl"

namespace gemmule {
namespace {

namespace quant_avx2 {

// One to three tokens. The blocks and scales of 8 rows pass through scratch.
template <class F>
void few_tokens(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                float* y, int64_t y_stride, void* scratch) noexcept {
  GroupTile& tile = *static_cast<GroupTile*>(scratch);
  switch (x.n) {
    case 1:
      return matmul_rows<F, 1>(w, w_stride, row_begin, row_end, x, y, y_stride, tile);
    case 2:
      return matmul_rows<F, 2>(w, w_stride, row_begin, row_end, x, y, y_stride, tile);
    case 3:
      return matmul_rows<F, 3>(w, w_stride, row_begin, row_end, x, y, y_stride, tile);
    default:
      return;
  }
}

// F, Pack, Packed: the type as GGUF rows, as source of the packed layout and in it.
template <class F, class Pack, class Packed>
void matmul(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
            float* y, int64_t y_stride, void* scratch) noexcept {
  if (x.n < 4) return few_tokens<F>(w, w_stride, row_begin, row_end, x, y, y_stride, scratch);
  static constexpr via_pack::Kernels kernels{pack_avx2::pack<Pack>, packed_avx2::matmul<Packed>,
                                             few_tokens<F>};
  via_pack::matmul<F::kSize>(kernels, w, w_stride, row_begin, row_end, x, y, y_stride, scratch);
}

}  // namespace quant_avx2

void matmul_q8_0(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q8_0, pack_avx2::Q8_0, packed_avx2::Q8_0>(w, w_stride, row_begin, row_end, x,
                                                                           y, y_stride, scratch);
}
void matmul_q4_0(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q4_0, pack_avx2::Q4_0, packed_avx2::Q4_0>(w, w_stride, row_begin, row_end, x,
                                                                           y, y_stride, scratch);
}
void matmul_q4_1(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q4_1, pack_avx2::Q4_1, packed_avx2::Q4_1>(w, w_stride, row_begin, row_end, x,
                                                                           y, y_stride, scratch);
}
void matmul_q5_0(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q5_0, pack_avx2::Q5_0, packed_avx2::Q5_0>(w, w_stride, row_begin, row_end, x,
                                                                           y, y_stride, scratch);
}
void matmul_q5_1(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q5_1, pack_avx2::Q5_1, packed_avx2::Q5_1>(w, w_stride, row_begin, row_end, x,
                                                                           y, y_stride, scratch);
}
void matmul_q2_k(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q2_K, pack_avx2::Q2_K, packed_avx2::Q2_K>(w, w_stride, row_begin, row_end, x,
                                                                           y, y_stride, scratch);
}
void matmul_q3_k(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q3_K, pack_avx2::Q3_K, packed_avx2::Q3_K>(w, w_stride, row_begin, row_end, x,
                                                                           y, y_stride, scratch);
}
void matmul_q4_k(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q4_K, pack_avx2::Q4_K, packed_avx2::Q4_K>(w, w_stride, row_begin, row_end, x,
                                                                           y, y_stride, scratch);
}
void matmul_q5_k(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q5_K, pack_avx2::Q5_K, packed_avx2::Q5_K>(w, w_stride, row_begin, row_end, x,
                                                                           y, y_stride, scratch);
}
void matmul_q6_k(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  quant_avx2::matmul<quant_avx2::Q6_K, pack_avx2::Q6_K, packed_avx2::Q6_K>(w, w_stride, row_begin, row_end, x,
                                                                           y, y_stride, scratch);
}

void quantize_q8_32(const float* x, int64_t k, int8_t* q, float* d, int16_t* sums) noexcept {
  quant_avx2::quantize<32, 32>(x, k, q, d, sums);
}
void quantize_q8_256(const float* x, int64_t k, int8_t* q, float* d, int16_t* sums) noexcept {
  quant_avx2::quantize<256, 16>(x, k, q, d, sums);
}

size_t matmul_scratch_bytes(int64_t n_tokens, int64_t k) noexcept {
  static_assert(sizeof(quant_avx2::GroupTile) <= packed_avx2::scratch_bytes(0));
  return via_pack::panel_bytes(k) + packed_avx2::scratch_bytes(n_tokens);
}

constexpr void add_packed_kernels(KernelTable& t) {  // indexed by DType
  t.pack[2] = pack_avx2::pack<pack_avx2::Q4_0>;
  t.pack[3] = pack_avx2::pack<pack_avx2::Q4_1>;
  t.pack[6] = pack_avx2::pack<pack_avx2::Q5_0>;
  t.pack[7] = pack_avx2::pack<pack_avx2::Q5_1>;
  t.pack[8] = pack_avx2::pack<pack_avx2::Q8_0>;
  t.pack[10] = pack_avx2::pack<pack_avx2::Q2_K>;
  t.pack[11] = pack_avx2::pack<pack_avx2::Q3_K>;
  t.pack[12] = pack_avx2::pack<pack_avx2::Q4_K>;
  t.pack[13] = pack_avx2::pack<pack_avx2::Q5_K>;
  t.pack[14] = pack_avx2::pack<pack_avx2::Q6_K>;
  t.matmul_packed[2] = packed_avx2::matmul<packed_avx2::Q4_0>;
  t.matmul_packed[3] = packed_avx2::matmul<packed_avx2::Q4_1>;
  t.matmul_packed[6] = packed_avx2::matmul<packed_avx2::Q5_0>;
  t.matmul_packed[7] = packed_avx2::matmul<packed_avx2::Q5_1>;
  t.matmul_packed[8] = packed_avx2::matmul<packed_avx2::Q8_0>;
  t.matmul_packed[10] = packed_avx2::matmul<packed_avx2::Q2_K>;
  t.matmul_packed[11] = packed_avx2::matmul<packed_avx2::Q3_K>;
  t.matmul_packed[12] = packed_avx2::matmul<packed_avx2::Q4_K>;
  t.matmul_packed[13] = packed_avx2::matmul<packed_avx2::Q5_K>;
  t.matmul_packed[14] = packed_avx2::matmul<packed_avx2::Q6_K>;
}

}  // namespace
}  // namespace gemmule
