// The quantized part of the kernel tables with VNNI: GGUF rows for few tokens, packing and the quantizers are
// the AVX2 code (matmul_rows_avx2.inl, pack_avx2.inl, quantize_avx2.inl), the packed layout for any number of
// tokens has kernels of its own (matmul_packed_vnni.inl, packed_few_avx512.inl), and GGUF rows for many
// tokens go through both (matmul_via_pack.inl).
#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/matmul_packed_avx2.inl"
#include "backend/cpu/kernels/matmul_packed_vnni.inl"
#include "backend/cpu/kernels/matmul_rows_avx2.inl"
#include "backend/cpu/kernels/matmul_via_pack.inl"
#include "backend/cpu/kernels/pack_avx2.inl"
#include "backend/cpu/kernels/quantize_avx2.inl"

namespace gemmule {
namespace {

namespace packed_vnni {

// One to three tokens of GGUF rows. The blocks and scales of 8 rows pass through scratch.
template <class Rows>
void few_tokens(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                float* y, int64_t y_stride, void* scratch) noexcept {
  auto& tile = *static_cast<quant_avx2::GroupTile*>(scratch);
  if (x.n == 1) quant_avx2::matmul_rows<Rows, 1>(w, w_stride, row_begin, row_end, x, y, y_stride, tile);
  if (x.n == 2) quant_avx2::matmul_rows<Rows, 2>(w, w_stride, row_begin, row_end, x, y, y_stride, tile);
  if (x.n == 3) quant_avx2::matmul_rows<Rows, 3>(w, w_stride, row_begin, row_end, x, y, y_stride, tile);
}

// Rows, Packer, Packed: the type as GGUF rows, as source of the packed layout and in it.
template <class Rows, class Packer, class Packed>
void rows_matmul(const uint8_t* w, int64_t w_stride, int64_t row_begin, int64_t row_end, const ActRows& x,
                 float* y, int64_t y_stride, void* scratch) noexcept {
  if (x.n < 4) return few_tokens<Rows>(w, w_stride, row_begin, row_end, x, y, y_stride, scratch);
  static constexpr via_pack::Kernels kernels{pack_avx2::pack<Packer>, matmul<Packed>, few_tokens<Rows>};
  via_pack::matmul<Rows::kSize>(kernels, w, w_stride, row_begin, row_end, x, y, y_stride, scratch);
}

// So few tokens are bound by memory. Where the level has no kernel of its own for them, the AVX2 ones, which
// read their panels in a finer grain, lead.
template <class One>
constexpr int64_t kFewTokens = One::kSize == 256 ? 2 : 1;

template <class One, class Packed>
PackedMatmulFn kernel_for(int64_t n_tokens) noexcept {
  if (n_tokens == 1 && kFewest<Packed, 1> != nullptr) return kFewest<Packed, 1>;
  if (n_tokens == 2 && kFewest<Packed, 2> != nullptr) return kFewest<Packed, 2>;
  return n_tokens <= kFewTokens<One> ? packed_avx2::matmul<One> : matmul<Packed>;
}

template <class One, class Packed>
void packed_matmul(const uint8_t* w, int64_t n_rows, int64_t row_begin, int64_t row_end, const ActRows& x,
                   float* y, int64_t y_stride, void* scratch) noexcept {
  kernel_for<One, Packed>(x.n)(w, n_rows, row_begin, row_end, x, y, y_stride, scratch);
}

template <class Packer, class One, class Packed>
constexpr void add_format(KernelTable& t, int dtype) {
  t.pack[dtype] = pack_avx2::pack<Packer>;
  t.matmul_packed[dtype] = packed_matmul<One, Packed>;
}

}  // namespace packed_vnni

constexpr MatmulFn matmul_q4_0 =
    packed_vnni::rows_matmul<quant_avx2::Q4_0, pack_avx2::Q4_0, packed_vnni::Q4_0>;
constexpr MatmulFn matmul_q4_1 =
    packed_vnni::rows_matmul<quant_avx2::Q4_1, pack_avx2::Q4_1, packed_vnni::Q4_1>;
constexpr MatmulFn matmul_q5_0 =
    packed_vnni::rows_matmul<quant_avx2::Q5_0, pack_avx2::Q5_0, packed_vnni::Q5_0>;
constexpr MatmulFn matmul_q5_1 =
    packed_vnni::rows_matmul<quant_avx2::Q5_1, pack_avx2::Q5_1, packed_vnni::Q5_1>;
constexpr MatmulFn matmul_q8_0 =
    packed_vnni::rows_matmul<quant_avx2::Q8_0, pack_avx2::Q8_0, packed_vnni::Q8_0>;
constexpr MatmulFn matmul_q2_k =
    packed_vnni::rows_matmul<quant_avx2::Q2_K, pack_avx2::Q2_K, packed_vnni::Q2_K>;
constexpr MatmulFn matmul_q3_k =
    packed_vnni::rows_matmul<quant_avx2::Q3_K, pack_avx2::Q3_K, packed_vnni::Q3_K>;
constexpr MatmulFn matmul_q4_k =
    packed_vnni::rows_matmul<quant_avx2::Q4_K, pack_avx2::Q4_K, packed_vnni::Q4_K>;
constexpr MatmulFn matmul_q5_k =
    packed_vnni::rows_matmul<quant_avx2::Q5_K, pack_avx2::Q5_K, packed_vnni::Q5_K>;
constexpr MatmulFn matmul_q6_k =
    packed_vnni::rows_matmul<quant_avx2::Q6_K, pack_avx2::Q6_K, packed_vnni::Q6_K>;

void quantize_q8_32(const float* x, int64_t k, int8_t* q, float* d, int16_t* sums) noexcept {
  quant_avx2::quantize<32, 32>(x, k, q, d, sums);
}
void quantize_q8_256(const float* x, int64_t k, int8_t* q, float* d, int16_t* sums) noexcept {
  quant_avx2::quantize<256, 16>(x, k, q, d, sums);
}

size_t matmul_scratch_bytes(int64_t, int64_t k) noexcept {
  static_assert(sizeof(quant_avx2::GroupTile) <= sizeof(packed_vnni::Scratch));
  static_assert(packed_avx2::scratch_bytes(2) <= sizeof(packed_vnni::Scratch));
  return via_pack::panel_bytes(k) + sizeof(packed_vnni::Scratch);
}

constexpr void add_packed_kernels(KernelTable& t) {
  using namespace packed_vnni;
  add_format<pack_avx2::Q4_0, packed_avx2::Q4_0, Q4_0>(t, 2);  // indexed by DType
  add_format<pack_avx2::Q4_1, packed_avx2::Q4_1, Q4_1>(t, 3);
  add_format<pack_avx2::Q5_0, packed_avx2::Q5_0, Q5_0>(t, 6);
  add_format<pack_avx2::Q5_1, packed_avx2::Q5_1, Q5_1>(t, 7);
  add_format<pack_avx2::Q8_0, packed_avx2::Q8_0, Q8_0>(t, 8);
  add_format<pack_avx2::Q2_K, packed_avx2::Q2_K, Q2_K>(t, 10);
  add_format<pack_avx2::Q3_K, packed_avx2::Q3_K, Q3_K>(t, 11);
  add_format<pack_avx2::Q4_K, packed_avx2::Q4_K, Q4_K>(t, 12);
  add_format<pack_avx2::Q5_K, packed_avx2::Q5_K, Q5_K>(t, 13);
  add_format<pack_avx2::Q6_K, packed_avx2::Q6_K, Q6_K>(t, 14);
}

}  // namespace
}  // namespace gemmule
