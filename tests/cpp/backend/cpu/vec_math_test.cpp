// exp and tanh: measured error of the scalar level against long double over dense sweeps, the special values,
// and equal bits in every level (exp through a softmax of two positions, tanh through softcap with cap 1).
// f16 both ways.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "backend/cpu/isa/vec_scalar.h"
#include "backend/cpu/kernels/math.inl"
#include "backend/cpu/levels.h"
#include "core/half.h"

namespace gemmule {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

float exp_one(float x) { return exp8(set1(x)).v[0]; }
float tanh_one(float x) { return tanh8(set1(x)).v[0]; }

// The distance of `got` from the exact value in units of the last place of the f32 next to the exact value.
long double ulps(float got, long double exact) {
  int exponent;
  std::frexp(exact, &exponent);
  const long double unit = std::ldexp(1.0L, std::max(exponent - 24, -149));
  return std::fabs(static_cast<long double>(got) - exact) / unit;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;  // which NaN is no part of the contract
    if (std::bit_cast<uint32_t>(a[i]) != std::bit_cast<uint32_t>(b[i])) return false;
  }
  return true;
}

TEST_CASE("exp stays within 2 ulp of the exact value") {
  long double worst = 0;
  float at = 0;
  const auto check = [&](float x) {
    const long double error = ulps(exp_one(x), std::exp(static_cast<long double>(x)));
    if (error > worst) {
      worst = error;
      at = x;
    }
  };
  for (double x = -104.5; x < 88.72; x += 1.0 / 4096) check(static_cast<float>(x));
  std::mt19937 rng(1);
  for (int i = 0; i < 1000000; ++i) {  // all magnitudes
    const float x = std::bit_cast<float>(static_cast<uint32_t>(rng()));
    if (x > -104.5f && x < 88.72f) check(x);
  }
  MESSAGE("exp: largest error " << static_cast<double>(worst) << " ulp at " << at);
  CHECK(worst <= 2.0L);
}

TEST_CASE("exp of special values") {
  CHECK(exp_one(0.0f) == 1.0f);
  CHECK(exp_one(-0.0f) == 1.0f);
  CHECK(std::bit_cast<uint32_t>(exp_one(-kInf)) == 0u);
  CHECK(std::bit_cast<uint32_t>(exp_one(-1e30f)) == 0u);
  CHECK(std::bit_cast<uint32_t>(exp_one(-104.0f)) == 0u);
  CHECK(exp_one(-103.9f) == std::numeric_limits<float>::denorm_min());
  CHECK(exp_one(kInf) == kInf);
  CHECK(exp_one(1e30f) == kInf);
  CHECK(exp_one(88.73f) == kInf);
  CHECK(exp_one(88.72f) < kInf);
  CHECK(std::isnan(exp_one(kNan)));
  CHECK(std::isnan(exp_one(-kNan)));
}

TEST_CASE("tanh stays within 3 ulp of the exact value") {
  long double worst = 0;
  float at = 0;
  const auto check = [&](float x) {
    const long double error = ulps(tanh_one(x), std::tanh(static_cast<long double>(x)));
    if (error > worst) {
      worst = error;
      at = x;
    }
  };
  for (double x = -10.5; x < 10.5; x += 1.0 / 65536) check(static_cast<float>(x));
  std::mt19937 rng(2);
  for (int i = 0; i < 1000000; ++i) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(rng()));
    if (std::isfinite(x)) check(x);
  }
  MESSAGE("tanh: largest error " << static_cast<double>(worst) << " ulp at " << at);
  CHECK(worst <= 3.0L);
}

TEST_CASE("tanh of special values") {
  CHECK(std::bit_cast<uint32_t>(tanh_one(0.0f)) == 0u);
  CHECK(std::bit_cast<uint32_t>(tanh_one(-0.0f)) == 0x80000000u);
  for (const float x : {10.0f, 9.5f, 100.0f, 1e30f, kInf}) {
    CHECK(tanh_one(x) == 1.0f);
    CHECK(tanh_one(-x) == -1.0f);
  }
  CHECK(std::isnan(tanh_one(kNan)));
  const float tiny = std::numeric_limits<float>::denorm_min();
  CHECK(tanh_one(tiny) == tiny);
  CHECK(tanh_one(-1e-20f) == -1e-20f);
  for (float x = -12.0f; x < 12.0f; x += 1.0f / 64) {
    CHECK(std::fabs(tanh_one(x)) <= 1.0f);
    CHECK(tanh_one(-x) == -tanh_one(x));
  }
}

