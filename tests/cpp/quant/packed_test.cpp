// The packed layout: the portable packer loses nothing, and every bit lies where packed.h says. The latter is
// checked by a second reader, written from that text alone, whose values must equal the dequantizer's.
#include "quant/packed.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include "quant/codec.h"
#include "quant/random_blocks.h"

namespace gemmule {
namespace {

using testing::kBlockTypes;
using testing::random_rows;

std::vector<uint8_t> packed(DType dtype, int64_t rows, int64_t cols, const std::vector<uint8_t>& from) {
  std::vector<uint8_t> to(from.size(), 0xee);
  pack_rows(dtype, rows, cols, from.data(), to.data());
  return to;
}

std::vector<int64_t> test_cols(DType dtype) {
  if (dtype_info(dtype).block_size == 32) return {32, 96, 256, 640};
  return {256, 512, 1280};
}

// One panel, read as the comment of packed.h describes it.
struct PanelReader {
  DType dtype;
  const uint8_t* panel;
  int64_t n_rows;  // of the panel
  int64_t k;

  static float half(const uint8_t* p) {
    uint16_t bits;
    std::memcpy(&bits, p, 2);
    return f16_to_f32(bits);
  }

  float value(int64_t row, int64_t col) const {
    const int64_t step = col / 256, e = col % 256;
    const int64_t group = row / 8, r = row % 8;
    const uint8_t* p = panel + n_rows * row_bytes(dtype, 256 * step);
    if (dtype == DType::Q6_K || dtype == DType::Q3_K) {
      const float d = half(p + 16 * group + 2 * r);
      p += 16 * (n_rows / 8);
      return dtype == DType::Q6_K ? q6_k(p + 1664 * group, r, e, d) : q3_k(p + 864 * group, r, e, d);
    }
    const int64_t n_elements = std::min<int64_t>(256, k - 256 * step);
    p += group * 8 * row_bytes(dtype, n_elements);
    if (dtype == DType::Q2_K || dtype == DType::Q4_K || dtype == DType::Q5_K) {
      const float d = half(p + 2 * r), dmin = half(p + 16 + 2 * r);
      if (dtype == DType::Q2_K) return q2_k(p + 32, r, e, d, dmin);
      return q45_k(p + 32, r, e, d, dmin);
    }
    const int64_t n = n_elements / 32, j = e / 32;
    const float d = half(p + 16 * j + 2 * r);
    p += 16 * n;
    const bool affine = dtype == DType::Q4_1 || dtype == DType::Q5_1;
    const float m = affine ? half(p + 16 * j + 2 * r) : 0.0f;
    if (affine) p += 16 * n;
    const int64_t g = e % 32 / 4, at = 4 * r + e % 4;
    if (dtype == DType::Q8_0) return d * static_cast<float>(static_cast<int8_t>(p[256 * j + 32 * g + at]));
    if (dtype == DType::Q4_0) return d * static_cast<float>(nibble(p + 128 * j, g, at) - 8);
    if (dtype == DType::Q4_1) return d * static_cast<float>(nibble(p + 128 * j, g, at)) + m;
    const int code = five_bits(p + 160 * j, g, at);
    return dtype == DType::Q5_0 ? d * static_cast<float>(code - 16) : d * static_cast<float>(code) + m;
  }

  // k-group g of 4 vectors: 0..3 in the low nibbles, 4..7 in the high ones.
  static int nibble(const uint8_t* vectors, int64_t g, int64_t at) {
    return g < 4 ? vectors[32 * g + at] & 15 : vectors[32 * (g - 4) + at] >> 4;
  }
  static int five_bits(const uint8_t* h, int64_t g, int64_t at) {
    return nibble(h + 32, g, at) | ((h[at] >> g) & 1) << 4;
  }

  float q45_k(const uint8_t* p, int64_t r, int64_t e, float d, float dmin) const {
    const int64_t j = e / 32, g = e % 32 / 4, at = 4 * r + e % 4;
    const int lo = p[8 * j + r];
    const int hi = j < 4 ? p[64 + 8 * j + r] & 15 : p[64 + 8 * (j - 4) + r] >> 4;
    const int scale = (lo & 15) | (hi & 3) << 4, min = lo >> 4 | (hi >> 2) << 4;
    const int code =
        dtype == DType::Q4_K ? nibble(p + 96 + 128 * j, g, at) : five_bits(p + 96 + 160 * j, g, at);
    return d * static_cast<float>(scale) * static_cast<float>(code) - dmin * static_cast<float>(min);
  }

  static float q2_k(const uint8_t* p, int64_t r, int64_t e, float d, float dmin) {
    const int64_t s = e / 16, v = e % 16 / 4, at = 4 * r + e % 4;
    const int scale = p[8 * s + r];
    const int code = (p[128 + 32 * s + at] >> (2 * v)) & 3;
    return d * static_cast<float>(scale & 15) * static_cast<float>(code) -
           dmin * static_cast<float>(scale >> 4);
  }

  static float q3_k(const uint8_t* p, int64_t r, int64_t e, float d) {
    const int64_t j = e / 16, pair = e / 32, v = e % 16 / 4, g = e % 32 / 4, at = 4 * r + e % 4;
    const int low = j < 8 ? p[8 * j + r] & 15 : p[8 * (j - 8) + r] >> 4;
    const int scale = low | ((p[64 + 8 * (j % 4) + r] >> (2 * (j / 4))) & 3) << 4;
    const uint8_t* h = p + 96 + 96 * pair;
    const int code = ((h[32 + 32 * (j % 2) + at] >> (2 * v)) & 3) | ((h[at] >> g) & 1) << 2;
    return d * static_cast<float>(scale - 32) * static_cast<float>(code - 4);
  }

