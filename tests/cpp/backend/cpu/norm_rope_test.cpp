// rms_norm, add_rms_norm, layer_norm and rope: equal bits in every level for all lengths and misalignments,
// the numeric contract written out lane by lane, and closeness to double precision.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "backend/cpu/levels.h"

namespace gemmule {
namespace {

std::vector<float> random_floats(size_t n, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& v : x) v = normal(rng);
  return x;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i])) return false;
  }
  return true;
}

// The contract in plain code: 8 lanes, the fixed tree, IEEE division and square root.
float contract_inverse_rms(const float* x, int64_t n, float eps) {
  float lane[8] = {};
  for (int64_t i = 0; i < n; ++i) lane[i % 8] = std::fma(x[i], x[i], lane[i % 8]);
  const float s = ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
  return 1.0f / std::sqrt(s / static_cast<float>(n) + eps);
}

std::vector<int64_t> lengths() {
  std::vector<int64_t> n;
  for (int64_t i = 1; i <= 67; ++i) n.push_back(i);
  n.push_back(256);
  n.push_back(1152);
  return n;
}

TEST_CASE("rms_norm follows the contract bit for bit in every level") {
  const float eps = 1e-6f;
  for (const KernelTable* table : testing::usable_levels()) {
    CAPTURE(table->name);
    for (const int64_t n : lengths()) {
      for (int64_t shift = 0; shift<8; shift += n> 67 ? 3 : 1) {
        CAPTURE(n);
        CAPTURE(shift);
        const std::vector<float> x = random_floats(static_cast<size_t>(n + 16), static_cast<uint32_t>(n));
        const std::vector<float> w = random_floats(static_cast<size_t>(n + 16), 99);
        for (const bool weighted : {true, false}) {
          std::vector<float> expected(x.size(), 7.0f), y(x.size(), 7.0f);
          const float r = contract_inverse_rms(x.data() + shift, n, eps);
          for (int64_t i = shift; i < n + shift; ++i) {
            const auto j = static_cast<size_t>(i);
            expected[j] = weighted ? (x[j] * r) * w[j] : x[j] * r;
          }
          const float* weight = weighted ? w.data() + shift : nullptr;
          table->rms_norm(y.data() + shift, x.data() + shift, weight, n, eps);
          CHECK(same_bits(y, expected));

          std::vector<float> in_place = x;
          table->rms_norm(in_place.data() + shift, in_place.data() + shift, weight, n, eps);
          for (int64_t i = 0; i < n + 16; ++i) {
            if (i < shift || i >= n + shift) expected[static_cast<size_t>(i)] = x[static_cast<size_t>(i)];
          }
          CHECK(same_bits(in_place, expected));

          std::vector<float> sum = w;
          table->add_rms_norm(sum.data() + shift, x.data() + shift, weight, n, eps);
          std::vector<float> expected_sum = w;
          for (int64_t i = shift; i < n + shift; ++i) {
            expected_sum[static_cast<size_t>(i)] += expected[static_cast<size_t>(i)];
          }
          CHECK(same_bits(sum, expected_sum));
        }
      }
    }
  }
}

TEST_CASE("rms_norm is close to double precision and writes nothing for an empty row") {
  for (const KernelTable* table : testing::usable_levels()) {
    const std::vector<float> x = random_floats(5376, 5), w = random_floats(5376, 6);
    std::vector<float> y(x.size());
    table->rms_norm(y.data(), x.data(), w.data(), 5376, 1e-6f);
    double s = 0;
    for (const float v : x) s += static_cast<double>(v) * v;
    const double r = 1.0 / std::sqrt(s / 5376 + 1e-6);
    for (size_t i = 0; i < x.size(); ++i) CHECK(y[i] == doctest::Approx(x[i] * r * w[i]).epsilon(1e-6));

    std::vector<float> untouched = x;
    table->rms_norm(untouched.data(), x.data(), w.data(), 0, 1e-6f);
    table->add_rms_norm(untouched.data(), x.data(), w.data(), 0, 1e-6f);
    CHECK(same_bits(untouched, x));
    std::vector<float> zeros(64, 0.0f);
    table->rms_norm(zeros.data(), zeros.data(), w.data(), 64, 1e-6f);
    for (const float v : zeros) CHECK(v == 0.0f);
  }
}