TEST_CASE("every level computes tanh with the bits of the scalar level") {
  std::vector<float> x;
  for (double v = -11; v < 11; v += 1.0 / 1024) x.push_back(static_cast<float>(v));
  std::mt19937 rng(3);
  for (int i = 0; i < 100000; ++i) x.push_back(std::bit_cast<float>(static_cast<uint32_t>(rng())));
  std::vector<float> expected = x;
  for (float& v : expected) v = tanh_one(v);
  for (const KernelTable* table : testing::usable_levels()) {
    CAPTURE(table->name);
    std::vector<float> y = x;
    table->softcap(y.data(), 1.0f, static_cast<int64_t>(y.size()));
    CHECK(same_bits(y, expected));
  }
}

// Two positions with the scores 0 and x <= 0 and the values e_0 and 2^64 e_1: the outputs are 1 / (1 + p) and
// p * 2^64 / (1 + p) with p = exp(x), so a difference in the bits of p shows. Attention has no
// weights below e^-64.
TEST_CASE("every level computes exp with the bits of the scalar level") {
  const float v[16] = {1, 0, 0, 0, 0, 0, 0, 0, 0, 0x1p64f};
  std::vector<float> k(256 * 8), values(256 * 8);
  std::memcpy(values.data(), v, sizeof v);
  std::vector<std::vector<float>> results;
  for (const KernelTable* table : testing::usable_levels()) {
    std::vector<float> result;
    std::vector<uint8_t> scratch(table->attend_scratch_bytes(8, 1) + 64);
    for (float x = 0; x > -110; x -= 0.0137f) {
      const float q[8] = {1};
      float out[8], sums[2] = {};
      k[8] = x;
      const int64_t lo = 0, hi = 2;
      AttendArgs a{};
      a.q = q;
      a.q_stride = a.out_stride = a.head_dim = 8;
      a.out = out;
      a.n_tokens = a.head_end = 1;
      a.kind = KvKind::F32;
      a.k = reinterpret_cast<const uint8_t*>(k.data());
      a.v = reinterpret_cast<const uint8_t*>(values.data());
      a.k_row = a.v_row = 8 * sizeof(float);
      a.ring = 256;
      a.lo = &lo;
      a.hi = &hi;
      a.end = hi;
      a.sums = sums;
      a.scratch = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64);
      table->attend(a);
      const float p = x < -64.0f ? 0.0f : exp_one(x), l = 1.0f + p;
      CHECK(std::bit_cast<uint32_t>(out[0]) == std::bit_cast<uint32_t>(1.0f / l));
      CHECK(std::bit_cast<uint32_t>(out[1]) == std::bit_cast<uint32_t>(p * 0x1p64f / l));
    }
  }
}

TEST_CASE("f16 to f32 is exact for all 65536 values") {
  for (uint32_t h = 0; h < 65536; ++h) {
    const float x = half_lane(static_cast<uint16_t>(h)), y = f16_to_f32(static_cast<uint16_t>(h));
    if (std::isnan(y)) {
      CHECK(std::isnan(x));
    } else {
      CHECK(std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y));
    }
  }
}

TEST_CASE("every level rounds f32 to f16 with the same bits") {
  std::vector<float> x = {0.0f,       -0.0f,        kInf,         -kInf,    65504.0f, 65519.99f,
                          65520.0f,   -65520.0f,    1e30f,        0x1p-24f, 0x1p-25f, 0x1.000002p-25f,
                          0x1.8p-24f, 0x1.ffcp-15f, 0x1.ffep-15f, 0x1p-14f, 0x1p-149f};
  for (uint32_t h = 0; h < 0x7c00; ++h) {  // each f16, the tie above it, and the neighbours of the tie
    const float here = f16_to_f32(static_cast<uint16_t>(h));
    const float next = h == 0x7bff ? 65536.0f : f16_to_f32(static_cast<uint16_t>(h + 1));
    const float tie = 0.5f * here + 0.5f * next;
    for (const float v : {here, tie, std::nextafter(tie, 0.0f), std::nextafter(tie, kInf)}) {
      x.push_back(v);
      x.push_back(-v);
    }
  }
  std::mt19937 rng(4);
  for (int i = 0; i < 100000; ++i) x.push_back(std::bit_cast<float>(static_cast<uint32_t>(rng())));
  for (const KernelTable* table : testing::usable_levels()) {
    CAPTURE(table->name);
    std::vector<uint16_t> y(x.size());
    table->f32_to_f16(x.data(), y.data(), static_cast<int64_t>(x.size()));
    int different = 0;
    for (size_t i = 0; i < x.size(); ++i) different += y[i] != f32_to_f16(x[i]);
    CHECK(different == 0);
  }
}

}  // namespace
}  // namespace gemmule
