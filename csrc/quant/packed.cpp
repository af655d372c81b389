// The portable packer of r8p64: the formats of packed_bits.h behind a DType, over whole matrices.
#include "quant/packed.h"

#include <algorithm>
#include <stdexcept>

#include "core/error.h"
#include "quant/packed_bits.h"

namespace gemmule {
namespace {

// Calls fn with the format of the type; false for a type without a packed form.
template <class Fn>
bool with_format(DType dtype, const Fn& fn) {
  switch (dtype) {
    case DType::Q8_0:
      return fn(packed_bits::Q8_0{}), true;
    case DType::Q4_0:
      return fn(packed_bits::Q4_0{}), true;
    case DType::Q4_1:
      return fn(packed_bits::Q4_1{}), true;
    case DType::Q5_0:
      return fn(packed_bits::Q5_0{}), true;
    case DType::Q5_1:
      return fn(packed_bits::Q5_1{}), true;
    case DType::Q2_K:
      return fn(packed_bits::Q2_K{}), true;
    case DType::Q3_K:
      return fn(packed_bits::Q3_K{}), true;
    case DType::Q4_K:
      return fn(packed_bits::Q4_K{}), true;
    case DType::Q5_K:
      return fn(packed_bits::Q5_K{}), true;
    case DType::Q6_K:
      return fn(packed_bits::Q6_K{}), true;
    case DType::F32:
    case DType::F16:
    case DType::BF16:
      return false;
  }
  return false;
}

void check(DType dtype, int64_t rows, int64_t cols) {
  if (!can_pack(dtype, rows, cols))
    throw std::invalid_argument(cat("a ", dtype_name(dtype), " matrix of ", rows, " rows of ", cols,
                                    " elements has no packed form; leave it in GGUF's layout"));
}

template <class F>
void unpack_one(const uint8_t* panel, int64_t n_rows, int64_t cols, int64_t row, uint8_t* to) {
  for (int64_t b = 0; b < cols / F::kSize; ++b)
    packed_bits::unpack_block<F>(panel, n_rows, cols, row, b, to + b * F::kBytes);
}

}  // namespace

bool can_pack(DType dtype, int64_t rows, int64_t cols) {
  return rows > 0 && rows % kGroupRows == 0 && cols > 0 && cols % dtype_info(dtype).block_size == 0 &&
         with_format(dtype, [](auto) {});
}

void pack_rows(DType dtype, int64_t rows, int64_t cols, const uint8_t* from, uint8_t* to) {
  check(dtype, rows, cols);
  const int64_t row_size = row_bytes(dtype, cols);
  with_format(dtype, [&](auto format) {
    for (int64_t r = 0; r < rows; r += kPanelRows)
      packed_bits::pack_panel<decltype(format)>(from + r * row_size, std::min(kPanelRows, rows - r), cols,
                                                to + r * row_size);
  });
}

void unpack_rows(DType dtype, int64_t rows, int64_t cols, const uint8_t* from, uint8_t* to) {
  check(dtype, rows, cols);
  const int64_t row_size = row_bytes(dtype, cols);
  with_format(dtype, [&](auto format) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t panel = r / kPanelRows * kPanelRows;
      unpack_one<decltype(format)>(from + panel * row_size, std::min(kPanelRows, rows - panel), cols,
                                   r - panel, to + r * row_size);
    }
  });
}

void unpack_row(const Tensor& packed, int64_t row, uint8_t* to) {
  if (packed.layout != Layout::R8P64 || row < 0 || row >= packed.rows)
    throw std::invalid_argument(cat("row ", row, " is not one of the ", packed.rows,
                                    " rows of a packed matrix; read other matrices through Tensor::row"));
  const int64_t panel = row / kPanelRows * kPanelRows;
  with_format(packed.dtype, [&](auto format) {
    unpack_one<decltype(format)>(packed.data + panel * packed.row_size(),
                                 std::min(kPanelRows, packed.rows - panel), packed.cols, row - panel, to);
  });
}

}  // namespace gemmule
