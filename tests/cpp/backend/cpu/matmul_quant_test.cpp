// The quantized matmuls and the activation quantizers: every instruction-set level against the scalar level
// by bits, the scalar level against dequantized weights in double precision, and the independence of an
// output from the number of tokens and the range of rows it is computed with.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/levels.h"
#include "core/dtype.h"
#include "core/half.h"
#include "quant/blocks.h"
#include "quant/codec.h"
#include "quant/random_blocks.h"

namespace gemmule {
namespace {

using Rng = std::mt19937;

using testing::kBlockTypes;
using testing::scalar_level;
using testing::usable_levels;

bool is_k_quant(DType dtype) { return dtype_info(dtype).block_size == 256; }

uint16_t random_half(Rng& rng) {
  switch (rng() % 8) {
    case 0:
      return 0;
    case 1:
      return static_cast<uint16_t>(rng() % 1024);  // subnormal
    default: {
      const float magnitude = 0.001f + 0.02f * static_cast<float>(rng() % 1000) / 1000.0f;
      return f32_to_f16(rng() % 2 ? magnitude : -magnitude);
    }
  }
}

// Random codes and scales; the half floats of each block are finite.
std::vector<uint8_t> random_weights(DType dtype, int64_t rows, int64_t k, Rng& rng) {
  std::vector<uint8_t> w(static_cast<size_t>(rows * row_bytes(dtype, k)));
  for (uint8_t& byte : w) byte = static_cast<uint8_t>(rng());
  testing::set_halves(dtype, w, [&] { return random_half(rng); });
  if (dtype == DType::Q8_0)
    for (size_t block = 0; block < w.size(); block += sizeof(BlockQ8_0))
      if (rng() % 4 == 0) w[block + 2 + rng() % 32] = 0x80;  // the code -128
  return w;
}

struct Activations {
  std::vector<float> x;       // [n][k]
  std::vector<int8_t> q;      // [n][k]
  std::vector<float> d;       // [n][k / block]
  std::vector<int16_t> sums;  // [n][k / 32] or [n][k / 16]
  ActRows rows(int64_t n, int64_t k) const { return {n, k, nullptr, q.data(), d.data(), sums.data()}; }
};

void quantize_with(const KernelTable& kernels, bool k_quant, int64_t n, int64_t k, Activations& a) {
  const int64_t blocks = k / (k_quant ? 256 : 32), sums = k / (k_quant ? 16 : 32);
  a.q.assign(static_cast<size_t>(n * k), 0);
  a.d.assign(static_cast<size_t>(n * blocks), 0.0f);
  a.sums.assign(static_cast<size_t>(n * sums), 0);
  for (int64_t t = 0; t < n; ++t)
    (k_quant ? kernels.quantize_q8_256 : kernels.quantize_q8_32)(
        a.x.data() + t * k, k, a.q.data() + t * k, a.d.data() + t * blocks, a.sums.data() + t * sums);
}

Activations random_activations(DType dtype, int64_t n, int64_t k, Rng& rng) {
  Activations a;
  std::normal_distribution<float> normal;
  a.x.resize(static_cast<size_t>(n * k));
  for (float& x : a.x) x = normal(rng);
  // One token of extremes: every code is +-127, the worst case of the 16-bit sums.
  for (int64_t i = 0; i < k; ++i)
    if (n > 1) a.x[static_cast<size_t>(i)] = (i / 64) % 2 ? 3.0f : -3.0f;
  quantize_with(scalar_level(), is_k_quant(dtype), n, k, a);
  return a;
}

struct Scratch {
  std::vector<uint8_t> memory;
  explicit Scratch(size_t bytes) : memory(bytes + 64) {}
  void* get() { return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64); }
};

constexpr float kUntouched = -12345.5f;

// y [n][rows] with the range of rows computed and the others left at kUntouched.
std::vector<float> multiply(const KernelTable& kernels, DType dtype, const std::vector<uint8_t>& w,
                            int64_t rows, int64_t row_begin, int64_t row_end, const ActRows& x) {
  Scratch scratch(kernels.matmul_scratch_bytes(x.n, x.k));
  std::vector<float> y(static_cast<size_t>(rows * x.n), kUntouched);
  kernels.matmul[static_cast<size_t>(dtype)](w.data(), row_bytes(dtype, x.k), row_begin, row_end, x, y.data(),
                                             rows, scratch.get());
  return y;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST_CASE("quantized matmul: every level gives the bits of the scalar level") {
  Rng rng(7);
  const std::vector<int64_t> all_rows = {1,  2,  3,  4,  5,  6,  7,  8,  9,  10,
                                         11, 12, 13, 14, 15, 16, 17, 18, 19, 64};
  for (const KernelTable* kernels : usable_levels()) {
    for (const DType dtype : kBlockTypes) {
      for (const int64_t k : {32, 64, 256, 288, 512, 640, 2048}) {
        if (k % dtype_info(dtype).block_size != 0) continue;
        const Activations a = random_activations(dtype, 33, k, rng);
        for (const int64_t rows : all_rows) {
          const std::vector<uint8_t> w = random_weights(dtype, rows, k, rng);
          const std::vector<float> expected =
              multiply(scalar_level(), dtype, w, rows, 0, rows, a.rows(33, k));
          for (const int64_t n : {1, 2, 3, 4, 5, 7, 8, 9, 17, 33}) {
            if (rows > 19 && k > 640 && n < 17) continue;
            CAPTURE(kernels->name);
            CAPTURE(dtype_name(dtype));
            CAPTURE(k);
            CAPTURE(rows);
            CAPTURE(n);
            // y is [n][rows] with the tokens outermost, so fewer tokens are a prefix of it.
            const std::vector<float> y = multiply(*kernels, dtype, w, rows, 0, rows, a.rows(n, k));
            REQUIRE(same_bits(y, {expected.begin(), expected.begin() + n * rows}));
          }
        }
      }
    }
  }
}

TEST_CASE("quantized matmul: a range of rows gives the bits of the whole and writes nothing else") {
  Rng rng(8);
  constexpr int64_t kRows = 45, kK = 512;
  for (const KernelTable* kernels : usable_levels()) {
    for (const DType dtype : kBlockTypes) {
      const std::vector<uint8_t> w = random_weights(dtype, kRows, kK, rng);
      for (const int64_t n : {1, 2, 3, 6}) {
        const Activations a = random_activations(dtype, n, kK, rng);
        const std::vector<float> whole = multiply(scalar_level(), dtype, w, kRows, 0, kRows, a.rows(n, kK));
        for (const auto& [begin, end] :
             {std::pair<int64_t, int64_t>{0, 16}, {3, 4}, {5, 29}, {31, 45}, {7, 7}, {44, 45}}) {
          CAPTURE(kernels->name);
          CAPTURE(dtype_name(dtype));
          CAPTURE(n);
          CAPTURE(begin);
          CAPTURE(end);
          std::vector<float> expected(whole.size(), kUntouched);
          for (int64_t t = 0; t < n; ++t)
            std::copy(whole.begin() + t * kRows + begin, whole.begin() + t * kRows + end,
                      expected.begin() + t * kRows + begin);
          REQUIRE(same_bits(multiply(*kernels, dtype, w, kRows, begin, end, a.rows(n, kK)), expected));
        }
      }
    }
  }
}

TEST_CASE("quantized matmul: many tokens together give the bits of each alone") {
  Rng rng(9);
  constexpr int64_t kRows = 21, kK = 256, kTokens = 1031;  // more than one tile of tokens
  for (const KernelTable* kernels : usable_levels()) {
    for (const DType dtype : kBlockTypes) {
      const std::vector<uint8_t> w = random_weights(dtype, kRows, kK, rng);
      const Activations a = random_activations(dtype, kTokens, kK, rng);
      const std::vector<float> together = multiply(*kernels, dtype, w, kRows, 0, kRows, a.rows(kTokens, kK));
      const int64_t blocks = kK / dtype_info(dtype).block_size, sums = is_k_quant(dtype) ? kK / 16 : kK / 32;
      for (int64_t t = 0; t < kTokens; ++t) {
        CAPTURE(kernels->name);
        CAPTURE(dtype_name(dtype));
        CAPTURE(t);
        const ActRows one = {
            1, kK, nullptr, a.q.data() + t * kK, a.d.data() + t * blocks, a.sums.data() + t * sums};
        const std::vector<float> alone = multiply(*kernels, dtype, w, kRows, 0, kRows, one);
        REQUIRE(same_bits(alone, {together.begin() + t * kRows, together.begin() + (t + 1) * kRows}));
      }
    }
  }
}

TEST_CASE("quantized matmul: no token or no element gives nothing or zeros") {
  Rng rng(10);
  for (const KernelTable* kernels : usable_levels()) {
    for (const DType dtype : kBlockTypes) {
      const std::vector<uint8_t> w = random_weights(dtype, 9, 256, rng);
      CHECK(
          multiply(*kernels, dtype, w, 9, 0, 9, ActRows{0, 256, nullptr, nullptr, nullptr, nullptr}).empty());
      const std::vector<float> y =
          multiply(*kernels, dtype, w, 9, 0, 9, ActRows{2, 0, nullptr, nullptr, nullptr, nullptr});
      CHECK(same_bits(y, std::vector<float>(18, 0.0f)));
    }
  }
}

TEST_CASE("quantized matmul: the scalar level computes the dequantized dot product") {
  Rng rng(11);
  constexpr int64_t kRows = 24;
  for (const DType dtype : kBlockTypes) {
    for (const int64_t k : {256, 1024}) {
      const int64_t n = 4, block = dtype_info(dtype).block_size;
      const std::vector<uint8_t> w = random_weights(dtype, kRows, k, rng);
      const Activations a = random_activations(dtype, n, k, rng);
      const std::vector<float> y = multiply(scalar_level(), dtype, w, kRows, 0, kRows, a.rows(n, k));
      std::vector<float> row(static_cast<size_t>(k));
      for (int64_t r = 0; r < kRows; ++r) {
        codec(dtype).dequantize_row(w.data() + r * row_bytes(dtype, k), row.data(), k);
        for (int64_t t = 0; t < n; ++t) {
          double exact = 0, quantized = 0, magnitude = 0, activation_error = 0;
          for (int64_t i = 0; i < k; ++i) {
            const double weight = row[static_cast<size_t>(i)], x = a.x[static_cast<size_t>(t * k + i)];
            const double da = a.d[static_cast<size_t>((t * k + i) / block)];
            const double approx = da * a.q[static_cast<size_t>(t * k + i)];
            exact += weight * x;
            quantized += weight * approx;
            magnitude += std::abs(weight * approx);
            activation_error += std::abs(weight) * 0.501 * da;
          }
          const double result = y[static_cast<size_t>(t * kRows + r)];
          CAPTURE(dtype_name(dtype));
          CAPTURE(k);
          // Mins and offsets cancel against the products, so rounding is relative to the magnitudes, not the
          // result.
          CHECK(std::abs(result - quantized) <= 4e-6 * magnitude + 1e-7);
          CHECK(std::abs(result - exact) <= activation_error + 4e-6 * magnitude + 1e-7);
        }
      }
    }
  }
}

TEST_CASE("activation quantizers: every level gives the bits of the scalar level") {
  Rng rng(12);
  std::normal_distribution<float> normal;
  constexpr int64_t kK = 256 * 40;
  Activations expected;
  expected.x.resize(kK);
  const float infinity = std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < kK; ++i) {
    float& x = expected.x[static_cast<size_t>(i)];
    switch (i / 256 % 10) {  // 4 blocks of 256 of each kind
      case 0:
        x = normal(rng);
        break;
      case 1:
        x = i % 512 < 256 ? 0.0f : -0.0f;
        break;
      case 2:
        x = normal(rng) * 1e-41f;
        break;  // subnormal
      case 3:
        x = normal(rng) * 5e37f;
        break;  // near the largest float
      case 4:
        x = (static_cast<float>(static_cast<int>(rng() % 254)) - 126.5f) / 127.0f * 127.0f;
        break;  // ties
      case 5:
        x = i % 32 == 0 ? 127.0f : static_cast<float>(i % 100) + 0.5f;
        break;  // exact ties
      case 6:
        x = std::ldexp(normal(rng), static_cast<int>(rng() % 200) - 100);
        break;
      case 7:
        x = i % 256 == 17 ? infinity : normal(rng);
        break;
      case 8:
        x = i % 256 == 40 ? std::numeric_limits<float>::quiet_NaN() : normal(rng);
        break;
      default:
        x = normal(rng) * 3e-37f;
        break;  // around the smallest block that is not taken for zero
    }
  }
  for (const bool k_quant : {false, true}) {
    quantize_with(scalar_level(), k_quant, 1, kK, expected);
    for (const KernelTable* kernels : usable_levels()) {
      CAPTURE(kernels->name);
      CAPTURE(k_quant);
      Activations a;
      a.x = expected.x;
      quantize_with(*kernels, k_quant, 1, kK, a);
      CHECK(a.q == expected.q);
      CHECK(a.sums == expected.sums);
      CHECK(std::memcmp(a.d.data(), expected.d.data(), a.d.size() * sizeof(float)) == 0);
    }
    CHECK(*std::min_element(expected.q.begin(), expected.q.end()) == -127);
    const int64_t group = k_quant ? 16 : 32, block = k_quant ? 256 : 32;
    for (int64_t g = 0; g < kK / group; ++g) {
      int sum = 0;
      for (int64_t i = 0; i < group; ++i) sum += expected.q[static_cast<size_t>(g * group + i)];
      CHECK(sum == expected.sums[static_cast<size_t>(g)]);
    }
    for (int64_t b = 0; b < kK / block; ++b) {  // the round trip, and what infinity and NaN do to the scale
      const float d = expected.d[static_cast<size_t>(b)];
      float largest = 0;
      bool nan = false;
      for (int64_t i = b * block; i < (b + 1) * block; ++i) {
        largest = std::max(largest, std::abs(expected.x[static_cast<size_t>(i)]));
        nan = nan || std::isnan(expected.x[static_cast<size_t>(i)]);
      }
      CHECK(std::isnan(d) == nan);
      if (nan) continue;
      CHECK(d == largest / 127.0f);
      if (largest < 1e-36f || largest == infinity) continue;
      for (int64_t i = b * block; i < (b + 1) * block; ++i) {
        const float error = expected.x[static_cast<size_t>(i)] - d * expected.q[static_cast<size_t>(i)];
        CHECK(std::abs(error) <= 0.5001f * d);
      }
    }
  }
}

TEST_CASE("activation quantizers: ties go to the even code") {
  Activations a;
  a.x.assign(256, 0.0f);
  a.x[0] = 127.0f;  // d = 1
  const float in[] = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 126.5f, -126.5f};
  const int8_t out[] = {0, 2, 2, 0, -2, -2, 126, -126};
  std::copy(std::begin(in), std::end(in), a.x.begin() + 1);
  for (const KernelTable* kernels : usable_levels()) {
    quantize_with(*kernels, true, 1, 256, a);
    CHECK(std::equal(std::begin(out), std::end(out), a.q.begin() + 1));
    CHECK(a.d[0] == 1.0f);
  }
}

TEST_CASE("quantized matmul: infinity and NaN in the activations reach the output") {
  Rng rng(13);
  for (const DType dtype : kBlockTypes) {
    Activations a = random_activations(dtype, 1, 256, rng);
    a.x[100] = std::numeric_limits<float>::quiet_NaN();
    quantize_with(scalar_level(), is_k_quant(dtype), 1, 256, a);
    const std::vector<uint8_t> w = random_weights(dtype, 8, 256, rng);
    for (const KernelTable* kernels : usable_levels())
      for (const float y : multiply(*kernels, dtype, w, 8, 0, 8, a.rows(1, 256))) CHECK(std::isnan(y));
  }
}

}  // namespace
}  // namespace gemmule
