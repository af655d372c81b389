#include "model/rope.h"

#include <cmath>

#include "core/error.h"

namespace gemmule {
namespace {

// Cosine and sine in double precision for |x| < 2^24: subtract the nearest multiple of pi/2 (in two parts, so
// that the product is exact enough), then Taylor polynomials on [-pi/4, pi/4], whose first left-out terms are
// below 1e-17.
void sin_cos(double x, double* sin, double* cos) {
  constexpr double kTwoOverPi = 0.63661977236758134308;
  constexpr double kPiHalfHigh = 1.57079632673412561417;  // pi/2 with the last 20 bits zero
  constexpr double kPiHalfLow = 6.07710050650619224932e-11;
  const double quarter = std::nearbyint(x * kTwoOverPi);
  const double r = (x - quarter * kPiHalfHigh) - quarter * kPiHalfLow;
  const double r2 = r * r;
  double s = -1.0 / 1307674368000.0;  // -1/15!
  s = s * r2 + 1.0 / 6227020800.0;
  s = s * r2 - 1.0 / 39916800.0;
  s = s * r2 + 1.0 / 362880.0;
  s = s * r2 - 1.0 / 5040.0;
  s = s * r2 + 1.0 / 120.0;
  s = s * r2 - 1.0 / 6.0;
  s = s * r2 * r + r;
  double c = 1.0 / 20922789888000.0;  // 1/16!
  c = c * r2 - 1.0 / 87178291200.0;
  c = c * r2 + 1.0 / 479001600.0;
  c = c * r2 - 1.0 / 3628800.0;
  c = c * r2 + 1.0 / 40320.0;
  c = c * r2 - 1.0 / 720.0;
  c = c * r2 + 1.0 / 24.0;
  c = c * r2 - 0.5;
  c = c * r2 + 1.0;
  switch (static_cast<int64_t>(quarter) & 3) {
    case 0:
      *sin = s, *cos = c;
      break;
    case 1:
      *sin = c, *cos = -s;
      break;
    case 2:
      *sin = -s, *cos = -c;
      break;
    default:
      *sin = -c, *cos = s;
      break;
  }
}

}  // namespace

std::vector<float> rope_frequencies(const RopeConfig& config, std::span<const float> factors) {
  const int64_t n_pairs = config.head_dim / 2;
  std::vector<float> freq;
  for (int64_t i = 0; i < n_pairs; ++i) {
    const float factor = factors.empty() ? 1.0f : factors[static_cast<size_t>(i)];
    if (factor > kDoesNotTurn) continue;
    if (!(factor >= 1.0f) || static_cast<int64_t>(freq.size()) != i)
      throw UnsupportedError(cat("rope_freqs.weight: pair ", i, " has factor ", factor,
                                 "; this version needs factors of at least 1, and the unturned pairs last"));
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim);
    freq.push_back(static_cast<float>(std::pow(config.base, exponent) * config.position_scale) / factor);
  }
  return freq;
}

void rope_angles(std::span<const float> freq, std::span<const int64_t> pos, float* cos, float* sin) {
  for (const int64_t p : pos) {
    for (const float f : freq) {
      double s = 0, c = 0;
      sin_cos(static_cast<double>(static_cast<float>(p) * f), &s, &c);
      *sin++ = static_cast<float>(s);
      *cos++ = static_cast<float>(c);
    }
  }
}

}  // namespace gemmule
