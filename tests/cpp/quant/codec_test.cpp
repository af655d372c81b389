// The block codecs: layouts by hand-made blocks, round-trip error against the budgets of the table, edge
// values. Equality with the gguf package is tested from Python.
#include "quant/codec.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "core/error.h"
#include "core/half.h"
#include "quant/blocks.h"
#include "quant/scales.h"

namespace gemmule {
namespace {

// Nearly Gaussian numbers of variance 1: the sum of 12 uniform ones, from a fixed linear congruential
// generator.
std::vector<float> gaussian(int64_t n, uint32_t seed) {
  std::vector<float> x(static_cast<size_t>(n));
  uint64_t state = seed;
  for (float& value : x) {
    float sum = -6.0f;
    for (int i = 0; i < 12; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      sum += static_cast<float>(state >> 40) * 0x1p-24f;
    }
    value = sum;
  }
  return x;
}

std::vector<uint8_t> encode(DType dtype, const std::vector<float>& x) {
  const auto n = static_cast<int64_t>(x.size());
  std::vector<uint8_t> bytes(static_cast<size_t>(row_bytes(dtype, n)));
  codec(dtype).quantize_row(x.data(), bytes.data(), n);
  return bytes;
}

std::vector<float> decode(DType dtype, const std::vector<uint8_t>& bytes, int64_t n) {
  std::vector<float> x(static_cast<size_t>(n));
  codec(dtype).dequantize_row(bytes.data(), x.data(), n);
  return x;
}

template <class Block>
std::vector<float> decode_block(DType dtype, const Block& block) {
  std::vector<uint8_t> bytes(sizeof(Block));
  std::memcpy(bytes.data(), &block, sizeof(Block));
  return decode(dtype, bytes, dtype_info(dtype).block_size);
}

template <class Block>
Block encode_block(DType dtype, const std::vector<float>& x) {
  Block block;
  std::memcpy(&block, encode(dtype, x).data(), sizeof(Block));
  return block;
}

const uint16_t kOne = f32_to_f16(1.0f);
const uint16_t kHalf = f32_to_f16(0.5f);

}  // namespace

TEST_CASE("every dtype has its codec") {
  for (const DTypeInfo& info : kDTypes) CHECK(codec(info.dtype).dtype == info.dtype);
  CHECK_THROWS_AS(codec(static_cast<DType>(29)), UnsupportedError);
}

TEST_CASE("round trip stays within the budget at every magnitude") {
  const std::vector<float> x = gaussian(64 * 1024, 1);
  for (const DTypeInfo& info : kDTypes) {
    for (const float magnitude : {1.0f, 0.02f, 300.0f}) {
      std::vector<float> scaled = x;
      for (float& value : scaled) value *= magnitude;
      const std::vector<float> y =
          decode(info.dtype, encode(info.dtype, scaled), static_cast<int64_t>(scaled.size()));
      double error = 0;
      double power = 0;
      for (size_t i = 0; i < scaled.size(); ++i) {
        const double diff = static_cast<double>(y[i]) - static_cast<double>(scaled[i]);
        error += diff * diff;
        power += static_cast<double>(scaled[i]) * static_cast<double>(scaled[i]);
      }
      CAPTURE(info.name);
      CAPTURE(magnitude);
      CHECK(std::sqrt(error / power) <= static_cast<double>(codec(info.dtype).error_budget));
    }
  }
}

TEST_CASE("zeros stay zero and encoding is deterministic") {
  const std::vector<float> zeros(512, 0.0f);
  const std::vector<float> x = gaussian(512, 7);
  for (const DTypeInfo& info : kDTypes) {
    CAPTURE(info.name);
    for (const float value : decode(info.dtype, encode(info.dtype, zeros), 512)) CHECK(value == 0.0f);
    CHECK(encode(info.dtype, x) == encode(info.dtype, x));
  }
}

TEST_CASE("extreme finite input gives finite numbers in the block types") {
  for (const DTypeInfo& info : kDTypes) {
    if (info.block_size == 1) continue;
    for (const float peak : {3.4028235e38f, 1e20f, 70000.0f, 1e-7f, 1e-30f, 1e-38f, 1e-45f}) {
      for (const float sign : {1.0f, -1.0f}) {
        std::vector<float> x = gaussian(256, 3);
        for (float& value : x) value *= 0.1f * peak;
        x[5] = sign * peak;
        x[6] = -sign * peak;
        CAPTURE(info.name);
        CAPTURE(peak);
        const std::vector<float> y = decode(info.dtype, encode(info.dtype, x), 256);
        CHECK(std::all_of(y.begin(), y.end(), [](float value) { return std::isfinite(value); }));
      }
    }
  }
}

TEST_CASE("K types multiplied by a power of two keep their codes") {
  const std::vector<float> x = gaussian(256, 11);
  std::vector<float> scaled = x;
  for (float& value : scaled) value *= 4.0f;
  for (const DType dtype : {DType::Q2_K, DType::Q3_K, DType::Q4_K, DType::Q5_K, DType::Q6_K}) {
    const std::vector<float> y = decode(dtype, encode(dtype, x), 256);
    const std::vector<float> z = decode(dtype, encode(dtype, scaled), 256);
    for (size_t i = 0; i < y.size(); ++i) CHECK(4.0f * y[i] == z[i]);
  }
}

TEST_CASE("rows may start at odd addresses") {
  const std::vector<float> x = gaussian(256, 2);
  for (const DTypeInfo& info : kDTypes) {
    const std::vector<uint8_t> bytes = encode(info.dtype, x);
    std::vector<uint8_t> shifted(bytes.size() + 1);
    std::copy(bytes.begin(), bytes.end(), shifted.begin() + 1);
    std::vector<float> y(256);
    codec(info.dtype).dequantize_row(shifted.data() + 1, y.data(), 256);
    CHECK(y == decode(info.dtype, bytes, 256));
  }
}

TEST_CASE("float rows") {
  CHECK(decode(DType::F16, {0x00, 0x3c, 0x01, 0x80}, 2) == std::vector<float>{1.0f, -0x1p-24f});
  CHECK(decode(DType::BF16, {0x80, 0x3f, 0x40, 0xc0}, 2) == std::vector<float>{1.0f, -3.0f});
  CHECK(encode(DType::BF16, {1.0f, -3.0f}) == std::vector<uint8_t>{0x80, 0x3f, 0x40, 0xc0});
  CHECK(encode(DType::F32, {1.0f}) == std::vector<uint8_t>{0, 0, 0x80, 0x3f});
}

TEST_CASE("Q8_0 by hand") {
  BlockQ8_0 block{};
  block.d = kHalf;
  block.q[0] = -128;
  block.q[31] = 127;
  const std::vector<float> y = decode_block(DType::Q8_0, block);
  CHECK(y[0] == -64.0f);
  CHECK(y[1] == 0.0f);
  CHECK(y[31] == 63.5f);

  std::vector<float> x(32, 0.0f);
  x[3] = -127.0f;
  x[4] = 2.5f;
  x[5] = -2.5f;
  const auto made = encode_block<BlockQ8_0>(DType::Q8_0, x);
  CHECK(made.d == kOne);
  CHECK(made.q[3] == -127);
  CHECK(made.q[4] == 3);  // ties go away from zero
  CHECK(made.q[5] == -3);
}

TEST_CASE("Q4_0 and Q4_1 by hand") {
  BlockQ4_0 block{};
  block.d = kHalf;
  for (uint8_t& byte : block.qs) byte = 0x88;
  block.qs[2] = 0xf0;  // element 2: code 0, element 18: code 15
  const std::vector<float> y = decode_block(DType::Q4_0, block);
  CHECK(y[2] == -4.0f);
  CHECK(y[18] == 3.5f);
  CHECK(y[3] == 0.0f);

  BlockQ4_1 affine{};
  affine.d = kHalf;
  affine.m = f32_to_f16(-2.0f);
  affine.qs[15] = 0xf1;
  const std::vector<float> z = decode_block(DType::Q4_1, affine);
  CHECK(z[0] == -2.0f);
  CHECK(z[15] == -1.5f);
  CHECK(z[31] == 5.5f);

  std::vector<float> x(32, 0.0f);
  x[1] = -8.0f;
  x[20] = 7.0f;
  const auto made = encode_block<BlockQ4_0>(DType::Q4_0, x);
  CHECK(made.d == kOne);
  CHECK(made.qs[1] == 0x80);
  CHECK(made.qs[4] == 0xf8);
}

TEST_CASE("Q5_0 and Q5_1 by hand") {
  BlockQ5_0 block{};
  block.d = kOne;
  block.qh[0] = 0x02;  // fifth bit of element 1
  block.qh[3] = 0x80;  // fifth bit of element 31
  block.qs[1] = 0x03;
  block.qs[15] = 0xf0;
  const std::vector<float> y = decode_block(DType::Q5_0, block);
  CHECK(y[0] == -16.0f);
  CHECK(y[1] == 3.0f);
  CHECK(y[17] == -16.0f);
  CHECK(y[31] == 15.0f);

  BlockQ5_1 affine{};
  affine.d = kOne;
  affine.m = kHalf;
  affine.qh[2] = 0x01;  // fifth bit of element 16
  affine.qs[0] = 0x21;
  const std::vector<float> z = decode_block(DType::Q5_1, affine);
  CHECK(z[0] == 1.5f);
  CHECK(z[16] == 18.5f);
  CHECK(z[1] == 0.5f);
}

TEST_CASE("Q2_K by hand") {
  BlockQ2_K block{};
  block.d = kOne;
  block.dmin = kHalf;
  block.scales[11] = 0x43;   // elements 176..191: scale 3, min 4
  block.qs[32 + 16] = 0x08;  // half 1, l = 16, bits 2..3 = 2: element 128 + 32 + 16 = 176
  const std::vector<float> y = decode_block(DType::Q2_K, block);
  CHECK(y[176] == 4.0f);  // 3 * 2 - 0.5 * 4
  CHECK(y[177] == -2.0f);
  CHECK(y[175] == 0.0f);
}

TEST_CASE("Q3_K by hand") {
  BlockQ3_K block{};
  block.d = kOne;
  int8_t scales[16] = {};
  scales[0] = 5;
  scales[9] = -32;
  scales[15] = 31;
  pack_scales_q3(scales, block.scales);
  for (int s = 0; s < 16; ++s) CHECK(unpack_scale_q3(block.scales, s) == scales[s]);
  block.qs[0] = 0x02;        // element 0: code 2
  block.hmask[31] = 0x80;    // element 255: code 4 + ...
  block.qs[32 + 31] = 0xc0;  // ... 3
  const std::vector<float> y = decode_block(DType::Q3_K, block);
  CHECK(y[0] == -10.0f);
  CHECK(y[1] == -20.0f);
  CHECK(y[144] == 128.0f);
  CHECK(y[255] == 93.0f);
  CHECK(y[16] == 0.0f);
}

TEST_CASE("Q4_K and Q5_K by hand") {
  ScaleMin pairs[8];
  for (int j = 0; j < 8; ++j)
    pairs[j] = {static_cast<uint8_t>((9 * j + 1) % 64), static_cast<uint8_t>((63 - 5 * j) % 64)};
  BlockQ4_K block{};
  block.d = kOne;
  block.dmin = kHalf;
  pack_scale_mins(pairs, block.scales);
  for (int j = 0; j < 8; ++j) {
    CHECK(unpack_scale_min(block.scales, j).scale == pairs[j].scale);
    CHECK(unpack_scale_min(block.scales, j).min == pairs[j].min);
  }
  block.qs[32 * 2 + 7] = 0xa3;  // element 128 + 7: code 3, element 160 + 7: code 10
  const std::vector<float> y = decode_block(DType::Q4_K, block);
  CHECK(y[135] == 37.0f * 3 - 0.5f * 43);
  CHECK(y[167] == 46.0f * 10 - 0.5f * 38);
  CHECK(y[0] == -31.5f);

  BlockQ5_K fifth{};
  fifth.d = kOne;
  fifth.dmin = kHalf;
  pack_scale_mins(pairs, fifth.scales);
  fifth.qs[32 * 2 + 7] = 0xa3;
  fifth.qh[7] = 0x20;  // bit 5: element 160 + 7
  const std::vector<float> z = decode_block(DType::Q5_K, fifth);
  CHECK(z[135] == 37.0f * 3 - 0.5f * 43);
  CHECK(z[167] == 46.0f * 26 - 0.5f * 38);
}

TEST_CASE("Q6_K by hand") {
  BlockQ6_K block{};
  block.d = kHalf;
  for (int8_t& scale : block.scales) scale = 2;
  block.scales[13] = -100;   // elements 208..223: half 1, quarter 2, l = 16..31
  block.ql[64 + 16] = 0x5f;  // low nibble: element 128 + 16, high nibble: element 128 + 64 + 16 = 208
  block.qh[32 + 16] = 0x33;  // bits 0..1 and 4..5
  const std::vector<float> y = decode_block(DType::Q6_K, block);
  CHECK(y[144] == 31.0f);           // code 63
  CHECK(y[208] == -50.0f * 21.0f);  // code 53
  CHECK(y[209] == 1600.0f);         // code 0
  CHECK(y[0] == -32.0f);
}

}  // namespace gemmule
