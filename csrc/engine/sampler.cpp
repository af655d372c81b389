#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "core/error.h"

namespace gemmule {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// A 64-bit mixer (the finaliser of SplitMix64, Steele et al. 2014): every input bit reaches every output bit.
uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15ull;

// 53 random bits of (seed, position, token); `key` is those of the first two.
uint64_t noise_key(uint64_t seed, int64_t position) {
  return mix(mix(seed + kGolden) ^ (static_cast<uint64_t>(position) + kGolden));
}
uint64_t noise_bits(uint64_t key, int32_t token) {
  return mix(key ^ (static_cast<uint64_t>(static_cast<uint32_t>(token)) + kGolden)) >> 11;
}
double gumbel(uint64_t bits) {
  const double uniform = (static_cast<double>(bits) + 0.5) * 0x1p-53;  // in (0, 1)
  return -std::log(-std::log(uniform));
}

// False only where the noise of these bits cannot exceed t: of uniform u, noise > t means
// 1 - u < 1 - exp(-exp(-t)) <= exp(-t), and a power of two just above exp(-t) takes no logarithm.
bool may_exceed(uint64_t bits, double t) {
  if (!(t >= 1)) return true;
  const auto exponent = static_cast<int64_t>(0.01 - std::min(t, 700.0) * 1.4426950408889634);  // rounded up
  const double bound = std::bit_cast<double>(static_cast<uint64_t>(1023 + exponent) << 52);
  return 1 - (static_cast<double>(bits) + 0.5) * 0x1p-53 < bound;
}

}  // namespace

double gumbel_noise(uint64_t seed, int64_t position, int32_t token) {
  return gumbel(noise_bits(noise_key(seed, position), token));
}

void require_finite(std::span<const float> x, const char* what, int64_t position) {
  if (!is_finite(x))
    throw Error(cat("the ", what, " at position ", position,
                    " are not finite; the weights are damaged, verify the file"));
}

double log_sum_exp(std::span<const float> x) {
  bool finite;
  const double highest = largest({x, {}, {}}, finite).logit;
  double sum = 0;
  for (const float value : x) sum += std::exp(static_cast<double>(value) - highest);
  return highest + std::log(sum);
}

std::vector<std::pair<int32_t, float>> top_logprobs(std::span<const float> x, int64_t n, double log_z) {
  std::vector<std::pair<int32_t, float>> top;
  if (n <= 0) return top;
  const size_t count = std::min(static_cast<size_t>(n), x.size());
  std::vector<Candidate> candidates;
  bool finite;
  collect_top({x, {}, {}}, count, candidates, finite);
  keep_best(candidates, count);
  for (const Candidate& c : candidates)
    top.emplace_back(c.token, static_cast<float>(static_cast<double>(c.logit) - log_z));
  return top;
}

// The adjusted logit of a token, which differs from that of the model from now on.
float& Sampler::change(std::span<const float> logits, int32_t token) {
  const auto t = static_cast<size_t>(token);
  uint32_t& word = is_changed_[t / 32];
  const uint32_t bit = 1u << (t % 32);
  if ((word & bit) == 0) {
    word |= bit;
    changed_.push_back(token);
    adjusted_[t] = logits[t];
  }
  return adjusted_[t];
}

// Suppression, bias and penalties touch few tokens: those leave the row, and come back as candidates of their
// own.
void Sampler::adjust(std::span<const float> logits, std::span<const int32_t> history, size_t n_prompt) {
  for (const int32_t token : changed_) is_changed_[static_cast<size_t>(token) / 32] = 0;
  changed_.clear();
  const bool counts = options_.presence_penalty != 0 || options_.frequency_penalty != 0;
  if (options_.logit_bias.empty() && options_.suppress.empty() && options_.repeat_penalty == 1 && !counts)
    return;
  adjusted_.resize(logits.size());
  is_changed_.resize((logits.size() + 31) / 32);
  const auto valid = [&](int32_t token) { return token >= 0 && static_cast<size_t>(token) < logits.size(); };
  for (const auto& [token, bias] : options_.logit_bias)
    if (valid(token)) change(logits, token) += bias;
  if (options_.repeat_penalty != 1) {
    const size_t n = std::min(history.size(), kPenaltyWindow);
    std::vector<int32_t> recent(history.end() - static_cast<ptrdiff_t>(n), history.end());
    std::sort(recent.begin(), recent.end());
    recent.erase(std::unique(recent.begin(), recent.end()), recent.end());
    for (const int32_t token : recent) {
      float& logit = change(logits, token);
      logit = logit > 0 ? logit / options_.repeat_penalty : logit * options_.repeat_penalty;
    }
  }
  if (counts) {
    count_.resize(logits.size());
    const auto generated = history.subspan(std::min(n_prompt, history.size()));
    for (const int32_t token : generated) ++count_[static_cast<size_t>(token)];
    for (const int32_t token : generated) {
      int32_t& count = count_[static_cast<size_t>(token)];
      if (count > 0)
        change(logits, token) -=
            options_.presence_penalty + options_.frequency_penalty * static_cast<float>(count);
      count = 0;  // for the next sample, and because a token may come again
    }
  }
  for (const int32_t token : options_.suppress)
    if (valid(token)) change(logits, token) = kMinusInf;
}