TEST_CASE("layer_norm follows the contract bit for bit in every level") {
  const float eps = 1e-5f;
  const auto tree = [](const float* l) {
    return ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
  };
  for (const KernelTable* table : testing::usable_levels()) {
    CAPTURE(table->name);
    for (const int64_t n : lengths()) {
      CAPTURE(n);
      const auto shift = static_cast<size_t>(n % 5), count = static_cast<size_t>(n);
      std::vector<float> x = random_floats(count + 16, static_cast<uint32_t>(n));
      for (float& v : x) v += 3;
      const std::vector<float> w = random_floats(x.size(), 7), b = random_floats(x.size(), 8);
      float lane[8] = {}, rest[8] = {}, square[8] = {};
      for (size_t i = 0; i < count; ++i) lane[i % 8] += x[shift + i];
      const float mean = tree(lane) / static_cast<float>(n);
      for (size_t i = 0; i < count; ++i) rest[i % 8] += x[shift + i] - mean;
      const float d = tree(rest) / static_cast<float>(n);
      for (size_t i = 0; i < count; ++i) {
        const float c = (x[shift + i] - mean) - d;
        square[i % 8] = std::fma(c, c, square[i % 8]);
      }
      const float r = 1.0f / std::sqrt(tree(square) / static_cast<float>(n) + eps);
      std::vector<float> expected(x.size(), 7.0f), y(x.size(), 7.0f), in_place = x;
      for (size_t i = shift; i < shift + count; ++i)
        expected[i] = std::fma(((x[i] - mean) - d) * r, w[i], b[i]);
      table->layer_norm(y.data() + shift, x.data() + shift, w.data() + shift, b.data() + shift, n, eps);
      CHECK(same_bits(y, expected));
      table->layer_norm(in_place.data() + shift, in_place.data() + shift, w.data() + shift, b.data() + shift,
                        n, eps);
      for (size_t i = 0; i < x.size(); ++i)
        if (i < shift || i >= shift + count) expected[i] = x[i];
      CHECK(same_bits(in_place, expected));
    }
  }
}

TEST_CASE("layer_norm is close to double precision, also where the mean is far larger than the spread") {
  for (const KernelTable* table : testing::usable_levels()) {
    const std::vector<float> w = random_floats(6912, 6), b = random_floats(6912, 7);
    for (const double offset : {0.0, 0.7, 100.0}) {
      std::vector<float> x = random_floats(6912, 5), y(x.size());
      for (float& v : x) v = static_cast<float>(0.01 * v + offset);
      table->layer_norm(y.data(), x.data(), w.data(), b.data(), 6912, 1e-5f);
      double mean = 0, variance = 0, error = 0, norm = 0;
      for (const float v : x) mean += v / 6912.0;
      for (const float v : x) variance += (v - mean) * (v - mean) / 6912.0;
      for (size_t i = 0; i < x.size(); ++i) {
        const double exact = (x[i] - mean) / std::sqrt(variance + 1e-5) * w[i] + b[i];
        error += (y[i] - exact) * (y[i] - exact);
        norm += exact * exact;
      }
      CHECK(std::sqrt(error / norm) < 2e-7);
    }
  }
}

TEST_CASE("rope turns the pairs it is asked to, with the bits of the contract, in every level") {
  for (const KernelTable* table : testing::usable_levels()) {
    CAPTURE(table->name);
    for (int64_t half = 1; half <= 67; ++half) {
      for (const int64_t n_rot : {int64_t{0}, half / 4, half / 2, half - 1, half}) {
        CAPTURE(half);
        CAPTURE(n_rot);
        const auto shift = half % 5;
        const std::vector<float> x = random_floats(static_cast<size_t>(2 * half + 8), 11);
        const std::vector<float> angle = random_floats(static_cast<size_t>(half), 12);
        std::vector<float> cosine(angle.size()), sine(angle.size());
        for (size_t i = 0; i < angle.size(); ++i) {
          cosine[i] = std::cos(angle[i]);
          sine[i] = std::sin(angle[i]);
        }
        std::vector<float> expected = x;
        for (int64_t i = 0; i < n_rot; ++i) {
          const auto first = static_cast<size_t>(shift + i), second = static_cast<size_t>(shift + i + half);
          const auto j = static_cast<size_t>(i);
          expected[first] = std::fma(x[first], cosine[j], -(x[second] * sine[j]));
          expected[second] = std::fma(x[second], cosine[j], x[first] * sine[j]);
        }
        std::vector<float> y = x;
        table->rope(y.data() + shift, cosine.data(), sine.data(), n_rot, 2 * half);
        CHECK(same_bits(y, expected));
      }
    }
  }
}

}  // namespace
}  // namespace gemmule

TEST_CASE("a row whose squares overflow gives NaN, not zeros") {
  for (const gemmule::KernelLevel& level : gemmule::kernel_levels(gemmule::detect_cpu_features())) {
    if (!level.supported) continue;
    std::vector<float> x(24, 1e25f), y(24);
    level.table->rms_norm(y.data(), x.data(), nullptr, 24, 1e-6f);
    for (const float v : y) CHECK(v != v);
    for (size_t i = 0; i < x.size(); i += 2) x[i] = -1e25f;
    level.table->layer_norm(y.data(), x.data(), x.data(), x.data(), 24, 1e-5f);
    for (const float v : y) CHECK(v != v);
  }
}
