#include "model/rope.h"

#include <doctest/doctest.h>

#include <cmath>

#include "core/error.h"

using namespace gemmule;

TEST_CASE("frequencies of a sliding layer are the published ones") {
  const auto f = rope_frequencies({1e4, 256, 1}, {});
  REQUIRE(f.size() == 128);
  CHECK(f[0] == 1.0f);
  CHECK(f[1] == doctest::Approx(0.930572041).epsilon(1e-7));
  CHECK(f[64] == doctest::Approx(0.01).epsilon(1e-7));
  CHECK(f[127] == doctest::Approx(1.07460783e-4).epsilon(1e-7));
}

TEST_CASE("Gemma 4 global layers turn the first quarter of the pairs only") {
  std::vector<float> factors(256, 1e30f);
  std::fill_n(factors.begin(), 64, 1.0f);
  const auto f = rope_frequencies({1e6, 512, 1}, factors);
  REQUIRE(f.size() == 64);
  CHECK(f[1] == doctest::Approx(0.947463526).epsilon(1e-7));
  CHECK(f[31] == doctest::Approx(0.187688429).epsilon(1e-7));
  CHECK(f[63] == doctest::Approx(0.0333762470).epsilon(1e-7));
}

TEST_CASE("factors divide the angle and linear scaling divides the position") {
  const std::vector<float> factors(4, 2.0f);
  const auto f = rope_frequencies({1e4, 8, 1.0 / 8}, factors);
  CHECK(f[0] == 1.0f / 16);
}

TEST_CASE("unturned pairs in the middle and broken factors are refused") {
  const std::vector<float> hole = {1.0f, 1e30f, 1.0f, 1e30f};
  CHECK_THROWS_AS(rope_frequencies({1e4, 8, 1}, hole), UnsupportedError);
  const std::vector<float> small = {1e-35f, 1.0f, 1e30f, 1e30f};
  CHECK_THROWS_AS(rope_frequencies({1e4, 8, 1}, small), UnsupportedError);
  const std::vector<float> zero = {1.0f, 0.0f, 1e30f, 1e30f};
  CHECK_THROWS_AS(rope_frequencies({1e4, 8, 1}, zero), UnsupportedError);
}

TEST_CASE("angles agree with the mathematics library to the last bit of f32 or nearly") {
  const auto f = rope_frequencies({1e4, 256, 1}, {});
  const std::vector<int64_t> pos = {0, 1, 2, 777, 4095, 131071, 262143};
  std::vector<float> cos(pos.size() * f.size()), sin(cos.size());
  rope_angles(f, pos, cos.data(), sin.data());
  float worst = 0;
  for (size_t p = 0; p < pos.size(); ++p) {
    for (size_t i = 0; i < f.size(); ++i) {
      const double angle = static_cast<double>(static_cast<float>(pos[p]) * f[i]);
      const size_t at = p * f.size() + i;
      worst = std::max(worst, std::abs(cos[at] - static_cast<float>(std::cos(angle))));
      worst = std::max(worst, std::abs(sin[at] - static_cast<float>(std::sin(angle))));
    }
  }
  CHECK(worst <= 6e-8f);
  CHECK(cos[0] == 1.0f);
  CHECK(sin[0] == 0.0f);
}
