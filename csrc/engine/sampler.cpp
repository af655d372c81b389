#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <unordered_map>

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

// The first of the largest entries. Eight running maxima do not wait for each other as one would.
int32_t argmax(std::span<const float> x) {
  float best[8];
  std::fill_n(best, 8, kMinusInf);
  size_t i = 0;
  for (; i + 8 <= x.size(); i += 8)
    for (size_t lane = 0; lane < 8; ++lane) best[lane] = x[i + lane] > best[lane] ? x[i + lane] : best[lane];
  for (; i < x.size(); ++i) best[0] = std::max(best[0], x[i]);
  const float highest = *std::max_element(best, best + 8);
  return static_cast<int32_t>(std::find(x.begin(), x.end(), highest) - x.begin());
}

}  // namespace

double gumbel_noise(uint64_t seed, int64_t position, int32_t token) {
  constexpr uint64_t kGolden = 0x9e3779b97f4a7c15ull;
  uint64_t z = mix(seed + kGolden);
  z = mix(z ^ (static_cast<uint64_t>(position) + kGolden));
  z = mix(z ^ (static_cast<uint64_t>(static_cast<uint32_t>(token)) + kGolden));
  const double uniform = (static_cast<double>(z >> 11) + 0.5) * 0x1p-53;  // in (0, 1)
  return -std::log(-std::log(uniform));
}

void require_finite(std::span<const float> x, const char* what, int64_t position) {
  // An exponent of all ones plus one carries into the sign bit; four sums, so that they do not wait for each
  // other.
  constexpr uint32_t kExponent = 0x7f800000u, kOne = 0x00800000u;
  const auto carry = [&](size_t i) { return (std::bit_cast<uint32_t>(x[i]) & kExponent) + kOne; };
  uint32_t seen[4] = {};
  size_t i = 0;
  for (; i + 4 <= x.size(); i += 4)
    for (size_t lane = 0; lane < 4; ++lane) seen[lane] |= carry(i + lane);
  for (; i < x.size(); ++i) seen[0] |= carry(i);
  if ((seen[0] | seen[1] | seen[2] | seen[3]) >> 31)
    throw Error(cat("the ", what, " at position ", position,
                    " are not finite; the weights are damaged, verify the file"));
}

double log_sum_exp(std::span<const float> x) {
  const double highest = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (const float value : x) sum += std::exp(static_cast<double>(value) - highest);
  return highest + std::log(sum);
}

