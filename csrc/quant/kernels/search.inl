// Weighted least-squares search of scales, one group per lane. For given codes q the best scale (and offset)
// is a linear problem; the search tries the codes of several inverse scales, keeps the best, and then
// alternates: codes of the best scale, scale of these codes.

namespace gemmule {
namespace {

// 1 / v, or 0 for 0.
static inline F inverse_of(F v) {
  const I some = vabs(v) > 0.0f;
  return pick(some, 1.0f / pick(some, v, splat(1.0f)), F{});
}

// The inverse scales tried: (n_max + first + step * t) / range, t = 0..count - 1; then `refine` alternations.
struct Steps {
  float first;
  float step;
  int count;
  int refine;
};

struct Affine {
  F scale;  // >= 0
  F low;    // x ~ scale * q + low
};

struct AffineSums {
  F q, qq, xq;  // sums of w q, w q^2, w x q
};

// Scale and offset of the least squared error for the codes behind `s`; the error it leaves is
// sum w x^2 - gain. capped: low <= cap. The gain is -1 where there is no solution.
static inline F solve_affine(const AffineSums& s, F sum_w, F sum_x, F cap, bool capped, Affine& out) {
  const F det = sum_w * s.qq - s.q * s.q;
  const I regular = det > 0.0f;
  const F inverse = 1.0f / pick(regular, det, splat(1.0f));
  F scale = (sum_w * s.xq - sum_x * s.q) * inverse;
  F low = (s.qq * sum_x - s.q * s.xq) * inverse;
  if (capped) {
    const I above = low > cap;
    low = pick(above, cap, low);
    const I some = s.qq > 0.0f;
    const F alone = (s.xq - cap * s.q) / pick(some, s.qq, splat(1.0f));
    scale = pick(above, alone, scale);
  }
  const F gain = 2.0f * (scale * s.xq + low * sum_x) - scale * scale * s.qq - 2.0f * scale * low * s.q -
                 low * low * sum_w;
  out = Affine{scale, low};
  return pick(regular & (scale > 0.0f), gain, splat(-1.0f));
}

// x, w [N] -> x ~ scale * q + low with codes 0..n_max. capped: low <= 0, as the K types store it.
template <int N, bool capped>
static Affine fit_affine(const F* x, const F* w, float n_max, const Steps& steps) {
  F low = capped ? vmin(x[0], F{}) : x[0];
  F high = x[0];
  for (int j = 1; j < N; ++j) {
    low = vmin(low, x[j]);
    high = vmax(high, x[j]);
  }
  F y[N];  // x - low >= 0
  F sum_w{}, sum_y{};
  for (int j = 0; j < N; ++j) {
    y[j] = x[j] - low;
    sum_w += w[j];
    sum_y += w[j] * y[j];
  }
  const F range = high - low;
  const I wide = range > 0.0f;
  const F inverse_range = 1.0f / pick(wide, range, splat(1.0f));
  const F cap = -low;
  Affine best{range / n_max, F{}};
  F best_gain = splat(-1.0f);
  const F top = splat(kRound + n_max);
  for (int t = 0; t < steps.count; ++t) {
    const F inverse = inverse_range * (n_max + steps.first + steps.step * static_cast<float>(t));
    AffineSums s{};
    for (int j = 0; j < N; ++j) {
      const F q = vmin(y[j] * inverse + kRound, top) - kRound;
      const F wq = w[j] * q;
      s.q += wq;
      s.qq += wq * q;
      s.xq += wq * y[j];
    }
    Affine fit;
    const F gain = solve_affine(s, sum_w, sum_y, cap, capped, fit);
    const I better = gain > best_gain;
    best_gain = pick(better, gain, best_gain);
    best.scale = pick(better, fit.scale, best.scale);
    best.low = pick(better, fit.low, best.low);
  }
  for (int t = 0; t < steps.refine; ++t) {
    const F inverse = 1.0f / pick(best.scale > 0.0f, best.scale, splat(1.0f));
    AffineSums s{};
    for (int j = 0; j < N; ++j) {
      const F q = clamp_round((y[j] - best.low) * inverse, 0.0f, n_max);
      const F wq = w[j] * q;
      s.q += wq;
      s.qq += wq * q;
      s.xq += wq * y[j];
    }
    Affine fit;
    const F gain = solve_affine(s, sum_w, sum_y, cap, capped, fit);
    const I better = gain > best_gain;
    best_gain = pick(better, gain, best_gain);
    best.scale = pick(better, fit.scale, best.scale);
    best.low = pick(better, fit.low, best.low);
  }
  return {pick(wide, best.scale, F{}), pick(wide, best.low, F{}) + low};
}

// x, w [N] -> the signed scale of x ~ scale * q with codes -n_max..n_max - 1; 0 for a group of zeros.
// Both signs are tried, since the codes reach further down than up.
template <int N>
static F fit_symmetric(const F* x, const F* w, float n_max, const Steps& steps) {
  F peak = x[0];
  for (int j = 1; j < N; ++j) peak = pick(vabs(x[j]) > vabs(peak), x[j], peak);
  const I some = vabs(peak) > 0.0f;
  const F inverse_peak = -1.0f / pick(some, peak, splat(1.0f));
  F best{}, best_gain{};
  for (int t = 0; t < 2 * steps.count + steps.refine; ++t) {
    F inverse;
    if (t < 2 * steps.count) {
      const float magnitude = n_max + steps.first + steps.step * static_cast<float>(t >> 1);
      inverse = inverse_peak * ((t & 1) != 0 ? 1.0f - magnitude : magnitude);
    } else {
      inverse = 1.0f / pick(best_gain > 0.0f, best, splat(1.0f));
    }
    F sum_xq{}, sum_qq{};
    for (int j = 0; j < N; ++j) {
      const F q = clamp_round(x[j] * inverse, -n_max, n_max - 1.0f);
      const F wq = w[j] * q;
      sum_xq += wq * x[j];
      sum_qq += wq * q;
    }
    const I valid = sum_qq > 0.0f;
    const F scale = sum_xq / pick(valid, sum_qq, splat(1.0f));
    const F gain = scale * sum_xq;
    const I better = valid & (gain > best_gain);
    best_gain = pick(better, gain, best_gain);
    best = pick(better, scale, best);
  }
  return best;
}

// Sums of the codes that given scales lead to, and the error they leave.
template <int N>
static F affine_sums(const F* x, const F* w, F scale, F low, float n_max, AffineSums& s) {
  const F inverse = inverse_of(scale);
  F error{};
  s = AffineSums{};
  for (int j = 0; j < N; ++j) {
    const F q = clamp_round((x[j] - low) * inverse, 0.0f, n_max);
    const F wq = w[j] * q;
    const F diff = x[j] - (scale * q + low);
    s.q += wq;
    s.qq += wq * q;
    s.xq += wq * x[j];
    error += w[j] * diff * diff;
  }
  return error;
}
template <int N>
static F symmetric_sums(const F* x, const F* w, F scale, float n_max, F& sum_xq, F& sum_qq) {
  const F inverse = inverse_of(scale);
  F error{};
  sum_xq = sum_qq = F{};
  for (int j = 0; j < N; ++j) {
    const F q = clamp_round(x[j] * inverse, -n_max, n_max - 1.0f);
    const F wq = w[j] * q;
    const F diff = x[j] - scale * q;
    sum_xq += wq * x[j];
    sum_qq += wq * q;
    error += w[j] * diff * diff;
  }
  return error;
}

}  // namespace
}  // namespace gemmule
