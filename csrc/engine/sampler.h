// From a row of logits to a token. The order is fixed: suppression, mask and bias, penalties, temperature,
// top-k, top-p, min-p, then a draw. The draw takes the candidate with the largest log-probability plus Gumbel
// noise that depends only on (seed, position, token), so the text of a seed does not change with threads,
// batching or drafting.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "engine/logit_scan.h"

namespace gemmule {

struct SamplerOptions {
  float temperature = 1;                              // 0: always the most likely token
  int32_t top_k = 0;                                  // 0: off
  float top_p = 1;                                    // 1: off
  float min_p = 0;                                    // 0: off
  float repeat_penalty = 1;                           // 1: off; over the last kPenaltyWindow tokens
  float presence_penalty = 0;                         // over the generated tokens
  float frequency_penalty = 0;                        // over the generated tokens
  std::vector<std::pair<int32_t, float>> logit_bias;  // added to the logits; -inf forbids
  std::vector<int32_t> suppress;                      // never drawn
  uint64_t seed = 0;
  int32_t n_logprobs =
      -1;  // report the drawn token's log-probability and this many alternatives; -1: neither
};
inline constexpr size_t kPenaltyWindow = 64;

struct Sampled {
  int32_t token = 0;
  float logprob = 0;                           // of the model's own distribution; NaN unless asked for
  std::vector<std::pair<int32_t, float>> top;  // most likely tokens of that distribution, best first
};

class Sampler {
 public:
  explicit Sampler(SamplerOptions options) : options_(std::move(options)) {}

  // logits: [n_vocab], left unchanged. history: all tokens so far, of which the first n_prompt are the
  // prompt. position: index the drawn token will have. mask: bit t % 32 of word t / 32 says whether token t
  // is allowed, [(n_vocab + 31) / 32]; empty: all are. Throws Error when the logits are not finite, naming
  // the position, and std::invalid_argument when the mask leaves no token.
  Sampled sample(std::span<const float> logits, std::span<const int32_t> history, size_t n_prompt,
                 int64_t position, std::span<const uint32_t> mask = {});

  const SamplerOptions& options() const { return options_; }

 private:
  float& change(std::span<const float> logits, int32_t token);
  void adjust(std::span<const float> logits, std::span<const int32_t> history, size_t n_prompt);
  template <class Fn>
  void each_changed(std::span<const uint32_t> mask, Fn&& fn) const;
  void keep_top_k(const LogitRow& row, bool& finite);
  void keep_probable();
  void sort_more();
  int32_t draw(int64_t position) const;

  SamplerOptions options_;
  std::vector<float> adjusted_;       // [n_vocab] logits after bias and penalties, of the changed tokens
  std::vector<uint32_t> is_changed_;  // [n_vocab / 32] their bits
  std::vector<int32_t> changed_;      // these tokens
  std::vector<int32_t> count_;        // [n_vocab] zero between two samples
  std::vector<Candidate> candidates_;
  size_t n_sorted_ = 0;  // candidates in order, at the front: the best ones
};

// Throws Error when a number is not finite, naming what they are and the position.
void require_finite(std::span<const float> x, const char* what, int64_t position);
// log of the sum of exp(x), in double precision.
double log_sum_exp(std::span<const float> x);
// The n largest entries as (index, value - log_z), best first; ties by index.
std::vector<std::pair<int32_t, float>> top_logprobs(std::span<const float> x, int64_t n, double log_z);
// Standard Gumbel noise of (seed, position, token).
double gumbel_noise(uint64_t seed, int64_t position, int32_t token);

}  // namespace gemmule
