// Q4_0 blocks that training has put on a lattice: recovered without loss, from every float type; ordinary
// blocks are left alone.
#include "quant/lattice.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "core/dtype.h"
#include "core/half.h"
#include "quant/codec.h"
#include "quant/encode.h"

namespace gemmule {
namespace {

struct Random {
  uint64_t state;
  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 33);
  }
  // A normal f16 of either sign with an exponent of weights.
  float half() {
    return f16_to_f32(
        static_cast<uint16_t>((next() & 0x8000u) | ((4 + next() % 14) << 10) | (next() & 1023u)));
  }
};

float rounded(float value, DType type) {
  if (type == DType::BF16) return bf16_to_f32(f32_to_bf16(value));
  if (type == DType::F16) return f16_to_f32(f32_to_f16(value));
  return value;
}

constexpr DType kSources[] = {DType::F32, DType::F16, DType::BF16};

// x [32], rounded to `type`, must come back equal.
void check_lossless(const float* x, DType type) {
  uint8_t block[18];
  REQUIRE(encode_lattice_q4_0(x, static_cast<uint32_t>(type), block));
  float y[32];
  codec(DType::Q4_0).dequantize_row(block, y, 32);
  for (int j = 0; j < 32; ++j) CHECK(rounded(y[j], type) == x[j]);
}

}  // namespace

TEST_CASE("random lattices come back, whatever codes they use") {
  Random rng{1};
  for (const DType type : kSources) {
    for (const int low : {-8, -7, -2, -1, 0}) {
      for (const int high : {7, 3, 1, 0}) {
        for (int i = 0; i < 50; ++i) {
          const float d = rng.half();
          float x[32];
          for (float& value : x) {
            const int code = low + static_cast<int>(rng.next() % static_cast<uint32_t>(high - low + 1));
            value = rounded(d * static_cast<float>(code), type);
          }
          CAPTURE(dtype_name(type));
          CAPTURE(low);
          CAPTURE(high);
          CAPTURE(d);
          check_lossless(x, type);
        }
      }
    }
  }
}

TEST_CASE("blocks of zeros and of one number") {
  for (const DType type : kSources) {
    float x[32] = {};
    check_lossless(x, type);
    x[17] = -0.75f;
    check_lossless(x, type);
    x[17] = 7 * 0x1p-24f;
    check_lossless(x, type);
  }
}

TEST_CASE("numbers off the lattice, and scales that f16 does not have, are refused") {
  uint8_t block[18];
  float x[32] = {};
  for (int j = 0; j < 32; ++j) x[j] = 0.125f * static_cast<float>(j % 16 - 8);
  x[3] = 0.0625f;
  for (const DType type : kSources) CHECK_FALSE(encode_lattice_q4_0(x, static_cast<uint32_t>(type), block));
  for (float& value : x) value = 1.0f / 3;  // no f16 multiplied by 1..8 gives this f32
  CHECK_FALSE(encode_lattice_q4_0(x, static_cast<uint32_t>(DType::F32), block));
  for (float& value : x) value = 1e20f;
  for (const DType type : {DType::F32, DType::BF16})
    CHECK_FALSE(encode_lattice_q4_0(x, static_cast<uint32_t>(type), block));
}

TEST_CASE("ordinary numbers lie on no lattice") {
  Random rng{2};
  for (const DType type : kSources) {
    int found = 0;
    for (int i = 0; i < 20000; ++i) {
      float x[32];
      for (float& value : x) {
        float sum = -3.0f;
        for (int k = 0; k < 6; ++k) sum += static_cast<float>(rng.next()) * 0x1p-31f;
        value = rounded(0.02f * sum, type);
      }
      uint8_t block[18];
      found += encode_lattice_q4_0(x, static_cast<uint32_t>(type), block) ? 1 : 0;
    }
    CHECK(found == 0);
  }
}

TEST_CASE("the encoder stores lattice blocks without loss, with importance too") {
  constexpr int64_t kCols = 320;
  constexpr int64_t kRows = 20;
  Random rng{3};
  std::vector<float> importance(kCols);
  for (float& w : importance) w = static_cast<float>(rng.next() % 100);
  for (const DType type : kSources) {
    std::vector<float> x(static_cast<size_t>(kRows * kCols));
    for (size_t block = 0; block < x.size() / 32; ++block) {
      const float d = rng.half();
      for (size_t j = 0; j < 32; ++j)
        x[32 * block + j] = rounded(d * (static_cast<float>(rng.next() % 16) - 8), type);
    }
    std::vector<uint8_t> src(x.size() * static_cast<size_t>(dtype_info(type).block_bytes));
    codec(type).quantize_row(x.data(), src.data(), kRows * kCols);
    for (const char* isa : {"scalar", ""}) {
      for (const float* w :
           {static_cast<const float*>(nullptr), static_cast<const float*>(importance.data())}) {
        Encoder encoder(2, isa);
        std::vector<uint8_t> out(static_cast<size_t>(kRows * row_bytes(DType::Q4_0, kCols)));
        const EncodeStats stats =
            encoder.encode({src.data(), type, out.data(), DType::Q4_0, kRows, kCols, w}, nullptr);
        std::vector<float> y(x.size());
        codec(DType::Q4_0).dequantize_row(out.data(), y.data(), kRows * kCols);
        double error2 = 0;
        int wrong = 0;
        for (size_t i = 0; i < x.size(); ++i) {
          wrong += rounded(y[i], type) != x[i] ? 1 : 0;
          const double diff = static_cast<double>(x[i]) - static_cast<double>(y[i]);
          error2 += diff * diff;
        }
        CHECK(wrong == 0);
        CHECK(std::fabs(stats.error2 - error2) <= 1e-9 * error2);
        CHECK(encoder.lattice_q4_0(src.data(), type, kRows * kCols) == 1.0);
      }
    }
  }
}

}  // namespace gemmule
