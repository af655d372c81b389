#include "engine/draft_length.h"

#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <stdexcept>

using namespace gemmule;

namespace {

// Times as if passes took 1 + slope * (rows - 1).
PassTimes linear(double slope, double draft = 0) {
  PassTimes times;
  for (int64_t n = 1; n <= kMaxDrafts + 1; ++n) times.ran(n, 1 + slope * static_cast<double>(n - 1));
  // Later measurements moved the earlier ones, as if the machine had become slower; again until it settles.
  for (int i = 0; i < 400; ++i)
    for (int64_t n = 1; n <= kMaxDrafts + 1; ++n) times.ran(n, 1 + slope * static_cast<double>(n - 1));
  if (draft > 0) times.drafted(draft);
  return times;
}

}  // namespace

TEST_CASE("the length follows the chance of a draft and the price of a row") {
  const std::vector<double> good(8, 0.9), fair(8, 0.6), bad(8, 0.1);
  CHECK(best_length(bad, 0, 0.05, linear(0.3, 0.05)).length == 0);
  CHECK(best_length(good, 0, 0.02, linear(0.02, 0.02)).length == 8);
  const int64_t some = best_length(fair, 0, 0.05, linear(0.15, 0.05)).length;
  CHECK(some >= 1);
  CHECK(some <= 3);
  CHECK(best_length(good, 0, 0.05, linear(0.15, 0.05)).length > some);
  CHECK(best_length(good, 0, 0, linear(1)).length == 0);  // rows as dear as passes: nothing to gain
  CHECK(best_length({}, 0, 0, linear(0.1)).length == 0);
}

TEST_CASE("the rate is the one of the definition, and the best length has the best") {
  const PassTimes times = linear(0.2, 0.07);
  const std::vector<double> chances = {0.8, 0.7, 0.75, 0.5, 0.6};
  double best = 1, all = 1, tokens = 1;
  for (size_t k = 1; k <= chances.size(); ++k) {
    all *= chances[k - 1];
    tokens += all;
    best = std::max(best, tokens / (1 + 0.2 * static_cast<double>(k) + 0.07 * static_cast<double>(k)));
  }
  CHECK(best_length(chances, 0, times.draft(), times).rate == doctest::Approx(best).epsilon(0.01));
}

TEST_CASE("drafts that were made are paid for whether they are run or not") {
  const PassTimes times = linear(0.1, 1);
  const std::vector<double> chances(2, 0.8);
  CHECK(best_length(chances, 0, 1, times).length == 0);
  CHECK(best_length(chances, 2, 1, times).length == 2);
}

TEST_CASE("times settle on what passes take, through noise and a machine that becomes slower") {
  std::mt19937 random(1);
  PassTimes times;
  double slower = 1;
  for (int i = 0; i < 4000; ++i) {
    if (i == 2000) slower = 1.7;
    const int64_t n = 1 + static_cast<int64_t>(random() % 4);
    const double noise = std::exp(0.1 * std::normal_distribution<double>()(random));
    times.ran(n, slower * 0.2 * (1 + 0.3 * static_cast<double>(n - 1)) * (i % 50 == 0 ? 10 : noise));
  }
  CHECK(times.pass(2) == doctest::Approx(1.3).epsilon(0.1));
  CHECK(times.pass(4) == doctest::Approx(1.9).epsilon(0.1));
  CHECK(times.seconds(1) == doctest::Approx(0.34).epsilon(0.15));
  CHECK(times.pass(5) > times.pass(4));  // never run: guessed from its neighbour
  CHECK(!times.is_measured(5));
}

TEST_CASE("one slow pass changes little") {
  PassTimes times = linear(0.2);
  times.ran(2, 100);
  CHECK(times.pass(2) < 1.4);
  PassTimes fresh;
  fresh.ran(1, 1);
  fresh.ran(3, 14);  // the first of its kind
  CHECK(fresh.pass(3) < 3);
}

TEST_CASE("kept numbers come back, whatever the machine's speed by then, and nonsense does not") {
  PassTimes times = linear(0.25, 0.08), other;
  other.set_numbers(times.numbers());
  for (int64_t n = 1; n <= kMaxDrafts + 1; ++n)
    CHECK(other.pass(n) == doctest::Approx(times.pass(n)).epsilon(1e-6));
  CHECK(other.draft() == doctest::Approx(0.08).epsilon(0.05));
  other.ran(3, 4.5);
  CHECK(other.pass(2) == doctest::Approx(1.25).epsilon(0.02));
  CHECK(other.seconds(1) == doctest::Approx(3).epsilon(0.05));
  std::array<double, PassTimes::kNumbers> bad;
  bad.fill(std::nan(""));
  bad[3] = -1;
  bad[5] = 1e300;
  PassTimes guessed;
  other.set_numbers(bad);
  for (int64_t n = 1; n <= kMaxDrafts + 1; ++n) CHECK(other.pass(n) == guessed.pass(n));
  CHECK(other.draft() == guessed.draft());
}

TEST_CASE("guesses stand in for what was never run, and measurements take their place") {
  std::vector<double> flat(kMaxDrafts + 1);
  for (size_t i = 0; i < flat.size(); ++i) flat[i] = 1 + 0.05 * static_cast<double>(i);
  PassTimes times(flat);
  CHECK(times.pass(5) == doctest::Approx(1.2));
  CHECK(PassTimes().pass(5) > 1.5);
  const std::vector<double> chances(8, 0.7);
  CHECK(best_length(chances, 0, 0.05, times).length > best_length(chances, 0, 0.05, PassTimes()).length);
  times.set_numbers(linear(0.4).numbers());
  CHECK(times.pass(5) == doctest::Approx(2.6).epsilon(0.02));
  times.set_numbers({});
  times.ran(1, 2);
  for (int i = 0; i < 100; ++i) times.ran(3, 2.6);
  CHECK(times.pass(3) == doctest::Approx(1.3).epsilon(0.05));
  CHECK(times.pass(5) == doctest::Approx(1.6).epsilon(0.1));  // in the shape of the guesses
}

TEST_CASE("guesses that make no sense are not taken") {
  std::vector<double> bad(kMaxDrafts + 1, 1);
  bad[2] = std::nan("");
  bad[4] = -3;
  bad[6] = 1e300;
  const PassTimes times(bad);
  for (int64_t n = 2; n <= kMaxDrafts + 1; ++n) {
    CHECK(times.pass(n) > times.pass(n - 1));
    CHECK(times.pass(n) < 2);
  }
  CHECK_THROWS_AS(PassTimes(std::vector<double>(3, 1)), std::invalid_argument);
}

TEST_CASE("a chance follows what happens") {
  Chance chance;
  for (int i = 0; i < 100; ++i) chance.saw(i % 4 != 0);
  CHECK(chance.p == doctest::Approx(0.75).epsilon(0.1));
  for (int i = 0; i < 100; ++i) chance.saw(false);
  CHECK(chance.p < 0.05);
}

TEST_CASE("gaps fall into their levels") {
  CHECK(DraftChances::gap_level(0) == 0);
  CHECK(DraftChances::gap_level(1.5) == 2);
  CHECK(DraftChances::gap_level(100) == 4);
}
