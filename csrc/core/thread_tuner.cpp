// The rules of thread_tuner.h. Times are compared by their minimum: other programs can only lengthen them.
#include "core/thread_tuner.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace gemmule {
namespace {

constexpr double kFastEnough = 1 / 0.97;    // times the fastest
constexpr double kHopeless = 1.2;           // times the fastest: not worth a second look
constexpr int kPairs = 3;                   // steps of either kind in a comparison
constexpr int64_t kBetweenSearches = 2000;  // steps
constexpr double kNever = std::numeric_limits<double>::infinity();

}  // namespace

int ThreadTuner::next() const {
  if (trial_ == 0) return chosen_;
  return step_ % 2 == 0 ? n_threads_ : trial_;
}

void ThreadTuner::took(double seconds) {
  if (n_threads_ == 1) return;
  if (trial_ == 0) {
    if (++step_ < pause_) return;
    passed_ = n_threads_;
    time_all_ = fastest_ = kNever;
    likely_ > 0 ? compare_with(likely_) : try_fewer();
    return;
  }
  double& best = step_ % 2 == 0 ? time_all_ : time_trial_;
  best = std::min(best, seconds);
  fastest_ = std::min(fastest_, seconds);
  ++step_;
  const bool hopeless = step_ % 2 == 0 && time_trial_ > kHopeless * fastest_;
  if (!hopeless && step_ < 2 * kPairs) return;
  const bool is_fast = time_trial_ <= kFastEnough * fastest_;
  const bool was_likely = std::exchange(likely_, 0) > 0;
  if (is_fast) passed_ = trial_;
  // Where the likely number is slow, the search begins as any other.
  if ((is_fast || was_likely) && passed_ > 1) {
    try_fewer();
    return;
  }
  chosen_ = passed_;
  trial_ = 0;
  step_ = 0;
  pause_ = kBetweenSearches;
}

void ThreadTuner::compare_with(int trial) {
  trial_ = trial;
  time_trial_ = kNever;
  step_ = 0;
}

}  // namespace gemmule