// The changed tokens that may be drawn.
template <class Fn>
void Sampler::each_changed(std::span<const uint32_t> mask, Fn&& fn) const {
  for (const int32_t token : changed_) {
    const auto t = static_cast<size_t>(token);
    const bool allowed = mask.empty() || (mask[t / 32] >> (t % 32) & 1u) != 0;
    if (allowed && adjusted_[t] > kMinusInf) fn(Candidate{adjusted_[t], token});
  }
}

// Fills the candidates that may be drawn: the top_k best, best first, or without top-k all of them in no
// order.
void Sampler::keep_top_k(const LogitRow& row, bool& finite) {
  const size_t n = row.logits.size();
  const size_t k = options_.top_k > 0 ? static_cast<size_t>(options_.top_k) : n;
  if (k < n) {
    collect_top(row, k, candidates_, finite);
  } else {
    collect_all(row, candidates_, finite);
  }
  each_changed(row.allowed, [&](const Candidate& c) { candidates_.push_back(c); });
  n_sorted_ = 0;
  if (k < n) {
    keep_best(candidates_, k);
    n_sorted_ = candidates_.size();
  }
}

// top-p: the fewest best candidates whose probabilities reach top_p; min-p: those with at least min_p times
// the probability of the best. Both look at the distribution after temperature and top-k; the best logit is 0
// by now.
void Sampler::keep_probable() {
  if (options_.top_p < 1) {
    double sum = 0, reached = 0;
    for (const Candidate& c : candidates_) sum += std::exp(static_cast<double>(c.logit));
    size_t n = 0;
    for (; n < candidates_.size() && (n == 0 || reached < options_.top_p * sum); ++n) {
      if (n == n_sorted_) sort_more();
      reached += std::exp(static_cast<double>(candidates_[n].logit));
    }
    candidates_.resize(n);
  }
  if (options_.min_p > 0) {
    const float cut = std::log(options_.min_p);
    constexpr float kClose = 1e-3f;  // to the cut; all others need no exponential
    std::erase_if(candidates_, [&](const Candidate& c) {
      return c.logit < cut - kClose || (c.logit < cut + kClose && std::exp(c.logit) < options_.min_p);
    });
  }
}

// Brings the next best candidates into order: few of a whole vocabulary are needed to reach top-p.
void Sampler::sort_more() {
  const size_t n = std::min(candidates_.size(), std::max<size_t>(128, 8 * n_sorted_));
  const auto begin = candidates_.begin() + static_cast<ptrdiff_t>(n_sorted_);
  const auto end = candidates_.begin() + static_cast<ptrdiff_t>(n);
  std::nth_element(begin, end, candidates_.end(), better);
  std::sort(begin, end, better);
  n_sorted_ = n;
}

int32_t Sampler::draw(int64_t position) const {
  const uint64_t key = noise_key(options_.seed, position);
  double best = -std::numeric_limits<double>::infinity();
  int32_t token = 0;
  for (const Candidate& c : candidates_) {
    const uint64_t bits = noise_bits(key, c.token);
    if (!may_exceed(bits, best - static_cast<double>(c.logit))) continue;
    const double score = c.logit + gumbel(bits);
    if (score > best) {
      best = score;
      token = c.token;
    }
  }
  return token;
}

Sampled Sampler::sample(std::span<const float> logits, std::span<const int32_t> history, size_t n_prompt,
                        int64_t position, std::span<const uint32_t> mask) {
  if (!mask.empty() && mask.size() != (logits.size() + 31) / 32)
    throw std::invalid_argument(cat("the mask has ", mask.size(), " words; ", logits.size(), " tokens need ",
                                    (logits.size() + 31) / 32));
  adjust(logits, history, n_prompt);
  const LogitRow row{logits, mask, changed_.empty() ? std::span<const uint32_t>{} : is_changed_};
  const auto check = [&](bool finite, bool some_left) {
    if (!finite) require_finite(logits, "logits", position);
    if (some_left) return;
    if (mask.empty()) throw Error("every token is suppressed; relax logit_bias");
    throw std::invalid_argument("no token is allowed: the mask and the suppressed tokens leave none");
  };

  Sampled result;
  bool finite = true;
  if (options_.temperature == 0) {
    Candidate best = largest(row, finite);
    each_changed(mask, [&](const Candidate& c) {
      if (better(c, best)) best = c;
    });
    check(finite, best.token >= 0);
    result.token = best.token;
  } else {
    keep_top_k(row, finite);
    check(finite, !candidates_.empty());
    float highest = kMinusInf;  // taken off first, so that a tiny temperature cannot overflow the best
    for (const Candidate& c : candidates_) highest = std::max(highest, c.logit);
    for (Candidate& c : candidates_) c.logit = (c.logit - highest) / options_.temperature;
    keep_probable();
    result.token = draw(position);
  }
  result.logprob = std::numeric_limits<float>::quiet_NaN();
  if (options_.n_logprobs >= 0) {
    const double log_z = log_sum_exp(logits);
    result.logprob = static_cast<float>(logits[static_cast<size_t>(result.token)] - log_z);
    result.top = top_logprobs(logits, options_.n_logprobs, log_z);
  }
  return result;
}

}  // namespace gemmule
