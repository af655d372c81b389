// The packed layout r8p64 in plain C++: the packer, and the reference of the packed matmuls. A block is taken
// out of its panel into GGUF's form and then goes the way of matmul_quant_scalar.inl, so the bits are the
// same.
#include "backend/cpu/kernel_table.h"
#include "backend/cpu/kernels/matmul_quant_scalar.inl"
#include "quant/packed_bits.h"

namespace gemmule {
namespace {

template <class Packed>
void pack_scalar(const uint8_t* rows, int64_t n_rows, int64_t k, uint8_t* panel) noexcept {
  packed_bits::pack_panel<Packed>(rows, n_rows, k, panel);
}

template <class Format, class Packed>
void matmul_packed_scalar(const uint8_t* w, int64_t n_rows, int64_t row_begin, int64_t row_end,
                          const ActRows& x, float* y, int64_t y_stride, void*) noexcept {
  const int64_t row_bytes = x.k / Packed::kSize * Packed::kBytes;
  const auto block_at = [&](int64_t row, int64_t b) noexcept {
    const int64_t first = row / packed_bits::kPanel * packed_bits::kPanel, rest = n_rows - first;
    uint8_t bytes[Packed::kBytes];
    packed_bits::unpack_block<Packed>(w + first * row_bytes,
                                      rest < packed_bits::kPanel ? rest : packed_bits::kPanel, x.k,
                                      row - first, b, bytes);
    return quant_scalar::load_block<typename Format::Block>(bytes);
  };
  quant_scalar::matmul_blocks<Format>(block_at, row_begin, row_end, x, y, y_stride);
}

template <class Format, class Packed>
constexpr void add_packed_type(KernelTable& t, int dtype) {
  t.pack[dtype] = pack_scalar<Packed>;
  t.matmul_packed[dtype] = matmul_packed_scalar<Format, Packed>;
}

constexpr void add_packed_kernels(KernelTable& t) {
  add_packed_type<quant_scalar::Q4_0, packed_bits::Q4_0>(t, 2);  // indexed by DType
  add_packed_type<quant_scalar::Q4_1, packed_bits::Q4_1>(t, 3);
  add_packed_type<quant_scalar::Q5_0, packed_bits::Q5_0>(t, 6);
  add_packed_type<quant_scalar::Q5_1, packed_bits::Q5_1>(t, 7);
  add_packed_type<quant_scalar::Q8_0, packed_bits::Q8_0>(t, 8);
  add_packed_type<quant_scalar::Q2_K, packed_bits::Q2_K>(t, 10);
  add_packed_type<quant_scalar::Q3_K, packed_bits::Q3_K>(t, 11);
  add_packed_type<quant_scalar::Q4_K, packed_bits::Q4_K>(t, 12);
  add_packed_type<quant_scalar::Q5_K, packed_bits::Q5_K>(t, 13);
  add_packed_type<quant_scalar::Q6_K, packed_bits::Q6_K>(t, 14);
}

}  // namespace
}  // namespace gemmule
