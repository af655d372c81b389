// The element of largest magnitude has code 1..8; for each of these the other codes follow, and every element
// bounds d by the interval of numbers that round to it. What is left is at most a few f16 values, all tried.
#include "quant/lattice.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "core/dtype.h"
#include "core/half.h"
#include "quant/blocks.h"

namespace gemmule {

namespace {

struct Interval {
  double low;
  double high;
};

// The positive numbers that round to `magnitude` (> 0), ends included.
Interval rounding_interval(float magnitude, DType type) {
  if (type == DType::BF16) {
    const auto bits = std::bit_cast<uint32_t>(magnitude);
    return {std::bit_cast<float>(bits - 0x8000u), std::bit_cast<float>(bits + 0x8000u)};
  }
  if (type == DType::F16) {
    const uint16_t bits = f32_to_f16(magnitude);
    const auto value = static_cast<double>(magnitude);
    const auto below = static_cast<double>(f16_to_f32(static_cast<uint16_t>(bits - 1)));
    const auto above =
        bits == 0x7bffu ? 65536.0 : static_cast<double>(f16_to_f32(static_cast<uint16_t>(bits + 1)));
    return {(value + below) / 2, (value + above) / 2};
  }
  return {magnitude, magnitude};
}

float rounded(float value, DType type) {
  if (type == DType::BF16) return bf16_to_f32(f32_to_bf16(value));
  if (type == DType::F16) return f16_to_f32(f32_to_f16(value));
  return value;
}

struct Fit {
  uint16_t d;
  int8_t codes[32];  // -8..7
};

// Tries the lattice where the signed `peak` is -8 d (code 8), or `code` * |d|. x [32]; fills
// `fit` and returns true if all of x lies on it.
bool try_code(const float* x, float peak, int code, DType type, Fit& fit) {
  const float sign = code == 8 && peak > 0 ? -1.0f : 1.0f;  // of d: only code -8 has the magnitude 8
  const float per_guess = static_cast<float>(code) / std::fabs(peak);
  // Near zero the step of F16 is not relative but 2^-24.
  const float slack = type == DType::F16 ? 0x1p-24f * per_guess : 0.0f;
  fit = {};
  float smallest[9];  // magnitude of the elements with code +-q
  float largest[9];
  std::fill(smallest, smallest + 9, HUGE_VALF);
  std::fill(largest, largest + 9, 0.0f);
  double xq = 0;
  int qq = 0;
  for (int j = 0; j < 32; ++j) {
    if (x[j] == 0) continue;
    const float ratio = sign * x[j] * per_guess;
    const int q = static_cast<int>(ratio < 0 ? ratio - 0.5f : ratio + 0.5f);
    if (q == 0 || q < -8 || q > 7) return false;
    const float off = std::fabs(ratio - static_cast<float>(q));
    if (off > 0.01f * std::fabs(ratio) + slack) return false;  // more than the rounding of both to BF16
    const float magnitude = std::fabs(x[j]);
    const int size = std::abs(q);
    smallest[size] = std::min(smallest[size], magnitude);
    largest[size] = std::max(largest[size], magnitude);
    fit.codes[j] = static_cast<int8_t>(q);
    xq += static_cast<double>(sign * x[j]) * q;
    qq += q * q;
  }
  Interval d{0, 65504};
  for (int size = 1; size <= 8; ++size) {
    if (largest[size] == 0) continue;
    d.low = std::max(d.low, rounding_interval(largest[size], type).low / size);
    d.high = std::min(d.high, rounding_interval(smallest[size], type).high / size);
    if (d.low > d.high) return false;
  }
  // The squared error is a parabola in d: the candidates in the order of their distance from its vertex.
  const double vertex = std::clamp(xq / qq, d.low, d.high);
  int above = f32_to_f16(static_cast<float>(vertex));
  if (static_cast<double>(f16_to_f32(static_cast<uint16_t>(above))) < vertex) ++above;
  int below = above - 1;
  while (true) {
    const double high =
        above < 0x7c00 ? static_cast<double>(f16_to_f32(static_cast<uint16_t>(above))) : HUGE_VAL;
    const double low = below > 0 ? static_cast<double>(f16_to_f32(static_cast<uint16_t>(below))) : 0.0;
    if (high > d.high && low < d.low) return false;
    const bool up = low < d.low || (high <= d.high && high - vertex < vertex - low);
    const float step = sign * static_cast<float>(up ? high : low);
    const auto bits = static_cast<uint16_t>(up ? above++ : below--);
    bool equal = true;
    for (int j = 0; j < 32 && equal; ++j)  // the ends of an interval round to even, perhaps away from x
      equal = rounded(step * static_cast<float>(fit.codes[j]), type) == x[j];
    if (!equal) continue;
    fit.d = static_cast<uint16_t>(sign < 0 ? bits | 0x8000u : bits);
    return true;
  }
}

}  // namespace

bool encode_lattice_q4_0(const float* x, uint32_t src_type, uint8_t* block) noexcept {
  const DType type = static_cast<DType>(src_type);
  float peak = 0;
  for (int j = 0; j < 32; ++j)
    if (std::fabs(x[j]) > std::fabs(peak)) peak = x[j];
  if (peak != 0 && std::fabs(peak) < 0x1p-25f) return false;  // below every f16
  Fit fit{};
  bool found = peak == 0;
  for (int code = 8; code >= 1 && !found; --code) found = try_code(x, peak, code, type, fit);
  if (!found) return false;
  BlockQ4_0 made;
  made.d = fit.d;
  for (int j = 0; j < 16; ++j)
    made.qs[j] = static_cast<uint8_t>((fit.codes[j] + 8) | ((fit.codes[j + 16] + 8) << 4));
  std::memcpy(block, &made, sizeof made);
  return true;
}

}  // namespace gemmule
