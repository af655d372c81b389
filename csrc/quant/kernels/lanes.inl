// Vectors whose lanes are groups of weights (sub-blocks, or whole blocks of 32): element j of every group is
// one vector, so that all sums of the search run over vectors and never inside one. A lane does the same
// operations in the same order whatever the number of lanes, which makes the bytes equal on every instruction
// set. The including file defines kLanes, F, I, vmin, vmax (a < b ? a : b), vsqrt, zip_low and zip_high.

namespace gemmule {
namespace {

static inline F splat(float value) { return value - F{}; }
static inline I splat(int32_t value) { return value - I{}; }
static inline F load(const float* p) {
  F v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
static inline void store(F v, float* p) { __builtin_memcpy(p, &v, sizeof v); }
static inline void store(I v, int32_t* p) { __builtin_memcpy(p, &v, sizeof v); }
static inline I bits_of(F v) { return (I)v; }
static inline F float_of(I v) { return (F)v; }
static inline F pick(I mask, F yes, F no) { return float_of((mask & bits_of(yes)) | (~mask & bits_of(no))); }
static inline F vabs(F v) { return float_of(bits_of(v) & 0x7fffffff); }
static inline I to_int(F v) { return __builtin_convertvector(v, I); }  // towards zero
static inline F to_float(I v) { return __builtin_convertvector(v, F); }

// Adding it to a number below 2^22 leaves no fraction bits: the sum is rounded to nearest even.
constexpr float kRound = 0x1.8p23f;
static inline F clamp_round(F v, float low, float high) {
  return (vmin(vmax(v, splat(low)), splat(high)) + kRound) - kRound;
}

// v [kLanes] as a matrix -> its transpose. A perfect shuffle of all elements, log2(kLanes) times.
static inline void transpose(F* v) {
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    F t[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      t[2 * i] = zip_low(v[i], v[i + kLanes / 2]);
      t[2 * i + 1] = zip_high(v[i], v[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) v[i] = t[i];
  }
}

// groups [kLanes] pointers to n floats each -> x [n] vectors. n: a multiple of 16.
static inline void gather_groups(const float* const* groups, int n, F* x) {
  for (int j = 0; j < n; j += kLanes) {
    F v[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) v[i] = load(groups[i] + j);
    transpose(v);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) x[j + i] = v[i];
  }
}

// An f16 as its bits, round to nearest even; |v| < 65520.
static inline I to_f16(F v) {
  const I sign = (bits_of(v) >> 16) & 0x8000;
  const I magnitude = bits_of(v) & 0x7fffffff;
  // Adding 0.5 puts the last place of a subnormal f16 in that of the f32.
  const I subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;
  const I normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const I small = magnitude < 0x38800000;
  return sign | (small & subnormal) | (~small & normal);
}
static inline F from_f16(I h) {
  const I magnitude = h & 0x7fff;
  const I normal = (magnitude << 13) + 0x38000000;
  const I subnormal = bits_of(to_float(magnitude) * 0x1p-24f);
  const I small = magnitude < 0x400;
  return float_of(((h & 0x8000) << 16) | (small & subnormal) | (~small & normal));
}
// What rounds to a finite f16 as it is, the rest held at +-65504.
static inline F saturate(F v) {
  const F held = vmin(vmax(v, splat(-65504.0f)), splat(65504.0f));
  return pick(vabs(v) < 65520.0f, v, held);
}

// The same for single numbers. The smallest f16 stands in for a scale that would vanish.
static inline uint16_t scale_bits(float value) {
  const I h = to_f16(saturate(splat(value)));
  const auto bits = static_cast<uint16_t>(h[0]);
  return (bits & 0x7fffu) == 0 && value != 0 ? static_cast<uint16_t>(bits | 1u) : bits;
}
static inline float scale_value(uint16_t bits) { return from_f16(splat(static_cast<int32_t>(bits)))[0]; }

// Four codes (whole numbers 0..255) of each lane as the bytes of one word.
static inline I code_word(F a, F b, F c, F d) {
  return to_int(a) | (to_int(b) << 8) | (to_int(c) << 16) | (to_int(d) << 24);
}

// The inverse of the power of two at or below `peak`, held where it is a normal number: x *
// inverse_unit(peak) is exact and below 4 (unless it is far smaller than the peak, where it may round).
static inline F inverse_unit(F peak) {
  const I exponent = bits_of(vmin(peak, splat(0x1p126f))) & 0x7f800000;
  return float_of((254 << 23) - exponent);
}

// Squared error, squared value, and both times importance, of every lane. In units of the group.
struct LaneSums {
  F error2, norm2, weighted_error2, weighted_norm2;
};
static inline void add_square(LaneSums& s, F x, F y, const F* importance) {
  const F diff = x - y;
  const F error2 = diff * diff;
  const F norm2 = x * x;
  s.error2 += error2;
  s.norm2 += norm2;
  if (importance != nullptr) {
    s.weighted_error2 += *importance * error2;
    s.weighted_norm2 += *importance * norm2;
  }
}
// Adds the sums of one lane to those of its row. inverse: of the unit.
static inline void flush_lane(const LaneSums& s, int lane, float inverse, bool weighted, double* row) {
  // The square of the unit 2^u, from the exponent of its inverse 2^-u, is 2^2u.
  uint32_t bits;
  __builtin_memcpy(&bits, &inverse, sizeof bits);
  const uint64_t square_bits = static_cast<uint64_t>(1023 + 2 * 127 - 2 * (bits >> 23)) << 52;
  double square;
  __builtin_memcpy(&square, &square_bits, sizeof square);
  const double error2 = static_cast<double>(s.error2[lane]) * square;
  const double norm2 = static_cast<double>(s.norm2[lane]) * square;
  row[0] += error2;
  row[1] += norm2;
  row[2] += weighted ? static_cast<double>(s.weighted_error2[lane]) * square : error2;
  row[3] += weighted ? static_cast<double>(s.weighted_norm2[lane]) * square : norm2;
}

}  // namespace
}  // namespace gemmule
