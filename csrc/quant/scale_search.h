// Search of the scale of one sub-block by weighted least squares, shared by the encoders of the K formats.
// The encoders work on a block divided by a power of two near its largest magnitude, which keeps every sum
// far from overflow and underflow and makes the codes independent of the magnitude of the weights.
#pragma once

#include <cstdint>

namespace gemmule {

struct UnitBlock {
  float x[256];  // source / unit
  float unit;    // a power of two
};

// Fills `out` from src [256]. False if every element is below half of the smallest f16 step (2^-24): all K
// formats hold multiples of that step only, so such a block is zero.
bool make_unit_block(const float* src, UnitBlock& out);

struct AffineFit {
  float scale;  // >= 0
  float min;    // >= 0; x ~ scale * code - min
};
// The tried inverse scales: (first + t * step + n_max) / (range of x), t = 0..count.
struct AffineSteps {
  float first;
  float step;
  int count;
};
// x [n], weights w [n] > 0, codes 0..n_max; n <= 32.
AffineFit fit_affine(const float* x, const float* w, int n, int n_max, const AffineSteps& steps);

// w[i] = rms(x) + |x[i]|: large elements count more, small ones never vanish. x, w [n]
void search_weights(const float* x, int n, float* w);

// The signed scale of x ~ scale * code with codes -n_max..n_max - 1; 0 for a group of zeros. x [n], weights w
// [n]
float fit_symmetric(const float* x, const float* w, int n, int n_max);

// A scale rounded to f16 bits: held at +-65504, and not below the smallest f16 unless it is zero.
uint16_t f16_scale_bits(float d);

// The nearest integer, ties to even, held in lo..hi (NaN gives lo). |lo|, |hi| < 2^22.
inline int round_code(float value, int lo, int hi) {
  const float low = static_cast<float>(lo);
  const float high = static_cast<float>(hi);
  float held = value > low ? value : low;
  held = held < high ? held : high;
  constexpr float kRound = 0x1.8p23f;  // numbers of this size have no fraction bits: the addition rounds
  return static_cast<int>((held + kRound) - kRound);
}

}  // namespace gemmule
