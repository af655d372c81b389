// The quantized part of the NEON kernel tables: both layouts through the one body of matmul_packed_neon.inl,
// the packers and the quantizers of the activations. The including level has defined OneToken and ManyTokens.
#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/matmul_packed_neon.inl"
#include "backend/cpu/kernels/quantize_neon.inl"

namespace gemmule {
namespace {

namespace quant_neon {

// MatmulFn and PackedMatmulFn of kernel_table.h.
template <class F>
void matmul_rows(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  multiply<F>(RowGroups<F>{w, w_stride, row_end}, row_begin, row_end, x, y, y_stride, scratch);
}
template <class F>
void matmul_panels(const uint8_t* w, int64_t n_rows, int64_t row_begin, int64_t row_end, const ActRows& x,
                   float* y, int64_t y_stride, void* scratch) noexcept {
  const PackedGroups<F> groups{w, n_rows, x.k / F::kSize * F::kBytes};
  multiply<F>(groups, row_begin, row_end, x, y, y_stride, scratch);
}

template <class F>
constexpr void add_format(KernelTable& t, int dtype) {
  t.pack[dtype] = pack_panel<F>;
  t.matmul_packed[dtype] = matmul_panels<F>;
}

}  // namespace quant_neon

inline constexpr MatmulFn matmul_q8_0 = quant_neon::matmul_rows<quant_neon::Q8_0>;
inline constexpr MatmulFn matmul_q4_0 = quant_neon::matmul_rows<quant_neon::Q4_0>;
inline constexpr MatmulFn matmul_q4_1 = quant_neon::matmul_rows<quant_neon::Q4_1>;
inline constexpr MatmulFn matmul_q5_0 = quant_neon::matmul_rows<quant_neon::Q5_0>;
inline constexpr MatmulFn matmul_q5_1 = quant_neon::matmul_rows<quant_neon::Q5_1>;
inline constexpr MatmulFn matmul_q2_k = quant_neon::matmul_rows<quant_neon::Q2_K>;
inline constexpr MatmulFn matmul_q3_k = quant_neon::matmul_rows<quant_neon::Q3_K>;
inline constexpr MatmulFn matmul_q4_k = quant_neon::matmul_rows<quant_neon::Q4_K>;
inline constexpr MatmulFn matmul_q5_k = quant_neon::matmul_rows<quant_neon::Q5_K>;
inline constexpr MatmulFn matmul_q6_k = quant_neon::matmul_rows<quant_neon::Q6_K>;

void quantize_q8_32(const float* x, int64_t k, int8_t* q, float* d, int16_t* sums) noexcept {
  quant_neon::quantize<32, 32>(x, k, q, d, sums);
}
void quantize_q8_256(const float* x, int64_t k, int8_t* q, float* d, int16_t* sums) noexcept {
  quant_neon::quantize<256, 16>(x, k, q, d, sums);
}

size_t matmul_scratch_bytes(int64_t, int64_t) noexcept { return sizeof(quant_neon::Scratch); }

constexpr void add_packed_kernels(KernelTable& t) {
  using namespace quant_neon;
  add_format<Q4_0>(t, 2);  // indexed by DType
  add_format<Q4_1>(t, 3);
  add_format<Q5_0>(t, 6);
  add_format<Q5_1>(t, 7);
  add_format<Q8_0>(t, 8);
  add_format<Q2_K>(t, 10);
  add_format<Q3_K>(t, 11);
  add_format<Q4_K>(t, 12);
  add_format<Q5_K>(t, 13);
  add_format<Q6_K>(t, 14);
}

}  // namespace
}  // namespace gemmule
