// exp and tanh on 8 lanes, from mul, add, fma, one IEEE division and integer bit operations only, so that
// every level gives the same bits. Measured: exp within 1 ulp (also where the result is subnormal), tanh
// within 3 ulp.
//   exp(x) = 2^n * e^r with n = round(x / ln 2), |r| <= ln(2)/2 and e^r = 1 + (r + r^2 * Q(r)).
//   tanh|x| = E / (E + 2) with E = e^(2|x|) - 1 = 2^n * (e^r - 1) + (2^n - 1), which keeps small x exact.
// Q is a degree-4 minimax polynomial (relative error of e^r below 4e-9) found by iteratively reweighted least
// squares.
#pragma once

namespace gemmule {
namespace {

struct ExpParts {
  F8 em1;  // e^r - 1
  I8 n;
};

// x within +-1e4 or NaN; a NaN goes on into em1, and n is then meaningless.
inline ExpParts exp_parts(F8 x) noexcept {
  const F8 magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  const F8 shifted = fma(x, set1(0x1.715476p+0f), magic);
  const F8 n = sub(shifted, magic);
  F8 r = fnma(n, set1(0x1.62e4p-1f), x);  // exact: the high part of ln 2 has 15 significant bits
  r = fnma(n, set1(0x1.7f7d1cp-20f), r);
  F8 q = set1(0x1.6a23dp-10f);
  q = fma(q, r, set1(0x1.123a2p-7f));
  q = fma(q, r, set1(0x1.5558f2p-5f));
  q = fma(q, r, set1(0x1.555492p-3f));
  q = fma(q, r, set1(0x1.fffffcp-2f));
  return {fma(mul(r, r), q, r), sub(bits8(shifted), bits8(magic))};
}

// 2^n for -126 <= n <= 127.
inline F8 power_of_two(I8 n) noexcept { return from_bits8(shift_left<23>(add(n, set1_int(127)))); }

// exp(+inf) = inf, exp(-inf) = 0, exp(0) = 1, NaN in gives NaN out; subnormal results are rounded once.
inline F8 exp8(F8 x) noexcept {
  const F8 clamped = max(set1(-105.0f), min(set1(89.0f), x));  // x second: a NaN stays
  const ExpParts e = exp_parts(clamped);
  const I8 half = shift_right_signed<1>(e.n);  // 2^n itself may lie outside the normal range
  const F8 y = mul(add(e.em1, set1(1.0f)), power_of_two(half));
  return mul(y, power_of_two(sub(e.n, half)));
}

inline F8 tanh8(F8 x) noexcept {
  const F8 a = min(set1(10.0f), abs8(x));  // tanh(10) rounds to 1
  const ExpParts e = exp_parts(add(a, a));
  const F8 scale = power_of_two(e.n);
  const F8 m = fma(scale, e.em1, sub(scale, set1(1.0f)));
  return with_sign_of(div(m, add(m, set1(2.0f))), x);
}

}  // namespace
}  // namespace gemmule
