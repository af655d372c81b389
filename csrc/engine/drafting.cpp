#include "engine/drafting.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "core/error.h"
#include "engine/loaded_drafter.h"

namespace gemmule {
namespace {

constexpr int64_t kPlainEvery = 64;  // passes with drafts, for one without to compare with
// Where drafting does not pay a few passes with one draft are tried after so many without, at first; twice as
// many after each attempt that changed nothing.
constexpr int64_t kTryAfter = 64, kTryAfterMost = 512, kTries = 4;
constexpr int64_t kKept = 8;  // observations that a kept chance counts for

double seconds_since(std::chrono::steady_clock::time_point began) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

}  // namespace

int64_t DraftTable::n_passes() const {
  const std::lock_guard lock(mutex_);
  return n_passes_;
}

PassTimes DraftTable::times() const {
  const std::lock_guard lock(mutex_);
  return times_;
}

DraftChances DraftTable::chances() const {
  const std::lock_guard lock(mutex_);
  return chances_;
}

void DraftTable::drafted(double seconds) {
  const std::lock_guard lock(mutex_);
  times_.drafted(seconds);
}

void DraftTable::ran(int64_t n_rows, double seconds) {
  const std::lock_guard lock(mutex_);
  times_.ran(n_rows, seconds);
  ++n_passes_;
}

std::vector<double> DraftTable::numbers() const {
  const std::lock_guard lock(mutex_);
  const auto times = times_.numbers();
  std::vector<double> out(times.begin(), times.end());
  const auto add = [&out](const auto& chances) {
    for (const Chance& chance : chances) out.push_back(chance.p);
  };
  add(chances_.lookup);
  add(chances_.step);
  add(chances_.gap);
  return out;
}

void DraftTable::set_numbers(std::span<const double> numbers) {
  if (numbers.size() != kNumbers)
    throw std::invalid_argument(cat("a table of drafting has ", kNumbers, " numbers, not ", numbers.size()));
  const std::lock_guard lock(mutex_);
  std::array<double, PassTimes::kNumbers> times;
  std::copy_n(numbers.begin(), times.size(), times.begin());
  times_.set_numbers(times);
  size_t at = times.size();
  const auto take = [&](auto& chances) {
    for (Chance& chance : chances) {
      const double p = numbers[at++];
      if (p >= 0 && p <= 1) chance = {p, kKept};
    }
  };
  take(chances_.lookup);
  take(chances_.step);
  take(chances_.gap);
}

Drafting::Drafting(DraftOptions options, std::shared_ptr<DraftTable> table,
                   std::shared_ptr<LoadedDrafter> drafter)
    : options_(std::move(options)),
      table_(std::move(table)),
      drafter_(std::move(drafter)),
      sampler_(options_.sampling),
      chances_(table_->chances()) {
  if (options_.length < 0 || options_.length > kMaxDrafts)
    throw std::invalid_argument(cat("length is ", options_.length, "; choose 0 to ", kMaxDrafts));
}

bool Drafting::is_end(int32_t token) const {
  return std::find(options_.ends.begin(), options_.ends.end(), token) != options_.ends.end();
}

// Which source drafts how many tokens. Where none seem to pay a few are tried from time to time, and where
// they do a pass goes without and one with a draft more, so that a change is noticed and their times are
// known.
Drafting::Source Drafting::choose(const DraftPlan& lookup, const DraftPlan& drafter, bool can_look_up,
                                  bool can_ask, bool knows_plain, int64_t& length, bool& is_fixed) {
  const bool asks = drafter.length > 0 && (lookup.length == 0 || drafter.rate >= lookup.rate);
  length = asks ? drafter.length : lookup.length;
  if (options_.length > 0) return asks ? Source::Drafter : can_look_up ? Source::Lookup : Source::None;
  if (length > 0) {
    if (n_plain_ == 0) try_after_ = kTryAfter;
    n_plain_ = 0;
    if (knows_plain && ++n_drafting_ < kPlainEvery) {
      is_fixed = n_drafting_ == kPlainEvery / 2;
      length += is_fixed;
      return asks ? Source::Drafter : Source::Lookup;
    }
    n_drafting_ = length = 0;
  } else if ((can_look_up || can_ask) && ++n_plain_ >= try_after_) {
    length = 1;
    const bool by_drafter = can_ask && (!can_look_up || n_attempts_ % 2 == 0);
    if (n_plain_ == try_after_ + kTries - 1) {
      n_plain_ = 0;
      try_after_ = std::min(2 * try_after_, kTryAfterMost);
      ++n_attempts_;
    }
    if (by_drafter) return Source::Drafter;
  }
  return can_look_up ? Source::Lookup : Source::None;
}

void Drafting::expect(std::vector<int32_t> next, std::vector<uint32_t> allowed) {
  expected_ = std::move(next);
  allowed_ = std::move(allowed);
}

std::span<const int32_t> Drafting::propose(LoadedModel& model, std::span<const int32_t> timeline,
                                           std::span<const float> hidden, const KvCache& kv, int64_t most,
                                           const StopToken* stop) {
  if (drafter_ && &drafter_->model() != &model)
    throw std::invalid_argument("the drafter belongs to another model than the session");
  round_.clear();
  proposed_.clear();
  n_seen_ = 0;
  source_ = Source::None;
  const auto expected = std::exchange(expected_, {});
  const auto allowed = std::exchange(allowed_, {});
  PromptLookup::Match match;
  if (options_.lookup && !is_scripted()) match = lookup_.find(timeline);
  most = std::min(most, kMaxDrafts);
  if (most < 1) return {};

  const bool can_look_up = match.next > 0, can_ask = is_scripted() || (drafter_ && !hidden.empty());
  const int64_t n_steps = std::min(most, kMaxDrafterSteps);
  const PassTimes times = table_->times();
  if (!is_scripted() && take_expected(expected, most, times)) return proposed_;
  DraftPlan by_lookup, by_drafter;
  if (options_.length > 0) {
    if (can_ask)
      by_drafter.length = std::min(options_.length, n_steps);
    else if (can_look_up)
      by_lookup.length = std::min(options_.length, most);
  } else {
    if (can_ask) by_drafter = best_length(chances(n_steps), 0, drafter_ ? times.draft() : 0, times);
    if (can_look_up)
      by_lookup =
          best_length(std::vector(static_cast<size_t>(most), chances_.lookup[match.level].p), 0, 0, times);
  }
  bool is_fixed = options_.length > 0 || (by_drafter.length == 0 && by_lookup.length == 0);
  int64_t length = 0;
  source_ = choose(by_lookup, by_drafter, can_look_up, can_ask, times.is_measured(1), length, is_fixed);
  length = std::min(length, most);
  if (source_ == Source::Lookup) look_up(timeline, match, length);
  if (source_ == Source::Drafter)
    ask_drafter(model, timeline, hidden, kv, allowed, is_fixed ? std::min(length, n_steps) : n_steps,
                is_fixed, stop);
  counts_.drafted += static_cast<int64_t>(proposed_.size());
  return proposed_;
}

// Whether what the caller expects is drafted: nearly always right, it is more than others could promise.
bool Drafting::take_expected(std::span<const int32_t> expected, int64_t most, const PassTimes& times) {
  const auto end = std::find_if(expected.begin(), expected.end(), [this](int32_t t) { return is_end(t); });
  const int64_t n = std::min(most, static_cast<int64_t>(end - expected.begin()));
  if (n < 1) return false;
  const std::vector chances(static_cast<size_t>(n), expected_right_.p);
  const int64_t length =
      options_.length > 0 ? std::min(options_.length, n) : best_length(chances, 0, 0, times).length;
  if (length == 0) return false;
  source_ = Source::Caller;
  proposed_.assign(expected.begin(), expected.begin() + length);
  for (const int32_t token : proposed_) round_.push_back({token, 0});
  counts_.drafted += length;
  return true;
}

// What is not run is expected all the same: whether it would have been right costs nothing to see.
void Drafting::look_up(std::span<const int32_t> timeline, const PromptLookup::Match& match, int64_t n) {
  for (const int32_t token : PromptLookup::continuation(timeline, match, kMaxDrafts)) {
    if (is_end(token)) break;
    if (static_cast<int64_t>(round_.size()) < n) proposed_.push_back(token);
    round_.push_back({token, match.level});
  }
}

// The chances of the next n drafts of a round: those that were made by what the drafter thought of them.
std::vector<double> Drafting::chances(int64_t n) const {
  std::vector<double> out;
  for (size_t i = 0; i < static_cast<size_t>(n); ++i)
    out.push_back(i < round_.size() && !is_scripted() ? chances_.gap[round_[i].level].p
                                                      : chances_.step_chance(i));
  return out;
}

void Drafting::ask_drafter(LoadedModel& model, std::span<const int32_t> timeline,
                           std::span<const float> hidden, const KvCache& kv,
                           std::span<const uint32_t> allowed, int64_t most, bool is_fixed,
                           const StopToken* stop) {
  const auto position = static_cast<int64_t>(timeline.size()) - 1;
  const PassTimes times = table_->times();
  const double cost = drafter_ ? times.draft() : 0;
  const auto n_made = [this] { return static_cast<int64_t>(round_.size()); };
  history_.assign(timeline.begin(), timeline.end());
  model.run_beside(stop, [&](Backend&) {
    while (n_made() < most) {
      if (!is_fixed && best_length(chances(most), n_made(), cost, times).length <= n_made()) break;
      if (stop) stop->check();
      const auto began = std::chrono::steady_clock::now();
      Draft draft;
      if (drafter_ && !hidden.empty()) {
        const Drafter::Step step = drafter_->drafter().step(history_.back(), hidden, position, kv);
        hidden = step.hidden;
        if (!pick(step.logits, round_.empty() ? allowed : std::span<const uint32_t>(), draft)) break;
        table_->drafted(seconds_since(began));
      }
      if (is_scripted()) {
        if (history_.size() >= options_.script.tokens.size()) break;
        draft.token = scripted(history_.size(), model.config().n_vocab);
      }
      if (is_end(draft.token)) break;
      round_.push_back(draft);
      history_.push_back(draft.token);
    }
  });
  const int64_t n = is_fixed ? n_made() : best_length(chances(n_made()), n_made(), cost, times).length;
  for (int64_t i = 0; i < n; ++i) proposed_.push_back(round_[static_cast<size_t>(i)].token);
}

// Draws as the request does, with the noise of the same position, so that the two mostly agree. False: the
// drafter's logits are of no use.
bool Drafting::pick(std::span<const float> logits, std::span<const uint32_t> allowed, Draft& draft) {
  bool finite = true;
  best_.clear();
  collect_top({logits, {}, {}}, 2, best_, finite);
  keep_best(best_, 2);
  try {
    const auto position = static_cast<int64_t>(history_.size());
    draft.token = sampler_.sample(logits, history_, options_.n_prompt, position, allowed).token;
  } catch (const Error&) {  // not finite, or all that it would draft is forbidden
    return false;
  } catch (const std::invalid_argument&) {  // nothing is allowed
    return false;
  }
  draft.level = best_.size() < 2 ? 0 : DraftChances::gap_level(best_[0].logit - best_[1].logit);
  return true;
}

int32_t Drafting::scripted(size_t position, int64_t n_vocab) const {
  const DraftScript& script = options_.script;
  // A uniform number of (seed, position) out of the sampler's noise: exp(-exp(-gumbel)) is uniform.
  const double uniform = std::exp(-std::exp(-gumbel_noise(script.seed, static_cast<int64_t>(position), 0)));
  const int32_t right = script.tokens[position];
  return uniform < script.accept ? right : static_cast<int32_t>((right + 1) % n_vocab);
}

void Drafting::saw(int32_t token) {
  if (n_seen_ >= round_.size()) return;
  const Draft& draft = round_[n_seen_];
  const bool right = draft.token == token;
  const auto note = [&](DraftChances& chances) {
    if (source_ == Source::Lookup) {
      chances.lookup[draft.level].saw(right);
    } else {
      chances.step[n_seen_].saw(right);
      if (!is_scripted()) chances.gap[draft.level].saw(right);
    }
  };
  if (source_ == Source::Caller) {
    expected_right_.saw(right);
  } else {
    note(chances_);
    table_->learn(note);
  }
  if (n_seen_ < proposed_.size()) {
    ++counts_.reached[n_seen_];
    counts_.right[n_seen_] += right;
    counts_.accepted += right;
  }
  n_seen_ = right ? n_seen_ + 1 : round_.size();
}

}  // namespace gemmule
