// The choice of experts: the n_used largest scores of a row and their softmax.
//   e_r = exp(s_r - s_0),  weight_r = e_r / (e_0 + e_1 + ...) * scale,  best score s_0 first, sum ascending.
// The softmax over all experts, renormalised over the chosen ones, is the same number without the detour.
#pragma once

#include "backend/cpu/kernels/math.inl"
#include "backend/cpu/kernels/tail.inl"

namespace gemmule {
namespace {

// The best expert that comes after `previous` in the order of falling scores and rising numbers.
inline int64_t next_best(const float* scores, int64_t n, int64_t previous) noexcept {
  int64_t best = -1;
  for (int64_t e = 0; e < n; ++e) {
    const bool is_free =
        previous < 0 || scores[e] < scores[previous] || (scores[e] == scores[previous] && e > previous);
    if (is_free && (best < 0 || scores[e] > scores[best])) best = e;
  }
  return best;
}

inline void route(const float* scores, int64_t n, const float* scale, int64_t n_used, int32_t* expert,
                  float* weight) noexcept {
  float probe =
      0;  // becomes NaN where a score is NaN or infinite, which must not turn into a plausible choice
  for (int64_t e = 0; e < n; ++e) probe += scores[e] * 0.0f;
  if (probe != 0) {
    for (int64_t r = 0; r < n_used; ++r) {
      expert[r] = static_cast<int32_t>(r);
      weight[r] = probe;
    }
    return;
  }
  int64_t best = -1;
  for (int64_t r = 0; r < n_used; ++r) {
    best = next_best(scores, n, best);
    expert[r] = static_cast<int32_t>(best);
    weight[r] = scores[best] - scores[expert[0]];
  }
  int64_t r = 0;
  for (; r + 8 <= n_used; r += 8) store8(weight + r, exp8(load8(weight + r)));
  if (r < n_used) store_tail(weight + r, exp8(load_tail(weight + r, n_used - r)), n_used - r);
  float sum = 0;
  for (r = 0; r < n_used; ++r) sum += weight[r];
  for (r = 0; r < n_used; ++r) weight[r] = weight[r] / sum * scale[expert[r]];
}

}  // namespace
}  // namespace gemmule
