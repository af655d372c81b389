// The K types. Two super-blocks of 256 at a time, divided by a power of two near their largest magnitude,
// which keeps the sums far from overflow and the codes independent of the magnitude. Their sub-blocks of G =
// 32 or 16 are the lanes. First every sub-block is fitted by itself; then the scales are rounded to multiples
// of the f16 factors, and rounds of least squares improve both against the codes: the best scale numbers for
// the factors, then the best factors for these numbers. The best state seen is stored.

namespace gemmule {
namespace {

constexpr int kBatch = 2;  // super-blocks
alignas(64) constexpr float kZeros[32] = {};

template <int G>
struct Batch {
  static constexpr int kGroups = 256 / G;  // of a super-block
  static constexpr int kVectors = kBatch * kGroups / kLanes;
  F x[kVectors][G];           // in units of the super-block
  F w[kVectors][G];           // what an error counts in the search
  F importance[kVectors][G];  // filled if there is one
  F inverse[kVectors];        // 1 / unit
  float inverse_unit[kBatch];
  bool dead[kBatch];  // every element is below half of the smallest f16 step 2^-24: stored as zeros
  bool weighted;
};

// value[g] of every super-block -> one number per super-block in all its lanes.
template <int G>
static void spread(const float* of_block, F* v) {
  alignas(64) float lanes[kBatch * 256 / G];
  for (int g = 0; g < kBatch * 256 / G; ++g) lanes[g] = of_block[g / (256 / G)];
  for (int i = 0; i < Batch<G>::kVectors; ++i) v[i] = load(lanes + i * kLanes);
}

// The sum of all lanes of each super-block, in lane order.
template <int G>
static void gather_sums(const F* v, float* of_block) {
  alignas(64) float lanes[kBatch * 256 / G];
  for (int i = 0; i < Batch<G>::kVectors; ++i) store(v[i], lanes + i * kLanes);
  for (int b = 0; b < kBatch; ++b) {
    float sum = 0;
    for (int g = 0; g < 256 / G; ++g) sum += lanes[b * (256 / G) + g];
    of_block[b] = sum;
  }
}
// The number of largest magnitude (the first of equals), with its sign.
template <int G>
static void gather_peaks(const F* v, float* of_block) {
  alignas(64) float lanes[kBatch * 256 / G];
  for (int i = 0; i < Batch<G>::kVectors; ++i) store(v[i], lanes + i * kLanes);
  for (int b = 0; b < kBatch; ++b) {
    float peak = 0;
    for (int g = 0; g < 256 / G; ++g) {
      const float value = lanes[b * (256 / G) + g];
      if (__builtin_fabsf(value) > __builtin_fabsf(peak)) peak = value;
    }
    of_block[b] = peak;
  }
}

// What an error of x counts in the search, without and with importance. The larger numbers count more.
enum class Weight {
  kMagnitude,  // rms of the sub-block + |x|; importance * sqrt(2 * mean square of the block + x^2)
  kSquare,     // x^2; importance
};

// Blocks [first, first + n) of the job, n <= kBatch; the rest is zero.
template <int G>
static void load_batch(const EncodeJob& job, int64_t first, int n, Weight kind, Batch<G>& batch) {
  constexpr int kGroups = Batch<G>::kGroups;
  constexpr int kVectors = Batch<G>::kVectors;
  const float* groups[kBatch * kGroups];
  const float* columns[kBatch * kGroups];
  for (int g = 0; g < kBatch * kGroups; ++g) {
    const int64_t block = first + g / kGroups;
    const int64_t at = block * 256 + g % kGroups * G;
    groups[g] = g / kGroups < n ? job.x + at : kZeros;
    columns[g] = g / kGroups < n && job.importance != nullptr ? job.importance + at % job.n_cols : kZeros;
  }
  batch.weighted = job.importance != nullptr;
  F peaks[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    gather_groups(groups + v * kLanes, G, batch.x[v]);
    if (batch.weighted) gather_groups(columns + v * kLanes, G, batch.importance[v]);
    F peak{};
    for (int j = 0; j < G; ++j) peak = vmax(peak, vabs(batch.x[v][j]));
    peaks[v] = peak;
  }
  float peak[kBatch];
  gather_peaks<G>(peaks, peak);
  float factor[kBatch];
  for (int b = 0; b < kBatch; ++b) {
    batch.dead[b] = !(peak[b] > 0x1p-25f);
    batch.inverse_unit[b] = inverse_unit(splat(peak[b]))[0];
    factor[b] = batch.dead[b] ? 0.0f : batch.inverse_unit[b];
  }
  spread<G>(factor, batch.inverse);
  F squares[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    F sum{};
    for (int j = 0; j < G; ++j) {
      batch.x[v][j] *= batch.inverse[v];
      sum += batch.x[v][j] * batch.x[v][j];
    }
    squares[v] = sum;
  }
  float power[kBatch];
  gather_sums<G>(squares, power);
  for (float& value : power) value *= 2.0f / 256.0f;
  F sigma2[kVectors];
  spread<G>(power, sigma2);
  for (int v = 0; v < kVectors; ++v) {
    const F rms = vsqrt(squares[v] * (1.0f / G));
    for (int j = 0; j < G; ++j) {
      const F x = batch.x[v][j];
      if (batch.weighted) {
        batch.w[v][j] = kind == Weight::kSquare ? batch.importance[v][j]
                                                : batch.importance[v][j] * vsqrt(sigma2[v] + x * x);
      } else {
        batch.w[v][j] = kind == Weight::kSquare ? x * x : rms + vabs(x);
      }
    }
  }
}

// What the formats have in common before their bits are packed.
template <int G>
struct Coded {
  uint16_t d[kBatch];
  uint16_t dmin[kBatch];
  alignas(64) int32_t scale[kBatch * 256 / G];
  alignas(64) int32_t min[kBatch * 256 / G];
  alignas(64) uint8_t codes[kBatch * 256];  // in the order of the elements
  bool dead[kBatch];                        // as in Batch
};

// The errors of the 256 numbers from `at` on, stored as zeros.
static void add_dead(const EncodeJob& job, int64_t at, double* row) {
  for (int64_t i = at; i < at + 256; ++i) {
    const double square = static_cast<double>(job.x[i]) * static_cast<double>(job.x[i]);
    const double weighted =
        job.importance != nullptr ? static_cast<double>(job.importance[i % job.n_cols]) * square : square;
    row[0] += square;
    row[1] += square;
    row[2] += weighted;
    row[3] += weighted;
  }
}

// The codes for given scales, and the errors of the job's rows. The stored codes start at 0.
template <int G>
static void write_codes(const EncodeJob& job, int64_t first, int n, const Batch<G>& batch, const F* scale,
                        const F* low, float code_low, float code_high, Coded<G>& out) {
  constexpr int kGroups = Batch<G>::kGroups;
  LaneSums sums[Batch<G>::kVectors];
  for (int v = 0; v < Batch<G>::kVectors; ++v) {
    const F inverse = inverse_of(scale[v]);
    LaneSums sum{};
    alignas(64) int32_t words[G / 4][kLanes];
    for (int j = 0; j < G; j += 4) {
      F q[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const F x = batch.x[v][j + i];
        q[i] = clamp_round((x - low[v]) * inverse, code_low, code_high);
        add_square(sum, x, scale[v] * q[i] + low[v], batch.weighted ? &batch.importance[v][j + i] : nullptr);
        q[i] = q[i] - code_low;
      }
      store(code_word(q[0], q[1], q[2], q[3]), words[j / 4]);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const int g = v * kLanes + lane;
      for (int k = 0; k < G / 4; ++k) __builtin_memcpy(out.codes + g * G + 4 * k, &words[k][lane], 4);
    }
    sums[v] = sum;
  }
  // Block by block, so that a row's sum does not depend on which of its blocks share a batch.
  for (int b = 0; b < n; ++b) {
    double* row = job.sums + 4 * ((first + b) * 256 / job.n_cols);
    out.dead[b] = batch.dead[b];
    if (batch.dead[b]) {
      add_dead(job, (first + b) * 256, row);
      continue;
    }
    for (int g = b * kGroups; g < (b + 1) * kGroups; ++g)
      flush_lane(sums[g / kLanes], g % kLanes, batch.inverse_unit[b], batch.weighted, row);
  }
}

// The f16 nearest to a factor given in units of the super-block, and its value in these units.
static inline uint16_t factor_bits(float factor, float inverse_unit) {
  return scale_bits(factor / inverse_unit);
}
static inline float factor_value(uint16_t bits, float inverse_unit) {
  return scale_value(bits) * inverse_unit;
}

// x ~ (d * scale) * q - (dmin * min) of a batch; scale and min are whole numbers.
template <int G>
struct Scales {
  F scale[Batch<G>::kVectors];
  F min[Batch<G>::kVectors];
  uint16_t d[kBatch];  // f16 bits
  uint16_t dmin[kBatch];
};

// What least squares needs to know of a batch with given codes and scale numbers: sums over each sub-block.
template <int G>
struct Terms {
  F t11[Batch<G>::kVectors], t12[Batch<G>::kVectors], t22[Batch<G>::kVectors];  // of the matrix
  F r1[Batch<G>::kVectors], r2[Batch<G>::kVectors];                             // of the right side
};

// d and dmin in units, in all lanes of their super-block.
template <int G>
static void spread_factors(const Batch<G>& batch, const uint16_t* bits, F* v) {
  float value[kBatch];
  for (int b = 0; b < kBatch; ++b) value[b] = factor_value(bits[b], batch.inverse_unit[b]);
  spread<G>(value, v);
}

// Takes `now` where its error is lower than that of `best`, by super-block.
template <int G>
static void keep_better(const F* error, const Scales<G>& now, Scales<G>& best, float* best_error) {
  float total[kBatch], better[kBatch];
  gather_sums<G>(error, total);
  for (int b = 0; b < kBatch; ++b) {
    better[b] = total[b] < best_error[b] ? 1.0f : 0.0f;
    if (better[b] == 0.0f) continue;
    best_error[b] = total[b];
    best.d[b] = now.d[b];
    best.dmin[b] = now.dmin[b];
  }
  F chosen[Batch<G>::kVectors];
  spread<G>(better, chosen);
  for (int v = 0; v < Batch<G>::kVectors; ++v) {
    best.scale[v] = pick(chosen[v] > 0.0f, now.scale[v], best.scale[v]);
    best.min[v] = pick(chosen[v] > 0.0f, now.min[v], best.min[v]);
  }
}

// The error of `now`, and for the codes it leads to the scale numbers that fit them best (into `next`).
template <int G>
static void measure_affine(const Batch<G>& batch, float n_max, float top, const Scales<G>& now, F* error,
                           Scales<G>& next, Terms<G>& terms) {
  F d[Batch<G>::kVectors], dmin[Batch<G>::kVectors];
  spread_factors(batch, now.d, d);
  spread_factors(batch, now.dmin, dmin);
  for (int v = 0; v < Batch<G>::kVectors; ++v) {
    AffineSums s;
    error[v] =
        affine_sums<G>(batch.x[v], batch.w[v], d[v] * now.scale[v], F{} - dmin[v] * now.min[v], n_max, s);
    F sum_w{}, sum_x{};
    for (int j = 0; j < G; ++j) {
      sum_w += batch.w[v][j];
      sum_x += batch.w[v][j] * batch.x[v][j];
    }
    Affine fit;
    const F gain = solve_affine(s, sum_w, sum_x, F{}, true, fit);
    const F scale = pick(gain > 0.0f, clamp_round(fit.scale * inverse_of(d[v]), 0.0f, top), now.scale[v]);
    const I heavy = sum_w > 0.0f;
    const F low = (sum_x - d[v] * scale * s.q) / pick(heavy, sum_w, splat(1.0f));
    const F min = clamp_round((F{} - low) * inverse_of(dmin[v]), 0.0f, top);
    next.scale[v] = scale;
    next.min[v] = min;
    terms.t11[v] = scale * scale * s.qq;
    terms.t12[v] = scale * min * s.q;
    terms.t22[v] = min * min * sum_w;
    terms.r1[v] = scale * s.xq;
    terms.r2[v] = min * sum_x;
  }
}

// The factors that fit the codes and the scale numbers best: d t11 - dmin t12 = r1, d t12 - dmin t22 = r2.
template <int G>
static void refit_affine(const Batch<G>& batch, const Terms<G>& terms, Scales<G>& scales) {
  float t11[kBatch], t12[kBatch], t22[kBatch], r1[kBatch], r2[kBatch];
  gather_sums<G>(terms.t11, t11);
  gather_sums<G>(terms.t12, t12);
  gather_sums<G>(terms.t22, t22);
  gather_sums<G>(terms.r1, r1);
  gather_sums<G>(terms.r2, r2);
  for (int b = 0; b < kBatch; ++b) {
    const float det = t11[b] * t22[b] - t12[b] * t12[b];
    const float d = det > 0 ? (t22[b] * r1[b] - t12[b] * r2[b]) / det : r1[b] / t11[b];
    const float dmin = det > 0 ? (t12[b] * r1[b] - t11[b] * r2[b]) / det : 0.0f;
    if (!(d > 0 && d < 4.0f)) continue;
    scales.d[b] = factor_bits(d, batch.inverse_unit[b]);
    if (dmin > 0 && dmin < 4.0f) scales.dmin[b] = factor_bits(dmin, batch.inverse_unit[b]);
  }
}

// Stores `best`: numbers, factors, codes.
template <int G>
static void store_scales(const EncodeJob& job, int64_t first, int n, const Batch<G>& batch,
                         const Scales<G>& best, float code_low, float code_high, Coded<G>& out) {
  F d[Batch<G>::kVectors], dmin[Batch<G>::kVectors];
  F scale[Batch<G>::kVectors], low[Batch<G>::kVectors];
  spread_factors(batch, best.d, d);
  spread_factors(batch, best.dmin, dmin);
  for (int v = 0; v < Batch<G>::kVectors; ++v) {
    store(to_int(best.scale[v]), out.scale + v * kLanes);
    store(to_int(best.min[v]), out.min + v * kLanes);
    scale[v] = d[v] * best.scale[v];
    low[v] = F{} - dmin[v] * best.min[v];
  }
  for (int b = 0; b < kBatch; ++b) {
    out.d[b] = best.d[b];
    out.dmin[b] = best.dmin[b];
  }
  write_codes<G>(job, first, n, batch, scale, low, code_low, code_high, out);
}

// Codes 0..n_max, scale and min 0..top.
template <int G>
static void encode_affine(const EncodeJob& job, int64_t first, int n, float n_max, float top,
                          const Steps& steps, int rounds, Coded<G>& out) {
  constexpr int kVectors = Batch<G>::kVectors;
  Batch<G> batch;
  load_batch<G>(job, first, n, Weight::kMagnitude, batch);
  F a[kVectors], m[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const Affine fit = fit_affine<G, true>(batch.x[v], batch.w[v], n_max, steps);
    a[v] = fit.scale;
    m[v] = F{} - fit.low;
  }
  float peak_a[kBatch], peak_m[kBatch], best_error[kBatch];
  gather_peaks<G>(a, peak_a);
  gather_peaks<G>(m, peak_m);
  Scales<G> now;
  for (int b = 0; b < kBatch; ++b) {
    now.d[b] = factor_bits(peak_a[b] / top, batch.inverse_unit[b]);
    now.dmin[b] = factor_bits(peak_m[b] / top, batch.inverse_unit[b]);
    best_error[b] = __builtin_huge_valf();
  }
  F d[kVectors], dmin[kVectors];
  spread_factors(batch, now.d, d);
  spread_factors(batch, now.dmin, dmin);
  for (int v = 0; v < kVectors; ++v) {
    now.scale[v] = clamp_round(a[v] * inverse_of(d[v]), 0.0f, top);
    now.min[v] = clamp_round(m[v] * inverse_of(dmin[v]), 0.0f, top);
  }
  Scales<G> best = now;
  for (int round = 0; round <= rounds; ++round) {
    F error[kVectors];
    Scales<G> next = now;
    Terms<G> terms;
    measure_affine(batch, n_max, top, now, error, next, terms);
    keep_better(error, now, best, best_error);
    refit_affine(batch, terms, next);
    now = next;
  }
  store_scales(job, first, n, batch, best, 0.0f, n_max, out);
}

// The same for x ~ (d * scale) * q with codes -n_max..n_max - 1.
template <int G>
static void measure_symmetric(const Batch<G>& batch, float n_max, float top, const Scales<G>& now, F* error,
                              Scales<G>& next) {
  constexpr int kVectors = Batch<G>::kVectors;
  F d[kVectors], r1[kVectors], t11[kVectors];
  spread_factors(batch, now.d, d);
  for (int v = 0; v < kVectors; ++v) {
    F sum_xq, sum_qq;
    error[v] = symmetric_sums<G>(batch.x[v], batch.w[v], d[v] * now.scale[v], n_max, sum_xq, sum_qq);
    const I used = sum_qq > 0.0f;
    const F fit = sum_xq / pick(used, sum_qq, splat(1.0f));
    next.scale[v] = pick(used, clamp_round(fit * inverse_of(d[v]), -top, top - 1.0f), now.scale[v]);
    r1[v] = next.scale[v] * sum_xq;
    t11[v] = next.scale[v] * next.scale[v] * sum_qq;
  }
  float right[kBatch], left[kBatch];
  gather_sums<G>(r1, right);
  gather_sums<G>(t11, left);
  for (int b = 0; b < kBatch; ++b) {
    const float factor = left[b] > 0 ? right[b] / left[b] : 0.0f;
    if (factor != 0 && __builtin_fabsf(factor) < 4.0f) next.d[b] = factor_bits(factor, batch.inverse_unit[b]);
  }
}

// Codes -n_max..n_max - 1, scale -top..top - 1.
template <int G>
static void encode_symmetric(const EncodeJob& job, int64_t first, int n, float n_max, float top, Weight kind,
                             const Steps& steps, int rounds, Coded<G>& out) {
  constexpr int kVectors = Batch<G>::kVectors;
  Batch<G> batch;
  load_batch<G>(job, first, n, kind, batch);
  F a[kVectors];
  for (int v = 0; v < kVectors; ++v) a[v] = fit_symmetric<G>(batch.x[v], batch.w[v], n_max, steps);
  float peak[kBatch], best_error[kBatch];
  gather_peaks<G>(a, peak);
  Scales<G> now;
  for (int b = 0; b < kBatch; ++b) {
    now.d[b] = factor_bits(peak[b] / -top, batch.inverse_unit[b]);
    now.dmin[b] = 0;
    best_error[b] = __builtin_huge_valf();
  }
  F d[kVectors];
  spread_factors(batch, now.d, d);
  for (int v = 0; v < kVectors; ++v) {
    now.scale[v] = clamp_round(a[v] * inverse_of(d[v]), -top, top - 1.0f);
    now.min[v] = F{};
  }
  Scales<G> best = now;
  for (int round = 0; round <= rounds; ++round) {
    F error[kVectors];
    Scales<G> next = now;
    measure_symmetric(batch, n_max, top, now, error, next);
    keep_better(error, now, best, best_error);
    now = next;
  }
  store_scales(job, first, n, batch, best, -n_max, n_max - 1.0f, out);
}

}  // namespace
}  // namespace gemmule
