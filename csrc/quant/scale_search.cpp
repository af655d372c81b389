// Least-squares search of sub-block scales; formulas in scale_search.h and at each function. Every loop is
// plain f32 in a fixed order, so the encoders give the same bytes on every machine.
#include "quant/scale_search.h"

#include <bit>
#include <cmath>

#include "core/half.h"

namespace gemmule {

bool make_unit_block(const float* src, UnitBlock& out) {
  float peak = 0;
  for (int i = 0; i < 256; ++i) {
    const float magnitude = std::fabs(src[i]);
    if (magnitude > peak) peak = magnitude;
  }
  if (!(peak > 0x1p-25f)) return false;
  uint32_t exponent = std::bit_cast<uint32_t>(peak) >> 23;
  if (exponent > 253) exponent = 253;  // its inverse is still a normal number
  out.unit = std::bit_cast<float>(exponent << 23);
  const float inverse = std::bit_cast<float>((254 - exponent) << 23);
  for (int i = 0; i < 256; ++i) out.x[i] = src[i] * inverse;
  return true;
}

void search_weights(const float* x, int n, float* w) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += x[i] * x[i];
  const float rms = std::sqrt(sum / static_cast<float>(n));
  for (int i = 0; i < n; ++i) w[i] = rms + std::fabs(x[i]);
}

// With codes q: minimise sum w (scale * q + lo - x)^2 over scale and lo, a 2x2 linear system. lo is kept <=
// 0.
AffineFit fit_affine(const float* x, const float* w, int n, int n_max, const AffineSteps& steps) {
  float lo = 0;
  float hi = x[0];
  float sum_w = 0;
  float sum_x = 0;
  for (int i = 0; i < n; ++i) {
    if (x[i] < lo) lo = x[i];
    if (x[i] > hi) hi = x[i];
    sum_w += w[i];
    sum_x += w[i] * x[i];
  }
  const float range = hi - lo;
  if (!(range > 0)) return {0.0f, -lo};
  const float top = static_cast<float>(n_max);
  float q[32];
  const auto error = [&](float scale, float shift) {
    float sum = 0;
    for (int i = 0; i < n; ++i) {
      const float diff = scale * q[i] + shift - x[i];
      sum += w[i] * diff * diff;
    }
    return sum;
  };

  const float first_inverse = top / range;
  for (int i = 0; i < n; ++i) q[i] = static_cast<float>(round_code(first_inverse * (x[i] - lo), 0, n_max));
  float best_scale = range / top;
  float best_lo = lo;
  float best_error = error(best_scale, best_lo);

  for (int t = 0; t <= steps.count; ++t) {
    const float inverse = (steps.first + steps.step * static_cast<float>(t) + top) / range;
    float sum_q = 0;
    float sum_qq = 0;
    float sum_xq = 0;
    for (int i = 0; i < n; ++i) {
      q[i] = static_cast<float>(round_code(inverse * (x[i] - best_lo), 0, n_max));
      const float wq = w[i] * q[i];
      sum_q += wq;
      sum_qq += wq * q[i];
      sum_xq += wq * x[i];
    }
    const float det = sum_w * sum_qq - sum_q * sum_q;
    if (!(det > 0)) continue;
    float scale = (sum_w * sum_xq - sum_x * sum_q) / det;
    float shift = (sum_qq * sum_x - sum_q * sum_xq) / det;
    if (shift > 0) {
      shift = 0;
      scale = sum_xq / sum_qq;
    }
    const float sum = error(scale, shift);
    if (scale >= 0 && sum < best_error) {
      best_error = sum;
      best_scale = scale;
      best_lo = shift;
    }
  }
  return {best_scale, -best_lo};
}

// For given codes the best scale is Sxq / Sqq, and it lowers the squared error by Sxq^2 / Sqq: maximise that
// gain.
float fit_symmetric(const float* x, const float* w, int n, int n_max) {
  float peak = 0;
  for (int i = 0; i < n; ++i)
    if (std::fabs(x[i]) > std::fabs(peak)) peak = x[i];
  if (std::fabs(peak) < 1e-15f) return 0;
  float best_scale = 0;
  float best_gain = 0;
  for (int t = -9; t <= 9; ++t) {
    const float inverse = -(static_cast<float>(n_max) + 0.1f * static_cast<float>(t)) / peak;
    float sum_xq = 0;
    float sum_qq = 0;
    for (int i = 0; i < n; ++i) {
      const float q = static_cast<float>(round_code(inverse * x[i], -n_max, n_max - 1));
      const float wq = w[i] * q;
      sum_xq += wq * x[i];
      sum_qq += wq * q;
    }
    if (sum_qq > 0 && sum_xq * sum_xq / sum_qq > best_gain) {
      best_gain = sum_xq * sum_xq / sum_qq;
      best_scale = sum_xq / sum_qq;
    }
  }
  return best_scale;
}

uint16_t f16_scale_bits(float d) {
  const uint16_t bits = f32_to_f16(d);
  const uint16_t sign = bits & 0x8000u;
  if ((bits & 0x7fffu) == 0x7c00u) return sign | 0x7bffu;
  if ((bits & 0x7fffu) == 0 && d != 0) return sign | 1u;
  return bits;
}

}  // namespace gemmule
