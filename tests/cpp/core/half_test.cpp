// f16 and bf16: every 16-bit pattern, and the rounding between neighbours.
#include "core/half.h"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>

namespace gemmule {
namespace {

// The definition, in double: sign * mantissa * 2^exponent.
double f16_value(uint16_t h) {
  const int exponent = (h >> 10) & 31;
  const int mantissa = h & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return (h & 0x8000) ? -magnitude : magnitude;
}

TEST_CASE("half: every finite f16 has the value of its definition and survives the way back") {
  int n_wrong = 0;
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const uint16_t bits = static_cast<uint16_t>(h);
    if ((h & 0x7c00) == 0x7c00) continue;
    const float value = f16_to_f32(bits);
    n_wrong += static_cast<double>(value) != f16_value(bits) || std::signbit(value) != ((h & 0x8000) != 0);
    n_wrong += f32_to_f16(value) != bits;
  }
  CHECK(n_wrong == 0);
}

TEST_CASE("half: f16 infinities and NaN") {
  CHECK(f16_to_f32(0x7c00) == INFINITY);
  CHECK(f16_to_f32(0xfc00) == -INFINITY);
  CHECK(std::isnan(f16_to_f32(0x7c01)));
  CHECK(f32_to_f16(INFINITY) == 0x7c00);
  CHECK(f32_to_f16(-INFINITY) == 0xfc00);
  CHECK((f32_to_f16(NAN) & 0x7e00) == 0x7e00);
  CHECK(std::isnan(f16_to_f32(f32_to_f16(std::bit_cast<float>(0xff800001u)))));
}

TEST_CASE("half: f32 to f16 takes the nearer neighbour and the even one of two equally near") {
  int n_wrong = 0;
  for (uint32_t h = 0; h < 0x7bff; ++h) {  // neighbours h and h + 1, both finite
    const uint16_t low = static_cast<uint16_t>(h);
    const uint16_t high = static_cast<uint16_t>(h + 1);
    const float middle =
        static_cast<float>((f16_value(low) + f16_value(high)) / 2);  // exact: 12 bits of mantissa
    const uint16_t even = (h & 1) == 0 ? low : high;
    n_wrong += f32_to_f16(middle) != even;
    n_wrong += f32_to_f16(-middle) != (even | 0x8000);
    n_wrong += f32_to_f16(std::nextafterf(middle, 0.0f)) != low;
    n_wrong += f32_to_f16(std::nextafterf(middle, INFINITY)) != high;
  }
  CHECK(n_wrong == 0);
}

TEST_CASE("half: f16 overflow starts halfway above the largest number") {
  CHECK(f32_to_f16(65504.0f) == 0x7bff);
  CHECK(f32_to_f16(std::nextafterf(65520.0f, 0.0f)) == 0x7bff);
  CHECK(f32_to_f16(65520.0f) == 0x7c00);
  CHECK(f32_to_f16(-1e30f) == 0xfc00);
}

TEST_CASE("half: every bf16 that is not NaN survives the way back") {
  int n_wrong = 0;
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const float value = bf16_to_f32(static_cast<uint16_t>(h));
    n_wrong += std::isnan(value) ? !std::isnan(bf16_to_f32(f32_to_bf16(value))) : f32_to_bf16(value) != h;
  }
  CHECK(n_wrong == 0);
}

TEST_CASE("half: f32 to bf16 rounds to nearest even") {
  CHECK(f32_to_bf16(std::bit_cast<float>(0x3f808000u)) == 0x3f80);  // halfway, even below
  CHECK(f32_to_bf16(std::bit_cast<float>(0x3f818000u)) == 0x3f82);  // halfway, even above
  CHECK(f32_to_bf16(std::bit_cast<float>(0x3f808001u)) == 0x3f81);
  CHECK(f32_to_bf16(std::bit_cast<float>(0x3f807fffu)) == 0x3f80);
  CHECK(f32_to_bf16(std::bit_cast<float>(0x7f7fffffu)) == 0x7f80);  // rounds to infinity
  CHECK(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7f800001u)))));
}

}  // namespace
}  // namespace gemmule
