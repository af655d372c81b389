#include "engine/draft_length.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "core/error.h"

namespace gemmule {
namespace {

// V(0), V(1), ... of two cores with AVX2, where a pass is bound by arithmetic soonest.
constexpr double kPasses[kMaxDrafts + 2] = {0,   1,    1.25, 1.4,  1.6,  1.85, 2.1,
                                            2.3, 2.55, 2.85, 3.15, 3.45, 3.75, 4.05};
constexpr double kDraft = 0.06;
constexpr double kGain = 1.02;  // that drafting must promise

}  // namespace

PassTimes::PassTimes() { std::copy(std::begin(kPasses), std::end(kPasses), guesses_.begin()); }

PassTimes::PassTimes(std::span<const double> guesses) : guesses_{0, 1} {
  // For what is not a product (attention, norms, sampling) a row costs at least so much; it also keeps apart
  // what `pass` divides by.
  constexpr double kRow = 0.03, kMost = 100;
  if (guesses.size() != guesses_.size() - 1)
    throw std::invalid_argument(
        cat("guesses of passes are ", guesses_.size() - 1, " numbers, not ", guesses.size()));
  for (size_t n = 2; n < guesses_.size(); ++n) {
    const double least = guesses_[n - 1] + kRow, x = guesses[n - 1];
    guesses_[n] = x > least && x < kMost ? x : least;
  }
}

// Moves the average, or what was guessed in its place, to x and returns the factor by which it moved.
double PassTimes::Average::take(double x, double guess) {
  const double before = n == 0 ? guess : seconds;
  const double weight = std::max(0.1, 1.0 / static_cast<double>(n + 1));
  // One pass that waited for something else says little.
  seconds = before > 0 ? before * std::pow(std::clamp(x / before, 0.5, 2.0), weight) : x;
  return n++ > 0 ? seconds / before : 1;
}

void PassTimes::ran(int64_t n_rows, double seconds) {
  if (n_rows < 1 || n_rows > kMaxDrafts + 1 || !(seconds > 0)) return;
  if (is_relative_) {
    const double factor = seconds / pass(n_rows);
    for (Average& average : rows_) average.seconds *= factor;
    draft_.seconds *= factor;
    is_relative_ = false;
  }
  const double moved = std::sqrt(rows_[static_cast<size_t>(n_rows)].take(seconds, this->seconds(n_rows)));
  // What slows one pass (a longer context, another program) slows the others too.
  for (size_t i = 0; i < rows_.size(); ++i)
    if (static_cast<int64_t>(i) != n_rows) rows_[i].seconds *= moved;
}

void PassTimes::drafted(double seconds) {
  if (seconds > 0 && !is_relative_) draft_.take(seconds, 0);
}

// The measured number of rows next to n_rows, those above 1 first; 0: none.
int64_t PassTimes::nearest(int64_t n_rows) const {
  for (int64_t distance = 0; distance <= kMaxDrafts; ++distance)
    for (const int64_t n : {n_rows - distance, n_rows + distance})
      if (n >= 2 && n <= kMaxDrafts + 1 && is_measured(n)) return n;
  return is_measured(1) ? 1 : 0;
}

double PassTimes::one_row() const {
  const int64_t n = is_measured(1) ? 1 : nearest(1);
  return n == 0 ? 0 : rows_[static_cast<size_t>(n)].seconds / guess(n);
}

double PassTimes::pass(int64_t n_rows) const {
  if (n_rows == 1) return 1;
  const int64_t n = nearest(n_rows);
  if (n < 2) return guess(n_rows);
  const double known = std::max(1.0, rows_[static_cast<size_t>(n)].seconds / one_row());
  return 1 + (known - 1) * (guess(n_rows) - 1) / (guess(n) - 1);
}

double PassTimes::draft() const {
  return draft_.n > 0 && one_row() > 0 ? draft_.seconds / one_row() : kDraft;
}

std::array<double, PassTimes::kNumbers> PassTimes::numbers() const {
  std::array<double, kNumbers> out{};
  for (int64_t n = 1; n <= kMaxDrafts + 1; ++n)
    if (is_measured(n)) out[static_cast<size_t>(n - 1)] = pass(n);
  if (draft_.n > 0) out.back() = draft();
  return out;
}

void PassTimes::set_numbers(const std::array<double, kNumbers>& numbers) {
  constexpr int64_t kTrust = 4;  // measurements that a kept number counts for
  const auto makes_sense = [](double x) { return x > 0 && x < 100; };
  rows_ = {};
  draft_ = {};
  is_relative_ = true;
  for (int64_t n = 1; n <= kMaxDrafts + 1; ++n) {
    const double x = numbers[static_cast<size_t>(n - 1)];
    if (x >= 1 && x <= 2 * kPasses[n]) rows_[static_cast<size_t>(n)] = {x, kTrust};
  }
  if (makes_sense(numbers.back())) draft_ = {numbers.back(), kTrust};
  rows_[1] = {1, kTrust};
}

void Chance::saw(bool happened) {
  const double weight = std::max(0.03, 1.0 / static_cast<double>(n + 4));
  p += weight * ((happened ? 1.0 : 0.0) - p);
  ++n;
}

DraftChances::DraftChances() {
  for (size_t i = 0; i < step.size(); ++i) step[i].p = 0.7;
}

double DraftChances::step_chance(size_t i) const {
  constexpr double kLean = 4;  // what the place before counts for
  double p = step[0].p;
  for (size_t k = 1; k <= i; ++k) {
    const auto n = static_cast<double>(step[k].n);
    p = (n * step[k].p + kLean * p) / (n + kLean);
  }
  return p;
}

size_t DraftChances::gap_level(double gap) {
  return static_cast<size_t>(std::upper_bound(std::begin(kGaps), std::end(kGaps), gap) - std::begin(kGaps));
}

DraftPlan best_length(std::span<const double> chances, int64_t n_made, double draft_cost,
                      const PassTimes& times) {
  const double made = static_cast<double>(n_made) * draft_cost;
  DraftPlan best{0, 1 / (1 + made)};
  double all_right = 1, tokens = 1;
  for (size_t i = 0; i < chances.size() && static_cast<int64_t>(i) < kMaxDrafts; ++i) {
    const auto length = static_cast<int64_t>(i) + 1;
    all_right *= chances[i];
    tokens += all_right;
    const double cost = std::max(made, static_cast<double>(length) * draft_cost);
    const double rate = tokens / (times.pass(length + 1) + cost);
    const double least = best.length == 0 ? best.rate * kGain : best.rate;
    if (rate > least) best = {length, rate};
  }
  return best;
}

}  // namespace gemmule
