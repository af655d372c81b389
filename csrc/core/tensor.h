// A view of a matrix of weights. It never owns its bytes: they live in a mapped file or an arena.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace gemmule {

// How the bytes of a matrix lie: GGUF's rows, or the same bytes in panels of 64 rows (quant/packed.h).
enum class Layout : uint8_t { Rows, R8P64 };

struct Tensor {
  DType dtype = DType::F32;
  int64_t rows = 0;               // outputs of a linear layer; 1 for a vector
  int64_t cols = 0;               // inputs: the contiguous dimension
  const uint8_t* data = nullptr;  // [rows][row_bytes(dtype, cols)], or panels
  Layout layout = Layout::Rows;

  explicit operator bool() const { return data != nullptr; }
  int64_t row_size() const { return row_bytes(dtype, cols); }
  int64_t size_bytes() const { return rows * row_size(); }
  const uint8_t* row(int64_t r) const { return data + r * row_size(); }      // layout must be Rows
  const float* f32() const { return reinterpret_cast<const float*>(data); }  // dtype must be F32
};

}  // namespace gemmule
