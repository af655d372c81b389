#include "engine/logit_scan.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

using namespace gemmule;

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Every entry that takes part, best first.
std::vector<Candidate> sorted_entries(const LogitRow& row) {
  std::vector<Candidate> all;
  for (size_t i = 0; i < row.logits.size(); ++i)
    if ((row.word(i / 32) >> (i % 32) & 1u) != 0 && row.logits[i] > -kInf)
      all.push_back({row.logits[i], static_cast<int32_t>(i)});
  std::sort(all.begin(), all.end(), better);
  return all;
}

bool same(const Candidate& a, const Candidate& b) { return a.logit == b.logit && a.token == b.token; }

}  // namespace

TEST_CASE("the largest entries are those of a full sort, for every size, mask and kind of tie") {
  std::mt19937 rng(5);
  std::normal_distribution<float> normal(0, 3);
  for (int round = 0; round < 600; ++round) {
    std::vector<float> x(std::vector<size_t>{1, 5, 63, 64, 65, 130, 1000, 5000}[rng() % 8]);
    for (float& v : x) v = rng() % 20 == 0 ? -kInf : round % 2 ? normal(rng) : std::round(normal(rng));
    const size_t n_words = (x.size() + 31) / 32;
    std::vector<uint32_t> allowed(rng() % 2 ? n_words : 0), without(rng() % 2 ? n_words : 0);
    for (uint32_t& word : allowed) word = rng() % 2 ? static_cast<uint32_t>(rng()) : 0;
    for (uint32_t& word : without) word = rng() % 2 ? 1u << (rng() % 32) : 0;
    const LogitRow row{x, allowed, without};
    const auto expected = sorted_entries(row);
    bool finite = true;
    const Candidate best = largest(row, finite);
    CHECK(same(best, expected.empty() ? Candidate{-kInf, -1} : expected[0]));
    std::vector<Candidate> found;
    for (const size_t k : {size_t{1}, size_t{3}, size_t{64}, x.size()}) {
      collect_top(row, k, found, finite);
      CHECK(finite == (std::find(x.begin(), x.end(), -kInf) == x.end()));
      keep_best(found, k);
      REQUIRE(found.size() == std::min(k, expected.size()));
      CHECK(std::equal(found.begin(), found.end(), expected.begin(), same));
    }
    collect_all(row, found, finite);
    CHECK(found.size() == expected.size());
    keep_best(found, x.size());
    CHECK(std::equal(found.begin(), found.end(), expected.begin(), same));
  }
}

TEST_CASE("a number that is not finite is noticed anywhere, also where it takes no part") {
  for (const size_t n : {1, 7, 64, 129}) {
    std::vector<float> x(n, 1.0f);
    const std::vector<uint32_t> none((n + 31) / 32);
    for (size_t i = 0; i < n; ++i) {
      for (const float bad : {kInf, -kInf, std::numeric_limits<float>::quiet_NaN()}) {
        x[i] = bad;
        bool finite = true;
        std::vector<Candidate> found;
        CHECK(!is_finite(x));
        largest({x, none, {}}, finite);
        CHECK(!finite);
        collect_top({x, none, {}}, 2, found, finite);
        CHECK(!finite);
        x[i] = std::numeric_limits<float>::max();
        CHECK(is_finite(x));
        largest({x, {}, {}}, finite);
        CHECK(finite);
      }
    }
  }
}
