// Rows of random GGUF blocks for tests: any codes and scales, and half floats of the caller's choice.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "core/dtype.h"
#include "core/half.h"

namespace gemmule::testing {

inline constexpr DType kBlockTypes[] = {DType::Q8_0, DType::Q4_0, DType::Q4_1, DType::Q5_0, DType::Q5_1,
                                        DType::Q2_K, DType::Q3_K, DType::Q4_K, DType::Q5_K, DType::Q6_K};

// Byte positions of the half floats of a block.
inline std::vector<size_t> half_positions(DType dtype) {
  switch (dtype) {
    case DType::Q4_1:
    case DType::Q5_1:
    case DType::Q4_K:
    case DType::Q5_K:
      return {0, 2};
    case DType::Q2_K:
      return {80, 82};
    case DType::Q3_K:
      return {108};
    case DType::Q6_K:
      return {208};
    default:
      return {0};
  }
}

// Calls half() for each half float of the rows in `w` and stores what it gives.
template <class Half>
void set_halves(DType dtype, std::vector<uint8_t>& w, const Half& half) {
  const auto block_bytes = static_cast<size_t>(dtype_info(dtype).block_bytes);
  for (size_t block = 0; block < w.size(); block += block_bytes)
    for (const size_t at : half_positions(dtype)) {
      const uint16_t bits = half();
      std::memcpy(&w[block + at], &bits, sizeof bits);
    }
}

// Random bytes, but half floats that are finite: zero, subnormal, or of the size that models have.
inline std::vector<uint8_t> random_rows(DType dtype, int64_t rows, int64_t cols, std::mt19937& rng) {
  std::vector<uint8_t> w(static_cast<size_t>(rows * row_bytes(dtype, cols)));
  for (uint8_t& byte : w) byte = static_cast<uint8_t>(rng());
  set_halves(dtype, w, [&]() -> uint16_t {
    const uint32_t kind = rng() % 16;
    if (kind == 0) return 0;
    if (kind == 1) return static_cast<uint16_t>(rng() % 1024);
    const float magnitude = 0.001f + 0.02f * static_cast<float>(rng() % 1000) / 1000.0f;
    return f32_to_f16(rng() % 2 ? magnitude : -magnitude);
  });
  return w;
}

}  // namespace gemmule::testing
