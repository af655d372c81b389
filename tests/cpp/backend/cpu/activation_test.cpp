// gelu_mul, scale, softcap and the f16 store of a row: equal bits in every level for all lengths and
// misalignments, nothing written past the end, and closeness to double precision.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/levels.h"
#include "core/half.h"

namespace gemmule {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> random_floats(size_t n, float spread, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> x(n);
  for (float& v : x) v = normal(rng);
  return x;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    if (std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i])) return false;
  }
  return true;
}

TEST_CASE("element-wise kernels have the bits of the scalar level for all lengths and misalignments") {
  const KernelTable& scalar = select_kernels(detect_cpu_features(), "scalar");
  for (const KernelTable* table : testing::usable_levels()) {
    CAPTURE(table->name);
    for (int64_t n = 0; n <= 67; ++n) {
      for (int64_t shift = 0; shift < 8; ++shift) {
        CAPTURE(n);
        CAPTURE(shift);
        const auto size = static_cast<size_t>(n + 16);
        const std::vector<float> gate = random_floats(size, 3.0f, 1), up = random_floats(size, 1.0f, 2);
        std::vector<float> a(size, 5.0f), b(size, 5.0f);
        scalar.gelu_mul(a.data() + shift, gate.data() + shift, up.data() + shift, n);
        table->gelu_mul(b.data() + shift, gate.data() + shift, up.data() + shift, n);
        CHECK(same_bits(a, b));
        for (int64_t i = 0; i < n + 16; ++i) {
          if (i < shift || i >= shift + n) CHECK(b[static_cast<size_t>(i)] == 5.0f);
        }
        std::vector<float> over_gate = gate, over_up = up;
        table->gelu_mul(over_gate.data() + shift, over_gate.data() + shift, up.data() + shift, n);
        table->gelu_mul(over_up.data() + shift, gate.data() + shift, over_up.data() + shift, n);
        for (int64_t i = shift; i < shift + n; ++i) {
          const auto j = static_cast<size_t>(i);
          CHECK(std::bit_cast<uint32_t>(over_gate[j]) == std::bit_cast<uint32_t>(a[j]));
          CHECK(std::bit_cast<uint32_t>(over_up[j]) == std::bit_cast<uint32_t>(a[j]));
        }

        std::vector<float> expected = gate, y = gate;
        for (int64_t i = shift; i < shift + n; ++i) expected[static_cast<size_t>(i)] *= 1.7f;
        table->scale(y.data() + shift, 1.7f, n);
        CHECK(same_bits(y, expected));

        a = gate;
        b = gate;
        scalar.softcap(a.data() + shift, 30.0f, n);
        table->softcap(b.data() + shift, 30.0f, n);
        CHECK(same_bits(a, b));

        std::vector<uint16_t> h(size, 0x1234), expected_h(size, 0x1234);
        for (int64_t i = shift; i < shift + n; ++i) {
          expected_h[static_cast<size_t>(i)] = f32_to_f16(gate[static_cast<size_t>(i)]);
        }
        table->f32_to_f16(gate.data() + shift, h.data() + shift, n);
        CHECK(h == expected_h);
      }
    }
  }
}

TEST_CASE("gelu_mul is close to double precision and saturates") {
  for (const KernelTable* table : testing::usable_levels()) {
    std::vector<float> x, one, y;
    for (double v = -12; v < 12; v += 1.0 / 512) x.push_back(static_cast<float>(v));
    one.assign(x.size(), 1.0f);
    y.resize(x.size());
    table->gelu_mul(y.data(), x.data(), one.data(), static_cast<int64_t>(x.size()));
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double v = x[i];
      const double exact = 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
      worst = std::max(worst, std::fabs(y[i] - exact) / std::max(1.0, std::fabs(v)));
    }
    MESSAGE(std::string(table->name) << " gelu: largest error " << worst);
    CHECK(worst <= 3e-7);

    const float special[5] = {0.0f, 1e20f, -1e20f, kInf, 50.0f}, ones[5] = {1, 1, 1, 1, 1};
    float out[5];
    table->gelu_mul(out, special, ones, 5);
    CHECK(out[0] == 0.0f);
    CHECK(out[1] == 1e20f);
    CHECK(out[2] == 0.0f);
    CHECK(out[3] == kInf);
    CHECK(out[4] == 50.0f);
  }
}

TEST_CASE("softcap is cap * tanh(x / cap)") {
  for (const KernelTable* table : testing::usable_levels()) {
    std::vector<float> x = random_floats(4096, 40.0f, 3);
    x[0] = 1e30f;
    x[1] = -1e30f;
    x[2] = 0.0f;
    std::vector<float> y = x;
    table->softcap(y.data(), 30.0f, static_cast<int64_t>(y.size()));
    for (size_t i = 0; i < x.size(); ++i) {
      CHECK(y[i] == doctest::Approx(30.0 * std::tanh(x[i] / 30.0)).epsilon(4e-7));
    }
    CHECK(y[0] == 30.0f);
    CHECK(y[1] == -30.0f);
    CHECK(y[2] == 0.0f);
  }
}

}  // namespace
}  // namespace gemmule

TEST_CASE("softcap does not hide infinities") {
  for (const gemmule::KernelLevel& level : gemmule::kernel_levels(gemmule::detect_cpu_features())) {
    if (!level.supported) continue;
    const float inf = std::numeric_limits<float>::infinity();
    std::vector<float> x = {1, inf, -inf, 1e30f, 0, 0, 0, 0, inf};
    level.table->softcap(x.data(), 30.0f, 9);
    for (const size_t i : {1u, 2u, 8u}) CHECK(x[i] != x[i]);
    CHECK(x[3] == 30.0f);
  }
}
