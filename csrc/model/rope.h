// Rotary position angles. Pair i of a head (numbers i and i + head_dim/2) turns by pos * freq[i].
// Source: Su et al. 2021 (RoPE); Gemma 4's "proportional" form turns only the first quarter of the pairs of
// global layers, with the exponent still divided by the full head size.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/config.h"

namespace gemmule {

inline constexpr float kDoesNotTurn = 1e29f;  // a factor above it marks a pair that does not turn

// freq[i] = base^(-2i/head_dim) * position_scale / factor[i] for the pairs that turn, in f32.
// Pairs that do not turn must be the last ones.
// Throws UnsupportedError otherwise.
std::vector<float> rope_frequencies(const RopeConfig& config, std::span<const float> factors);

// cos, sin: [pos.size()][freq.size()]. The angle is rounded to f32, as the reference does, and its cosine and
// sine come from a polynomial of our own, so that they do not depend on the system's mathematics library.
void rope_angles(std::span<const float> freq, std::span<const int64_t> pos, float* cos, float* sin);

}  // namespace gemmule
