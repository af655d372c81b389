// The fewest threads that make a one-row step nearly as fast as any number does: such steps are bound by
// memory, which some of the cores may saturate. Pure logic, fed with times and asked for a number; it cannot
// change a result, because results do not depend on the number of threads.
#pragma once

#include <cstdint>

namespace gemmule {

class ThreadTuner {
 public:
  // likely: a number that is thought to be the one, with which it begins; 0: none is.
  explicit ThreadTuner(int n_threads, int likely = 0)
      : n_threads_(n_threads),
        likely_(likely > 0 && likely < n_threads ? likely : 0),
        chosen_(likely_ > 0 ? likely_ : n_threads),
        passed_(n_threads) {}

  int n_threads() const { return n_threads_; }
  // Threads to use for the next one-row step.
  int next() const;
  // That step took `seconds`.
  void took(double seconds);

 private:
  void compare_with(int trial);
  void try_fewer() { compare_with(passed_ > 4 ? passed_ * 3 / 4 : passed_ - 1); }

  int n_threads_;
  int likely_;          // until the first search has tried it; then 0
  int chosen_;          // by the last search
  int passed_;          // fewest that is fast enough, so far in this search
  int trial_ = 0;       // compared with all threads, step by step in turn; 0: no search
  int64_t step_ = 0;    // of the comparison, or of the time between two searches
  int64_t pause_ = 32;  // steps until the next search: the first ones still read the weights from the disk
  double time_all_ = 0, time_trial_ = 0, fastest_ = 0;  // the best of each in this search
};

}  // namespace gemmule