std::vector<std::pair<int32_t, float>> top_logprobs(std::span<const float> x, int64_t n, double log_z) {
  std::vector<int32_t> ids(x.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  const auto count = static_cast<ptrdiff_t>(std::min<int64_t>(n, static_cast<int64_t>(x.size())));
  std::partial_sort(ids.begin(), ids.begin() + count, ids.end(), [&](int32_t a, int32_t b) {
    const float va = x[static_cast<size_t>(a)], vb = x[static_cast<size_t>(b)];
    return va > vb || (va == vb && a < b);
  });
  std::vector<std::pair<int32_t, float>> top;
  for (ptrdiff_t i = 0; i < count; ++i) {
    const int32_t id = ids[static_cast<size_t>(i)];
    top.emplace_back(id, static_cast<float>(x[static_cast<size_t>(id)] - log_z));
  }
  return top;
}

void Sampler::adjust(std::span<const int32_t> history, size_t n_prompt) {
  const auto valid = [&](int32_t token) { return token >= 0 && static_cast<size_t>(token) < work_.size(); };
  for (const auto& [token, bias] : options_.logit_bias)
    if (valid(token)) work_[static_cast<size_t>(token)] += bias;
  if (options_.repeat_penalty != 1) {
    const size_t n = std::min(history.size(), kPenaltyWindow);
    std::vector<int32_t> recent(history.end() - static_cast<ptrdiff_t>(n), history.end());
    std::sort(recent.begin(), recent.end());
    recent.erase(std::unique(recent.begin(), recent.end()), recent.end());
    for (const int32_t token : recent) {
      float& logit = work_[static_cast<size_t>(token)];
      logit = logit > 0 ? logit / options_.repeat_penalty : logit * options_.repeat_penalty;
    }
  }
  if (options_.presence_penalty != 0 || options_.frequency_penalty != 0) {
    std::unordered_map<int32_t, int> counts;
    for (const int32_t token : history.subspan(std::min(n_prompt, history.size()))) ++counts[token];
    for (const auto& [token, count] : counts)
      work_[static_cast<size_t>(token)] -=
          options_.presence_penalty + options_.frequency_penalty * static_cast<float>(count);
  }
  for (const int32_t token : options_.suppress)
    if (valid(token)) work_[static_cast<size_t>(token)] = kMinusInf;
}

// Tokens whose bit is 0 get what suppressed ones have: nothing before or after can bring them back.
void Sampler::forbid(std::span<const uint32_t> mask) {
  for (size_t word = 0; word < mask.size(); ++word) {
    const size_t first = 32 * word, end = std::min(first + 32, work_.size());
    if (mask[word] == 0xffffffffu) continue;
    for (size_t t = first; t < end; ++t)
      if ((mask[word] >> (t - first) & 1u) == 0) work_[t] = kMinusInf;
  }
}

// The candidates that may be drawn. With top-k the k largest, best first, ties by token id, in one pass with
// a rising threshold: after the first k entries few of the 262,144 logits are looked at twice. Without, all
// of them, in order only where top-p needs it.
void Sampler::keep_top_k() {
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
  };
  const size_t k = options_.top_k > 0 ? static_cast<size_t>(options_.top_k) : work_.size();
  candidates_.clear();
  float threshold = kMinusInf;
  const size_t enough = std::max<size_t>(4 * k, 1024);
  for (size_t i = 0; i < work_.size(); ++i) {
    if (!(work_[i] > threshold)) continue;
    candidates_.push_back({work_[i], static_cast<int32_t>(i)});
    if (k < work_.size() && candidates_.size() >= enough) {
      std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<ptrdiff_t>(k - 1),
                       candidates_.end(), better);
      candidates_.resize(k);
      threshold = candidates_.back().logit;
    }
  }
  if (k < work_.size() || options_.top_p < 1) std::sort(candidates_.begin(), candidates_.end(), better);
  if (candidates_.size() > k) candidates_.resize(k);
}

// top-p: the fewest best candidates whose probabilities reach top_p; min-p: those with at least min_p times
// the probability of the best. Both look at the distribution after temperature and top-k; the best logit is 0
// by now.
void Sampler::keep_probable() {
  if (options_.top_p < 1) {
    double sum = 0;
    for (const Candidate& c : candidates_) sum += std::exp(static_cast<double>(c.logit));
    size_t n = 0;
    for (double reached = 0; n < candidates_.size() && (n == 0 || reached < options_.top_p * sum); ++n)
      reached += std::exp(static_cast<double>(candidates_[n].logit));
    candidates_.resize(n);
  }
  if (options_.min_p > 0)
    std::erase_if(candidates_, [&](const Candidate& c) { return std::exp(c.logit) < options_.min_p; });
}

Sampled Sampler::sample(std::span<const float> logits, std::span<const int32_t> history, size_t n_prompt,
                        int64_t position, std::span<const uint32_t> mask) {
  require_finite(logits, "logits", position);
  if (!mask.empty() && mask.size() != (logits.size() + 31) / 32)
    throw std::invalid_argument(cat("the mask has ", mask.size(), " words; ", logits.size(), " tokens need ",
                                    (logits.size() + 31) / 32));
  work_.assign(logits.begin(), logits.end());
  adjust(history, n_prompt);
  forbid(mask);
  const auto check_some_left = [&](bool some_left) {
    if (some_left) return;
    if (mask.empty()) throw Error("every token is suppressed; relax logit_bias");
    throw std::invalid_argument("no token is allowed: the mask and the suppressed tokens leave none");
  };

  Sampled result;
  if (options_.temperature == 0) {
    result.token = argmax(work_);
    check_some_left(work_[static_cast<size_t>(result.token)] > kMinusInf);
  } else {
    keep_top_k();
    check_some_left(!candidates_.empty());
    float highest = kMinusInf;  // taken off first, so that a tiny temperature cannot overflow the best
    for (const Candidate& c : candidates_) highest = std::max(highest, c.logit);
    for (Candidate& c : candidates_) c.logit = (c.logit - highest) / options_.temperature;
    keep_probable();
    double best = -std::numeric_limits<double>::infinity();
    for (const Candidate& c : candidates_) {
      const double score = c.logit + gumbel_noise(options_.seed, position, c.token);
      if (score > best) {
        best = score;
        result.token = c.token;
      }
    }
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
