// What a request expects its next tokens to be, so that a session can run them ahead in one pass. A wrong
// guess costs time only: the caller still chooses every token from the model's own logits, and a session uses
// a row it ran ahead only where the token of that row was chosen. Guesses come from the drafter, whose logits
// go through the same sampler with the same noise, from what the timeline said before, or from the caller,
// whose grammar may leave no choice.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "core/stop_token.h"
#include "engine/draft_length.h"
#include "engine/prompt_lookup.h"
#include "engine/sampler.h"
#include "model/kv_cache.h"

namespace gemmule {

class LoadedDrafter;
class LoadedModel;

// What the requests of one model have learnt about drafting.
class DraftTable {
 public:
  static constexpr size_t kNumbers = PassTimes::kNumbers + 3 + kMaxDrafterSteps + 5;

  DraftTable() = default;
  explicit DraftTable(PassTimes times) : times_(times) {}  // guesses of passes until some were run

  // To be kept between runs; kNumbers numbers, of which those that make no sense are not taken.
  std::vector<double> numbers() const;
  void set_numbers(std::span<const double> numbers);
  int64_t n_passes() const;  // learnt from

  PassTimes times() const;
  DraftChances chances() const;
  void ran(int64_t n_rows, double seconds);
  void drafted(double seconds);
  template <class Fn>
  void learn(Fn&& fn) {  // fn(DraftChances&)
    const std::lock_guard lock(mutex_);
    fn(chances_);
  }

 private:
  mutable std::mutex mutex_;
  PassTimes times_;
  DraftChances chances_;
  int64_t n_passes_ = 0;
};

// For measuring: the answer is known and each draft is the right one with a given chance.
struct DraftScript {
  std::vector<int32_t> tokens;  // by position
  double accept = 1;
  uint64_t seed = 0;
};

struct DraftOptions {
  bool lookup = true;         // draft what followed the same tokens before
  int64_t length = 0;         // draft so many; 0: as many as pay
  SamplerOptions sampling;    // of the request
  size_t n_prompt = 0;        // as Sampler::sample takes it
  std::vector<int32_t> ends;  // tokens behind which nothing is run
  DraftScript script;         // empty: none
};

struct DraftCounts {
  int64_t drafted = 0, accepted = 0;                   // tokens run ahead, and those that were then chosen
  std::array<int64_t, kMaxDrafts> reached{}, right{};  // by place in the round
};

class Drafting {
 public:
  // drafter: null for none. Throws std::invalid_argument for a length out of range.
  Drafting(DraftOptions options, std::shared_ptr<DraftTable> table, std::shared_ptr<LoadedDrafter> drafter);

  // What the caller knows of the tokens behind the one that is about to run, for the next call of `propose`:
  // those that come next in all likelihood, and, as Sampler::sample takes it, which one the first may be.
  void expect(std::vector<int32_t> next, std::vector<uint32_t> allowed);
  // The tokens to run behind the last one of `timeline`, which is about to run: `most` at most. hidden: the
  // final hidden state before that token; empty: not known. Valid until the next call.
  std::span<const int32_t> propose(LoadedModel& model, std::span<const int32_t> timeline,
                                   std::span<const float> hidden, const KvCache& kv, int64_t most,
                                   const StopToken* stop);
  // A pass of so many rows ran.
  void ran(int64_t n_rows, double seconds) { table_->ran(n_rows, seconds); }
  // The caller went on with this token.
  void saw(int32_t token);

  const DraftCounts& counts() const { return counts_; }
  bool has_drafter() const { return drafter_ != nullptr; }

 private:
  struct Draft {
    int32_t token = 0;
    size_t level = 0;  // of the chance it had, in the table of its source
  };
  enum class Source { None, Lookup, Drafter, Caller };

  bool is_scripted() const { return !options_.script.tokens.empty(); }
  bool is_end(int32_t token) const;
  Source choose(const DraftPlan& lookup, const DraftPlan& drafter, bool can_look_up, bool can_ask,
                bool knows_plain, int64_t& length, bool& is_fixed);
  bool take_expected(std::span<const int32_t> expected, int64_t most, const PassTimes& times);
  void look_up(std::span<const int32_t> timeline, const PromptLookup::Match& match, int64_t n);
  void ask_drafter(LoadedModel& model, std::span<const int32_t> timeline, std::span<const float> hidden,
                   const KvCache& kv, std::span<const uint32_t> allowed, int64_t most, bool is_fixed,
                   const StopToken* stop);
  bool pick(std::span<const float> logits, std::span<const uint32_t> allowed, Draft& draft);
  int32_t scripted(size_t position, int64_t n_vocab) const;
  std::vector<double> chances(int64_t n) const;

  DraftOptions options_;
  std::shared_ptr<DraftTable> table_;
  std::shared_ptr<LoadedDrafter> drafter_;
  Sampler sampler_;
  PromptLookup lookup_;
  DraftChances chances_;
  DraftCounts counts_;

  std::vector<Draft> round_;  // what is expected next, also what nobody wanted to run
  Source source_ = Source::None;
  size_t n_seen_ = 0;              // of round_, known to be right; all: the round is over
  std::vector<int32_t> proposed_;  // tokens at its front that are run
  std::vector<int32_t> history_;   // the timeline and the drafts of a round
  std::vector<Candidate> best_;
  std::vector<int32_t> expected_;  // by the caller
  std::vector<uint32_t> allowed_;
  Chance expected_right_{0.95, 0};
  int64_t n_plain_ = 0;     // passes without drafts since an attempt
  int64_t try_after_ = 64;  // of them, for the next attempt
  int64_t n_drafting_ = 0;  // passes with drafts since a plain one
  int64_t n_attempts_ = 0;
};

}  // namespace gemmule