  static float q6_k(const uint8_t* p, int64_t r, int64_t e, float d) {
    const int64_t s = e / 16, c = e % 16 / 4, at = 4 * r + e % 4;
    const int scale = static_cast<int8_t>(p[8 * s + r]);
    const uint8_t* b = p + 128 + 96 * s + at;
    const int code = c < 3 ? b[32 * c] & 63 : b[0] >> 6 | (b[32] >> 6) << 2 | (b[64] >> 6) << 4;
    return d * static_cast<float>(scale) * static_cast<float>(code - 32);
  }
};

TEST_CASE("packed: unpacking gives back every byte, of whole matrices and of single rows") {
  std::mt19937 rng(1);
  for (const DType dtype : kBlockTypes) {
    for (const int64_t rows : {8, 56, 64, 72, 200}) {
      for (const int64_t cols : test_cols(dtype)) {
        CAPTURE(dtype_name(dtype));
        CAPTURE(rows);
        CAPTURE(cols);
        REQUIRE(can_pack(dtype, rows, cols));
        std::vector<uint8_t> from = random_rows(dtype, rows, cols, rng);
        testing::set_halves(dtype, from,
                            [&] { return static_cast<uint16_t>(rng()); });  // NaNs keep their bits
        const std::vector<uint8_t> to = packed(dtype, rows, cols, from);
        std::vector<uint8_t> back(from.size(), 0x55);
        unpack_rows(dtype, rows, cols, to.data(), back.data());
        REQUIRE(back == from);
        const Tensor tensor{dtype, rows, cols, to.data(), Layout::R8P64};
        std::vector<uint8_t> row(static_cast<size_t>(tensor.row_size()));
        for (int64_t r = 0; r < rows; ++r) {
          unpack_row(tensor, r, row.data());
          REQUIRE(std::equal(row.begin(), row.end(), from.begin() + r * tensor.row_size()));
        }
      }
    }
  }
}

TEST_CASE("packed: every field lies where the layout says") {
  std::mt19937 rng(2);
  for (const DType dtype : kBlockTypes) {
    for (const int64_t rows : {8, 72}) {
      for (const int64_t cols : test_cols(dtype)) {
        const std::vector<uint8_t> from = random_rows(dtype, rows, cols, rng);
        const std::vector<uint8_t> to = packed(dtype, rows, cols, from);
        const int64_t row_size = row_bytes(dtype, cols);
        std::vector<float> expected(static_cast<size_t>(cols)), found(expected.size());
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t panel = r / 64 * 64;
          const PanelReader reader{dtype, to.data() + panel * row_size, std::min<int64_t>(64, rows - panel),
                                   cols};
          codec(dtype).dequantize_row(from.data() + r * row_size, expected.data(), cols);
          for (int64_t c = 0; c < cols; ++c) found[static_cast<size_t>(c)] = reader.value(r - panel, c);
          CAPTURE(dtype_name(dtype));
          CAPTURE(rows);
          CAPTURE(cols);
          CAPTURE(r);
          REQUIRE(std::memcmp(found.data(), expected.data(), expected.size() * sizeof(float)) == 0);
        }
      }
    }
  }
}

TEST_CASE("packed: each bit of a block goes to a bit of its own") {
  for (const DType dtype : kBlockTypes) {
    const int64_t cols = dtype_info(dtype).block_size;
    std::vector<uint8_t> from(static_cast<size_t>(8 * row_bytes(dtype, cols))), seen(from.size());
    for (size_t bit = 0; bit < 8 * from.size(); ++bit) {
      from[bit / 8] = static_cast<uint8_t>(1u << bit % 8);
      const std::vector<uint8_t> to = packed(dtype, 8, cols, from);
      from[bit / 8] = 0;
      int n_set = 0, n_shared = 0;
      for (size_t i = 0; i < to.size(); ++i) {
        n_set += std::popcount(to[i]);
        n_shared += std::popcount(static_cast<uint8_t>(to[i] & seen[i]));
        seen[i] = static_cast<uint8_t>(seen[i] | to[i]);
      }
      REQUIRE(n_set == 1);
      REQUIRE(n_shared == 0);
    }
  }
}

TEST_CASE("packed: types and shapes without a packed form are refused") {
  CHECK_FALSE(can_pack(DType::F32, 64, 256));
  CHECK_FALSE(can_pack(DType::F16, 64, 256));
  CHECK_FALSE(can_pack(DType::BF16, 64, 256));
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{0, 256}, {-8, 256}, {12, 256}, {63, 256}, {64, 0}, {64, 128}, {64, -256}})
    CHECK_FALSE(can_pack(DType::Q4_K, rows, cols));
  CHECK(can_pack(DType::Q8_0, 8, 32));
  CHECK_FALSE(can_pack(DType::Q8_0, 8, 48));
  std::vector<uint8_t> bytes(8 * 144);
  CHECK_THROWS_AS(pack_rows(DType::F32, 8, 8, bytes.data(), bytes.data()), std::invalid_argument);
  CHECK_THROWS_AS(unpack_rows(DType::Q4_K, 7, 256, bytes.data(), bytes.data()), std::invalid_argument);
  uint8_t row[144];
  const Tensor rows{DType::Q4_K, 8, 256, bytes.data(), Layout::Rows};
  CHECK_THROWS_AS(unpack_row(rows, 0, row), std::invalid_argument);
  const Tensor panels{DType::Q4_K, 8, 256, bytes.data(), Layout::R8P64};
  CHECK_THROWS_AS(unpack_row(panels, 8, row), std::invalid_argument);
}

}  // namespace
}  // namespace gemmule
