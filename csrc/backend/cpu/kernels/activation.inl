// Element-wise functions: GELU (tanh form) times a gate's partner, scaling, scaled addition, softcap and the
// f16 store of a row.
//   gelu(x) = h + h * tanh(sqrt(2/pi) * (x + 0.044715 x^3)), h = x / 2, in the order written in gelu8.
#pragma once

#include "backend/cpu/kernels/math.inl"
#include "backend/cpu/kernels/tail.inl"

namespace gemmule {
namespace {

inline F8 gelu8(F8 x) noexcept {
  const F8 cubic = fma(mul(mul(x, x), set1(0.044715f)), x, x);
  const F8 t = tanh8(mul(cubic, set1(0x1.988454p-1f)));
  const F8 h = mul(x, set1(0.5f));
  return fma(h, t, h);
}

inline void gelu_mul(float* y, const float* gate, const float* up, int64_t n) noexcept {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) store8(y + i, mul(gelu8(load8(gate + i)), load8(up + i)));
  if (i < n) store_tail(y + i, mul(gelu8(load_tail(gate + i, n - i)), load_tail(up + i, n - i)), n - i);
}

inline void scale(float* x, float s, int64_t n) noexcept {
  const F8 factor = set1(s);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) store8(x + i, mul(load8(x + i), factor));
  if (i < n) store_tail(x + i, mul(load_tail(x + i, n - i), factor), n - i);
}

inline void add_scaled(float* x, const float* y, float s, int64_t n) noexcept {
  const F8 factor = set1(s);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) store8(x + i, fma(load8(y + i), factor, load8(x + i)));
  if (i < n) store_tail(x + i, fma(load_tail(y + i, n - i), factor, load_tail(x + i, n - i)), n - i);
}

// 0 * x keeps NaN and makes it of infinities, which tanh alone would hide.
inline F8 softcap8(F8 x, F8 limit) noexcept { return fma(x, zero8(), mul(limit, tanh8(div(x, limit)))); }

inline void softcap(float* x, float cap, int64_t n) noexcept {
  const F8 limit = set1(cap);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) store8(x + i, softcap8(load8(x + i), limit));
  if (i < n) store_tail(x + i, softcap8(load_tail(x + i, n - i), limit), n - i);
}

inline void f32_to_f16_row(const float* x, uint16_t* y, int64_t n) noexcept {
  Half* out = reinterpret_cast<Half*>(y);
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) store8(out + i, load8(x + i));
  if (i < n) store_tail(out + i, load_tail(x + i, n - i), n - i);
}

}  // namespace
}  // namespace gemmule
