#include "engine/sampler.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "core/error.h"

using namespace gemmule;

namespace {

std::vector<float> some_logits(size_t n, unsigned seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> logits(n);
  for (float& x : logits) x = normal(rng);
  return logits;
}

int32_t draw(const SamplerOptions& options, std::span<const float> logits, int64_t position,
             std::span<const int32_t> history = {}, size_t n_prompt = 0) {
  Sampler sampler(options);
  return sampler.sample(logits, history, n_prompt, position).token;
}

constexpr float kInf = std::numeric_limits<float>::infinity();

}  // namespace

TEST_CASE("temperature 0 takes the largest logit, the first of equals") {
  const std::vector<float> logits = {1, 5, 3, 5};
  CHECK(draw({.temperature = 0}, logits, 0) == 1);
  CHECK(draw({.temperature = 0, .suppress = {1}}, logits, 0) == 3);
  CHECK(draw({.temperature = 0, .logit_bias = {{2, 10.0f}}}, logits, 0) == 2);
  CHECK(draw({.temperature = 0, .logit_bias = {{1, -kInf}, {3, -kInf}}}, logits, 0) == 2);
}

TEST_CASE("a draw depends on seed and position only") {
  const auto logits = some_logits(1000, 1);
  const SamplerOptions options{.temperature = 1, .top_k = 64, .top_p = 0.95f, .seed = 7};
  CHECK(draw(options, logits, 3) == draw(options, logits, 3));
  int differ = 0;
  for (int64_t p = 0; p < 50; ++p) differ += draw(options, logits, p) != draw(options, logits, p + 1000);
  CHECK(differ > 10);
}

TEST_CASE("top-k keeps the k largest, also with more candidates than one pass holds") {
  const auto logits = some_logits(20000, 2);
  auto sorted = logits;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  for (const int32_t k : {1, 5, 64, 300}) {
    for (int64_t p = 0; p < 40; ++p) {
      const int32_t token = draw({.temperature = 5, .top_k = k, .seed = 3}, logits, p);
      CHECK(logits[static_cast<size_t>(token)] >= sorted[static_cast<size_t>(k - 1)]);
    }
  }
}

TEST_CASE("draws follow the softmax (chi-square over 20,000 draws)") {
  const std::vector<float> logits = {0.0f, 1.0f, 2.0f, -1.0f, 0.5f};
  for (const float temperature : {0.7f, 1.0f, 2.0f}) {
    double z = 0;
    for (const float x : logits) z += std::exp(x / temperature);
    std::vector<int> counts(logits.size());
    constexpr int kDraws = 20000;
    for (int64_t p = 0; p < kDraws; ++p)
      ++counts[static_cast<size_t>(draw({.temperature = temperature, .seed = 11}, logits, p))];
    double chi2 = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
      const double expected = kDraws * std::exp(logits[i] / temperature) / z;
      chi2 += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    CHECK(chi2 < 13.28);  // 4 degrees of freedom, p = 0.01
  }
}

TEST_CASE("top-p and min-p keep the probable ones") {
  const std::vector<float> logits = {std::log(0.6f), std::log(0.3f), std::log(0.09f), std::log(0.01f)};
  for (int64_t p = 0; p < 300; ++p) {
    CHECK(draw({.temperature = 1, .top_p = 0.5f}, logits, p) == 0);
    CHECK(draw({.temperature = 1, .top_p = 0.8f}, logits, p) <= 1);
    CHECK(draw({.temperature = 1, .min_p = 0.1f}, logits, p) <= 2);
  }
}

TEST_CASE("penalties lower what was said") {
  const std::vector<float> logits = {2.0f, 1.9f, -1.0f};
  const std::vector<int32_t> history = {0, 0};
  CHECK(draw({.temperature = 0, .repeat_penalty = 1.2f}, logits, 2, history) == 1);
  CHECK(draw({.temperature = 0, .presence_penalty = 0.2f}, logits, 2, history) == 1);
  CHECK(draw({.temperature = 0, .frequency_penalty = 0.06f}, logits, 2, history) == 1);
  CHECK(draw({.temperature = 0, .presence_penalty = 0.2f}, logits, 2, history, 2) ==
        0);  // the prompt does not count
}

TEST_CASE("log-probabilities are those of the model, before any option") {
  const std::vector<float> logits = {0.0f, 1.0f, 3.0f};
  Sampler sampler({.temperature = 0, .logit_bias = {{0, 9.0f}}, .n_logprobs = 2});
  const Sampled s = sampler.sample(logits, {}, 0, 0);
  const double log_z = std::log(std::exp(0.0) + std::exp(1.0) + std::exp(3.0));
  CHECK(s.token == 0);
  CHECK(s.logprob == doctest::Approx(-log_z));
  REQUIRE(s.top.size() == 2);
  CHECK(s.top[0].first == 2);
  CHECK(s.top[0].second == doctest::Approx(3 - log_z));
  CHECK(s.top[1].first == 1);
}

