// Sixteen lanes of f32 as two times eight, for levels without registers of that size. Included after the F8
// vocabulary (vec_*.h); same names and, per lane, the same results as wide_avx512.h.
#pragma once

namespace gemmule {
namespace {

struct Wide {
  F8 low, high;  // lanes 0..7 and 8..15
};
inline constexpr int kWideSums = 6;  // as many as stay in registers beside the operands of a micro-tile

inline Wide wide_zero() noexcept { return {zero8(), zero8()}; }
inline Wide wide_load(const float* p) noexcept { return {load8(p), load8(p + 8)}; }
// Sixteen numbers of the cache, or eight of each of two rows.
template <class T>
inline Wide wide_widen(const T* p) noexcept {
  return {load8(p), load8(p + 8)};
}
template <class T>
inline Wide wide_widen(const T* a, const T* b) noexcept {
  return {load8(a), load8(b)};
}
inline Wide wide_scales(Half a, Half b) noexcept { return {set1(a), set1(b)}; }
inline Wide wide_mul(Wide a, Wide b) noexcept { return {mul(a.low, b.low), mul(a.high, b.high)}; }
inline void wide_store(float* p, Wide a) noexcept {
  store8(p, a.low);
  store8(p + 8, a.high);
}
// Eight numbers twice, or one number sixteen times, kept in registers.
inline Wide wide_twice(const float* p) noexcept {
  F8 a = load8(p);
  pin(a);
  return {a, a};
}
inline Wide wide_set1(const float* p) noexcept {
  F8 a = set1(*p);
  pin(a);
  return {a, a};
}
inline Wide wide_fma(Wide a, Wide b, Wide c) noexcept {
  return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)};
}
inline F8 low8(Wide a) noexcept { return a.low; }
inline F8 high8(Wide a) noexcept { return a.high; }

}  // namespace
}  // namespace gemmule
