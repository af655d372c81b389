// RMS norm, RMS norm added to a residual, layer norm, and rotary position embedding of one head.
//   s = sum x^2 (8 lanes, fixed tree); r = 1 / sqrt(s / n + eps); y = (x * r) * w.
//   layer norm: m = sum x / n, d = sum (x - m) / n, c = (x - m) - d, s = sum c^2; y = fma(c * r, w, b). d is
//   what rounding left in the mean: without it a row of nearly equal numbers would lose most of its digits.
//   rope: a' = fma(a, cos, -(b * sin)), b' = fma(b, cos, a * sin) with a = x[i], b = x[i + d/2].
#pragma once

#include "backend/cpu/kernels/tail.inl"

namespace gemmule {
namespace {

inline float inverse_rms(const float* x, int64_t n, float eps) noexcept {
  F8 lanes = zero8();
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const F8 v = load8(x + i);
    lanes = fma(v, v, lanes);
  }
  if (i < n) {
    const F8 v = load_tail(x + i, n - i);
    lanes = fma(v, v, lanes);
  }
  const float sum = sum8(lanes);
  // A row so large that its squares overflow must not turn into zeros: infinity - infinity is NaN and stays
  // NaN.
  if (!(sum < __builtin_inff())) return sum - sum;
  return 1.0f / sqrt_lane(sum / static_cast<float>(n) + eps);
}

inline void rms_norm(float* y, const float* x, const float* w, int64_t n, float eps) noexcept {
  const F8 r = set1(inverse_rms(x, n, eps));
  int64_t i = 0;
  if (w == nullptr) {
    for (; i + 8 <= n; i += 8) store8(y + i, mul(load8(x + i), r));
    if (i < n) store_tail(y + i, mul(load_tail(x + i, n - i), r), n - i);
    return;
  }
  for (; i + 8 <= n; i += 8) store8(y + i, mul(mul(load8(x + i), r), load8(w + i)));
  if (i < n) store_tail(y + i, mul(mul(load_tail(x + i, n - i), r), load_tail(w + i, n - i)), n - i);
}

inline void add_rms_norm(float* x, const float* y, const float* w, int64_t n, float eps) noexcept {
  const F8 r = set1(inverse_rms(y, n, eps));
  const bool weighted = w != nullptr;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const F8 v = mul(load8(y + i), r);
    store8(x + i, add(load8(x + i), weighted ? mul(v, load8(w + i)) : v));
  }
  if (i < n) {
    const F8 v = mul(load_tail(y + i, n - i), r);
    const F8 scaled = weighted ? mul(v, load_tail(w + i, n - i)) : v;
    store_tail(x + i, add(load_tail(x + i, n - i), scaled), n - i);
  }
}

// x - m - d for the first n < 8 elements; the other lanes are zero.
inline F8 centered_tail(const float* x, int64_t n, F8 m, F8 d) noexcept {
  float lanes[8] = {};
  store_tail(lanes, sub(sub(load_tail(x, n), m), d), n);
  return load8(lanes);
}

// Sum of x - m.
inline float sum_from(const float* x, int64_t n, float m) noexcept {
  const F8 origin = set1(m);
  F8 lanes = zero8();
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) lanes = add(lanes, sub(load8(x + i), origin));
  if (i < n) lanes = add(lanes, centered_tail(x + i, n - i, origin, zero8()));
  return sum8(lanes);
}

inline void layer_norm(float* y, const float* x, const float* w, const float* b, int64_t n,
                       float eps) noexcept {
  const float count = static_cast<float>(n), mean = sum_from(x, n, 0.0f) / count;
  const F8 m = set1(mean), d = set1(sum_from(x, n, mean) / count);
  F8 lanes = zero8();
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const F8 c = sub(sub(load8(x + i), m), d);
    lanes = fma(c, c, lanes);
  }
  if (i < n) {
    const F8 c = centered_tail(x + i, n - i, m, d);
    lanes = fma(c, c, lanes);
  }
  const float sum = sum8(lanes);
  const F8 r = set1(sum < __builtin_inff() ? 1.0f / sqrt_lane(sum / count + eps) : sum - sum);
  for (i = 0; i + 8 <= n; i += 8)
    store8(y + i, fma(mul(sub(sub(load8(x + i), m), d), r), load8(w + i), load8(b + i)));
  if (i < n) {
    const F8 c = centered_tail(x + i, n - i, m, d);
    store_tail(y + i, fma(mul(c, r), load_tail(w + i, n - i), load_tail(b + i, n - i)), n - i);
  }
}

inline void rope(float* x, const float* cos, const float* sin, int64_t n_rot, int64_t d) noexcept {
  float* second = x + d / 2;
  int64_t i = 0;
  for (; i + 8 <= n_rot; i += 8) {
    const F8 a = load8(x + i), b = load8(second + i), c = load8(cos + i), s = load8(sin + i);
    store8(x + i, fma(a, c, negate(mul(b, s))));
    store8(second + i, fma(b, c, mul(a, s)));
  }
  if (i < n_rot) {
    const int64_t n = n_rot - i;
    const F8 a = load_tail(x + i, n), b = load_tail(second + i, n), c = load_tail(cos + i, n),
             s = load_tail(sin + i, n);
    store_tail(x + i, fma(a, c, negate(mul(b, s))), n);
    store_tail(second + i, fma(b, c, mul(a, s)), n);
  }
}

}  // namespace
}  // namespace gemmule