TEST_CASE("logits that are not finite end in an error, never in a token") {
  for (const float bad : {kInf, -kInf, std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> logits = {0, 1, 2};
    logits[1] = bad;
    CHECK_THROWS_AS(draw({.temperature = 0}, logits, 5), Error);
    CHECK_THROWS_AS(draw({.temperature = 1}, logits, 5), Error);
  }
}

TEST_CASE("suppressing everything is an error") {
  const std::vector<float> logits = {0, 1};
  CHECK_THROWS_AS(draw({.temperature = 0, .suppress = {0, 1}}, logits, 0), Error);
  CHECK_THROWS_AS(draw({.temperature = 1, .suppress = {0, 1}}, logits, 0), Error);
}

TEST_CASE("a mask allows the tokens whose bits are set, whatever else is asked for") {
  const auto logits = some_logits(1000, 4);
  std::vector<uint32_t> mask(32);
  const std::vector<int32_t> allowed = {0, 31, 32, 500, 991, 999};
  for (const int32_t token : allowed) mask[static_cast<size_t>(token) / 32] |= 1u << (token % 32);
  const auto draw_with = [&](const SamplerOptions& options, int64_t position) {
    Sampler sampler(options);
    return sampler.sample(logits, {}, 0, position, mask).token;
  };
  int32_t best = allowed[0];
  for (const int32_t token : allowed)
    if (logits[static_cast<size_t>(token)] > logits[static_cast<size_t>(best)]) best = token;
  CHECK(draw_with({.temperature = 0}, 0) == best);
  CHECK(draw_with({.temperature = 0, .logit_bias = {{1, 100.0f}, {991, 50.0f}}}, 0) == 991);
  std::vector<int> seen(logits.size());
  for (int64_t p = 0; p < 600; ++p) {
    ++seen[static_cast<size_t>(draw_with({.temperature = 100, .logit_bias = {{7, 90.0f}}}, p))];
    ++seen[static_cast<size_t>(draw_with({.temperature = 100, .top_k = 3, .suppress = {31}}, p))];
    ++seen[static_cast<size_t>(draw_with({.temperature = 100, .top_p = 0.9f}, p))];
  }
  for (size_t i = 0; i < seen.size(); ++i)
    CHECK((seen[i] > 0) == (std::find(allowed.begin(), allowed.end(), i) != allowed.end()));
  std::fill(mask.begin(), mask.end(), ~0u);
  CHECK(draw_with({.temperature = 1, .seed = 5}, 9) == draw({.temperature = 1, .seed = 5}, logits, 9));
}

TEST_CASE("a mask changes no reported log-probability") {
  const std::vector<float> logits = {0.0f, 1.0f, 3.0f};
  const std::vector<uint32_t> mask = {1};
  Sampler sampler({.temperature = 0, .n_logprobs = 1});
  const Sampled s = sampler.sample(logits, {}, 0, 0, mask);
  CHECK(s.token == 0);
  CHECK(s.logprob == doctest::Approx(-std::log(1 + std::exp(1.0) + std::exp(3.0))));
  REQUIRE(s.top.size() == 1);
  CHECK(s.top[0].first == 2);
}

TEST_CASE("a mask that leaves nothing, or has the wrong size, is refused") {
  const std::vector<float> logits(40, 1.0f);
  for (const float temperature : {0.0f, 1.0f}) {
    Sampler sampler({.temperature = temperature, .suppress = {3}});
    const auto with = [&](std::vector<uint32_t> mask) {
      return sampler.sample(logits, {}, 0, 0, mask).token;
    };
    CHECK_THROWS_WITH_AS(with({0, 0}), doctest::Contains("no token is allowed"), std::invalid_argument);
    CHECK_THROWS_AS(with({1u << 3, 0}), std::invalid_argument);  // the only one is suppressed
    CHECK_THROWS_AS(with({0, 0xffffff00u}),
                    std::invalid_argument);  // bits beyond the vocabulary count for nothing
    CHECK(with({0, 0xffffff80u}) == 39);
    CHECK_THROWS_AS(with({~0u}), std::invalid_argument);
    CHECK_THROWS_AS(with({~0u, ~0u, ~0u}), std::invalid_argument);
  }
}

TEST_CASE("a tiny temperature is greedy, not an overflow") {
  const std::vector<float> logits = {-90, -100, -80, -95};
  for (const float temperature : {1e-3f, 1e-37f}) {
    CHECK(draw({.temperature = temperature}, logits, 0) == 2);
    CHECK(draw({.temperature = temperature, .suppress = {2}}, logits, 0) == 0);
  }
}

TEST_CASE("require_finite finds a bad number at any place and passes all others") {
  const float largest = std::numeric_limits<float>::max(), tiny = std::numeric_limits<float>::denorm_min();
  std::vector<float> x = {0.0f, -0.0f, largest, -largest, tiny, 1.0f, -3.0f};
  CHECK_NOTHROW(require_finite(x, "numbers", 3));
  for (size_t i = 0; i < x.size(); ++i) {
    for (const float bad : {kInf, -kInf, std::numeric_limits<float>::quiet_NaN()}) {
      auto broken = x;
      broken[i] = bad;
      CHECK_THROWS_AS(require_finite(broken, "numbers", 3), Error);
    }
  }
}

namespace {

// What the sampler promises, written down plainly: a copy of the row, a full sort, every exponential.
int32_t plain_draw(const SamplerOptions& o, std::vector<float> x, std::span<const int32_t> history,
                   size_t n_prompt, int64_t position, std::span<const uint32_t> mask) {
  for (const auto& [token, bias] : o.logit_bias) x[static_cast<size_t>(token)] += bias;
  for (size_t t = 0; t < x.size(); ++t) {
    const auto is_t = [&](int32_t token) { return static_cast<size_t>(token) == t; };
    const auto recent = history.last(std::min(history.size(), kPenaltyWindow));
    if (std::any_of(recent.begin(), recent.end(), is_t))
      x[t] = x[t] > 0 ? x[t] / o.repeat_penalty : x[t] * o.repeat_penalty;
    const auto said = history.subspan(n_prompt);
    if (const auto n = std::count_if(said.begin(), said.end(), is_t); n > 0)
      x[t] -= o.presence_penalty + o.frequency_penalty * static_cast<float>(n);
    if (!mask.empty() && (mask[t / 32] >> (t % 32) & 1u) == 0) x[t] = -kInf;
  }
  for (const int32_t token : o.suppress) x[static_cast<size_t>(token)] = -kInf;
  std::vector<std::pair<float, int32_t>> c;
  for (size_t t = 0; t < x.size(); ++t)
    if (x[t] > -kInf) c.emplace_back(-x[t], static_cast<int32_t>(t));
  std::sort(c.begin(), c.end());
  if (o.temperature == 0) return c[0].second;
  if (o.top_k > 0 && static_cast<size_t>(o.top_k) < c.size()) c.resize(static_cast<size_t>(o.top_k));
  const float highest = -c[0].first;
  double sum = 0;
  for (auto& [logit, token] : c) sum += std::exp(double{logit = (-logit - highest) / o.temperature});
  if (o.top_p < 1) {
    size_t n = 0;
    for (double reached = 0; n < c.size() && (n == 0 || reached < o.top_p * sum); ++n)
      reached += std::exp(double{c[n].first});
    c.resize(n);
  }
  std::erase_if(c, [&](const auto& item) { return std::exp(item.first) < o.min_p; });
  int32_t token = 0;
  double best = -std::numeric_limits<double>::infinity();
  for (const auto& [logit, t] : c)
    if (const double score = logit + gumbel_noise(o.seed, position, t); score > best) {
      best = score;
      token = t;
    }
  return token;
}

}  // namespace

TEST_CASE("the shortcuts of the sampler change no token") {
  std::mt19937 rng(9);
  const auto one_of = [&](auto... values) {
    return std::vector<std::common_type_t<decltype(values)...>>{values...}[rng() % sizeof...(values)];
  };
  for (unsigned round = 0; round < 1500; ++round) {
    const int n = one_of(70, 128, 1000, 3000);
    auto logits = some_logits(static_cast<size_t>(n), round);
    if (round % 3 == 0)
      for (float& x : logits) x = std::round(x);
    const auto token = [&] { return static_cast<int32_t>(rng() % static_cast<unsigned>(n)); };
    SamplerOptions o{.temperature = one_of(0.0f, 0.7f, 1.0f, 1e-3f, 50.0f),
                     .top_k = one_of(0, 1, 5, 64, 300, n, n + 1),
                     .top_p = one_of(1.0f, 0.95f, 0.5f),
                     .min_p = one_of(0.0f, 0.05f, 1.0f),
                     .repeat_penalty = one_of(1.0f, 1.3f),
                     .presence_penalty = one_of(0.0f, 0.5f),
                     .frequency_penalty = one_of(0.0f, -0.2f),
                     .seed = rng()};
    for (int i = one_of(0, 0, 9); i > 0; --i) o.logit_bias.emplace_back(token(), one_of(-20.0f, 3.0f, -kInf));
    for (int i = one_of(0, 0, 9); i > 0; --i) o.suppress.push_back(token());
    std::vector<uint32_t> mask(one_of(0, 1) != 0 ? static_cast<size_t>(n + 31) / 32 : 0);
    for (uint32_t& word : mask) word = static_cast<uint32_t>(rng()) | 1u;
    std::vector<int32_t> history(one_of(10u, 200u));
    for (int32_t& t : history) t = token() % 50;
    Sampler sampler(o);
    for (int64_t position = 0; position < 2; ++position) {  // twice, so that nothing stays behind
      history.push_back(token());
      CHECK(sampler.sample(logits, history, 7, position, mask).token ==
            plain_draw(o, logits, history, 7, position, mask));
    }
  }
}
